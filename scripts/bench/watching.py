"""What request ids, metrics and traces cost: the rate of searches with them, of that without.

    .venv/bin/python -m scripts.bench.watching [--rounds N] [--clients N] [--out FILE]

One service answers the same load all the time, while parts of what watches it are switched off and
on (`scripts/bench/switched`): for a second each, in another order each round, and compared round by
round. So neither processes nor connections, indexes, batches or what else the machine does differ
from one to the other. Metrics are asked for every 15 s, as Prometheus would; one request a
second is traced, as is the default, to a collector that takes the spans and does nothing with
them. What a search takes of the service's processes is told beside the rate, which varies more.

What cannot be switched stays on: a call to a shard server is timed and has an empty account, and
each part that can be switched asks whether it is on. Less than a microsecond a search, by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter
from typing import NamedTuple

import httpx
import numpy as np
import uvloop
from rich.console import Console

from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K
from scripts.bench.load import Generator, Load

SECONDS = 1.0
SETTLE_SECONDS = 0.15
WARM_UP_SECONDS = 3.0
SCRAPE_SECONDS = 15.0
_SHARDS = 4
_PARTS = {
    "nothing": "",
    "request ids": "requests",
    "ids, metrics": "requests metrics",
    "ids, metrics, traces": "requests metrics traces",
    # Twice the same, for what differs by chance.
    "nothing again": "",
}
_RATIOS = [
    ("request ids", "nothing"),
    ("ids, metrics", "request ids"),
    ("ids, metrics, traces", "request ids"),
    ("ids, metrics, traces", "nothing"),
    ("nothing again", "nothing"),
]


class Turn(NamedTuple):
    """What there was of one part in one round."""

    rate: float
    cpu_seconds: float
    """Of the service, a query."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="clustered-100-60k")
    arguments.add_argument("--rounds", type=int, default=80)
    arguments.add_argument("--clients", type=int, default=MANY)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    with TemporaryDirectory() as folder:
        turns = _measure(Path(folder), data.load(chosen.data), chosen.clients, chosen.rounds)
    figures = _compare(turns)
    Console().print_json(json.dumps(figures))
    if chosen.out:
        told = {"kind": "watching", "clients": chosen.clients, "rounds": chosen.rounds, **figures}
        chosen.out.write_text(json.dumps(told, indent=1) + "\n")


def _measure(
    folder: Path, loaded: data.DataSet, clients: int, rounds: int
) -> dict[str, list[Turn]]:
    switch = folder / "switch"
    switch.write_text(_PARTS["nothing"])
    switched = Path(__file__).parent / "switched"
    with _collector() as collector:
        env = {
            "SHOAL_BENCH_WATCHED": str(switch),
            "PYTHONPATH": f"{switched}:{Path.cwd()}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        }
        with services.shoal(folder / "data", env=env) as service:
            collection.fill(service.url, loaded, _SHARDS)
            collection.settle(service.url)
            requests = collection.single_queries(service.url, loaded.queries, K)
            load = Load(url=service.url, requests=requests, clients=clients, seconds=SECONDS)
            processes = [process.pid for process in service.tree()]
            context = multiprocessing.get_context("spawn")
            with _scraped(service.url), ProcessPoolExecutor(1, context) as process:
                return process.submit(_run, load, rounds, switch, processes).result()


def _run(load: Load, rounds: int, switch: Path, processes: list[int]) -> dict[str, list[Turn]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_take_turns(load, rounds, switch, processes))


async def _take_turns(
    load: Load, rounds: int, switch: Path, processes: list[int]
) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = defaultdict(list)
    part = switch.with_suffix(".part")
    async with Generator(load) as generator:
        await generator.send(WARM_UP_SECONDS)
        for _ in range(rounds):
            for name in random.sample(list(_PARTS), len(_PARTS)):
                part.write_text(_PARTS[name])
                part.replace(switch)
                await generator.send(SETTLE_SECONDS)
                cpu, began = _cpu_seconds(processes), perf_counter()
                answered, failures = await generator.send(SECONDS)
                cpu, seconds = _cpu_seconds(processes) - cpu, perf_counter() - began
                if failures:
                    raise RuntimeError(f"{name}: {failures} requests failed")
                turns[name].append(Turn(answered / seconds, cpu / answered))
    return turns


def _cpu_seconds(processes: Sequence[int]) -> float:
    """Of all threads that there are, to the nanosecond, where `/proc/PID/stat` counts ticks."""
    total = 0
    for process in processes:
        # Some that have nothing to do with searches end meanwhile.
        with suppress(FileNotFoundError, ProcessLookupError):
            for task in Path(f"/proc/{process}/task").iterdir():
                with suppress(FileNotFoundError, ProcessLookupError):
                    total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def _compare(turns: dict[str, list[Turn]]) -> dict[str, float]:
    figures = {}
    for name, each in turns.items():
        figures[f"{name}: queries/s"] = float(np.median([turn.rate for turn in each]))
        micros = [turn.cpu_seconds * 1e6 for turn in each]
        figures[f"{name}: CPU a query, µs"] = float(np.median(micros))
    for name, base in _RATIOS:
        for number, what in enumerate(("rate", "CPU")):
            ratios = np.array(
                [a[number] / b[number] for a, b in zip(turns[name], turns[base], strict=True)]
            )
            key = f"{name}, of {base}: {what}"
            figures[key] = float(np.median(ratios))
            figures[f"{key}, standard error"] = _error_of_median(ratios)
    return figures


def _error_of_median(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """By the bootstrap."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(values, (1_000, len(values)))
    return float(np.median(drawn, axis=1).std())


@contextmanager
def _scraped(url: str) -> Iterator[None]:
    """Metrics are asked for meanwhile."""
    over = Event()

    def scrape() -> None:
        while not over.wait(SCRAPE_SECONDS):
            httpx.get(f"{url}/metrics", timeout=30).raise_for_status()

    thread = Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class _Sink(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _collector() -> Iterator[str]:
    """Takes spans by OTLP; the URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Sink) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


if __name__ == "__main__":
    main()
