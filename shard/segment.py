"""Immutable segments: rows sorted by key, in files of one directory.

``keys.npy`` and ``vectors.npy`` are memory-mapped arrays, ``payloads.arrow`` is a memory-mapped
Arrow file, ``index.faiss`` is there in large segments only. ``segment.json`` is written last and
has the size and checksum of every other file.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shard.errors import Corrupt
from shard.index.calibration import calibrate
from shard.index.exact import rerank, scan
from shard.index.ivfpq import IvfPqIndex
from shard.matching import Matching
from shard.model import (
    KEY_DTYPE,
    Calibration,
    Distance,
    Keys,
    Mask,
    Points,
    Rows,
    Scores,
    ShardConfig,
    Vectors,
)
from shard.objects.document import decode_stored

HEADER = "segment.json"
_KEYS, _VECTORS, _PAYLOADS, _INDEX = "keys.npy", "vectors.npy", "payloads.arrow", "index.faiss"
_FORMAT = "shoal-segment-1"
_SCHEMA = pa.schema([pa.field("payload", pa.large_binary(), nullable=False)])
_HASH_BYTES = 4 << 20
_SEED = 20_120_101
_OVERSAMPLING = 16.0
_SCAN_SHARE = 0.1
"""With candidates beyond this share of all rows a scan is as cheap as their rerank."""
_FEW_ROWS = 5_000
"""Up to so many live rows are compared one by one, however many are dead."""


class _File(msgspec.Struct, frozen=True):
    bytes: int
    checksum: str
    """XXH3-64, hexadecimal."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    rows: int
    dimension: int
    distance: Distance
    files: dict[str, _File]


