"""Which collections there are, as a router knows them: the catalog behind a short cache.

A name that is not cached is looked up, so that a collection made through another router is found.
A cached collection may since have been deleted, or deleted and made anew; whoever acts on one goes
through `Directory.act`, which checks the catalog again before it lets such an error out. An alias
that stands for another collection by now makes no error, so that what is cached of it must be new.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

from cluster.catalog import Catalog, Collection, Names
from shard.errors import InvalidInput, NotFound, ShoalError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

REVALIDATE_SECONDS = 2.0
"""Age from which a cached catalog is read again in the background, while it still answers for
names of collections. For aliases it does not, and is read in the background at half that age."""
ALIAS_WAIT_SECONDS = 1.0
"""How long a request by alias waits for the catalog, before it takes the cached one after all."""


class Directory:
    """Finds collections by name or alias. Use from one event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.names = Names({}, {})
        """As they are cached: another object each time the catalog is read, not to be changed."""
        self._read_at = float("-inf")
        self._revalidate_at = float("-inf")
        self._reading = asyncio.Lock()
        self._revalidation: asyncio.Task[object] | None = None
        self._revalidates_since = float("-inf")

    async def refresh(self) -> Names:
        """What the catalog has, read no earlier than this call; not to be changed.

        Raises Unavailable.
        """
        asked_at = monotonic()
        async with self._reading:
            # Callers that wait together share the read that the first of them starts.
            if self._read_at < asked_at:
                reads_at = monotonic()
                self.names = await asyncio.to_thread(self.catalog.names)
                self._read_at = reads_at
                self._revalidate_at = reads_at + REVALIDATE_SECONDS
        return self.names

    async def find(self, name: str) -> Collection:
        """The collection of that name or alias, from the cache if it is there.

        Raises NotFound when the catalog has none either, and Unavailable.
        """
        collection = self.names.get(name)
        if collection is None:
            return await self.find_fresh(name)
        overdue = monotonic() - self._revalidate_at
        if collection.name == name:
            if overdue > 0:
                self._revalidate()
            return collection
        if overdue > -REVALIDATE_SECONDS / 2:
            revalidation = self._revalidate()
            if overdue > 0:
                left = self._revalidates_since + ALIAS_WAIT_SECONDS - monotonic()
                await asyncio.wait([revalidation], timeout=max(left, 0))
        return self.names.find(name)

    async def find_fresh(self, name: str) -> Collection:
        """The collection of that name or alias as the catalog has it now.

        Raises NotFound, Unavailable.
        """
        return (await self.refresh()).find(name)

    async def own_name(self, name: str) -> str:
        """The name of the collection that ``name`` is an alias of now; any other name as it is.

        Raises Unavailable.
        """
        return (await self.refresh()).aliases.get(name, name)

    async def update(self, name: str, change: Callable[[Collection], Collection]) -> None:
        """Change the collection as `Catalog.update` does. Raises NotFound, Unavailable."""
        await asyncio.to_thread(self.catalog.update, name, change)
        await self.refresh()

    async def update_aliases(self, change: Callable[[Names], None]) -> None:
        """As `Catalog.update_aliases`. Raises what ``change`` raises, Unavailable."""
        await asyncio.to_thread(self.catalog.update_aliases, change)
        await self.refresh()

    async def act(self, name: str, action: Callable[[Collection], Awaitable[T]]) -> T:
        """What ``action`` answers for the collection of that name or alias.

        Where the shards do not know the collection, or the input does not fit it, the catalog is
        read again: if the name now stands for another collection, ``action`` runs once more, for
        that one. ``action`` must therefore be safe to run twice. Raises NotFound when there is no
        such collection, and what ``action`` raises.
        """
        collection = await self.find(name)
        try:
            return await action(collection)
        except (NotFound, InvalidInput) as error:
            current = await self.find_fresh(name)
            if current.id != collection.id:
                return await action(current)
            if isinstance(error, NotFound) and not isinstance(error, PointNotFound):
                raise Unavailable(f"collection `{name}`: {error}") from error
            raise

    def _revalidate(self) -> asyncio.Task[object]:
        if self._revalidation is None or self._revalidation.done():
            self._revalidation = asyncio.create_task(self._revalidate_quietly())
            self._revalidates_since = monotonic()
        return self._revalidation

    async def _revalidate_quietly(self) -> None:
        try:
            await self.refresh()
        except ShoalError as error:
            # What is cached goes on answering; a name that is not will tell the caller.
            logger.warning("cannot read the catalog of collections: %s", error)
            self._revalidate_at = monotonic() + REVALIDATE_SECONDS


class PointNotFound(NotFound):
    """The collection is there, but not a point, or where to look it up, that was named."""
