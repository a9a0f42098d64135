"""Filtered searches beside unfiltered ones: recall and rate at each selectivity.

    .venv/bin/python -m scripts.bench.filters [--data NAME] [--rows N] [--out FILE]

Each point has a number that has nothing to do with its vector; a filter asks for those below a
bound. The first search with a filter reads the payloads; the others have its outcome.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console

from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K, closed
from shard.index.exact import scan
from shard.model import VectorConfig

SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
_SHARDS = 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="glove")
    arguments.add_argument("--rows", type=int, default=300_000)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    with TemporaryDirectory() as folder:
        rows = _measure(Path(folder), data.load(chosen.data, chosen.rows))
    Console().print_json(json.dumps(rows))
    if chosen.out:
        chosen.out.write_text(json.dumps({"kind": "filters", "rows": rows}, indent=1) + "\n")


def _measure(folder: Path, loaded: data.DataSet) -> list[dict[str, float]]:
    count = len(loaded.vectors)
    numbers = np.random.default_rng(1).permutation(count)
    measured: list[dict[str, float]] = []
    with services.shoal(folder) as shoal:
        collection.create(shoal.url, loaded, _SHARDS)
        payloads = [{"n": number, "word": "x" * 20} for number in numbers.tolist()]
        collection.upsert(shoal.url, loaded.vectors, payloads=payloads)
        collection.settle(shoal.url)
        for share in SELECTIVITIES:
            bound = max(K, round(share * count))
            filter: Any = {"must": [{"key": "n", "range": {"lt": bound}}]} if share < 1 else None
            requests = collection.single_queries(shoal.url, loaded.queries, K, filter=filter)
            idle = closed(shoal, requests, 1, warm_up=0)
            busy = closed(shoal, requests, MANY)
            found = np.array(collection.found(busy.every_answer()))
            measured.append(
                {
                    "selectivity": share,
                    "recall@10": _recall(loaded, numbers < bound, found),
                    "first, ms": 1_000 * float(idle.latencies[0]),
                    "1 client, p50 ms": idle.quantile(0.5),
                    f"{MANY} clients, queries/s": busy.rate,
                    "of the unfiltered rate": busy.rate / measured[0][f"{MANY} clients, queries/s"]
                    if measured
                    else 1.0,
                }
            )
    return measured


def _recall(loaded: data.DataSet, matching: np.ndarray[Any, Any], found: Any) -> float:
    config = VectorConfig(dimension=loaded.vectors.shape[1], distance=loaded.distance)
    rows = np.flatnonzero(matching)
    near, _ = scan(
        config.prepare(loaded.vectors[rows]),
        config.prepare(loaded.queries),
        K,
        loaded.distance,
        None,
    )
    truth = rows[near]
    hits = [len(np.intersect1d(own, true)) / K for own, true in zip(found, truth, strict=True)]
    return float(np.mean(hits))


if __name__ == "__main__":
    main()
