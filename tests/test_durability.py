"""A loaded cluster of real word vectors, killed again and again while it is written to."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Thread

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import ApiException

from router import word_vectors
from router.demo import cache_directory
from shard.model import Distance, VectorConfig, Vectors
from tests.shoal_process import ShoalProcess

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(1_500)]

COLLECTION = "glove"
HELD_OUT = 1_000
ROUNDS = 20
WRITERS = 3
RESTART_SECONDS = 15.0
BYTES_PER_VECTOR = 160


@dataclass
class Loaded:
    shoal: ShoalProcess
    stored: Vectors
    queries: Vectors
    empty_bytes: int


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    package = word_vectors.download(cache_directory(), lambda done, total: None)
    vectors = np.concatenate([batch for _, batch in word_vectors.read(package, 8_192)])
    assert vectors.shape == (word_vectors.WORDS, word_vectors.DIMENSION)
    chosen = np.random.default_rng(11).permutation(len(vectors))
    queries, stored = vectors[chosen[:HELD_OUT]], vectors[chosen[HELD_OUT:]]
    with ShoalProcess(tmp_path_factory.mktemp("durability") / "data") as shoal:
        client = connect(shoal)
        empty_bytes = anonymous_bytes(shoal)
        size = models.VectorParams(size=stored.shape[1], distance=models.Distance.COSINE)
        client.create_collection(COLLECTION, size)
        for start in range(0, len(stored), 1_000):
            rows = stored[start : start + 1_000]
            ids = range(start, start + len(rows))
            client.upsert(COLLECTION, models.Batch(ids=[*ids], vectors=rows.tolist()))
        until(lambda: client.get_collection(COLLECTION).status == models.CollectionStatus.GREEN)
        client.close()
        yield Loaded(shoal, stored, queries, empty_bytes)


def connect(shoal: ShoalProcess) -> QdrantClient:
    return QdrantClient(url=shoal.url, timeout=60, check_compatibility=False)


def until(condition: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def anonymous_bytes(shoal: ShoalProcess) -> int:
    """RssAnon of all shard servers together."""
    total = 0
    for pid in shoal.find("ray::ShardServerActor"):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total += int(line.split()[1]) * 1_024
    return total


def exact_neighbours(stored: Vectors, queries: Vectors, k: int) -> list[set[int]]:
    config = VectorConfig(dimension=stored.shape[1], distance=Distance.COSINE)
    unit = config.prepare(stored)
    return [set(np.argpartition(-(unit @ query), k)[:k].tolist()) for query in queries]


def test_recall_of_held_out_queries_at_default_settings(loaded: Loaded) -> None:
    client = connect(loaded.shoal)
    found = 0
    for query, truth in zip(
        loaded.queries, exact_neighbours(loaded.stored, loaded.queries, 10), strict=True
    ):
        hits = client.query_points(COLLECTION, query.tolist(), limit=10).points
        found += len({hit.id for hit in hits} & truth)
    recall = found / 10 / len(loaded.queries)
    print(f"recall@10 {recall:.4f}")
    assert recall >= 0.95


def test_memory_of_an_indexed_vector(loaded: Loaded) -> None:
    def per_vector() -> float:
        return (anonymous_bytes(loaded.shoal) - loaded.empty_bytes) / len(loaded.stored)

    # The last memtables are flushed a moment after the last write.
    deadline = time.monotonic() + 30
    while per_vector() > BYTES_PER_VECTOR and time.monotonic() < deadline:
        time.sleep(0.5)
    print(f"RssAnon {per_vector():.0f} bytes a vector")
    assert per_vector() <= BYTES_PER_VECTOR


@dataclass
class Writer:
    """Writes to ids of its own, and knows what must be true of each of them."""

    number: int
    versions: dict[int, int | None] = field(default_factory=dict)
    """Newest acknowledged version of each id; None when it is deleted."""
    unknown: dict[int, set[int | None]] = field(default_factory=dict)
    """What a write without an answer may have made of an id."""
    version: int = 0
    acknowledged: int = 0

    def run(self, shoal: ShoalProcess, vectors: Vectors, killed: Event, seed: int) -> None:
        chance = random.Random(seed)
        client = connect(shoal)
        while not killed.is_set():
            first = 1_000_000 * (self.number + 1)
            ids = [first + one for one in chance.sample(range(2_000), chance.randrange(1, 60))]
            self.version += 1
            outcome = None if chance.random() < 0.3 else self.version
            try:
                if outcome is None:
                    client.delete(COLLECTION, models.PointIdsList(points=[*ids]))
                else:
                    rows = vectors[[one % len(vectors) for one in ids]].tolist()
                    payloads = [{"version": self.version}] * len(ids)
                    batch = models.Batch(ids=[*ids], vectors=rows, payloads=payloads)
                    client.upsert(COLLECTION, batch)
            except (ApiException, OSError):
                for one in ids:
                    self.unknown.setdefault(one, {self.versions.get(one)}).add(outcome)
                return
            for one in ids:
                self.versions[one] = outcome
                self.unknown.pop(one, None)
            self.acknowledged += 1

    def check(self, client: QdrantClient) -> None:
        """Compare with what is stored, and settle what was unknown."""
        ids = sorted(self.versions.keys() | self.unknown.keys())
        stored: dict[int, int] = {}
        for start in range(0, len(ids), 500):
            for record in client.retrieve(COLLECTION, ids[start : start + 500]):
                assert isinstance(record.id, int) and record.payload is not None
                stored[record.id] = record.payload["version"]
        for one in ids:
            possible = self.unknown.get(one, {self.versions.get(one)})
            assert stored.get(one) in possible, f"point {one}"
            self.versions[one] = stored.get(one)
        self.unknown.clear()


def test_no_acknowledged_write_is_lost_and_no_deleted_point_comes_back(loaded: Loaded) -> None:
    shoal, stored = loaded.shoal, loaded.stored
    writers = [Writer(number) for number in range(WRITERS)]
    query = loaded.queries[0]
    (truth,) = exact_neighbours(stored, query[None], 1)
    seconds = []
    chance = random.Random(3)
    for round_ in range(ROUNDS):
        killed = Event()
        threads = [
            Thread(target=writer.run, args=(shoal, stored, killed, 100 * round_ + writer.number))
            for writer in writers
        ]
        for thread in threads:
            thread.start()
        time.sleep(chance.uniform(0.3, 2.5))
        shoal.kill_all()
        killed.set()
        for thread in threads:
            thread.join()

        started = time.monotonic()
        shoal.start()
        client = connect(shoal)
        hits = client.query_points(
            COLLECTION, query.tolist(), limit=50, search_params=models.SearchParams(exact=True)
        ).points
        nearest = next(hit.id for hit in hits if isinstance(hit.id, int) and hit.id < 1_000_000)
        assert nearest in truth
        seconds.append(time.monotonic() - started)
        for writer in writers:
            writer.check(client)
        present = sum(
            version is not None for writer in writers for version in writer.versions.values()
        )
        assert client.count(COLLECTION).count == len(stored) + present
        client.close()
    assert all(writer.acknowledged > ROUNDS for writer in writers)
    print(f"restart to first correct answer: {median(seconds):.1f} s, at most {max(seconds):.1f} s")
    assert median(seconds) < RESTART_SECONDS
