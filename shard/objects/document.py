"""A small document in the object store that many processes read and change."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from shard.errors import NotFound, Unavailable
from shard.objects import ObjectStore

KEPT = 32
"""Versions kept behind the newest one."""
_ATTEMPTS = 100
_CONFLICT_SECONDS = 0.2


class VersionedDocument:
    """Bytes with a history: version ``n`` is the object ``{prefix}/{n:020d}``, put if absent.

    Of writers that race for a version one wins, and the others start again from what it wrote. Use
    one instance from one thread at a time; any number of processes may have instances of their own.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store = store
        self._prefix = f"{prefix}/"
        self._version = 0
        self._data = b""

    def read(self) -> tuple[int, bytes]:
        """The newest version and its number; ``(0, b"")`` before the first. Raises Unavailable."""
        while True:
            # A list from the known version on is short, and its data needs no second get.
            after = self._key(self._version - 1) if self._version else ""
            versions = self._versions(after) or self._versions("")
            if not versions:
                self._version, self._data = 0, b""
            elif versions[-1] != self._version:
                try:
                    self._data = self._store.get(self._key(versions[-1]))
                except NotFound:
                    continue  # Newer versions have pushed it out.
                self._version = versions[-1]
            return self._version, self._data

    def update(self, change: Callable[[bytes], bytes]) -> bytes:
        """Replace the newest version by what ``change`` makes of it, and return that.

        ``change`` is called again after a lost race. Nothing is written where it returns what it
        was given; what it raises goes to the caller. Raises Unavailable, when the change may or
        may not have been made.
        """
        for _ in range(_ATTEMPTS):
            version, data = self.read()
            changed = change(data)
            if changed == data:
                return data
            if self._store.put_if_absent(self._key(version + 1), changed) and self._settle(
                version + 1
            ):
                self._version, self._data = version + 1, changed
                return changed
            time.sleep(random.uniform(0, _CONFLICT_SECONDS))
        raise Unavailable(f"{self._prefix}: other writers won {_ATTEMPTS} times over")

    def _settle(self, version: int) -> bool:
        """Drop old versions; False where ``version`` was itself an old one that had been dropped.

        That is what a writer meets that was held up, between its read and its put, for so long
        that the number which it takes for the next was used and dropped.
        """
        versions = self._versions("")
        if versions[-1] - version >= KEPT:
            self._store.delete(self._key(version))
            return False
        for old in versions:
            if old <= version - KEPT:
                self._store.delete(self._key(old))
        return True

    def _versions(self, after: str) -> list[int]:
        keys = self._store.list(self._prefix, after)
        return [int(key.removeprefix(self._prefix)) for key in keys]

    def _key(self, version: int) -> str:
        return f"{self._prefix}{version:020d}"
