"""``shoal router``: a router alone, for a cluster whose shard servers are started elsewhere.

It finds them in the object store, and needs no Ray. Any number of such routers serve one cluster.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import msgspec
import uvloop
from grpc_health.v1 import health_pb2

from cluster.logs import LogFormat
from cluster.settings import configure_logging
from cluster.topology import TopologyWatcher, poll_seconds
from router.grpc.server import reserved_port
from router.http import routing
from router.observing import Observation
from router.security.settings import OPEN, Security
from router.serve import stop_on_signals, url_of
from shard.objects import open_object_store


class RouterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``shoal router`` is told."""

    data: str
    host: str
    port: int
    grpc_port: int
    shards: int
    log_level: str
    log_format: LogFormat = "text"
    observation: Observation = Observation()
    security: Security = OPEN


def route(settings: RouterSettings, ready: Callable[[str], None]) -> None:
    """Route until SIGINT or SIGTERM; ``ready`` is called with the URL.

    Raises InvalidInput, NotFound, Unavailable or OSError where the router cannot start. It does
    start without shard servers; ``/readyz`` tells of them.
    """
    configure_logging(settings.log_level, settings.log_format)
    uvloop.run(_route(settings, ready))


async def _route(settings: RouterSettings, ready: Callable[[str], None]) -> None:
    stopping = stop_on_signals()
    listening = socket.create_server((settings.host, settings.port), backlog=2_048)
    listening.setblocking(False)
    with reserved_port(settings.host, settings.grpc_port) as grpc_port:
        store = await asyncio.to_thread(open_object_store, settings.data)
        async with (
            TopologyWatcher(store, poll_seconds(settings.data)) as watcher,
            routing(
                store,
                settings.data,
                watcher,
                listening,
                (settings.host, grpc_port),
                settings.shards,
                settings.security,
                settings.observation,
            ) as wellness,
        ):
            await wellness.set("", health_pb2.HealthCheckResponse.SERVING)
            ready(url_of(listening, settings.security))
            await stopping.wait()
