"""Which collections there are: one versioned document, changed by conditional writes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import msgspec

from shard.errors import AlreadyExists, NotFound
from shard.model import ShardConfig
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored

CATALOG = "cluster/catalog"
MAX_SHARDS = 1_024
HIDDEN = "\x1f"
"""What the name of a collection begins with that is not there yet for users; no name of theirs
has this character."""


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """One collection as the catalog has it."""

    id: str
    """A UUID's 32 hexadecimal digits, never used again for another collection."""
    name: str
    shard_count: int
    config: ShardConfig
    settings: dict[str, Any] = {}
    """Qdrant's settings as they were given, for the collection's info."""

    @property
    def hidden(self) -> bool:
        """Whether it is being made to take another one's place."""
        return self.name.startswith(HIDDEN)

    @property
    def prefix(self) -> str:
        """Where in the object store everything of the collection is."""
        return f"collections/{self.id}"


class _Contents(msgspec.Struct, frozen=True):
    collections: list[Collection] = []
    deleted: list[str] = []


class Catalog:
    """The collections over one object store. Methods block, and may be called from any thread.

    Every method raises Unavailable where the store cannot be reached; a change may then have been
    made or not.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._document = VersionedDocument(store, CATALOG)
        self._lock = Lock()

    def collections(self) -> dict[str, Collection]:
        """All of them by name, as of now."""
        return _by_name(self._read())

    def get(self, name: str) -> Collection:
        """Raises NotFound."""
        return _find(self.collections(), name)

    def create(self, collection: Collection) -> None:
        """Raises AlreadyExists where there is one of that name."""

        def add(collections: dict[str, Collection]) -> None:
            existing = collections.setdefault(collection.name, collection)
            # The same id: an earlier try took place, though its answer was lost.
            if existing.id != collection.id:
                raise AlreadyExists(f"Collection `{collection.name}` already exists!")

        self._change(add)

    def update(self, name: str, change: Callable[[Collection], Collection]) -> Collection:
        """Replace the collection by what ``change`` makes of it, and return that.

        ``change`` may be called more than once, and must keep the id and the name. Raises NotFound.
        """

        def replace(collections: dict[str, Collection]) -> None:
            collections[name] = change(_find(collections, name))

        return self._change(replace)[name]

    def rename(self, collection_id: str, name: str) -> None:
        """Give the collection that name, which one that had it before loses with all it has.

        Raises NotFound where there is none of that id.
        """

        def replace(collections: dict[str, Collection]) -> None:
            for collection in list(collections.values()):
                if collection.id == collection_id:
                    del collections[collection.name]
                    collections[name] = msgspec.structs.replace(collection, name=name)
                    return
            raise NotFound(f"Collection {collection_id} doesn't exist!")

        self._change(replace)

    def delete(self, name: str) -> bool:
        """False if there was none. What it stored is `deleted`, and erased in the background."""
        existed = False

        def remove(collections: dict[str, Collection]) -> None:
            nonlocal existed
            existed = collections.pop(name, None) is not None

        self._change(remove)
        return existed

    def deleted(self) -> list[str]:
        """Ids of collections that are gone, but may still have objects."""
        return self._read().deleted

    def forget(self, collection_id: str) -> None:
        """Strike out a deleted collection, nothing of which is left."""

        def strike(contents: _Contents) -> _Contents:
            left = [other for other in contents.deleted if other != collection_id]
            return msgspec.structs.replace(contents, deleted=left)

        self._update(strike)

    def _change(self, change: Callable[[dict[str, Collection]], None]) -> dict[str, Collection]:
        def apply(contents: _Contents) -> _Contents:
            collections = _by_name(contents)
            change(collections)
            ids = {collection.id for collection in collections.values()}
            gone = [other.id for other in contents.collections if other.id not in ids]
            return _Contents(list(collections.values()), contents.deleted + gone)

        return _by_name(self._update(apply))

    def _read(self) -> _Contents:
        with self._lock:
            return _decode(self._document.read()[1])

    def _update(self, change: Callable[[_Contents], _Contents]) -> _Contents:
        def apply(data: bytes) -> bytes:
            contents = _decode(data)
            changed = change(contents)
            return data if changed == contents else msgspec.json.encode(changed)

        with self._lock:
            return _decode(self._document.update(apply))


def _decode(data: bytes) -> _Contents:
    if not data:
        return _Contents()
    return decode_stored(data, _Contents, CATALOG)


def _by_name(contents: _Contents) -> dict[str, Collection]:
    return {collection.name: collection for collection in contents.collections}


def _find(collections: dict[str, Collection], name: str) -> Collection:
    try:
        return collections[name]
    except KeyError:
        raise NotFound(f"Collection `{name}` doesn't exist!") from None
