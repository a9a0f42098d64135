"""Points, ids, distances, operations and answers: the words every floor speaks.

A point id is an unsigned 64-bit integer or a UUID. Inside Shoal it is a *key*: 18 bytes that sort
as ids do (numbers first, then UUIDs), held in NumPy arrays of dtype ``S18``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypeAlias
from uuid import UUID

import msgspec
import numpy as np
from numpy.typing import NDArray

from shard.errors import InvalidInput

PointId: TypeAlias = int | UUID
Keys: TypeAlias = NDArray[np.bytes_]  # (n,) S18
Vectors: TypeAlias = NDArray[np.float32]  # (n, dimension), C-contiguous
Rows: TypeAlias = NDArray[np.int64]
Scores: TypeAlias = NDArray[np.float32]
Mask: TypeAlias = NDArray[np.bool_]

KEY_BYTES = 18
KEY_DTYPE = np.dtype(f"S{KEY_BYTES}")
_NUMBER, _UUID = b"\x01", b"\x02"
# NumPy drops trailing NULs from the items of an S array; a last byte that is never NUL keeps keys
# whole as dict keys and slices.
_END = b"\x01"

UNNAMED = ""
"""The name of the one vector of a collection that names none."""
MAX_DIMENSION = 65_536
SLOTS = 16_384


def encode_id(point_id: PointId) -> bytes:
    """The 18-byte key of one id. Raises InvalidInput outside of 0..2**64-1."""
    if isinstance(point_id, UUID):
        return _UUID + point_id.bytes + _END
    if not 0 <= point_id < 1 << 64:
        raise InvalidInput(f"id {point_id}: expected an unsigned 64-bit integer or a UUID")
    return _NUMBER + point_id.to_bytes(16, "big") + _END


def decode_id(key: bytes) -> PointId:
    """The id of one key."""
    body = key[1:-1]
    return UUID(bytes=body) if key[:1] == _UUID else int.from_bytes(body, "big")


def encode_ids(ids: Sequence[PointId]) -> Keys:
    """Keys of ``ids``, shape (n,), dtype S18."""
    return np.frombuffer(b"".join(map(encode_id, ids)), KEY_DTYPE)


def decode_ids(keys: Keys) -> list[PointId]:
    """Ids of ``keys``, in order."""
    return [decode_id(key) for key in keys.tolist()]


def shards_of(keys: Keys, shard_count: int) -> NDArray[np.int32]:
    """The shard of each key, shape (n,).

    CRC-32 spreads keys over a fixed number of slots and each shard owns a run of slots (as in Redis
    Cluster), so that a later split moves whole runs and no hash changes.
    """
    slots = np.fromiter((zlib.crc32(key) % SLOTS for key in keys.tolist()), np.int32, len(keys))
    shards: NDArray[np.int32] = slots * shard_count // SLOTS
    return shards


_UNIT = 1e-6
"""How far from one a length may be that counts as one."""
_SEVERAL, _COMPONENTS = 32, 64
"""A guess: vectors of a point that has several, and components of a sparse one."""
_PREPARED_ROWS = 256
"""So few that what is computed on the way stays in the cache: twenty times as fast."""


class VectorColumn(msgspec.Struct, frozen=True):
    """The vectors of n points under one name: dense ones, or sparse ones with ``indices``.

    Those of a point lie in a row behind those of the point before, as in a compressed sparse row
    matrix.
    """

    values: Vectors
    """Dense: (m, dimension). Sparse: (m,), the components that are not zero."""
    starts: NDArray[np.int64] | None = None
    """(n + 1,): where each point's begin, and the last one's end. None: each point has one."""
    indices: NDArray[np.uint32] | None = None
    """Sparse: (m,), ascending in each point."""
    present: Mask | None = None
    """Sparse: (n,), which points have a vector, though it may be empty; None: all."""

    @property
    def rows(self) -> int:
        return len(self.values) if self.starts is None else len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """How many vectors, or components, each point has, (n,)."""
        if self.starts is None:
            return np.ones(len(self.values), np.int64)
        return np.diff(self.starts)

    @property
    def nbytes(self) -> int:
        parts = (self.values, self.starts, self.indices, self.present)
        return sum(one.nbytes for one in parts if one is not None)

    def has(self) -> Mask:
        """Which points have a vector, (n,)."""
        if self.indices is None:
            return self.lengths > 0
        return np.ones(self.rows, np.bool_) if self.present is None else self.present

    def row_of(self) -> Rows:
        """Of each vector or component the point's row, (m,)."""
        return np.repeat(np.arange(self.rows), self.lengths)

    def take(self, rows: Rows) -> VectorColumn:
        """The vectors of ``rows``, in that order, copied."""
        if self.starts is None:
            return VectorColumn(self.values[rows])
        lengths = self.starts[rows + 1] - self.starts[rows]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        chosen = np.repeat(self.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        return VectorColumn(
            self.values[chosen],
            starts,
            None if self.indices is None else self.indices[chosen],
            None if self.present is None else self.present[rows],
        )

    def slice(self, first: int, end: int) -> VectorColumn:
        """The vectors of the rows from ``first`` to before ``end``, not copied."""
        if self.starts is None:
            return VectorColumn(self.values[first:end])
        starts = self.starts[first : end + 1]
        some = slice(int(starts[0]), int(starts[-1]))
        return VectorColumn(
            self.values[some],
            starts - starts[0],
            None if self.indices is None else self.indices[some],
            None if self.present is None else self.present[first:end],
        )

    @staticmethod
    def concatenate(parts: Sequence[VectorColumn]) -> VectorColumn:
        """One column of all, all of one kind."""
        if len(parts) == 1:
            return parts[0]
        values = np.concatenate([part.values for part in parts])
        if all(part.starts is None for part in parts):
            return VectorColumn(values)
        starts = np.concatenate([[0], np.cumsum(np.concatenate([part.lengths for part in parts]))])
        indices = [part.indices for part in parts if part.indices is not None]
        return VectorColumn(
            values,
            starts,
            np.concatenate(indices) if indices else None,
            np.concatenate([part.has() for part in parts]) if indices else None,
        )


VectorColumns: TypeAlias = dict[str, VectorColumn]
"""By the vectors' names."""


def unnamed(vectors: Vectors) -> VectorColumns:
    """One dense vector a point, (n, dimension), without a name."""
    return {UNNAMED: VectorColumn(vectors)}


class Distance(StrEnum):
    """How near two vectors are, with Qdrant's names."""

    COSINE = "Cosine"
    DOT = "Dot"
    EUCLID = "Euclid"
    MANHATTAN = "Manhattan"

    @property
    def higher_is_nearer(self) -> bool:
        return self in (Distance.COSINE, Distance.DOT)


class VectorConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Of dense vectors under one name."""

    dimension: int
    distance: Distance
    multi: bool = False
    """Whether a point has any number of them, and is compared by the nearest to each of the
    query's: MaxSim, as in Khattab and Zaharia, "ColBERT" (2020)."""

    def prepare(self, vectors: Vectors) -> Vectors:
        """Vectors as they are stored and searched: scaled to unit length for cosine.

        ``vectors`` is (n, dimension) float32 and is not changed. As in Qdrant, a zero vector stays
        zero, and one of unit length as it is, so that what comes back in stays the same.
        """
        if self.distance is not Distance.COSINE:
            return vectors
        scaled = np.empty_like(vectors)
        for first in range(0, len(vectors), _PREPARED_ROWS):
            some = slice(first, first + _PREPARED_ROWS)
            # In float64, where the squares of no float32 overflow or vanish.
            wide = vectors[some].astype(np.float64)
            norms = np.sqrt(np.einsum("nd,nd->n", wide, wide))
            norms[(norms == 0) | (abs(norms - 1) <= _UNIT)] = 1
            scaled[some] = wide / norms[:, None]
        return scaled


class SparseConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Of sparse vectors under one name."""

    idf: bool = False
    """Whether a query's components are weighted by how few of the collection's points have them."""


class Import(msgspec.Struct, frozen=True):
    """A bulk load that concerns a shard, which is to be ready for it and then take it in."""

    job: str
    """The job's number, which is higher than that of any before it, "-", and what else names it."""
    ready: bool
    """Whether the job's segments are there, and all shards are to take theirs in."""


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard must know of its collection."""

    vectors: dict[str, VectorConfig] = {}
    """By name; the one vector of a collection that names none has the empty one."""
    sparse: dict[str, SparseConfig] = {}
    recall_target: float = 0.95
    """Aimed-at recall@10 of a search that pins neither ``nprobe`` nor ``exact``."""
    flat_threshold: int = 10_000
    """Vectors up to which a segment is searched by exact scan and gets no IVF-PQ index."""
    share: float = 1.0
    """Of the collection's rows, about: what of the nearest points to a query may be here."""
    imports: tuple[Import, ...] = ()
    """Bulk loads that are under way."""
    imports_known: int = 0
    """Any other bulk load whose number is not above this one is over."""

    @staticmethod
    def unnamed(dimension: int, distance: Distance, **others: Any) -> ShardConfig:
        """Of a collection with one dense vector a point."""
        one = VectorConfig(dimension=dimension, distance=distance)
        return ShardConfig(vectors={UNNAMED: one}, **others)

    @property
    def names(self) -> list[str]:
        """Of all vectors."""
        return [*self.vectors, *self.sparse]

    @property
    def row_bytes(self) -> int:
        """Of a point's vectors, about."""
        dense = sum(
            4 * one.dimension * (_SEVERAL if one.multi else 1) for one in self.vectors.values()
        )
        return dense + 8 * _COMPONENTS * len(self.sparse)

    def higher_is_nearer(self, params: SearchParams) -> bool:
        """Whether of two scores of such a search the higher one is the nearer point's."""
        if params.examples or params.using in self.sparse:
            return True
        return self.vectors[params.using].distance.higher_is_nearer

    def is_over(self, job: str) -> bool:
        """Whether the bulk load is known to need nothing more of the shard."""
        number = int(job.partition("-")[0])
        return number <= self.imports_known and all(one.job != job for one in self.imports)

    def empty(self, name: str, rows: int = 0) -> VectorColumn:
        """A column of that name for so many points, none of which has a vector."""
        starts = np.zeros(rows + 1, np.int64)
        if name in self.sparse:
            return VectorColumn(
                np.empty(0, np.float32), starts, np.empty(0, np.uint32), np.zeros(rows, np.bool_)
            )
        values = np.empty((0, self.vectors[name].dimension), np.float32)
        return VectorColumn(values, starts if rows else None)

    def prepare(self, columns: VectorColumns, rows: int) -> VectorColumns:
        """Vectors of so many points as they are stored and searched; names left out are empty.

        Raises InvalidInput where a column is not of the form that its name has.
        """
        prepared = {}
        for name, column in columns.items():
            if name not in self.vectors and name not in self.sparse:
                raise InvalidInput(f"Not existing vector name error: {name}")
            if column.rows != rows:
                raise InvalidInput(f"vectors {name!r}: {column.rows} for {rows} points")
            config = self.vectors.get(name)
            if config is None:
                if column.indices is None:
                    raise InvalidInput(f"vectors {name!r}: expected sparse ones")
                prepared[name] = column
                continue
            if column.indices is not None or column.values.shape[1:] != (config.dimension,):
                shape = column.values.shape[1:]
                raise InvalidInput(f"vectors {name!r}: expected {config.dimension}, got {shape}")
            starts = column.starts
            if starts is not None and not config.multi:
                lengths = column.lengths
                if (lengths > 1).any():
                    raise InvalidInput(f"vectors {name!r}: expected one a point")
                starts = None if (lengths == 1).all() else starts
            prepared[name] = VectorColumn(config.prepare(column.values), starts)
        for name in self.names:
            if name not in prepared:
                prepared[name] = self.empty(name, rows)
        return prepared


class Upsert(msgspec.Struct, frozen=True):
    """Insert points, or replace those whose keys exist. Keys in one upsert are distinct."""

    keys: Keys
    vectors: VectorColumns
    payloads: Sequence[bytes]
    """One JSON object a point; ``b""`` for none."""


class Delete(msgspec.Struct, frozen=True):
    """Delete points; keys that do not exist are passed over."""

    keys: Keys


Operation: TypeAlias = Upsert | Delete


class SearchParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to search. What is None, the shard picks by its calibration."""

    limit: int
    exact: bool = False
    nprobe: int | None = None
    oversampling: float | None = None
    score_threshold: float | None = None
    among: bytes = b""
    """Keys, one behind the other, of the points to search; ``b""``: all."""
    using: str = UNNAMED
    """The name of the vectors to compare."""
    examples: bytes = b""
    """As `shard.index.examples.Examples.encode` has it, where the queries are together the examples
    of one query; ``b""``: each is one, for what is nearest to it."""
    with_payload: bool = False
    with_vectors: tuple[str, ...] = ()
    """Names of the vectors that come with the hits."""


class Points(msgspec.Struct, frozen=True):
    """Points read back, columnar. What was not asked for is None, or left out of ``vectors``."""

    keys: Keys
    payloads: list[bytes] | None = None
    vectors: VectorColumns = {}


class Hits(msgspec.Struct, frozen=True):
    """Answers to a batch of queries, one after the other, each nearest first.

    ``lengths`` (queries,) int64 says how many of ``points`` and ``scores`` (hits,) float32 belong
    to each query. A score is Qdrant's: similarity for cosine and dot, distance for euclid (not
    squared) and manhattan.
    """

    lengths: NDArray[np.int64]
    scores: Scores
    points: Points


class Ranked(msgspec.Struct, frozen=True):
    """Points in the order of a value that each has, one for each; one point may come again."""

    values: list[int | float]
    points: Points


class RankParams(msgspec.Struct, frozen=True, kw_only=True):
    """Which points to rank, and what to answer of them."""

    limit: int
    order_by: bytes = b""
    """As `shard.ordering.OrderBy.check` encodes it; ``b""``: by chance."""
    filter: bytes = b""
    """As `shard.filter.Filter.check` encodes it; ``b""``: every point."""
    among: bytes = b""
    """As in `SearchParams`."""
    with_payload: bool = False
    with_vectors: tuple[str, ...] = ()


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment picked to reach its recall target, and what it measured."""

    nprobe: int
    oversampling: float
    target: float
    recall: float
    """Recall@k of held-out queries against exact search, at these settings, the shard's part."""
    k: int
    queries: int


