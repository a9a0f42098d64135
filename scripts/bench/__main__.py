"""Shoal beside raw FAISS and its peers, in one run on one machine, load generator included.

    .venv/bin/python -m scripts.bench [--data glove] [--rows N] [--peers chromadb,usearch,...]

Prints a table of figures and of the ratios between them, and writes both as JSON where ``--out``
says. Peers need ``scripts/bench/install-peers`` first.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import faiss
import httpx
import numpy as np
from rich.console import Console
from rich.table import Table

from scripts.bench import collection, data, peers, services
from scripts.bench.limit import RawFaiss
from scripts.bench.load import Load, Outcome, generate

K = 10
BATCH = 64
CLIENTS = (1, 4, 16, 32, 64)
MANY = 32
QUANTILES = (0.5, 0.99, 0.999)
SECONDS = 6.0
TARGET = 0.95
ROUNDS = 3
"""Shoal and what it is compared with take turns, and the median of the ratios counts."""
NPROBES = (1, 2, 4, 8, 16, 32, 64)
"""Where the curves of recall and rate are taken."""
CHROMA_WIDTHS = (25, 50, 100, 200, 300, 400, 600)


class Figures:
    """What was measured, in the order of measuring; shown as it comes."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.curves: dict[str, dict[str, list[tuple[float, ...]]]] = {}
        """Points of each line of each plot."""
        self._console = Console(highlight=False)

    def note(self, name: str, value: float) -> None:
        self.values[name] = value
        self._console.print(f"{name}: {value:,.4g}")

    def point(self, plot: str, line: str, *at: float) -> None:
        self.curves.setdefault(plot, {}).setdefault(line, []).append(at)

    def load(self, name: str, outcome: Outcome, per_request: int = 1) -> None:
        if outcome.failures:
            raise RuntimeError(f"{name}: {outcome.failures} requests failed")
        self.note(f"{name}, queries/s", outcome.rate * per_request)
        for share, word in zip(QUANTILES, ("p50", "p99", "p99.9"), strict=True):
            self.note(f"{name}, {word} ms", outcome.quantile(share))

    def show(self) -> None:
        table = Table("figure", "value")
        for name, value in self.values.items():
            table.add_row(name, f"{value:,.4g}")
        self._console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--data", default="glove", help="a name or a file: see scripts/bench/data.py"
    )
    parser.add_argument("--rows", type=int, help="only so many of them")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--peers", default="", help=f"of chromadb,{','.join(peers.EMBEDDED)}")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chosen = data.load(arguments.data, arguments.rows)
    figures = Figures()
    with TemporaryDirectory(prefix="shoal-bench-") as folder:
        measure_shoal(Path(folder) / "shoal", chosen, arguments.shards, figures)
        for peer in filter(None, arguments.peers.split(",")):
            if peer == "chromadb":
                measure_chroma(Path(folder), chosen, figures)
            else:
                measured = peers.embedded(peer, chosen, TARGET)
                for name, value in measured.items():
                    figures.note(f"{peer} (embedded): {name}", value)
                at = measured["recall"], measured["queries_per_second"]
                figures.point("recall and rate", f"{peer}, embedded, 2 threads", *at)
    figures.show()
    if arguments.out is not None:
        about = {"data": chosen.name, "rows": len(chosen.vectors), "cores": os.cpu_count()}
        measured = {"figures": figures.values, "curves": figures.curves}
        arguments.out.write_text(json.dumps(about | measured, indent=1) + "\n")


def measure_shoal(directory: Path, chosen: data.DataSet, shards: int, figures: Figures) -> None:
    rows, dimension = chosen.vectors.shape
    with services.shoal(directory) as shoal:
        empty = shoal.anonymous_bytes(*services.SHARD_SERVERS)
        took = collection.fill(shoal.url, chosen, shards)
        figures.note("upsert, rows/s", rows / took)
        collection.settle(shoal.url)
        used = (shoal.anonymous_bytes(*services.SHARD_SERVERS) - empty) / rows
        figures.note("anonymous memory over that of the empty service, bytes/vector", used)
        figures.note("the same, share of the raw vector", used / (4 * dimension))

        singles = collection.single_queries(shoal.url, chosen.queries, K)
        for clients in CLIENTS:
            cpu = shoal.cpu_seconds()
            outcome = closed(shoal, singles, clients, warm_up=0)
            cpu = shoal.cpu_seconds() - cpu
            figures.load(f"{clients} clients", outcome)
            at = (outcome.rate, *map(outcome.quantile, QUANTILES))
            figures.point("latency against load", "closed loop", *at)
            figures.note(f"{clients} clients, CPU ms/query", 1_000 * cpu / len(outcome.latencies))
            answered = [answer for answer in outcome.answers if answer]
            if len(answered) == len(singles):
                found = np.array(collection.found(answered))
                figures.note(f"{clients} clients, recall@10", chosen.recall(found, K))
        peak = figures.values[f"{MANY} clients, queries/s"]
        for share in (0.25, 0.5, 0.75):
            load = Load(
                url=shoal.url, requests=singles, clients=256, seconds=SECONDS, rate=share * peak
            )
            outcome = generate(load)
            figures.load(f"open loop at {share:.0%} of that of {MANY} clients", outcome)
            at = (outcome.rate, *map(outcome.quantile, QUANTILES))
            figures.point("latency against load", "open loop", *at)
        raw = RawFaiss(directory)
        compare_with_faiss(shoal, raw, chosen, figures)
        measure_curve(shoal, chosen, raw, figures)
        measure_ingest(shoal, chosen, singles, figures)


