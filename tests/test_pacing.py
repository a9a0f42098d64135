"""Writes that give way to searches, with a clock and cores of the test's own."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import NamedTuple

import numpy as np
import psutil
import pytest

from shard.errors import Overloaded
from shard.model import (
    Distance,
    SearchParams,
    ShardConfig,
    Upsert,
    VectorColumn,
    encode_ids,
    unnamed,
)
from shard.objects.local import LocalObjectStore
from shard.rpc import pacing
from shard.rpc.client import ShardClient
from shard.rpc.pacing import (
    BUSY,
    FIRST_RATE,
    LEAST_RATE,
    LONGEST_SECONDS,
    LOOK_SECONDS,
    SEARCHED_SECONDS,
    CoreTimes,
    WritePacer,
    cores,
)
from shard.rpc.server import ShardServer

HOST = "127.0.0.1"
real_sleep = asyncio.sleep


def spin(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


class Machine:
    """A clock that only `sleep` moves, and cores that are as busy as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        self.busy = 1.0
        monkeypatch.setattr(pacing, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)
        self.pacer = WritePacer(lambda: self.busy)

    async def _sleep(self, seconds: float) -> None:
        # All that wait until then sleep beside one another: only the first one's counts.
        until = self.now + max(seconds, 1e-6)
        await real_sleep(0)
        self.now = max(self.now, until)

    async def write(self, size: int, seconds: float, *, searching: bool = True) -> float:
        """Bytes a second of writes one after the other, each taking 10 ms, for that long."""
        began, written = self.now, 0
        while self.now - began < seconds:
            if searching:
                with self.pacer.search():
                    pass
            await self.pacer.turn(size)
            self.now += 0.01
            written += size
        return written / (self.now - began)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


async def test_writes_are_not_held_back_without_searches(machine: Machine) -> None:
    assert await machine.write(100_000, 5, searching=False) == pytest.approx(10e6, rel=0.01)


async def test_writes_are_not_held_back_while_cores_are_idle(machine: Machine) -> None:
    machine.busy = BUSY - 0.01
    assert await machine.write(100_000, 5) == pytest.approx(10e6, rel=0.01)


async def test_writes_come_down_to_the_least_rate_while_cores_stay_busy(machine: Machine) -> None:
    await machine.write(100_000, 2)
    assert await machine.write(100_000, 20) == pytest.approx(LEAST_RATE, rel=0.05)
    # By bytes, and not by writes.
    assert await machine.write(10_000, 20) == pytest.approx(LEAST_RATE, rel=0.05)


async def test_the_limit_goes_when_the_last_search_is_over(machine: Machine) -> None:
    await machine.write(100_000, 2)
    await machine.write(100_000, SEARCHED_SECONDS + 1, searching=False)
    assert await machine.write(100_000, 5, searching=False) == pytest.approx(10e6, rel=0.01)


async def test_the_limit_rises_when_cores_are_idle_again(machine: Machine) -> None:
    await machine.write(100_000, 2)
    machine.busy = 0.0
    await machine.write(100_000, 12)
    assert await machine.write(100_000, 5) == pytest.approx(10e6, rel=0.01)
    # No further than that, however long it goes on: what is halved then counts.
    await machine.write(100_000, 60)
    machine.busy = 1.0
    await machine.write(100_000, 2)
    assert await machine.write(100_000, 5) == pytest.approx(LEAST_RATE, rel=0.05)


