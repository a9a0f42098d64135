"""Documents that many writers change, over every store and over stores that fail."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from shard.errors import Corrupt, Unavailable
from shard.objects import ObjectStore, conditional
from shard.objects.document import KEPT, VersionedDocument
from shard.objects.local import LocalObjectStore
from tests.faulty_store import FaultyStore


def add(line: str) -> Any:
    return lambda data: data + line.encode() + b"\n"


def test_read_and_update(object_store: ObjectStore) -> None:
    document, other = (VersionedDocument(object_store, "cluster/x") for _ in range(2))
    assert document.read() == (0, b"")
    assert document.update(add("one")) == b"one\n"
    assert other.read() == (1, b"one\n")
    assert other.update(add("two")) == b"one\ntwo\n"
    assert document.read() == (2, b"one\ntwo\n")
    assert list(object_store.list("cluster/x/")) == [f"cluster/x/{n:020d}" for n in (1, 2)]


def test_commit_of_one_version(object_store: ObjectStore) -> None:
    document, other = (VersionedDocument(object_store, "m") for _ in range(2))
    assert document.commit(b"a", 1)
    assert not other.commit(b"a", 1)
    assert other.commit(b"b", 2)
    assert document.read() == (2, b"b")


FIRST_USES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import msgspec

from shard.objects.document import decode_stored

sys.setswitchinterval(1e-6)
barrier = Barrier(8)


def decode(kind):
    barrier.wait()
    return decode_stored(b'{"items": {"a": {"x": 1, "y": 2.5}}, "all": []}', kind, "name").all


with ThreadPoolExecutor(8) as pool:
    for number in range(300):
        inner = msgspec.defstruct("Inner", [("x", int), ("y", float | None, None)])
        kind = msgspec.defstruct("Outer", [("items", dict[str, inner]), ("all", list[inner])])
        assert list(pool.map(decode, [kind] * 8)) == [[]] * 8
"""


def test_types_that_threads_use_for_the_first_time_at_once() -> None:
    """What goes wrong ends the process."""
    done = subprocess.run([sys.executable, "-c", FIRST_USES], check=False, timeout=120)
    assert done.returncode == 0


def test_nothing_is_written_for_no_change(local_store: LocalObjectStore) -> None:
    document = VersionedDocument(local_store, "x")
    document.update(add("one"))
    assert document.update(lambda data: data) == b"one\n"
    assert document.read()[0] == 1


def test_what_change_raises_goes_to_the_caller(local_store: LocalObjectStore) -> None:
    def refuse(data: bytes) -> bytes:
        raise ZeroDivisionError

    document = VersionedDocument(local_store, "x")
    with pytest.raises(ZeroDivisionError):
        document.update(refuse)
    assert document.read() == (0, b"")


def test_contention(object_store: ObjectStore, request: pytest.FixtureRequest) -> None:
    if "moto" in request.node.name:
        pytest.skip("moto checks the condition and then writes; the two are not one step")
    writers, changes = (2, 3) if "seaweedfs" in request.node.name else (4, 10)

    def write(writer: int) -> None:
        document = VersionedDocument(object_store, "x")
        for turn in range(changes):
            document.update(add(f"{writer}-{turn}"))

    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    version, data = VersionedDocument(object_store, "x").read()
    lines = data.decode().split()
    assert version == len(lines) == writers * changes
    for writer in range(writers):
        mine = [line for line in lines if line.startswith(f"{writer}-")]
        assert mine == [f"{writer}-{turn}" for turn in range(changes)]


def test_old_versions_are_deleted(local_store: LocalObjectStore) -> None:
    document = VersionedDocument(local_store, "x")
    for turn in range(KEPT + 10):
        document.update(add(str(turn)))
    last = KEPT + 10
    versions = [int(key[-20:]) for key in local_store.list("x/")]
    assert versions == list(range(last - KEPT, last + 1))
    assert VersionedDocument(local_store, "x").read() == document.read()


