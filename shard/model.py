"""Points, ids, distances, operations and answers: the words every floor speaks.

A point id is an unsigned 64-bit integer or a UUID. Inside Shoal it is a *key*: 18 bytes that sort
as ids do (numbers first, then UUIDs), held in NumPy arrays of dtype ``S18``.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import StrEnum
from typing import TypeAlias
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
_PREPARED_ROWS = 256
"""So few that what is computed on the way stays in the cache: twenty times as fast."""


class Distance(StrEnum):
    """How near two vectors are, with Qdrant's names."""

    COSINE = "Cosine"
    DOT = "Dot"
    EUCLID = "Euclid"
    MANHATTAN = "Manhattan"

    @property
    def higher_is_nearer(self) -> bool:
        return self in (Distance.COSINE, Distance.DOT)


class Import(msgspec.Struct, frozen=True):
    """A bulk load that concerns a shard, which is to be ready for it and then take it in."""

    job: str
    """The job's number, which is higher than that of any before it, "-", and what else names it."""
    ready: bool
    """Whether the job's segments are there, and all shards are to take theirs in."""


class ShardConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard must know of its collection."""

    dimension: int
    distance: Distance
    recall_target: float = 0.95
    """Aimed-at recall@10 of a search that pins neither ``nprobe`` nor ``exact``."""
    flat_threshold: int = 10_000
    """Rows up to which a segment is searched by exact scan and gets no IVF-PQ index."""
    share: float = 1.0
    """Of the collection's rows, about: what of the nearest points to a query may be here."""
    imports: tuple[Import, ...] = ()
    """Bulk loads that are under way."""
    imports_known: int = 0
    """Any other bulk load whose number is not above this one is over."""

    def is_over(self, job: str) -> bool:
        """Whether the bulk load is known to need nothing more of the shard."""
        number = int(job.partition("-")[0])
        return number <= self.imports_known and all(one.job != job for one in self.imports)

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


class Upsert(msgspec.Struct, frozen=True):
    """Insert points, or replace those whose keys exist. Keys in one upsert are distinct."""

    keys: Keys
    vectors: Vectors
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
    filter: bytes = b""
    """As `shard.filter.Filter.check` encodes it; ``b""``: every point."""
    with_payload: bool = False
    with_vector: bool = False


class Points(msgspec.Struct, frozen=True):
    """Points read back, columnar. What was not asked for is None."""

    keys: Keys
    payloads: list[bytes] | None = None
    vectors: Vectors | None = None


class Hits(msgspec.Struct, frozen=True):
    """Answers to a batch of queries, one after the other, each nearest first.

    ``lengths`` (queries,) int64 says how many of ``points`` and ``scores`` (hits,) float32 belong
    to each query. A score is Qdrant's: similarity for cosine and dot, distance for euclid (not
    squared) and manhattan.
    """

    lengths: NDArray[np.int64]
    scores: Scores
    points: Points


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """What a segment picked to reach its recall target, and what it measured."""

    nprobe: int
    oversampling: float
    target: float
    recall: float
    """Recall@k of held-out queries against exact search, at these settings, the shard's part."""
    k: int
    queries: int


class SegmentInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One segment as the collection's info shows it. ``index`` is ``"flat"`` or a FAISS factory."""

    id: str
    rows: int
    live: int
    index: str
    calibration: Calibration | None = None


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
    error: str | None = None
    """Why the last background build or snapshot failed, if it did."""
