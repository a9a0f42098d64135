"""The write-ahead log: what it gives back, damage, lost answers, and writers that fight for it."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import shard.log
from shard.errors import Corrupt, Fenced, NotFound, ShoalError, Unavailable
from shard.log import Record, WriteAheadLog
from shard.model import UNNAMED, Delete, Operation, PointId, Upsert, decode_ids, encode_ids, unnamed
from shard.objects import ObjectStore, conditional
from shard.objects.local import LocalObjectStore
from tests import columns
from tests.faulty_store import FaultyStore

T = TypeVar("T")

PREFIX = "collections/c/shard-0000/log"


def key(sequence: int) -> str:
    return f"{PREFIX}/{sequence:020d}"


def owned(store: ObjectStore, after: int = 0) -> WriteAheadLog:
    log = WriteAheadLog(store, PREFIX)
    for _ in log.take_over(after):
        pass
    return log


def delete(*ids: int) -> list[Operation]:
    return [Delete(encode_ids(ids))]


def ids_of(records: Iterable[Record]) -> list[list[PointId]]:
    return [decode_ids(record.operations[0].keys) for record in records if record.operations]


def replayed(store: ObjectStore, after: int = 0) -> list[list[PointId]]:
    return ids_of(WriteAheadLog(store, PREFIX).take_over(after))


def test_round_trip(object_store: ObjectStore) -> None:
    vectors = np.random.default_rng(1).standard_normal((3, 5)).astype(np.float32)
    upsert = Upsert(encode_ids([7, 2**64 - 1, 0]), unnamed(vectors), [b"", b'{"a":1}', b"{}"])
    empty = Upsert(encode_ids([]), unnamed(np.empty((0, 5), np.float32)), [])
    log = WriteAheadLog(object_store, PREFIX)
    assert list(log.take_over(0)) == []
    assert log.append([upsert, Delete(encode_ids([7])), empty]) == 2
    assert log.append([]) == 3
    assert log.sequence == 3

    first, second, third = WriteAheadLog(object_store, PREFIX).take_over(0)
    assert (first.sequence, first.operations) == (1, [])
    assert (third.sequence, third.operations) == (3, [])
    assert second.sequence == 2
    read, deleted, nothing = second.operations
    assert isinstance(read, Upsert)
    assert isinstance(nothing, Upsert)
    assert isinstance(deleted, Delete)
    assert read.keys.dtype == upsert.keys.dtype
    values = read.vectors[UNNAMED].values
    assert values.dtype == np.float32
    assert values.flags.aligned
    assert values.flags.c_contiguous
    np.testing.assert_array_equal(read.keys, upsert.keys)
    np.testing.assert_array_equal(values, vectors)
    assert list(read.payloads) == upsert.payloads
    assert decode_ids(deleted.keys) == [7]
    assert nothing.vectors[UNNAMED].values.shape == (0, 5)


def test_vectors_of_all_kinds_are_replayed(local_store: LocalObjectStore) -> None:
    log = owned(local_store)
    written = [columns.drawn(np.random.default_rng(count), count) for count in (0, 1, 7)]
    for vectors in written:
        count = vectors[columns.WHOLE].rows
        log.append([Upsert(encode_ids(range(count)), vectors, [b""] * count)])
    read = [one for one in WriteAheadLog(local_store, PREFIX).take_over(0) if one.operations]
    for vectors, record in zip(written, read, strict=True):
        (operation,) = record.operations
        assert isinstance(operation, Upsert)
        assert columns.rows_of(operation.vectors, columns.CONFIG) == columns.rows_of(
            vectors, columns.CONFIG
        )


def test_views_and_other_layouts(local_store: LocalObjectStore) -> None:
    """What the engine hands over may be slices, strided or in Fortran order."""
    vectors = np.arange(24, dtype=np.float32).reshape(4, 6)
    keys = encode_ids([1, 2, 3, 4])
    log = owned(local_store)
    log.append([Upsert(keys[::2], unnamed(vectors[::2, 1:4]), [b"", b""])])
    log.append([Upsert(keys, unnamed(np.asfortranarray(vectors)), [b""] * 4)])
    *_, one, two = WriteAheadLog(local_store, PREFIX).take_over(0)
    assert isinstance(one.operations[0], Upsert)
    assert isinstance(two.operations[0], Upsert)
    assert decode_ids(one.operations[0].keys) == [1, 3]
    np.testing.assert_array_equal(one.operations[0].vectors[UNNAMED].values, vectors[::2, 1:4])
    np.testing.assert_array_equal(two.operations[0].vectors[UNNAMED].values, vectors)


def test_replay_of_many_is_in_order(object_store: ObjectStore) -> None:
    log = owned(object_store)
    for turn in range(60):
        log.append(delete(turn))
    assert replayed(object_store) == [[turn] for turn in range(60)]
    assert replayed(object_store, after=50) == [[turn] for turn in range(49, 60)]


def test_append_needs_a_take_over(local_store: LocalObjectStore) -> None:
    log = WriteAheadLog(local_store, PREFIX)
    with pytest.raises(Unavailable):
        log.append(delete(1))
    records = log.take_over(0)
    owned(local_store).append(delete(5))
    next(records)
    with pytest.raises(Unavailable):
        log.append(delete(1))
    assert list(local_store.list(PREFIX)) == [key(1), key(2)]


def test_the_next_writer_fences_the_last(object_store: ObjectStore) -> None:
    first = owned(object_store)
    first.append(delete(1))
    second = owned(object_store)
    for _ in range(3):
        with pytest.raises(Fenced):
            first.append(delete(2))
    second.append(delete(3))
    with pytest.raises(Fenced):
        first.append(delete(2))
    assert replayed(object_store) == [[1], [3]]
    with pytest.raises(Fenced):
        second.append(delete(4))


def test_a_fenced_writer_may_take_over_again(local_store: LocalObjectStore) -> None:
    first = owned(local_store)
    second = owned(local_store)
    with pytest.raises(Fenced):
        first.append(delete(1))
    list(first.take_over(0))
    first.append(delete(2))
    with pytest.raises(Fenced):
        second.append(delete(3))
    assert replayed(local_store) == [[2]]


@pytest.mark.parametrize("faults", [["before"], ["after"], ["before", "after", "before"]])
def test_lost_answers_are_settled(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    monkeypatch.setattr(conditional, "_FIRST_PAUSE", 0)
    store = FaultyStore(local_store)
    log = WriteAheadLog(store, PREFIX)
    store.faults = list(faults)
    assert list(log.take_over(0)) == []
    store.faults = list(faults)
    assert log.append(delete(1)) == 2
    assert log.append(delete(2)) == 3
    assert replayed(local_store) == [[1], [2]]


@pytest.mark.parametrize("fault", ["before", "after"])
def test_outcome_that_stays_unknown_stops_the_writer(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    store = FaultyStore(local_store)
    log = owned(store)
    monkeypatch.setattr(shard.log, "_PUT_SECONDS", -1)
    store.faults = [fault]
    for _ in range(2):
        with pytest.raises(Unavailable) as raised:
            log.append(delete(1))
        assert not isinstance(raised.value, Fenced)
    assert store.calls.count("put_if_absent") == 2
    assert replayed(local_store) == ([[1]] if fault == "after" else [])


def test_lost_answer_and_then_fenced(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The retry meets the other's fence, and does not take it for its own record."""
    monkeypatch.setattr(conditional, "_FIRST_PAUSE", 0)
    store = FaultyStore(local_store)
    log = owned(store)
    owned(local_store)
    store.faults = ["before"]
    with pytest.raises(Fenced):
        log.append(delete(1))


