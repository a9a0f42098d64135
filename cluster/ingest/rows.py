"""Rows of a source as points, and what is wrong with those that are none.

Ids may be unsigned integers, UUIDs, or any other strings. These become UUIDv5 of the string, which
the payload then keeps under the column's name; rows without an id get the UUIDv5 of file and row.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import re
import uuid
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cluster.ingest.jobs import Columns
from cluster.ingest.sources import Batch, SourceFile
from shard.errors import InvalidInput
from shard.model import (
    KEY_BYTES,
    KEY_DTYPE,
    UNNAMED,
    Keys,
    Mask,
    Rows,
    ShardConfig,
    VectorColumn,
    VectorColumns,
    Vectors,
    encode_id,
)
from shard.one_vector import several, sparse_vector

NAMESPACE = uuid.UUID("7a1d1f0e-0c2b-5d8e-9a57-6f1f4b2f7c11")
"""Of ids made of strings, and of file and row."""
_NUMBER = re.compile(r"0|[1-9][0-9]{0,19}")
_UUID = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
_IDS = ("id", "_id", "point_id")
_VECTORS = ("vector", "values", "embedding", "embeddings", "emb", "dense_vector")
_PAYLOADS = ("payload", "metadata")
VECTOR = "vector"
"""The column of vectors without a name; of those with one it is this, a dot and the name."""
EXPORTED = b"shoal"
"""In the metadata of what an export has written, whose points may have no vector."""
_SPARSE = ("sparse_values", "sparse_vector", "sparse")


class Parsed(NamedTuple):
    """Good rows of a batch, in order, and the others."""

    keys: Keys
    vectors: VectorColumns
    payloads: list[bytes]
    rows: Rows
    """Of each good one, in its file."""
    bad: list[tuple[int, str]]
    """Row in the file, and what is wrong with it."""


class Parser:
    """For files whose rows have the columns of ``schema``. Raises InvalidInput where none fits."""

    def __init__(
        self, columns: Columns, config: ShardConfig, schema: pa.Schema, file: SourceFile
    ) -> None:
        self._config = config
        self._file, self._path = file.name, file.path
        names = schema.names
        if len(set(names)) < len(names):
            raise InvalidInput(f"{file.name}: two columns have the same name, it has {names}")
        self._json = _is_json(schema)
        self._id = columns.id or next((name for name in _IDS if name in names), None)
        self._exported = EXPORTED in (schema.metadata or {})
        self._columns = self._vector_columns(columns, schema)
        for role, name in (("columns.id", self._id), ("columns.vector", columns.vector)):
            if name is not None and name not in names and not self._json:
                raise InvalidInput(f"{role}: no column {name!r} in {file.name}, which has {names}")
        if not self._columns:
            raise InvalidInput(
                f"columns.vector: none of {names} in {file.name} has vectors; name it"
            )
        taken = {self._id, *self._columns.values()}
        self.ignored = [name for name in names if name in _SPARSE and name not in taken]
        self._document: str | None = None
        self._fields: list[str] = []
        match columns.payload:
            case str(name):
                self._document = name
            case list(chosen):
                self._fields = chosen
            case None:
                self._document = next((name for name in _PAYLOADS if name in names), None)
                # Of JSON lines some may have a document, and others fields.
                if self._document is None or self._json:
                    taken |= {self._document, *self.ignored}
                    self._fields = [name for name in names if name not in taken]
        for name in [*self._fields, *([self._document] if self._document else [])]:
            if name not in names and not self._json:
                raise InvalidInput(
                    f"columns.payload: no column {name!r} in {file.name}, it has {names}"
                )

    def parse(self, batch: Batch) -> Parsed:
        count = batch.columns.num_rows
        errors = dict(batch.errors)
        vectors = {name: self._column(name, batch.columns, errors) for name in self._config.names}
        if self._optional and not self._exported:
            has = np.logical_or.reduce([column.has() for column in vectors.values()])
            for position in np.flatnonzero(~has).tolist():
                errors.setdefault(position, "no vector")
        keys, originals = self._keys(batch, errors)
        payloads = self._payloads(batch.columns, originals, errors)
        good: Mask = np.ones(count, np.bool_)
        good[list(errors)] = False
        rows = np.flatnonzero(good)
        bad = [(batch.first_row + position, errors[position]) for position in sorted(errors)]
        if len(rows) < count:
            keys = keys[rows]
            vectors = {name: column.take(rows) for name, column in vectors.items()}
            payloads = [payloads[row] for row in rows.tolist()]
        return Parsed(keys, vectors, payloads, batch.first_row + rows, bad)

    # Vectors

    @property
    def _optional(self) -> bool:
        """Whether a row may lack some of its vectors."""
        return self._exported or len(self._config.names) > 1

    def _vector_columns(self, given: Columns, schema: pa.Schema) -> dict[str, str]:
        """Of each name of vectors that there are some of, the column."""
        names = schema.names
        for name, wanted in given.vectors.items():
            if name not in self._config.names:
                raise InvalidInput(f"columns.vectors: the collection has no vectors {name!r}")
            if wanted not in names and not self._json:
                raise InvalidInput(
                    f"columns.vectors: no column {wanted!r} in {self._file}, which has {names}"
                )
        found = {}
        for name in self._config.names:
            column: str | None = given.vectors.get(name) or next(
                (one for one in (f"{VECTOR}.{name}", name) if one and one in names), None
            )
            if column is None and name == UNNAMED:
                column = given.vector or _vector_column(schema)
            if column is None and list(self._config.sparse) == [name]:
                column = next((one for one in _SPARSE if one in names), None)
            if column is None and self._json:
                column = name
            if column is not None:
                found[name] = column
        return found

    def _column(self, name: str, columns: pa.RecordBatch, errors: dict[int, str]) -> VectorColumn:
        """The vectors of all rows; of rows that are wrong they are none."""
        source = self._columns.get(name, name)
        count = columns.num_rows
        label = f"vector {name!r}" if name else "vector"
        if source not in columns.schema.names:
            if not self._optional:
                for position in range(count):
                    errors.setdefault(position, f"no {source!r}")
            return self._config.empty(name, count)
        field = columns.schema.field(source)
        column = columns.column(source)
        config = self._config.vectors.get(name)
        json = _is_json_field(field)
        if config is None or config.multi:
            values = column.to_pylist()
            if json:
                values = [None if one is None else orjson.loads(one) for one in values]
            return self._ragged(name, values, label, errors)
        vectors = np.zeros((count, config.dimension), np.float32)
        if json:
            self._json_vectors(column, vectors, label, errors)
        else:
            self._arrow_vectors(column, vectors, label, errors)
        for position in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
            errors.setdefault(position, f"{label}: a component is not a finite float32")
        present = column.is_valid().to_numpy(zero_copy_only=False)
        if json:
            present &= np.array([value != b"null" for value in column.to_pylist()], np.bool_)
        if present.all():
            return VectorColumn(vectors)
        if not self._optional:
            for position in np.flatnonzero(~present).tolist():
                errors.setdefault(position, f"{label}: null")
        return VectorColumn(vectors[present], np.concatenate([[0], np.cumsum(present)]))

    def _ragged(
        self, name: str, values: list[Any], label: str, errors: dict[int, str]
    ) -> VectorColumn:
        """Sparse vectors or several a point, one after the other."""
        config = self._config.vectors.get(name)
        parts = []
        for position, value in enumerate(values):
            part = self._config.empty(name, 1)
            if value is not None:
                try:
                    part = sparse_vector(value) if config is None else several(value, config)
                except (InvalidInput, TypeError, ValueError, OverflowError) as error:
                    errors.setdefault(position, f"{label}: {error}")
            parts.append(part)
        return VectorColumn.concatenate(parts) if parts else self._config.empty(name)

    def _arrow_vectors(
        self, column: pa.Array, vectors: Vectors, label: str, errors: dict[int, str]
    ) -> None:
        kind = column.type
        dimension = vectors.shape[1]
        if pa.types.is_fixed_size_list(kind):
            lengths = np.full(len(column), kind.list_size)
            flat = column.flatten() if not column.null_count else column.drop_null().flatten()
        elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
            lengths = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
            flat = column.flatten()
        else:
            raise InvalidInput(f"columns.vector: {label} in {self._file} is {kind}")
        present = column.is_valid().to_numpy(zero_copy_only=False)
        if not (pa.types.is_integer(flat.type) or pa.types.is_floating(flat.type)):
            raise InvalidInput(f"columns.vector: {label} in {self._file} is {kind}")
        if flat.null_count:
            # A null among the components: what it stands for is no number either.
            flat = flat.cast(pa.float64()).fill_null(float("nan"))
        numbers = flat.to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers = numbers.astype(np.float32, copy=False)
        fits = present & (lengths == dimension)
        for position in np.flatnonzero(present & ~fits).tolist():
            errors.setdefault(
                position, f"{label}: expected dimension {dimension}, got {lengths[position]}"
            )
        if fits.all():
            vectors[:] = numbers.reshape(-1, dimension)
            return
        starts = np.cumsum(np.where(present, lengths, 0)) - np.where(present, lengths, 0)
        vectors[fits] = numbers[starts[fits][:, None] + np.arange(dimension)]

    def _json_vectors(
        self, column: pa.Array, vectors: Vectors, label: str, errors: dict[int, str]
    ) -> None:
        dimension = vectors.shape[1]
        for position, value in enumerate(column.to_pylist()):
            parsed = None if value is None else orjson.loads(value)
            if parsed is None:
                continue
            if not isinstance(parsed, list) or not all(type(one) in (int, float) for one in parsed):
                errors.setdefault(position, f"{label}: expected a list of numbers")
            elif len(parsed) != dimension:
                errors.setdefault(
                    position, f"{label}: expected dimension {dimension}, got {len(parsed)}"
                )
            else:
                with np.errstate(over="ignore"):
                    vectors[position] = np.array(parsed, np.float64).astype(np.float32)

    # Ids

    def _keys(self, batch: Batch, errors: dict[int, str]) -> tuple[Keys, dict[int, str]]:
        """A key for each row, and by position the strings that keys were made of."""
        columns = batch.columns
        if self._id is None or (self._id not in columns.schema.names and self._json):
            return self._made(batch.first_row, columns.num_rows), {}
        column = columns.column(self._id)
        if pa.types.is_integer(column.type):
            return _integer_keys(column, errors), {}
        if _is_json_field(columns.schema.field(self._id)):
            values = [None if one is None else orjson.loads(one) for one in column.to_pylist()]
        else:
            values = column.to_pylist()
        keys = np.zeros(len(values), KEY_DTYPE)
        originals: dict[int, str] = {}
        for position, value in enumerate(values):
            try:
                keys[position], original = _key_of(value)
            except InvalidInput as error:
                errors.setdefault(position, str(error))
            else:
                if original is not None:
                    originals[position] = original
        return keys, originals

    def _made(self, first_row: int, count: int) -> Keys:
        ids = (uuid.uuid5(NAMESPACE, f"{self._path}#{first_row + row}") for row in range(count))
        return np.array([encode_id(one) for one in ids], KEY_DTYPE)

    # Payloads

    def _payloads(
        self, columns: pa.RecordBatch, originals: dict[int, str], errors: dict[int, str]
    ) -> list[bytes]:
        names = set(columns.schema.names)
        fields = [name for name in self._fields if name in names]
        document = self._document if self._document in names else None
        if document is None and not fields and not originals:
            return [b""] * columns.num_rows
        payloads: list[dict[str, Any]] = [{} for _ in range(columns.num_rows)]
        if document is not None:
            json = _is_json_field(columns.schema.field(document))
            for position, value in enumerate(_values(columns.column(document))):
                try:
                    payloads[position] = _document_of(value, json)
                except (TypeError, ValueError) as error:
                    errors.setdefault(position, f"{document}: {error}")
        whole = [bool(payload) for payload in payloads]
        for name in fields:
            json = _is_json_field(columns.schema.field(name))
            for position, value in enumerate(_values(columns.column(name))):
                if value is not None and not whole[position]:
                    payloads[position][name] = orjson.loads(value) if json else value
        for position, original in originals.items():
            payloads[position].setdefault(self._id or "id", original)
        encoded = []
        for position, payload in enumerate(payloads):
            try:
                encoded.append(orjson.dumps(payload, default=_as_json) if payload else b"")
            except TypeError as error:
                errors.setdefault(position, f"payload: {error}")
                encoded.append(b"")
        return encoded


def _values(column: pa.Array) -> list[Any]:
    """As Python has them, which knows no nanoseconds."""
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
    elif pa.types.is_duration(column.type) and column.type.unit == "ns":
        column = column.cast(pa.duration("us"), safe=False)
    elif pa.types.is_time64(column.type) and column.type.unit == "ns":
        column = column.cast(pa.time64("us"), safe=False)
    values: list[Any] = column.to_pylist()
    return values


def _vector_column(schema: pa.Schema) -> str | None:
    for name in _VECTORS:
        if name in schema.names:
            return name
    lists = [
        field.name
        for field in schema
        if (
            pa.types.is_fixed_size_list(field.type)
            or pa.types.is_list(field.type)
            or pa.types.is_large_list(field.type)
        )
        and (pa.types.is_floating(field.type.value_type))
    ]
    if _is_json(schema):
        return "vector"
    return lists[0] if len(lists) == 1 else None


def _is_json_field(field: pa.Field) -> bool:
    return bool(field.metadata and field.metadata.get(b"json"))


def _is_json(schema: pa.Schema) -> bool:
    """Whether the rows were JSON objects, each of which may have other fields."""
    return all(_is_json_field(field) or field.name == "_" for field in schema)


def _integer_keys(column: pa.Array, errors: dict[int, str]) -> Keys:
    present = column.is_valid().to_numpy(zero_copy_only=False)
    ids = column.fill_null(0).to_numpy(zero_copy_only=False)
    for position in np.flatnonzero(~present).tolist():
        errors.setdefault(position, "id: null")
    if np.issubdtype(ids.dtype, np.signedinteger):
        for position in np.flatnonzero(ids < 0).tolist():
            errors.setdefault(position, f"id: {ids[position]} is negative")
    form = np.zeros((len(ids), KEY_BYTES), np.uint8)
    form[:, 0] = form[:, -1] = 1
    form[:, 9:17] = ids.astype(">u8").view(np.uint8).reshape(-1, 8)
    return form.reshape(-1).view(KEY_DTYPE)


def _key_of(value: Any) -> tuple[bytes, str | None]:
    match value:
        case bool() | None:
            raise InvalidInput(f"id: expected an unsigned integer or a string, got {value}")
        case int():
            return encode_id(value), None
        case uuid.UUID():
            return encode_id(value), None
        case bytes() if len(value) == 16:
            return encode_id(uuid.UUID(bytes=value)), None
        case str():
            # As Shoal writes them, lest two strings become the same id.
            if _NUMBER.fullmatch(value) and int(value) < 1 << 64:
                return encode_id(int(value)), None
            if _UUID.fullmatch(value):
                return encode_id(uuid.UUID(value)), None
            return encode_id(uuid.uuid5(NAMESPACE, value)), value
    raise InvalidInput(f"id: expected an unsigned integer or a string, got {value!r:.80}")


def _document_of(value: Any, json: bool) -> dict[str, Any]:
    if isinstance(value, (bytes, str)):
        value = orjson.loads(value)
        # JSON in a field of JSON.
        if json and isinstance(value, str):
            value = orjson.loads(value)
        if isinstance(value, dict):
            return value
    if value is None:
        return {}
    if isinstance(value, list) and all(isinstance(one, tuple) for one in value):  # Arrow's maps.
        value = dict(value)
    if not isinstance(value, dict):
        raise ValueError("expected a JSON object")
    return {name: one for name, one in value.items() if one is not None}


def _as_json(value: Any) -> Any:
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case decimal.Decimal():
            return float(value)
        case datetime.timedelta():
            return value.total_seconds()
        case np.generic():
            return value.item()
    raise TypeError(f"{type(value).__name__} has no form in JSON")
