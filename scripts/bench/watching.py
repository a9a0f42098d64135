"""What request ids, metrics and traces cost: the rate of searches with them, of that without.

    .venv/bin/python -m scripts.bench.watching [--services N] [--rounds N] [--out FILE]

A service answers the same load all the time, while parts of what watches it are switched off and
on in all of its processes (`scripts/bench/switched`): for a quarter of a second each, in another
order each round. So neither processes nor connections, indexes, batches or what else the machine
does differ from one to the other, as they do from one service to the next with the same code. What
they take may still differ from one service to the next: there are several, one after the other.

Where there are metrics they are asked for every 15 s, as Prometheus would; where there are traces
it is one request a second, as is the default, and the spans of five seconds are sent together, to a
collector that takes them and does nothing with them. These are seconds of such phases.

Nobody asks what requests take, as is the default. With ``SHOAL_SLOW_QUERY_MS`` set, what is kept
for who asks is part of the metrics.

What cannot be switched stays on: a call to a shard server is timed, has an empty account and is set
down to be settled, who is under way is counted, and each part that can be switched asks whether it
is on. Less than a microsecond a search, by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import random
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from time import perf_counter
from typing import Any, NamedTuple

import httpx
import numpy as np
import uvloop
from numpy.typing import NDArray
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from router.batching import MAX_BATCH
from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K
from scripts.bench.load import Generator, Load

PHASE_SECONDS = 0.25
SETTLE_SECONDS = 0.05
"""Of each phase, until what has begun before is over."""
WARM_UP_SECONDS = 3.0
SCRAPE_SECONDS = 15.0
_NEVER_MILLISECONDS = 1 << 30
_SHARDS = 4
_TOLERANCE = 0.05
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

    def write(self, path: Path) -> None:
        """All at once."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(self))
        part.replace(path)

    @staticmethod
    def read(path: Path) -> Schedule:
        return Schedule(*json.loads(path.read_text()))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="clustered-100-60k")
    arguments.add_argument("--services", type=int, default=8, help="two or more")
    arguments.add_argument("--rounds", type=int, default=100, help="of each service")
    arguments.add_argument("--clients", type=int, default=MANY)
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    loaded = data.load(chosen.data)
    measured = []
    for _ in range(chosen.services):
        names = [
            name for _ in range(chosen.rounds) for name in random.sample([*_PARTS], len(_PARTS))
        ]
        with TemporaryDirectory() as folder:
            counts = _measure(Path(folder), loaded, chosen.clients, names)
        order = np.array(names)
        measured.append([counts[order == name] for name in _PARTS])
        print(f"{len(measured)} of {chosen.services} services measured", flush=True)
    figures = _compare(np.array(measured))
    Console().print_json(json.dumps(figures))
    if chosen.out:
        about = {name: getattr(chosen, name) for name in ("services", "rounds", "clients")}
        told = {"kind": "watching", **about, **figures}
        chosen.out.write_text(json.dumps(told, indent=1) + "\n")


def _measure(
    folder: Path, loaded: data.DataSet, clients: int, names: list[str]
) -> NDArray[np.float64]:
    """How many searches there were in how many seconds of phases of those names, (n, 2)."""
    told = folder / "schedule"
    with _collector() as (collector, sent):
        env = {
            "SHOAL_BENCH_WATCHED": str(told),
            "PYTHONPATH": f"{Path(__file__).parent / 'switched'}:{Path.cwd()}",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
            "OTEL_BSP_SCHEDULE_DELAY": str(_NEVER_MILLISECONDS),
        }
        with services.shoal(folder / "data", env=env) as service:
            collection.fill(service.url, loaded, _SHARDS)
            collection.settle(service.url)
            requests = collection.single_queries(service.url, loaded.queries, K)
            load = Load(url=service.url, requests=requests, clients=clients, seconds=PHASE_SECONDS)
            before = _counted(service.url)
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, context) as process:
                phases = [_PARTS[name] for name in names]
                running = process.submit(_run, load, phases, told)
                _scrape(service.url, told, running)
                counts = np.array(running.result())
            counted = _counted(service.url) - before
        # By now it has sent what was left.
        _check(phases, counts, counted, sent)
    return counts


def _run(load: Load, phases: list[str], told: Path) -> list[tuple[int, float]]:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_count(load, phases, told))


