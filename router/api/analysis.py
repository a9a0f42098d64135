"""What a collection's points have in common: facets of their payloads, distances among a sample."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.exchange import Context, Timeout, answer, read_body
from router.api.points import Consistency, check_vector_bytes
from router.query.idf import weighted
from shard import facets, json_path
from shard.errors import InvalidInput
from shard.filter import Condition, Filter
from shard.model import Hits, Keys, PointId, RankParams, SearchParams, decode_ids

routes = APIRouter(prefix="/collections/{name}", tags=["Analysis"])

DEFAULT_FACETS = 10
DEFAULT_SAMPLE, DEFAULT_NEIGHBOURS = 10, 3

_facet = wire.Decoder(wire.Facet)
_matrix = wire.Decoder(wire.SearchMatrix)


@routes.post(
    "/facet",
    openapi_extra=wire.body(_facet),
    responses=wire.answers(wire.Facets),
    summary="Count the values of a field",
)
async def facet(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The values that most points have in a field of the payload, and how many do, exactly."""
    context = Context.of(request)
    body = _facet(await read_body(request))
    json_path.parse(body.key, "key")
    filter = body.filter.check("filter") if body.filter else b""

    async def count(collection: Collection) -> facets.Counts:
        return await context.fanout.facet(
            collection, body.key, filter, timeout=timeout or context.timeout
        )

    counts = facets.top(await context.directory.act(name, count), body.limit or DEFAULT_FACETS)
    hits = [{"value": value, "count": points} for value, points in counts]
    return answer(request, {"hits": hits})


class _Matrix(NamedTuple):
    """The nearest of a sample to each other: of the points with ``keys`` (n,), ascending, the hits
    of each, itself left out, as offsets into them."""

    keys: Keys
    rows: list[int]
    columns: list[int]
    scores: list[float]

    @property
    def ids(self) -> list[PointId]:
        return decode_ids(self.keys)


async def _search(request: Request, name: str, timeout: int | None) -> _Matrix:
    context = Context.of(request)
    body = _matrix(await read_body(request))
    using = body.using or ""
    sample = DEFAULT_SAMPLE if body.sample is None else body.sample
    limit = DEFAULT_NEIGHBOURS if body.limit is None else body.limit
    if sample * limit > wire.MAX_HITS:
        raise InvalidInput(f"limit: expected `limit` * `sample` <= {wire.MAX_HITS}")
    has = Condition(has_vector=using)
    wanted = Filter(must=[has] if body.filter is None else [has, body.filter.as_condition()])
    filter = wanted.check("filter")
    seconds = timeout or context.timeout

    async def act(collection: Collection) -> _Matrix:
        if using not in collection.config.names:
            raise InvalidInput(f"Not existing vector name error: {using}")
        check_vector_bytes(sample, [using], collection.config)
        sampled = await context.fanout.rank(
            collection,
            RankParams(limit=sample, filter=filter, with_vectors=(using,)),
            timeout=seconds,
        )
        points = sampled.points
        if len(points.keys) < 2:
            return _Matrix(points.keys[:0], [], [], [])
        order = np.argsort(points.keys)
        keys = points.keys[order]
        params = SearchParams(limit=limit + 1, using=using, among=keys.tobytes())
        queries = await weighted(
            context.fanout,
            collection,
            using,
            points.vectors[using].take(order),
            timeout=seconds,
        )
        hits = await context.fanout.search(collection, queries, params, timeout=seconds)
        return _offsets(keys, hits, limit)

    return await context.directory.act(name, act)


def _offsets(keys: Keys, hits: Hits, limit: int) -> _Matrix:
    query = np.repeat(np.arange(len(keys)), hits.lengths)
    found = np.searchsorted(keys, hits.points.keys)
    rows: list[int] = []
    columns: list[int] = []
    scores: list[float] = []
    for row in range(len(keys)):
        mine = np.flatnonzero((query == row) & (found != row))[:limit]
        rows += [row] * len(mine)
        columns += found[mine].tolist()
        scores += hits.scores[mine].tolist()
    return _Matrix(keys, rows, columns, scores)


@routes.post(
    "/points/search/matrix/pairs",
    openapi_extra=wire.body(_matrix),
    responses=wire.answers(wire.MatrixPairs),
    summary="Distances among a sample, as pairs",
)
async def matrix_pairs(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """Of points taken by chance, each with those of them that are nearest to it."""
    found = await _search(request, name, timeout)
    ids = found.ids
    pairs = [
        {"a": ids[row], "b": ids[column], "score": score}
        for row, column, score in zip(found.rows, found.columns, found.scores, strict=True)
    ]
    return answer(request, {"pairs": pairs})


@routes.post(
    "/points/search/matrix/offsets",
    openapi_extra=wire.body(_matrix),
    responses=wire.answers(wire.MatrixOffsets),
    summary="Distances among a sample, as a sparse matrix",
)
async def matrix_offsets(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """Of points taken by chance, each with those of them that are nearest to it."""
    found = await _search(request, name, timeout)
    return answer(
        request,
        {
            "offsets_row": found.rows,
            "offsets_col": found.columns,
            "scores": found.scores,
            "ids": found.ids,
        },
    )
