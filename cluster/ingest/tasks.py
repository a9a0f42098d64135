"""What a bulk load does in parallel: sample, encode, and find what is there twice.

Each of these is a pure function of the job and of files, and stores what it makes under names that
follow from its number. It may run twice, or be killed and run again, and nothing is different.
"""

from __future__ import annotations

import io
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any, TypeVar

import faiss
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from cluster.catalog import Collection
from cluster.ingest.jobs import SAMPLES, BadRow, IngestJob
from cluster.ingest.rows import Parsed, Parser
from cluster.ingest.sources import BATCH_ROWS, Range, Source, SourceFile
from shard.errors import InvalidInput, NotFound
from shard.growing import GrowingColumn
from shard.imports import Imports
from shard.index.ivfpq import IvfPqIndex, sample_rows
from shard.manifest import SegmentEntry, pack_dead
from shard.model import KEY_DTYPE, Keys, Points, Rows, VectorColumns, Vectors, decode_id, shards_of
from shard.objects import ObjectStore, open_object_store
from shard.scheduling import leave_cores_to_others
from shard.segment_store import imported_id

T = TypeVar("T")

_MANY_RANGES = 16
_LOOK_SECONDS = 0.1
_AHEAD = 8
"""Batches of a source that are read before they are wanted."""
_ORIGIN = np.dtype([("file", "<u4"), ("row", "<u8")])


class Work(msgspec.Struct, frozen=True, kw_only=True):
    """What every task is told."""

    data: str
    scratch: str
    job: IngestJob
    collection: Collection
    files: list[SourceFile]


