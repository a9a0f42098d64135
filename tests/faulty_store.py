"""An object store that fails, dies, or is out of reach for a while, at a chosen operation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import TypeVar

from shard.errors import Unavailable
from shard.objects import ObjectStore

T = TypeVar("T")


class Crash(Exception):
    """The process is gone: nothing more reaches the store."""


class FaultyStore:
    """Passes operations on to ``inner`` until told otherwise. May be called from many threads."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self._lock = Lock()
        self._left: int | None = None
        self._takes_place = False
        self._dead = False
        self.reachable = True
        self.lose_answers = False
        """While out of reach: whether operations take place, and only their answers are lost."""
        self.faults: list[str] = []
        """The next conditional puts fail "before" they take place, or "after" it; "" is none."""
        self.calls: list[str] = []

    def crash_after(self, operations: int, *, takes_place: bool) -> None:
        """Let the process die at an operation to come, before or after it takes place."""
        with self._lock:
            self._left, self._takes_place = operations, takes_place

    @property
    def crashed(self) -> bool:
        return self._dead

    def crash(self) -> None:
        with self._lock:
            self._dead = True

    def _run(self, name: str, operation: Callable[[], T]) -> T:
        with self._lock:
            self.calls.append(name)
            if self._dead:
                raise Crash
            if not self.reachable:
                if self.lose_answers:
                    operation()
                raise Unavailable("out of reach")
            if self._left is not None:
                self._left -= 1
                if self._left < 0:
                    self._dead = True
                    if self._takes_place:
                        operation()
                    raise Crash
        return operation()

    def get(self, key: str) -> bytes:
        return self._run("get", lambda: self._inner.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._run("get_range", lambda: self._inner.get_range(key, start, length))

    def put(self, key: str, data: bytes) -> None:
        self._run("put", lambda: self._inner.put(key, data))

    def put_if_absent(self, key: str, data: bytes) -> bool:
        def put() -> bool:
            fault = self.faults.pop(0) if self.faults else ""
            if fault == "before":
                raise Unavailable("injected before the put")
            created = self._inner.put_if_absent(key, data)
            if fault == "after":
                raise Unavailable("injected after the put")
            return created

        return self._run("put_if_absent", put)

    def put_file(self, key: str, path: Path) -> None:
        self._run("put_file", lambda: self._inner.put_file(key, path))

    def get_file(self, key: str, path: Path) -> None:
        self._run("get_file", lambda: self._inner.get_file(key, path))

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        return iter(self._run("list", lambda: [*self._inner.list(prefix, start_after)]))

    def delete(self, key: str) -> None:
        self._run("delete", lambda: self._inner.delete(key))
