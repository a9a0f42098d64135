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
from shard.model import Delete, Keys, Points, Upsert, decode_ids, encode_id, encode_ids
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


def wants_vector(asked: wire.WithVector | None) -> bool:
    """Whether a request asks for vectors. Raises InvalidInput where it names any."""
    if isinstance(asked, list):
        if any(asked):
            raise InvalidInput("with_vector: named vectors are not supported")
        return bool(asked)
    return bool(asked)


def check_vector_bytes(points: int, collection: Collection) -> None:
    """Raises OutOfRange where so many points with their vectors are too much for one answer."""
    dimension = collection.config.dimension
    most = MAX_VECTOR_BYTES // (4 * dimension)
    if points > most:
        raise OutOfRange(
            f"with_vector: expected at most {most} points of dimension {dimension} "
            f"in one answer, got {points}"
        )


def refuse_nothing_named(given: Sequence[Any]) -> None:
    if not given:
        raise InvalidInput("Empty update request")


def _columns(
    body: wire.Upsert,
) -> tuple[Keys, Sequence[list[float] | dict[str, Any]], list[bytes]]:
    """Keys, vectors and payloads of an upsert, of which the last of each key counts."""
    vectors: Sequence[list[float] | dict[str, Any]]
    match body:
        case wire.Upsert(points=list(points), batch=None):
            keys = encode_ids(
                [parse_id(point.id, f"points[{row}].id") for row, point in enumerate(points)]
            )
            vectors = [point.vector for point in points]
            payloads = encode_payloads([point.payload for point in points], "points[{}].payload")
        case wire.Upsert(points=None, batch=wire.Batch() as batch):
            keys = parse_ids(batch.ids, "batch.ids")
            if isinstance(batch.vectors, dict):
                # The one vector of a point has an empty name.
                unnamed = batch.vectors.get("")
                if len(batch.vectors) != 1 or not isinstance(unnamed, list):
                    raise Malformed("batch.vectors: named vectors are not supported")
                vectors = [{"": row} for row in unnamed]
            else:
                vectors = batch.vectors
            if len(vectors) != len(keys):
                raise InvalidInput(
                    f"batch.vectors: expected as many as ids, {len(keys)}, got {len(vectors)}"
                )
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
        array = parse_vectors(vectors, collection.config.dimension)
        operation = Upsert(keys, array, payloads)
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
                collection, keys, with_payload=False, with_vector=False, timeout=timeout
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
    context: Context, name: str, keys: Keys, selector: Selector, vector: bool, timeout: float
) -> Points:
    """Those of ``keys`` that exist, in that order."""

    async def read(collection: Collection) -> Points:
        if vector:
            check_vector_bytes(len(keys), collection)
        return await context.fanout.retrieve(
            collection, keys, with_payload=selector.wanted, with_vector=vector, timeout=timeout
        )

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
    context = Context.of(request)
    body = _retrieve(await read_body(request))
    selector = Selector.of(body.with_payload, default=True)
    vector = wants_vector(body.with_vector)
    keys = parse_ids(body.ids, "ids")
    points = await read_points(context, name, keys, selector, vector, timeout or context.timeout)
    return answer(request, render_points(points, selector))


@routes.get("/{id}", responses=wire.answers(wire.Record), summary="Retrieve one point")
async def retrieve_one(
    request: Request,
    name: str,
    id: str,
    consistency: Consistency = None,
    timeout: Timeout = None,
) -> Response:
    """One point with its payload and vector."""
    context = Context.of(request)
    point_id = parse_path_id(id)
    selector = Selector(True)
    keys = encode_ids([point_id])
    points = await read_points(context, name, keys, selector, True, timeout or context.timeout)
    if not len(points.keys):
        raise PointNotFound(f"Point with id {point_id} does not exists!")
    return answer(request, render_points(points, selector)[0])


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
    vector = wants_vector(body.with_vector)
    start = b"" if body.offset is None else encode_id(parse_id(body.offset, "offset"))
    limit = DEFAULT_LIMIT if body.limit is None else body.limit
    filter = body.filter.check("filter") if body.filter else b""

    async def read(collection: Collection) -> Points:
        if vector:
            check_vector_bytes(limit, collection)
        return await context.fanout.scroll(
            collection,
            start,
            limit + 1,
            with_payload=selector.wanted,
            with_vector=vector,
            filter=filter,
            timeout=timeout or context.timeout,
        )

    points = await context.directory.act(name, read)
    following = decode_ids(points.keys[limit : limit + 1])
    page = take_points(points, np.arange(min(limit, len(points.keys))))
    return answer(
        request,
        {
            "points": render_points(page, selector),
            "next_page_offset": following[0] if following else None,
        },
    )


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
