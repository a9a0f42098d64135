"""What the threads of this process do with their time, by looking at them again and again.

A sampling profiler on the interpreter's own view of its threads: no code is changed or traced, so
that what is not being profiled takes nothing. Threads that wait are seen too, where they wait.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import Counter
from threading import Event
from time import monotonic
from types import CodeType, FrameType

from shard.errors import InvalidInput, Overloaded

MAX_SECONDS, MAX_HERTZ = 60, 1_000


class Profiler:
    """Takes the profiles of this process, one at a time. Use from one event loop."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def take(self, seconds: float, hertz: int) -> str:
        """As `sample`, in a thread, which stops if this is cancelled.

        Raises Overloaded while another profile is taken, and InvalidInput.
        """
        if not 0 < seconds <= MAX_SECONDS:
            raise InvalidInput(f"seconds: expected more than 0 and at most {MAX_SECONDS}")
        if not 1 <= hertz <= MAX_HERTZ:
            raise InvalidInput(f"hertz: expected 1 to {MAX_HERTZ}")
        if self._lock.locked():
            raise Overloaded("a profile is being taken already")
        async with self._lock:
            stop = Event()
            try:
                return await asyncio.to_thread(sample, seconds, hertz, stop)
            finally:
                stop.set()  # Else the process would wait for it when it ends.


def sample(seconds: float, hertz: int, stop: Event) -> str:
    """Looks ``hertz`` times a second at the stacks of all threads but its own, until ``seconds``
    are over or ``stop`` is set.

    The answer is in the folded form that flame graphs are made of: a line a stack, of the thread's
    name and its frames from the outermost on, and how often it was seen.
    """
    seen: Counter[str] = Counter()
    names: dict[CodeType, str] = {}
    own, began, looks = threading.get_ident(), monotonic(), 0
    while (now := monotonic()) - began < seconds and not stop.is_set():
        threads = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            if ident != own:
                thread = threads.get(ident, "a thread that is not Python's")
                seen[f"{_plain(thread)};{_stack(frame, names)}"] += 1
        # By the clock, and not by pauses that add up; where that is too fast, some are left out.
        looks = max(looks + 1, int((now - began) * hertz))
        stop.wait(max(0.0, began + min(looks / hertz, seconds) - monotonic()))
    return "".join(f"{stack} {count}\n" for stack, count in sorted(seen.items()))


def _stack(frame: FrameType | None, names: dict[CodeType, str]) -> str:
    frames: list[str] = []
    while frame is not None:
        code = frame.f_code
        name = names.get(code)
        if name is None:
            module = frame.f_globals.get("__name__", "?")
            name = names[code] = _plain(f"{module}:{code.co_qualname}")
        frames.append(name)
        frame = frame.f_back
    return ";".join(reversed(frames))


def _plain(name: str) -> str:
    """Without what folded stacks are taken apart by."""
    return "_".join(name.replace(";", " ").split())
