"""A data set in a collection of Shoal's, through the official client."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import orjson
from qdrant_client import QdrantClient, models

from scripts.bench import load
from scripts.bench.data import DataSet
from shard.model import Vectors

NAME = "bench"
BATCH = 512
SETTLE_SECONDS = 1_800.0
SETTLED_SECONDS = 5


def fill(url: str, data: DataSet, shards: int) -> float:
    """Create the collection, upsert every vector, and answer the seconds that upserting took."""
    create(url, data, shards)
    return upsert(url, data.vectors)


def create(url: str, data: DataSet, shards: int) -> None:
    """Make the collection, empty, in place of one that is there."""
    client = QdrantClient(url=url, timeout=120)
    client.delete_collection(NAME)
    distance = models.Distance(str(data.distance))
    client.create_collection(
        NAME,
        models.VectorParams(size=data.vectors.shape[1], distance=distance),
        shard_number=shards,
    )
    client.close()


def upsert(
    url: str,
    vectors: Vectors,
    first_id: int = 0,
    payloads: Sequence[dict[str, Any]] | None = None,
) -> float:
    """Upsert ``vectors`` with ids from ``first_id`` on, and answer the seconds it took.

    Each batch is durable before the next.
    """
    client = QdrantClient(url=url, timeout=120)
    started = time.perf_counter()
    for first in range(0, len(vectors), BATCH):
        _upsert_batch(client, vectors, first, first_id, payloads)
    took = time.perf_counter() - started
    client.close()
    return took


def keep_upserting(url: str, vectors: Vectors, enough: Callable[[], bool]) -> float:
    """Upsert ``vectors`` round and round until it is ``enough``, and answer the rows a second."""
    client = QdrantClient(url=url, timeout=120)
    started, rows = time.perf_counter(), 0
    for first in cycle(range(0, len(vectors), BATCH)):
        if enough():
            break
        rows += _upsert_batch(client, vectors, first, 0)
    took = time.perf_counter() - started
    client.close()
    return rows / took


def _upsert_batch(
    client: QdrantClient,
    vectors: Vectors,
    first: int,
    first_id: int,
    payloads: Sequence[dict[str, Any]] | None = None,
) -> int:
    some = vectors[first : first + BATCH]
    ids: list[Any] = list(range(first_id + first, first_id + first + len(some)))
    carried = None if payloads is None else list(payloads[first : first + BATCH])
    batch = models.Batch(ids=ids, vectors=some.tolist(), payloads=carried)
    client.upsert(NAME, batch, wait=True)
    return len(some)


def settle(url: str) -> None:
    """Return when every index has been built for `SETTLED_SECONDS`. Raises TimeoutError."""
    client = QdrantClient(url=url, timeout=120)
    deadline = time.monotonic() + SETTLE_SECONDS
    seen = 0
    while seen < SETTLED_SECONDS:
        seen = seen + 1 if client.get_collection(NAME).status == "green" else 0
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url}: still building after {SETTLE_SECONDS:.0f} s")
        time.sleep(1)
    client.close()


def single_queries(
    url: str,
    queries: Vectors,
    limit: int,
    nprobe: int | None = None,
    filter: dict[str, Any] | None = None,
) -> list[bytes]:
    """A request for each of ``queries``; ``nprobe`` None: as calibrated."""
    where = f"{url}/collections/{NAME}/points/query"
    pinned: dict[str, Any] = {} if nprobe is None else {"params": {"nprobe": nprobe}}
    if filter is not None:
        pinned["filter"] = filter
    return [
        load.request("POST", where, orjson.dumps(_query(query, limit) | pinned, option=_NUMPY))
        for query in queries
    ]


def batched_queries(url: str, queries: Vectors, size: int, limit: int) -> list[bytes]:
    """A request for each run of ``size`` of ``queries``; what is left over is left out."""
    where = f"{url}/collections/{NAME}/points/query/batch"
    runs = [queries[first : first + size] for first in range(0, len(queries) - size + 1, size)]
    return [
        load.request(
            "POST",
            where,
            orjson.dumps({"searches": [_query(query, limit) for query in run]}, option=_NUMPY),
        )
        for run in runs
    ]


def found(answers: list[bytes]) -> list[list[int]]:
    """The ids that answers to `single_queries` or `batched_queries` hold, query after query."""
    results = [orjson.loads(answer)["result"] for answer in answers]
    return [
        [point["id"] for point in one["points"]]
        for result in results
        for one in (result if isinstance(result, list) else [result])
    ]


def _query(query: Vectors, limit: int) -> dict[str, Any]:
    return {"query": query, "limit": limit}


_NUMPY = orjson.OPT_SERIALIZE_NUMPY