async def _count(load: Load, phases: list[str], told: Path) -> list[tuple[int, float]]:
    counts = []
    async with Generator(load) as generator:
        await generator.send(WARM_UP_SECONDS)
        schedule = Schedule(perf_counter() + WARM_UP_SECONDS, PHASE_SECONDS, phases)
        schedule.write(told)
        for phase in range(len(phases)):
            _, failures = await generator.send(
                schedule.begin(phase) + SETTLE_SECONDS - perf_counter()
            )
            began = perf_counter()
            answered, more = await generator.send(schedule.begin(phase + 1) - began)
            counts.append((answered, perf_counter() - began))
            if failures + more:
                raise RuntimeError(f"phase {phase}: {failures + more} requests failed")
    return counts


def _scrape(url: str, told: Path, running: Future[Any]) -> None:
    """Ask for metrics where there are some, until ``running`` is done."""
    while not told.exists() and not running.done():
        time.sleep(0.1)
    if running.done():
        return
    schedule = Schedule.read(told)
    with httpx.Client(timeout=30) as client:
        for phase, on in enumerate(schedule.phases):
            if "metrics" not in on or random.random() > PHASE_SECONDS / SCRAPE_SECONDS:
                continue
            when = schedule.begin(phase) + random.random() * PHASE_SECONDS
            wait([running], timeout=when - perf_counter())
            if running.done():
                return
            client.get(f"{url}/metrics").raise_for_status()


class _Counted(NamedTuple):
    """What the service has counted."""

    searches: float
    calls: float
    """To shard servers."""

    def __sub__(self, other: _Counted) -> _Counted:
        return _Counted(self.searches - other.searches, self.calls - other.calls)


def _counted(url: str) -> _Counted:
    found = {"searches": 0.0, "calls": 0.0}
    text = httpx.get(f"{url}/metrics", timeout=30).raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "shoal_requests_total":
                found["searches"] += sample.value * sample.labels["route"].endswith("/query")
            elif sample.name == "shoal_shard_server_call_seconds_count":
                found["calls"] += sample.value * (sample.labels["method"] == "Search")
    return _Counted(**found)


def _check(
    phases: list[str], counts: NDArray[np.float64], counted: _Counted, sent: list[bytes]
) -> None:
    """Raises RuntimeError where it does not look as if parts had been on, and off, as they should.

    ``sent``: what the collector was sent.
    """
    on = np.array(["metrics" in phase for phase in phases])
    # What was not counted are the seconds of settling.
    searches = counts[on, 0].sum() * PHASE_SECONDS / (PHASE_SECONDS - SETTLE_SECONDS)
    traces = sum("traces" in phase for phase in phases) * PHASE_SECONDS
    if abs(counted.searches / searches - 1) > _TOLERANCE:
        raise RuntimeError(f"{counted.searches} searches are counted of {searches:.0f}")
    if not searches / MAX_BATCH < counted.calls < searches:
        raise RuntimeError(f"{counted.calls} calls are counted for {searches:.0f} searches")
    roots, processes = _traced(sent)
    # They are chosen at random.
    if abs(roots - traces) > 4 * traces**0.5 + 1:
        raise RuntimeError(f"there were {roots} traces in {traces:.0f} s with traces")
    if processes < 2:
        raise RuntimeError("not both the router and shard servers have sent spans")


def _traced(sent: list[bytes]) -> tuple[int, int]:
    """How many requests were traced, and how many processes have told of them."""
    roots, processes = 0, set()
    for body in sent:
        for told in ExportTraceServiceRequest.FromString(body).resource_spans:
            processes |= {
                one.value.int_value for one in told.resource.attributes if one.key == "process.pid"
            }
            roots += sum(not span.parent_span_id for of in told.scope_spans for span in of.spans)
    return roots, len(processes)


def _compare(counts: NDArray[np.float64]) -> dict[str, Any]:
    """``counts``: searches and seconds, (services, parts, rounds, 2)."""
    searches, seconds = np.moveaxis(counts.sum(axis=2), -1, 0)
    rates = dict(zip(_PARTS, (searches / seconds).T, strict=True))
    figures: dict[str, Any] = {f"{name}: queries/s": rates[name].mean() for name in _PARTS}
    for name, base in _RATIOS:
        ratios = rates[name] / rates[base]
        figures[f"{name}, of {base}"] = ratios.mean()
        figures[f"{name}, of {base}, standard error"] = ratios.std(ddof=1) / len(ratios) ** 0.5
        figures[f"{name}, of {base}, each service"] = ratios.tolist()
    return figures


@contextmanager
def _collector() -> Iterator[tuple[str, list[bytes]]]:
    """Takes spans by OTLP: its URL, and the bodies that have come."""
    sent: list[bytes] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Sink) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
        server.shutdown()


if __name__ == "__main__":
    main()
