"""``shoal serve``: a cluster on this machine with its router, from start to drained stop.

The router runs in this process, and Ray in a child of it, so that the router knows nothing of Ray
and goes on when Ray's head is gone. The child ends when the pipe to it does: however this process
ends, nothing of it stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import msgspec
import uvicorn
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.catalog import Catalog
from cluster.settings import ClusterSettings, configure_logging
from cluster.topology import TopologyWatcher, poll_seconds
from router.app import create_app
from router.fanout import Fanout
from shard.errors import InvalidInput, Unavailable
from shard.objects import ObjectStore, local_directory, open_object_store

logger = logging.getLogger(__name__)

DRAIN_SECONDS = 5
"""Time for requests under way when the service stops."""
CLUSTER_STOP_SECONDS = 15.0
START_SECONDS = 120.0
RESTART_SECONDS = (1.0, 30.0)
"""Backoff before a cluster that has ended is started again: first and longest."""


class ServeSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``shoal serve`` is told."""

    data: str
    host: str
    port: int
    grpc_port: int
    shards: int
    shard_servers: int
    scratch: str | None = None
    ray_address: str | None = None
    log_level: str = "info"


def serve(settings: ServeSettings, ready: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM; ``ready`` is called with the URL.

    Raises InvalidInput, Unavailable or OSError where the service cannot start.
    """
    configure_logging(settings.log_level)
    with _data_lock(settings), _scratch(settings) as scratch:
        uvloop.run(_serve(settings, scratch, ready))


async def _serve(settings: ServeSettings, scratch: str, ready: Callable[[str], None]) -> None:
    stopping = _stop_on_signals()
    # Bound before anything is started: a port that is taken shows at once.
    listening = socket.create_server((settings.host, settings.port), backlog=2_048)
    listening.setblocking(False)
    store = await asyncio.to_thread(open_object_store, settings.data)
    async with AsyncExitStack() as stack:
        wellness = await stack.enter_async_context(_grpc_health(settings))
        cluster = await stack.enter_async_context(_cluster(settings, scratch))
        await _first_of(cluster.started, cluster.running, stopping)
        # Not sooner: until now the topology was that of a cluster that is gone.
        watcher = await stack.enter_async_context(
            TopologyWatcher(store, poll_seconds(settings.data))
        )
        await stack.enter_async_context(_router(settings, store, watcher, listening))
        served = asyncio.Event()
        waiting = asyncio.create_task(_wait_for_servers(watcher, settings.shard_servers, served))
        stack.callback(waiting.cancel)
        await _first_of(served, cluster.running, stopping)
        if stopping.is_set():
            return
        await wellness.set("", health_pb2.HealthCheckResponse.SERVING)
        # What was imported stays: the garbage collector need not look through it time and again.
        gc.collect()
        gc.freeze()
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        ready(f"http://{host}:{listening.getsockname()[1]}")
        await stopping.wait()
        await wellness.enter_graceful_shutdown()
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


def _stop_on_signals() -> asyncio.Event:
    """An event that the first signal sets; the second one ends the process at once."""
    stopping = asyncio.Event()

    def stop(number: int) -> None:
        if stopping.is_set():
            os._exit(128 + number)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return stopping


async def _wait_for_servers(watcher: TopologyWatcher, count: int, ready: asyncio.Event) -> None:
    while len(watcher.current.servers) < count:
        with contextlib.suppress(TimeoutError):
            await watcher.changed(START_SECONDS)
    ready.set()


async def _first_of(
    event: asyncio.Event, cluster: asyncio.Task[None], stopping: asyncio.Event
) -> None:
    """Return when ``event`` has come, or it is time to stop.

    Raises what ended the cluster, and Unavailable when it takes too long.
    """
    waiting = [asyncio.create_task(event.wait()), asyncio.create_task(stopping.wait())]
    done, _ = await asyncio.wait(
        [*waiting, cluster], timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    for one in waiting:
        one.cancel()
    if cluster in done:
        cluster.result()
    if not done:
        raise Unavailable(f"the cluster has not started within {START_SECONDS:.0f} s")


@asynccontextmanager
async def _router(
    settings: ServeSettings, store: ObjectStore, watcher: TopologyWatcher, listening: socket.socket
) -> AsyncIterator[None]:
    app = create_app(Catalog(store), Fanout(watcher), default_shards=settings.shards)
    server = _HttpServer(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
        )
    )
    serving = asyncio.create_task(server.serve([listening]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


class _HttpServer(uvicorn.Server):
    """uvicorn, with signals left to `serve`."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@asynccontextmanager
async def _grpc_health(settings: ServeSettings) -> AsyncIterator[health.aio.HealthServicer]:  # type: ignore[name-defined]
    """Serves the standard gRPC health protocol, for probes."""
    wellness = health.aio.HealthServicer()  # type: ignore[attr-defined]
    await wellness.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(wellness, server)
    address = f"{settings.host}:{settings.grpc_port}"
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from error
    await server.start()
    try:
        yield wellness
    finally:
        await server.stop(0)


class _Cluster(NamedTuple):
    started: asyncio.Event
    running: asyncio.Task[None]
    """Ends only when the first start fails."""


@asynccontextmanager
async def _cluster(settings: ServeSettings, scratch: str) -> AsyncIterator[_Cluster]:
    """Runs the process that runs Ray, and starts it again should it end."""
    started = asyncio.Event()
    running = asyncio.create_task(_keep_cluster(settings, scratch, started))
    try:
        yield _Cluster(started, running)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Unavailable):
            await running


async def _keep_cluster(settings: ServeSettings, scratch: str, started: asyncio.Event) -> None:
    first, longest = RESTART_SECONDS
    pause = first
    while True:
        process = await _start_cluster(settings, scratch)
        try:
            assert process.stdout is not None
            if await process.stdout.readline():
                started.set()
                pause = first
            status = await process.wait()
        except asyncio.CancelledError:
            await _stop_cluster(process, in_order=started.is_set())
            raise
        if not started.is_set():
            raise Unavailable("the cluster did not start; its reason is above")
        logger.error("the cluster's process ended with %d; next start in %.0f s", status, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)


async def _start_cluster(settings: ServeSettings, scratch: str) -> Process:
    cluster = ClusterSettings(
        data=settings.data,
        scratch=scratch,
        shard_servers=settings.shard_servers,
        # Together they use every core once.
        search_threads=max(1, (os.cpu_count() or 1) // settings.shard_servers),
        ray_address=settings.ray_address,
        log_level=settings.log_level,
    )
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cluster.local",
        msgspec.json.encode(cluster).decode(),
        stdin=PIPE,
        stdout=PIPE,
        stderr=None if sys.stderr is not None else DEVNULL,
        start_new_session=True,  # Ctrl-C is for this process, which then stops that one in order.
    )


async def _stop_cluster(process: Process, *, in_order: bool) -> None:
    if process.returncode is not None:
        return
    if in_order:
        process.terminate()
    else:
        # Ray minds signals while it starts. The end of the pipe stops it at any time.
        assert process.stdin is not None
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), CLUSTER_STOP_SECONDS)
    except TimeoutError:
        logger.warning("the cluster did not stop in time")
        process.kill()
        await process.wait()
