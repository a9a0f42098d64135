"""The process that starts Ray on this machine, or joins a cluster, and starts the supervisor.

``python -m cluster.local SETTINGS`` writes one line to stdout once the supervisor is started. It
ends on SIGTERM, and when its standard input ends: that is how it learns that its parent is gone.
Ray's own processes end with this one, however it ends.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path
from threading import Event, Thread
from uuid import uuid4

import msgspec
import psutil

from cluster.settings import ENVIRONMENT, NAMESPACE, ClusterSettings, configure_logging
from cluster.topology import TopologyDocument
from shard.errors import ShoalError
from shard.objects import open_object_store

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 80 << 20
"""Ray's least; only assignments go through Ray."""
RECONNECT_SECONDS = 86_400
"""Ray ends a node's processes when its head has been gone for this long, 60 s by default. Shards
serve without the head."""
STOP_SECONDS = 3.0


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=ClusterSettings)
    configure_logging(settings.log_level, settings.log_format)
    stopping = Event()
    Thread(target=_exit_with_parent, args=(settings, stopping), daemon=True).start()
    try:
        _run(settings, stopping)
    except (ShoalError, ConnectionError) as error:
        sys.exit(f"shoal: {error}")


def _run(settings: ClusterSettings, stopping: Event) -> None:
    _set_environment(settings)
    # Only now: Ray reads the environment when it is imported.
    import ray

    from cluster.supervisor import start_supervisor, stop_shard_servers

    folder = _ray_folder(settings)
    try:
        if settings.ray_address is None:
            shutil.rmtree(folder, ignore_errors=True)
            ray.init(
                address="local",
                namespace=NAMESPACE,
                # By default Ray takes the machine's outward address.
                _node_ip_address="127.0.0.1",
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                logging_level=logging.WARNING,
                _temp_dir=str(folder),
                _system_config={
                    "gcs_rpc_server_reconnect_timeout_s": RECONNECT_SECONDS,
                    # Ray's guard kills the largest process when the machine is short of memory:
                    # a shard server, which would come back and load the same shards.
                    "memory_monitor_refresh_ms": 0,
                },
            )
        else:
            ray.init(
                address=settings.ray_address,
                namespace=NAMESPACE,
                logging_level=logging.WARNING,
            )
        # Ray has set a handler of its own.
        signal.signal(signal.SIGTERM, lambda *_: stopping.set())
        start_supervisor(settings, lambda: _claim(settings.data))
        print("started", flush=True)
        stopping.wait()
        if settings.ray_address is None:
            stop_shard_servers(settings.shard_servers, STOP_SECONDS)
        ray.shutdown()
    finally:
        if settings.ray_address is None:
            shutil.rmtree(folder, ignore_errors=True)


def _set_environment(settings: ClusterSettings) -> None:
    os.environ |= ENVIRONMENT
    if settings.log_format == "json":
        # Lines of actors reach this process, which would put their names before them.
        os.environ["RAY_DISABLE_WORKER_LOG_PREFIX"] = "1"
    if settings.ray_address is None:
        # A secret of this cluster alone, and no file for it in the home directory.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _ray_folder(settings: ClusterSettings) -> Path:
    """Where Ray keeps its sockets, whose paths must be short, and its logs."""
    name = blake2b(settings.data.encode(), digest_size=6).hexdigest()
    return Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}-{name}"


def _claim(data: str) -> str:
    cluster = uuid4().hex
    TopologyDocument(open_object_store(data)).claim(cluster)
    return cluster


def _exit_with_parent(settings: ClusterSettings, stopping: Event) -> None:
    """Wait for the end of standard input, and leave no time to anything then."""
    while os.read(0, 1024):
        pass
    if not stopping.is_set():
        # Most of Ray's processes end with this one. Its agents would look around for a minute.
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if settings.ray_address is None:
            shutil.rmtree(_ray_folder(settings), ignore_errors=True)
        os._exit(1)


if __name__ == "__main__":
    main()
