"""Requests to whole collections, over real shard servers that come, go and swap shards."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from cluster.catalog import Collection
from cluster.topology import Topology, TopologyWatcher
from router import fanout as fanout_module
from router.fanout import Fanout
from shard.engine import ShardEngine
from shard.errors import InvalidInput, NotFound, Overloaded, Unavailable
from shard.filter import Filter
from shard.model import (
    UNNAMED,
    Delete,
    Distance,
    Hits,
    Operation,
    SearchParams,
    ShardConfig,
    Upsert,
    VectorColumn,
    Vectors,
    decode_ids,
    encode_ids,
    shards_of,
    unnamed,
)
from shard.objects import ObjectStore
from shard.objects.local import LocalObjectStore
from shard.rpc.client import ShardClient
from shard.rpc.server import ShardServer

DIMENSION = 8
SHARDS = 5
TIMEOUT = 60.0


class Watcher:
    """A topology that the test publishes itself."""

    def __init__(self) -> None:
        self.current = Topology(servers={}, placements={})
        self._published = asyncio.Condition()

    async def publish(
        self, servers: Mapping[str, str], placements: Mapping[str, list[str]]
    ) -> None:
        async with self._published:
            self.current = Topology(servers=dict(servers), placements=dict(placements))
            self._published.notify_all()

    async def changed(self, timeout: float) -> None:
        async with asyncio.timeout(timeout), self._published:
            await self._published.wait()


class Cluster:
    """Shard servers over one store, and a fan-out to them."""

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self.watcher = Watcher()
        self.fanout = Fanout(cast(TopologyWatcher, self.watcher))
        self.servers: dict[str, ShardServer] = {}
        self.addresses: dict[str, str] = {}

    def start(self, *names: str) -> None:
        for name in names:
            server = ShardServer(
                self._store, self._scratch / name, host="127.0.0.1", search_threads=2
            )
            self.addresses[name] = f"127.0.0.1:{server.start()}"
            self.servers[name] = server

    async def stop(self, name: str) -> None:
        """End a server, as its topology does not learn."""
        await asyncio.to_thread(self.servers.pop(name).stop, 0)

    def assign(self, collection: Collection, placement: list[str]) -> None:
        for name, server in self.servers.items():
            server.assign(
                {
                    (collection.id, number): collection.config
                    for number, owner in enumerate(placement)
                    if owner == name
                }
            )

    async def publish(self, collection: Collection, placement: list[str]) -> None:
        addresses = {name: self.addresses[name] for name in self.servers}
        await self.watcher.publish(addresses, {collection.id: placement})

    async def place(self, collection: Collection, placement: list[str]) -> None:
        self.assign(collection, placement)
        await self.publish(collection, placement)

    async def close(self) -> None:
        await self.fanout.close()
        for name in list(self.servers):
            await self.stop(name)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
async def cluster(store: ObjectStore, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(store, tmp_path / "scratch")
    yield cluster
    await cluster.close()


def make_collection(distance: Distance = Distance.EUCLID, shards: int = SHARDS) -> Collection:
    config = ShardConfig.unnamed(DIMENSION, distance)
    return Collection(id="c0ffee", name="cups", shard_count=shards, config=config)


def random_vectors(rows: int, seed: int = 0) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, DIMENSION), np.float32)


def random_queries(rows: int, seed: int = 0) -> VectorColumn:
    return VectorColumn(random_vectors(rows, seed))


def upsert(vectors: Vectors, first_id: int = 0) -> Upsert:
    ids = range(first_id, first_id + len(vectors))
    return Upsert(encode_ids(ids), unnamed(vectors), [b'{"id": %d}' % number for number in ids])


async def write(cluster: Cluster, collection: Collection, *operations: Operation) -> None:
    await cluster.fanout.write(collection, operations, wait=True, timeout=TIMEOUT)


async def retrieve(cluster: Cluster, collection: Collection, ids: list[int]) -> dict[int, bytes]:
    points = await cluster.fanout.retrieve(
        collection, encode_ids(ids), with_payload=True, timeout=TIMEOUT
    )
    ids_found = cast(list[int], decode_ids(points.keys))
    return dict(zip(ids_found, points.payloads or [], strict=True))


def nearness(stored: Vectors, queries: Vectors, distance: Distance) -> Vectors:
    """Qdrant's score of every row of ``stored`` for each query, in float64."""
    x, q = stored.astype(float), queries.astype(float)
    match distance:
        case Distance.DOT:
            scores = q @ x.T
        case Distance.COSINE:
            norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
            scores = q @ x.T / norms
        case Distance.EUCLID:
            scores = np.linalg.norm(q[:, None] - x, axis=2)
        case Distance.MANHATTAN:
            scores = np.abs(q[:, None] - x).sum(axis=2)
    return cast(Vectors, scores)


