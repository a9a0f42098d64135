"""What the processes of a cluster are told when they start."""

from __future__ import annotations

import logging
import sys

import msgspec

from cluster.logs import JsonFormatter, LogFormat, TextFormatter

NAMESPACE = "shoal"
"""Of Shoal's actors in a Ray cluster."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    # Ray's workers are nice by 15; what serves queries must not come last.
    "RAY_worker_niceness": "0",
    # Idle OpenMP threads would spin, and take the cores from the ones that have work.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps freed memory per arena, and there would be eight a core.
    "MALLOC_ARENA_MAX": "2",
    # Nor does what a build or a flush has freed stay: thresholds set do not grow by themselves.
    "MALLOC_MMAP_THRESHOLD_": str(512 << 10),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}
"""Variables for Ray and, through it, for the actors' processes, whoever starts Ray."""


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Goes from the launcher to the process that starts Ray, and to every actor."""

    data: str
    """The object store: a directory or ``s3://BUCKET/PREFIX``."""
    scratch: str
    """A directory on each machine for local copies of what is in the object store."""
    shard_servers: int
    search_threads: int | None = None
    """Threads that search in each shard server; None: one a core."""
    ray_address: str | None = None
    """A Ray cluster to use; None: start one on this machine."""
    node_resource: str | None = None
    """Ray's resource of which each shard server takes one unit; None: any node is good for any."""
    shard_port: int = 0
    """Where each shard server listens, alone on its node then; 0: any free port."""
    tls: str | None = None
    """On each machine, a directory of `shard.rpc.tls`; None: shard servers answer whoever reaches
    them."""
    log_level: str = "info"
    log_format: LogFormat = "text"


def configure_logging(level: str, format: LogFormat = "text") -> None:
    """Log to stderr, one line a record; as text, with the traceback below it."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # These tell of every request at the level at which Shoal tells of what happened.
    for chatty in ("boto3", "botocore", "urllib3", "s3transfer", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
