"""Writing points and reading them back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import (
    encode_payloads,
    parse_id,
    parse_ids,
    parse_path_id,
    parse_vectors,
    render_points,
)
from router.api.exchange import Context, Timeout, WriteOptions, Writing, answer, read_body
from router.api.selectors import Selector
from router.directory import PointNotFound
from router.errors import Malformed, OutOfRange
from shard.edits import Edit
from shard.errors import InvalidInput
from shard.model import Delete, Keys, ShardConfig, Upsert, decode_ids, encode_id, encode_ids
from shard.rpc.channel import MAX_MESSAGE_BYTES
from shard.rpc.merge import take_points

routes = APIRouter(prefix="/collections/{name}/points", tags=["Points"])

DEFAULT_LIMIT = 10
MAX_VECTOR_BYTES = MAX_MESSAGE_BYTES * 3 // 4
"""Most vectors in one answer; the rest of a shard server's message is for ids and payloads."""

Consistency = Annotated[
    str | None, Query(description="Every read sees the single writer of a shard.")
]

_upsert = wire.Decoder(wire.Upsert)
_delete = wire.Decoder(wire.PointsSelector)
_set_payload = wire.Decoder(wire.SetPayload)
_delete_payload = wire.Decoder(wire.DeletePayload)
_retrieve = wire.Decoder(wire.RetrievePoints)
_scroll = wire.Decoder(wire.Scroll)
_count = wire.Decoder(wire.CountPoints)


def wanted_vectors(asked: wire.WithVector | None, config: ShardConfig) -> tuple[str, ...]:
    """Names of the vectors that a request asks for. Raises InvalidInput where there is no such."""
    if isinstance(asked, list):
        for name in asked:
            if name not in config.vectors and name not in config.sparse:
                raise InvalidInput(f"Wrong input: Not existing vector name error: {name}")
        return tuple(dict.fromkeys(asked))
    return tuple(config.names) if asked else ()


def check_vector_bytes(points: int, names: Sequence[str], config: ShardConfig) -> None:
    """Raises OutOfRange where so many points with these vectors are too much for one answer."""
    if not names:
        return
    dimension = sum(config.vectors[name].dimension for name in names if name in config.vectors)
    most = MAX_VECTOR_BYTES // (4 * max(1, dimension))
    if points > most:
        raise OutOfRange(
            f"with_vector: expected at most {most} points of dimension {dimension} "
            f"in one answer, got {points}"
        )


def refuse_nothing_named(given: Sequence[Any]) -> None:
    if not given:
        raise InvalidInput("Empty update request")


def _columns(body: wire.Upsert) -> tuple[Keys, Sequence[Any], list[bytes]]:
    """Keys, vectors and payloads of an upsert, of which the last of each key counts."""
    vectors: Sequence[Any]
    match body:
        case wire.Upsert(points=list(points), batch=None):
            keys = encode_ids(
                [parse_id(point.id, f"points[{row}].id") for row, point in enumerate(points)]
            )
            vectors = [point.vector for point in points]
            payloads = encode_payloads([point.payload for point in points], "points[{}].payload")
        case wire.Upsert(points=None, batch=wire.Batch() as batch):
            keys = parse_ids(batch.ids, "batch.ids")
            vectors = _rows_of(batch.vectors, len(keys))
            if batch.payloads is None:
                payloads = [b""] * len(keys)
            else:
                payloads = encode_payloads(batch.payloads, "batch.payloads[{}]")
            if len(payloads) != len(keys):
                raise InvalidInput(
                    f"batch.payloads: expected as many as ids, {len(keys)}, got {len(payloads)}"
                )
        case _:
            raise Malformed("body: expected one of `points` and `batch`")
    refuse_nothing_named(vectors)
    last = list({key: row for row, key in enumerate(keys.tolist())}.values())
    if len(last) < len(keys):
        keys = keys[last]
        vectors = [vectors[row] for row in last]
        payloads = [payloads[row] for row in last]
    return keys, vectors, payloads


def _rows_of(vectors: list[Any] | dict[str, list[Any]], rows: int) -> list[Any]:
    """The vectors of each point of a batch."""
    for column in vectors.values() if isinstance(vectors, dict) else [vectors]:
        if len(column) != rows:
            raise InvalidInput(f"batch.vectors: expected as many as ids, {rows}, got {len(column)}")
    if isinstance(vectors, list):
        return vectors
    return [{name: column[row] for name, column in vectors.items()} for row in range(rows)]


async def _written(
    request: Request,
    name: str,
    options: WriteOptions,
    write: Callable[[Collection, float], Awaitable[int]],
) -> Response:
    """The answer to ``write``, of the collection and the seconds it has, with its log sequence."""
    context = Context.of(request)
    timeout = options.timeout or context.timeout
    sequence = await context.directory.act(name, lambda collection: write(collection, timeout))
    status = "completed" if options.wait else "acknowledged"
    return answer(request, {"operation_id": sequence, "status": status})