def test_damage_is_found(local_store: LocalObjectStore) -> None:
    log = owned(local_store)
    log.append([Upsert(encode_ids([1]), unnamed(np.ones((1, 3), np.float32)), [b"{}"])])
    log.append(delete(2))
    good = local_store.get(key(2))
    bad_ones = [
        bytes(good[:at]) + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(len(good))
    ]
    bad_ones += [b"", good[:10], good[:-1], good + b"\0", local_store.get(key(3))]
    for bad in bad_ones:
        local_store.put(key(2), bad)
        with pytest.raises(Corrupt, match=key(2)):
            replayed(local_store)
    local_store.put(key(2), good)
    assert replayed(local_store) == [[1], [2]]


@pytest.mark.parametrize("lost", [1, 2, 4])
def test_gaps_are_found(local_store: LocalObjectStore, lost: int) -> None:
    log = owned(local_store)
    for turn in range(4):
        log.append(delete(turn))
    local_store.delete(key(lost))
    with pytest.raises(Corrupt, match=rf"{key(lost)}: missing"):
        replayed(local_store)


def test_foreign_objects_are_passed_over(local_store: LocalObjectStore) -> None:
    log = owned(local_store)
    local_store.put(f"{PREFIX}/notes.txt", b"hello")
    log.append(delete(1))
    log.truncate(2)
    assert replayed(local_store, after=1) == [[1]]
    assert local_store.get(f"{PREFIX}/notes.txt") == b"hello"


