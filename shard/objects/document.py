"""A small document in the object store that many processes read and change."""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

import msgspec
import xxhash

from shard.errors import Corrupt, NotFound, Unavailable
from shard.objects import ObjectStore
from shard.objects.conditional import put_once

T = TypeVar("T")

KEPT = 32
"""Versions kept behind the newest one."""
_FORMAT = "shoal-document-1"
_ATTEMPTS = 100
_CONFLICT_SECONDS = 0.2
_PUT_SECONDS = 30.0
_NAME = re.compile(r"[0-9]{20}")


def decode_stored(
    data: bytes, type: type[T], name: str, decode: Callable[..., T] = msgspec.json.decode
) -> T:
    """What Shoal has stored, as a decoder of msgspec's reads it. Raises Corrupt, with ``name``."""
    _prepare(type)
    try:
        return decode(data, type=type)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Corrupt(f"{name}: {error}") from error


_preparing = Lock()
_prepared: set[object] = set()


def _prepare(type: object) -> None:
    """Let msgspec 0.22 look at a type before several threads use it: where two do so for the first
    time at once, one finds it half done, and the process dies."""
    if type not in _prepared:
        with _preparing:
            msgspec.json.Decoder(type)
            _prepared.add(type)


class _Header(msgspec.Struct, frozen=True):
    """The first line of every version, as JSON. The document follows."""

    format: str
    writer: str
    """Random: no two writers put the same bytes, so each knows its own again."""
    checksum: str
    """XXH3-64 of the document, hexadecimal."""


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
        """The newest version's number and data; ``(0, b"")`` before the first.

        One short list while nothing changes. Raises Unavailable, and Corrupt where the stored bytes
        do not match their checksum.
        """
        for _ in range(_ATTEMPTS):
            after = self._key(self._version - 1) if self._version else ""
            versions = self._versions(after) or self._versions("")
            if not versions:
                self._version, self._data = 0, b""
            elif versions[-1] != self._version:
                key = self._key(versions[-1])
                try:
                    stored = self._store.get(key)
                except NotFound:
                    continue  # Newer versions have pushed it out.
                self._version, self._data = versions[-1], _decode(key, stored)
            return self._version, self._data
        raise Unavailable(f"{self._prefix}: changes faster than it can be read")

    def commit(self, data: bytes, version: int) -> bool:
        """Make ``data`` version ``version``, which follows the one it was made from.

        False when another writer has made that version. Raises Unavailable when it may or may not
        have been made. Versions more than `KEPT` behind the newest are deleted.
        """
        if not put_once(self._store, self._key(version), _encode(data), _PUT_SECONDS):
            return False
        versions = self._versions("")
        with contextlib.suppress(Unavailable):
            for old in versions:
                if old < versions[-1] - KEPT:
                    self._store.delete(self._key(old))
        # A writer held up since its read may have put a version that was made and deleted long ago,
        # and nobody would ever see it. Only versions as old as this are ever deleted.
        if version < versions[-1] - KEPT:
            raise Unavailable(f"{self._key(version)}: held up for {KEPT} versions while writing it")
        self._version, self._data = version, data
        return True

    def update(self, change: Callable[[bytes], bytes]) -> bytes:
        """Replace the newest version by what ``change`` makes of it, and return that.

        ``change`` is called again after a lost race. Nothing is written where it returns what it
        was given; what it raises goes to the caller. Raises Unavailable, when the change may or
        may not have been made, and Corrupt.
        """
        for _ in range(_ATTEMPTS):
            version, data = self.read()
            changed = change(data)
            if changed == data or self.commit(changed, version + 1):
                return changed
            time.sleep(random.uniform(0, _CONFLICT_SECONDS))  # noqa: S311 - a pause
        raise Unavailable(f"{self._prefix}: other writers won {_ATTEMPTS} times over")

    def _versions(self, after: str) -> list[int]:
        names = (key.removeprefix(self._prefix) for key in self._store.list(self._prefix, after))
        return [int(name) for name in names if _NAME.fullmatch(name)]

    def _key(self, version: int) -> str:
        return f"{self._prefix}{version:020d}"


def _encode(data: bytes) -> bytes:
    header = _Header(_FORMAT, uuid.uuid4().hex, xxhash.xxh3_64_hexdigest(data))
    return msgspec.json.encode(header) + b"\n" + data


def _decode(key: str, stored: bytes) -> bytes:
    line, _, data = stored.partition(b"\n")
    header = decode_stored(line, _Header, f"{key}: no document's header")
    if header.format != _FORMAT:
        raise Corrupt(f"{key}: expected format {_FORMAT}, found {header.format[:40]!r}")
    if header.checksum != xxhash.xxh3_64_hexdigest(data):
        raise Corrupt(f"{key}: the checksum does not match")
    return data
