"""The command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from router.security.options import guarded, with_key
from router.security.settings import Security
from shard.errors import ShoalError

NODE_RESOURCE = "shard_server"
if TYPE_CHECKING:
    from cluster.logs import LogFormat

# gRPC's own log. What went wrong, Shoal says. gRPC reads this when it is imported, which is why
# the commands import what they need themselves.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@click.group(context_settings={"auto_envvar_prefix": "SHOAL", "show_default": True})
@click.version_option(package_name="shoal")
def main() -> None:
    """Shoal: vector search whose truth is in object storage."""


_host = click.option("--host", default="127.0.0.1", help="Address to listen on.")
_port = click.option(
    "--port", type=click.IntRange(0, 65_535), default=6333, help="HTTP; 0: any free."
)
_grpc_port = click.option(
    "--grpc-port", type=click.IntRange(0, 65_535), default=6334, help="gRPC; 0: any free."
)
_shards = click.option(
    "--shards", type=click.IntRange(1, 1_024), default=4, help="Shards of a new collection."
)
_log_level = click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="warning",
    help="Logs go to stderr.",
)
_log_format = click.option(
    "--log-format",
    type=click.Choice(["text", "json"]),
    default="text",
    help="Lines of text, or JSON objects, one a line.",
)
_slow_query_ms = click.option(
    "--slow-query-ms",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Requests that take so long are logged, with where their time went; 0: none.",
)
_hardware_reporting = click.option(
    "--hardware-reporting",
    is_flag=True,
    help="Every answer tells what it has taken, as `usage`.",
)


@main.command("serve", context_settings={"auto_envvar_prefix": "SHOAL"})
@click.option("--data", default="shoal-data", help="Directory or s3://BUCKET/PREFIX.")
@_host
@_port
@_grpc_port
@_shards
@click.option(
    "--shard-servers",
    type=click.IntRange(1, 1_024),
    default=lambda: _cores(),
    show_default="one a core",
    help="Processes that host shards.",
)
@click.option(
    "--routers",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="Processes that answer requests.",
)
@click.option("--scratch", help="Directory for local copies.  [default: beside the data]")
@click.option("--ray-address", help="Ray cluster to join.  [default: start one here]")
@_log_level
@_log_format
@_slow_query_ms
@_hardware_reporting
@guarded
def serve_command(
    data: str,
    host: str,
    port: int,
    grpc_port: int,
    shards: int,
    shard_servers: int,
    routers: int,
    scratch: str | None,
    ray_address: str | None,
    log_level: str,
    log_format: LogFormat,
    slow_query_ms: int,
    hardware_reporting: bool,
    security: Security,
) -> None:
    """Serve until interrupted. Every option may come from an environment variable SHOAL_OPTION."""
    from router.observing import Observation
    from router.serve import ServeSettings, serve

    settings = ServeSettings(
        data=_place(data),
        host=host,
        port=port,
        grpc_port=grpc_port,
        shards=shards,
        shard_servers=shard_servers,
        routers=routers,
        scratch=scratch,
        ray_address=ray_address,
        log_level=log_level,
        security=security,
        log_format=log_format,
        observation=Observation(slow_query_ms=slow_query_ms, hardware_reporting=hardware_reporting),
    )
    _run(lambda: serve(settings, _tell_ready))


@main.command("router", context_settings={"auto_envvar_prefix": "SHOAL"})
@click.option("--data", default="shoal-data", help="The cluster's directory or s3://BUCKET/PREFIX.")
@_host
@_port
@_grpc_port
@_shards
@_log_level
@_log_format
@_slow_query_ms
@_hardware_reporting
@guarded
def router_command(
    data: str,
    host: str,
    port: int,
    grpc_port: int,
    shards: int,
    log_level: str,
    log_format: LogFormat,
    slow_query_ms: int,
    hardware_reporting: bool,
    security: Security,
) -> None:
    """Answer requests, for a cluster that `shoal supervise` or `shoal serve` runs."""
    from router.observing import Observation
    from router.standalone import RouterSettings, route

    settings = RouterSettings(
        data=_place(data),
        host=host,
        port=port,
        grpc_port=grpc_port,
        shards=shards,
        log_level=log_level,
        log_format=log_format,
        observation=Observation(slow_query_ms=slow_query_ms, hardware_reporting=hardware_reporting),
        security=security,
    )
    _run(lambda: route(settings, _tell_ready))


@main.command("supervise", context_settings={"auto_envvar_prefix": "SHOAL"})
@click.option("--data", default="shoal-data", help="Directory or s3://BUCKET/PREFIX.")
@click.option("--ray-address", required=True, help="The Ray cluster, HOST:PORT or ray://HOST:PORT.")
@click.option(
    "--cluster",
    default="shoal",
    help="Name of the cluster; one of another name on the same data is left alone.",
)
@click.option("--take-over", metavar="NAME", help="Cluster to replace, by its name.")
@click.option(
    "--shard-servers",
    type=click.IntRange(1, 1_024),
    required=True,
    help=f"Processes that host shards. Each takes one of Ray's resource `{NODE_RESOURCE}`.",
)
@click.option(
    "--shard-port",
    type=click.IntRange(0, 65_535),
    default=0,
    help="Where each of them listens; 0: any free.",
)
@click.option("--scratch", required=True, help="Directory on Ray's nodes for local copies.")
@click.option(
    "--cluster-tls",
    help="Directory on Ray's nodes of tls.crt, tls.key and ca.crt, for TLS with routers.",
)
@_host
@click.option(
    "--grpc-port",
    type=click.IntRange(0, 65_535),
    default=6335,
    help="gRPC health service; 0: any free.",
)
@_log_level
@_log_format
def supervise_command(
    data: str,
    ray_address: str,
    cluster: str,
    take_over: str | None,
    shard_servers: int,
    shard_port: int,
    scratch: str,
    cluster_tls: str | None,
    host: str,
    grpc_port: int,
    log_level: str,
    log_format: LogFormat,
) -> None:
    """Keep a supervisor and its shard servers on a Ray cluster that runs already.

    They go on when this command ends. Started with other options, it replaces the supervisor.
    """
    from cluster.keeper import KeeperSettings, keep_supervisor
    from cluster.settings import ClusterSettings

    settings = KeeperSettings(
        cluster=ClusterSettings(
            data=_place(data),
            scratch=scratch,
            shard_servers=shard_servers,
            ray_address=ray_address,
            node_resource=NODE_RESOURCE,
            shard_port=shard_port,
            tls=cluster_tls,
            log_level=log_level,
            log_format=log_format,
        ),
        name=cluster,
        take_over=take_over,
        host=host,
        grpc_port=grpc_port,
    )
    _run(lambda: keep_supervisor(settings))


@main.command("ingest", context_settings={"auto_envvar_prefix": "SHOAL"})
@click.argument("source")
@click.option("--collection", required=True, help="Collection to load into; it must exist.")
@click.option("--url", default="http://127.0.0.1:6333", help="The service.")
@click.option("--id-column", help="Column of ids.  [default: id]")
@click.option("--vector-column", help="Column of vectors.  [default: found by its name]")
@click.option(
    "--named-vectors",
    "named",
    multiple=True,
    metavar="NAME=COLUMN",
    help="Column of the vectors of that name.  [default: `vector.NAME` or `NAME`]",
)
@click.option(
    "--payload-column",
    "payload_columns",
    multiple=True,
    help="Column of the payload, any number of times.  [default: all others]",
)
@click.option("--json-column", help="One column that has the whole payload.")
@click.option("--max-bad-rows", type=click.IntRange(0), default=0, help="The job fails above it.")
@click.option("--chunk-mb", type=click.IntRange(1, 16_384), default=256, help="Memory of a task.")
@click.option("--again", is_flag=True, help="Load what was loaded before once more.")
@click.option("--watch", is_flag=True, help="Wait for the end, and show how far it is.")
@with_key
def ingest_command(
    source: str,
    collection: str,
    url: str,
    id_column: str | None,
    vector_column: str | None,
    named: tuple[str, ...],
    payload_columns: tuple[str, ...],
    json_column: str | None,
    max_bad_rows: int,
    chunk_mb: int,
    again: bool,
    watch: bool,
    key: str | None,
) -> None:
    """Load the files at SOURCE, s3://BUCKET/PREFIX or a path, into a collection."""
    if json_column and payload_columns:
        raise click.UsageError("--json-column and --payload-column exclude each other")
    pairs = [one.partition("=") for one in named]
    if not all(equals for _, equals, _ in pairs):
        raise click.UsageError("--named-vectors: expected NAME=COLUMN")
    body = {
        "source": source,
        "columns": {
            "id": id_column,
            "vector": vector_column,
            "vectors": {name: column for name, _, column in pairs},
            "payload": json_column or (list(payload_columns) or None),
        },
        "max_bad_rows": max_bad_rows,
        "chunk_mb": chunk_mb,
        "again": again,
    }
    _run_job(url, collection, "ingest", body, watch, key)


