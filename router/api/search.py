"""Searching for the nearest points."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import msgspec
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import parse_id, parse_vectors, render_points
from router.api.exchange import Context, Timeout, answer, read_body
from router.api.mmr import pick
from router.api.points import DEFAULT_LIMIT, Consistency, check_vector_bytes, wants_vector
from router.api.selectors import Selector
from router.directory import PointNotFound
from router.errors import OutOfRange
from router.hot_path import Handler
from shard.model import (
    KEY_DTYPE,
    Hits,
    SearchParams,
    ShardConfig,
    Vectors,
    decode_id,
    encode_id,
)
from shard.rpc.merge import take_points

routes = APIRouter(prefix="/collections/{name}/points", tags=["Search"])

MAX_BATCH_HITS = 1_000_000
"""Most points that one batch may ask for, offsets included."""

_query = wire.Decoder(wire.Query)
_query_batch = wire.Decoder(wire.QueryBatch)
_search = wire.Decoder(wire.Search)
_search_batch = wire.Decoder(wire.SearchBatch)

Found: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class _Search:
    """One search, checked; ``target`` is a vector, the key of a stored point, or None for all."""

    target: list[float] | dict[str, Any] | bytes | None
    limit: int
    offset: int
    selector: Selector
    params: SearchParams
    mmr: wire.Mmr | None = None
    with_vector: bool = False

    @staticmethod
    def of(body: wire.Query | wire.Search, field: str) -> _Search:
        limit = DEFAULT_LIMIT if body.limit is None else body.limit
        offset = body.offset or 0
        if limit + offset > wire.MAX_HITS:
            raise OutOfRange(f"{field}limit: expected `limit` + `offset` <= {wire.MAX_HITS}")
        target: Any = body.vector if isinstance(body, wire.Search) else body.query
        mmr = None
        if isinstance(target, wire.Nearest):
            mmr, target = target.mmr, target.nearest
        elif isinstance(target, dict) and target.get("name") == "":
            target = {"": target.get("vector")}
        if isinstance(target, int | str):
            target = encode_id(parse_id(target, f"{field}query"))
        selector = Selector.of(body.with_payload, default=False)
        asked = body.params or wire.SearchParams()
        quantization = asked.quantization or wire.QuantizationSearchParams()
        wanted = limit + offset if mmr is None else mmr.candidates_limit or limit
        with_vector = wants_vector(body.with_vector)
        params = SearchParams(
            # A stored point finds itself, and is left out of the answer.
            limit=wanted + isinstance(target, bytes),
            exact=bool(asked.exact or quantization.ignore),
            nprobe=asked.nprobe,
            oversampling=quantization.oversampling,
            score_threshold=body.score_threshold,
            filter=body.filter.check(f"{field}filter") if body.filter else b"",
            with_payload=selector.wanted,
            with_vector=with_vector or mmr is not None,
        )
        return _Search(target, limit, offset, selector, params, mmr, with_vector)

    def render(
        self, hits: Hits, start: int, end: int, query: Vectors, config: ShardConfig
    ) -> Found:
        """The answer out of this search's part of ``hits``; ``query`` (d,) is what was asked."""
        higher_is_nearer = config.distance.higher_is_nearer
        rows = np.arange(start, end)
        if isinstance(self.target, bytes):
            rows = rows[hits.points.keys[rows] != self.target]
        if self.params.score_threshold is not None:
            threshold = np.float32(self.params.score_threshold)
            scores = hits.scores[rows]
            rows = rows[scores > threshold if higher_is_nearer else scores < threshold]
        points = hits.points
        if self.mmr is not None and points.vectors is not None:
            rows = rows[: self.mmr.candidates_limit or self.limit]
            rows = rows[
                pick(
                    config.prepare(query[None])[0],
                    points.vectors[rows],
                    config.distance,
                    self.mmr.diversity,
                    self.offset + self.limit,
                )
            ]
            if not self.with_vector:
                points = msgspec.structs.replace(points, vectors=None)
        rows = rows[self.offset : self.offset + self.limit]
        scores = hits.scores[rows]
        if not np.isfinite(scores).all():
            # JSON has no infinity; the product of two float32 numbers may overflow to it.
            scores = np.nan_to_num(scores)
        return render_points(take_points(points, rows), self.selector, scores)


