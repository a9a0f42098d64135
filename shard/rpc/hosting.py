"""The shards that a process hosts: opened, kept and closed as they are assigned."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeAlias

from shard.builder import Builder
from shard.engine import ShardEngine
from shard.errors import Corrupt, Fenced, NotFound, Unavailable
from shard.model import ShardConfig, ShardInfo
from shard.objects import ObjectStore

logger = logging.getLogger(__name__)

ShardId: TypeAlias = tuple[str, int]
"""Collection id and shard number."""

OPENERS = 4
"""Shards that recover or close at the same time."""
REOPEN_SECONDS = (0.25, 30.0)
"""Backoff between attempts to open a shard: first and longest."""


class Hosting:
    """Opens and closes shards in threads of its own. Use from one event loop.

    ``scratch`` is a directory for local copies of what is in ``store``; segments are merged,
    and indexes made, by ``builder``.
    """

    def __init__(self, store: ObjectStore, scratch: Path, builder: Builder) -> None:
        self._store = store
        self._scratch = scratch
        self._builder = builder
        self._openers = ThreadPoolExecutor(OPENERS, "open")
        self._shards: dict[ShardId, HostedShard] = {}
        self._tasks: dict[ShardId, asyncio.Task[None]] = {}

    def assign(self, desired: Mapping[ShardId, ShardConfig]) -> None:
        """Host ``desired`` and nothing else; shards are opened and closed in the background.

        A shard that failed stays failed, until it is left out of one assignment and named in a
        later one.
        """
        for shard_id in self._shards.keys() - desired.keys():
            self._shards.pop(shard_id).released.set()
        for shard_id, config in desired.items():
            shard = self._shards.get(shard_id)
            if shard is None:
                shard = self._shards[shard_id] = HostedShard(shard_id, config)
                # An earlier stay of the same shard may still be closing.
                task = asyncio.create_task(self._host(shard, self._tasks.get(shard_id)))
                self._tasks[shard_id] = task
                task.add_done_callback(partial(self._forget, shard_id))
            else:
                shard.reconfigure(config)
                shard.notice_failure()

    def find(self, shard_id: ShardId) -> HostedShard:
        """The shard, which is open.

        Raises NotFound where it is not assigned, Corrupt where it could not be opened for that
        reason, and Unavailable where it is not open for another.
        """
        shard = self._shards.get(shard_id)
        if shard is None:
            collection_id, number = shard_id
            raise NotFound(f"shard {number} of collection {collection_id} is not hosted here")
        shard.notice_failure()
        if isinstance(shard.failure, Corrupt):
            raise Corrupt(f"{shard}: {shard.failure}")
        if shard.engine_or_none is None:
            raise Unavailable(f"{shard} is {shard.status}")
        return shard

    def status(self) -> dict[ShardId, str]:
        """Every assigned shard's status. May be called from any thread."""
        return {shard_id: shard.status for shard_id, shard in self._shards.copy().items()}

    def infos(self) -> dict[ShardId, ShardInfo]:
        """What there is to know of every open shard. May be called from any thread."""
        engines = {one.id: one.engine_or_none for one in self._shards.copy().values()}
        return {shard_id: one.info() for shard_id, one in engines.items() if one is not None}

    async def close(self) -> None:
        """Close every shard, and return once that is done."""
        self.assign({})
        if self._tasks:
            await asyncio.wait(self._tasks.values())
        self._openers.shutdown()

    def _forget(self, shard_id: ShardId, task: asyncio.Task[None]) -> None:
        if self._tasks.get(shard_id) is task:
            del self._tasks[shard_id]

    async def _host(self, shard: HostedShard, previous: asyncio.Task[None] | None) -> None:
        """Open the shard, keep it until it is released, close it."""
        if previous is not None:
            await asyncio.wait([previous])
        engine = await self._open(shard)
        if engine is None:
            return
        shard.engine_or_none = engine
        logger.info("%s: serving", shard)
        await shard.released.wait()
        shard.engine_or_none = None
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._openers, self._close_engine, shard, engine
            )
        except Exception:
            logger.exception("%s: closing failed", shard)
        else:
            logger.info("%s: closed", shard)

    async def _open(self, shard: HostedShard) -> ShardEngine | None:
        for attempt in itertools.count():
            if shard.released.is_set():
                break
            config = shard.config
            try:
                engine = await asyncio.get_running_loop().run_in_executor(
                    self._openers, self._open_engine, shard, config
                )
            except Exception as error:
                if not isinstance(error, Unavailable) or isinstance(error, Fenced):
                    logger.exception("%s: opening failed", shard)
                    shard.failure = error
                    break
                first, longest = REOPEN_SECONDS
                delay = random.uniform(0.5, 1) * min(longest, first * 2 ** min(attempt, 16))  # noqa: S311 - a pause
                logger.warning("%s: opening failed, next try in %.1f s: %s", shard, delay, error)
                await shard.wait_released(delay)
            else:
                if config != shard.config:
                    engine.reconfigure(shard.config)
                return engine
        return None

    def _open_engine(self, shard: HostedShard, config: ShardConfig) -> ShardEngine:
        collection_id, number = shard.id
        prefix = f"collections/{collection_id}/shard-{number:04d}"
        scratch = self._scratch_of(shard)
        return ShardEngine.open(self._store, prefix, config, scratch, self._builder)

    def _close_engine(self, shard: HostedShard, engine: ShardEngine) -> None:
        engine.close()
        shutil.rmtree(self._scratch_of(shard), ignore_errors=True)

    def _scratch_of(self, shard: HostedShard) -> Path:
        collection_id, number = shard.id
        return self._scratch / f"{collection_id}-{number:04d}"


class HostedShard:
    """One assigned shard. It is closed once ``released``: failed, or assigned no more."""

    def __init__(self, shard_id: ShardId, config: ShardConfig) -> None:
        self.id = shard_id
        self.config = config
        self.engine_or_none: ShardEngine | None = None
        self.failure: Exception | None = None
        self.released = asyncio.Event()

    def __str__(self) -> str:
        collection_id, number = self.id
        return f"shard {number} of collection {collection_id}"

    @property
    def engine(self) -> ShardEngine:
        """The engine of a shard that `Hosting.find` has just answered."""
        assert self.engine_or_none is not None
        return self.engine_or_none

    @property
    def status(self) -> str:
        """``"recovering"``, ``"serving"`` or ``"failed: REASON"``."""
        if self.failure is not None:
            return f"failed: {type(self.failure).__name__}: {self.failure}"
        return "recovering" if self.engine_or_none is None else "serving"

    def reconfigure(self, config: ShardConfig) -> None:
        if config != self.config:
            self.config = config
            if self.engine_or_none is not None:
                self.engine_or_none.reconfigure(config)

    def notice_failure(self) -> None:
        """Give the shard up if its engine has failed, as when another writer took it over."""
        engine = self.engine_or_none
        if engine is not None and engine.failure is not None:
            logger.warning("%s: %s", self, engine.failure)
            self.failure = engine.failure
            self.engine_or_none = None
            self.released.set()

    async def wait_released(self, timeout: float) -> None:
        """Return once released, or after ``timeout`` seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.released.wait(), timeout)