@main.command("export", context_settings={"auto_envvar_prefix": "SHOAL"})
@click.argument("destination")
@click.option("--collection", required=True, help="Collection to export.")
@click.option("--url", default="http://127.0.0.1:6333", help="The service.")
@click.option("--watch", is_flag=True, help="Wait for the end, and show how far it is.")
@with_key
def export_command(
    destination: str, collection: str, url: str, watch: bool, key: str | None
) -> None:
    """Write a collection as Parquet files to DESTINATION, s3://BUCKET/PREFIX or a directory.

    What is there must be nothing. `shoal ingest` of it makes the same collection again.
    """
    _run_job(url, collection, "export", {"destination": destination}, watch, key)


def _cores() -> int:
    from shard.rpc.pacing import cores

    return cores()


def _place(data: str) -> str:
    return data if "://" in data else str(Path(data).absolute())


def _tell_ready(url: str) -> None:
    click.echo(f"Shoal is ready at {url}")


def _run(command: Callable[[], None]) -> None:
    """What goes wrong is told in one line."""
    try:
        command()
    except (ShoalError, OSError) as error:
        click.echo(f"shoal: {error}", err=True)
        sys.exit(1)


def _run_job(
    url: str, collection: str, kind: str, body: dict[str, Any], watch: bool, key: str | None
) -> None:
    from router import jobs

    try:
        well = jobs.run(url, collection, kind, body, key=key, watch=watch)
    except ShoalError as error:
        click.echo(f"shoal: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        click.echo(f"The job goes on; DELETE /collections/NAME/{kind}/JOB calls it off.", err=True)
        sys.exit(130)
    sys.exit(0 if well else 1)


@main.command("demo")
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default="shoal-demo",
    help="Directory for the data, which a second run finds again.",
)
def demo_command(data: Path) -> None:
    """Load 341,479 real word vectors into a service on this machine, and ask it questions."""
    from router import demo

    try:
        demo.run(data.absolute(), demo.cache_directory())
    except (ShoalError, OSError) as error:
        click.echo(f"shoal: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
