"""What request ids, metrics and traces cost: the rate of searches with them, of that without.

    .venv/bin/python -m scripts.bench.watching [--rounds N] [--clients N] [--out FILE]

One service answers the same load all the time, while parts of what watches it are switched off and
on in all of its processes (`scripts/bench/switched`): for a quarter of a second each, in another
order each round. So neither processes nor connections, indexes, batches or what else the machine
does differ from one to the other: two services, with the same code, do by three in a hundred.

Where there are metrics they are asked for every 15 s, as Prometheus would; where there are traces
it is one request a second, as is the default, to a collector that takes the spans and does nothing
with them. Spans leave at once and not after five seconds, so that who makes them also sends them.

What cannot be switched stays on: a call to a shard server is timed and has an empty account, and
each part that can be switched asks whether it is on. Less than a microsecond a search, by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter
from typing import NamedTuple

import httpx
import numpy as np
import uvloop
from numpy.typing import NDArray
from rich.console import Console

from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K
from scripts.bench.load import Generator, Load

PHASE_SECONDS = 0.25
SETTLE_SECONDS = 0.05
"""Of each phase, until what has begun before is over. A search takes a fifth of it."""
WARM_UP_SECONDS = 5.0
SCRAPE_SECONDS = 15.0
SEND_MILLISECONDS = 50
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


class Schedule(NamedTuple):
    """What is on when."""

    began: float
    """By `perf_counter`, which is one for all processes."""
    seconds: float
    """Of each phase."""
    phases: list[str]

    def begin(self, phase: int) -> float:
        """By `perf_counter`."""
        return self.began + phase * self.seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="clustered-100-60k")
    arguments.add_argument("--rounds", type=int, default=400)
    arguments.add_argument("--clients", type=int, default=MANY)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    names = [name for _ in range(chosen.rounds) for name in random.sample([*_PARTS], len(_PARTS))]
    with TemporaryDirectory() as folder:
        rates = _measure(Path(folder), data.load(chosen.data), chosen.clients, names)
    order = np.array(names)
    figures = _compare({name: rates[order == name] for name in _PARTS})
    Console().print_json(json.dumps(figures))
    if chosen.out:
        told = {"kind": "watching", "clients": chosen.clients, "rounds": chosen.rounds, **figures}
        chosen.out.write_text(json.dumps(told, indent=1) + "\n")


def _measure(
    folder: Path, loaded: data.DataSet, clients: int, names: list[str]
) -> NDArray[np.float64]:
    """Searches a second in phases of those names (n,)."""
    told = folder / "schedule"
    with _collector() as collector:
        env = {
            "SHOAL_BENCH_WATCHED": str(told),
            "PYTHONPATH": f"{Path(__file__).parent / 'switched'}:{Path.cwd()}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_BSP_SCHEDULE_DELAY": str(SEND_MILLISECONDS),
        }
        with services.shoal(folder / "data", env=env) as service:
            collection.fill(service.url, loaded, _SHARDS)
            collection.settle(service.url)
            requests = collection.single_queries(service.url, loaded.queries, K)
            load = Load(url=service.url, requests=requests, clients=clients, seconds=PHASE_SECONDS)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as process:
                began = perf_counter() + WARM_UP_SECONDS
                schedule = Schedule(began, PHASE_SECONDS, [_PARTS[name] for name in names])
                part = told.with_suffix(".part")
                part.write_text(json.dumps(schedule))
                part.replace(told)
                running = process.submit(_run, load, schedule)
                _scrape(service.url, schedule)
                return np.array(running.result())


def _run(load: Load, schedule: Schedule) -> list[float]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_count(load, schedule))


async def _count(load: Load, schedule: Schedule) -> list[float]:
    rates = []
    async with Generator(load) as generator:
        for phase in range(len(schedule.phases)):
            await generator.send(schedule.begin(phase) + SETTLE_SECONDS - perf_counter())
            began = perf_counter()
            answered, failures = await generator.send(schedule.begin(phase + 1) - began)
            if failures:
                raise RuntimeError(f"phase {phase}: {failures} requests failed")
            rates.append(answered / (perf_counter() - began))
    return rates


def _scrape(url: str, schedule: Schedule) -> None:
    """Ask for metrics where there are some, until all phases are over."""
    with httpx.Client(timeout=30) as client:
        for phase, on in enumerate(schedule.phases):
            if "metrics" not in on or random.random() > PHASE_SECONDS / SCRAPE_SECONDS:
                continue
            when = schedule.begin(phase) + random.random() * PHASE_SECONDS
            time.sleep(max(0.0, when - perf_counter()))
            client.get(f"{url}/metrics").raise_for_status()


def _compare(rates: dict[str, NDArray[np.float64]]) -> dict[str, float]:
    """``rates``: (rounds,) of each name."""
    figures = {f"{name}: queries/s": float(of_name.mean()) for name, of_name in rates.items()}
    draws = np.random.default_rng(0)
    for name, base in _RATIOS:
        figures[f"{name}, of {base}"] = float(rates[name].mean() / rates[base].mean())
        # By the bootstrap over rounds.
        rounds = draws.integers(0, len(rates[name]), (1_000, len(rates[name])))
        drawn = rates[name][rounds].mean(axis=1) / rates[base][rounds].mean(axis=1)
        figures[f"{name}, of {base}, standard error"] = float(drawn.std())
    return figures


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