def compare_with_faiss(
    shoal: services.Service, raw: RawFaiss, chosen: data.DataSet, figures: Figures
) -> None:
    figures.note("rows in indexes", raw.rows)
    figures.note("raw FAISS, recall@10", chosen.recall(raw.search(chosen.queries, K), K))
    singles = collection.single_queries(shoal.url, chosen.queries, K)
    batches = collection.batched_queries(shoal.url, chosen.queries, BATCH, K)
    shares, gaps = [], []
    for number in range(ROUNDS):
        faiss.omp_set_num_threads(os.cpu_count() or 1)
        limit = raw.rate(chosen.queries, K, BATCH, SECONDS)
        outcome = closed(shoal, batches, 2)
        shares.append(outcome.rate * BATCH / limit)
        figures.note(f"round {number}: raw FAISS in batches of {BATCH}, queries/s", limit)
        figures.load(f"round {number}: batches of {BATCH}, 2 clients", outcome, BATCH)
        one = 1_000 / raw.rate(chosen.queries, K, 1, SECONDS / 2)
        idle = closed(shoal, singles, 1).quantile(0.5)
        gaps.append(idle - one)
        figures.note(f"round {number}: raw FAISS, one query, ms", one)
        figures.note(f"round {number}: one client, p50 ms", idle)
    figures.note("RATIO batches: Shoal to raw FAISS", float(np.median(shares)))
    figures.note("DIFFERENCE one query: Shoal less raw FAISS, ms", float(np.median(gaps)))


def measure_curve(
    shoal: services.Service, chosen: data.DataSet, raw: RawFaiss, figures: Figures
) -> None:
    """Recall and rate of Shoal, and of FAISS by itself, at one nprobe after the other."""
    for nprobe in NPROBES:
        requests = collection.single_queries(shoal.url, chosen.queries, K, nprobe)
        outcome = closed(shoal, requests, MANY)
        answered = np.array(collection.found(outcome.every_answer()))
        figures.point(
            "recall and rate", f"Shoal, {MANY} clients", chosen.recall(answered, K), outcome.rate
        )
        recall = chosen.recall(raw.search(chosen.queries, K, nprobe), K)
        rate = raw.rate(chosen.queries, K, BATCH, SECONDS / 2, nprobe)
        figures.point("recall and rate", f"raw FAISS, batches of {BATCH}", recall, rate)


def measure_ingest(
    shoal: services.Service, chosen: data.DataSet, singles: Sequence[bytes], figures: Figures
) -> None:
    """Search while the same rows are upserted once more, at full speed."""
    ratios = []
    for number in range(ROUNDS):
        quiet = closed(shoal, singles, 4)
        enough = Event()
        with ThreadPoolExecutor(1) as thread:
            upserting = thread.submit(
                collection.keep_upserting, shoal.url, chosen.vectors, enough.is_set
            )
            try:
                busy = closed(shoal, singles, 4)
            finally:
                enough.set()
        figures.note(f"round {number}: upserts during searches, rows/s", upserting.result())
        figures.load(f"round {number}: 4 clients, quiet", quiet)
        figures.load(f"round {number}: 4 clients, during upserts", busy)
        ratios.append(busy.quantile(0.99) / quiet.quantile(0.99))
        collection.settle(shoal.url)
    figures.note("RATIO p99 during upserts to quiet", float(np.median(ratios)))


def measure_chroma(folder: Path, chosen: data.DataSet, figures: Figures) -> None:
    """Chroma at the first width that reaches the recall, beside a Shoal with the same rows."""
    chroma = peers.Chroma(folder / "chroma", chosen)
    with chroma.serving():
        figures.note("chromadb: upsert, rows/s", chroma.fill())
    for width in CHROMA_WIDTHS:
        with chroma.serving():
            chroma.widen(width)
        with chroma.serving() as service:
            requests = chroma.requests(chosen.queries, K)
            outcome = closed(service, requests, MANY)
            recall = chosen.recall(chroma.found(outcome.every_answer()), K)
            figures.note(f"chromadb at ef_search {width}, recall@10", recall)
            figures.load(f"chromadb at ef_search {width}, {MANY} clients", outcome)
            figures.point("recall and rate", f"chromadb, {MANY} clients", recall, outcome.rate)
            if recall >= TARGET or width == CHROMA_WIDTHS[-1]:
                break
    ratios = []
    for _ in range(ROUNDS):
        with services.shoal(folder / "shoal") as shoal:
            wait_for_recovery(shoal)
            ours = closed(shoal, collection.single_queries(shoal.url, chosen.queries, K), MANY)
        with chroma.serving() as service:
            theirs = closed(service, chroma.requests(chosen.queries, K), MANY)
        figures.note(f"Shoal, {MANY} clients, queries/s", ours.rate)
        figures.note(f"chromadb, {MANY} clients, queries/s", theirs.rate)
        ratios.append(ours.rate / theirs.rate)
    figures.note(f"RATIO {MANY} clients: Shoal to chromadb", float(np.median(ratios)))
    upserts = figures.values["upsert, rows/s"] / figures.values["chromadb: upsert, rows/s"]
    figures.note("RATIO upsert: Shoal to chromadb", upserts)


def wait_for_recovery(shoal: services.Service) -> None:
    """Return once the collection answers, and what the last upserts left is tidied up."""
    httpx.get(f"{shoal.url}/collections/{collection.NAME}", timeout=120).raise_for_status()
    collection.settle(shoal.url)


def closed(
    service: services.Service, requests: Sequence[bytes], clients: int, warm_up: float = 1.0
) -> Outcome:
    load = Load(
        url=service.url,
        requests=requests,
        clients=clients,
        seconds=SECONDS,
        warm_up_seconds=warm_up,
    )
    return generate(load)


if __name__ == "__main__":
    main()
