"""Which collections there are, as a router knows them: the catalog behind a short cache.

A name that is not cached is looked up, so that a collection made through another router is found.
A cached collection may since have been deleted, or deleted and made anew; whoever acts on one goes
through `Directory.act`, which checks the catalog again before it lets such an error out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from time import monotonic
from typing import TypeVar

from cluster.catalog import Catalog, Collection
from shard.errors import InvalidInput, NotFound, ShoalError, Unavailable

logger = logging.getLogger(__name__)

T = TypeVar("T")

REVALIDATE_SECONDS = 2.0
"""Age from which a cached catalog is read again in the background, while it still answers."""


class Directory:
    """Finds collections by name. Use from one event loop."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._collections: Mapping[str, Collection] = {}
        self._read_at = float("-inf")
        self._revalidate_at = float("-inf")
        self._reading = asyncio.Lock()
        self._revalidation: asyncio.Task[object] | None = None

    async def refresh(self) -> Mapping[str, Collection]:
        """Collections by name, read no earlier than this call. Raises Unavailable."""
        asked_at = monotonic()
        async with self._reading:
            # Callers that wait together share the read that the first of them starts.
            if self._read_at < asked_at:
                reads_at = monotonic()
                self._collections = await asyncio.to_thread(self.catalog.collections)
                self._read_at = reads_at
                self._revalidate_at = reads_at + REVALIDATE_SECONDS
        return self._collections

    async def find(self, name: str) -> Collection:
        """The collection of that name, from the cache if it is there.

        Raises NotFound when the catalog has none either, and Unavailable.
        """
        collection = self._collections.get(name)
        if collection is None:
            return await self.find_fresh(name)
        if monotonic() > self._revalidate_at:
            self._revalidate()
        return collection

    async def find_fresh(self, name: str) -> Collection:
        """The collection of that name as the catalog has it now. Raises NotFound, Unavailable."""
        try:
            return (await self.refresh())[name]
        except KeyError:
            raise NotFound(f"Collection `{name}` doesn't exist!") from None

    async def update(self, name: str, change: Callable[[Collection], Collection]) -> None:
        """Change the collection as `Catalog.update` does. Raises NotFound, Unavailable."""
        await asyncio.to_thread(self.catalog.update, name, change)
        await self.refresh()

    async def act(self, name: str, action: Callable[[Collection], Awaitable[T]]) -> T:
        """What ``action`` answers for the collection of that name.

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

    def _revalidate(self) -> None:
        if self._revalidation is None or self._revalidation.done():
            self._revalidation = asyncio.create_task(self._revalidate_quietly())

    async def _revalidate_quietly(self) -> None:
        try:
            await self.refresh()
        except ShoalError as error:
            # What is cached goes on answering; a name that is not will tell the caller.
            logger.warning("cannot read the catalog of collections: %s", error)
            self._revalidate_at = monotonic() + REVALIDATE_SECONDS


class PointNotFound(NotFound):
    """The collection is there, but not the point that was named."""
