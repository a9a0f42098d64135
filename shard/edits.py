"""Changes to points that depend on what is there: to payloads, to vectors, on conditions.

An edit is resolved by the writer of a shard, when its turn has come, into upserts and deletes of
whole rows: the log has nothing that would have to be evaluated again. What paths mean is as in
Qdrant 1.16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import msgspec
import numpy as np
import orjson

from shard import json_path
from shard.errors import InvalidInput
from shard.model import Delete, Keys, Mask, Operation, Points, Rows, Upsert, VectorColumn
from shard.state import ShardState

_RECORD_ROWS = 4_096
"""Rows that are rewritten by one record of the log, at most; and as many as have, going by the
rows before, about so many bytes."""
_RECORD_BYTES = 16 << 20
_FIRST_ROWS = 16

Mode = Literal["upsert", "insert_only", "update_only"]


class Edit(msgspec.Struct, frozen=True, kw_only=True):
    """What is to become of payloads, of vectors, or of points."""

    action: Literal[
        "set",
        "overwrite",
        "delete",
        "clear",
        "delete_points",
        "delete_vectors",
        "update_vectors",
        "upsert",
    ]
    payload: dict[str, Any] = {}
    key: str | None = None
    """Where in the payload to set; None: at its top."""
    keys: list[str] = []
    """Paths to delete, or names of vectors."""
    mode: Mode = "upsert"
    """Of an upsert: whether to leave alone what exists, or what does not."""

    def check(self) -> bytes:
        """The edit as it goes to the shards. Raises InvalidInput, naming what is wrong."""
        _changer(self)
        return msgspec.json.encode(self)

    @staticmethod
    def decode(data: bytes) -> Edit:
        """Raises InvalidInput."""
        try:
            return _decoder.decode(data)
        except msgspec.DecodeError as error:
            raise InvalidInput(f"edit: {error}") from error


# Made before threads use it: see `shard.objects.document`.
_decoder = msgspec.json.Decoder(Edit)


def resolve(
    edit: Edit, state: ShardState, chosen: Keys | Upsert | None, filter: bytes
) -> Iterator[Operation]:
    """The operations that ``edit`` means for those of the ``chosen`` that exist; None: for what
    ``filter`` lets through; points: for these, whose vectors are prepared, and of those that exist
    for what ``filter`` lets through.

    Each is for a record of its own, and is worked out after those before it are applied. Raises
    InvalidInput where a payload would become one that nobody could have sent.
    """
    if isinstance(chosen, Upsert):
        yield from _resolve_points(edit, state, chosen, filter)
        return
    found = state.view.matching_keys(filter) if chosen is None else chosen
    change = _changer(edit)
    if edit.action == "delete_points":
        for first in range(0, len(found), _RECORD_ROWS):
            yield Delete(found[first : first + _RECORD_ROWS])
        return
    first, rows = 0, _FIRST_ROWS
    while first < len(found):
        some = found[first : first + rows]
        points = _stored(state, some)
        assert points.payloads is not None
        first += rows
        stored = sum(map(len, points.payloads)) + sum(c.nbytes for c in points.vectors.values())
        rows = min(_RECORD_ROWS, max(1, rows * _RECORD_BYTES // max(1, stored)))
        if edit.action == "delete_vectors":
            yield _without_vectors(points, edit.keys, state)
            continue
        payloads = [change(one) for one in points.payloads]
        changed = np.flatnonzero(
            [one != other for one, other in zip(payloads, points.payloads, strict=True)]
        )
        if len(changed):
            yield Upsert(
                points.keys[changed],
                {name: one.take(changed) for name, one in points.vectors.items()},
                [payloads[row] for row in changed.tolist()],
            )


def _resolve_points(
    edit: Edit, state: ShardState, points: Upsert, filter: bytes
) -> Iterator[Operation]:
    exists = state.matching(points.keys, b"")
    fits = exists & state.matching(points.keys, filter) if filter else exists
    if edit.action == "upsert":
        chosen: Mask = fits if edit.mode == "update_only" else ~exists
        if edit.mode == "upsert":
            chosen = chosen | fits
        rows = np.flatnonzero(chosen)
        if len(rows):
            yield _take(points, rows)
        return
    rows = np.flatnonzero(fits)
    if len(rows):
        given = _take(points, rows)
        stored = _stored(state, given.keys)
        assert stored.payloads is not None
        vectors = {
            name: _replaced(old, given.vectors[name]) for name, old in stored.vectors.items()
        }
        yield Upsert(given.keys, vectors, stored.payloads)


def _take(points: Upsert, rows: Rows) -> Upsert:
    return Upsert(
        points.keys[rows],
        {name: column.take(rows) for name, column in points.vectors.items()},
        [points.payloads[row] for row in rows.tolist()],
    )


def _stored(state: ShardState, keys: Keys) -> Points:
    return state.retrieve(keys, with_payload=True, with_vectors=state.view.config.names)


def _replaced(old: VectorColumn, new: VectorColumn) -> VectorColumn:
    """``new`` where it has a vector, else ``old``."""
    rows = np.arange(old.rows)
    both = VectorColumn.concatenate([old, new])
    return both.take(np.where(new.has(), old.rows + rows, rows))


def _without_vectors(points: Points, names: list[str], state: ShardState) -> Upsert:
    assert points.payloads is not None
    gone = {
        name: state.view.config.empty(name, len(points.keys))
        for name in names
        if name in points.vectors
    }
    return Upsert(points.keys, points.vectors | gone, points.payloads)


def _changer(edit: Edit) -> Callable[[bytes], bytes]:
    if edit.action in ("overwrite", "clear"):
        encoded = orjson.dumps(edit.payload) if edit.payload else b""
        return lambda payload: encoded
    steps = None if edit.key is None else json_path.parse(edit.key, "key")
    paths = [json_path.parse(path, "keys") for path in edit.keys]

    def change(payload: bytes) -> bytes:
        decoded = orjson.loads(payload) if payload else {}
        if edit.action == "delete":
            for path in paths:
                _delete(decoded, path)
        elif steps is None:
            _merge(decoded, edit.payload)
        else:
            decoded = _set(decoded, steps, edit.payload)
        try:
            return orjson.dumps(decoded) if decoded else b""
        except TypeError as error:  # Nested more deeply than what can be written.
            raise InvalidInput(f"payload: {error}") from error

    return change


def _merge(into: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A null takes a key away."""
    for key, value in given.items():
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value
    return into


def _set(value: Any, steps: json_path.Steps, given: dict[str, Any]) -> Any:
    """``value`` with ``given`` merged into what the path leads to, made where it can be."""
    if not steps:
        return _merge(value if isinstance(value, dict) else {}, given)
    step, below = steps[0], steps[1:]
    if isinstance(step, str):
        into = value if isinstance(value, dict) else {}
        into[step] = _set(into.get(step), below, given)
        return into
    if not isinstance(value, list):
        return []
    for number in range(len(value)) if step is None else [step]:
        if number < len(value):
            value[number] = _set(value[number], below, given)
    return value


def _delete(value: Any, steps: json_path.Steps) -> None:
    """An item of an array is not deleted by its number: a second time it would be another one."""
    step, below = steps[0], steps[1:]
    if not below:
        if isinstance(step, str) and isinstance(value, dict):
            value.pop(step, None)
        elif step is None and isinstance(value, list):
            value.clear()
        return
    if isinstance(step, str):
        if isinstance(value, dict) and step in value:
            _delete(value[step], below)
    elif isinstance(value, list):
        for item in value if step is None else value[step : step + 1]:
            _delete(item, below)
