"""What has been worked out, kept as long as there is room."""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Hashable
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

import psutil

_ENTRY_BYTES = 400
"""What an entry takes besides its value."""
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Of control groups, in their second version and in their first."""


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that there are for this process: the machine's, or what its container is held to."""
    there = psutil.virtual_memory().total
    for name in _LIMITS:
        with suppress(OSError, ValueError):  # Such as "max".
            there = min(there, int((cgroup / name).read_text()))
    return there


class Cache:
    """Forgets what has not been used for the longest time. Methods may be called from any thread.

    Entries belong to owners, and are forgotten with them.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = self.misses = 0
        self.evictions = 0
        """Entries that had to make room for others."""
        self._entries: OrderedDict[tuple[int, Hashable], tuple[Any, int]] = OrderedDict()
        self._keys: defaultdict[int, set[Hashable]] = defaultdict(set)
        self._numbers = count()
        self._gone: deque[int] = deque()
        self._lock = Lock()

    def number(self, owner: object) -> int:
        """By which `get` and `put` know a new owner."""
        number = next(self._numbers)
        # Owners may die while this thread has the lock: they only leave a note.
        weakref.finalize(owner, self._gone.append, number).atexit = False
        return number

    def get(self, owner: int, key: Hashable, default: Any = None) -> Any:
        with self._lock:
            entry = self._entries.get((owner, key))
            if entry is None:
                self.misses += 1
                return default
            self.hits += 1
            self._entries.move_to_end((owner, key))
            return entry[0]

    def put(self, owner: int, key: Hashable, value: Any, size: int) -> None:
        """``size``: in bytes."""
        size += _ENTRY_BYTES
        with self._lock:
            while self._gone:
                gone = self._gone.popleft()
                for old in list(self._keys.pop(gone, ())):
                    self._forget((gone, old))
            self._forget((owner, key))
            self._entries[owner, key] = value, size
            self._keys[owner].add(key)
            self.bytes += size
            while self.bytes > self.max_bytes:
                self._forget(next(iter(self._entries)))
                self.evictions += 1

    def _forget(self, entry: tuple[int, Hashable]) -> None:
        _, size = self._entries.pop(entry, (None, 0))
        self.bytes -= size
        owner, key = entry
        if owner in self._keys:
            self._keys[owner].discard(key)
