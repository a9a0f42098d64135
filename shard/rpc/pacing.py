"""Writes give way to searches while the machine's cores are busy.

A bulk load takes every core that it can get, that of its client among them, and a search then waits
for one in each process on its way. So while searches come, and cores are busy, the rate of writes
is halved time and again, until the cores are not quite busy, or the rate is `LEAST_RATE`; from
there it rises again, slowly. That is how TCP avoids congestion (Jacobson, 1988). Who loads in
batches is slowed down by waiting alone, since the next batch follows the answer to the last.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import psutil

from shard.errors import Overloaded

BUSY = 0.7
"""Share of all cores' time from which on searches wait for a core. Higher, and machines of two
cores would not count as busy: what works in turns leaves gaps, and two cores that do nothing but
answer one another's searches are idle for a fifth of the time."""
SEARCHED_SECONDS = 0.5
"""Without a search for so long there is none to give way to."""
LOOK_SECONDS = 0.2
"""Between looks at how busy the cores are; the kernel counts in steps of 0.01."""
LEAST_RATE, FIRST_RATE = 0.3e6, 1.2e6
"""Bytes a second: what is written whatever searches there are, and where the limit begins."""
LONGEST_SECONDS = 5.0
"""About the most that a write is held back: the rate is raised to what waits in that time."""
STALE_SECONDS = 2 * LONGEST_SECONDS
"""A look back at longer than this says nothing about now."""
MAX_WAITING_BYTES = 64 << 20
"""More than this waiting, and writes are refused."""
_DOWN, _UP = 0.5, 1.1
_CGROUP = Path("/sys/fs/cgroup")


class CoreTimes:
    """How busy the cores are that this process may use, by all that runs on them.

    That is the machine's cores, or the container's quota of them where that is used up first.
    """

    def __init__(self, cgroup: Path = _CGROUP) -> None:
        self._cgroup = cgroup
        self._quota = _quota(cgroup)
        self._before = self._look()

    def busy(self) -> float:
        """The share of the cores' time since the last call that could not be had."""
        before, self._before = self._before, self._look()
        free, total, used, at = (now - then for then, now in zip(before, self._before, strict=True))
        machine = 1 - free / total if total > 0 else 0.0
        if self._quota is None or at <= 0:
            return machine
        return max(machine, used / (at * self._quota))

    def _look(self) -> tuple[float, float, float, float]:
        """Seconds so far: of all cores that were free, of all, those of the container, and now."""
        times = psutil.cpu_times()._asdict()
        # Builds of indexes count as busy, for all their niceness: searches beside them are slow.
        free = times["idle"] + times.get("iowait", 0.0)
        # Guests' time is within the user's.
        total = sum(spent for name, spent in times.items() if not name.startswith("guest"))
        used = 0.0 if self._quota is None else _used_seconds(self._cgroup)
        return free, total, used, monotonic()


def cores(cgroup: Path = _CGROUP) -> int:
    """How many threads of this process can compute at once, with the container's quota."""
    there = len(os.sched_getaffinity(0))
    quota = _quota(cgroup)
    return there if quota is None else max(1, min(there, int(quota)))


def _quota(cgroup: Path) -> float | None:
    """Cores that the control group may use; None without a limit, or where it cannot be told."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        _used_seconds(cgroup)
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _used_seconds(cgroup: Path) -> float:
    fields = dict(line.split() for line in (cgroup / "cpu.stat").read_text().splitlines())
    return int(fields["usage_usec"]) / 1e6


class WritePacer:
    """Tells writes when to begin. Use from one event loop."""

    def __init__(self, busy: Callable[[], float]) -> None:
        """``busy`` as of `CoreTimes.busy`."""
        self._busy = busy
        self._rate: float | None = None
        """Bytes a second; None: no limit."""
        self._owed = 0.0
        """Bytes of the writes so far that are still to be made up for by waiting."""
        self._held = False
        """Whether a write has been held back since the last look."""
        self._at = self._looked_at = monotonic()
        self._searches = 0
        self._searched_at = float("-inf")
        self._waiting = self._most_waiting = 0
        """Bytes, and how many there have been since there were none."""
        self._first = asyncio.Lock()

    @property
    def rate(self) -> float:
        """Bytes a second that writes are held to; infinite without a limit."""
        return math.inf if self._rate is None else self._rate

    @property
    def waiting(self) -> int:
        """Bytes of the writes that are held back, or about to begin."""
        return self._waiting

    @contextmanager
    def search(self) -> Iterator[None]:
        """A search is under way."""
        self._searches += 1
        try:
            yield
        finally:
            self._searches -= 1
            self._searched_at = monotonic()

    async def turn(self, size: int) -> None:
        """Return when a write of ``size`` bytes may begin. Raises Overloaded."""
        # A write larger than the bound is let in when nothing else waits.
        if self._waiting and self._waiting + size > MAX_WAITING_BYTES:
            raise Overloaded(f"{self._waiting} bytes of writes are waiting already")
        self._waiting += size
        self._most_waiting = max(self._most_waiting, self._waiting)
        try:
            async with self._first:
                # Only between writes: while this one waits the cores are less busy than they were.
                self._look()
                while (pause := self._pause()) > 0:
                    self._held = True
                    await asyncio.sleep(min(pause, LOOK_SECONDS))
                if self._rate is not None:
                    self._owed += min(size, self._rate * LONGEST_SECONDS)
        finally:
            self._waiting -= size
            if not self._waiting:
                self._most_waiting = 0

    def _pause(self) -> float:
        """Seconds to wait, as it looks now, until what is owed is made up for."""
        now = monotonic()
        passed, self._at = now - self._at, now
        if not self._searches and now - self._searched_at > SEARCHED_SECONDS:
            self._rate = None
        if self._rate is None:
            self._owed = 0.0
            return 0.0
        rate = max(self._rate, self._most_waiting / LONGEST_SECONDS)
        self._owed = max(self._owed - passed * rate, 0.0)
        return self._owed / rate

    def _look(self) -> None:
        now = monotonic()
        since = now - self._looked_at
        if since < LOOK_SECONDS:
            return
        self._looked_at = now
        busy = self._busy()
        if since > STALE_SECONDS:
            return
        if busy >= BUSY:
            self._rate = FIRST_RATE if self._rate is None else self._rate * _DOWN
            self._rate = max(self._rate, LEAST_RATE)
        elif self._rate is not None and self._held:
            # A rate that is not made use of says nothing about a higher one.
            self._rate *= _UP
        self._held = False
