"""Searching for the nearest points."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import parse_id, parse_queries, render_points
from router.api.exchange import Context, Timeout, answer, read_body
from router.api.points import DEFAULT_LIMIT, Consistency, check_vector_bytes, wanted_vectors
from router.api.selectors import Selector
from router.directory import PointNotFound
from router.errors import OutOfRange
from router.hot_path import Handler
from router.query.tree import Answering, Node
from shard.model import (
    KEY_DTYPE,
    Hits,
    Points,
    Scores,
    SearchParams,
    ShardConfig,
    VectorColumn,
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

Rendered: TypeAlias = list[dict[str, Any]]


@dataclass(frozen=True)
class _Plain:
    """A query for what is nearest to one vector, which many have alike."""

    target: wire.Vector | bytes
    """A vector, or the key of a stored point."""
    limit: int
    offset: int
    selector: Selector
    params: SearchParams
    filter: bytes

    def render(self, hits: Hits, start: int, end: int, config: ShardConfig) -> Rendered:
        """The answer out of this search's part of ``hits``."""
        rows = np.arange(start, end)
        if isinstance(self.target, bytes):
            rows = rows[hits.points.keys[rows] != self.target]
        if self.params.score_threshold is not None:
            threshold = np.float32(self.params.score_threshold)
            scores = hits.scores[rows]
            higher = config.higher_is_nearer(self.params)
            rows = rows[scores > threshold if higher else scores < threshold]
        rows = rows[self.offset : self.offset + self.limit]
        return _render(take_points(hits.points, rows), hits.scores[rows], config, self.selector)


@dataclass(frozen=True)
class _Asked:
    """One query, checked as far as it can be without its collection."""

    body: wire.Query
    field: str
    limit: int
    offset: int
    selector: Selector
    tree: Node | None
    """None: a `_Plain` one, if its vectors are dense."""

    @staticmethod
    def of(body: wire.Query, field: str) -> _Asked:
        limit = DEFAULT_LIMIT if body.limit is None else body.limit
        offset = body.offset or 0
        if limit + offset > wire.MAX_HITS:
            raise OutOfRange(f"{field}limit: expected `limit` + `offset` <= {wire.MAX_HITS}")
        selector = Selector.of(body.with_payload, default=False)
        if isinstance(body.query, int | str):
            parse_id(body.query, f"{field}query")
        plain = (
            isinstance(body.query, list | int | str)
            and body.prefetch is None
            and body.lookup_from is None
        )
        tree = None if plain else Node.of(body, field, limit + offset)
        return _Asked(body, field, limit, offset, selector, tree)

    def plain(self, config: ShardConfig) -> _Plain | None:
        """The query as a plain one, unless it is none."""
        body = self.body
        using = body.using or ""
        given = body.query
        if self.tree is not None or using not in config.vectors or isinstance(given, dict | None):
            return None
        target: wire.Vector | bytes
        if isinstance(given, list):
            target = given
        else:
            target = encode_id(parse_id(given, f"{self.field}query"))
        asked = body.params or wire.SearchParams()
        quantization = asked.quantization or wire.QuantizationSearchParams()
        params = SearchParams(
            # A stored point finds itself, and is left out of the answer.
            limit=self.limit + self.offset + isinstance(target, bytes),
            exact=bool(asked.exact or quantization.ignore),
            nprobe=asked.nprobe,
            oversampling=quantization.oversampling,
            score_threshold=body.score_threshold,
            using=using,
            with_payload=self.selector.wanted,
            with_vectors=wanted_vectors(body.with_vector, config),
        )
        filter = body.filter.check(f"{self.field}filter") if body.filter else b""
        return _Plain(target, self.limit, self.offset, self.selector, params, filter)

    async def answer(self, answering: Answering, config: ShardConfig) -> Rendered:
        """As a tree."""
        tree = self.tree or Node.of(self.body, self.field, self.limit + self.offset)
        found = await answering.find(
            tree,
            with_payload=self.selector.wanted,
            with_vectors=wanted_vectors(self.body.with_vector, config),
        )
        found = found.take(np.arange(len(found.scores))[self.offset :])
        rendered = _render(found.points, found.scores, config, self.selector)
        for record, value in zip(rendered, found.values or [], strict=False):
            record["order_value"] = value
        return rendered


