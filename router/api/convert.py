"""Between JSON's values and Shoal's columns: ids, vectors and payloads."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
import orjson

from router.api.selectors import Selector
from router.api.wire import Payload
from router.errors import Malformed
from shard.errors import InvalidInput
from shard.model import Keys, PointId, Points, Scores, Vectors, decode_ids, encode_ids

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_HYPHENATED = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_UUID = re.compile(
    rf"[0-9a-f]{{32}}|{_HYPHENATED}|urn:uuid:{_HYPHENATED}|\{{{_HYPHENATED}\}}", re.IGNORECASE
)


def parse_id(value: int | str, field: str) -> PointId:
    """The point id that ``value`` spells. Raises Malformed, naming ``field``."""
    if isinstance(value, int):
        if 0 <= value < 1 << 64:
            return value
    elif _UUID.fullmatch(value):
        return UUID(value)
    raise Malformed(
        f"{field}: value {value!r} is not a valid point ID, "
        "valid values are either an unsigned integer or a UUID"
    )


def parse_path_id(value: str) -> PointId:
    """The point id that a path names. Raises InvalidInput."""
    number = value.isascii() and value.isdecimal() and len(value) <= 20
    try:
        return parse_id(int(value) if number else value, "id")
    except Malformed as error:
        raise InvalidInput(str(error)) from None


def parse_ids(values: Sequence[int | str], field: str) -> Keys:
    """Keys of the ids that ``values`` spell, (n,). Raises Malformed, naming ``field``."""
    return encode_ids([parse_id(value, f"{field}[{row}]") for row, value in enumerate(values)])


@lru_cache(maxsize=64)
def _packer(dimension: int) -> struct.Struct:
    return struct.Struct(f"<{dimension}f")


def parse_vectors(rows: Sequence[Any], dimension: int) -> Vectors:
    """``rows`` as one array (n, dimension) float32.

    Raises InvalidInput where a row is not a list of ``dimension`` numbers that float32 can hold.
    """
    pack = _packer(dimension).pack
    try:
        # struct checks count and float32 range as it packs, at a third of np.array's time.
        buffer = b"".join([pack(*row) for row in rows])
    except (struct.error, OverflowError):
        if any(isinstance(row, dict) for row in rows):
            unnamed = [_unnamed(row) for row in rows]
            if not any(isinstance(row, dict) for row in unnamed):
                return parse_vectors(unnamed, dimension)
        raise _bad_vector(rows, dimension) from None
    return np.frombuffer(buffer, np.float32).reshape(len(rows), dimension)


def _unnamed(vector: Any) -> Any:
    """The one vector of a point, where it is given by its name, which is empty."""
    if isinstance(vector, dict) and vector.keys() == {""} and isinstance(vector[""], list):
        return vector[""] if all(type(one) in (int, float) for one in vector[""]) else vector
    return vector


def _bad_vector(rows: Sequence[Any], dimension: int) -> InvalidInput:
    for row in rows:
        if isinstance(row, dict):
            break
        if len(row) != dimension:
            return InvalidInput(
                f"Vector dimension error: expected dim: {dimension}, got {len(row)}"
            )
        for value in row:
            if abs(value) > _FLOAT32_MAX:
                return InvalidInput(f"vector: {value} is out of range for float32")
    return InvalidInput(
        "vector: named and sparse vectors are not supported, "
        f"expected a list of {dimension} numbers"
    )


def encode_payloads(payloads: Sequence[Payload | None], field: str) -> list[bytes]:
    """Each payload as compact JSON, ``b""`` for none. Raises Malformed, naming ``field``."""
    encoded = []
    for row, payload in enumerate(payloads):
        try:
            encoded.append(orjson.dumps(payload) if payload else b"")
        except TypeError as error:
            # Integers over 64 bits and nesting over 254 levels.
            raise Malformed(f"{field.format(row)}: {error}") from None
    return encoded


def render_points(
    points: Points, selector: Selector, scores: Scores | None = None
) -> list[dict[str, Any]]:
    """Points as JSON objects for orjson, with scores if they are hits."""
    rendered: list[dict[str, Any]] = [{"id": point_id} for point_id in decode_ids(points.keys)]
    if scores is not None:
        for record, score in zip(rendered, scores, strict=True):
            record["version"] = 0
            record["score"] = score
    if points.payloads is not None and selector.wanted:
        for record, payload in zip(rendered, points.payloads, strict=True):
            record["payload"] = selector.apply(payload)
    if points.vectors is not None:
        for record, vector in zip(rendered, np.ascontiguousarray(points.vectors), strict=True):
            record["vector"] = vector
    return rendered
