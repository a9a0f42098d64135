"""Snapshots of collections: exports in the cluster's own object store, handed out as tar files."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import gmtime, strftime
from typing import IO
from uuid import uuid4

import msgspec

from cluster.catalog import MAX_SHARDS
from cluster.export.jobs import SUMMARY, ExportedFile, Summary
from shard.errors import Corrupt, InvalidInput, NotFound
from shard.model import MAX_DIMENSION
from shard.objects import ObjectStore, local_directory
from shard.objects.document import decode_stored
from shard.objects.keys import is_key

_READ_BYTES = 4 << 20
_SUMMARY_BYTES = 16 << 20


class Snapshots:
    """The snapshots in ``store``, which is at ``url``. Methods block, and raise Unavailable."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self._store = store
        directory = local_directory(url)
        self.url = url.rstrip("/") if directory is None else str(directory.absolute())

    def prefix(self, collection: str, snapshot: str) -> str:
        """Where the objects of a snapshot are. Raises NotFound where it can be none's name."""
        if "/" in snapshot or not is_key(snapshot):
            raise NotFound(f"Snapshot `{snapshot}` doesn't exist!")
        return f"{_prefix(collection)}{snapshot}/"

    def source(self, collection: str, snapshot: str) -> str:
        """The URL of its files, for a bulk load."""
        return f"{self.url}/{self.prefix(collection, snapshot).rstrip('/')}"

    def all(self, collection: str) -> list[Summary]:
        """Those of the collection of that name, be it there or not, oldest first."""
        found = [
            self._summary(key)
            for key in self._store.list(_prefix(collection))
            if key.endswith(f"/{SUMMARY}")
        ]
        return sorted(found, key=lambda one: one.created)

    def get(self, collection: str, snapshot: str) -> Summary:
        """Raises NotFound."""
        try:
            return self._summary(f"{self.prefix(collection, snapshot)}{SUMMARY}")
        except NotFound:
            raise NotFound(f"Snapshot `{snapshot}` doesn't exist!") from None

    def delete(self, collection: str, snapshot: str) -> None:
        """Raises NotFound."""
        self.get(collection, snapshot)
        prefix = self.prefix(collection, snapshot)
        self._store.delete(f"{prefix}{SUMMARY}")
        for key in self._store.list(prefix):
            self._store.delete(key)

    def archive(self, collection: str, snapshot: str) -> tuple[int, Iterator[bytes]]:
        """Bytes of the tar file, and these in pieces. Raises NotFound."""
        summary = self.get(collection, snapshot)
        prefix = self.prefix(collection, snapshot)
        told = self._store.get(f"{prefix}{SUMMARY}")
        files = [ExportedFile(SUMMARY, len(told), 0), *summary.files]
        return _tar_bytes([file.bytes for file in files]), self._archive(
            prefix, files, int(summary.created)
        )

    def _archive(self, prefix: str, files: list[ExportedFile], changed: int) -> Iterator[bytes]:
        for file in files:
            header = tarfile.TarInfo(file.name)
            header.size, header.mtime = file.bytes, changed
            yield header.tobuf(tarfile.GNU_FORMAT)
            for start in range(0, file.bytes, _READ_BYTES):
                length = min(_READ_BYTES, file.bytes - start)
                yield self._store.get_range(f"{prefix}{file.name}", start, length)
            yield bytes(-file.bytes % tarfile.BLOCKSIZE)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def add(self, collection: str, archive: IO[bytes]) -> str:
        """Store a tar file of `archive` as another snapshot; its name. Raises InvalidInput."""
        snapshot = new_name()
        prefix = self.prefix(collection, snapshot)
        try:
            summary = self._unpack(archive, prefix)
        except BaseException:
            for key in self._store.list(prefix):
                self._store.delete(key)
            raise
        summary = msgspec.structs.replace(summary, name=snapshot)
        self._store.put(f"{prefix}{SUMMARY}", msgspec.json.encode(summary))
        return snapshot

    def _unpack(self, archive: IO[bytes], prefix: str) -> Summary:
        told: bytes | None = None
        sizes: dict[str, int] = {}
        try:
            with tarfile.open(fileobj=archive, mode="r|") as tar:
                for member in tar:
                    content = tar.extractfile(member)
                    if content is None or not _is_expected(member.name):
                        raise InvalidInput(f"{member.name!r:.80} is not a file of a snapshot")
                    if member.name == SUMMARY:
                        if member.size > _SUMMARY_BYTES:
                            raise InvalidInput(f"{SUMMARY}: {member.size} bytes")
                        told = content.read()
                        continue
                    sizes[member.name] = member.size
                    with tempfile.NamedTemporaryFile() as copy:
                        while piece := content.read(_READ_BYTES):
                            copy.write(piece)
                        copy.flush()
                        self._store.put_file(f"{prefix}{member.name}", Path(copy.name))
        except (tarfile.TarError, EOFError) as error:
            raise InvalidInput(f"not a snapshot: {error}") from error
        if told is None:
            raise InvalidInput(f"not a snapshot: there is no {SUMMARY} in it")
        try:
            summary = decode_stored(told, Summary, SUMMARY)
        except Corrupt as error:
            raise InvalidInput(f"not a snapshot: {error}") from error
        for file in summary.files:
            if sizes.pop(file.name, None) != file.bytes:
                raise InvalidInput(f"not a whole snapshot: {file.name} is not as it was")
        if sizes:
            raise InvalidInput(f"not a snapshot: {min(sizes)} is not of it")
        _check(summary)
        return summary

    def _summary(self, key: str) -> Summary:
        return decode_stored(self._store.get(key), Summary, key)


def _check(summary: Summary) -> None:
    """Raises InvalidInput for what no export has written."""
    collection, config = summary.collection, summary.collection.config
    for name, value, least, most in (
        *(("dimension", one.dimension, 1, MAX_DIMENSION) for one in config.vectors.values()),
        ("shard_count", collection.shard_count, 1, MAX_SHARDS),
        ("recall_target", config.recall_target, 0, 1),
        ("flat_threshold", config.flat_threshold, 0, 2**31),
        ("created", summary.created, 0, 1e11),
        *(("rows", file.rows, 1, 2**63) for file in summary.files),
    ):
        if not least <= value <= most:
            raise InvalidInput(f"{SUMMARY}: {name} {value}: expected {least} to {most}")


def new_name() -> str:
    """A name that no other snapshot has."""
    return f"{strftime('%Y-%m-%d-%H-%M-%S', gmtime())}-{uuid4().hex[:8]}.snapshot"


def archive_bytes(summary: Summary) -> int:
    """How long the tar file of a snapshot is."""
    told = len(msgspec.json.encode(summary))
    return _tar_bytes([told, *(file.bytes for file in summary.files)])


def _tar_bytes(sizes: list[int]) -> int:
    block = tarfile.BLOCKSIZE
    return sum(block + size + -size % block for size in sizes) + 2 * block


def _is_expected(name: str) -> bool:
    return name == SUMMARY or ("/" not in name and is_key(name) and name.endswith(".parquet"))


def _prefix(collection: str) -> str:
    # Names may have characters that keys cannot.
    return f"snapshots/{hashlib.blake2b(collection.encode(), digest_size=16).hexdigest()}/"
