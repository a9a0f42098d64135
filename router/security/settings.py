"""How a router is guarded, and what it refuses to start with."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import msgspec

from router.security.locations import Locations
from shard.errors import InvalidInput

LEAST_JWT_SECRET = 32
"""Bytes, as RFC 7518 wants for HS256: who has a token could find a shorter key by trying."""


class Security(msgspec.Struct, frozen=True, kw_only=True):
    """What guards a router. Has secrets: it goes between processes by pipe, and into no log."""

    api_key: str | None = None
    alt_api_key: str | None = None
    """As good as ``api_key``: while clients go over from one to the other."""
    read_only_api_key: str | None = None
    jwt_rbac: bool = False
    """Whether tokens signed with ``api_key`` or ``alt_api_key`` are taken too."""
    local: bool = False
    """Whether it is open to this machine, and has to be closed to the web pages that are read on
    it."""

    tls_cert: str | None = None
    """File of the certificate that HTTP and gRPC are served with, and those that vouch for it."""
    tls_key: str | None = None
    tls_client_ca: str | None = None
    """File of the authorities of which clients have to have a certificate."""
    cluster_tls: str | None = None
    """Directory of `shard.rpc.tls`, for the way to the shard servers."""
    audit_log: str | None = None
    """File that is told of every change, and of every request that is refused."""
    locations: list[str] | None = None
    """Where users may have it read and write, as `Locations` has it."""

    @property
    def has_keys(self) -> bool:
        return self.api_key is not None or self.read_only_api_key is not None

    def __repr__(self) -> str:
        return f"Security(has_keys={self.has_keys})"

    def check(self, host: str, *, allow_anonymous: bool) -> Security:
        """Itself, for a service that listens on ``host``. Raises InvalidInput where that would be
        unsafe, or does not fit together."""
        if self.alt_api_key is not None and self.api_key is None:
            raise InvalidInput("--alt-api-key: expected an --api-key too")
        for option, key in (("--api-key", self.api_key), ("--alt-api-key", self.alt_api_key)):
            needed = self.jwt_rbac and (key is not None or option == "--api-key")
            if needed and len((key or "").encode()) < LEAST_JWT_SECRET:
                raise InvalidInput(
                    f"--jwt-rbac: expected an {option} of {LEAST_JWT_SECRET} bytes or more: tokens "
                    "are signed with it"
                )
        if (self.tls_cert is None) != (self.tls_key is None):
            raise InvalidInput("--tls-cert, --tls-key: expected both of them, or none")
        if self.tls_client_ca is not None and self.tls_cert is None:
            raise InvalidInput("--tls-client-ca: expected --tls-cert too")
        guarded = msgspec.structs.replace(self, locations=self.locations or [])
        Locations(guarded.locations)
        if self.has_keys or allow_anonymous:
            return guarded
        if not is_loopback(host):
            raise InvalidInput(
                f"--host {host}: others than this machine could reach the service, and nothing "
                "would ask them for a key. Give it one by --api-key-file or SHOAL_API_KEY, or say "
                "--allow-anonymous"
            )
        # Whoever asks is on this machine, and may read and write there without asking.
        return msgspec.structs.replace(guarded, local=True, locations=self.locations or None)


OPEN = Security()
"""Everybody may ask everything."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on ``host``. Raises InvalidInput where there
    is no such host."""
    try:
        found = socket.getaddrinfo(host or "0.0.0.0", None)  # noqa: S104 - what is asked
    except OSError as error:
        raise InvalidInput(f"--host {host!r}: {error.strerror}") from None
    addresses = [str(address[0]).partition("%")[0] for *_, address in found]
    return all(ipaddress.ip_address(one).is_loopback for one in addresses)


def read_key(key: str | None, file: Path | None, option: str) -> str | None:
    """A key as it is given, or as the one line of ``file``. Raises InvalidInput."""
    if file is not None:
        if key is not None:
            raise InvalidInput(f"{option}: it is given, and {option}-file too")
        try:
            key = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{option}-file {file}: {error}") from None
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise InvalidInput(f"{option}: expected printable ASCII characters, on one line")
    return key
