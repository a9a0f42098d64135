"""Writes that give way to searches, with a clock and cores of the test's own."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from shard.rpc import pacing
from shard.rpc.pacing import (
    BUSY,
    FIRST_RATE,
    LEAST_RATE,
    LONGEST_SECONDS,
    LOOK_SECONDS,
    SEARCHED_SECONDS,
    CoreTimes,
    WritePacer,
)


class Machine:
    """A clock that only `sleep` moves, and cores that are as busy as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        self.busy = 1.0
        monkeypatch.setattr(pacing, "monotonic", lambda: self.now)
        monkeypatch.setattr(asyncio, "sleep", self._sleep)
        self.pacer = WritePacer(lambda: self.busy)

    async def _sleep(self, seconds: float) -> None:
        self.now += max(seconds, 0.0)

    async def write(self, size: int, seconds: float, *, searching: bool = True) -> float:
        """Bytes a second of writes one after the other, each taking 10 ms, for that long."""
        began, written = self.now, 0
        while self.now - began < seconds:
            if searching:
                self.pacer.searched()
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
    await machine.write(100_000, 3)
    assert await machine.write(100_000, 5) == pytest.approx(10e6, rel=0.01)


async def test_a_rate_that_keeps_the_cores_not_quite_busy_is_found(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cores that are busy above 1 MB/s: what is written stays near that."""
    recent: list[tuple[float, int]] = []

    def busy() -> float:
        written = sum(size for at, size in recent if machine.now - at <= LOOK_SECONDS)
        return 0.5 + 0.3 * written / LOOK_SECONDS / 1e6

    monkeypatch.setattr(machine.pacer, "_busy", busy)
    began = machine.now
    while machine.now - began < 30:
        machine.pacer.searched()
        await machine.pacer.turn(20_000)
        machine.now += 0.001
        recent.append((machine.now, 20_000))
    rate = sum(size for at, size in recent if at - began > 5) / 25
    assert 0.6e6 < rate < 1.6e6


async def test_no_write_waits_for_longer_than_it_may(machine: Machine) -> None:
    await machine.write(100_000, 2)
    machine.pacer.searched()
    await machine.pacer.turn(100 << 20)
    began = machine.now
    await machine.pacer.turn(1)
    assert machine.now - began <= LONGEST_SECONDS


async def test_the_limit_does_not_begin_lower_than_it_must(machine: Machine) -> None:
    machine.now += LOOK_SECONDS
    rate = await machine.write(50_000, LOOK_SECONDS)
    assert rate > 0.9 * FIRST_RATE


def test_cores_are_busy_when_they_work() -> None:
    times = CoreTimes()
    until = time.monotonic() + 0.5
    while time.monotonic() < until:
        pass
    assert times.busy() > 0.9 / len(os.sched_getaffinity(0))
