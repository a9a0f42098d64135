"""Between JSON's values and Shoal's columns: ids, vectors and payloads."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
import orjson

from router.api import wire
from router.api.bm25 import MODEL, Bm25Options, SparseVector, embed_document, embed_query
from router.api.selectors import Selector
from router.api.wire import Payload
from router.errors import Malformed
from shard.errors import InvalidInput
from shard.model import (
    UNNAMED,
    Keys,
    PointId,
    Points,
    Scores,
    ShardConfig,
    VectorColumn,
    VectorColumns,
    Vectors,
    decode_ids,
    encode_ids,
)
from shard.one_vector import several, sparse_vector

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


def parse_vectors(rows: Sequence[Any], config: ShardConfig) -> VectorColumns:
    """The vectors of points, each as a request gives it: a list, for the vectors without a name, or
    an object of vectors by name.

    Raises InvalidInput where there are none of that name, or they are not of its form.
    """
    whole = config.vectors.get(UNNAMED)
    if whole is not None and not whole.multi and len(config.names) == 1:
        packed = _pack(rows, whole.dimension)
        if packed is not None:
            return {UNNAMED: VectorColumn(packed)}
    named = [row if isinstance(row, dict) else {UNNAMED: row} for row in rows]
    for row in named:
        for name in row:
            if name not in config.vectors and name not in config.sparse:
                raise InvalidInput(f"Not existing vector name error: {name}")
    return {
        name: parse_column([row.get(name) for row in named], name, config) for name in config.names
    }


def parse_column(values: Sequence[Any], name: str, config: ShardConfig) -> VectorColumn:
    """The vectors of points under one name, None where there is none. Raises InvalidInput."""
    own = config.vectors.get(name)
    if own is not None and not own.multi:
        given = [value for value in values if value is not None]
        packed = _pack(given, own.dimension)
        if packed is None:
            raise _bad_vector(given, own.dimension, name)
        if len(given) == len(values):
            return VectorColumn(packed)
        present = [value is not None for value in values]
        return VectorColumn(packed, np.concatenate([[0], np.cumsum(present)]))
    label = f"vector {name!r}: " if name else "vector: "
    parts = []
    for value in values:
        if value is None:
            parts.append(config.empty(name, 1))
            continue
        try:
            if own is not None:
                parts.append(several(value, own))
            elif isinstance(value, dict) and "text" in value:
                parts.append(_embedded(value, "document", embed_document))
            else:
                parts.append(sparse_vector(value))
        except InvalidInput as error:
            raise InvalidInput(f"{label}{error}") from None
    return VectorColumn.concatenate(parts) if parts else config.empty(name)


def parse_query(value: Any, name: str, config: ShardConfig) -> VectorColumn:
    """One vector to compare those of that name with, as a column of one row. Raises InvalidInput.

    For vectors of which a point has several one alone will do.
    """
    if name in config.sparse:
        if isinstance(value, dict) and "text" in value:
            return _embedded(value, "query", embed_query)
    elif name not in config.vectors:
        raise InvalidInput(f"Not existing vector name error: {name}")
    elif config.vectors[name].multi and isinstance(value, list) and value:
        value = value if isinstance(value[0], list) else [value]
    return parse_column([value], name, config)


def parse_queries(
    values: Sequence[wire.Vector | VectorColumn], name: str, config: ShardConfig
) -> VectorColumn:
    """A row for each of ``values``, dense vectors; columns are rows that are there already."""
    if not config.vectors[name].multi and not any(isinstance(one, VectorColumn) for one in values):
        return parse_column(values, name, config)
    return VectorColumn.concatenate(
        [one if isinstance(one, VectorColumn) else parse_query(one, name, config) for one in values]
    )


def _embedded(
    value: dict[str, Any], field: str, embed: Callable[[str, Bm25Options | None], SparseVector]
) -> VectorColumn:
    """A column of one row. Raises InvalidInput, Malformed or OutOfRange."""
    document = wire.convert(value, wire.Document, field)
    if document.model.lower() != MODEL:
        raise InvalidInput(f"{field}.model: {document.model!r} is not there, expected `{MODEL}`")
    if document.options is not None:
        document.options.check(f"{field}.options")
    indices, values = embed(document.text, document.options)
    return VectorColumn(values, np.array([0, len(indices)]), indices)


def _pack(rows: Sequence[Any], dimension: int) -> Vectors | None:
    """``rows`` as one array, unless one is not a list of so many numbers that float32 can hold."""
    pack = _packer(dimension).pack
    try:
        # struct checks count and float32 range as it packs, at a third of np.array's time.
        buffer = b"".join([pack(*row) for row in rows])
    except (struct.error, OverflowError, TypeError):
        return None
    return np.frombuffer(buffer, np.float32).reshape(len(rows), dimension)


def _bad_vector(rows: Sequence[Any], dimension: int, name: str) -> InvalidInput:
    label = f"vector {name!r}" if name else "vector"
    for row in rows:
        if not isinstance(row, list) or not all(type(one) in (int, float) for one in row):
            return InvalidInput(f"{label}: expected a list of {dimension} numbers")
        if len(row) != dimension:
            return InvalidInput(
                f"Vector dimension error: expected dim: {dimension}, got {len(row)}"
            )
        for value in row:
            if abs(value) > _FLOAT32_MAX:
                return InvalidInput(f"{label}: {value} is out of range for float32")
    return InvalidInput(f"{label}: expected a list of {dimension} numbers")


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
    points: Points, config: ShardConfig, selector: Selector, scores: Scores | None = None
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
    if points.vectors:
        for record, vectors in zip(rendered, _render_vectors(points.vectors, config), strict=True):
            record["vector"] = vectors
    return rendered


def _render_vectors(columns: VectorColumns, config: ShardConfig) -> Iterator[Any]:
    """Of each point: its one vector, if it has no name, or an object of those that it has."""
    plain = list(columns) == [UNNAMED] and columns[UNNAMED].starts is None
    if plain and not config.vectors[UNNAMED].multi:
        return iter(np.ascontiguousarray(columns[UNNAMED].values))
    rendered: list[dict[str, Any]] = [{} for _ in range(next(iter(columns.values())).rows)]
    for name, column in columns.items():
        for row in np.flatnonzero(column.has()).tolist():
            one = column.slice(row, row + 1)
            if one.indices is not None:
                rendered[row][name] = {"indices": one.indices, "values": one.values}
            elif config.vectors[name].multi:
                rendered[row][name] = np.ascontiguousarray(one.values)
            else:
                rendered[row][name] = np.ascontiguousarray(one.values[0])
    return iter([one[UNNAMED] if one.keys() == {UNNAMED} else one for one in rendered])
