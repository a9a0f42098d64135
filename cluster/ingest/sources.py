"""The files of a bulk load: found, cut into ranges of rows, and read as Arrow batches.

Every format is read range by range, so that no file need be in memory whole. What comes out are
record batches whose rows are numbered from the beginning of their file.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import posixpath
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import numpy as np
import orjson
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq

from shard.errors import InvalidInput, NotFound, ShoalError, Unavailable

BATCH_ROWS = 8_192
_LINES_BYTES = 4 << 20
_PAGE_BYTES = 1 << 20

_ARROW = (".arrow", ".feather", ".ipc")
_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz", ".jsonl.zst", ".ndjson.zst")
_VECS: dict[str, np.dtype[Any]] = {".fvecs": np.dtype("<f4"), ".bvecs": np.dtype("u1")}
_BINS: dict[str, np.dtype[Any]] = {
    ".fbin": np.dtype("<f4"),
    ".u8bin": np.dtype("u1"),
    ".i8bin": np.dtype("i1"),
}
FORMATS = (".parquet", *_ARROW, *_LINES, ".npy", *_VECS, *_BINS)


class SourceFile(msgspec.Struct, frozen=True):
    """A file as it was found."""

    path: str
    """For the file system of its source."""
    name: str
    """Relative to the source: the same wherever the source is moved to."""
    bytes: int
    changed: float
    """Seconds since the epoch."""


class Range(msgspec.Struct, frozen=True):
    """Part of a file. For files by lines it is the whole, and ``rows`` is a guess."""

    file: int
    """Number of the file in the job's list."""
    start: int
    """First row group, record batch or row."""
    end: int
    first_row: int
    rows: int


class Batch(NamedTuple):
    """Rows from ``first_row`` of the file on; ``error``: what a row is if it cannot be parsed."""

    first_row: int
    columns: pa.RecordBatch
    errors: dict[int, str]
    """By position in the batch."""


