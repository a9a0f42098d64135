"""The tail of a fan-out, simulated: what the slowest of S shard servers makes of a query.

    .venv/bin/python -m scripts.bench.fanout_tail [--service FILE.json] [--seed N] [--out FILE.json]

A query asks every shard at the same instant and is answered when its slowest shard is; that is the
maximum whose growth with S Dean and Barroso describe in "The Tail at Scale" (CACM 56(2), 2013), and
their hedged requests are what is tried against it. Queries arrive as a Poisson process. A shard
server has `CORES` workers and a FIFO queue. Of two replicas a request goes to the one with fewer
requests outstanding, and to either at random when they are equal: of two, that is also what the
power of two choices comes to (Mitzenmacher, 2001).

With hedging, a request without an answer after the p95 of a shard's latency (as it is without
hedging), or its p98, goes to the other replica too, if the budget allows. The first answer counts;
the other copy is cancelled if it still waits in its queue, and runs on if it has begun.

Left out: a query that is slow for its own sake is slow at every shard and replica, whereas here
each copy's service time is drawn anew, which flatters hedging; a pause takes one worker and not the
machine; one router sees all of the load; the network takes no time.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from itertools import chain, count, product
from pathlib import Path
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

# Service times where no --service says otherwise. The median is that of two shards' search as
# docs/benchmarks.md has it; the spread is a placeholder until it is measured.
MEDIAN_MS = 1.06
P99_TO_P50 = 3.0
# A pause (of the machine, a garbage collection, a page fault), on top of that; placeholders too.
PAUSE_MS = 30.0
PAUSE_SHARE = 0.001

CORES = 4
SHARDS = (1, 4, 16, 64, 256)
UTILISATIONS = (0.3, 0.5, 0.7)
"""Load as a share of what all replicas can serve, hedges not counted."""
HEDGE_QUANTILES = (0.95, 0.98)
HEDGE_BUDGET = 0.05
"""Hedges a request, at most."""
SAVED_QUERIES = 100
"""The budget of as many queries can be saved up for a burst."""
WARM_UP = 0.1
"""Share of the queries that come first and are left out: servers are empty at the start."""
REQUESTS, LEAST_QUERIES, MOST_QUERIES = 400_000, 12_000, 100_000
"""A cell of the table simulates about so many requests, within limits: with 10,000 queries, ten are
beyond p99.9."""

Service: TypeAlias = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""Draws that many service times, in milliseconds."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    shards: int
    replicas: int = 1
    """1 or 2, of each shard."""
    cores: int = CORES
    """Requests that a server works on at a time."""
    hedge_after_ms: float | None = None

    def __post_init__(self) -> None:
        if self.replicas not in (1, 2):
            raise ValueError("a shard has one or two replicas")
        if self.hedge_after_ms is not None and self.replicas == 1:
            raise ValueError("hedging takes a second replica")


@dataclass(frozen=True, kw_only=True)
class Tail:
    """What came of a simulation. Latencies leave the warm-up out, counts do not."""

    shard_ms: NDArray[np.float64]
    """From when a query arrived until a shard's first answer: (queries, shards)."""
    requests: int
    hedges: int
    served: int
    """Requests and hedges that a worker has finished, as it does what it began."""
    cancelled: int
    """Requests and hedges that were taken from a queue unserved."""

    @property
    def query_ms(self) -> NDArray[np.float64]:
        slowest: NDArray[np.float64] = self.shard_ms.max(axis=1)
        return slowest

    @property
    def extra_load(self) -> float:
        """Work that hedging adds, as a share of the work without. Counting is enough: whether a
        copy is begun does not depend on how long it will take.
        """
        return self.served / self.requests - 1


_ANSWER, _HEDGE, _QUERY = range(3)
"""Kinds of events; of those at the same instant, a worker that gets free comes first."""


