"""What the processes of a cluster are told when they start."""

from __future__ import annotations

import logging
import sys

import msgspec

from cluster.logs import JsonFormatter, LogFormat, TextFormatter


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
