"""Writes that wait to be committed to the log together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition

from shard.errors import Overloaded, ShoalError
from shard.model import Operation, Upsert

MAX_WAITING_BYTES = 64 << 20
MAX_WAITING_WRITES = 4_096
MAX_GROUP_BYTES = 4 << 20
_KEY_AND_OVERHEAD = 64


@dataclass(frozen=True, eq=False)
class Write:
    """One caller's operations; ``committed`` is answered with the log sequence."""

    operations: Sequence[Operation]
    applied: bool
    """Whether the answer waits until readers see the write."""
    resolve: Callable[[], Iterator[Operation]] | None = None
    """Where what is to be written depends on what is there when its turn has come: the operations,
    each of which is committed and applied before the next one is asked for."""
    committed: Future[int] = field(default_factory=Future)

    @property
    def bytes(self) -> int:
        """About what the write takes in memory and in the log."""
        total = 0
        for operation in self.operations:
            total += len(operation.keys) * _KEY_AND_OVERHEAD
            if isinstance(operation, Upsert):
                total += sum(column.nbytes for column in operation.vectors.values())
                total += sum(map(len, operation.payloads))
        return total

    def settle(self, outcome: int | Exception) -> None:
        """Answer the caller, unless it has its answer or has gone."""
        if self.committed.done() or not self.committed.set_running_or_notify_cancel():
            return
        if isinstance(outcome, Exception):
            self.committed.set_exception(outcome)
        else:
            self.committed.set_result(outcome)


class WriteQueue:
    """First in, first out, bounded, taken in groups by one thread."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._writes: deque[tuple[Write, int]] = deque()
        self._bytes = 0
        self._refusal: ShoalError | None = None
        self._closed = False

    @property
    def waiting(self) -> tuple[int, int]:
        """Writes that wait, and their bytes."""
        return len(self._writes), self._bytes

    def put(self, write: Write) -> None:
        """Raises Overloaded when the queue is full, and what it was told to refuse with."""
        size = write.bytes
        with self._changed:
            if self._refusal is not None:
                raise type(self._refusal)(str(self._refusal))
            # A write larger than the bound is let in when nothing else waits.
            if self._writes and self._bytes + size > MAX_WAITING_BYTES:
                raise Overloaded(f"{self._bytes} bytes of writes are waiting already")
            if len(self._writes) >= MAX_WAITING_WRITES:
                raise Overloaded(f"{len(self._writes)} writes are waiting already")
            self._writes.append((write, size))
            self._bytes += size
            self._changed.notify()

    def take(self) -> tuple[list[Write], int]:
        """The next group and its bytes, as soon as there is one; an empty one once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._writes or self._closed)
            group: list[Write] = []
            total = 0
            while self._writes and (not group or total + self._writes[0][1] <= MAX_GROUP_BYTES):
                if group and self._writes[0][0].resolve is not None:
                    break  # Alone, when all before it are applied.
                write, size = self._writes.popleft()
                group.append(write)
                total += size
                if write.resolve is not None:
                    break
            self._bytes -= total
            return group, total

    def refuse(self, refusal: ShoalError | None) -> None:
        """Fail what waits and what comes with ``refusal``; None: accept writes again."""
        self._refuse(refusal, closing=False)

    def close(self, refusal: ShoalError) -> None:
        """Refuse everything from now on, and let `take` return."""
        self._refuse(refusal, closing=True)

    def _refuse(self, refusal: ShoalError | None, *, closing: bool) -> None:
        with self._changed:
            if self._closed:
                return
            self._refusal, self._closed = refusal, closing
            waiting: list[Write] = []
            if refusal is not None:
                waiting = [write for write, _ in self._writes]
                self._writes.clear()
                self._bytes = 0
            if closing:
                self._changed.notify_all()
        for write in waiting:
            write.settle(refusal)  # type: ignore[arg-type]  # not empty only if there is one
