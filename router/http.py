"""One router in this process: the application over a socket for HTTP and a port for gRPC."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import uvicorn
from grpc_health.v1 import health

from cluster.topology import TopologyWatcher
from router.app import create_app
from router.fanout import Fanout
from router.grpc import server as grpc_server
from router.observing import Observation
from router.security.settings import Security
from shard import tracing
from shard.errors import Unavailable
from shard.garbage import spare_garbage_collector
from shard.objects import ObjectStore
from shard.rpc.tls import Renewed, channel_credentials, serving_credentials
from shard.scheduling import ask_for_short_slices

DRAIN_SECONDS = 8
"""Time for requests under way when a router stops; a write may have been held back for five."""


@asynccontextmanager
async def routing(
    store: ObjectStore,
    data: str,
    watcher: TopologyWatcher,
    listening: socket.socket,
    grpc_address: tuple[str, int],
    default_shards: int,
    security: Security,
    observation: Observation,
) -> AsyncIterator[health.aio.HealthServicer]:  # type: ignore[name-defined]  # not in the stubs
    """Answers what comes to ``listening`` and, by gRPC, to host and port of ``grpc_address``, both
    of which other processes may share, and drains at the end.

    ``data`` is the URL of ``store``, ``default_shards`` the shard number of a collection that names
    none, ``security`` who may ask what. What it yields tells probes by gRPC whether this router is
    well, which is not said yet.
    """
    credentials = None
    if security.cluster_tls is not None:
        credentials = channel_credentials(security.cluster_tls)
    app = create_app(
        store,
        data,
        Fanout(watcher, credentials),
        default_shards=default_shards,
        security=security,
        observation=observation,
    )
    server = _HttpServer(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            ssl_certfile=security.tls_cert,
            ssl_keyfile=security.tls_key,
            ssl_ca_certs=security.tls_client_ca,
            ssl_cert_reqs=ssl.CERT_NONE if security.tls_client_ca is None else ssl.CERT_REQUIRED,
            ssl_context_factory=None if security.tls_cert is None else _renewed_context,
        )
    )
    ask_for_short_slices()
    exits = ExitStack()
    exits.enter_context(tracing.exporting("shoal-router"))
    serving = asyncio.create_task(server.serve([listening]))
    spare_garbage_collector()
    try:
        while not server.started:
            if serving.done():
                raise Unavailable("the HTTP server did not start")
            await asyncio.sleep(0.01)
        # It ends first: with the HTTP server, the application does.
        async with grpc_server.serving(
            app, *grpc_address, DRAIN_SECONDS, _grpc_credentials(security)
        ) as wellness:
            yield wellness
    finally:
        server.should_exit = True
        await serving
        await asyncio.to_thread(exits.close)


def _grpc_credentials(security: Security) -> grpc.ServerCredentials | None:
    if security.tls_cert is None or security.tls_key is None:
        return None
    authority = None if security.tls_client_ca is None else Path(security.tls_client_ca)
    return serving_credentials(Path(security.tls_cert), Path(security.tls_key), authority)


def _renewed_context(config: uvicorn.Config, make: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """A context that takes each new connection to that of the files as they are by then."""
    named = (config.ssl_certfile, config.ssl_keyfile, config.ssl_ca_certs)
    current = Renewed([Path(name) for name in named if name is not None], make)

    def take(connection: Any, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = current()

    first = make()
    first.sni_callback = take  # It is called for those who name no host too.
    return first


class _HttpServer(uvicorn.Server):
    """uvicorn, with signals left to who runs the router."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
