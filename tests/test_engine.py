from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shard import engine as engine_module
from shard import log as log_module
from shard import merge_policy
from shard.builder import Builder
from shard.engine import ShardEngine
from shard.errors import Corrupt, Fenced, InvalidInput, ShoalError, Unavailable
from shard.manifest import Manifests
from shard.model import (
    UNNAMED,
    Calibration,
    Delete,
    Distance,
    Operation,
    SearchParams,
    ShardConfig,
    Upsert,
    VectorColumn,
    decode_ids,
    encode_id,
    encode_ids,
    unnamed,
)
from shard.objects import ObjectStore
from shard.objects.local import LocalObjectStore
from tests import columns
from tests.columns import MANY, WHOLE, WORDS, Row, rows_of
from tests.faulty_store import Crash, FaultyStore

PREFIX = "collections/c/shard-0000"
DIMENSION = 5
CONFIG = ShardConfig.unnamed(DIMENSION, Distance.EUCLID, flat_threshold=0)
Model = dict[int, tuple[dict[str, Row], bytes]]


@pytest.fixture
def builder() -> Iterator[Builder]:
    builder = Builder()
    yield builder
    builder.close()


@pytest.fixture
def store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def opened(
    store: LocalObjectStore, tmp_path: Path, builder: Builder
) -> Iterator[Callable[..., ShardEngine]]:
    engines: list[ShardEngine] = []

    def open_engine(
        config: ShardConfig = CONFIG, store: ObjectStore = store, scratch: str = "scratch"
    ) -> ShardEngine:
        engines.append(ShardEngine.open(store, PREFIX, config, tmp_path / scratch, builder))
        return engines[-1]

    yield open_engine
    for engine in engines:
        engine.close()


def upsert(ids: Sequence[int], seed: int = 0, config: ShardConfig = CONFIG) -> Upsert:
    vectors = columns.drawn(np.random.default_rng(seed), len(ids), config)
    return Upsert(encode_ids(ids), vectors, [b'{"seed":%d}' % seed] * len(ids))


def contents(engine: ShardEngine) -> Model:
    config = engine._config
    found: Model = {}
    start = b""
    while True:
        points = engine.scroll(start, 7, with_payload=True, with_vectors=config.names)
        if not len(points.keys):
            return found
        assert points.payloads is not None
        for point_id, payload, row in zip(
            decode_ids(points.keys), points.payloads, rows_of(points.vectors, config), strict=True
        ):
            assert isinstance(point_id, int) and point_id not in found
            found[point_id] = (row, payload)
        start = encode_id(max(found) + 1)


def apply(model: Model, operations: Sequence[Operation], config: ShardConfig = CONFIG) -> Model:
    changed = dict(model)
    for operation in operations:
        ids = [int(point_id) for point_id in decode_ids(operation.keys)]
        if isinstance(operation, Delete):
            for point_id in ids:
                changed.pop(point_id, None)
        else:
            rows = rows_of(config.prepare(operation.vectors, len(ids)), config)
            changed |= dict(zip(ids, zip(rows, operation.payloads, strict=True), strict=True))
    return changed


