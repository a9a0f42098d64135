"""What reads and writes take: vectors compared, bytes, CPU time, and the stages of their time.

Code that does the work says so as it goes, with `stage` and `count`. That costs less than a
microsecond, and is kept where somebody measures what runs in the thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TypeVar

import msgspec

T = TypeVar("T")


class Usage(msgspec.Struct):
    """What was taken, of no matter how much."""

    vectors: int = 0
    """Compared with a query, whole or by their codes; postings of a sparse one's terms."""
    vector_bytes: int = 0
    """Of those vectors, codes and postings."""
    payload_bytes: int = 0
    """Of payloads looked at for a filter or an order, or answered."""
    written_vector_bytes: int = 0
    written_payload_bytes: int = 0
    cpu_seconds: float = 0.0
    """Of the threads that searched."""
    masks: int = 0
    """Filters looked up, a segment, or some rows of a memtable, each."""
    masks_made: int = 0
    """Of these, how many were not remembered."""

    def add(self, other: Usage, share: float = 1.0) -> None:
        """Take in a ``share`` of what ``other`` has."""
        self.cpu_seconds += other.cpu_seconds * share
        for name in _COUNTS:
            if amount := getattr(other, name):
                whole = amount if share == 1.0 else round(amount * share)
                setattr(self, name, getattr(self, name) + whole)


class Cost(msgspec.Struct):
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
_COUNTS = [name for name in Usage.__struct_fields__ if name != "cpu_seconds"]


@dataclass(slots=True)
class Lap:
    """The times that one stage was gone through, by `perf_counter`."""

    began: float
    """The first time."""
    ended: float
    """The last time."""
    seconds: float
    """All together."""
    times: int = 1


@dataclass(slots=True)
class Measured:
    """What was measured in one thread."""

    began: float
    ended: float = 0.0
    usage: Usage = field(default_factory=Usage)
    stages: dict[str, Lap] = field(default_factory=dict)


class _Thread(threading.local):
    measured: Measured | None = None


_thread = _Thread()


class _Stage:
    __slots__ = ("_began", "_name")

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> None:
        self._began = perf_counter()

    def __exit__(self, *raised: object) -> None:
        measured = _thread.measured
        if measured is None:
            return
        ended = perf_counter()
        lap = measured.stages.get(self._name)
        if lap is None:
            measured.stages[self._name] = Lap(self._began, ended, ended - self._began)
        else:
            lap.ended = ended
            lap.seconds += ended - self._began
            lap.times += 1


def stage(name: str) -> _Stage:
    """Context: what runs in it is that stage of what is measured. Stages do not nest."""
    return _Stage(name)


def count(
    *,
    vectors: int = 0,
    vector_bytes: int = 0,
    payload_bytes: int = 0,
    masks: int = 0,
    masks_made: int = 0,
) -> None:
    """Add to what is measured in this thread, if something is."""
    measured = _thread.measured
    if measured is not None:
        usage = measured.usage
        usage.vectors += vectors
        usage.vector_bytes += vector_bytes
        usage.payload_bytes += payload_bytes
        usage.masks += masks
        usage.masks_made += masks_made


def measure(work: Callable[[], T]) -> tuple[T, Measured]:
    """What ``work`` answers, done in this thread, and what it has taken."""
    cpu = thread_time()
    measured = _thread.measured = Measured(perf_counter())
    try:
        result = work()
    finally:
        _thread.measured = None
    measured.ended = perf_counter()
    measured.usage.cpu_seconds = thread_time() - cpu
    return result, measured