class Encoded(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one chunk."""

    segments: list[SegmentEntry | None]
    """Of each shard."""
    read: int
    bad: int
    samples: list[BadRow]
    ignored: list[str] = []


class Resolved(msgspec.Struct, frozen=True, kw_only=True):
    """What has become of one shard's part."""

    rows: int
    bad: int
    samples: list[BadRow]


class JobFiles:
    """Where a job keeps what it must find again after a crash, and what it rejects."""

    def __init__(self, store: ObjectStore, job: IngestJob) -> None:
        self.store = store
        self._prefix = f"ingest/{job.id}"

    @property
    def plan(self) -> str:
        return f"{self._prefix}/plan"

    @property
    def template(self) -> str:
        return f"{self._prefix}/template"

    def encoded(self, chunk: int) -> str:
        return f"{self._prefix}/chunk/{chunk:06d}"

    def resolved(self, shard: int) -> str:
        return f"{self._prefix}/shard/{shard:04d}"

    def origin(self, chunk: int, shard: int) -> str:
        return f"{self._prefix}/origin/{chunk:06d}-{shard:04d}"

    def rejects(self, part: str) -> str:
        return f"{self._prefix}/rejects/{part}.jsonl"

    def clean(self) -> int:
        """Delete all but the rejects. How many objects."""
        count = 0
        for key in self.store.list(f"{self._prefix}/"):
            if not key.startswith(f"{self._prefix}/rejects/"):
                self.store.delete(key)
                count += 1
        return count


def sample(work: Work, ranges: list[Range], segment_rows: int) -> None:
    """Train the template on rows of ``ranges``; an empty file where there is none.

    Of many ranges the first rows will do. Of few, whose rows may be in some order, all are read.
    """
    with _one_core():
        store = open_object_store(work.data)
        config = work.collection.config
        generator = np.random.default_rng(0)
        count = sample_rows(segment_rows)
        most = -(-count // len(ranges)) if len(ranges) >= _MANY_RANGES else None
        share = 1.0 if most else count / max(1, sum(part.rows for part in ranges))
        name = _templated(work.collection)
        chosen: list[Vectors] = []
        for parsed, _ in _parse(work, ranges if name is not None else [], most=most):
            assert name is not None
            wanted = np.flatnonzero(generator.random(len(parsed.keys)) < share)
            chosen.append(parsed.vectors[name].take(wanted).values)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "template"
            path.touch()
            if name is not None and any(len(some) for some in chosen):
                own = config.vectors[name]
                vectors = own.prepare(np.concatenate(chosen)[:count])
                IvfPqIndex.train(vectors, segment_rows, own.distance, seed=0).write(path)
            store.put_file(JobFiles(store, work.job).template, path)


def _templated(collection: Collection) -> str | None:
    """The name of the vectors that have a template; none where there are several."""
    names = list(collection.config.vectors)
    return names[0] if len(names) == 1 else None


def encode(work: Work, chunk: int, ranges: list[Range], indexed: bool) -> Encoded:
    """Make segments of ``ranges``, one a shard; ``indexed``: with the template, once there is one.

    Waits for the template without end: who has started both ends both.
    """
    with _one_core():
        return _encode(work, chunk, ranges, indexed)


def _encode(work: Work, chunk: int, ranges: list[Range], indexed: bool) -> Encoded:
    store = open_object_store(work.data)
    files = JobFiles(store, work.job)
    config = work.collection.config
    Path(work.scratch).mkdir(parents=True, exist_ok=True)
    rejects: list[BadRow] = []
    ignored: set[str] = set()
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        scratch = Path(folder)
        rows = _gather(work, ranges, rejects, ignored)
        read = len(rows.keys) + len(rejects)
        order, doubled = _distinct(rows.keys)
        rejects += [
            _doubled(work, rows.keys[position], rows.origin[position])
            for position in doubled.tolist()
        ]
        shard_of = shards_of(rows.keys[order], work.collection.shard_count)
        template = _template(files, scratch / "template") if indexed else None

        def store_segment(shard: int, like: SegmentEntry | None = None) -> SegmentEntry | None:
            own = order[shard_of == shard]
            if not len(own):
                return None
            store.put(files.origin(chunk, shard), rows.origin[own].tobytes())
            return _imports(store, work.collection, shard).write_segment(
                imported_id(work.job.key, chunk),
                rows.batches(own),
                len(own),
                config,
                scratch / str(shard),
                template=template,
                calibrations=like.calibrations if like else None,
            )

        # Which shard a row goes to is chance: what is measured in one holds in all.
        first = store_segment(0)
        # One is built while another is on its way to the object store.
        with ThreadPoolExecutor(2) as pool:
            others = range(1, work.collection.shard_count)
            segments = [first, *pool.map(partial(store_segment, like=first), others)]
    _reject(files, f"chunk-{chunk:06d}", rejects)
    outcome = Encoded(
        segments=segments,
        read=read,
        bad=len(rejects),
        samples=rejects[:SAMPLES],
        ignored=sorted(ignored),
    )
    store.put(files.encoded(chunk), msgspec.msgpack.encode(outcome))
    return outcome


def resolve(work: Work, shard: int, segments: list[SegmentEntry | None]) -> Resolved:
    """List a shard's ``segments``, those of each chunk, with what is there twice dead in them.

    The first one of a file, and of the first file, counts.
    """
    store = open_object_store(work.data)
    files = JobFiles(store, work.job)
    imports = _imports(store, work.collection, shard)
    chunks = [chunk for chunk, entry in enumerate(segments) if entry is not None]
    keys = [_stored_keys(store, work.collection, shard, work.job, chunk) for chunk in chunks]
    starts = np.cumsum([0, *map(len, keys)])
    _, doubled = _distinct(np.concatenate([*keys, np.empty(0, KEY_DTYPE)]))
    doubled = np.sort(doubled)
    rejects: list[BadRow] = []
    listed: list[SegmentEntry] = []
    for number, chunk in enumerate(chunks):
        entry = segments[chunk]
        assert entry is not None
        dead = doubled[(doubled >= starts[number]) & (doubled < starts[number + 1])]
        dead = dead - starts[number]
        if len(dead):
            origin = np.frombuffer(store.get(files.origin(chunk, shard)), _ORIGIN)
            rejects += [_doubled(work, keys[number][row], origin[row]) for row in dead.tolist()]
            alive = np.ones(entry.rows, np.bool_)
            alive[dead] = False
            entry = msgspec.structs.replace(entry, dead=pack_dead(alive))
        listed.append(entry)
    imports.put_list(work.job.key, listed)
    _reject(files, f"shard-{shard:04d}", rejects)
    outcome = Resolved(
        rows=int(starts[-1]) - len(doubled), bad=len(rejects), samples=rejects[:SAMPLES]
    )
    store.put(files.resolved(shard), msgspec.msgpack.encode(outcome))
    return outcome


class _Gathered(msgspec.Struct):
    keys: Keys
    vectors: VectorColumns
    payloads: list[bytes]
    origin: NDArray[np.void]

    def batches(self, chosen: Rows) -> Iterator[Points]:
        """The ``chosen`` rows; copies of a few at a time."""
        for first in range(0, len(chosen), BATCH_ROWS):
            some = chosen[first : first + BATCH_ROWS]
            payloads = [self.payloads[row] for row in some.tolist()]
            vectors = {name: column.take(some) for name, column in self.vectors.items()}
            yield Points(self.keys[some], payloads, vectors)


def _gather(work: Work, ranges: list[Range], rejects: list[BadRow], ignored: set[str]) -> _Gathered:
    config = work.collection.config
    expected = sum(part.rows for part in ranges)
    vectors = {name: GrowingColumn(config.empty(name), expected) for name in config.names}
    keys: list[Keys] = []
    payloads: list[bytes] = []
    origins: list[NDArray[np.void]] = []
    for parsed, file in _parse(work, ranges, ignored):
        for name, column in config.prepare(parsed.vectors, len(parsed.keys)).items():
            vectors[name].append(column)
        keys.append(parsed.keys)
        payloads += parsed.payloads
        origin = np.empty(len(parsed.keys), _ORIGIN)
        origin["file"], origin["row"] = file, parsed.rows
        origins.append(origin)
        rejected = work.files[file].name
        rejects += [BadRow(rejected, row, reason) for row, reason in parsed.bad]
    return _Gathered(
        np.concatenate([*keys, np.empty(0, KEY_DTYPE)]),
        {name: column.used for name, column in vectors.items()},
        payloads,
        np.concatenate([*origins, np.empty(0, _ORIGIN)]),
    )


def _template(files: JobFiles, path: Path) -> Path | None:
    while True:
        try:
            files.store.get_file(files.template, path)
        except NotFound:
            sleep(_LOOK_SECONDS)
        else:
            return path if path.stat().st_size else None


def _parse(
    work: Work,
    ranges: list[Range],
    ignored: set[str] | None = None,
    most: int | None = None,
) -> Iterator[tuple[Parsed, int]]:
    source = Source(work.job.source, work.job.within)
    parser: Parser | None = None
    seen: tuple[int, Any] | None = None
    read = (
        (part.file, one)
        for part in ranges
        for one in source.read(work.files[part.file], part, most)
    )
    for file, batch in _ahead(read):
        if parser is None or seen != (file, batch.columns.schema):
            seen = (file, batch.columns.schema)
            config = work.collection.config
            parser = Parser(work.job.columns, config, seen[1], work.files[file])
            if ignored is not None:
                ignored.update(parser.ignored)
        try:
            parsed = parser.parse(batch)
        except (ArithmeticError, LookupError, TypeError, ValueError, pa.ArrowException) as error:
            where = f"{work.files[file].name}: rows from {batch.first_row} on"
            raise InvalidInput(f"{where}: {error!r}") from error
        yield parsed, file


def _ahead(items: Iterator[T]) -> Iterator[T]:
    """``items``, some of which are being fetched while one is worked on."""
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(_AHEAD))
        while (item := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, items, None))
            yield item


