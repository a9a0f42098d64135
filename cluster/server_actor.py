"""The Ray actor that keeps one shard server.

Ray starts its process, restarts it, and carries assignments to it. Queries and writes go straight
to the gRPC server inside, which goes on when Ray's head is gone.
"""

from __future__ import annotations

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import ray

from cluster.settings import ClusterSettings, configure_logging
from shard import tracing
from shard.garbage import spare_garbage_collector
from shard.model import ShardConfig
from shard.objects import open_object_store
from shard.rpc.hosting import ShardId
from shard.rpc.server import ShardServer

logger = logging.getLogger(__name__)


class Report(NamedTuple):
    """What a shard server tells the supervisor."""

    address: str
    """``"host:port"``; another one after each restart."""
    status: dict[ShardId, str]
    """As of `ShardServer.status`."""


class ShardServerActor:
    """Hosts the shards it is assigned. A restarted one begins anew, with none."""

    def __init__(self, name: str, settings: ClusterSettings) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._name = name
        self._settings = settings
        self._lock = Lock()
        self._exits = ExitStack()
        self._exits.enter_context(tracing.exporting("shoal-shard-server"))
        self._server: ShardServer | None = None
        self._address = ""

    def assign(self, desired: dict[ShardId, ShardConfig]) -> Report:
        """Host ``desired`` and nothing else. Raises Unavailable, or OSError, where it cannot yet.

        Shards open and close in the background; this returns at once.
        """
        with self._lock:
            if self._server is None:
                self._server = self._start()
        self._server.assign(desired)
        return Report(self._address, self._server.status())

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way ``grace`` seconds, and close every shard."""
        with self._lock:
            if self._server is not None:
                self._server.stop(grace)
            self._exits.close()

    def _start(self) -> ShardServer:
        # A constructor that raises would end the actor for good; this is tried again.
        store = open_object_store(self._settings.data)
        scratch = Path(self._settings.scratch) / self._name
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        # On a cluster of our own everything is on this machine, and nobody else's business.
        host = "127.0.0.1"
        if self._settings.ray_address is not None:
            host = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        server = ShardServer(
            store,
            scratch,
            host=host,
            port=self._settings.shard_port,
            search_threads=self._settings.search_threads,
            tls=self._settings.tls,
        )
        self._address = f"{host}:{server.start()}"
        logger.info("%s listens on %s", self._name, self._address)
        spare_garbage_collector()
        return server
