"""Options of commands that listen, and what they make of a router."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from router.security.settings import Security, read_key
from shard.errors import InvalidInput

_FILE = click.Path(dir_okay=False, path_type=Path)
_KEY = (
    click.option("--api-key", help="The service's key. On a command line it is no secret."),
    click.option("--api-key-file", type=_FILE, help="File that has the key."),
)
_OPTIONS = (
    *_KEY,
    click.option("--alt-api-key", help="Key as good as that one, to go over from one to another."),
    click.option("--alt-api-key-file", type=_FILE, help="File that has that key."),
    click.option("--read-only-api-key", help="Key for those who may only read."),
    click.option("--read-only-api-key-file", type=_FILE, help="File that has it."),
    click.option(
        "--jwt-rbac", is_flag=True, help="Take tokens (JWT) too, signed with the API key."
    ),
    click.option("--tls-cert", type=_FILE, help="Certificate (PEM) to serve HTTP and gRPC with."),
    click.option("--tls-key", type=_FILE, help="Its private key."),
    click.option(
        "--tls-client-ca", type=_FILE, help="Authorities: clients must have a certificate of one."
    ),
    click.option(
        "--cluster-tls",
        type=click.Path(file_okay=False),
        help="Directory of tls.crt, tls.key and ca.crt for TLS between routers and shard servers.",
    ),
    click.option(
        "--audit-log",
        type=_FILE,
        help="File for a line of JSON about each change, and each request that is refused.",
    ),
    click.option(
        "--allow-location",
        "locations",
        multiple=True,
        envvar="SHOAL_ALLOW_LOCATION",
        metavar="PLACE",
        help="Directory or s3://BUCKET/PREFIX to ingest from, export to and recover from; may be "
        "given more than once.  [default: everywhere for this machine without keys, else nowhere]",
    ),
    click.option(
        "--allow-anonymous",
        is_flag=True,
        help="Let everybody in who reaches --host, without a key.",
    ),
)


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command that has ``host``, and gives it ``security`` for them."""

    @functools.wraps(command)
    def run(
        *,
        host: str,
        api_key: str | None,
        api_key_file: Path | None,
        alt_api_key: str | None,
        alt_api_key_file: Path | None,
        read_only_api_key: str | None,
        read_only_api_key_file: Path | None,
        jwt_rbac: bool,
        tls_cert: Path | None,
        tls_key: Path | None,
        tls_client_ca: Path | None,
        cluster_tls: str | None,
        audit_log: Path | None,
        locations: tuple[str, ...],
        allow_anonymous: bool,
        **options: Any,
    ) -> None:
        # What this process starts does not inherit them.
        for variable in ("SHOAL_API_KEY", "SHOAL_ALT_API_KEY", "SHOAL_READ_ONLY_API_KEY"):
            os.environ.pop(variable, None)
        try:
            security = Security(
                api_key=read_key(api_key, api_key_file, "--api-key"),
                alt_api_key=read_key(alt_api_key, alt_api_key_file, "--alt-api-key"),
                read_only_api_key=read_key(
                    read_only_api_key, read_only_api_key_file, "--read-only-api-key"
                ),
                jwt_rbac=jwt_rbac,
                tls_cert=_text(tls_cert),
                tls_key=_text(tls_key),
                tls_client_ca=_text(tls_client_ca),
                cluster_tls=cluster_tls,
                audit_log=_text(audit_log),
                locations=list(locations),
            ).check(host, allow_anonymous=allow_anonymous)
        except InvalidInput as error:
            click.echo(f"shoal: {error}", err=True)
            sys.exit(1)
        command(host=host, security=security, **options)

    for option in reversed(_OPTIONS):
        run = option(run)
    return run


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def with_key(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command that asks a service, and gives it its ``key``."""

    @functools.wraps(command)
    def run(*, api_key: str | None, api_key_file: Path | None, **options: Any) -> None:
        try:
            key = read_key(api_key, api_key_file, "--api-key")
        except InvalidInput as error:
            click.echo(f"shoal: {error}", err=True)
            sys.exit(1)
        command(key=key, **options)

    for option in reversed(_KEY):
        run = option(run)
    return run