def check_nearest(
    hits: Hits, stored: Vectors, queries: VectorColumn, limit: int, distance: Distance
) -> None:
    """``hits`` are what brute force over all of ``stored``, ids from 0, finds."""
    scores = nearness(stored, queries.values, distance)
    sign = -1 if distance.higher_is_nearer else 1
    assert hits.lengths.tolist() == [limit] * queries.rows
    best = sign * np.sort(sign * scores, axis=1)[:, :limit]
    np.testing.assert_allclose(hits.scores.reshape(-1, limit), best, rtol=1e-4, atol=1e-5)
    ids = np.array(decode_ids(hits.points.keys)).reshape(-1, limit)
    assert all(len(set(row)) == limit for row in ids.tolist())
    found = np.take_along_axis(scores, ids, axis=1)
    np.testing.assert_allclose(hits.scores.reshape(-1, limit), found, rtol=1e-4, atol=1e-5)


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the servers have loops of their own
            await asyncio.sleep(0.005)


# Answers


@pytest.mark.parametrize("distance", Distance)
async def test_search_is_that_of_the_union(cluster: Cluster, distance: Distance) -> None:
    collection = make_collection(distance)
    cluster.start("a", "b", "c")
    await cluster.place(collection, ["a", "b", "c", "a", "b"])
    stored, queries = random_vectors(300), random_queries(40, seed=1)
    await write(cluster, collection, upsert(stored))
    params = SearchParams(limit=7, exact=True, with_payload=True, with_vectors=(UNNAMED,))
    hits = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
    check_nearest(hits, stored, queries, 7, distance)
    ids = decode_ids(hits.points.keys)
    assert hits.points.payloads == [b'{"id": %d}' % point_id for point_id in ids]
    expected = collection.config.vectors[UNNAMED].prepare(stored)[np.array(ids)]
    np.testing.assert_allclose(hits.points.vectors[UNNAMED].values, expected, rtol=1e-5)


async def test_ties_are_broken_by_key_however_shards_are_placed(cluster: Cluster) -> None:
    collection = make_collection(Distance.DOT)
    cluster.start("a", "b", "c")
    await cluster.place(collection, ["a"] * SHARDS)
    await write(cluster, collection, upsert(np.ones((60, DIMENSION), np.float32)))
    query = VectorColumn(np.ones((1, DIMENSION), np.float32))
    for placement in (["a"] * SHARDS, ["b", "c", "a", "c", "b"]):
        await cluster.place(collection, placement)
        hits = await cluster.fanout.search(
            collection, query, SearchParams(limit=60), timeout=TIMEOUT
        )
        assert decode_ids(hits.points.keys) == list(range(60))