@routes.put(
    "",
    openapi_extra=wire.body(_upsert),
    responses=wire.answers(wire.UpdateResult),
    summary="Upsert points",
)
async def upsert(request: Request, name: str, options: Writing) -> Response:
    """Insert points, or replace those whose ids exist. Once answered, they are durable."""
    context = Context.of(request)
    keys, vectors, payloads = _columns(_upsert(await read_body(request)))

    async def write(collection: Collection, timeout: float) -> int:
        operation = Upsert(keys, parse_vectors(vectors, collection.config), payloads)
        return await context.fanout.write(
            collection, [operation], wait=options.wait, timeout=timeout
        )

    return await _written(request, name, options, write)


@routes.post(
    "/delete",
    openapi_extra=wire.body(_delete),
    responses=wire.answers(wire.UpdateResult),
    summary="Delete points",
)
async def delete(request: Request, name: str, options: Writing) -> Response:
    """Delete points by id, passing over ids that do not exist, or those that match a filter."""
    context = Context.of(request)
    body = _delete(await read_body(request))
    if body.points is None or body.filter is not None:
        return await _edit(request, name, body, Edit(action="delete_points"), options)
    refuse_nothing_named(body.points)
    operation = Delete(np.unique(parse_ids(body.points, "points")))

    async def write(collection: Collection, timeout: float) -> int:
        return await context.fanout.write(
            collection, [operation], wait=options.wait, timeout=timeout
        )

    return await _written(request, name, options, write)


async def _edit(
    request: Request, name: str, body: wire.PointsSelector, edit: Edit, options: WriteOptions
) -> Response:
    context = Context.of(request)
    encode_payloads([edit.payload], "payload")
    encoded = edit.check()
    keys, filter = None, b""
    if body.points is not None and body.filter is None:
        keys = np.unique(parse_ids(body.points, "points"))
    elif body.filter is not None and body.points is None:
        filter = body.filter.check("filter")
    else:
        raise Malformed("body: expected one of `points` and `filter`")

    async def write(collection: Collection, timeout: float) -> int:
        if keys is not None and not len(keys):
            return 0
        sequence = await context.fanout.edit(
            collection, encoded, keys, filter, wait=options.wait, timeout=timeout
        )
        if keys is not None:
            found = await context.fanout.retrieve(
                collection, keys, with_payload=False, timeout=timeout
            )
            missing = np.setdiff1d(keys, found.keys)
            if len(missing):  # Those that there are have been changed all the same, as in Qdrant.
                raise PointNotFound(f"No point with id {decode_ids(missing)[0]} found")
        return sequence

    return await _written(request, name, options, write)


@routes.post(
    "/payload",
    openapi_extra=wire.body(_set_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Set payload",
)
async def set_payload(request: Request, name: str, options: Writing) -> Response:
    """Merge fields into the payloads of points, at their top or at ``key``; null takes one away."""
    body = _set_payload(await read_body(request))
    edit = Edit(action="set", payload=body.payload, key=body.key)
    return await _edit(request, name, body, edit, options)


@routes.put(
    "/payload",
    openapi_extra=wire.body(_set_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Overwrite payload",
)
async def overwrite_payload(request: Request, name: str, options: Writing) -> Response:
    """Replace the payloads of points; with ``key``, merge there as setting does."""
    body = _set_payload(await read_body(request))
    action: Literal["set", "overwrite"] = "overwrite" if body.key is None else "set"
    edit = Edit(action=action, payload=body.payload, key=body.key)
    return await _edit(request, name, body, edit, options)


@routes.post(
    "/payload/delete",
    openapi_extra=wire.body(_delete_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Delete payload",
)
async def delete_payload(request: Request, name: str, options: Writing) -> Response:
    """Take fields out of the payloads of points."""
    body = _delete_payload(await read_body(request))
    edit = Edit(action="delete", keys=body.keys)
    return await _edit(request, name, body, edit, options)


@routes.post(
    "/payload/clear",
    openapi_extra=wire.body(_delete),
    responses=wire.answers(wire.UpdateResult),
    summary="Clear payload",
)
async def clear_payload(request: Request, name: str, options: Writing) -> Response:
    """Leave points with no payload."""
    body = _delete(await read_body(request))
    return await _edit(request, name, body, Edit(action="clear"), options)


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
    """A page of points in the order of their ids, integers before UUIDs."""
    context = Context.of(request)
    body = _scroll(await read_body(request))
    selector = Selector.of(body.with_payload, default=True)
    start = b"" if body.offset is None else encode_id(parse_id(body.offset, "offset"))
    limit = DEFAULT_LIMIT if body.limit is None else body.limit
    filter = body.filter.check("filter") if body.filter else b""

    async def read(collection: Collection) -> dict[str, Any]:
        names = wanted_vectors(body.with_vector, collection.config)
        check_vector_bytes(limit, names, collection.config)
        points = await context.fanout.scroll(
            collection,
            start,
            limit + 1,
            with_payload=selector.wanted,
            with_vectors=names,
            filter=filter,
            timeout=timeout or context.timeout,
        )
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