def _query_of(body: wire.Search) -> wire.Query:
    """A search, of Qdrant's older API, as a query."""
    target: wire.VectorInput = body.vector
    using = None
    if isinstance(target, dict):
        named = wire.convert(target, wire.NamedVector, "vector")
        target, using = named.vector, named.name
    return wire.Query(
        query=target,
        using=using,
        limit=body.limit,
        offset=body.offset,
        score_threshold=body.score_threshold,
        params=body.params,
        with_payload=body.with_payload,
        with_vector=body.with_vector,
        filter=body.filter,
    )


def _render(points: Points, scores: Scores, config: ShardConfig, selector: Selector) -> Rendered:
    if not np.isfinite(scores).all():
        # JSON has no infinity; the product of two float32 numbers may overflow to it.
        scores = np.nan_to_num(scores)
    return render_points(points, config, selector, scores)


async def _find(
    context: Context, collection: Collection, asked: Sequence[_Asked], timeout: float
) -> list[Rendered]:
    """The answers to ``asked``, in order. Plain ones that search alike share one call."""
    config = collection.config
    found: list[Rendered] = [[] for _ in asked]
    alike: dict[tuple[SearchParams, bytes], list[tuple[int, _Plain]]] = defaultdict(list)
    trees: list[int] = []
    for place, one in enumerate(asked):
        plain = one.plain(config)
        if plain is None:
            trees.append(place)
        else:
            alike[plain.params, plain.filter].append((place, plain))
    for one in asked:
        names = wanted_vectors(one.body.with_vector, config)
        check_vector_bytes(one.limit + one.offset, names, config)

    async def search_alike(
        params: SearchParams, filter: bytes, some: list[tuple[int, _Plain]]
    ) -> None:
        stored = await _stored_vectors(
            context, collection, params.using, [one.target for _, one in some], timeout
        )
        targets = [
            stored[one.target] if isinstance(one.target, bytes) else one.target for _, one in some
        ]
        queries = parse_queries(targets, params.using, config)
        hits = await context.fanout.search(
            collection, queries, params, filter=filter, timeout=timeout
        )
        ends = np.cumsum(hits.lengths).tolist()
        for (place, one), start, end in zip(some, [0, *ends[:-1]], ends, strict=True):
            found[place] = one.render(hits, start, end, config)

    async def answer_tree(place: int) -> None:
        answering = Answering(context, collection, timeout)
        found[place] = await asked[place].answer(answering, config)

    calls = [search_alike(params, filter, some) for (params, filter), some in alike.items()]
    calls += [answer_tree(place) for place in trees]
    if len(calls) == 1:
        await calls[0]
    else:
        await asyncio.gather(*calls)
    return found


async def _stored_vectors(
    context: Context,
    collection: Collection,
    using: str,
    targets: Sequence[wire.Vector | bytes],
    timeout: float,
) -> dict[bytes, VectorColumn]:
    """The vectors of the points among ``targets``, by key. Raises PointNotFound."""
    named = {target for target in targets if isinstance(target, bytes)}
    if not named:
        return {}
    points = await context.fanout.retrieve(
        collection,
        np.array(sorted(named), KEY_DTYPE),
        with_payload=False,
        with_vectors=(using,),
        timeout=timeout,
    )
    column = points.vectors[using]
    has = column.has()
    stored = {
        key: column.slice(row, row + 1) for row, key in enumerate(points.keys.tolist()) if has[row]
    }
    for key in named - stored.keys():
        raise PointNotFound(f"No point with id {decode_id(key)} found")
    return stored


async def _answer_all(
    request: Request, name: str, searches: Sequence[_Asked], timeout: int | None
) -> list[Rendered]:
    context = Context.of(request)
    if sum(search.limit + search.offset for search in searches) > MAX_BATCH_HITS:
        raise OutOfRange(f"searches: expected at most {MAX_BATCH_HITS} hits in all")
    for search in searches:
        # Before any other of the batch is under way.
        for node in search.tree.walk() if search.tree else ():
            node.check_access(context.access)

    async def find(collection: Collection) -> list[Rendered]:
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
    """The points nearest to a vector or to a stored point, or as another query has it; without one,
    points by id."""
    search = _Asked.of(_query(await read_body(request)), "")
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
    searches = [_Asked.of(one, f"searches[{n}].") for n, one in enumerate(body.searches)]
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
    search = _Asked.of(_query_of(_search(await read_body(request))), "")
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
    searches = [_Asked.of(_query_of(one), f"searches[{n}].") for n, one in enumerate(body.searches)]
    return answer(request, await _answer_all(request, name, searches, timeout))


HOT: Mapping[str, Handler] = {
    "points/query": query,
    "points/query/batch": query_batch,
    "points/search": search,
    "points/search/batch": search_batch,
}
"""What need not wait for FastAPI."""
