"""Filtered searches beside unfiltered ones: recall and rate at each selectivity.

    .venv/bin/python -m scripts.bench.filters [--data NAME] [--rows N] [--out FILE]

Each point has a number and a tenant that have nothing to do with its vector; a filter asks for
numbers below a bound. The first search with a filter reads the payloads; the others have its
outcome. Last, each search has another filter: one tenant, and numbers between random bounds.
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
from scripts.bench.__main__ import MANY, ROUNDS, K, closed
from shard.index.exact import scan
from shard.model import VectorConfig

DIFFERENT = 40_000
"""Filters, more than there are searches in a round."""
TENANTS = 1_000
SELECTIVITIES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
_SHARDS = 4


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="glove")
    arguments.add_argument("--rows", type=int, default=300_000)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    with TemporaryDirectory() as folder:
        measured = _measure(Path(folder), data.load(chosen.data, chosen.rows))
    Console().print_json(json.dumps(measured))
    if chosen.out:
        chosen.out.write_text(json.dumps({"kind": "filters", **measured}, indent=1) + "\n")


def _measure(folder: Path, loaded: data.DataSet) -> dict[str, Any]:
    count = len(loaded.vectors)
    chance = np.random.default_rng(1)
    numbers = chance.permutation(count)
    tenants = chance.integers(TENANTS, size=count)
    measured: list[dict[str, float]] = []
    with services.shoal(folder) as shoal:
        collection.create(shoal.url, loaded, _SHARDS)
        payloads = [
            {"n": number, "tenant": f"tenant-{tenant}", "word": "x" * 20}
            for number, tenant in zip(numbers.tolist(), tenants.tolist(), strict=True)
        ]
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
        different = _measure_different(shoal, loaded)
    return {"rows": measured, "each another filter": different}


def _measure_different(shoal: services.Service, loaded: data.DataSet) -> dict[str, float]:
    """Beside the same searches without a filter, in turns."""
    chance = np.random.default_rng(2)
    count = len(loaded.vectors)
    queries = loaded.queries[chance.integers(len(loaded.queries), size=ROUNDS * DIFFERENT)]
    rates = []
    for start in range(0, len(queries), DIFFERENT):
        some = queries[start : start + DIFFERENT]
        plain = closed(shoal, collection.single_queries(shoal.url, some, K), MANY)
        requests = []
        for row in range(len(some)):
            low, high = sorted(chance.integers(count, size=2).tolist())
            must: list[Any] = [
                {"key": "tenant", "match": {"value": f"tenant-{chance.integers(TENANTS)}"}},
                {"key": "n", "range": {"gte": low, "lt": high}},
            ]
            query = some[row : row + 1]
            requests += collection.single_queries(shoal.url, query, K, filter={"must": must})
        filtered = closed(shoal, requests, MANY, warm_up=3.0 if start == 0 else 1.0)
        if filtered.failures:
            raise RuntimeError(f"{filtered.failures} requests failed")
        if len(filtered.latencies) > DIFFERENT:
            raise RuntimeError(f"DIFFERENT: expected more than {len(filtered.latencies)}")
        rates.append((filtered.rate, filtered.rate / plain.rate, filtered.quantile(0.99)))
    rate, ratio, p99 = np.median(rates, axis=0).tolist()
    return {
        f"{MANY} clients, queries/s": rate,
        "of the unfiltered rate": ratio,
        f"{MANY} clients, p99 ms": p99,
    }


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
