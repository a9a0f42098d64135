"""What a shard consists of, besides its log: a versioned document in the object store.

A writer *claims* the manifest after it has fenced the log, so that whoever held it before can
commit no other. A writer knows its own commits by its epoch, the log sequence of its fence, which
no other writer ever has.
"""

from __future__ import annotations

import zlib

import msgspec
import numpy as np

from shard.errors import Corrupt, Fenced
from shard.model import Calibration, Mask
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored


class SegmentEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One segment of a shard."""

    id: str
    rows: int
    dead: bytes = b""
    """Which rows are deleted or overwritten: packed bits, deflated; empty for none."""
    calibrations: dict[str, Calibration] = {}
    """By the name of the vectors."""
    unreachable: float = 0.0
    """The recall target that no calibration has reached; 0 when none was missed."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of a shard: segments that hold every write up to ``sequence``.

    Rows may be dead by later writes too: those are in the log, and are replayed.
    """

    epoch: int = 0
    sequence: int = 0
    segments: list[SegmentEntry] = []
    awaited: dict[str, int] = {}
    """Bulk loads that the shard is ready for: job -> the log sequence, covered, at which it became
    so. Of the log beyond the least of these nothing may be truncated."""
    taken_in: list[str] = []
    """Jobs whose segments have been taken in, as long as the job is not over."""


class Manifests:
    """The manifests at ``prefix``, the newest of which counts. Use from one thread at a time.

    Methods raise Unavailable.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._prefix = prefix
        self._document = VersionedDocument(store, prefix)
        self._version = 0

    def read(self) -> Manifest:
        """The newest one, which the next claim or commit follows. Raises Corrupt."""
        self._version, data = self._document.read()
        if not data:
            return Manifest()
        name = f"{self._prefix} version {self._version}"
        return decode_stored(data, Manifest, name, msgspec.msgpack.decode)

    def changed(self) -> bool:
        """Whether there is another than was last read or committed here."""
        return self._document.read()[0] != self._version

    def claim(self, manifest: Manifest) -> bool:
        """Commit under a new epoch; False when another writer has committed since `read`."""
        if not self._document.commit(msgspec.msgpack.encode(manifest), self._version + 1):
            return False
        self._version += 1
        return True

    def commit(self, manifest: Manifest) -> None:
        """Raises Fenced when a writer of another epoch has committed since, then and ever after."""
        while not self.claim(manifest):
            # What is in the way may be an earlier commit of our own, whose answer was lost.
            self.check_epoch(manifest.epoch)

    def check_epoch(self, epoch: int) -> None:
        """Raises Fenced unless the newest manifest is of ``epoch``."""
        version = self._version
        newest = self.read()
        if newest.epoch != epoch:
            # Not to follow it: whoever is fenced must not commit on top of its successor.
            self._version = version
            raise Fenced(f"{self._prefix}: taken over at log sequence {newest.epoch}")


def pack_dead(alive: Mask | None) -> bytes:
    """`SegmentEntry.dead` of rows, ``alive`` (n,), or None when all are."""
    return b"" if alive is None else zlib.compress(np.packbits(~alive).tobytes(), 1)


def unpack_alive(dead: bytes, rows: int) -> Mask | None:
    """The inverse of `pack_dead`. Raises Corrupt."""
    if not dead:
        return None
    try:
        bits = np.frombuffer(zlib.decompress(dead), np.uint8)
    except zlib.error as error:
        raise Corrupt(f"dead rows: {error}") from error
    if len(bits) != -(-rows // 8):
        raise Corrupt(f"dead rows: {len(bits)} bytes for {rows} rows")
    alive: Mask = ~np.unpackbits(bits, count=rows).astype(np.bool_)
    return alive
