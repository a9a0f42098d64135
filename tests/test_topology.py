"""The topology: claimed by one cluster at a time, watched by many."""

from __future__ import annotations

import asyncio

import pytest

from cluster.topology import (
    TOPOLOGY,
    Superseded,
    Topology,
    TopologyDocument,
    TopologyWatcher,
)
from shard.errors import Corrupt
from shard.objects.document import VersionedDocument
from shard.objects.local import LocalObjectStore
from tests.faulty_store import FaultyStore

INTERVAL = 0.05
PLACED = Topology({"a": "127.0.0.1:1", "b": "127.0.0.1:2"}, {"c": ["a", "b", "a"]}, "one")


@pytest.fixture
def document(local_store: LocalObjectStore) -> TopologyDocument:
    document = TopologyDocument(local_store)
    document.claim("one")
    document.publish(PLACED)
    return document


def test_what_is_published_is_read(document: TopologyDocument) -> None:
    assert document.read() == PLACED


def test_a_claim_unplaces_every_shard(document: TopologyDocument) -> None:
    document.claim("two")
    assert document.read() == Topology({}, {"c": ["", "", ""]}, "two")


def test_only_the_last_claimant_publishes(
    document: TopologyDocument, local_store: LocalObjectStore
) -> None:
    TopologyDocument(local_store).claim("two")
    claimed = document.read()
    with pytest.raises(Superseded, match="two"):
        document.publish(PLACED)
    assert document.read() == claimed


def test_a_claim_over_named_clusters_leaves_others_alone(document: TopologyDocument) -> None:
    with pytest.raises(Superseded, match="cluster one serves"):
        document.claim("prod.eu.2", over={"prod.eu"})
    assert document.read() == PLACED
    document.claim("prod.eu.2", over={"prod.eu", "one"})
    document.claim("prod.eu.3", over={"prod.eu"})
    with pytest.raises(Superseded, match=r"cluster prod\.eu\.3 serves"):
        document.claim("prod.4", over={"prod", "prod.eu.3"})
    assert document.read().cluster == "prod.eu.3"


def test_anybody_may_claim_a_new_store(local_store: LocalObjectStore) -> None:
    document = TopologyDocument(local_store)
    document.claim("one.1", over={"one"})
    assert document.read().cluster == "one.1"


@pytest.mark.parametrize("data", [b"{", b'{"servers": {}}', b"\xff"])
def test_what_is_no_topology_is_corrupt(local_store: LocalObjectStore, data: bytes) -> None:
    VersionedDocument(local_store, TOPOLOGY).update(lambda _: data)
    with pytest.raises(Corrupt, match=TOPOLOGY):
        TopologyDocument(local_store).read()


async def test_watchers_are_woken_by_a_change(
    document: TopologyDocument, local_store: LocalObjectStore
) -> None:
    async with TopologyWatcher(local_store, INTERVAL) as watcher:
        assert watcher.current == PLACED
        waiting = [asyncio.create_task(watcher.changed(30)) for _ in range(3)]
        await asyncio.sleep(2 * INTERVAL)
        assert not any(task.done() for task in waiting)
        moved = Topology(PLACED.servers, {"c": ["b", "b", "a"]}, "one")
        document.publish(moved)
        await asyncio.gather(*waiting)
        assert watcher.current == moved
        with pytest.raises(TimeoutError):
            await watcher.changed(2 * INTERVAL)


async def test_it_is_read_more_often_while_somebody_waits(
    document: TopologyDocument, local_store: LocalObjectStore
) -> None:
    store = FaultyStore(local_store)

    async def reads_within(seconds: float) -> int:
        store.calls.clear()
        await asyncio.sleep(seconds)
        return store.calls.count("list")

    async with TopologyWatcher(store, 0.4) as watcher:
        assert await reads_within(2) <= 5  # A busy machine makes it fewer, never more.
        waiting = asyncio.create_task(watcher.changed(30))
        for _ in range(30):
            if await reads_within(2) > 6:
                break
        else:
            pytest.fail("read as seldom as before")
        waiting.cancel()


async def test_the_last_one_stays_while_the_store_is_away(
    document: TopologyDocument, local_store: LocalObjectStore
) -> None:
    faulty = FaultyStore(local_store)
    async with TopologyWatcher(faulty, INTERVAL) as watcher:
        faulty.reachable = False
        moved = Topology(PLACED.servers, {}, "one")
        document.publish(moved)
        with pytest.raises(TimeoutError):
            await watcher.changed(6 * INTERVAL)
        assert watcher.current == PLACED
        faulty.reachable = True
        await watcher.changed(30)
        assert watcher.current == moved
