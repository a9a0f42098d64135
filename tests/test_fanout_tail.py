"""The simulation of a fan-out's tail, against what queueing theory says and cases done by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from scripts.bench.fanout_tail import (
    HEDGE_BUDGET,
    WARM_UP,
    Cluster,
    Service,
    Tail,
    lognormal_with_pauses,
    measured,
    simulate,
)

IDLE = 1e-6
"""Queries a millisecond: so few that no two meet."""


def exponential(generator: np.random.Generator, count: int) -> NDArray[np.float64]:
    return generator.exponential(1.0, count)


def constant(_: np.random.Generator, count: int) -> NDArray[np.float64]:
    return np.ones(count)


def scripted(times: Sequence[float]) -> Service:
    """These service times in the order in which requests are begun, then 1 ms each."""
    left = iter(times)

    def draw(_: np.random.Generator, count: int) -> NDArray[np.float64]:
        return np.array([next(left, 1.0) for _ in range(count)])

    return draw


def erlang_c_wait(cores: int, load: float) -> float:
    """Mean wait in an M/M/c queue, in mean service times."""
    offered = cores * load
    idle = sum(offered**n / math.factorial(n) for n in range(cores))
    full = offered**cores / math.factorial(cores) / (1 - load)
    return full / (idle + full) / (cores * (1 - load))


@pytest.mark.parametrize(("cores", "load"), [(1, 0.5), (1, 0.7), (2, 0.7), (4, 0.7)])
def test_one_server_waits_as_an_m_m_c_queue(cores: int, load: float) -> None:
    """Over several seeds: what a queue does varies by a tenth from one run to the next."""
    cluster = Cluster(shards=1, cores=cores)
    runs = [
        simulate(cluster, exponential, queries_per_ms=cores * load, queries=50_000, seed=seed)
        for seed in range(6)
    ]
    wait = np.mean([run.query_ms.mean() for run in runs]) - 1
    assert wait == pytest.approx(erlang_c_wait(cores, load), rel=0.05)


def test_first_come_first_served() -> None:
    """Only so is the time in an M/M/1 queue exponential too; its mean is that of any order."""
    cluster = Cluster(shards=1, cores=1)
    tail = simulate(cluster, exponential, queries_per_ms=0.5, queries=100_000, seed=10)
    assert np.quantile(tail.query_ms, 0.99) == pytest.approx(math.log(100) / 0.5, rel=0.05)


def test_constant_service_waits_half_as_long() -> None:
    """M/D/1, by Pollaczek and Khinchine."""
    cluster = Cluster(shards=1, cores=1)
    tail = simulate(cluster, constant, queries_per_ms=0.7, queries=100_000, seed=2)
    assert tail.query_ms.mean() - 1 == pytest.approx(erlang_c_wait(1, 0.7) / 2, rel=0.05)


@pytest.mark.parametrize("replicas", [1, 2])
def test_idle_shards_are_independent(replicas: int) -> None:
    """The maximum of S has the distribution function F^S."""
    shards = 16
    cluster = Cluster(shards=shards, replicas=replicas)
    tail = simulate(cluster, exponential, queries_per_ms=IDLE, queries=20_000, seed=3)
    for share in (0.1, 0.5, 0.9, 0.99):
        expected = -math.log(1 - share ** (1 / shards))
        assert np.quantile(tail.query_ms, share) == pytest.approx(expected, rel=0.03)


def test_shards_that_are_hit_together_wait_together() -> None:
    """Where service times are equal, the slowest of eight servers is as slow as one: queues that
    each had arrivals of their own would differ, and so have a larger maximum."""
    one, eight = (
        simulate(Cluster(shards=shards), constant, queries_per_ms=3.5, queries=10_000, seed=4)
        for shards in (1, 8)
    )
    assert one.query_ms.max() > 2
    assert np.array_equal(one.query_ms, eight.query_ms)


def test_two_replicas_share_the_queue_almost() -> None:
    """The shorter of two queues is better than chance, which is M/M/1, and worse than one queue for
    both, which is M/M/2."""
    cluster = Cluster(shards=1, replicas=2, cores=1)
    tail = simulate(cluster, exponential, queries_per_ms=1.4, queries=100_000, seed=5)
    wait = tail.query_ms.mean() - 1
    assert 1.1 * erlang_c_wait(2, 0.7) < wait < 0.8 * erlang_c_wait(1, 0.7)


def test_a_hedge_overtakes_a_slow_request() -> None:
    """Query 50 meets a pause of 30 ms, is hedged after 5 ms and answered by the copy after 1:
    the other replica's, as the only worker of the first one is busy."""
    service = scripted([1.0] * 50 + [30.0])
    cluster = Cluster(shards=1, replicas=2, cores=1, hedge_after_ms=5.0)
    tail = simulate(cluster, service, queries_per_ms=IDLE, queries=100, seed=6)
    assert tail.query_ms[50 - int(100 * WARM_UP)] == pytest.approx(6.0)
    assert np.sort(tail.query_ms)[-2] == pytest.approx(1.0)
    assert (tail.hedges, tail.served, tail.cancelled) == (1, 101, 0)