def check_searches(
    engine: ShardEngine, model: Model, seed: int, limit: int = 5, filter: bytes = b""
) -> None:
    """Searches by every name are as exact as they are asked to be."""
    config = engine._config
    queries = {
        name: [row for row in columns.plain(name, column, config) if row][:2]
        for name, column in columns.drawn(np.random.default_rng(seed), 9, config).items()
    }
    for name, rows in queries.items():
        asked = columns.column(name, rows, config)
        params = SearchParams(limit=limit, exact=True, using=name, with_vectors=(name,))
        hits = engine.search(asked, params, [filter] * asked.rows)
        found = decode_ids(hits.points.keys)
        stored = {point_id: vectors[name] for point_id, (vectors, _) in model.items()}
        read = columns.plain(name, hits.points.vectors[name], config)
        assert read == [stored[point_id] for point_id in found]  # type: ignore[index]
        ends = np.cumsum(hits.lengths).tolist()
        assert len(ends) == len(rows) and (not ends or ends[-1] == len(found))
        for query, first, end in zip(rows, [0, *ends], ends, strict=False):
            columns.check_nearest(
                config, name, query, stored, limit, found[first:end], hits.scores[first:end]
            )
    for name in config.sparse:
        indices = np.arange(13, dtype=np.uint32)
        told = engine.frequencies(name, indices, filter)
        own = [vectors[name] for vectors, _ in model.values() if vectors[name] is not None]
        assert told.points == len(own)
        assert told.counts.tolist() == [sum(index in row for row in own) for index in range(13)]


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_written_is_read(opened: Callable[..., ShardEngine]) -> None:
    engine = opened()
    engine.write([upsert([3, 1, 2], 1)]).result()
    engine.write([upsert([2, 7], 2), Delete(encode_ids([1, 99]))]).result()

    model = apply({}, [upsert([3, 1, 2], 1), upsert([2, 7], 2), Delete(encode_ids([1]))])
    assert contents(engine) == model
    assert engine.count() == 3
    found = engine.retrieve(encode_ids([7, 1, 3]), with_payload=True)
    assert decode_ids(found.keys) == [7, 3]
    assert found.payloads == [b'{"seed":2}', b'{"seed":1}']

    check_searches(engine, model, 3, limit=2)


def test_a_write_of_the_wrong_shape_is_refused(opened: Callable[..., ShardEngine]) -> None:
    with pytest.raises(InvalidInput, match=r"vectors '': expected 5, got \(6,\)"):
        opened().write([upsert([1], config=ShardConfig.unnamed(DIMENSION + 1, Distance.EUCLID))])


@pytest.mark.parametrize("distance", list(Distance))
@pytest.mark.parametrize("place", ["memtable", "segments", "indexed", "everywhere"])
def test_searches_by_each_name_find_the_nearest(
    opened: Callable[..., ShardEngine],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    distance: Distance,
) -> None:
    monkeypatch.setattr("shard.index.columns._FEW_ROWS", 10)
    indexed = place in ("indexed", "everywhere")
    rows = 3_000 if indexed else 300
    config = columns.config_of(distance, flat_threshold=1_000, recall_target=0.9)
    engine = opened(config)
    operations: list[Operation] = [
        upsert(range(rows), 1, config),
        Delete(encode_ids(range(0, rows, 5))),
    ]
    engine.write(operations).result()
    if place != "memtable":
        engine.snapshot()
    if indexed:
        wait_until(lambda: not engine.info().building)
        indexes = engine.info().segments[0].indexes
        assert all(indexes[name].startswith("IVF") for name in config.vectors)
        assert indexes[WORDS] == "postings"
    if place in ("segments", "everywhere"):
        operations += [upsert(range(20, 60), 2, config), Delete(encode_ids([21, 22, 70]))]
        engine.write(operations[2:]).result()
        engine.snapshot()
    if place == "everywhere":
        operations += [upsert(range(50, 90), 3, config), Delete(encode_ids([51, 23, 100]))]
        engine.write(operations[4:]).result()
    model = apply({}, operations, config)
    assert contents(engine) == model
    for seed in range(10, 14):
        check_searches(engine, model, seed, limit=10)
        check_searches(engine, model, seed, limit=2 * rows)

    # Not exact, where there is an index.
    queries = upsert(range(200), 30, config).vectors
    for name in config.vectors:
        asked = queries[name].take(np.flatnonzero(queries[name].has())[:50])
        exact, approximate = (
            engine.search(asked, SearchParams(limit=10, using=name, exact=exact)).points.keys
            for exact in (True, False)
        )
        assert len(exact) == len(approximate) == 10 * asked.rows
        shared = [
            len(np.intersect1d(one, other))
            for one, other in zip(exact.reshape(-1, 10), approximate.reshape(-1, 10), strict=True)
        ]
        # Settings are for single vectors, of which several must be found for a point.
        least = (0.7 if name == MANY else 0.85) if indexed else 1
        assert sum(shared) / len(exact) >= least