class Frequencies(msgspec.Struct, frozen=True):
    """How common components of sparse vectors are."""

    points: int
    """That have such a vector."""
    counts: NDArray[np.int64]
    """(t,): how many of them have each component."""


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One segment as the collection's info shows it."""

    id: str
    rows: int
    live: int
    indexes: dict[str, str]
    """By the name of the vectors: ``"flat"``, a FAISS factory, or ``"postings"``."""
    calibrations: dict[str, Calibration] = {}


class ShardInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One shard as the collection's info shows it."""

    points: int
    indexed: int
    """Live rows that an IVF-PQ index covers."""
    building: bool
    """Whether rows wait for an index to be built, or one is being built."""
    sequence: int
    """Log sequence up to which writes are applied."""
    snapshot_sequence: int
    """Log sequence up to which the newest snapshot covers."""
    segments: list[SegmentInfo] = []
    garbage: int = 0
    """Segments that are needed no more, and still to be deleted."""
    memtable_rows: int = 0
    memtable_bytes: int = 0
    waiting_writes: int = 0
    """Writes that are still to be committed to the log."""
    waiting_bytes: int = 0
    unsaved_seconds: float = 0.0
    """How long ago the oldest write was applied that no snapshot covers."""
    error: str | None = None
    """Why the last background build or snapshot failed, if it did."""