async def test_searches_with_filters_of_their_own_go_together(cluster: Cluster) -> None:
    """One that the shards refuse fails alone."""
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    stored = random_vectors(300)
    await write(cluster, collection, upsert(stored), Delete(encode_ids(range(0, 300, 3))))
    params = SearchParams(limit=7, exact=True, with_payload=True)
    live = np.arange(300)[np.arange(300) % 3 > 0]

    async def search(number: int) -> None:
        bound = 10 * number
        given = {"must": {"key": "id", "range": {"lt": bound}}} if number else {}
        filter = msgspec.convert(given, Filter).check("filter")
        queries = random_queries(1 + number % 3, seed=number)
        hits = await cluster.fanout.search(
            collection, queries, params, filter=filter, timeout=TIMEOUT
        )
        ids = live[live < bound] if number else live
        scores = nearness(stored[ids], queries.values, Distance.EUCLID)
        best = np.argsort(scores, axis=1)[:, :7]
        assert hits.lengths.tolist() == [best.shape[1]] * queries.rows
        assert decode_ids(hits.points.keys) == ids[best].ravel().tolist()
        assert hits.points.payloads == [b'{"id": %d}' % one for one in ids[best].ravel()]
        near = np.take_along_axis(scores, best, axis=1).ravel()
        np.testing.assert_allclose(hits.scores, near, rtol=1e-4)

    async def fail() -> None:
        with pytest.raises(InvalidInput, match="filter: "):
            await cluster.fanout.search(
                collection, random_queries(1), params, filter=b"{", timeout=TIMEOUT
            )

    def batches() -> float:
        (sizes, _) = cluster.fanout.metrics
        (family,) = sizes.collect()
        return next(one.value for one in family.samples if one.name.endswith("_count"))

    await asyncio.gather(*map(search, range(32)))
    assert batches() < 4
    await asyncio.gather(fail(), *map(search, range(8)), fail(), *map(search, range(8)))


