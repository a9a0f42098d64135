"""Bulk loads as a shard takes them in."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest

from shard.builder import Builder
from shard.engine import ShardEngine
from shard.errors import NotFound
from shard.imports import Imports
from shard.index.ivfpq import IvfPqIndex
from shard.log import WriteAheadLog
from shard.manifest import Manifest, Manifests, SegmentEntry, pack_dead
from shard.model import (
    UNNAMED,
    Delete,
    Distance,
    Import,
    Operation,
    Points,
    SearchParams,
    ShardConfig,
    Upsert,
    VectorColumn,
    decode_ids,
    encode_ids,
    unnamed,
)
from shard.objects.local import LocalObjectStore
from shard.segment_store import imported_id, job_of
from tests.faulty_store import Crash, FaultyStore

PREFIX = "collections/c/shard-0000"
DIMENSION = 8
CONFIG = ShardConfig.unnamed(DIMENSION, Distance.EUCLID)
JOB = "0000000007-0123abcd"
Model = dict[int, bytes]


def upsert(ids: list[int], word: str) -> Upsert:
    vectors = np.random.default_rng(len(word)).normal(size=(len(ids), DIMENSION))
    payload = b'{"of":"%s"}' % word.encode()
    return Upsert(encode_ids(ids), unnamed(vectors.astype(np.float32)), [payload] * len(ids))


def apply(model: Model, operation: Operation) -> None:
    for row, one in enumerate(decode_ids(operation.keys)):
        assert isinstance(one, int)
        if isinstance(operation, Upsert):
            model[one] = operation.payloads[row]
        else:
            model.pop(one, None)


def contents(engine: ShardEngine) -> Model:
    points = engine.scroll(b"", 1_000_000, with_payload=True)
    assert points.payloads is not None
    assert engine.count() == len(points.keys)
    return dict(zip(decode_ids(points.keys), points.payloads, strict=True))  # type: ignore[arg-type]


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Shard:
    """One shard that is opened time and again, and what should be in it."""

    def __init__(self, directory: Path, config: ShardConfig = CONFIG) -> None:
        self.store = LocalObjectStore(directory / "store")
        self.imports = Imports(self.store, PREFIX)
        self.builder = Builder()
        self.directory = directory
        self.config = config
        self.model: Model = {}
        self.engine: ShardEngine | None = None
        self.reopen()

    def reopen(self) -> None:
        self.close()
        scratch = self.directory / "scratch"
        self.engine = ShardEngine.open(self.store, PREFIX, self.config, scratch, self.builder)

    def close(self) -> None:
        if self.engine is not None:
            self.engine.close()

    def follow(self, *imports: Import) -> None:
        self.config = msgspec.structs.replace(self.config, imports=imports, imports_known=7)
        assert self.engine is not None
        self.engine.reconfigure(self.config)

    def write(self, operation: Operation) -> None:
        assert self.engine is not None
        self.engine.write([operation]).result()
        apply(self.model, operation)

    def manifest(self) -> Manifest:
        return Manifests(self.store, f"{PREFIX}/manifest").read()

    def check(self) -> None:
        assert self.engine is not None
        assert contents(self.engine) == self.model


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path)
    yield shard
    shard.close()
    shard.builder.close()


def stored(imports: Imports, scratch: Path, chunk: int, ids: list[int]) -> SegmentEntry:
    one = upsert(sorted(ids), "job")
    points = Points(one.keys, list(one.payloads), one.vectors)
    return imports.write_segment(
        imported_id(JOB, chunk), [points], len(points.keys), CONFIG, scratch
    )


@pytest.mark.parametrize("reopened", ["never", "awaiting", "written", "listed", "taken", "always"])
def test_what_is_newer_than_the_job_wins(shard: Shard, tmp_path: Path, reopened: str) -> None:
    def maybe_reopen(point: str) -> None:
        if reopened in (point, "always"):
            shard.reopen()

    shard.write(upsert(list(range(100)), "before"))
    shard.write(Delete(encode_ids(list(range(10)))))
    shard.follow(Import(JOB, ready=False))
    wait_until(lambda: JOB in shard.manifest().awaited)
    maybe_reopen("awaiting")
    # In the meantime: of the job's and of others, in what is flushed and what is not.
    job_ids = [*range(5, 60), *range(1_000, 1_500)]
    for word, first in (("soon", 20), ("late", 40)):
        shard.write(upsert([*range(first, first + 5), 1_000 + first, 2_000 + first], word))
        shard.write(Delete(encode_ids([*range(first + 5, first + 8), 1_100 + first])))
        if word == "soon":
            assert shard.engine is not None
            shard.engine.snapshot()
    shard.check()
    maybe_reopen("written")
    newer = {key for key in shard.model if shard.model[key] in (b'{"of":"soon"}', b'{"of":"late"}')}
    deleted = {*range(25, 28), 1_120, *range(45, 48), 1_140}

    chunks = [job_ids[::2], job_ids[1::2]]
    segments = [stored(shard.imports, tmp_path / "w", n, ids) for n, ids in enumerate(chunks)]
    # A row twice in the job: the list says which counts.
    again = stored(shard.imports, tmp_path / "w", 2, [*chunks[0][:7], 3_000])
    alive = np.zeros(8, np.bool_)
    alive[7] = True
    segments.append(msgspec.structs.replace(again, dead=pack_dead(alive)))
    shard.imports.put_list(JOB, segments)
    maybe_reopen("listed")
    shard.check()
    shard.follow(Import(JOB, ready=True))
    for key in [*job_ids, 3_000]:
        if key not in newer and key not in deleted:
            shard.model[key] = b'{"of":"job"}'
    wait_until(lambda: JOB in shard.manifest().taken_in)
    shard.check()
    maybe_reopen("taken")
    shard.check()
    shard.write(upsert([5, 6, 20, 1_001], "after"))
    shard.write(Delete(encode_ids([7, 1_002])))
    shard.check()
    shard.reopen()
    shard.check()
    shard.follow()
    wait_until(lambda: not shard.manifest().taken_in)
    shard.reopen()
    shard.check()


def test_the_log_is_kept_while_a_job_is_awaited(shard: Shard) -> None:
    log = WriteAheadLog(shard.store, f"{PREFIX}/log")
    shard.write(upsert([1], "before"))
    shard.follow(Import(JOB, ready=False))
    wait_until(lambda: JOB in shard.manifest().awaited)
    since = shard.manifest().awaited[JOB]
    assert shard.engine is not None
    for number in range(5):
        shard.write(upsert([number], "meanwhile"))
        shard.engine.snapshot()
    newest = shard.manifest().sequence
    assert newest == since + 5
    read = [record.sequence for record in log.follow(since, newest)]
    assert read == list(range(since + 1, newest + 1))
    shard.follow()
    wait_until(lambda: not shard.manifest().awaited)
    shard.write(upsert([9], "after"))
    shard.engine.snapshot()
    records = list(shard.store.list(f"{PREFIX}/log/"))
    assert len(records) <= 4  # Fences, and the newest that is covered.


def test_what_a_job_that_is_over_has_left_goes_when_the_shard_is_opened(
    shard: Shard, tmp_path: Path
) -> None:
    mine = stored(shard.imports, tmp_path / "w", 0, [1, 2])
    assert job_of(mine.id) == JOB

    def segments() -> set[str]:
        return {key.split("/")[4] for key in shard.store.list(f"{PREFIX}/segment/")}

    # Not known yet, under way, and over; what is known may be older at times.
    for known, under_way, awaited in ((6, (), False), (7, (JOB,), True), (6, (), True)):
        imports = tuple(Import(job, ready=False) for job in under_way)
        shard.config = msgspec.structs.replace(CONFIG, imports=imports, imports_known=known)
        shard.reopen()
        shard.write(upsert([known], "x"))
        assert shard.engine is not None
        shard.engine.snapshot()
        wait_until(lambda awaited=awaited: (JOB in shard.manifest().awaited) == awaited)  # type: ignore[misc]
        assert mine.id in segments()
    shard.config = msgspec.structs.replace(CONFIG, imports_known=7)
    shard.reopen()
    wait_until(lambda: mine.id not in segments() and not shard.manifest().awaited)


def test_a_job_erases_what_it_stored(shard: Shard, tmp_path: Path) -> None:
    entry = stored(shard.imports, tmp_path / "w", 0, [1, 2])
    shard.imports.put_list(JOB, [entry])
    assert shard.imports.get_list(JOB) == [entry]
    assert shard.imports.erase(JOB, segments=True) > 1
    assert shard.imports.erase(JOB, segments=True) == 0
    with pytest.raises(NotFound):
        shard.imports.get_list(JOB)


def test_imported_segments_share_a_template(shard: Shard, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12_000, DIMENSION)).astype(np.float32)
    index = IvfPqIndex.train(vectors[:4_000], len(vectors), Distance.EUCLID, seed=0)
    assert index.rows == 0
    template = tmp_path / "template"
    index.write(template)
    shard.follow(Import(JOB, ready=False))
    points = Points(encode_ids(list(range(len(vectors)))), [b""] * len(vectors), unnamed(vectors))
    entry = shard.imports.write_segment(
        imported_id(JOB, 0), [points], len(points.keys), CONFIG, tmp_path / "w", template=template
    )
    assert UNNAMED in entry.calibrations and not list((tmp_path / "w").iterdir())
    shard.imports.put_list(JOB, [entry])
    shard.follow(Import(JOB, ready=True))
    wait_until(lambda: JOB in shard.manifest().taken_in)
    assert shard.engine is not None
    info = shard.engine.info()
    assert info.indexed == len(vectors) and info.segments[0].indexes == {UNNAMED: index.name}
    queries = VectorColumn(vectors[:100] + np.float32(0.01))
    found = shard.engine.search(queries, SearchParams(limit=10))
    exact = shard.engine.search(queries, SearchParams(limit=10, exact=True))
    shared = [
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(
            found.points.keys.reshape(100, 10), exact.points.keys.reshape(100, 10), strict=True
        )
    ]
    assert sum(shared) / 1_000 >= 0.93


def test_a_crash_at_any_operation_of_the_store_takes_the_job_in_once(tmp_path: Path) -> None:
    """Whatever a taking-in has come to when the process ends, the next one makes it whole."""
    for crash_at in range(1, 60):
        directory = tmp_path / str(crash_at)
        shard = Shard(directory)
        shard.write(upsert(list(range(50)), "before"))
        shard.follow(Import(JOB, ready=False))
        wait_until(lambda shard=shard: JOB in shard.manifest().awaited)  # type: ignore[misc]
        shard.write(upsert([3, 4, 200], "newer"))
        shard.write(Delete(encode_ids([5])))
        entry = stored(shard.imports, directory / "w", 0, [*range(40, 50), 3, 5, 300])
        shard.imports.put_list(JOB, [entry])
        shard.close()
        faulty = FaultyStore(shard.store)
        faulty.crash_after(crash_at, takes_place=crash_at % 2 == 0)
        shard.config = msgspec.structs.replace(CONFIG, imports=(Import(JOB, ready=True),))
        crashed = True
        try:
            engine = ShardEngine.open(
                faulty, PREFIX, shard.config, directory / "faulty", shard.builder
            )
            deadline = time.monotonic() + 10
            while not faulty.crashed and time.monotonic() < deadline:
                if JOB in shard.manifest().taken_in:
                    crashed = False
                    break
                time.sleep(0.005)
            engine.close()
        except Crash:
            pass
        shard.reopen()
        wait_until(lambda shard=shard: JOB in shard.manifest().taken_in)  # type: ignore[misc]
        for key in [*range(40, 50), 300]:
            shard.model[key] = b'{"of":"job"}'
        shard.check()
        shard.close()
        shard.builder.close()
        if not crashed:
            return
    pytest.fail("it never came to an end")