def test_what_is_not_there_by_that_name_is_told(opened: Callable[..., ShardEngine]) -> None:
    engine = opened(columns.CONFIG)
    engine.write([upsert(range(3), 1, columns.CONFIG)]).result()
    queries = upsert([0], 2, columns.CONFIG).vectors
    missing = "Not existing vector name error: other"
    with pytest.raises(InvalidInput, match=missing):
        engine.search(queries[WHOLE], SearchParams(limit=1, using="other"))
    with pytest.raises(InvalidInput, match=missing):
        engine.search(queries[WHOLE], SearchParams(limit=1, using=WHOLE, with_vectors=("other",)))
    with pytest.raises(InvalidInput, match=missing):
        engine.retrieve(encode_ids([1]), with_payload=False, with_vectors=["other"])
    with pytest.raises(InvalidInput, match=missing):
        engine.scroll(b"", 9, with_payload=False, with_vectors=["other"])
    with pytest.raises(InvalidInput, match=missing):
        engine.frequencies("other", np.array([1], np.uint32))
    with pytest.raises(InvalidInput, match="Not existing vector name error: whole"):
        engine.frequencies(WHOLE, np.array([1], np.uint32))
    with pytest.raises(InvalidInput, match="vectors 'words': expected sparse ones"):
        engine.search(queries[WHOLE], SearchParams(limit=1, using=WORDS))
    with pytest.raises(InvalidInput, match="vectors 'whole': expected 3, got"):
        engine.search(queries[WORDS], SearchParams(limit=1, using=WHOLE))
    with pytest.raises(InvalidInput, match="Not existing vector name error: other"):
        engine.write([Upsert(encode_ids([1]), {"other": queries[WHOLE]}, [b""])])


def test_everything_comes_back_from_log_and_snapshot(opened: Callable[..., ShardEngine]) -> None:
    engine = opened()
    engine.write([upsert(range(50), 1)]).result()
    engine.snapshot()
    engine.write([Delete(encode_ids(range(0, 50, 7))), upsert([3, 100], 2)]).result()
    before = contents(engine)
    engine.close()
    again = opened()
    assert contents(again) == before
    assert again.info().snapshot_sequence >= 2
    again.snapshot()
    again.close()
    assert contents(opened()) == before


def test_another_shard_server_takes_over_without_the_first_one_knowing(
    opened: Callable[..., ShardEngine],
) -> None:
    first = opened()
    first.write([upsert([1, 2], 1)]).result()
    second = opened(scratch="other")
    with pytest.raises(Fenced):
        first.write([upsert([3], 2)]).result()
    assert isinstance(first.failure, Fenced)
    with pytest.raises(Fenced):
        first.write([upsert([3], 2)])
    second.write([upsert([4], 3)]).result()
    assert set(contents(second)) == {1, 2, 4}


def test_a_fenced_writer_commits_no_snapshot_and_deletes_nothing(
    opened: Callable[..., ShardEngine], store: LocalObjectStore
) -> None:
    first = opened()
    first.write([upsert(range(30), 1)]).result()
    second = opened(scratch="other")
    before = set(store.list(f"{PREFIX}/log"))
    with pytest.raises(Fenced):
        first.snapshot()
    assert set(store.list(f"{PREFIX}/log")) == before
    second.snapshot()
    assert set(contents(second)) == set(range(30))


