"""How Shoal's figures grow: with rows, with shards, and with router processes.

    .venv/bin/python -m scripts.bench.scale rows|shards|routers|service [--data NAME] [--out FILE]

``service`` measures single searches of one shard, for ``scripts.bench.fanout_tail``. Every figure
is taken once nothing is left to build.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import httpx
import numpy as np
from rich.console import Console

from cluster.catalog import Catalog
from cluster.topology import TopologyDocument
from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K, closed
from shard.model import SearchParams, VectorColumn
from shard.objects.local import LocalObjectStore
from shard.rpc.client import ShardClient

ROWS = (10_000, 100_000, 1_000_000, 5_000_000)
SHARDS = (1, 4, 16)
ROUTERS = (1, 2)
_SHARD_COUNT = 4
_WARM_UP_CALLS, _CALLS = 500, 20_000

Row = dict[str, float]


def rows(folder: Path, name: str) -> Iterator[Row]:
    """A collection that grows, of the first n rows of a data set."""
    every = len(data.load(name).vectors)
    counts = [count for count in ROWS if count < every] + [every]
    for before, count in pairwise((0, *counts)):
        chosen = data.load(name, count)
        with services.shoal(folder) as shoal:
            row: Row = {"rows": count, "dimension": chosen.vectors.shape[1]}
            if not before:
                empty = shoal.anonymous_bytes(*services.SHARD_SERVERS)
                collection.create(shoal.url, chosen, _SHARD_COUNT)
            took = collection.upsert(shoal.url, chosen.vectors[before:], before)
            row["upsert, rows/s"] = (count - before) / took
            began = perf_counter()
            collection.settle(shoal.url)
            row["then building, s"] = perf_counter() - began - collection.SETTLED_SECONDS
            row |= _searches(shoal, chosen)
            used = shoal.anonymous_bytes(*services.SHARD_SERVERS) - empty
            row["anonymous memory, bytes/vector"] = used / count
            row["stored, bytes/vector"] = _stored_bytes(folder) / count
        row["restart to first answer, s"] = _restart_seconds(folder, chosen)
        yield row


def shards(folder: Path, name: str) -> Iterator[Row]:
    """The same rows in more and more shards."""
    chosen = data.load(name)
    for count in SHARDS:
        with services.shoal(folder / str(count)) as shoal:
            took = collection.fill(shoal.url, chosen, count)
            collection.settle(shoal.url)
            yield {
                "shards": count,
                "upsert, rows/s": len(chosen.vectors) / took,
                **_searches(shoal, chosen),
            }


def routers(folder: Path, name: str) -> Iterator[Row]:
    """The same collection behind more and more router processes."""
    chosen = data.load(name)
    for count in ROUTERS:
        with services.shoal(folder, "--routers", str(count)) as shoal:
            if count == ROUTERS[0]:
                collection.fill(shoal.url, chosen, _SHARD_COUNT)
            collection.settle(shoal.url)
            yield {"routers": count, **_searches(shoal, chosen)}


def service(folder: Path, name: str) -> list[float]:
    """Milliseconds of one search after the other in one shard, over gRPC."""
    chosen = data.load(name)
    with services.shoal(folder) as shoal:
        collection.fill(shoal.url, chosen, _SHARD_COUNT)
        collection.settle(shoal.url)
        took = asyncio.run(_shard_seconds(folder, chosen))
    return [round(1_000 * seconds, 3) for seconds in took]


async def _shard_seconds(folder: Path, chosen: data.DataSet) -> list[float]:
    store = LocalObjectStore(folder)
    searched = Catalog(store).get(collection.NAME)
    topology = TopologyDocument(store).read()
    client = ShardClient(topology.servers[topology.placements[searched.id][0]])
    params = SearchParams(limit=K)
    took = []
    for number in range(-_WARM_UP_CALLS, _CALLS):
        row = number % len(chosen.queries)
        query = VectorColumn(chosen.queries[row : row + 1])
        began = perf_counter()
        await client.search(searched.id, [0], query, params, timeout=10)
        took.append(perf_counter() - began)
    await client.close()
    return took[_WARM_UP_CALLS:]


def _searches(shoal: services.Service, chosen: data.DataSet) -> Row:
    requests = collection.single_queries(shoal.url, chosen.queries, K)
    idle = closed(shoal, requests, 1)
    cpu = shoal.cpu_seconds()
    busy = closed(shoal, requests, MANY, warm_up=0)
    cpu = shoal.cpu_seconds() - cpu
    return {
        "recall@10": chosen.recall(np.array(collection.found(busy.every_answer())), K),
        "1 client, p50 ms": idle.quantile(0.5),
        f"{MANY} clients, queries/s": busy.rate,
        f"{MANY} clients, p99 ms": busy.quantile(0.99),
        "CPU ms/query": 1_000 * cpu / len(busy.latencies),
    }


def _restart_seconds(folder: Path, chosen: data.DataSet) -> float:
    began = perf_counter()
    with services.shoal(folder) as shoal:
        body = {"query": chosen.queries[0].tolist(), "limit": K}
        where = f"{shoal.url}/collections/{collection.NAME}/points/query"
        httpx.post(where, json=body, timeout=600).raise_for_status()
        return perf_counter() - began


def _stored_bytes(folder: Path) -> int:
    return sum(
        path.stat().st_size for path in (folder / "collections").rglob("*") if path.is_file()
    )


CURVES: dict[str, tuple[Callable[[Path, str], Iterator[Row]], str]] = {
    "rows": (rows, "clustered-128-5m"),
    "shards": (shards, "glove"),
    "routers": (routers, "glove"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("mode", choices=[*CURVES, "service"])
    parser.add_argument("--data", help="a name or a file: see scripts/bench/data.py")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory(prefix="shoal-bench-") as folder:
        if arguments.mode == "service":
            took = service(Path(folder), arguments.data or "glove")
            result = json.dumps({"service_ms": took})
        else:
            measure, usual = CURVES[arguments.mode]
            name = arguments.data or usual
            rows = list(_shown(measure(Path(folder), name)))
            result = json.dumps({"data": name, "rows": rows}, indent=1)
    if arguments.out is not None:
        arguments.out.write_text(result + "\n")


def _shown(measured: Iterator[Row]) -> Iterator[Row]:
    console = Console(highlight=False)
    for row in measured:
        console.print(
            ", ".join(f"{key}: {value:,.4g}" for key, value in row.items()), soft_wrap=True
        )
        yield row


if __name__ == "__main__":
    main()
