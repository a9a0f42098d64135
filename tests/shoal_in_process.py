"""All of Shoal in one process, but for Ray: routers on real ports, over real shard servers.

What the supervisor does in a cluster, a thread does here: it hosts the shards of every collection
in the catalog, and tells the routers where they are.
"""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any, Self, cast

import uvicorn
import uvloop

from cluster.catalog import Catalog
from cluster.placement import with_lingering
from cluster.topology import Topology, TopologyWatcher
from router.app import create_app
from router.fanout import Fanout
from router.grpc.server import reserved_port, serving
from shard.model import ShardConfig
from shard.objects.local import LocalObjectStore
from shard.rpc.server import ShardServer

HOST = "127.0.0.1"
POLL_SECONDS = 0.01


class ShoalInProcess:
    """A context manager; ``url`` is the first router's, and so is ``grpc_port``.

    ``settings`` are those of `create_app`.
    """

    url: str
    grpc_port: int

    def __init__(self, directory: Path, *, servers: int = 2, **settings: Any) -> None:
        self._directory = directory
        self._settings = settings
        self._directory = directory
        self._store = LocalObjectStore(directory / "store")
        self._servers = {
            f"server-{number}": ShardServer(
                self._store, directory / f"scratch-{number}", host=HOST, search_threads=2
            )
            for number in range(servers)
        }
        self.topology = Topology(servers={}, placements={})
        self.deaf: set[int] = set()
        """Numbers of shard servers that go on with what they host, whatever they are assigned."""
        self.first_server = 0
        """Where shard 0 of a collection goes."""
        self._addresses: dict[str, str] = {}
        self._stopping = Event()
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        for name, server in self._servers.items():
            self._addresses[name] = f"{HOST}:{server.start()}"
            self._exits.callback(server.stop, 1)
        self._placer = Thread(target=self._place_all, name="placer")
        self._placer.start()
        self._exits.callback(self._stop_placing)
        self.url, self.grpc_port = self._exits.enter_context(self._router())
        return self

    def __exit__(self, *raised: object) -> None:
        self._exits.close()

    @contextmanager
    def router(self, **settings: Any) -> Iterator[str]:
        """Runs one more router, with ``settings`` of its own; its URL."""
        with self._router(**settings) as (url, _):
            yield url

    @contextmanager
    def _router(self, **settings: Any) -> Iterator[tuple[str, int]]:
        fanout = Fanout(cast(TopologyWatcher, _Watcher(self)))
        settings = self._settings | settings
        app = create_app(self._store, str(self._directory / "store"), fanout, **settings)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        with socket.create_server((HOST, 0)) as listening, reserved_port(HOST, 0) as port:

            async def route() -> None:
                async with serving(app, HOST, port, drain_seconds=1):
                    await server.serve([listening])

            thread = Thread(target=uvloop.run, args=(route(),), name="router")
            thread.start()
            try:
                while not server.started and thread.is_alive():
                    sleep(POLL_SECONDS)
                yield f"http://{HOST}:{listening.getsockname()[1]}", port
            finally:
                server.should_exit = True
                thread.join()

    def stop_server(self, number: int) -> None:
        """End a shard server for good: nothing is placed any more, nor does the topology change."""
        self._stop_placing()
        self._servers[f"server-{number}"].stop(0)

    def _stop_placing(self) -> None:
        self._stopping.set()
        self._placer.join()

    def _place_all(self) -> None:
        catalog = Catalog(self._store)
        while not self._stopping.wait(POLL_SECONDS):
            collections = catalog.collections()
            placements = {
                collection.id: self.topology.placements.get(collection.id)
                or [
                    f"server-{(self.first_server + shard) % len(self._servers)}"
                    for shard in range(collection.shard_count)
                ]
                for collection in collections.values()
            }
            assigned: dict[str, dict[tuple[str, int], ShardConfig]] = defaultdict(dict)
            for collection in collections.values():
                for shard, name in enumerate(placements[collection.id]):
                    assigned[name][collection.id, shard] = collection.config
            for number, (name, server) in enumerate(self._servers.items()):
                if number not in self.deaf:
                    server.assign(assigned[name])
            hosted = {
                collection_id
                for server in self._servers.values()
                for collection_id, _ in server.status()
            }
            placements = with_lingering(placements, self.topology.placements, hosted)
            if self.topology.placements != placements:
                self.topology = Topology(servers=self._addresses, placements=placements)


class _Watcher:
    """The topology, without the object store between its writer and its readers."""

    def __init__(self, shoal: ShoalInProcess) -> None:
        self._shoal = shoal

    @property
    def current(self) -> Topology:
        return self._shoal.topology

    async def changed(self, timeout: float) -> None:
        seen, deadline = self.current, monotonic() + timeout
        while self.current is seen:
            if monotonic() > deadline:
                raise TimeoutError
            await asyncio.sleep(POLL_SECONDS)
