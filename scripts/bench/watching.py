"""What metrics, logs and traces cost: the rate of searches with them, of that without.

    git worktree add /tmp/before COMMIT
    .venv/bin/python -m scripts.bench.watching --before /tmp/before [--rounds N] [--out FILE]

There is no switch for metrics, so what is compared is another checkout's code: of the commit before
they came, or this one's with `Observer`, `usage.measure`, `usage.stage` and `Accounts.settle` doing
nothing. Three services have the same vectors: that one; this one, which is asked for
metrics every 15 s as Prometheus would; and this one with one request in a thousand traced, to a
collector that takes the spans and does nothing with them. They get the same load in turns of two
seconds, in another order each round, and are compared round by round: what else the machine does,
it does to all.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread

import httpx
import numpy as np
from rich.console import Console
from rich.progress import track

from scripts.bench import collection, data, services
from scripts.bench.__main__ import MANY, K
from scripts.bench.load import Load, generate

SECONDS = 2.0
WARM_UP_SECONDS = 0.5
SCRAPE_SECONDS = 15.0
_SHARDS = 4
_BEFORE, _WATCHED, _TRACED = "before", "metrics", "metrics and traces"


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--before", type=Path, required=True, help="A checkout to compare with.")
    arguments.add_argument("--data", default="clustered-100-60k")
    arguments.add_argument("--rounds", type=int, default=40)
    arguments.add_argument("--clients", type=int, nargs="+", default=[1, MANY])
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    with TemporaryDirectory() as folder:
        figures = _measure(
            Path(folder),
            data.load(chosen.data),
            chosen.before.absolute(),
            chosen.rounds,
            chosen.clients,
        )
    Console().print_json(json.dumps(figures))
    if chosen.out:
        chosen.out.write_text(json.dumps({"kind": "watching", **figures}, indent=1) + "\n")


def _measure(
    folder: Path, loaded: data.DataSet, before: Path, rounds: int, every_clients: list[int]
) -> dict[str, dict[str, float]]:
    # The same segments for all: what is built anew is calibrated a little differently.
    with services.shoal(folder / "data") as service:
        collection.fill(service.url, loaded, _SHARDS)
        collection.settle(service.url)
    with ExitStack() as stack:
        collector = stack.enter_context(_collector())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector}
        running = {
            name: stack.enter_context(
                services.shoal(
                    shutil.copytree(folder / "data", folder / name.replace(" ", "-")),
                    checkout=checkout,
                    env=env,
                )
            )
            for name, checkout, env in (
                (_BEFORE, before, {}),
                (_WATCHED, None, {}),
                (_TRACED, None, traced),
            )
        }
        for name in (_WATCHED, _TRACED):
            stack.enter_context(_scraped(running[name].url))
        return {
            f"{clients} clients": _compare(running, loaded, clients, rounds)
            for clients in every_clients
        }


def _compare(
    running: dict[str, services.Service], loaded: data.DataSet, clients: int, rounds: int
) -> dict[str, float]:
    """Of each service, beside what was ``before``: rate and CPU time a query, medians."""
    rates: dict[str, list[float]] = defaultdict(list)
    cpu: dict[str, list[float]] = defaultdict(list)
    order = list(running)
    for _ in track(range(rounds), f"{clients} clients"):
        random.shuffle(order)
        for name in order:
            service = running[name]
            requests = collection.single_queries(service.url, loaded.queries, K)
            load = Load(
                url=service.url,
                requests=requests,
                clients=clients,
                seconds=SECONDS,
                warm_up_seconds=WARM_UP_SECONDS,
            )
            used = service.cpu_seconds()
            outcome = generate(load)
            used = service.cpu_seconds() - used
            if outcome.failures:
                raise RuntimeError(f"{name}: {outcome.failures} requests failed")
            rates[name].append(outcome.rate)
            # The warm-up's queries have taken as much each.
            cpu[name].append(used / (outcome.rate * (SECONDS + WARM_UP_SECONDS)))
    figures = {"before, queries/s": float(np.median(rates[_BEFORE]))}
    for name in (_WATCHED, _TRACED):
        for what, of in (("rate", rates), ("CPU a query", cpu)):
            ratios = np.array(of[name]) / np.array(of[_BEFORE])
            low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
            figures[f"{name}: {what}, of before"] = median
            figures[f"{name}: {what}, of before, first quartile"] = low
            figures[f"{name}: {what}, of before, third quartile"] = high
    return figures


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