class Segment:
    """An open segment; any number of threads may read it. Its files may be unlinked meanwhile."""

    def __init__(
        self,
        keys: Keys,
        vectors: Vectors,
        payloads: list[pa.Array],
        index: IvfPqIndex | None,
        distance: Distance,
    ) -> None:
        self.keys = keys
        """Ascending, (rows,), memory-mapped."""
        self.rows = len(keys)
        self._vectors = vectors
        self._payloads = payloads
        self._payload_ends = np.cumsum([len(batch) for batch in payloads])
        self._index = index
        self._distance = distance
        self._matching = Matching()

    @classmethod
    def open(cls, directory: Path, config: ShardConfig) -> Segment:
        """Raises Corrupt where the files do not belong together; `verify` looks at their bytes."""
        header = _read_header(directory)
        if (header.dimension, header.distance) != (config.dimension, config.distance):
            raise Corrupt(f"{directory.name}: made for {header.dimension}, {header.distance}")
        for name, file in header.files.items():
            if _size(directory / name) != file.bytes:
                raise Corrupt(f"{directory.name}/{name}: expected {file.bytes} bytes")
        keys = _map(directory / _KEYS, (header.rows,), KEY_DTYPE)
        vectors = _map(directory / _VECTORS, (header.rows, header.dimension), np.dtype(np.float32))
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(directory / _PAYLOADS)))
            batches = [
                reader.get_batch(number).column(0) for number in range(reader.num_record_batches)
            ]
        except (pa.ArrowInvalid, OSError) as error:
            raise Corrupt(f"{directory.name}/{_PAYLOADS}: {error}") from error
        if sum(map(len, batches)) != header.rows:
            raise Corrupt(f"{directory.name}/{_PAYLOADS}: expected {header.rows} rows")
        index = IvfPqIndex.open(directory / _INDEX) if _INDEX in header.files else None
        if index is not None and index.rows != header.rows:
            raise Corrupt(f"{directory.name}/{_INDEX}: expected {header.rows} rows")
        return cls(keys, vectors, batches, index, header.distance)

    @property
    def indexed(self) -> bool:
        return self._index is not None

    @property
    def index_name(self) -> str:
        """``"flat"``, or the index as FAISS's index factory has it."""
        return "flat" if self._index is None else self._index.name

    def find(self, keys: Keys) -> Rows:
        """The row of each key, -1 where there is none. Shape (n,)."""
        if not self.rows:
            return np.full(len(keys), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), self.rows - 1)
        found: Rows = np.where(self.keys[rows] == keys, rows, -1)
        return found

    def search(
        self,
        queries: Vectors,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        """The nearest rows and their exact scores, both (q, ``limit``), as of `exact.scan`.

        With an index, ``limit * oversampling`` candidates from ``nprobe`` lists are reranked by
        their raw vectors. More lists are searched where these hold fewer than ``limit`` live rows;
        where few rows are alive, these are compared one by one.
        """
        index = self._index
        count = max(limit, math.ceil(limit * (oversampling or _OVERSAMPLING)))
        live = self.rows if alive is None else int(np.count_nonzero(alive))
        if alive is not None and live <= min(_FEW_ROWS, self.rows // 4):
            few = np.broadcast_to(np.flatnonzero(alive), (len(queries), live))
            return rerank(self._vectors, queries, few, limit, self._distance)
        if exact or index is None or count >= _SCAN_SHARE * self.rows:
            return scan(self._vectors, queries, limit, self._distance, alive)
        wanted = min(limit, live)
        nprobe = nprobe or max(1, index.lists // 8)
        candidates = index.candidates(queries, count, nprobe, alive)
        while wanted and nprobe < index.lists and (candidates[:, wanted - 1] < 0).any():
            nprobe = min(2 * nprobe, index.lists)
            candidates = index.candidates(queries, count, nprobe, alive)
        return rerank(self._vectors, queries, candidates, limit, self._distance)

    def calibrate(self, config: ShardConfig) -> Calibration | None:
        """Settings that reach the target; None when only an exact search does, or no index is."""
        if self._index is None:
            return None
        return _calibrate(self._index, self._vectors, config)

    def matching(self, filter: bytes) -> Mask:
        """Rows that a filter, not empty, lets through, (rows,)."""
        columns = self._payloads
        return self._matching.mask(
            filter, self.keys, lambda: (column.to_pylist() for column in columns)
        )

    def payloads(self, rows: Rows) -> list[bytes]:
        """The payloads of ``rows``, in that order."""
        batches = np.searchsorted(self._payload_ends, rows, side="right")
        found = []
        for row, batch in zip(rows.tolist(), batches.tolist(), strict=True):
            column = self._payloads[batch]
            found.append(column[row - int(self._payload_ends[batch]) + len(column)].as_py())
        return found

    def vectors(self, rows: Rows) -> Vectors:
        """The vectors of ``rows``, (n, d), copied."""
        chosen: Vectors = np.asarray(self._vectors[rows])
        return chosen


def write_segment(
    directory: Path, batches: Iterable[Points], rows: int, config: ShardConfig
) -> None:
    """Write a segment without an index into an existing empty directory.

    ``batches`` have ``rows`` points in all, with payloads and prepared vectors, and ascending keys.
    """
    shape = (rows, config.dimension)
    keys = _create(directory / _KEYS, (rows,), KEY_DTYPE)
    vectors = _create(directory / _VECTORS, shape, np.dtype(np.float32))
    start = 0
    with pa.OSFile(str(directory / _PAYLOADS), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as out:
        for batch in batches:
            end = start + len(batch.keys)
            keys[start:end] = batch.keys
            vectors[start:end] = batch.vectors
            out.write_batch(
                pa.record_batch([pa.array(batch.payloads, pa.large_binary())], schema=_SCHEMA)
            )
            start = end
    if start != rows:
        raise ValueError(f"{start} points, expected {rows}")
    for array in (keys, vectors):
        if isinstance(array, np.memmap):
            array.flush()
    _write_header(directory, rows, config, [_KEYS, _VECTORS, _PAYLOADS])


def build_index(
    directory: Path,
    config: ShardConfig,
    template: Path | None = None,
    calibration: Calibration | None = None,
) -> Calibration | None:
    """Give a written segment an index, calibrated for ``config.recall_target``.

    ``template``: the file of an index, trained but empty, to fill instead of training one.
    ``calibration``: of an index like this one, to take over instead of measuring.

    None, and the segment stays flat, where the target cannot be reached with it.
    """
    rows = _read_header(directory).rows
    vectors = _map(directory / _VECTORS, (rows, config.dimension), np.dtype(np.float32))
    if not rows:
        return None
    if template is None:
        index = IvfPqIndex.build(vectors, config.distance, _SEED)
    else:
        index = IvfPqIndex.open(template).filled(vectors)
    if calibration is None:
        calibration = _calibrate(index, vectors, config)
    if calibration is not None:
        index.write(directory / _INDEX)
        _write_header(directory, rows, config, [_KEYS, _VECTORS, _PAYLOADS, _INDEX])
    return calibration


def _calibrate(index: IvfPqIndex, vectors: Vectors, config: ShardConfig) -> Calibration | None:
    return calibrate(index, vectors, config.distance, config.recall_target, config.share, _SEED)


def segment_files(directory: Path) -> list[str]:
    """Names of a segment's files, the header last. Raises Corrupt."""
    return [*_read_header(directory).files, HEADER]


def verify(directory: Path) -> None:
    """Raises Corrupt unless every file is as it was written."""
    for name, file in _read_header(directory).files.items():
        path = directory / name
        if _size(path) != file.bytes or _checksum(path) != file.checksum:
            raise Corrupt(f"{directory.name}/{name}: not as it was written")


def _read_header(directory: Path) -> _Header:
    path = directory / HEADER
    try:
        line, _, checksum = path.read_bytes().partition(b"\n")
    except OSError as error:
        raise Corrupt(f"{directory.name}/{HEADER}: {error}") from error
    header = decode_stored(line, _Header, f"{directory.name}/{HEADER}")
    if xxhash.xxh3_64_hexdigest(line).encode() != checksum or header.format != _FORMAT:
        raise Corrupt(f"{directory.name}/{HEADER}: not as it was written")
    if any("/" in name or name.startswith(".") for name in header.files):
        raise Corrupt(f"{directory.name}/{HEADER}: names files elsewhere")
    return header


def _write_header(directory: Path, rows: int, config: ShardConfig, names: list[str]) -> None:
    header = _Header(
        format=_FORMAT,
        rows=rows,
        dimension=config.dimension,
        distance=config.distance,
        files={name: _File(_size(directory / name), _checksum(directory / name)) for name in names},
    )
    line = msgspec.json.encode(header)
    (directory / HEADER).write_bytes(line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _checksum(path: Path) -> str:
    hasher = xxhash.xxh3_64()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _create(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    if not shape[0]:  # Nothing cannot be mapped.
        empty = np.empty(shape, dtype)
        np.save(path, empty)
        return empty
    return np.lib.format.open_memmap(path, "w+", dtype, shape)


def _map(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode=None if not shape[0] else "r")
    except (OSError, ValueError) as error:
        raise Corrupt(f"{path.parent.name}/{path.name}: {error}") from error
    if array.shape != shape or array.dtype != dtype:
        raise Corrupt(f"{path.parent.name}/{path.name}: {array.dtype} {array.shape}")
    # Without NumPy's subclass, whose every slice costs as much as a small search.
    return np.asarray(array)
