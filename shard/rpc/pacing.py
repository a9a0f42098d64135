"""Writes give way to searches while the machine's cores are busy.

A bulk load takes every core that it can get, that of its client among them, and a search then waits
for one in each process on its way. So while searches come, and cores are busy, the rate of writes
is halved time and again, until the cores are not quite busy, or the rate is `LEAST_RATE`; from
there it rises again. That is how TCP avoids congestion (Jacobson, 1988). Who loads in batches is
slowed down by waiting alone, since the next batch follows the answer to the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import psutil

BUSY = 0.8
"""Share of all cores' time from which on searches wait for a core. Higher, and machines of two
cores would not count as busy: what works in turns leaves gaps."""
SEARCHED_SECONDS = 0.5
"""Without a search for so long there is none to give way to."""
LOOK_SECONDS = 0.2
"""Between looks at how busy the cores are; the kernel counts in steps of 0.01."""
LEAST_RATE, FIRST_RATE = 0.3e6, 1.2e6
"""Bytes a second: what is written whatever searches there are, and where the limit begins."""
LONGEST_SECONDS = 5.0
"""Most that a write is held back."""
_DOWN, _UP = 0.5, 1.5


class CoreTimes:
    """How busy the machine's cores are, this process and all others together."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def busy(self) -> float:
        """The share of the cores' time since the last call that was not idle."""
        before, self._before = self._before, psutil.cpu_times()
        spent = [now - then for then, now in zip(before, self._before, strict=True)]
        idle = self._before.idle - before.idle + self._before.iowait - before.iowait
        total = sum(spent)
        return 1 - idle / total if total > 0 else 0.0


class WritePacer:
    """Tells writes when to begin. Use from one event loop."""

    def __init__(self, busy: Callable[[], float]) -> None:
        """``busy`` as of `CoreTimes.busy`."""
        self._busy = busy
        self._rate: float | None = None
        """Bytes a second; None: no limit."""
        self._next_at = float("-inf")
        self._searched_at = float("-inf")
        self._looked_at = monotonic()

    def searched(self) -> None:
        """A search has come."""
        self._searched_at = monotonic()

    async def turn(self, size: int) -> None:
        """Return when a write of ``size`` bytes may begin."""
        now = monotonic()
        self._adjust(now)
        if self._rate is None:
            return
        begin = min(max(now, self._next_at), now + LONGEST_SECONDS)
        took = size / self._rate
        self._next_at = begin + took
        try:
            await asyncio.sleep(begin - now)
        except asyncio.CancelledError:
            self._next_at -= took
            raise

    def _adjust(self, now: float) -> None:
        if now - self._searched_at > SEARCHED_SECONDS:
            self._rate = None
        elif now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            if self._busy() >= BUSY:
                self._rate = FIRST_RATE if self._rate is None else self._rate * _DOWN
                self._rate = max(self._rate, LEAST_RATE)
            elif self._rate is not None:
                self._rate = None if self._rate > FIRST_RATE else self._rate * _UP