class Source:
    """What is at a URL: ``s3://BUCKET/PREFIX``, a directory or a file, globs in the last part.

    Of local files those ``within`` directories without links, whatever links lead to them.
    Methods raise Unavailable where it cannot be read, and InvalidInput for what is no such file.
    """

    def __init__(self, url: str, within: Sequence[str] | None = None) -> None:
        self._url = url
        self._within = within
        self._fs, self._root = _file_system(url)

    def files(self) -> list[SourceFile]:
        """Every file of a known format, in order of names. Raises NotFound where there is none."""
        try:
            found = self._find()
        except (OSError, ValueError) as error:
            raise _unreadable(f"source {self._url}", error) from error
        files = [
            SourceFile(
                info.path,
                posixpath.relpath(info.path, self._base),
                info.size or 0,
                (info.mtime_ns or 0) / 1e9,
            )
            for info in found
            if info.is_file and info.base_name.lower().endswith(FORMATS)
        ]
        if not files:
            raise NotFound(
                f"source {self._url}: no file there ends with one of {', '.join(FORMATS)}"
            )
        for file in files:
            self._check_within(file)
        return sorted(files, key=lambda file: file.name)

    def ranges(self, number: int, file: SourceFile, row_bytes: int) -> list[Range]:
        """The parts that the file can be read by. ``row_bytes`` is about what a row takes."""
        name = file.name.lower()
        try:
            if name.endswith(".parquet"):
                with self._fs.open_input_file(file.path) as opened:
                    meta = pq.read_metadata(opened)
                sizes = [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
                return _runs(number, sizes)
            if name.endswith(_ARROW):
                with self._fs.open_input_file(file.path) as opened:
                    reader = pa.ipc.open_file(opened)
                    sizes = [
                        reader.get_batch(batch).num_rows
                        for batch in range(reader.num_record_batches)
                    ]
                return _runs(number, sizes)
            if name.endswith(_LINES):
                return [Range(number, 0, 1, 0, max(1, file.bytes // max(1, 2 * row_bytes)))]
            with self._fs.open_input_file(file.path) as opened:
                rows = _Matrix.of(name, opened, file.bytes).rows
            step = BATCH_ROWS
            return [
                Range(number, first, min(first + step, rows), first, min(step, rows - first))
                for first in range(0, rows, step)
            ]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise _unreadable(file.name, error) from error

    def read(self, file: SourceFile, part: Range, most: int | None = None) -> Iterator[Batch]:
        """The rows of ``part``, in order; or of these the first ``most``, and no more is read."""
        name = file.name.lower()
        read = self._batches(name, file, part, most)
        self._check_within(file)
        try:
            now = self._fs.get_file_info(file.path)
            # Seconds: some stores tell of parts of them in lists only.
            if (now.size, (now.mtime_ns or 0) // 10**9) != (file.bytes, int(file.changed)):
                raise ValueError("it has changed since the job began")
            if most is None:
                yield from read
                return
            with contextlib.closing(read):
                for batch in read:
                    errors = {row: error for row, error in batch.errors.items() if row < most}
                    yield Batch(batch.first_row, batch.columns.slice(0, most), errors)
                    most -= batch.columns.num_rows
                    if most <= 0:
                        return
        except (OSError, pa.ArrowException, ValueError) as error:
            raise _unreadable(file.name, error) from error

    def _check_within(self, file: SourceFile) -> None:
        if self._within is None or not isinstance(self._fs, pa_fs.LocalFileSystem):
            return
        real = Path(os.path.realpath(file.path))
        if not any(real.is_relative_to(one) for one in self._within):
            raise InvalidInput(f"source {self._url}: {file.name} leads to where it is not allowed")

    def _batches(
        self, name: str, file: SourceFile, part: Range, most: int | None
    ) -> Generator[Batch]:
        if name.endswith(".parquet"):
            yield from self._parquet(file, part, most)
        elif name.endswith(_ARROW):
            yield from self._arrow(file, part)
        elif name.endswith(_LINES):
            yield from self._lines(file)
        else:
            end = part.end if most is None else min(part.end, part.start + most)
            with self._fs.open_input_file(file.path) as opened:
                vectors = _Matrix.of(name, opened, file.bytes).read(opened, part.start, end)
            yield Batch(part.start, _vector_batch(vectors), {})

    def _find(self) -> list[pa_fs.FileInfo]:
        info = self._fs.get_file_info(self._root)
        if info.type is pa_fs.FileType.NotFound and any(sign in self._root for sign in "*?["):
            fixed = self._root
            while any(sign in fixed for sign in "*?["):
                fixed = posixpath.dirname(fixed)
            self._base = fixed
            selector = pa_fs.FileSelector(fixed, recursive=True)
            pattern = self._root
            return [
                info
                for info in self._fs.get_file_info(selector)
                if fnmatch.fnmatchcase(info.path, pattern)
            ]
        if info.is_file:
            self._base = posixpath.dirname(self._root)
            return [info]
        self._base = self._root
        return list(
            self._fs.get_file_info(
                pa_fs.FileSelector(self._root, recursive=True, allow_not_found=True)
            )
        )

    def _parquet(self, file: SourceFile, part: Range, most: int | None) -> Iterator[Batch]:
        with self._fs.open_input_file(file.path) as opened:
            # Whole column chunks at once, or page by page.
            reader = pq.ParquetFile(
                opened, pre_buffer=most is None, buffer_size=_PAGE_BYTES if most else 0
            )
            row = part.first_row
            for batch in reader.iter_batches(
                BATCH_ROWS, row_groups=range(part.start, part.end), use_threads=False
            ):
                yield Batch(row, batch, {})
                row += batch.num_rows

    def _arrow(self, file: SourceFile, part: Range) -> Iterator[Batch]:
        with self._fs.open_input_file(file.path) as opened:
            reader = pa.ipc.open_file(opened)
            row = part.first_row
            for number in range(part.start, part.end):
                batch = reader.get_batch(number)
                batch.validate(full=True)  # What is damaged must not be looked into.
                for first in range(0, batch.num_rows, BATCH_ROWS):
                    yield Batch(row + first, batch.slice(first, BATCH_ROWS), {})
                row += batch.num_rows

    def _lines(self, file: SourceFile) -> Iterator[Batch]:
        row, rest = 0, b""
        with self._fs.open_input_stream(file.path, compression=_compression(file.name)) as opened:
            while True:
                read = opened.read(_LINES_BYTES)
                *lines, rest = (rest + read).split(b"\n")
                if not read and rest:
                    lines, rest = [rest], b""
                for first in range(0, len(lines), BATCH_ROWS):
                    some = lines[first : first + BATCH_ROWS]
                    yield _line_batch(row, some)
                    row += len(some)
                if not read:
                    return


def _unreadable(what: str, error: Exception) -> ShoalError:
    """The error for a file that cannot be read: it may pass only if the storage was at fault."""
    passes = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
    # What decompresses and decodes raises OSError without a number.
    if passes and (error.errno is not None or "AWS Error" in str(error)):  # type: ignore[attr-defined]
        return Unavailable(f"{what}: {error}")
    return InvalidInput(f"{what}: {error}")


def _compression(name: str) -> str | None:
    return {".gz": "gzip", ".zst": "zstd"}.get(posixpath.splitext(name.lower())[1])


class _Matrix(NamedTuple):
    """Rows of numbers of one size, behind a header or each behind its dimension."""

    offset: int
    rows: int
    dimension: int
    dtype: np.dtype[Any]
    before: int
    """Bytes before each row's numbers."""

    @classmethod
    def of(cls, name: str, opened: pa.NativeFile, size: int) -> _Matrix:
        if name.endswith(".npy"):
            version = np.lib.format.read_magic(opened)
            read_header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, fortran, dtype = read_header(opened)
            if len(shape) != 2 or fortran or dtype.hasobject:
                raise ValueError(f"expected a row-major matrix of numbers, got {shape} {dtype}")
            matrix = cls(opened.tell(), shape[0], shape[1], dtype, 0)
        else:
            suffix = posixpath.splitext(name)[1]
            if suffix in _VECS:
                (dimension,) = np.frombuffer(opened.read(4), "<i4", 1).tolist() if size else (1,)
                row = 4 + dimension * _VECS[suffix].itemsize
                if dimension < 1 or size % row:
                    raise ValueError(f"{size} bytes are no whole rows of dimension {dimension}")
                matrix = cls(0, size // row, dimension, _VECS[suffix], 4)
            else:
                rows, dimension = np.frombuffer(opened.read(8), "<u4", 2).tolist()
                matrix = cls(8, rows, dimension, _BINS[suffix], 0)
        if matrix.rows < 0 or matrix.dimension < 1:
            raise ValueError(f"expected rows of numbers, got {matrix.rows} of {matrix.dimension}")
        if matrix.offset + matrix.rows * matrix.row_bytes > size:
            raise ValueError(f"{size} bytes: expected {matrix.rows} rows of {matrix.dimension}")
        return matrix

    @property
    def row_bytes(self) -> int:
        return self.before + self.dimension * self.dtype.itemsize

    def read(self, opened: pa.NativeFile, start: int, end: int) -> np.ndarray[Any, Any]:
        data = opened.read_at((end - start) * self.row_bytes, self.offset + start * self.row_bytes)
        rows = np.frombuffer(data, np.uint8).reshape(end - start, self.row_bytes)
        if self.before and (rows[:, :4] != np.array([self.dimension], "<i4").view(np.uint8)).any():
            raise ValueError(f"expected rows of dimension {self.dimension}, got others too")
        return np.ascontiguousarray(rows[:, self.before :]).view(self.dtype)


def _runs(number: int, sizes: list[int]) -> list[Range]:
    ranges, row = [], 0
    for part, size in enumerate(sizes):
        ranges.append(Range(number, part, part + 1, row, size))
        row += size
    return ranges


def _vector_batch(vectors: np.ndarray[Any, Any]) -> pa.RecordBatch:
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    return pa.record_batch(
        [pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])], names=["vector"]
    )


def _line_batch(first_row: int, lines: list[bytes]) -> Batch:
    """JSON objects as rows; values that are no vector stay Python objects, encoded once more."""
    errors: dict[int, str] = {}
    objects: list[dict[str, Any]] = []
    for position, line in enumerate(lines):
        parsed: Any = {}
        if line.strip():
            try:
                parsed = orjson.loads(line)
                if not isinstance(parsed, dict):
                    raise ValueError("expected a JSON object")
                orjson.dumps(parsed)  # May be nested too deeply for it.
            except (ValueError, TypeError) as error:
                errors[position] = f"unparsable: {error}"
                parsed = {}
        else:
            errors[position] = "unparsable: an empty line"
        objects.append(parsed)
    # Rows may differ in what they have and of what type it is: columns of JSON.
    names = list(dict.fromkeys(name for one in objects for name in one))
    columns = [
        pa.array([orjson.dumps(one[name]) if name in one else None for one in objects], pa.binary())
        for name in names
    ]
    fields = [pa.field(name, pa.binary(), metadata={"json": "1"}) for name in names]
    if not names:
        return Batch(first_row, pa.record_batch([pa.nulls(len(lines))], names=["_"]), errors)
    return Batch(first_row, pa.record_batch(columns, schema=pa.schema(fields)), errors)


def _file_system(url: str) -> tuple[pa_fs.FileSystem, str]:
    if url.startswith("s3://"):
        path = url.removeprefix("s3://").rstrip("/")
        if not path:
            raise InvalidInput(f"source {url!r}: expected s3://BUCKET/PREFIX")
        options: dict[str, Any] = {}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            parts = urlsplit(endpoint)
            options = {"endpoint_override": parts.netloc, "scheme": parts.scheme}
        if region := os.environ.get("AWS_REGION"):
            options["region"] = region
        retries = pa_fs.AwsStandardS3RetryStrategy(max_attempts=5)
        return (
            pa_fs.S3FileSystem(
                connect_timeout=10, request_timeout=60, retry_strategy=retries, **options
            ),
            path,
        )
    path = url.removeprefix("file://")
    if not path or "://" in path:
        raise InvalidInput(f"source {url!r}: expected s3://BUCKET/PREFIX or a path")
    return pa_fs.LocalFileSystem(), str(Path(path).absolute())