async def test_fewer_points_than_asked_for(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    params = SearchParams(limit=9, with_payload=True, with_vectors=(UNNAMED,))
    queries = random_queries(2)
    empty = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
    assert empty.lengths.tolist() == [0, 0]
    assert empty.points.payloads == []
    assert empty.points.vectors[UNNAMED].values.shape == (0, DIMENSION)
    await write(cluster, collection, upsert(random_vectors(3)))
    hits = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
    assert hits.lengths.tolist() == [3, 3]


async def test_operations_of_one_write_take_effect_in_order(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    everything = upsert(random_vectors(50))
    vectors = {UNNAMED: everything.vectors[UNNAMED].slice(10, 30)}
    again = Upsert(everything.keys[10:30], vectors, [b'"again"'] * 20)
    sequence = await cluster.fanout.write(
        collection,
        [everything, Delete(encode_ids(range(20))), again, Delete(encode_ids([25, 99]))],
        wait=True,
        timeout=TIMEOUT,
    )
    assert sequence > 0
    found = await retrieve(cluster, collection, list(range(60)))
    expected = dict.fromkeys(range(10, 30), b'"again"')
    expected |= {number: b'{"id": %d}' % number for number in range(30, 50)}
    del expected[25]
    assert found == expected
    assert list(found) == sorted(expected)
    assert await cluster.fanout.count(collection, timeout=TIMEOUT) == len(expected)
    assert await cluster.fanout.write(collection, [], wait=True, timeout=TIMEOUT) == 0


async def test_reading_points_back(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    vectors = random_vectors(40)
    await write(cluster, collection, upsert(vectors))
    points = await cluster.fanout.retrieve(
        collection,
        encode_ids([30, 2, 77, 9]),
        with_payload=False,
        with_vectors=[UNNAMED],
        timeout=5,
    )
    assert decode_ids(points.keys) == [30, 2, 9]
    assert points.payloads is None
    assert np.array_equal(points.vectors[UNNAMED].values, vectors[[30, 2, 9]])
    none = await cluster.fanout.retrieve(
        collection, encode_ids([]), with_payload=True, with_vectors=[UNNAMED], timeout=5
    )
    assert none.payloads == []
    assert none.vectors[UNNAMED].values.shape == (0, DIMENSION)

    start, pages = b"", []
    while True:
        page = await cluster.fanout.scroll(collection, start, 7, with_payload=True, timeout=TIMEOUT)
        ids = decode_ids(page.keys)
        assert page.payloads == [b'{"id": %d}' % point_id for point_id in ids]
        pages.append(ids)
        if len(ids) < 7:
            break
        start = encode_ids([int(ids[-1]) + 1]).tolist()[0]
    assert sum(pages, []) == list(range(40))  # noqa: RUF017
    infos = await cluster.fanout.describe(collection, timeout=TIMEOUT)
    assert len(infos) == SHARDS
    assert sum(info.points for info in infos) == 40


async def test_describe_is_in_order_of_shards(cluster: Cluster) -> None:
    collection = make_collection(shards=3)
    cluster.start("a", "b")
    await cluster.place(collection, ["b", "a", "b"])
    keys = encode_ids(range(1000))
    counts = np.bincount(shards_of(keys, 3), minlength=3)
    await write(cluster, collection, upsert(random_vectors(1000)))
    infos = await cluster.fanout.describe(collection, timeout=TIMEOUT)
    assert [info.points for info in infos] == counts.tolist()


# Servers and shards that come and go


async def test_a_dead_server_is_left_for_the_one_that_takes_its_shards(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    placement = ["a", "b", "a", "b", "a"]
    await cluster.place(collection, placement)
    stored, queries = random_vectors(100), random_queries(3, seed=1)
    await write(cluster, collection, upsert(stored))
    await cluster.stop("b")
    params = SearchParams(limit=5, exact=True)
    searching = asyncio.create_task(
        cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
    )
    writing = asyncio.create_task(write(cluster, collection, Delete(encode_ids(range(90, 100)))))
    scrolling = asyncio.create_task(
        cluster.fanout.scroll(collection, b"", 90, with_payload=False, timeout=TIMEOUT)
    )
    await asyncio.sleep(0.2)
    assert not searching.done() and not writing.done() and not scrolling.done()
    cluster.start("c")
    await cluster.place(collection, ["a", "c", "a", "c", "a"])
    await writing
    assert (await searching).lengths.tolist() == [5, 5, 5]
    assert decode_ids((await scrolling).keys) == list(range(90))
    hits = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
    check_nearest(hits, stored[:90], queries, 5, Distance.EUCLID)


SERVE = """
import sys
from pathlib import Path
from shard.model import Distance, ShardConfig
from shard.objects import open_object_store
from shard.rpc.server import ShardServer

_, store, scratch, shards = sys.argv
server = ShardServer(open_object_store(store), Path(scratch), host="127.0.0.1")
print(server.start(), flush=True)
config = ShardConfig.unnamed(8, Distance.EUCLID)
server.assign({("c0ffee", number): config for number in range(int(shards))})
sys.stdin.read()
"""


async def test_nothing_acknowledged_is_lost_with_a_killed_process(
    cluster: Cluster, tmp_path: Path
) -> None:
    collection = make_collection(shards=2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVE, tmp_path / "store", tmp_path / "of-process", "2"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    acknowledged: list[int] = []

    async def write_on() -> None:
        for first in range(0, 400, 4):
            await write(cluster, collection, upsert(random_vectors(4, first), first))
            acknowledged.extend(range(first, first + 4))

    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())
        await cluster.watcher.publish({"p": f"127.0.0.1:{port}"}, {collection.id: ["p", "p"]})
        writing = asyncio.create_task(write_on())
        await until(lambda: len(acknowledged) >= 40)
    finally:
        process.kill()
        await process.wait()
    assert len(acknowledged) < 400
    cluster.start("a")
    await cluster.place(collection, ["a", "a"])
    await writing
    assert sorted(await retrieve(cluster, collection, acknowledged)) == list(range(400))


async def test_a_shard_without_a_server_is_waited_for(cluster: Cluster) -> None:
    collection = make_collection(shards=2)
    cluster.start("a")
    await cluster.place(collection, ["a", ""])
    counting = asyncio.create_task(cluster.fanout.count(collection, timeout=TIMEOUT))
    await asyncio.sleep(0.1)
    await cluster.publish(collection, ["a"])  # shorter than the collection
    await asyncio.sleep(0.1)
    await cluster.publish(collection, ["a", "gone"])  # a server that the topology does not name
    await asyncio.sleep(0.1)
    assert not counting.done()
    await cluster.place(collection, ["a", "a"])
    assert await counting == 0


async def test_a_stale_topology_is_waited_out(cluster: Cluster) -> None:
    collection = make_collection(shards=2)
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "a"])
    await write(cluster, collection, upsert(random_vectors(9)))
    cluster.assign(collection, ["b", "a"])
    counting = asyncio.create_task(cluster.fanout.count(collection, timeout=TIMEOUT))
    await asyncio.sleep(0.1)
    assert not counting.done()
    await cluster.publish(collection, ["b", "a"])
    assert await counting == 9


async def test_requests_go_on_while_shards_move(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b", "c")
    placements = [
        ["a", "b", "c", "a", "b"],
        ["b", "b", "c", "c", "a"],
        ["c", "a", "a", "c", "b"],
    ]
    await cluster.place(collection, placements[0])
    stored = random_vectors(100)
    await write(cluster, collection, upsert(stored))
    moved = asyncio.Event()

    async def search(seed: int) -> None:
        while not moved.is_set():
            queries = random_queries(2, seed)
            params = SearchParams(limit=5, exact=True)
            hits = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
            check_nearest(hits, stored, queries, 5, Distance.EUCLID)

    async def rewrite(worker: int) -> None:
        while not moved.is_set():
            rows = slice(25 * worker, 25 * worker + 25)
            await write(cluster, collection, upsert(stored[rows], 25 * worker))

    working = [asyncio.create_task(search(seed)) for seed in range(12)]
    working += [asyncio.create_task(rewrite(worker)) for worker in range(4)]
    for turn in range(1, 7):
        await asyncio.sleep(0.2)
        await cluster.place(collection, placements[turn % 3])
        assert not any(task.done() for task in working)
    moved.set()
    await asyncio.gather(*working)
    assert await cluster.fanout.count(collection, timeout=TIMEOUT) == 100


async def test_connections_close_once_their_server_leaves(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[str] = []

    class Client(ShardClient):
        async def close(self, grace: float | None = None) -> None:
            await super().close(grace)
            closed.append(self.address)

    monkeypatch.setattr(fanout_module, "ShardClient", Client)
    collection = make_collection(shards=2)
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b"])
    await cluster.fanout.count(collection, timeout=TIMEOUT)
    old = cluster.addresses["b"]
    await cluster.stop("b")
    await cluster.place(collection, ["a", "a"])
    await cluster.fanout.count(collection, timeout=TIMEOUT)
    await until(lambda: closed)
    assert closed == [old]
    await cluster.fanout.close()
    assert closed == [old, cluster.addresses["a"]]


# Failures


async def test_an_unknown_collection_is_not_found(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout_module, "UNKNOWN_SECONDS", 0.3)
    with pytest.raises(NotFound, match="collection `cups` has no shards"):
        await cluster.fanout.count(make_collection(), timeout=TIMEOUT)


async def test_a_collection_deleted_meanwhile_is_not_found(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fanout_module, "UNKNOWN_SECONDS", TIMEOUT)
    collection = make_collection(shards=1)
    cluster.start("a")
    await cluster.place(collection, [""])
    counting = asyncio.create_task(cluster.fanout.count(collection, timeout=10))
    await asyncio.sleep(0.1)
    await cluster.watcher.publish(cluster.addresses, {})
    with pytest.raises(NotFound):
        await counting


async def test_no_answer_is_made_of_some_shards_only(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    await write(cluster, collection, upsert(random_vectors(50)))
    await cluster.stop("b")
    fanout, query = cluster.fanout, random_queries(1)
    columns: Any = {"with_payload": False}
    for asking in (
        fanout.search(collection, query, SearchParams(limit=3), timeout=0.5),
        fanout.count(collection, timeout=0.5),
        fanout.describe(collection, timeout=0.5),
        fanout.scroll(collection, b"", 3, timeout=0.5, **columns),
        fanout.retrieve(collection, encode_ids(range(50)), timeout=0.5, **columns),
        fanout.write(collection, [upsert(random_vectors(50))], wait=True, timeout=0.5),
    ):
        # Which of the two depends on what the last attempt was at.
        with pytest.raises((Unavailable, TimeoutError), match=r"(could|did) not answer within"):
            await asking


async def test_what_the_shards_refuse_is_not_tried_again(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    params = SearchParams(limit=0)
    with pytest.raises(InvalidInput, match="limit: expected 1 or more"):
        await cluster.fanout.search(collection, random_queries(1), params, timeout=TIMEOUT)


class Gate:
    """Holds up or fails the searches of chosen shards, and counts those of all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.searches: list[str] = []
        self.held: set[str] = set()
        self.failures: dict[str, Exception] = {}
        self.open = threading.Event()
        prefixes: dict[int, str] = {}
        opened, searched = ShardEngine.open, ShardEngine.search

        def open_(store: ObjectStore, prefix: str, *rest: object) -> ShardEngine:
            engine: ShardEngine = opened(store, prefix, *rest)  # type: ignore[arg-type]
            prefixes[id(engine)] = prefix[-1]
            return engine

        def search(
            engine: ShardEngine,
            queries: VectorColumn,
            params: SearchParams,
            filters: Sequence[bytes],
        ) -> Hits:
            shard = prefixes[id(engine)]
            self.searches.append(shard)
            if shard in self.failures:
                raise self.failures.pop(shard)
            if shard in self.held:
                assert self.open.wait(30)
            return searched(engine, queries, params, filters)

        monkeypatch.setattr(ShardEngine, "open", staticmethod(open_))
        monkeypatch.setattr(ShardEngine, "search", search)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def two_servers(cluster: Cluster) -> Collection:
    collection = make_collection(shards=2)
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b"])
    await write(cluster, collection, upsert(random_vectors(20)))
    return collection


async def test_only_what_failed_is_tried_again(gate: Gate, cluster: Cluster) -> None:
    collection = await two_servers(cluster)
    gate.failures = {"1": Unavailable("moving")}
    hits = await cluster.fanout.search(
        collection, random_queries(1), SearchParams(limit=20), timeout=TIMEOUT
    )
    assert hits.lengths.tolist() == [20]
    assert sorted(gate.searches) == ["0", "1", "1"]


async def test_one_failure_for_good_cancels_the_other_calls(gate: Gate, cluster: Cluster) -> None:
    collection = await two_servers(cluster)
    gate.held = {"0"}
    gate.failures = {"1": Overloaded("full")}
    with pytest.raises(Overloaded, match="full"):
        await cluster.fanout.search(
            collection, random_queries(1), SearchParams(limit=20), timeout=TIMEOUT
        )
    await until(lambda: cluster.servers["a"]._waiting == 0)
    gate.open.set()


async def test_cancelling_a_request_cancels_its_calls(gate: Gate, cluster: Cluster) -> None:
    collection = await two_servers(cluster)
    gate.held = {"0", "1"}
    searching = asyncio.create_task(
        cluster.fanout.search(
            collection, random_queries(1), SearchParams(limit=20), timeout=TIMEOUT
        )
    )
    await until(lambda: len(gate.searches) == 2)
    searching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await searching
    await until(lambda: all(server._waiting == 0 for server in cluster.servers.values()))
    gate.open.set()


async def test_a_shard_that_is_too_slow_is_a_timeout(gate: Gate, cluster: Cluster) -> None:
    collection = await two_servers(cluster)
    gate.held = {"1"}
    with pytest.raises(TimeoutError, match=r"shards \[1\] did not answer within 0.3 s"):
        await cluster.fanout.search(
            collection, random_queries(1), SearchParams(limit=20), timeout=0.3
        )
    gate.open.set()


async def test_many_requests_at_once(cluster: Cluster) -> None:
    collection = make_collection()
    cluster.start("a", "b")
    await cluster.place(collection, ["a", "b", "a", "b", "a"])
    stored = random_vectors(640)

    async def work(worker: int) -> None:
        mine = range(10 * worker, 10 * worker + 10)
        await write(cluster, collection, upsert(stored[mine.start : mine.stop], mine.start))
        assert sorted(await retrieve(cluster, collection, list(mine))) == list(mine)
        params = SearchParams(limit=1, exact=True)
        queries = VectorColumn(stored[mine.start : mine.stop])
        hits = await cluster.fanout.search(collection, queries, params, timeout=TIMEOUT)
        assert decode_ids(hits.points.keys) == list(mine)

    await asyncio.gather(*map(work, range(64)))
    assert await cluster.fanout.count(collection, timeout=TIMEOUT) == 640