def simulate(
    cluster: Cluster, service: Service, *, queries_per_ms: float, queries: int, seed: int
) -> Tail:
    """Send ``queries`` through ``cluster``, and wait for the last answer.

    The same seed gives the same arrivals, whatever the cluster and the service times.
    """
    shards, replicas, cores = cluster.shards, cluster.replicas, cluster.cores
    hedge_after, budget = cluster.hedge_after_ms, HEDGE_BUDGET * shards
    arrivals: list[float] = (
        np.random.default_rng([seed, 0]).exponential(1 / queries_per_ms, queries).cumsum().tolist()
    )
    generator = np.random.default_rng([seed, 1])
    service_times = chain.from_iterable(service(generator, 16_384).tolist() for _ in count())
    coin = random.Random(seed).random

    # Request n is that of query n // shards to shard n % shards; server s is replica s % replicas
    # of shard s // replicas, so s ^ 1 is the other one of two.
    requests = queries * shards
    latencies = array("d", [math.nan]) * requests
    answered, hedged, chosen = bytearray(requests), bytearray(requests), bytearray(requests)
    queues: list[deque[int]] = [deque() for _ in range(shards * replicas)]
    free = [cores] * len(queues)
    # As the router counts them: it is done with both copies when the first answer is there.
    outstanding = [0] * len(queues)
    hedges = served = cancelled = 0
    tokens = 0.0

    events: list[tuple[float, int, int, int]] = [(arrivals[0], _QUERY, 0, 0)]

    def send(request: int, server: int, now: float) -> None:
        outstanding[server] += 1
        if free[server]:
            free[server] -= 1
            heappush(events, (now + next(service_times), _ANSWER, request, server))
        else:
            queues[server].append(request)

    while events:
        now, kind, number, server = heappop(events)
        if kind == _ANSWER:
            served += 1
            if not answered[number]:
                answered[number] = 1
                latencies[number] = now - arrivals[number // shards]
                outstanding[server] -= 1
                if hedged[number]:
                    outstanding[server ^ 1] -= 1
            queue = queues[server]
            while queue:
                request = queue.popleft()
                if not answered[request]:
                    heappush(events, (now + next(service_times), _ANSWER, request, server))
                    break
                cancelled += 1
            else:
                free[server] += 1
        elif kind == _QUERY:
            tokens = min(tokens + budget, SAVED_QUERIES * budget)
            first = number * shards
            for shard in range(shards):
                server = replicas * shard
                if replicas == 2:
                    more = outstanding[server] - outstanding[server + 1]
                    if more > 0 or (more == 0 and coin() < 0.5):
                        server += 1
                        chosen[first + shard] = 1
                send(first + shard, server, now)
            if hedge_after is not None:
                heappush(events, (now + hedge_after, _HEDGE, number, 0))
            if number + 1 < queries:
                heappush(events, (arrivals[number + 1], _QUERY, number + 1, 0))
        else:  # the timers of a query's requests, which end together
            first = number * shards
            request = answered.find(0, first, first + shards)
            while request >= 0 and tokens >= 1:
                tokens -= 1
                hedges += 1
                hedged[request] = 1
                send(request, 2 * (request - first) + 1 - chosen[request], now)
                request = answered.find(0, request + 1, first + shards)

    return Tail(
        shard_ms=np.array(latencies).reshape(queries, shards)[int(WARM_UP * queries) :],
        requests=requests,
        hedges=hedges,
        served=served,
        cancelled=cancelled,
    )


def lognormal_with_pauses(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
    spread = math.log(P99_TO_P50) / NormalDist().inv_cdf(0.99)
    body = generator.lognormal(math.log(MEDIAN_MS), spread, size)
    return body + PAUSE_MS * (generator.random(size) < PAUSE_SHARE)


def measured(samples_ms: list[float]) -> Service:
    """Service times as they were measured, drawn with replacement; pauses are among them."""
    samples = np.array(samples_ms)

    def draw(generator: np.random.Generator, size: int) -> NDArray[np.float64]:
        return generator.choice(samples, size)

    return draw


_Row: TypeAlias = dict[str, float | None]
_COLUMNS = (
    *("shards", "replicas", "load", "hedge after, ms", "p50, ms", "p99, ms", "p99.9, ms"),
    *("hedge share", "extra load", "queries"),
)
_FORMATS = ("", "", ".0%", ".1f", ".1f", ".1f", ".1f", ".1%", ".1%", ",")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--service", type=Path, help='{"service_ms": [samples]}')
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    service: Service = lognormal_with_pauses
    if arguments.service is not None:
        service = measured(json.loads(arguments.service.read_text())["service_ms"])
    mean_ms = float(service(np.random.default_rng(arguments.seed), 1_000_000).mean())
    cells = list(product(SHARDS, (1, 2), UTILISATIONS))
    rows: list[_Row] = []
    for shards, replicas, load in track(cells, console=Console(stderr=True)):
        run = partial(
            simulate,
            service=service,
            queries_per_ms=load * replicas * CORES / mean_ms,
            queries=min(max(REQUESTS // shards, LEAST_QUERIES), MOST_QUERIES),
            seed=arguments.seed,
        )
        cluster = Cluster(shards=shards, replicas=replicas)
        tail = run(cluster)
        rows.append(_row(cluster, load, tail))
        if replicas == 2:
            for hedge_after in np.quantile(tail.shard_ms, HEDGE_QUANTILES).tolist():
                hedging = replace(cluster, hedge_after_ms=hedge_after)
                rows.append(_row(hedging, load, run(hedging)))
    _show(rows)
    if arguments.out is not None:
        about = {"service": str(arguments.service or "lognormal with pauses"), "mean_ms": mean_ms}
        about |= {"cores": CORES, "seed": arguments.seed}
        arguments.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


def _row(cluster: Cluster, load: float, tail: Tail) -> _Row:
    hedged = cluster.hedge_after_ms is not None
    values = (
        *(cluster.shards, cluster.replicas, load, cluster.hedge_after_ms),
        *np.quantile(tail.query_ms, (0.5, 0.99, 0.999)).tolist(),
        *((tail.hedges / tail.requests, tail.extra_load) if hedged else (None, None)),
        len(tail.shard_ms),
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _show(rows: list[_Row]) -> None:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for name in _COLUMNS:
        table.add_column(name, justify="right")
    for row in rows:
        cells = zip(row.values(), _FORMATS, strict=True)
        table.add_row(*("" if value is None else format(value, form) for value, form in cells))
    Console(highlight=False).print(table)


if __name__ == "__main__":
    main()