async def test_a_rate_that_keeps_the_cores_not_quite_busy_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores that are busy above 1 MB/s: what is written stays near that."""
    recent: list[tuple[float, int]] = []

    def busy() -> float:
        written = sum(size for at, size in recent if machine.now - at <= LOOK_SECONDS)
        return 0.4 + 0.3 * written / LOOK_SECONDS / 1e6

    monkeypatch.setattr(machine.pacer, "_busy", busy)
    began = machine.now
    while machine.now - began < 30:
        with machine.pacer.search():
            await machine.pacer.turn(20_000)
        machine.now += 0.001
        recent.append((machine.now, 20_000))
    rate = sum(size for at, size in recent if at - began > 5) / 25
    assert 0.6e6 < rate < 1.6e6


async def test_a_search_that_takes_long_is_one_all_the_time(machine: Machine) -> None:
    with machine.pacer.search():
        await machine.write(100_000, SEARCHED_SECONDS + 2, searching=False)
        rate = await machine.write(100_000, 20, searching=False)
    assert rate == pytest.approx(LEAST_RATE, rel=0.05)


async def test_no_write_waits_for_longer_than_it_may(machine: Machine) -> None:
    await machine.write(100_000, 2)
    with machine.pacer.search():
        await machine.pacer.turn(100 << 20)
        began = machine.now
        await machine.pacer.turn(1)
    assert machine.now - began <= LONGEST_SECONDS + LOOK_SECONDS


async def test_many_writers_are_let_in_one_after_the_other(machine: Machine) -> None:
    """More than the rate lets in on time; none waits too long, and there are no bursts."""
    await machine.write(100_000, 2)
    began = machine.now
    times: list[float] = []

    async def write() -> None:
        await machine.pacer.turn(1_000_000)
        times.append(machine.now - began)

    with machine.pacer.search():
        await asyncio.gather(*(write() for _ in range(20)))
    assert max(times) <= LONGEST_SECONDS + LOOK_SECONDS
    steps = [after - before for before, after in pairwise(sorted(times))]
    assert min(steps) > 0.5 * LONGEST_SECONDS / 20


async def test_writers_that_wait_go_on_when_the_searches_are_over(machine: Machine) -> None:
    await machine.write(100_000, 2)
    with machine.pacer.search():
        await machine.pacer.turn(10_000_000)
    began = machine.now
    await machine.pacer.turn(1)
    assert machine.now - began <= SEARCHED_SECONDS + 2 * LOOK_SECONDS


async def test_no_more_waits_than_memory_is_for(machine: Machine) -> None:
    await machine.write(100_000, 2)
    with machine.pacer.search():
        size = pacing.MAX_WAITING_BYTES // 4
        waiting = [asyncio.create_task(machine.pacer.turn(size)) for _ in range(5)]
        outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(one) for one in outcomes] == [NoneType] * 4 + [Overloaded]
    await machine.pacer.turn(2 * pacing.MAX_WAITING_BYTES)  # Nothing waits: it is let in.


async def test_a_write_that_is_called_back_is_not_counted(machine: Machine) -> None:
    await machine.write(100_000, 2)
    with machine.pacer.search():
        await machine.pacer.turn(1_000_000)
        waiting = asyncio.create_task(machine.pacer.turn(pacing.MAX_WAITING_BYTES))
        await real_sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        began = machine.now
        await machine.pacer.turn(1)
    assert machine.now - began < 1_000_000 / LEAST_RATE + LOOK_SECONDS


async def test_a_look_back_at_long_ago_changes_nothing(machine: Machine) -> None:
    with machine.pacer.search():
        machine.now += 60
        await machine.pacer.turn(10_000_000)
        await machine.pacer.turn(1)
    assert machine.now == 1_060


async def test_the_limit_does_not_begin_lower_than_it_must(machine: Machine) -> None:
    machine.now += LOOK_SECONDS
    rate = await machine.write(50_000, LOOK_SECONDS)
    assert rate > 0.9 * FIRST_RATE


def test_cores_are_busy_when_they_work() -> None:
    times = CoreTimes()
    spin(0.5)
    assert times.busy() > 0.9 / (os.cpu_count() or 1)


@pytest.mark.parametrize(("cpu_max", "expected"), [("50000 100000", 0.8), ("max 100000", 0.4)])
def test_a_container_has_its_quota_of_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_max: str, expected: float
) -> None:
    now = 0.0
    spent = CpuTimes(user=100.0, nice=10.0, idle=100.0, guest=50.0)
    monkeypatch.setattr(pacing, "monotonic", lambda: now)
    monkeypatch.setattr(psutil, "cpu_times", lambda: spent)
    (tmp_path / "cpu.max").write_text(f"{cpu_max}\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1000000\nuser_usec 1000000\n")
    times = CoreTimes(tmp_path)
    now = 10.0
    spent = CpuTimes(user=104.0, nice=14.0, idle=112.0, guest=54.0)
    (tmp_path / "cpu.stat").write_text("usage_usec 5000000\nuser_usec 4000000\n")
    assert times.busy() == pytest.approx(expected)


@pytest.mark.parametrize(("cpu_max", "expected"), [("150000 100000", 1), ("50000 100000", 1)])
def test_threads_are_no_more_than_the_quota(tmp_path: Path, cpu_max: str, expected: int) -> None:
    assert cores(tmp_path) == len(os.sched_getaffinity(0))
    (tmp_path / "cpu.max").write_text(f"{cpu_max}\n")
    (tmp_path / "cpu.stat").write_text("usage_usec 1000000\n")
    assert cores(tmp_path) == expected


class CpuTimes(NamedTuple):
    user: float
    nice: float
    idle: float
    guest: float


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ShardServer]:
    """On cores that are always busy."""
    monkeypatch.setattr(CoreTimes, "busy", lambda _: 1.0)
    server = ShardServer(LocalObjectStore(tmp_path / "store"), tmp_path / "scratch", host=HOST)
    yield server
    server.stop(0)


async def test_searches_come_first_over_the_wire(server: ShardServer) -> None:
    """Writes are slow for as long as searches come, and no longer."""
    rows, batch = 500, 50
    config = ShardConfig.unnamed(100, Distance.EUCLID)
    vectors = np.random.default_rng(1).standard_normal((rows, 100), np.float32)
    client = ShardClient(f"{HOST}:{server.start()}")
    try:
        server.assign({("c", 0): config})
        while server.status()[("c", 0)] != "serving":  # noqa: ASYNC110
            await asyncio.sleep(0.01)

        async def write() -> float:
            began = time.monotonic()
            for first in range(0, rows, batch):
                keys = encode_ids(range(first, first + batch))
                some = unnamed(vectors[first : first + batch])
                operation = Upsert(keys, some, [b"{}"] * batch)
                await client.write("c", {0: [operation]}, wait=True, timeout=30)
            return time.monotonic() - began

        async def search() -> None:
            query = VectorColumn(vectors[:1])
            while True:
                await client.search("c", [0], query, SearchParams(limit=1), timeout=30)
                await asyncio.sleep(0.05)

        searching = asyncio.create_task(search())
        await asyncio.sleep(2 * LOOK_SECONDS)
        beside_searches = await write()
        searching.cancel()
        await asyncio.sleep(2 * SEARCHED_SECONDS)
        alone = await write()
    finally:
        await client.close()
    least = (rows - batch) * 400 / FIRST_RATE - LOOK_SECONDS
    assert beside_searches > least
    assert alone < beside_searches
