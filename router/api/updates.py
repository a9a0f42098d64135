"""Changing points: one request at a time, or many different changes in one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeAlias

import msgspec
import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import encode_payloads, parse_id, parse_ids, parse_vectors
from router.api.exchange import Context, WriteOptions, Writing, answer, read_body
from router.directory import PointNotFound
from router.errors import Malformed
from shard.edits import Edit
from shard.errors import InvalidInput
from shard.model import Delete, Keys, Upsert, decode_ids, encode_ids

routes = APIRouter(prefix="/collections/{name}/points", tags=["Points"])

Write: TypeAlias = Callable[[Context, Collection, bool, float], Awaitable[int]]
"""Carries out one checked change: whether to wait until it can be seen, and the seconds it has. The
log sequence that it took."""

_upsert = wire.Decoder(wire.Upsert)
_delete = wire.Decoder(wire.PointsSelector)
_set_payload = wire.Decoder(wire.SetPayload)
_delete_payload = wire.Decoder(wire.DeletePayload)
_update_vectors = wire.Decoder(wire.UpdateVectors)
_delete_vectors = wire.Decoder(wire.DeleteVectors)
_batch = wire.Decoder(wire.UpdateBatch)


# What a request asks for, as something to carry out


def _upserts(body: wire.Upsert) -> Write:
    keys, vectors, payloads = _columns(body)
    edit = None
    if body.update_filter is not None or body.update_mode not in (None, "upsert"):
        edit = Edit(action="upsert", mode=body.update_mode or "upsert").check()
    filter = body.update_filter.check("update_filter") if body.update_filter else b""

    async def write(context: Context, collection: Collection, wait: bool, timeout: float) -> int:
        points = Upsert(keys, parse_vectors(vectors, collection.config), payloads)
        if edit is not None:
            return await context.fanout.edit(
                collection, edit, points, filter, wait=wait, timeout=timeout
            )
        return await context.fanout.write(collection, [points], wait=wait, timeout=timeout)

    return write


def _deletes(body: wire.PointsSelector) -> Write:
    if body.points is None or body.filter is not None:
        return _edits(body, Edit(action="delete_points"))
    _refuse_nothing(body.points)
    operation = Delete(np.unique(parse_ids(body.points, "points")))

    async def write(context: Context, collection: Collection, wait: bool, timeout: float) -> int:
        return await context.fanout.write(collection, [operation], wait=wait, timeout=timeout)

    return write


def _sets(body: wire.SetPayload) -> Write:
    return _edits(body, Edit(action="set", payload=body.payload, key=body.key))


def _overwrites(body: wire.SetPayload) -> Write:
    action: Literal["set", "overwrite"] = "overwrite" if body.key is None else "set"
    return _edits(body, Edit(action=action, payload=body.payload, key=body.key))


def _deletes_payload(body: wire.DeletePayload) -> Write:
    return _edits(body, Edit(action="delete", keys=body.keys))


def _clears(body: wire.PointsSelector) -> Write:
    return _edits(body, Edit(action="clear"))


def _updates_vectors(body: wire.UpdateVectors) -> Write:
    _refuse_nothing(body.points)
    keys = encode_ids([parse_id(one.id, f"points[{n}].id") for n, one in enumerate(body.points)])
    # Of a point that comes again, what is given for each name last.
    merged: dict[bytes, dict[str, Any]] = {}
    for key, one in zip(keys.tolist(), body.points, strict=True):
        given = one.vector if isinstance(one.vector, dict) else {"": one.vector}
        if not given:
            raise InvalidInput("points: expected a `vector` in each")
        merged[key] = merged.get(key, {}) | given
    distinct = np.array(list(merged), keys.dtype)
    edit = Edit(action="update_vectors").check()
    filter = body.update_filter.check("update_filter") if body.update_filter else b""

    async def write(context: Context, collection: Collection, wait: bool, timeout: float) -> int:
        vectors = parse_vectors(list(merged.values()), collection.config)
        points = Upsert(distinct, vectors, [b""] * len(distinct))
        sequence = await context.fanout.edit(
            collection, edit, points, filter, wait=wait, timeout=timeout
        )
        await _check_there(context, collection, distinct, timeout)
        return sequence

    return write


def _deletes_vectors(body: wire.DeleteVectors) -> Write:
    _refuse_nothing(body.vector)
    edits = _edits(body, Edit(action="delete_vectors", keys=body.vector))

    async def write(context: Context, collection: Collection, wait: bool, timeout: float) -> int:
        for name in body.vector:
            if name not in collection.config.names:
                raise InvalidInput(f"Not existing vector name error: {name}")
        return await edits(context, collection, wait, timeout)

    return write


def _edits(body: wire.PointsSelector, edit: Edit) -> Write:
    encode_payloads([edit.payload], "payload")
    encoded = edit.check()
    keys, filter = None, b""
    if body.points is not None and body.filter is None:
        keys = np.unique(parse_ids(body.points, "points"))
    elif body.filter is not None and body.points is None:
        filter = body.filter.check("filter")
    else:
        raise Malformed("body: expected one of `points` and `filter`")

    async def write(context: Context, collection: Collection, wait: bool, timeout: float) -> int:
        if keys is not None and not len(keys):
            return 0
        sequence = await context.fanout.edit(
            collection, encoded, keys, filter, wait=wait, timeout=timeout
        )
        if keys is not None:
            await _check_there(context, collection, keys, timeout)
        return sequence

    return write


async def _check_there(
    context: Context, collection: Collection, keys: Keys, timeout: float
) -> None:
    """Raises PointNotFound; those that there are have been changed all the same, as in Qdrant."""
    found = await context.fanout.retrieve(collection, keys, with_payload=False, timeout=timeout)
    missing = np.setdiff1d(keys, found.keys)
    if len(missing):
        raise PointNotFound(f"No point with id {decode_ids(missing)[0]} found")


def _refuse_nothing(given: Sequence[Any]) -> None:
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
    _refuse_nothing(vectors)
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
    request: Request, name: str, options: WriteOptions, writes: Sequence[Write]
) -> list[dict[str, Any]]:
    """The results of ``writes``, one after the other."""
    context = Context.of(request)
    timeout = options.timeout or context.timeout
    status = "completed" if options.wait else "acknowledged"

    async def written(write: Write) -> int:
        return await context.directory.act(
            name, lambda collection: write(context, collection, options.wait, timeout)
        )

    return [{"operation_id": await written(write), "status": status} for write in writes]


async def _answer(request: Request, name: str, options: WriteOptions, write: Write) -> Response:
    (result,) = await _written(request, name, options, [write])
    return answer(request, result)


@routes.put(
    "",
    openapi_extra=wire.body(_upsert),
    responses=wire.answers(wire.UpdateResult),
    summary="Upsert points",
)
async def upsert(request: Request, name: str, options: Writing) -> Response:
    """Insert points, or replace those whose ids exist. Once answered, they are durable."""
    return await _answer(request, name, options, _upserts(_upsert(await read_body(request))))


@routes.post(
    "/delete",
    openapi_extra=wire.body(_delete),
    responses=wire.answers(wire.UpdateResult),
    summary="Delete points",
)
async def delete(request: Request, name: str, options: Writing) -> Response:
    """Delete points by id, passing over ids that do not exist, or those that match a filter."""
    return await _answer(request, name, options, _deletes(_delete(await read_body(request))))


@routes.post(
    "/payload",
    openapi_extra=wire.body(_set_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Set payload",
)
async def set_payload(request: Request, name: str, options: Writing) -> Response:
    """Merge fields into the payloads of points, at their top or at ``key``; null takes one away."""
    return await _answer(request, name, options, _sets(_set_payload(await read_body(request))))


@routes.put(
    "/payload",
    openapi_extra=wire.body(_set_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Overwrite payload",
)
async def overwrite_payload(request: Request, name: str, options: Writing) -> Response:
    """Replace the payloads of points; with ``key``, merge there as setting does."""
    body = _set_payload(await read_body(request))
    return await _answer(request, name, options, _overwrites(body))


@routes.post(
    "/payload/delete",
    openapi_extra=wire.body(_delete_payload),
    responses=wire.answers(wire.UpdateResult),
    summary="Delete payload",
)
async def delete_payload(request: Request, name: str, options: Writing) -> Response:
    """Take fields out of the payloads of points."""
    body = _delete_payload(await read_body(request))
    return await _answer(request, name, options, _deletes_payload(body))


@routes.post(
    "/payload/clear",
    openapi_extra=wire.body(_delete),
    responses=wire.answers(wire.UpdateResult),
    summary="Clear payload",
)
async def clear_payload(request: Request, name: str, options: Writing) -> Response:
    """Leave points with no payload."""
    return await _answer(request, name, options, _clears(_delete(await read_body(request))))


@routes.put(
    "/vectors",
    openapi_extra=wire.body(_update_vectors),
    responses=wire.answers(wire.UpdateResult),
    summary="Update vectors",
)
async def update_vectors(request: Request, name: str, options: Writing) -> Response:
    """Give points other vectors under the names given; what else they have stays."""
    body = _update_vectors(await read_body(request))
    return await _answer(request, name, options, _updates_vectors(body))


@routes.post(
    "/vectors/delete",
    openapi_extra=wire.body(_delete_vectors),
    responses=wire.answers(wire.UpdateResult),
    summary="Delete vectors",
)
async def delete_vectors(request: Request, name: str, options: Writing) -> Response:
    """Take vectors from points, by name."""
    body = _delete_vectors(await read_body(request))
    return await _answer(request, name, options, _deletes_vectors(body))


@routes.post(
    "/batch",
    openapi_extra=wire.body(_batch),
    responses=wire.answers(list[wire.UpdateResult]),
    summary="Batch update points",
)
async def batch(request: Request, name: str, options: Writing) -> Response:
    """Many changes, one after the other. All are checked before the first is made; where one fails
    all the same, those before it have come about."""
    operations = _batch(await read_body(request)).operations
    writes = [_operation(one, f"operations[{n}]") for n, one in enumerate(operations)]
    return answer(request, await _written(request, name, options, writes))


_OPERATIONS: dict[str, Callable[[Any], Write]] = {
    "upsert": _upserts,
    "delete": _deletes,
    "set_payload": _sets,
    "overwrite_payload": _overwrites,
    "delete_payload": _deletes_payload,
    "clear_payload": _clears,
    "update_vectors": _updates_vectors,
    "delete_vectors": _deletes_vectors,
}


def _operation(operation: wire.UpdateOperation, field: str) -> Write:
    given = {
        name: one
        for name in operation.__struct_fields__
        if (one := getattr(operation, name)) is not msgspec.UNSET
    }
    if len(given) != 1:
        raise Malformed(f"{field}: expected one of {', '.join(_OPERATIONS)}")
    ((name, body),) = given.items()
    return _OPERATIONS[name](body)
