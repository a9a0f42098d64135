"""Reading points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import (
    parse_id,
    parse_ids,
    parse_path_id,
    render_points,
)
from router.api.exchange import Context, Timeout, answer, read_body
from router.api.selectors import Selector
from router.directory import PointNotFound
from router.errors import OutOfRange
from shard.errors import InvalidInput
from shard.model import Keys, RankParams, ShardConfig, decode_ids, encode_id, encode_ids
from shard.ordering import OrderBy
from shard.rpc.channel import MAX_MESSAGE_BYTES
from shard.rpc.merge import take_points

routes = APIRouter(prefix="/collections/{name}/points", tags=["Points"])

DEFAULT_LIMIT = 10
MAX_VECTOR_BYTES = MAX_MESSAGE_BYTES * 3 // 4
"""Most vectors in one answer; the rest of a shard server's message is for ids and payloads."""

Consistency = Annotated[
    str | None, Query(description="Every read sees the single writer of a shard.")
]

_retrieve = wire.Decoder(wire.RetrievePoints)
_scroll = wire.Decoder(wire.Scroll)
_count = wire.Decoder(wire.CountPoints)


def wanted_vectors(asked: wire.WithVector | None, config: ShardConfig) -> tuple[str, ...]:
    """Names of the vectors that a request asks for. Raises InvalidInput where there is no such."""
    if isinstance(asked, list):
        for name in asked:
            if name not in config.vectors and name not in config.sparse:
                raise InvalidInput(f"Not existing vector name error: {name}")
        return tuple(dict.fromkeys(asked))
    return tuple(config.names) if asked else ()


def check_vector_bytes(points: int, names: Sequence[str], config: ShardConfig) -> None:
    """Raises OutOfRange where so many points with these vectors are too much for one answer."""
    most = _most_points(names, config)
    if points > most:
        dimension = _dimension(names, config)
        raise OutOfRange(
            f"with_vector: expected at most {most} points of dimension {dimension} "
            f"in one answer, got {points}"
        )


def _most_points(names: Sequence[str], config: ShardConfig) -> int:
    """How many points with these vectors one answer may have."""
    return MAX_VECTOR_BYTES // (4 * max(1, _dimension(names, config)))


def _dimension(names: Sequence[str], config: ShardConfig) -> int:
    return sum(config.vectors[name].dimension for name in names if name in config.vectors)


async def read_points(
    request: Request,
    name: str,
    keys: Keys,
    selector: Selector,
    with_vector: wire.WithVector | None,
    timeout: int | None,
) -> list[dict[str, Any]]:
    """Those of ``keys`` that exist, in that order, as JSON objects."""
    context = Context.of(request)

    async def read(collection: Collection) -> list[dict[str, Any]]:
        config = collection.config
        names = wanted_vectors(with_vector, config)
        check_vector_bytes(len(keys), names, config)
        points = await context.fanout.retrieve(
            collection,
            keys,
            with_payload=selector.wanted,
            with_vectors=names,
            timeout=timeout or context.timeout,
        )
        return render_points(points, config, selector)

    return await context.directory.act(name, read)


@routes.post(
    "",
    openapi_extra=wire.body(_retrieve),
    responses=wire.answers(list[wire.Record]),
    summary="Retrieve points",
)
async def retrieve(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """Points by id, in the order asked for; ids that do not exist are passed over."""
    body = _retrieve(await read_body(request))
    selector = Selector.of(body.with_payload, default=True)
    keys = parse_ids(body.ids, "ids")
    found = await read_points(request, name, keys, selector, body.with_vector, timeout)
    return answer(request, found)


@routes.get("/{id}", responses=wire.answers(wire.Record), summary="Retrieve one point")
async def retrieve_one(
    request: Request,
    name: str,
    id: str,
    consistency: Consistency = None,
    timeout: Timeout = None,
) -> Response:
    """One point with its payload and vector."""
    point_id = parse_path_id(id)
    found = await read_points(request, name, encode_ids([point_id]), Selector(True), True, timeout)
    if not found:
        raise PointNotFound(f"Point with id {point_id} does not exists!")
    return answer(request, found[0])


@routes.post(
    "/scroll",
    openapi_extra=wire.body(_scroll),
    responses=wire.answers(wire.Page),
    summary="Scroll points",
)
async def scroll(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """A page of points in the order of their ids, integers before UUIDs, or the first ones by a
    field of the payload."""
    context = Context.of(request)
    body = _scroll(await read_body(request))
    selector = Selector.of(body.with_payload, default=True)
    start = b"" if body.offset is None else encode_id(parse_id(body.offset, "offset"))
    limit = DEFAULT_LIMIT if body.limit is None else body.limit
    filter = body.filter.check("filter") if body.filter else b""
    order_by = OrderBy(body.order_by) if isinstance(body.order_by, str) else body.order_by
    order = b"" if order_by is None else order_by.check("order_by")
    if order and body.offset is not None:
        raise InvalidInput("offset: cannot be used with `order_by`, use `order_by.start_from`")

    async def read_in_order(collection: Collection) -> dict[str, Any]:
        names = wanted_vectors(body.with_vector, collection.config)
        check_vector_bytes(limit, names, collection.config)
        params = RankParams(
            limit=limit,
            order_by=order,
            filter=filter,
            with_payload=selector.wanted,
            with_vectors=names,
        )
        ranked = await context.fanout.rank(collection, params, timeout=timeout or context.timeout)
        records = render_points(ranked.points, collection.config, selector)
        for record, value in zip(records, ranked.values, strict=True):
            record["order_value"] = value
        return {"points": records, "next_page_offset": None}

    async def read(collection: Collection) -> dict[str, Any]:
        if order:
            return await read_in_order(collection)
        names = wanted_vectors(body.with_vector, collection.config)
        # Clients ask for pages of more points than there are.
        most = min(limit, _most_points(names, collection.config))
        points = await context.fanout.scroll(
            collection,
            start,
            most + 1,
            with_payload=selector.wanted,
            with_vectors=names,
            filter=filter,
            timeout=timeout or context.timeout,
        )
        if len(points.keys) > most:
            check_vector_bytes(limit, names, collection.config)
        following = decode_ids(points.keys[limit : limit + 1])
        page = take_points(points, np.arange(min(limit, len(points.keys))))
        return {
            "points": render_points(page, collection.config, selector),
            "next_page_offset": following[0] if following else None,
        }

    return answer(request, await context.directory.act(name, read))


@routes.post(
    "/count",
    openapi_extra=wire.body(_count),
    responses=wire.answers(wire.CountResult),
    summary="Count points",
)
async def count(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """How many points there are that match, exactly."""
    context = Context.of(request)
    body = _count(await read_body(request))
    filter = body.filter.check("filter") if body.filter else b""

    async def read(collection: Collection) -> int:
        return await context.fanout.count(
            collection, filter=filter, timeout=timeout or context.timeout
        )

    return answer(request, {"count": await context.directory.act(name, read)})