def _distinct(keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the first of each key, in key order, and those of all others."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first = np.ones(len(keys), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first], order[~first]


def _doubled(work: Work, key: bytes, origin: np.void) -> BadRow:
    name = work.files[int(origin["file"])].name
    return BadRow(name, int(origin["row"]), f"id {decode_id(bytes(key))} is there before")


def _reject(files: JobFiles, part: str, rejects: list[BadRow]) -> None:
    if rejects:
        lines = b"".join(msgspec.json.encode(one) + b"\n" for one in rejects)
        files.store.put(files.rejects(part), lines)


def _stored_keys(
    store: ObjectStore, collection: Collection, shard: int, job: IngestJob, chunk: int
) -> Keys:
    segment = imported_id(job.key, chunk)
    data = store.get(f"{shard_prefix(collection, shard)}/segment/{segment}/keys.npy")
    keys: Keys = np.load(io.BytesIO(data))
    return keys


def _imports(store: ObjectStore, collection: Collection, shard: int) -> Imports:
    return Imports(store, shard_prefix(collection, shard))


def shard_prefix(collection: Collection, shard: int) -> str:
    return f"{collection.prefix}/shard-{shard:04d}"


@contextmanager
def _one_core() -> Iterator[None]:
    """Tasks are as many as cores, and searches come first."""
    leave_cores_to_others()
    faiss.omp_set_num_threads(1)
    with threadpool_limits(1, "blas"):
        yield
