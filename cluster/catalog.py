"""Which collections there are: one versioned document, changed by conditional writes."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

import msgspec

from shard.errors import AlreadyExists, InvalidInput, NotFound
from shard.model import ShardConfig
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored

CATALOG = "cluster/catalog"
MAX_SHARDS = 1_024
MAX_ALIASES = 10_000
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


class Names:
    """What each name stands for, at one moment: a collection's own name, or an alias of it."""

    def __init__(self, collections: dict[str, Collection], aliases: dict[str, str]) -> None:
        self.collections = collections
        """By their own names."""
        self.aliases = aliases
        """Names of collections by alias; no alias is the name of a collection too."""

    def get(self, name: str) -> Collection | None:
        """The collection of that name or alias."""
        return self.collections.get(self.aliases.get(name, name))

    def find(self, name: str) -> Collection:
        """The collection of that name or alias. Raises NotFound."""
        collection = self.get(name)
        if collection is None:
            raise NotFound(f"Collection `{name}` doesn't exist!")
        return collection

    def set_alias(self, alias: str, name: str) -> None:
        """Let the alias stand for the collection of that name, whatever it stood for before.

        Raises NotFound, also where ``name`` is an alias itself, AlreadyExists where ``alias`` is
        the name of a collection, and InvalidInput for one too many.
        """
        collection = self.collections.get(name)
        if collection is None or collection.hidden:
            raise NotFound(f"Collection `{name}` doesn't exist!")
        if alias in self.collections:
            raise AlreadyExists(f"Collection `{alias}` already exists!")
        self.aliases[alias] = name
        if len(self.aliases) > MAX_ALIASES:
            raise InvalidInput(f"expected at most {MAX_ALIASES} aliases")

    def drop_alias(self, alias: str) -> None:
        """One that is not there is passed over."""
        self.aliases.pop(alias, None)

    def rename_alias(self, old: str, new: str) -> None:
        """Raises NotFound, and AlreadyExists where ``new`` is the name of a collection."""
        name = self.aliases.pop(old, None)
        if name is None:
            raise NotFound(f"Alias `{old}` doesn't exist!")
        self.set_alias(new, name)


class _Contents(msgspec.Struct, frozen=True):
    collections: list[Collection] = []
    deleted: list[str] = []
    aliases: dict[str, str] = {}


class Catalog:
    """The collections over one object store. Methods block, and may be called from any thread.

    Every method raises Unavailable where the store cannot be reached; a change may then have been
    made or not.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._document = VersionedDocument(store, CATALOG)
        self._lock = Lock()

    def names(self) -> Names:
        """Of collections and aliases, as of now."""
        return _names(self._read())

    def collections(self) -> dict[str, Collection]:
        """All of them by their own names, as of now."""
        return self.names().collections

    def get(self, name: str) -> Collection:
        """The collection of that name or alias. Raises NotFound."""
        return self.names().find(name)

    def create(self, collection: Collection) -> None:
        """Raises AlreadyExists where there is one of that name, InvalidInput for an alias."""

        def add(names: Names) -> None:
            _check_no_alias(names, collection.name)
            existing = names.collections.setdefault(collection.name, collection)
            # The same id: an earlier try took place, though its answer was lost.
            if existing.id != collection.id:
                raise AlreadyExists(f"Collection `{collection.name}` already exists!")

        self._change(add)

    def update(self, name: str, change: Callable[[Collection], Collection]) -> Collection:
        """Replace the collection of that name or alias by what ``change`` makes of it.

        Answers that. ``change`` may be called more than once, and must keep the id and the name.
        Raises NotFound.
        """

        def replace(names: Names) -> None:
            changed = change(names.find(name))
            names.collections[changed.name] = changed

        return self._change(replace).find(name)

    def update_aliases(self, change: Callable[[Names], None]) -> None:
        """Let ``change`` set, drop and rename aliases; readers see all that it does, or nothing.

        ``change`` may be called more than once; what it raises goes to the caller.
        """
        self._change(change)

    def rename(self, collection_id: str, name: str) -> None:
        """Give the collection that name, which one that had it before loses with all it has.

        Aliases of the name are then aliases of this collection. Raises NotFound where there is none
        of that id, InvalidInput where the name is an alias.
        """

        def replace(names: Names) -> None:
            _check_no_alias(names, name)
            for collection in list(names.collections.values()):
                if collection.id == collection_id:
                    del names.collections[collection.name]
                    names.collections[name] = msgspec.structs.replace(collection, name=name)
                    return
            raise NotFound(f"Collection {collection_id} doesn't exist!")

        self._change(replace)

    def delete(self, name: str) -> bool:
        """False if there was none; an alias is none. What it stored is `deleted`, and erased in the
        background; its aliases go with it.
        """
        existed = False

        def remove(names: Names) -> None:
            nonlocal existed
            existed = names.collections.pop(name, None) is not None

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

    def _change(self, change: Callable[[Names], None]) -> Names:
        def apply(contents: _Contents) -> _Contents:
            names = _names(contents)
            change(names)
            ids = {collection.id for collection in names.collections.values()}
            gone = [other.id for other in contents.collections if other.id not in ids]
            return _Contents(
                list(names.collections.values()),
                contents.deleted + gone,
                {alias: name for alias, name in names.aliases.items() if name in names.collections},
            )

        return _names(self._update(apply))

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


def _names(contents: _Contents) -> Names:
    collections = {collection.name: collection for collection in contents.collections}
    return Names(collections, dict(contents.aliases))


def _check_no_alias(names: Names, name: str) -> None:
    if name in names.aliases:
        raise InvalidInput(
            f"Can't create collection with name {name}. Alias with the same name already exists"
        )
