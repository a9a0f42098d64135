"""Which shard server is where and hosts what: a versioned document that routers watch."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Container
from time import monotonic
from typing import Self

import msgspec

from shard.errors import Corrupt, ShoalError, Unavailable
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored

logger = logging.getLogger(__name__)

TOPOLOGY = "cluster/topology"


class Superseded(ShoalError):
    """Another cluster serves the same object store now."""


class Topology(msgspec.Struct, frozen=True):
    """Where every shard is."""

    servers: dict[str, str]
    """Shard server id -> ``"host:port"``."""
    placements: dict[str, list[str]]
    """Collection id -> server id of each shard number; ``""`` while unplaced.

    A deleted collection is among them until no shard server takes a write for it any more."""
    cluster: str = ""
    """Id of the cluster of processes that serves the store, and alone may change this."""


class TopologyDocument:
    """The topology in the object store. Methods block, and raise Unavailable."""

    def __init__(self, store: ObjectStore) -> None:
        self._document = VersionedDocument(store, TOPOLOGY)

    def read(self) -> Topology:
        return _decode(self._document.read()[1])

    def claim(self, cluster: str, *, over: Container[str] | None = None) -> None:
        """Take over from whatever cluster served the store before.

        No shard is placed anywhere then. Raises Superseded where `name_of` that cluster is not
        among ``over``; None: whatever it is.
        """

        def unplace(topology: Topology) -> Topology:
            if over is not None and topology.cluster and name_of(topology.cluster) not in over:
                raise Superseded(f"cluster {topology.cluster} serves the store")
            unplaced = {id_: [""] * len(shards) for id_, shards in topology.placements.items()}
            return Topology(servers={}, placements=unplaced, cluster=cluster)

        self._change(unplace)

    def publish(self, topology: Topology) -> None:
        """Raises Superseded when ``topology.cluster`` is not the last that made its claim."""

        def replace(current: Topology) -> Topology:
            if current.cluster != topology.cluster:
                raise Superseded(f"cluster {current.cluster} has taken over")
            return topology

        self._change(replace)

    def _change(self, change: Callable[[Topology], Topology]) -> None:
        self._document.update(lambda data: msgspec.json.encode(change(_decode(data))))


class TopologyWatcher:
    """Keeps up with the topology from one event loop; an async context manager.

    It reads every ``interval`` seconds, and four times as often while somebody waits for a change.
    While the object store cannot be reached, the last known topology stays `current`.
    """

    def __init__(self, store: ObjectStore, interval: float) -> None:
        self.current = Topology(servers={}, placements={})
        self._document = TopologyDocument(store)
        self._interval = interval
        self._wanted = asyncio.Event()
        self._waiting: set[asyncio.Future[None]] = set()
        self._failing = False

    async def __aenter__(self) -> Self:
        await self._read()
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    async def changed(self, timeout: float) -> None:
        """Return once there is another topology. Raises TimeoutError after ``timeout`` seconds."""
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(change)
        self._wanted.set()
        try:
            async with asyncio.timeout(timeout):
                await change
        finally:
            self._waiting.discard(change)

    async def _watch(self) -> None:
        while True:
            slept_until = monotonic() + self._interval
            await asyncio.sleep(self._interval / 4)
            if not self._waiting:
                self._wanted.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(slept_until - monotonic()):
                        await self._wanted.wait()
            await self._read()

    async def _read(self) -> None:
        try:
            topology = await asyncio.to_thread(self._document.read)
        except (Unavailable, Corrupt) as error:
            if not self._failing:
                logger.warning("cannot read the topology, going on with the last one: %s", error)
            self._failing = True
            return
        except Exception:
            logger.exception("cannot read the topology, going on with the last one")
            return
        if self._failing:
            logger.info("the topology can be read again")
        self._failing = False
        if topology != self.current:
            self.current = topology
            for change in self._waiting:
                if not change.done():
                    change.set_result(None)


def name_of(cluster: str) -> str:
    """The part of a cluster's id that stays the same when it is started anew."""
    name, dot, _ = cluster.rpartition(".")
    return name if dot else cluster


def poll_seconds(data: str) -> float:
    """How often to look for changes in the object store at ``data``, where a look costs money."""
    return 1.0 if data.startswith("s3://") else 0.2


def _decode(data: bytes) -> Topology:
    if not data:
        return Topology(servers={}, placements={})
    return decode_stored(data, Topology, TOPOLOGY)