def test_truncate_keeps_fences_and_the_newest_covered(object_store: ObjectStore) -> None:
    def left() -> list[int]:
        return [int(name[-20:]) for name in object_store.list(f"{PREFIX}/")]

    first = owned(object_store)  # 1
    for turn in range(3):  # 2, 3, 4
        first.append(delete(turn))
    second = owned(object_store)  # 5
    for turn in range(3):  # 6, 7, 8
        second.append(delete(turn))
    second.truncate(3)
    assert left() == [1, 3, 4, 5, 6, 7, 8]
    second.truncate(7)
    assert left() == [1, 5, 7, 8]
    second.truncate(7)
    assert left() == [1, 5, 7, 8]
    third = owned(object_store, after=7)  # 9
    third.append(delete(9))  # 10
    third.truncate(8)
    assert left() == [1, 5, 8, 9, 10]
    third.truncate(10)
    assert left() == [1, 5, 9, 10]
    for zombie in (first, second):
        with pytest.raises(Fenced):
            zombie.append(delete(99))
    for outside in (-1, 11):
        with pytest.raises(ValueError, match="covered"):
            third.truncate(outside)


def test_truncate_of_what_others_left(local_store: LocalObjectStore) -> None:
    """A writer that crashed before it truncated; the next one tells fences apart by reading."""
    for _ in range(3):
        log = owned(local_store)
        for turn in range(3):
            log.append(delete(turn))
    log = owned(local_store, after=12)
    log.truncate(13)
    assert [int(name[-20:]) for name in local_store.list(PREFIX)] == [1, 5, 9, 13]


def test_truncate_costs_no_more_than_what_it_deletes(local_store: LocalObjectStore) -> None:
    store = FaultyStore(local_store)
    log = owned(store)
    for turn in range(5):
        log.append(delete(turn))
    log.truncate(3)
    store.calls.clear()
    log.truncate(6)
    assert sorted(store.calls) == ["delete"] * 3 + ["list"]


def test_slow_recovery_does_not_end_in_a_hole(local_store: LocalObjectStore) -> None:
    """It puts its fence where a batch was, long ago: behind the back of the living writer."""
    first = owned(local_store)
    first.append(delete(1))
    slow = WriteAheadLog(local_store, PREFIX)
    records = slow.take_over(0)
    assert next(records).sequence == 1
    assert next(records).sequence == 2
    for turn in range(5):
        first.append(delete(turn))
    first.truncate(6)
    assert local_store.put_if_absent(key(3), b"x"), "the slot is free"
    local_store.delete(key(3))
    with pytest.raises((Fenced, Corrupt)):
        list(records)
    with pytest.raises(Unavailable):
        slow.append(delete(6))
    assert first.append(delete(7)) == 8


class _Interloper(FaultyStore):
    """Lets somebody else act just before the put into one slot."""

    def __init__(self, store: ObjectStore, at: str, act: Callable[[], None]) -> None:
        super().__init__(store)
        self._at, self._act = at, act

    def put_if_absent(self, key: str, data: bytes) -> bool:
        if key == self._at:
            self._at = ""
            self._act()
        return super().put_if_absent(key, data)


def test_recovery_held_up_before_its_fence(local_store: LocalObjectStore) -> None:
    """Its list was complete; then the log moved on and was truncated; then it puts its fence."""
    first = owned(local_store)
    first.append(delete(1))

    def move_on() -> None:
        for turn in range(5):
            first.append(delete(turn))
        first.truncate(6)

    slow = WriteAheadLog(_Interloper(local_store, key(3), move_on), PREFIX)
    with pytest.raises(Fenced):
        list(slow.take_over(0))
    with pytest.raises(Unavailable):
        slow.append(delete(6))
    assert first.append(delete(7)) == 8


