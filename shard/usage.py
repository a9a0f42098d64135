"""What reads and writes take: vectors compared, bytes, CPU time, and the stages of their time.

Code that does the work says so as it goes, with `stage` and the ``count_`` functions. That costs
less than a microsecond, and is kept where somebody measures what runs in the thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from time import clock_gettime, perf_counter, thread_time
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Usage(msgspec.Struct, array_like=True):
    """What was taken, of no matter how much. A share of it need not be a whole number."""

    vectors: float = 0
    """Compared with a query, whole or by their codes; postings of a sparse one's terms."""
    vector_bytes: float = 0
    """Of those vectors, codes and postings."""
    payload_bytes: float = 0
    """Of payloads looked at for a filter or an order, or answered."""
    written_vector_bytes: float = 0
    written_payload_bytes: float = 0
    cpu_seconds: float = 0.0
    """Of the threads that searched."""
    masks: float = 0
    """Filters looked up, a segment, or some rows of a memtable, each."""
    masks_made: float = 0
    """Of these, how many were not remembered."""

    def add(self, other: Usage) -> None:
        self.vectors += other.vectors
        self.vector_bytes += other.vector_bytes
        self.payload_bytes += other.payload_bytes
        self.written_vector_bytes += other.written_vector_bytes
        self.written_payload_bytes += other.written_payload_bytes
        self.cpu_seconds += other.cpu_seconds
        self.masks += other.masks
        self.masks_made += other.masks_made

    def part(self, share: float) -> Usage:
        """That share of it."""
        return Usage(
            self.vectors * share,
            self.vector_bytes * share,
            self.payload_bytes * share,
            self.written_vector_bytes * share,
            self.written_payload_bytes * share,
            self.cpu_seconds * share,
            self.masks * share,
            self.masks_made * share,
        )


class Cost(msgspec.Struct, array_like=True):
    """What a call has taken."""

    usage: Usage = msgspec.field(default_factory=Usage)
    stages: dict[str, float] = {}
    """Seconds in each, over all threads; in the ``queue``, until the last one began."""

    def encode(self) -> bytes:
        return _encoder.encode(self)

    @staticmethod
    def decode(data: bytes) -> Cost:
        """Of nothing for ``b""``. Raises msgspec.DecodeError."""
        return _decoder.decode(data) if data else Cost()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Cost)


class Lap(msgspec.Struct):
    """The times that one stage was gone through, by `perf_counter`."""

    began: float
    """The first time."""
    ended: float
    """The last time."""
    seconds: float
    """All together."""
    times: int = 1


class Measured(msgspec.Struct):
    """What was measured in one thread."""

    began: float
    cpu_clock: int | None
    """The thread's, for `clock_gettime`; None: others cannot read it."""
    cpu_began: float
    """By that clock."""
    ended: float = 0.0
    usage: Usage = msgspec.field(default_factory=Usage)
    """CPU time is in it from `read_cpu` on."""
    stages: dict[str, Lap] = {}
    stage_began: float = 0.0
    """The newest one of all."""

    def read_cpu(self) -> None:
        """Take the CPU time of the thread until now, or until it went on to what it measured next.

        To be called by another thread, while the thread lives. When one asks for its own, Linux
        looks whether its slice of the core is over, and takes the core away: a tenth of a
        millisecond on average where others want it, in which nobody gets the interpreter's lock.
        """
        if self.cpu_clock is not None and not self.usage.cpu_seconds:
            self.end_cpu(clock_gettime(self.cpu_clock))

    def end_cpu(self, now: float) -> None:
        self.usage.cpu_seconds = now - self.cpu_began


class _Thread(threading.local):
    measured: Measured | None = None
    last: Measured | None = None
    """What was measured before."""

    def __init__(self) -> None:
        self.cpu_clock = _cpu_clock()


def _cpu_clock() -> int | None:
    """This thread's."""
    if sys.platform == "darwin":
        return None
    return time.pthread_getcpuclockid(threading.get_ident())


_thread = _Thread()


class _Stage:
    """One for all threads: to make one costs as much as what it does."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        if (measured := _thread.measured) is not None:
            measured.stage_began = perf_counter()

    def __exit__(self, *raised: object) -> None:
        measured = _thread.measured
        if measured is None:
            return
        began, ended = measured.stage_began, perf_counter()
        lap = measured.stages.get(self._name)
        if lap is None:
            measured.stages[self._name] = Lap(began, ended, ended - began)
        else:
            lap.ended = ended
            lap.seconds += ended - began
            lap.times += 1


@cache
def stage(name: str) -> _Stage:
    """Context: what runs in it is that stage of what is measured. Stages do not nest."""
    return _Stage(name)


def count_vectors(vectors: int, bytes: int) -> None:
    """So many vectors, of so many bytes in all, are compared."""
    if (measured := _thread.measured) is not None:
        measured.usage.vectors += vectors
        measured.usage.vector_bytes += bytes


def count_payloads(bytes: int) -> None:
    """Payloads of so many bytes are looked at."""
    if (measured := _thread.measured) is not None:
        measured.usage.payload_bytes += bytes


def count_mask(*, made: bool) -> None:
    """A filter is looked up; ``made``: and was not remembered."""
    if (measured := _thread.measured) is not None:
        measured.usage.masks += 1
        measured.usage.masks_made += made


def measure(work: Callable[[], T]) -> tuple[T, Measured]:
    """What ``work`` answers, done in this thread, and what that has taken: but for CPU time."""
    # Before it has done much, a thread can ask without losing its core.
    cpu = thread_time()
    if (last := _thread.last) is not None:
        _thread.last = None
        if not last.usage.cpu_seconds:
            last.end_cpu(cpu)
    measured = _thread.measured = Measured(perf_counter(), _thread.cpu_clock, cpu)
    try:
        result = work()
    finally:
        _thread.measured = None
    measured.ended = perf_counter()
    if measured.cpu_clock is None:
        measured.end_cpu(thread_time())
    _thread.last = measured
    return result, measured
