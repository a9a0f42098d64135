"""Immutable segments: rows sorted by key, in files of one directory.

``keys.npy`` is a memory-mapped array, and so are ``vectors-N.npy`` with, where rows have none or
several, ``starts-N.npy``, and for sparse vectors ``indices-N.npy``, ``present-N.npy`` and their
postings; N is the number of a name of vectors in the header. ``payloads.arrow`` is a memory-mapped
Arrow file, ``index-N.faiss`` is there in large segments only. ``segment.json`` is written last and
has the names of the vectors, and the size and checksum of every other file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from shard import usage
from shard.errors import Corrupt
from shard.index.calibration import calibrate
from shard.index.columns import ColumnIndex, open_column
from shard.index.ivfpq import IvfPqIndex
from shard.index.sparse import Postings
from shard.matching import Matching
from shard.model import (
    KEY_DTYPE,
    Calibration,
    Keys,
    Mask,
    Points,
    Rows,
    ShardConfig,
    SparseConfig,
    VectorColumn,
    VectorColumns,
    VectorConfig,
    Vectors,
)
from shard.objects.document import decode_stored

HEADER = "segment.json"
_KEYS, _PAYLOADS = "keys.npy", "payloads.arrow"
_FORMAT = "shoal-segment-2"
_SCHEMA = pa.schema([pa.field("payload", pa.large_binary(), nullable=False)])
_HASH_BYTES = 4 << 20
_SEED = 20_120_101
_VECTORS, _STARTS, _INDICES, _PRESENT = "vectors", "starts", "indices", "present"
_INDEX, _POSTINGS = "index", "postings-"


class _File(msgspec.Struct, frozen=True):
    bytes: int
    checksum: str
    """XXH3-64, hexadecimal."""


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    rows: int
    vectors: dict[str, VectorConfig]
    sparse: dict[str, SparseConfig]
    files: dict[str, _File]

    def path(self, directory: Path, name: str, part: str) -> Path:
        """Where a part of the vectors of that name is."""
        number = [*self.vectors, *self.sparse].index(name)
        ending = "faiss" if part == _INDEX else "npy"
        return directory / f"{part}-{number}.{ending}"

    def array(self, directory: Path, name: str, part: str) -> NDArray[Any] | None:
        """One that is stored, memory-mapped. Raises Corrupt."""
        path = self.path(directory, name, part)
        return _map(path) if path.name in self.files else None

    def column(self, directory: Path, name: str) -> VectorColumn:
        """Raises Corrupt."""
        values = self.array(directory, name, _VECTORS)
        if values is None:
            raise Corrupt(f"{directory.name}: no vectors {name!r}")
        starts = self.array(directory, name, _STARTS)
        column = VectorColumn(
            values,
            starts,
            self.array(directory, name, _INDICES),
            self.array(directory, name, _PRESENT),
        )
        ends = len(values) if starts is None or not len(starts) else int(starts[-1])
        config = self.vectors.get(name)
        shape = () if config is None else (config.dimension,)
        indices, present = column.indices, column.present
        fits = column.rows == self.rows and ends == len(values) and values.shape[1:] == shape
        if config is None:
            fits = fits and indices is not None and len(indices) == len(values)
            fits = fits and (present is None or len(present) == self.rows)
        if not fits:
            raise Corrupt(f"{directory.name}: vectors {name!r} are not of {self.rows} rows")
        return column


class Segment:
    """An open segment; any number of threads may read it. Its files may be unlinked meanwhile."""

    def __init__(
        self,
        keys: Keys,
        columns: VectorColumns,
        indexes: dict[str, IvfPqIndex],
        searched: dict[str, ColumnIndex],
        payloads: list[pa.Array],
    ) -> None:
        self.keys = keys
        """Ascending, (rows,), memory-mapped."""
        self.rows = len(keys)
        self._columns = columns
        self._indexes = indexes
        self._searched = searched
        self._payloads = payloads
        self._payload_ends = np.cumsum([len(batch) for batch in payloads])
        self._matching = Matching()

    @classmethod
    def open(cls, directory: Path, config: ShardConfig) -> Segment:
        """Raises Corrupt where the files do not belong together; `verify` looks at their bytes."""
        header = _read_header(directory)
        made_for = (header.vectors, header.sparse.keys())
        if made_for != (config.vectors, config.sparse.keys()):
            raise Corrupt(f"{directory.name}: made for other vectors than the collection's")
        for name, file in header.files.items():
            if _size(directory / name) != file.bytes:
                raise Corrupt(f"{directory.name}/{name}: expected {file.bytes} bytes")
        keys = _map(directory / _KEYS)
        if keys.shape != (header.rows,) or keys.dtype != KEY_DTYPE:
            raise Corrupt(f"{directory.name}/{_KEYS}: {keys.dtype} {keys.shape}")
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(directory / _PAYLOADS)))
            batches = [
                reader.get_batch(number).column(0) for number in range(reader.num_record_batches)
            ]
        except (pa.ArrowInvalid, OSError) as error:
            raise Corrupt(f"{directory.name}/{_PAYLOADS}: {error}") from error
        if sum(map(len, batches)) != header.rows:
            raise Corrupt(f"{directory.name}/{_PAYLOADS}: expected {header.rows} rows")
        columns, indexes, searched = {}, {}, {}
        for name in config.names:
            column = columns[name] = header.column(directory, name)
            path = header.path(directory, name, _INDEX)
            if path.name in header.files:
                index = indexes[name] = IvfPqIndex.open(path)
                if index.rows != len(column.values):
                    raise Corrupt(f"{directory.name}/{path.name}: {index.rows} vectors")
            postings = _open_postings(header, directory, name) if name in config.sparse else None
            searched[name] = open_column(
                column, config.vectors.get(name), indexes.get(name), postings
            )
        return cls(keys, columns, indexes, searched, batches)

    @property
    def indexed(self) -> bool:
        """Whether some of its vectors have an index that had to be built."""
        return bool(self._indexes)

    def find(self, keys: Keys) -> Rows:
        """The row of each key, -1 where there is none. Shape (n,)."""
        if not self.rows:
            return np.full(len(keys), -1, np.int64)
        rows = np.minimum(np.searchsorted(self.keys, keys), self.rows - 1)
        found: Rows = np.where(self.keys[rows] == keys, rows, -1)
        return found

    def column(self, name: str) -> ColumnIndex:
        """The vectors of that name, to be searched."""
        return self._searched[name]

    def calibrate(self, config: ShardConfig) -> dict[str, Calibration]:
        """Settings that reach the target, by the names of the vectors for which an index does."""
        found = {
            name: _calibrate(index, self._columns[name].values, config, config.vectors[name])
            for name, index in self._indexes.items()
        }
        return {name: one for name, one in found.items() if one is not None}

    def matching(self, filter: bytes) -> Mask:
        """Rows that a filter, not empty, lets through, (rows,)."""
        return self._matching.mask(filter, self)

    def among(self, keys: Keys) -> Mask:
        """Rows that have one of ``keys``, (rows,)."""
        rows = self.find(keys)
        mask = np.zeros(self.rows, np.bool_)
        mask[rows[rows >= 0]] = True
        return mask

    def has(self, name: str) -> Mask:
        """Rows that have a vector of that name, (rows,)."""
        column = self._columns.get(name)
        return np.zeros(self.rows, np.bool_) if column is None else column.has()

    def payload_batches(self) -> Iterable[Sequence[bytes]]:
        """Those of all rows, in order."""
        for column in self._payloads:
            usage.count_payloads(column.nbytes)
            yield column.to_pylist()

    def payloads(self, rows: Rows) -> list[bytes]:
        """The payloads of ``rows``, in that order."""
        batches = np.searchsorted(self._payload_ends, rows, side="right")
        found = []
        for row, batch in zip(rows.tolist(), batches.tolist(), strict=True):
            column = self._payloads[batch]
            found.append(column[row - int(self._payload_ends[batch]) + len(column)].as_py())
        return found

    def vectors(self, name: str, rows: Rows) -> VectorColumn:
        """The vectors of ``rows`` under that name, copied."""
        return self._columns[name].take(rows)


def write_segment(
    directory: Path, batches: Iterable[Points], rows: int, config: ShardConfig
) -> None:
    """Write a segment without an index into an existing empty directory.

    ``batches`` have ``rows`` points in all, with payloads, prepared vectors of all names, and
    ascending keys.
    """
    header = _Header(
        format=_FORMAT, rows=rows, vectors=config.vectors, sparse=config.sparse, files={}
    )
    keys = _Writer(directory / _KEYS, np.empty(0, KEY_DTYPE))
    columns = {name: _ColumnWriter(header, directory, name, config) for name in config.names}
    start = 0
    with pa.OSFile(str(directory / _PAYLOADS), "wb") as file, pa.ipc.new_file(file, _SCHEMA) as out:
        for batch in batches:
            keys.append(batch.keys)
            for name, column in columns.items():
                column.append(batch.vectors[name])
            out.write_batch(
                pa.record_batch([pa.array(batch.payloads, pa.large_binary())], schema=_SCHEMA)
            )
            start += len(batch.keys)
    if start != rows:
        raise ValueError(f"{start} points, expected {rows}")
    files = [keys.close().name, _PAYLOADS]
    for column in columns.values():
        files += [path.name for path in column.close()]
    files += _write_postings(header, directory, files)
    _write_header(header, directory, files)


def build_indexes(
    directory: Path,
    config: ShardConfig,
    template: Path | None = None,
    calibrations: Mapping[str, Calibration] | None = None,
) -> dict[str, Calibration]:
    """Give a written segment its indexes, calibrated for ``config.recall_target``: for each name
    with as many vectors as `ShardConfig.flat_threshold`, unless that cannot be reached.

    ``template``: the file of an index, trained but empty, to fill instead of training one, where
    there is just one name of dense vectors. ``calibrations``: of a segment like this one, to take
    over instead of measuring.
    """
    header = _read_header(directory)
    found: dict[str, Calibration] = {}
    built: list[str] = []
    for name, own in config.vectors.items():
        vectors = header.column(directory, name).values
        if not len(vectors) or len(vectors) < config.flat_threshold:
            continue
        if template is None:
            index = IvfPqIndex.build(vectors, own.distance, _SEED)
        else:
            index = IvfPqIndex.open(template).filled(vectors)
        calibration = (calibrations or {}).get(name)
        if calibration is None:
            calibration = _calibrate(index, vectors, config, own)
        if calibration is None:
            continue
        path = header.path(directory, name, _INDEX)
        index.write(path)
        found[name] = calibration
        built.append(path.name)
    if built:
        _write_header(header, directory, [*header.files, *built])
    return found


def _calibrate(
    index: IvfPqIndex, vectors: Vectors, config: ShardConfig, own: VectorConfig
) -> Calibration | None:
    return calibrate(index, vectors, own.distance, config.recall_target, config.share, _SEED)


def _open_postings(header: _Header, directory: Path, name: str) -> Postings:
    arrays = {part: header.array(directory, name, _POSTINGS + part) for part in Postings.FILES}
    found = {part: array for part, array in arrays.items() if array is not None}
    if found.keys() != arrays.keys():
        raise Corrupt(f"{directory.name}: no postings of {name!r}")
    return Postings(found, header.rows)


def _write_postings(header: _Header, directory: Path, files: list[str]) -> list[str]:
    written = []
    stored = msgspec.structs.replace(header, files=dict.fromkeys(files, _File(0, "")))
    for name in header.sparse:
        for part, array in Postings.arrays(stored.column(directory, name)).items():
            path = header.path(directory, name, _POSTINGS + part)
            np.save(path, array)
            written.append(path.name)
    return written


class _Writer:
    """Writes an array, however long, a part at a time."""

    def __init__(self, path: Path, empty: NDArray[Any]) -> None:
        self._path = path
        self._shape = empty.shape
        self._dtype = empty.dtype
        self._rows = 0
        self._file = path.open("wb")
        self._write_header()

    def append(self, rows: NDArray[Any]) -> None:
        np.ascontiguousarray(rows, self._dtype).tofile(self._file)
        self._rows += len(rows)

    def close(self) -> Path:
        self._file.seek(0)
        self._write_header()
        self._file.close()
        return self._path

    def _write_header(self) -> None:
        # NumPy leaves room in a header for any number of rows.
        description = np.lib.format.header_data_from_array_1_0(np.empty(0, self._dtype))
        description["shape"] = (self._rows, *self._shape[1:])
        np.lib.format.write_array_header_1_0(self._file, description)


class _ColumnWriter:
    """Writes a `VectorColumn`, a part at a time."""

    def __init__(self, header: _Header, directory: Path, name: str, config: ShardConfig) -> None:
        empty = config.empty(name)

        def writer(part: str, array: NDArray[Any]) -> _Writer:
            return _Writer(header.path(directory, name, part), array)

        self._values = writer(_VECTORS, empty.values)
        self._starts = writer(_STARTS, np.zeros(0, np.int64))
        self._indices = self._present = None
        self._plain = empty.indices is None
        """Whether each row has just one vector up to now."""
        if empty.indices is not None:
            self._indices = writer(_INDICES, empty.indices)
            self._present = writer(_PRESENT, np.zeros(0, np.bool_))
        self._end = 0
        self._starts.append(np.zeros(1, np.int64))

    def append(self, column: VectorColumn) -> None:
        self._plain = self._plain and column.starts is None
        self._values.append(column.values)
        self._starts.append(self._end + np.cumsum(column.lengths))
        self._end += len(column.values)
        if self._indices is not None and self._present is not None and column.indices is not None:
            self._indices.append(column.indices)
            self._present.append(column.has())

    def close(self) -> list[Path]:
        """The files that are wanted."""
        starts = self._starts.close()
        files = [self._values.close()]
        if self._plain:
            starts.unlink()
        else:
            files.append(starts)
        files += [one.close() for one in (self._indices, self._present) if one is not None]
        return files


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


def _write_header(header: _Header, directory: Path, names: list[str]) -> None:
    files = {name: _File(_size(directory / name), _checksum(directory / name)) for name in names}
    line = msgspec.json.encode(msgspec.structs.replace(header, files=files))
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


def _map(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        try:  # Nothing cannot be mapped.
            array = np.load(path)
        except (OSError, ValueError):
            raise Corrupt(f"{path.parent.name}/{path.name}: {error}") from error
        if array.size:
            raise Corrupt(f"{path.parent.name}/{path.name}: {error}") from error
    # Without NumPy's subclass, whose every slice costs as much as a small search.
    return np.asarray(array)