def test_recovery_that_another_overtakes(local_store: LocalObjectStore) -> None:
    first = owned(local_store)
    others: list[WriteAheadLog] = []

    def take_over_and_write() -> None:
        others.append(owned(local_store))
        others[0].append(delete(1))

    slow = WriteAheadLog(_Interloper(local_store, key(2), take_over_and_write), PREFIX)
    assert ids_of(slow.take_over(0)) == [[1]], "it replays what came in between, and is the last"
    slow.append(delete(2))
    for fenced in (first, others[0]):
        with pytest.raises(Fenced):
            fenced.append(delete(3))


def test_writers_in_threads_never_both_acknowledge(
    object_store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and then writes; the two are not one step")
    turns = 3 if "seaweedfs" in request.node.name else 8
    acknowledged: dict[int, int] = {}
    lock = threading.Lock()
    start = threading.Barrier(3)

    def fight(writer: int) -> None:
        log = WriteAheadLog(object_store, PREFIX)
        start.wait()
        for turn in range(turns):
            try:
                for _ in log.take_over(0):
                    pass
                for number in range(4):
                    name = writer * 1000 + turn * 10 + number
                    sequence = log.append(delete(name))
                    with lock:
                        assert sequence not in acknowledged
                        acknowledged[sequence] = name
            except Fenced:
                continue

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(fight, range(3)))
    found = {
        record.sequence: ids_of([record])[0][0]
        for record in WriteAheadLog(object_store, PREFIX).take_over(0)
        if record.operations
    }
    assert acknowledged
    assert found == acknowledged


# --- All interleavings: writers that crash, stall, lose answers, snapshot and truncate


class _Turns:
    """Runs threads one store operation at a time, in an order that a seed decides."""

    def __init__(self, random_: random.Random) -> None:
        self.random = random_
        self._change = threading.Condition()
        self._waiting: set[int] = set()
        self._running: set[int] = set()
        self._granted: int | None = None
        self._late: list[Callable[[], object]] = []
        self._favourite = -1
        self._persistence = random_.choice([0.0, 0.8, 0.95])
        self._own = threading.local()

    def wait(self) -> None:
        """Called by a thread before each operation: until it is its turn."""
        with self._change:
            me = self._own.number
            self._running.discard(me)
            self._waiting.add(me)
            self._change.notify_all()
            self._change.wait_for(lambda: self._granted == me)
            self._granted = None

    def later(self, operation: Callable[[], object]) -> None:
        """An operation still on its way, that nobody waits for."""
        self._late.append(operation)

    def _choose(self, ready: list[int]) -> int:
        """Mostly the same thread again, so that the others stall for long."""
        if self._favourite in ready and self.random.random() < self._persistence:
            return ready.index(self._favourite)
        choice = self.random.randrange(len(ready) + len(self._late))
        if choice < len(ready):
            self._favourite = ready[choice]
        return choice

    def run(self, bodies: list[Callable[[], None]]) -> None:
        errors: list[BaseException] = []

        def thread(number: int, body: Callable[[], None]) -> None:
            self._own.number = number
            self.wait()
            try:
                body()
            except BaseException as error:
                errors.append(error)
            with self._change:
                self._running.discard(number)
                self._change.notify_all()

        self._running = set(range(len(bodies)))
        threads = [
            threading.Thread(target=thread, args=pair, daemon=True) for pair in enumerate(bodies)
        ]
        for one in threads:
            one.start()
        while True:
            with self._change:
                assert self._change.wait_for(lambda: not self._running, 20)
                ready = sorted(self._waiting)
                if not ready and not self._late:
                    break
                choice = self._choose(ready)
                if choice < len(ready):
                    number = ready[choice]
                    self._waiting.discard(number)
                    self._running.add(number)
                    self._granted = number
                    self._change.notify_all()
                    continue
                late = self._late.pop(choice - len(ready))
            late()
        for one in threads:
            one.join(20)
        if errors:
            raise errors[0]