def test_read_while_versions_are_deleted(local_store: LocalObjectStore) -> None:
    done = threading.Event()

    def churn() -> None:
        document = VersionedDocument(local_store, "x")
        for turn in range(3 * KEPT):
            assert document.commit(b"%d" % turn, turn + 1)
        done.set()

    writer = threading.Thread(target=churn)
    writer.start()
    seen = 0
    while not done.is_set():
        version, data = VersionedDocument(local_store, "x").read()
        assert version >= seen
        assert data == (b"%d" % (version - 1) if version else b"")
        seen = version
    writer.join()


def test_unchanged_document_costs_one_list(local_store: LocalObjectStore) -> None:
    store = FaultyStore(local_store)
    document = VersionedDocument(store, "x")
    document.update(add("one"))
    store.calls.clear()
    assert document.read() == (1, b"one\n")
    assert store.calls == ["list"]


@pytest.mark.parametrize(
    "faults", [["before"], ["after"], ["before", "after"], ["after", "before", "before"]]
)
def test_unknown_outcomes_are_settled(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    monkeypatch.setattr(conditional, "_FIRST_PAUSE", 0)
    store = FaultyStore(local_store)
    document = VersionedDocument(store, "x")
    document.update(add("one"))
    store.faults = faults
    assert document.update(add("two")) == b"one\ntwo\n"
    assert VersionedDocument(local_store, "x").read() == (2, b"one\ntwo\n")


def test_unknown_outcome_of_a_lost_race_is_a_loss(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditional, "_FIRST_PAUSE", 0)
    store = FaultyStore(local_store)
    document = VersionedDocument(store, "x")
    document.read()
    # The very same content, by another writer.
    assert VersionedDocument(local_store, "x").commit(b"same", 1)
    store.faults = ["before"]
    assert document.commit(b"same", 1) is False


def test_outcome_that_stays_unknown(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard.objects.document._PUT_SECONDS", -1)
    store = FaultyStore(local_store)
    store.faults = ["after"]
    with pytest.raises(Unavailable):
        VersionedDocument(store, "x").update(add("one"))
    assert VersionedDocument(local_store, "x").read() == (1, b"one\n")


def test_writer_held_up_for_ages_does_not_believe_it_won(local_store: LocalObjectStore) -> None:
    """Its number was used and deleted meanwhile, so that the put itself succeeds."""
    late, others = (VersionedDocument(local_store, "x") for _ in range(2))
    others.update(add("0"))
    version, data = late.read()
    for turn in range(KEPT + 5):
        others.update(add(str(turn)))
    before = others.read()
    with pytest.raises(Unavailable, match="held up"):
        late.commit(data + b"late\n", version + 1)
    assert others.read() == before
    assert late.read() == before
    assert len(list(local_store.list("x/"))) == KEPT + 1


def test_damage_is_found(local_store: LocalObjectStore) -> None:
    VersionedDocument(local_store, "x").update(add("precious"))
    key = f"x/{1:020d}"
    good = local_store.get(key)
    found = 0
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        local_store.put(key, bytes(bad))
        try:
            # A bit of the writer's random name does no harm.
            assert VersionedDocument(local_store, "x").read() == (1, b"precious\n")
        except Corrupt as error:
            assert key in str(error)
            found += 1
    assert found > len(good) - 40
    for bad_file in (b"", b"{}", good[:-1], good + b"x", b'{"format":"other"}\n'):
        local_store.put(key, bad_file)
        with pytest.raises(Corrupt, match=key):
            VersionedDocument(local_store, "x").read()
    local_store.put(key, good)
    assert VersionedDocument(local_store, "x").read() == (1, b"precious\n")


def test_foreign_objects_are_passed_over(local_store: LocalObjectStore) -> None:
    local_store.put("x/README", b"what is this")
    local_store.put("x/99999", b"?")
    document = VersionedDocument(local_store, "x")
    assert document.read() == (0, b"")
    document.update(add("one"))
    assert VersionedDocument(local_store, "x").read() == (1, b"one\n")