async def _find(
    context: Context, collection: Collection, searches: Sequence[_Search], timeout: float
) -> list[Found]:
    """The answers to ``searches``, in order. Those that search alike share one call."""
    check_vector_bytes(
        sum(search.params.limit for search in searches if search.params.with_vector), collection
    )
    stored = await _stored_vectors(context, collection, searches, timeout)
    found: list[Found] = [[] for _ in searches]
    alike: dict[SearchParams, list[int]] = defaultdict(list)
    for place, search in enumerate(searches):
        if search.target is not None:
            alike[search.params].append(place)

    async def search_alike(queries: Vectors, params: SearchParams, places: list[int]) -> None:
        hits = await context.fanout.search(collection, queries, params, timeout=timeout)
        ends = np.cumsum(hits.lengths).tolist()
        starts = [0, *ends[:-1]]
        for place, start, end, query in zip(places, starts, ends, queries, strict=True):
            found[place] = searches[place].render(hits, start, end, query, collection.config)

    async def list_all(place: int) -> None:
        search = searches[place]
        points = await context.fanout.scroll(
            collection,
            b"",
            search.params.limit,
            with_payload=search.params.with_payload,
            with_vector=search.params.with_vector,
            filter=search.params.filter,
            timeout=timeout,
        )
        page = take_points(points, np.arange(len(points.keys))[search.offset :])
        found[place] = render_points(page, search.selector, np.ones(len(page.keys), np.float32))

    groups = []
    for params, places in alike.items():
        targets = [searches[place].target for place in places]
        rows = [stored[one] if isinstance(one, bytes) else one for one in targets]
        groups.append((parse_vectors(rows, collection.config.dimension), params, places))
    calls = [search_alike(*group) for group in groups]
    calls += [list_all(place) for place, search in enumerate(searches) if search.target is None]
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)
    return found


async def _stored_vectors(
    context: Context, collection: Collection, searches: Sequence[_Search], timeout: float
) -> dict[bytes, Any]:
    """The vectors of the points that ``searches`` name, by key. Raises PointNotFound."""
    named = {search.target for search in searches if isinstance(search.target, bytes)}
    if not named:
        return {}
    points = await context.fanout.retrieve(
        collection,
        np.array(sorted(named), KEY_DTYPE),
        with_payload=False,
        with_vector=True,
        timeout=timeout,
    )
    assert points.vectors is not None
    stored = dict(zip(points.keys.tolist(), points.vectors, strict=True))
    for key in named - stored.keys():
        raise PointNotFound(f"No point with id {decode_id(key)} found")
    return stored


async def _answer_all(
    request: Request, name: str, searches: Sequence[_Search], timeout: int | None
) -> list[Found]:
    context = Context.of(request)
    if sum(search.params.limit for search in searches) > MAX_BATCH_HITS:
        raise OutOfRange(f"searches: expected at most {MAX_BATCH_HITS} hits in all")

    async def find(collection: Collection) -> list[Found]:
        return await _find(context, collection, searches, timeout or context.timeout)

    return await context.directory.act(name, find)


@routes.post(
    "/query",
    openapi_extra=wire.body(_query),
    responses=wire.answers(wire.ScoredPoints),
    summary="Query points",
)
async def query(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The points nearest to a vector or to a stored point; without a query, points by id."""
    search = _Search.of(_query(await read_body(request)), "")
    (found,) = await _answer_all(request, name, [search], timeout)
    return answer(request, {"points": found})


@routes.post(
    "/query/batch",
    openapi_extra=wire.body(_query_batch),
    responses=wire.answers(list[wire.ScoredPoints]),
    summary="Query points in batch",
)
async def query_batch(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The answers to many queries, in order."""
    body = _query_batch(await read_body(request))
    searches = [_Search.of(one, f"searches[{n}].") for n, one in enumerate(body.searches)]
    found = await _answer_all(request, name, searches, timeout)
    return answer(request, [{"points": points} for points in found])


@routes.post(
    "/search",
    openapi_extra=wire.body(_search),
    responses=wire.answers(list[wire.ScoredPoint]),
    summary="Search points",
)
async def search(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The points nearest to a vector."""
    search = _Search.of(_search(await read_body(request)), "")
    (found,) = await _answer_all(request, name, [search], timeout)
    return answer(request, found)


@routes.post(
    "/search/batch",
    openapi_extra=wire.body(_search_batch),
    responses=wire.answers(list[list[wire.ScoredPoint]]),
    summary="Search points in batch",
)
async def search_batch(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The answers to many searches, in order."""
    body = _search_batch(await read_body(request))
    searches = [_Search.of(one, f"searches[{n}].") for n, one in enumerate(body.searches)]
    return answer(request, await _answer_all(request, name, searches, timeout))


HOT: Mapping[str, Handler] = {
    "points/query": query,
    "points/query/batch": query_batch,
    "points/search": search,
    "points/search/batch": search_batch,
}
"""What need not wait for FastAPI."""
