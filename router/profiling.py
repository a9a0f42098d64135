"""What the threads of this process do with their time, by looking at them again and again.

A sampling profiler on the interpreter's own view of its threads: no code is changed or traced, so
that what is not being profiled takes nothing. Threads that wait are seen too, where they wait.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from threading import Event
from time import monotonic
from types import CodeType, FrameType


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
