"""``shoal serve``: a cluster on this machine with its router, from start to drained stop.

The router runs in this process, and Ray in a child of it, so that the router knows nothing of Ray
and goes on when Ray's head is gone. Where one process cannot answer what comes, further routers are
children too, and share the listening socket and the port for gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import msgspec
import uvloop
from grpc_health.v1 import health_pb2

from cluster.logs import LogFormat
from cluster.settings import ClusterSettings, configure_logging
from cluster.topology import TopologyWatcher, poll_seconds
from router.child import Child, kept_running
from router.grpc.server import reserved_port
from router.http import DRAIN_SECONDS, routing
from router.observing import Observation
from router.security.settings import OPEN, Security
from router.worker import WorkerSettings
from shard.errors import InvalidInput, Unavailable
from shard.objects import local_directory, open_object_store
from shard.rpc.pacing import cores

logger = logging.getLogger(__name__)

CLUSTER_STOP_SECONDS = 15.0
WORKER_STOP_SECONDS = 3 * DRAIN_SECONDS
"""A worker drains gRPC, then HTTP."""
START_SECONDS = 120.0


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``shoal serve`` is told."""

    data: str
    host: str
    port: int
    grpc_port: int
    shards: int
    shard_servers: int
    routers: int = 1
    scratch: str | None = None
    ray_address: str | None = None
    log_level: str = "info"
    security: Security = OPEN
    log_format: LogFormat = "text"
    observation: Observation = Observation()


def serve(settings: ServeSettings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the URL.

    Raises InvalidInput, Unavailable or OSError where the service cannot start.
    """
    configure_logging(settings.log_level, settings.log_format)
    with (
        # Bound before all else: a port that is taken shows at once, and nothing is left behind.
        socket.create_server((settings.host, settings.port), backlog=2_048) as listening,
        reserved_port(settings.host, settings.grpc_port) as grpc_port,
        _data_lock(settings),
        _scratch(settings) as scratch,
    ):
        listening.setblocking(False)
        uvloop.run(_serve(settings, scratch, listening, grpc_port, ready))


async def _serve(
    settings: ServeSettings,
    scratch: str,
    listening: socket.socket,
    grpc_port: int,
    ready: Callable[[str], None],
) -> None:
    stopping = stop_on_signals()
    store = await asyncio.to_thread(open_object_store, settings.data)
    async with AsyncExitStack() as stack:
        observations = stack.enter_context(_observations(settings))
        cluster = await stack.enter_async_context(
            kept_running(
                "cluster.local",
                _cluster_settings(settings, scratch),
                stop_seconds=CLUSTER_STOP_SECONDS,
            )
        )
        await _first_of(cluster.started, cluster, stopping)
        # Not sooner: until now the topology was that of a cluster that is gone.
        watcher = await stack.enter_async_context(
            TopologyWatcher(store, poll_seconds(settings.data))
        )
        wellness = await stack.enter_async_context(
            routing(
                store,
                settings.data,
                watcher,
                listening,
                (settings.host, grpc_port),
                settings.shards,
                settings.security,
                observations[0],
            )
        )
        workers = [
            await stack.enter_async_context(
                kept_running(
                    "router.worker",
                    _worker_settings(settings, listening, grpc_port, observation),
                    stop_seconds=WORKER_STOP_SECONDS,
                    pass_fds=[listening.fileno()],
                    secrets=settings.security,
                )
            )
            for observation in observations[1:]
        ]
        for worker in workers:  # All at once, and not one after the other.
            stack.callback(worker.running.cancel)
        served = asyncio.Event()
        waiting = asyncio.create_task(_wait_for_servers(watcher, settings.shard_servers, served))
        stack.callback(waiting.cancel)
        await _first_of(served, cluster, stopping)
        for worker in workers:
            await _first_of(worker.started, worker, stopping, "a router")
        if stopping.is_set():
            return
        await wellness.set("", health_pb2.HealthCheckResponse.SERVING)
        ready(url_of(listening, settings.security))
        await stopping.wait()
        logger.info("stopping")


@contextmanager
def _data_lock(settings: ServeSettings) -> Iterator[None]:
    """Keeps a local directory to one ``serve``; in a bucket the topology's claim does that."""
    directory = local_directory(settings.data)
    if directory is None:
        yield
        return
    path = directory / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    except OSError as error:
        raise InvalidInput(f"data {settings.data}: cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(
                f"data {settings.data}: another `shoal serve` is using it; stop that one, or give "
                "this one a directory of its own"
            ) from None
        yield


@contextmanager
def _scratch(settings: ServeSettings) -> Iterator[str]:
    """The directory for local copies: beside local data, where a copy may be a hard link."""
    if settings.scratch is not None:
        path = Path(settings.scratch).absolute()
    elif directory := local_directory(settings.data):
        path = directory / ".scratch"
    else:
        path = Path(tempfile.mkdtemp(prefix="shoal-scratch-"))
    try:
        yield str(path)
    finally:
        for server in range(settings.shard_servers):
            shutil.rmtree(path / f"shard-server-{server}", ignore_errors=True)
        with contextlib.suppress(OSError):
            path.rmdir()


@contextmanager
def _observations(settings: ServeSettings) -> Iterator[list[Observation]]:
    """That of each router; several of them share a directory, which lasts as long as this."""
    if settings.routers == 1:
        yield [settings.observation]
        return
    with tempfile.TemporaryDirectory(prefix="shoal-routers-") as shared:
        yield [
            msgspec.structs.replace(settings.observation, router=router, shared=shared)
            for router in range(settings.routers)
        ]


def stop_on_signals() -> asyncio.Event:
    """An event that the first signal sets; the second one ends the process at once."""
    stopping = asyncio.Event()

    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return stopping


def url_of(listening: socket.socket, security: Security) -> str:
    host, port = listening.getsockname()[:2]
    scheme = "http" if security.tls_cert is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def _wait_for_servers(watcher: TopologyWatcher, count: int, ready: asyncio.Event) -> None:
    while len(watcher.current.servers) < count:
        with contextlib.suppress(TimeoutError):
            await watcher.changed(START_SECONDS)
    ready.set()


async def _first_of(
    event: asyncio.Event, child: Child, stopping: asyncio.Event, what: str = "the cluster"
) -> None:
    """Return when ``event`` has come, or it is time to stop.

    Raises what ended ``child``, and Unavailable when ``what`` takes too long.
    """
    waiting = [asyncio.create_task(event.wait()), asyncio.create_task(stopping.wait())]
    done, _ = await asyncio.wait(
        [*waiting, child.running], timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    for one in waiting:
        one.cancel()
    if child.running in done:
        child.running.result()
    if not done:
        raise Unavailable(f"{what} has not started within {START_SECONDS:.0f} s")


def _cluster_settings(settings: ServeSettings, scratch: str) -> ClusterSettings:
    return ClusterSettings(
        data=settings.data,
        scratch=scratch,
        shard_servers=settings.shard_servers,
        # Together they use every core once.
        search_threads=max(1, cores() // settings.shard_servers),
        ray_address=settings.ray_address,
        tls=settings.security.cluster_tls,
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _worker_settings(
    settings: ServeSettings, listening: socket.socket, grpc_port: int, observation: Observation
) -> WorkerSettings:
    return WorkerSettings(
        data=settings.data,
        shards=settings.shards,
        listening=listening.fileno(),
        host=settings.host,
        grpc_port=grpc_port,
        log_level=settings.log_level,
        log_format=settings.log_format,
        observation=observation,
    )
