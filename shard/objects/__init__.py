"""The object store: a flat map from keys to immutable bytes, and the only truth.

Keys are ``/``-separated segments of ``[A-Za-z0-9._=-]``. Two implementations pass one conformance
suite: a local directory (`shard.objects.local`) and S3 (`shard.objects.s3`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from shard.errors import InvalidInput


class ObjectStore(Protocol):
    """What Shoal needs of storage. Methods block, and may be called from many threads.

    Every method raises `shard.errors.Unavailable` when the store cannot be reached in time, after
    its own retries with jitter. A `put` or `put_if_absent` that returns is durable; one that raises
    Unavailable may or may not have taken place.
    """

    def get(self, key: str) -> bytes:
        """The whole object. Raises NotFound."""
        ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """``length`` bytes from ``start``, fewer at the end of the object. Raises NotFound."""
        ...

    def put(self, key: str, data: bytes) -> None:
        """Create or replace the object, atomically."""
        ...

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Create the object; False, and nothing is changed, when the key exists already."""
        ...

    def put_file(self, key: str, path: Path) -> None:
        """Create or replace the object from a file that never changes afterwards."""
        ...

    def get_file(self, key: str, path: Path) -> None:
        """Make the object readable at ``path``, whole or not at all. Raises NotFound."""
        ...

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Keys that begin with ``prefix`` and are greater than ``start_after``, ascending."""
        ...

    def delete(self, key: str) -> None:
        """Delete the object; a key that does not exist is passed over."""
        ...


def open_object_store(url: str) -> ObjectStore:
    """The store at a directory path, ``file:///DIR`` or ``s3://BUCKET/PREFIX``.

    Raises InvalidInput for anything else, and Unavailable or NotFound when it cannot be used.
    """
    directory = local_directory(url)
    if directory is None:
        from shard.objects.s3 import S3ObjectStore

        return S3ObjectStore.from_url(url)
    from shard.objects.local import LocalObjectStore

    return LocalObjectStore(directory)


def local_directory(url: str) -> Path | None:
    """The directory that ``url`` names; None: it names a bucket. Raises InvalidInput."""
    if url.startswith("s3://"):
        return None
    path = url.removeprefix("file://")
    if not path or "://" in path:
        raise InvalidInput(f"data {url!r}: expected a directory or s3://BUCKET/PREFIX")
    return Path(path)