def test_writers_that_race_for_a_shard_lose_nothing_acknowledged(
    store: LocalObjectStore, tmp_path: Path, builder: Builder
) -> None:
    acknowledged: list[set[int]] = [set() for _ in range(4)]

    def contend(number: int) -> None:
        chance = random.Random(number)
        next_id = number
        for attempt in range(6):
            scratch = tmp_path / f"{number}-{attempt}"
            try:
                engine = ShardEngine.open(store, PREFIX, CONFIG, scratch, builder)
            except Unavailable:
                continue
            try:
                for _ in range(chance.randrange(12)):
                    engine.write([upsert([next_id], number)]).result()
                    acknowledged[number].add(next_id)
                    next_id += 4
                    if chance.random() < 0.3:
                        engine.snapshot()
            except Unavailable:
                next_id += 4  # It may have been written.
            finally:
                engine.close()

    threads = [Thread(target=contend, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    engine = ShardEngine.open(store, PREFIX, CONFIG, tmp_path / "last", builder)
    try:
        written = set().union(*acknowledged)
        assert written
        assert written <= set(contents(engine))
    finally:
        engine.close()


class _Interrupted(FaultyStore):
    """Lets somebody else act just before a conditional put of ``at``, once."""

    def __init__(self, inner: ObjectStore, at: str, act: Callable[[], None]) -> None:
        super().__init__(inner)
        self._at, self._act = at, act

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key == self._at:
            self._at = ""
            self._act()
        return super().put_if_absent(key, data)


def test_a_gap_in_the_log_that_a_fence_hides_loses_nothing(
    opened: Callable[..., ShardEngine], store: LocalObjectStore
) -> None:
    """Two recoveries are held up at their fence; the first one's hides the gap from the second."""
    first = opened()
    first.write([upsert([1], 1)]).result()
    slot = f"{PREFIX}/log/{3:020d}"

    def move_on() -> None:
        for number in (2, 3):
            first.write([upsert([number], number)]).result()
        first.snapshot()
        fence = log_module._encode(3, b"given up already", log_module._FENCE, [])
        assert store.put_if_absent(slot, fence), "the slot is free again"

    second = opened(store=_Interrupted(store, slot, move_on), scratch="other")
    assert set(contents(second)) == {1, 2, 3}
    with pytest.raises(Fenced):
        first.write([upsert([4], 4)]).result()


def test_only_what_the_manifest_names_is_kept(
    opened: Callable[..., ShardEngine],
    store: LocalObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merge_policy, "MAX_SMALL_SEGMENTS", 3)
    engine = opened()
    store.put(f"{PREFIX}/segment/{1:020d}-left/segment.json", b"by a writer that died")
    for round_ in range(9):
        engine.write([upsert(range(round_, round_ + 20), round_)]).result()
        engine.snapshot()
    before = contents(engine)
    engine.close()

    def stored() -> set[str]:
        return {key.split("/")[4] for key in store.list(f"{PREFIX}/segment/")}

    def named() -> set[str]:
        manifest = Manifests(store, f"{PREFIX}/manifest").read()
        return {entry.id for entry in manifest.segments}

    again = opened()  # Its epoch is beyond that of the left segment.
    wait_until(lambda: len(named()) < 3 and stored() == named())
    assert contents(again) == before
    assert len([*store.list(f"{PREFIX}/log/")]) <= 5  # Fences stay.


def test_a_large_segment_gets_an_index_that_reaches_the_target(
    opened: Callable[..., ShardEngine],
) -> None:
    config = ShardConfig.unnamed(16, Distance.COSINE, flat_threshold=2_000)
    engine = opened(config)
    chance = np.random.default_rng(5)
    centers = chance.normal(size=(40, 16)) * 3
    vectors = (centers[chance.integers(40, size=4_000)] + chance.normal(size=(4_000, 16))).astype(
        np.float32
    )
    for start in range(0, 4_000, 500):
        ids = range(start, start + 500)
        engine.write(
            [Upsert(encode_ids(ids), unnamed(vectors[start : start + 500]), [b"{}"] * 500)]
        )
    engine.write([Delete(encode_ids(range(300)))]).result()
    engine.snapshot()
    wait_until(lambda: not engine.info().building)
    info = engine.info()
    assert info.points == info.indexed == 3_700
    (segment,) = info.segments
    assert segment.indexes[UNNAMED].startswith("IVF")
    calibration = segment.calibrations[UNNAMED]
    assert calibration.recall >= calibration.target == 0.95

    noise = chance.normal(size=(100, 16)).astype(np.float32) * np.float32(0.3)
    queries = VectorColumn(vectors[chance.integers(4_000, size=100)] + noise)
    exact = engine.search(queries, SearchParams(limit=10, exact=True)).points.keys
    approximate = engine.search(queries, SearchParams(limit=10)).points.keys
    hits = sum(
        len(set(a.tolist()) & set(b.tolist()))
        for a, b in zip(exact.reshape(100, 10), approximate.reshape(100, 10), strict=True)
    )
    assert hits / 1_000 >= 0.9

    engine.write([Delete(encode_ids(range(300, 350)))]).result()
    engine.reconfigure(
        ShardConfig.unnamed(16, Distance.COSINE, flat_threshold=2_000, recall_target=0.6)
    )

    def targets() -> list[float]:
        return [
            one.target
            for segment in engine.info().segments
            for one in segment.calibrations.values()
        ]

    wait_until(lambda: targets() == [0.6])
    assert engine.count() == 3_650
    engine.snapshot()
    engine.close()
    again = opened(engine._config)
    assert again.count() == again.info().indexed == 3_650


def test_writes_are_seen_while_an_index_is_built(
    opened: Callable[..., ShardEngine], builder: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    release: Future[None] = Future()
    building: Future[None] = Future()
    merge = builder.merge

    def held_up(*arguments: Any, **options: Any) -> dict[str, Calibration]:
        building.set_result(None)
        release.result()
        return merge(*arguments, **options)

    monkeypatch.setattr(builder, "merge", held_up)
    config = ShardConfig.unnamed(DIMENSION, Distance.EUCLID, flat_threshold=1_000)
    engine = opened(config)
    engine.write([upsert(range(1_500), 1)]).result()
    engine.snapshot()
    building.result(30)
    engine.write([upsert(range(100), 2), Delete(encode_ids(range(200, 300)))]).result()
    expected = apply(
        {}, [upsert(range(1_500), 1), upsert(range(100), 2), Delete(encode_ids(range(200, 300)))]
    )
    assert contents(engine) == expected
    release.set_result(None)
    wait_until(lambda: engine.info().indexed > 0)
    assert engine.info().indexed == 1_300
    assert contents(engine) == expected


def test_reads_go_on_and_writes_come_back_when_the_store_does(
    opened: Callable[..., ShardEngine],
    store: LocalObjectStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_module, "_PUT_SECONDS", 0.1)
    faulty = FaultyStore(store)
    engine = opened(store=faulty)
    engine.write([upsert([1], 1)]).result()
    for lose_answers in (False, True):
        faulty.lose_answers = lose_answers
        faulty.reachable = False
        with pytest.raises(Unavailable):
            engine.write([upsert([2], 2)]).result()
        assert 1 in contents(engine)
        with pytest.raises(Unavailable):
            engine.write([upsert([3], 2)]).result()
        faulty.reachable = True

        def writable() -> bool:
            try:
                engine.write([upsert([4], 3)]).result()
            except Unavailable:
                return False
            return True

        wait_until(writable)
        assert 3 not in contents(engine)
        assert (2 in contents(engine)) == lose_answers
    before = contents(engine)
    engine.close()
    assert contents(opened()) == before


def test_a_snapshot_that_fails_is_made_later(
    opened: Callable[..., ShardEngine], store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(engine_module, "BACKOFF_SECONDS", (0.05, 0.1))
    faulty = FaultyStore(store)
    engine = opened(store=faulty)
    sequence = engine.write([upsert(range(2_000), 1)]).result()
    faulty.reachable = False
    with pytest.raises(Unavailable):
        engine.snapshot()
    wait_until(lambda: engine.info().error is not None)
    assert engine.count() == 2_000
    faulty.reachable = True
    wait_until(lambda: engine.info().snapshot_sequence >= sequence)
    wait_until(lambda: engine.info().error is None)
    assert engine.count() == 2_000


@pytest.mark.parametrize("what", ["log", "manifest", "segment"])
def test_a_flipped_bit_is_found_when_the_shard_opens(
    opened: Callable[..., ShardEngine], store: LocalObjectStore, what: str
) -> None:
    engine = opened()
    engine.write([upsert(range(10), 1)]).result()
    engine.snapshot()
    engine.write([upsert(range(10), 1)]).result()
    engine.close()
    key = [one for one in store.list(f"{PREFIX}/{what}/") if not one.endswith(".json")][-1]
    data = bytearray(store.get(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    with pytest.raises(Corrupt):
        opened()


class EngineMachine(RuleBasedStateMachine):
    """Random operations, crashes and recoveries against a dict.

    An engine may be lost at any time: which rules there are must not depend on that, since its
    threads do not run the same way twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.disk = LocalObjectStore(self.folder / "store")
        self.builder = Builder()
        self.model: Model = {}
        self.uncertain: list[Model] = []
        self.engine: ShardEngine | None = None
        self.seed = 0
        self.config = CONFIG

    @initialize(
        flat_threshold=st.sampled_from([0, 40]),
        distance=st.sampled_from(list(Distance)),
        every_kind=st.booleans(),
    )
    def configure(self, flat_threshold: int, distance: Distance, every_kind: bool) -> None:
        if every_kind:
            self.config = columns.config_of(distance, flat_threshold=flat_threshold)
        else:
            self.config = ShardConfig.unnamed(DIMENSION, distance, flat_threshold=flat_threshold)

    @rule(crash=st.none() | st.tuples(st.integers(0, 30), st.booleans()))
    def open(self, crash: tuple[int, bool] | None) -> None:
        if self.engine is not None:
            self._lost()
        self.store = FaultyStore(self.disk)
        if crash is not None:
            self.store.crash_after(crash[0], takes_place=crash[1])
        scratch = self.folder / "scratch"
        try:
            self.engine = ShardEngine.open(self.store, PREFIX, self.config, scratch, self.builder)
        except Crash:
            return
        found = contents(self.engine)
        possible = [self.model, *self.uncertain]
        assert found in possible, (found, possible)
        self.model, self.uncertain = found, []

    @rule(ids=st.sets(st.integers(0, 60), max_size=30), gone=st.sets(st.integers(0, 60)))
    def write(self, ids: set[int], gone: set[int]) -> None:
        engine = self._engine()
        self.seed += 1
        written = upsert(sorted(ids), self.seed, self.config)
        # What is left out no point has.
        left_out = set(self.config.names[1 + self.seed % 4 :])
        vectors = {name: one for name, one in written.vectors.items() if name not in left_out}
        written = msgspec.structs.replace(written, vectors=vectors)
        gone_keys = Delete(encode_ids(sorted(gone - ids)))
        after = apply(self.model, [written, gone_keys], self.config)
        try:
            engine.write([written, gone_keys]).result()
        except ShoalError:
            self._lost(after)
        else:
            self.model = after

    @rule()
    def snapshot(self) -> None:
        engine = self._engine()
        try:
            engine.snapshot()
        except (ShoalError, Crash):
            self._lost()

    @rule(operations=st.integers(0, 20), takes_place=st.booleans())
    def crash_soon(self, operations: int, takes_place: bool) -> None:
        self._engine()
        self.store.crash_after(operations, takes_place=takes_place)

    @rule()
    def crash(self) -> None:
        self._engine()
        self.store.crash()
        self._lost()

    @rule()
    def wait_for_builds(self) -> None:
        engine = self._engine()
        wait_until(lambda: engine.failure is not None or not engine._is_building())

    @invariant()
    def same(self) -> None:
        if self.engine is None:
            return
        assert contents(self.engine) == self.model
        assert self.engine.count() == len(self.model)
        check_searches(self.engine, self.model, self.seed)

    def _engine(self) -> ShardEngine:
        if self.engine is None:
            self.open(None)
        assert self.engine is not None
        return self.engine

    def _lost(self, *possible: Model) -> None:
        assert self.engine is not None
        self.engine.close()
        self.engine = None
        self.uncertain.extend(possible)

    def teardown(self) -> None:
        if self.engine is not None:
            self.engine.close()
        self.builder.close()
        shutil.rmtree(self.folder)


@pytest.mark.slow
def test_no_crash_loses_a_write_or_brings_a_point_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setattr(engine_module, "MEMTABLE_ROWS", 40)
    monkeypatch.setattr(engine_module, "BACKOFF_SECONDS", (0.01, 0.02))
    monkeypatch.setattr(engine_module, "IDLE_SECONDS", 0.02)
    monkeypatch.setattr(engine_module, "SETTLED_SECONDS", 0.05)
    monkeypatch.setattr(merge_policy, "MAX_SMALL_SEGMENTS", 3)
    monkeypatch.setattr(merge_policy, "_FEW_ROWS", 4)
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