class _TurnedStore:
    """A store in memory where every operation waits for its turn, and puts lose their answers."""

    def __init__(self, turns: _Turns, faults: float) -> None:
        self.objects: dict[str, bytes] = {}
        self._turns = turns
        self.faults = faults

    def get(self, key: str) -> bytes:
        self._turns.wait()
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(key) from None

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self.get(key)[start : start + length]

    def put(self, key: str, data: bytes) -> None:
        raise NotImplementedError

    def put_file(self, key: str, path: Path) -> None:
        raise NotImplementedError

    def get_file(self, key: str, path: Path) -> None:
        raise NotImplementedError

    def put_if_absent(self, key: str, data: bytes) -> bool:
        self._turns.wait()
        if self._turns.random.random() < self.faults:
            outcome = self._turns.random.choice(["never", "now", "late"])
            if outcome == "now":
                self._create(key, data)
            elif outcome == "late":
                self._turns.later(lambda: self._create(key, data))
            raise Unavailable(f"the answer is lost: {outcome}")
        return self._create(key, data)

    def _create(self, key: str, data: bytes) -> bool:
        if key in self.objects:
            return False
        self.objects[key] = data
        return True

    def delete(self, key: str) -> None:
        self._turns.wait()
        self.objects.pop(key, None)

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self._turns.wait()
        return iter(
            sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        )


class _InlineExecutor:
    """A thread pool without threads, so that an operation belongs to the thread that asked."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> _InlineExecutor:
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, function: Callable[[Any], T], items: Iterable[Any]) -> list[T]:
        return [function(item) for item in items]

    def submit(self, function: Callable[..., T], *arguments: Any) -> _Lazy:
        return _Lazy(function, arguments)


class _Lazy:
    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._function, self._arguments = function, arguments

    def result(self) -> Any:
        return self._function(*self._arguments)

    def cancel(self) -> None: ...


class _Engine:
    """What the log's user does, in small: a state, snapshots of it, and recovery from both."""

    def __init__(self, store: _TurnedStore) -> None:
        self._store = store
        self.log = WriteAheadLog(store, PREFIX)
        self.state: list[tuple[int, PointId]] = []
        """(sequence, id) of everything applied."""

    def recover(self) -> None:
        while True:
            covered, self.state = self.snapshot()
            try:
                for record in self.log.take_over(covered):
                    self.state += [(record.sequence, each[0]) for each in ids_of([record])]
                if self.snapshot()[0] == covered:
                    return
            except Corrupt:
                assert self.snapshot()[0] > covered, "damage, and nobody truncated"

    def write(self, name: int) -> None:
        self.state.append((self.log.append(delete(name)), name))

    def snapshot(self) -> tuple[int, list[tuple[int, PointId]]]:
        names = list(self._store.list("snapshot/"))
        if not names:
            return 0, []
        state = msgspec.json.decode(self._store.get(names[-1]), type=list[tuple[int, int]])
        return int(names[-1][-20:]), list(state)

    def commit_snapshot(self) -> None:
        covered = self.log.sequence
        self._store.put_if_absent(f"snapshot/{covered:020d}", msgspec.json.encode(self.state))
        self.log.truncate(covered)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**63),
    writers=st.integers(2, 4),
    faults=st.sampled_from([0.0, 0.1, 0.4]),
    patience=st.sampled_from([-1.0, 60.0]),
)
def test_acknowledged_writes_survive_any_interleaving(
    seed: int, writers: int, faults: float, patience: float
) -> None:
    turns = _Turns(random.Random(seed))
    store = _TurnedStore(turns, faults)
    acknowledged: dict[int, int] = {}

    def write(writer: int) -> None:
        for life in range(3):
            engine = _Engine(store)
            try:
                engine.recover()
                for number in range(turns.random.randrange(1, 7)):
                    name = writer * 100 + life * 10 + number
                    engine.write(name)
                    assert engine.state[-1][0] not in acknowledged
                    acknowledged[engine.state[-1][0]] = name
                    if turns.random.random() < 0.4:
                        engine.commit_snapshot()
            except Unavailable:
                continue

    final: list[tuple[int, PointId]] = []

    def look() -> None:
        store.faults = 0
        engine = _Engine(store)
        engine.recover()
        final.extend(engine.state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard.log, "ThreadPoolExecutor", _InlineExecutor)
        patch.setattr(shard.log, "_PUT_SECONDS", patience)
        patch.setattr(conditional, "_FIRST_PAUSE", 0)
        turns.run([partial(write, writer) for writer in range(writers)])
        turns.run([look])
    sequences = [sequence for sequence, _ in final]
    assert sequences == sorted(set(sequences))
    assert set(acknowledged.items()) <= set(final)
    names = [name for _, name in final]
    assert len(names) == len(set(names))


def test_unreadable_prefix_is_reported(local_store: LocalObjectStore, tmp_path: Path) -> None:
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    with pytest.raises(ShoalError):
        replayed(local_store)
