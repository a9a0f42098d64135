"""Keeps the supervisor of a Ray cluster that somebody else runs: ``shoal supervise``.

It starts the supervisor where there is none, replaces one that was told something else, and goes on
looking. No query and no write passes it, and when it ends, nothing else does. When Ray does not
answer any more it ends, for what runs it to start it again.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from time import monotonic
from uuid import uuid4

import grpc
import msgspec
import ray
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from cluster.settings import NAMESPACE, ClusterSettings, configure_logging
from cluster.supervisor import start_supervisor, update_supervisor
from cluster.topology import Superseded, TopologyDocument, name_of
from shard.errors import Unavailable
from shard.objects import open_object_store

logger = logging.getLogger(__name__)

SERVICE = "supervisor"
"""Of the gRPC health service: whether the cluster has a supervisor. Without a name: whether this
process is well."""
LOOK_SECONDS = 5.0
CONNECT_SECONDS = 120.0
"""How long Ray may take to be there."""
_SERVING, _NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


class KeeperSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What ``shoal supervise`` is told."""

    cluster: ClusterSettings
    """Its ``ray_address`` is set."""
    name: str
    """Of the cluster: one of another name that serves the same object store is left alone."""
    take_over: str | None = None
    """Name of the cluster that this one shall replace."""
    host: str
    grpc_port: int


def keep_supervisor(settings: KeeperSettings) -> None:
    """Keep the supervisor until SIGINT or SIGTERM; it and its shard servers go on after that.

    Raises Superseded where another cluster serves the object store, InvalidInput, Unavailable, and
    OSError, of which ConnectionError when Ray cannot be reached.
    """
    configure_logging(settings.cluster.log_level, settings.cluster.log_format)
    stopping = Event()
    _stop_on_signals(stopping)
    with _health(settings.host, settings.grpc_port) as wellness:
        wellness.set("", _SERVING)
        wellness.set(SERVICE, _NOT_SERVING)
        _connect(settings.cluster, stopping)
        # Ray has set handlers of its own.
        _stop_on_signals(stopping)
        try:
            while not stopping.is_set():
                start_supervisor(settings.cluster, lambda: _claim(settings))
                try:
                    update_supervisor(settings.cluster)
                    wellness.set(SERVICE, _SERVING)
                except Unavailable as error:
                    logger.warning("%s", error)
                    wellness.set(SERVICE, _NOT_SERVING)
                stopping.wait(LOOK_SECONDS)
        finally:
            ray.shutdown()


def _stop_on_signals(stopping: Event) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopping.set())


def _connect(settings: ClusterSettings, stopping: Event) -> None:
    deadline = monotonic() + CONNECT_SECONDS
    while not stopping.is_set():
        try:
            ray.init(
                address=settings.ray_address,
                namespace=NAMESPACE,
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
            return
        except ConnectionError as error:
            if monotonic() > deadline:
                raise
            logger.info("Ray at %s: %s", settings.ray_address, error)
            stopping.wait(1)


def _claim(settings: KeeperSettings) -> str:
    cluster = f"{settings.name}.{uuid4().hex}"
    over = {settings.name, settings.take_over or settings.name}
    document = TopologyDocument(open_object_store(settings.cluster.data))
    try:
        document.claim(cluster, over=over)
    except Superseded as error:
        other = name_of(document.read().cluster)
        raise Superseded(
            f"{settings.cluster.data}: {error}; stop that one, and say `--take-over {other}`"
        ) from error
    logger.warning("cluster %s serves %s", cluster, settings.cluster.data)
    return cluster


@contextmanager
def _health(host: str, port: int) -> Iterator[health.HealthServicer]:
    """Serves the standard gRPC health protocol, for probes."""
    wellness = health.HealthServicer()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    health_pb2_grpc.add_HealthServicer_to_server(wellness, server)
    try:
        server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"cannot listen on {host}:{port}: {error}") from error
    server.start()
    try:
        yield wellness
    finally:
        server.stop(0).wait()
