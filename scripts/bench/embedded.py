"""Measures one embedded peer; runs in the peers' environment, without Shoal.

Usage: embedded.py NAME DIRECTORY DISTANCE RECALL. It widens the peer's search until recall@10 is
reached, and prints a JSON object: one query at a time from one thread, and from as many threads as
there are cores.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

K = 10
SECONDS = 4.0
WIDTHS = (32, 64, 128, 256, 512, 1_024)

Search = Callable[[Any, int], list[int]]
"""From a query and a width (ef, or nprobe) to ids."""


def main() -> None:
    name, folder, distance, target = sys.argv[1:]
    directory = Path(folder)
    vectors, queries, truth = (
        np.load(directory / f"{part}.npy") for part in ("vectors", "queries", "truth")
    )
    started = time.perf_counter()
    search = PEERS[name](directory, vectors, distance)
    built = time.perf_counter() - started
    width, recall = widened(search, queries, truth, float(target))
    single = rate(search, queries, width, 1)
    print(
        json.dumps(
            {
                "build_rows_per_second": len(vectors) / built,
                "width": width,
                "recall": recall,
                "p50_ms": single[1],
                "queries_per_second": rate(search, queries, width, os.cpu_count() or 1)[0],
            }
        )
    )


def widened(search: Search, queries: Any, truth: Any, target: float) -> tuple[int, float]:
    """The first width that reaches ``target``, or else the last, and its recall."""
    for width in WIDTHS:
        hits = [
            len(set(search(query, width)) & set(true[:K].tolist())) / K
            for query, true in zip(queries[:500], truth[:500], strict=True)
        ]
        recall = float(np.mean(hits))
        if recall >= target:
            break
    return width, recall


def rate(search: Search, queries: Any, width: int, threads: int) -> tuple[float, float]:
    """Queries a second, and the median milliseconds of one."""

    def work(offset: int) -> list[float]:
        took: list[float] = []
        until = time.perf_counter() + SECONDS
        while (now := time.perf_counter()) < until:
            search(queries[(offset + len(took)) % len(queries)], width)
            took.append(time.perf_counter() - now)
        return took

    with ThreadPoolExecutor(threads) as pool:
        every = [one for own in pool.map(work, range(0, 100 * threads, 100)) for one in own]
    return len(every) / SECONDS, 1_000 * float(np.median(every))


def usearch(directory: Path, vectors: Any, distance: str) -> Search:
    from usearch.index import Index

    metric = {"Cosine": "cos", "Euclid": "l2sq", "Dot": "ip"}[distance]
    index = Index(ndim=vectors.shape[1], metric=metric, dtype="f32")
    index.add(np.arange(len(vectors)), vectors)

    def search(query: Any, width: int) -> list[int]:
        index.expansion_search = width
        keys: list[int] = index.search(query, K).keys.tolist()
        return keys

    return search


def lancedb(directory: Path, vectors: Any, distance: str) -> Search:
    import lancedb
    import pyarrow as pa

    metric = {"Cosine": "cosine", "Euclid": "l2", "Dot": "dot"}[distance]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    rows = pa.table({"id": np.arange(len(vectors)), "vector": column})
    table = lancedb.connect(directory / "lance").create_table("bench", rows)
    # Two dimensions a code, as Shoal has it; with the default of 16 no refining reaches 0.95.
    subvectors = vectors.shape[1] // 2
    table.create_index(metric=metric, vector_column_name="vector", num_sub_vectors=subvectors)

    def search(query: Any, width: int) -> list[int]:
        asked = table.search(query).distance_type(metric).limit(K)
        found = asked.nprobes(width).refine_factor(20).select(["id"]).to_arrow()
        ids: list[int] = found["id"].to_pylist()
        return ids

    return search


def qdrant_edge(directory: Path, vectors: Any, distance: str) -> Search:
    import qdrant_edge as edge

    folder = directory / "edge"
    folder.mkdir()
    params = edge.EdgeVectorParams(size=vectors.shape[1], distance=getattr(edge.Distance, distance))
    shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=params))
    for first in range(0, len(vectors), 1_000):
        some = vectors[first : first + 1_000].tolist()
        points = [edge.Point(id=first + n, vector=one, payload={}) for n, one in enumerate(some)]
        shard.update(edge.UpdateOperation.upsert_points(points))
    shard.optimize()

    def search(query: Any, width: int) -> list[int]:
        asked = edge.QueryRequest(
            query=edge.Query.Nearest(query.tolist()),
            limit=K,
            params=edge.SearchParams(hnsw_ef=width),
        )
        return [int(point.id) for point in shard.query(asked)]

    return search


def milvus_lite(directory: Path, vectors: Any, distance: str) -> Search:
    from pymilvus import DataType, MilvusClient

    metric = {"Cosine": "COSINE", "Euclid": "L2", "Dot": "IP"}[distance]
    client = MilvusClient(str(directory / "milvus.db"))
    schema = client.create_schema()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index(
        "vector", index_type="HNSW", metric_type=metric, params={"M": 16, "efConstruction": 200}
    )
    client.create_collection("bench", schema=schema, index_params=index)
    for first in range(0, len(vectors), 5_000):
        some = vectors[first : first + 5_000].tolist()
        client.insert("bench", [{"id": first + n, "vector": one} for n, one in enumerate(some)])
    client.flush("bench")
    client.load_collection("bench")

    def search(query: Any, width: int) -> list[int]:
        (found,) = client.search(
            "bench", [query.tolist()], limit=K, search_params={"params": {"ef": width}}
        )
        return [hit["id"] for hit in found]

    return search


PEERS: dict[str, Callable[[Path, Any, str], Search]] = {
    "usearch": usearch,
    "lancedb": lancedb,
    "qdrant-edge": qdrant_edge,
    "milvus-lite": milvus_lite,
}


if __name__ == "__main__":
    main()
