"""One more router process beside ``shoal serve``'s own, on the same ports.

``python -m router.worker SETTINGS`` reads `Security` from the first line of its standard input, and
writes one line to stdout once it answers. It ends on SIGTERM, drained, and when its standard input
ends.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys

import msgspec
import uvloop
from grpc_health.v1 import health_pb2

from cluster.logs import LogFormat
from cluster.settings import configure_logging
from cluster.topology import TopologyWatcher, poll_seconds
from router.http import routing
from router.observing import Observation
from router.security.settings import Security
from shard.errors import ShoalError
from shard.objects import open_object_store


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a router process is told."""

    data: str
    shards: int
    listening: int
    """File descriptor of the socket, inherited."""
    host: str
    grpc_port: int
    log_level: str
    log_format: LogFormat
    observation: Observation


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=WorkerSettings)
    configure_logging(settings.log_level, settings.log_format)
    security = msgspec.json.decode(_line(), type=Security)
    try:
        uvloop.run(_route(settings, security))
    except (ShoalError, OSError) as error:
        sys.exit(f"shoal: {error}")


async def _route(settings: WorkerSettings, security: Security) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(0, _end_with_parent)
    store = await asyncio.to_thread(open_object_store, settings.data)
    listening = socket.socket(fileno=settings.listening)
    async with (
        TopologyWatcher(store, poll_seconds(settings.data)) as watcher,
        routing(
            store,
            settings.data,
            watcher,
            listening,
            (settings.host, settings.grpc_port),
            settings.shards,
            security,
            settings.observation,
        ) as wellness,
    ):
        await wellness.set("", health_pb2.HealthCheckResponse.SERVING)
        print("started", flush=True)
        await stopping.wait()


def _line() -> bytes:
    """The first line of standard input; not a byte more, which would tell of its end."""
    line = bytearray()
    while (byte := os.read(0, 1)) not in (b"", b"\n"):
        line += byte
    return bytes(line)


def _end_with_parent() -> None:
    if not os.read(0, 1_024):
        os._exit(1)


if __name__ == "__main__":
    main()