def test_a_slow_hedge_changes_nothing() -> None:
    service = scripted([1.0] * 50 + [30.0, 40.0])
    cluster = Cluster(shards=1, replicas=2, cores=1, hedge_after_ms=5.0)
    tail = simulate(cluster, service, queries_per_ms=IDLE, queries=100, seed=6)
    assert tail.query_ms.max() == pytest.approx(30.0)
    assert tail.served == 101


def test_hedging_lowers_the_tail_that_pauses_make() -> None:
    plain, hedged = (
        paused(shards=16, load=0.3, hedge_after_ms=hedge_after) for hedge_after in (None, 3.0)
    )
    assert np.quantile(plain.query_ms, 0.99) > 30
    assert np.quantile(hedged.query_ms, 0.999) < np.quantile(plain.query_ms, 0.999) / 3
    assert 0 < hedged.extra_load < HEDGE_BUDGET
    assert plain.extra_load == 0


@pytest.mark.parametrize("shards", [1, 16])
@pytest.mark.parametrize("load", [0.3, 0.9])
def test_hedges_keep_to_their_budget(shards: int, load: float) -> None:
    """Even where all requests are late enough."""
    tail = paused(shards=shards, load=load, hedge_after_ms=0.0)
    assert 0.98 * HEDGE_BUDGET < tail.hedges / tail.requests <= HEDGE_BUDGET


@pytest.mark.parametrize("hedge_after_ms", [None, 0.0, 2.0])
def test_every_copy_is_served_or_cancelled(hedge_after_ms: float | None) -> None:
    tail = paused(shards=4, load=0.9, hedge_after_ms=hedge_after_ms)
    assert tail.shard_ms.shape == (10_000 * (1 - WARM_UP), 4)
    assert tail.shard_ms.min() > 0  # and none is NaN, as one without an answer would be
    assert tail.requests == 10_000 * 4
    assert tail.served + tail.cancelled == tail.requests + tail.hedges
    assert tail.served >= tail.requests
    assert (tail.cancelled > 0) == (hedge_after_ms is not None)


def test_a_seed_decides_everything() -> None:
    first, again = (paused(shards=4, load=0.7, hedge_after_ms=3.0) for _ in range(2))
    other = paused(shards=4, load=0.7, hedge_after_ms=3.0, seed=8)
    assert np.array_equal(first.shard_ms, again.shard_ms)
    assert (first.hedges, first.served) == (again.hedges, again.served)
    assert not np.array_equal(first.shard_ms, other.shard_ms)


def test_measured_times_are_drawn_as_often_as_they_were_measured() -> None:
    times = measured([1.0, 2.0, 2.0, 10.0])(np.random.default_rng(9), 100_000)
    values, counts = np.unique(times, return_counts=True)
    assert values.tolist() == [1.0, 2.0, 10.0]
    assert counts / len(times) == pytest.approx([0.25, 0.5, 0.25], rel=0.03)


def test_a_hedge_takes_a_second_replica() -> None:
    with pytest.raises(ValueError, match="second replica"):
        Cluster(shards=1, hedge_after_ms=1.0)


def paused(*, shards: int, load: float, hedge_after_ms: float | None, seed: int = 7) -> Tail:
    """10,000 queries to two replicas whose requests meet pauses."""
    mean = lognormal_with_pauses(np.random.default_rng(0), 200_000).mean()
    cluster = Cluster(shards=shards, replicas=2, cores=2, hedge_after_ms=hedge_after_ms)
    rate = float(load * 4 / mean)
    return simulate(cluster, lognormal_with_pauses, queries_per_ms=rate, queries=10_000, seed=seed)
