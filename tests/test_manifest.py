"""Manifests: one writer at a time, its own commits known again, and what they say of dead rows."""

from __future__ import annotations

import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.errors import Corrupt, Fenced, Unavailable
from shard.manifest import Manifest, Manifests, SegmentEntry, pack_dead, unpack_alive
from shard.model import Calibration
from shard.objects import ObjectStore, conditional
from shard.objects.document import KEPT, VersionedDocument
from shard.objects.local import LocalObjectStore
from tests.faulty_store import FaultyStore

PREFIX = "collections/c/shard-0000/manifest"


def claimed(store: ObjectStore, epoch: int) -> Manifests:
    manifests = Manifests(store, PREFIX)
    assert manifests.claim(msgspec.structs.replace(manifests.read(), epoch=epoch))
    return manifests


def newest(store: ObjectStore) -> Manifest:
    return Manifests(store, PREFIX).read()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try a commit: what becomes of it stays unknown."""
    monkeypatch.setattr("shard.objects.document._PUT_SECONDS", -1)


def test_what_is_committed_is_read(object_store: ObjectStore) -> None:
    assert newest(object_store) == Manifest(epoch=0, sequence=0, segments=[])
    manifests = claimed(object_store, 3)
    assert newest(object_store) == Manifest(epoch=3)
    entries = [
        SegmentEntry(id="a", rows=9, dead=pack_dead(np.arange(9) % 3 > 0)),
        SegmentEntry(
            id="b",
            rows=1 << 40,
            calibrations={
                "text": Calibration(
                    target=0.95, nprobe=8, oversampling=2.5, recall=0.97, k=10, queries=99
                )
            },
            unreachable=0.99,
        ),
    ]
    manifest = Manifest(epoch=3, sequence=1 << 62, segments=entries)
    manifests.commit(manifest)
    assert newest(object_store) == manifest
    assert newest(object_store).segments[1].calibrations == entries[1].calibrations


def test_a_claim_loses_to_any_commit_since_the_read(local_store: LocalObjectStore) -> None:
    holder = claimed(local_store, 1)
    late = Manifests(local_store, PREFIX)
    read = late.read()
    holder.commit(Manifest(epoch=1, sequence=5))
    assert not late.claim(msgspec.structs.replace(read, epoch=2))
    assert newest(local_store) == Manifest(epoch=1, sequence=5)
    assert late.changed()

    read = late.read()
    assert not late.changed()
    assert late.claim(msgspec.structs.replace(read, epoch=2))
    assert not late.changed()
    assert newest(local_store) == Manifest(epoch=2, sequence=5)


def test_of_two_claims_one_wins(local_store: LocalObjectStore) -> None:
    rivals = [Manifests(local_store, PREFIX) for _ in range(2)]
    for rival in rivals:
        rival.read()
    assert rivals[1].claim(Manifest(epoch=2))
    assert not rivals[0].claim(Manifest(epoch=1))
    assert newest(local_store).epoch == 2


def test_whoever_was_taken_over_commits_nothing_more(local_store: LocalObjectStore) -> None:
    holder = claimed(local_store, 1)
    holder.commit(Manifest(epoch=1, sequence=5))
    successor = claimed(local_store, 9)
    holder_before = newest(local_store)
    # Again and again: several threads of a writer commit, and each finds out for itself.
    for _ in range(3):
        with pytest.raises(Fenced, match="9"):
            holder.commit(Manifest(epoch=1, sequence=6))
        assert newest(local_store) == holder_before
        with pytest.raises(Fenced):
            holder.check_epoch(1)
    successor.commit(Manifest(epoch=9, sequence=7))
    with pytest.raises(Fenced):
        holder.commit(Manifest(epoch=1, sequence=8))
    assert newest(local_store) == Manifest(epoch=9, sequence=7)


def test_whoever_only_checked_commits_nothing_more_either(local_store: LocalObjectStore) -> None:
    holder = claimed(local_store, 1)
    holder.check_epoch(1)
    claimed(local_store, 2)
    with pytest.raises(Fenced):
        holder.check_epoch(1)
    with pytest.raises(Fenced):
        holder.commit(Manifest(epoch=1, sequence=6))
    assert newest(local_store) == Manifest(epoch=2)


def test_whoever_was_taken_over_long_ago_commits_nothing(local_store: LocalObjectStore) -> None:
    """The version it would commit has come and gone, and is free again."""
    holder = claimed(local_store, 1)
    successor = claimed(local_store, 2)
    for sequence in range(KEPT + 5):
        successor.commit(Manifest(epoch=2, sequence=sequence))
    with pytest.raises(Unavailable):
        holder.commit(Manifest(epoch=1))
    assert newest(local_store) == Manifest(epoch=2, sequence=KEPT + 4)


@pytest.mark.parametrize("lost", [1, 3])
@pytest.mark.usefixtures("impatient")
def test_own_commits_whose_answer_was_lost(local_store: LocalObjectStore, lost: int) -> None:
    store = FaultyStore(local_store)
    manifests = claimed(store, 4)
    for sequence in range(lost):
        store.faults = ["after"]
        with pytest.raises(Unavailable):
            manifests.commit(Manifest(epoch=4, sequence=sequence))
    manifests.commit(Manifest(epoch=4, sequence=100))
    assert newest(local_store) == Manifest(epoch=4, sequence=100)
    manifests.commit(Manifest(epoch=4, sequence=101))
    assert newest(local_store) == Manifest(epoch=4, sequence=101)


@pytest.mark.usefixtures("impatient")
def test_taken_over_after_an_own_commit_whose_answer_was_lost(
    local_store: LocalObjectStore,
) -> None:
    store = FaultyStore(local_store)
    manifests = claimed(store, 4)
    store.faults = ["after"]
    with pytest.raises(Unavailable):
        manifests.commit(Manifest(epoch=4, sequence=1))
    claimed(local_store, 5)
    with pytest.raises(Fenced):
        manifests.commit(Manifest(epoch=4, sequence=2))
    assert newest(local_store) == Manifest(epoch=5, sequence=1)


@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_claim_is_repeated_until_its_outcome_is_known(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(conditional, "_FIRST_PAUSE", 0)
    store = FaultyStore(local_store)
    store.faults = [fault, "before"]
    manifests = claimed(store, 4)
    manifests.commit(Manifest(epoch=4, sequence=1))
    assert VersionedDocument(local_store, PREFIX).read()[0] == 2


@pytest.mark.parametrize(
    "data",
    [
        b"\xc1",
        b"\x90",
        msgspec.msgpack.encode({"epoch": "x"}),
        msgspec.msgpack.encode(Manifest(segments=[SegmentEntry(id="~", rows=1)])).replace(
            b"~", b"\xff"
        ),
    ],
)
def test_what_is_no_manifest_is_corrupt(local_store: LocalObjectStore, data: bytes) -> None:
    assert VersionedDocument(local_store, PREFIX).commit(data, 1)
    with pytest.raises(Corrupt, match=f"{PREFIX} version 1"):
        newest(local_store)


@given(st.lists(st.booleans()))
def test_dead_rows_come_back(alive: list[bool]) -> None:
    rows = np.array(alive, np.bool_)
    unpacked = unpack_alive(pack_dead(rows), len(rows))
    assert unpacked is not None
    assert unpacked.dtype == np.bool_
    assert unpacked.tolist() == alive


def test_no_dead_rows_take_no_bytes() -> None:
    assert pack_dead(None) == b""
    assert unpack_alive(b"", 12) is None


def test_dead_rows_of_another_segment_are_corrupt() -> None:
    dead = pack_dead(np.zeros(16, np.bool_))
    for rows in (0, 8, 17):
        with pytest.raises(Corrupt, match=f"2 bytes for {rows} rows"):
            unpack_alive(dead, rows)
    for damaged in (b"x", dead[:-1], zlib.compress(b"")):
        with pytest.raises(Corrupt):
            unpack_alive(damaged, 16)
