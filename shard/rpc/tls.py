"""TLS between the processes of a cluster: each shows that the cluster's own authority knows it.

A directory has the three files that a Kubernetes Secret of type ``kubernetes.io/tls`` has. The
certificate is for `NAME`, whatever address a process has, and serves both ends. Files that are
replaced are read again, without a connection being lost.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Generic, TypeVar

import grpc

from shard.errors import InvalidInput

T = TypeVar("T")

logger = logging.getLogger(__name__)

NAME = "shoal-cluster"
"""For which the certificates are: shard servers come and go, and so do their addresses."""
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
OPTIONS = (("grpc.ssl_target_name_override", NAME),)
"""Of a channel with `channel_credentials`."""
LOOK_SECONDS = 1.0
"""Between looks at files that may have been replaced."""


class Renewed(Generic[T]):
    """What ``make`` makes of ``files``, anew once others have taken their place.

    ``make`` raises InvalidInput or OSError where the files are no good: at first that is raised
    here, later it is logged, and what was made before stays. May be called from any thread.
    """

    def __init__(self, files: Sequence[Path], make: Callable[[], T]) -> None:
        self._files = files
        self._make = make
        self._lock = Lock()
        self._seen = self._state()
        self._made = make()
        self._looked = monotonic()

    def __call__(self) -> T:
        if monotonic() - self._looked >= LOOK_SECONDS:
            with self._lock:
                self._look()
        return self._made

    def _look(self) -> None:
        self._looked = monotonic()
        state = self._state()
        if state == self._seen:
            return
        try:
            made = self._make()
        except (InvalidInput, OSError) as error:
            self._seen = state
            logger.error("%s; what was there before is used further on", error)
            return
        # Else they were being replaced meanwhile, and are looked at once more.
        if self._state() == state:
            self._seen, self._made = state, made
            logger.info("TLS: %s: read again", self._files[0])

    def _state(self) -> list[tuple[int, int, int] | None]:
        """By which files are known to be the same."""
        found: list[tuple[int, int, int] | None] = []
        for file in self._files:
            try:
                stat = file.stat()
            except OSError:
                found.append(None)
            else:
                found.append((stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found


def server_credentials(directory: str) -> grpc.ServerCredentials:
    """For a server that lets nobody in without a certificate. Raises InvalidInput."""
    certificate, key, authority = _files(directory)
    return serving_credentials(certificate, key, authority)


def serving_credentials(
    certificate: Path, key: Path, authority: Path | None
) -> grpc.ServerCredentials:
    """For a server that, with an ``authority``, lets nobody in without a certificate of it.

    Raises InvalidInput.
    """
    files = [certificate, key] if authority is None else [certificate, key, authority]
    configuration = Renewed(files, lambda: _configuration(certificate, key, authority))
    used = configuration()

    def newer() -> grpc.ServerCertificateConfiguration | None:
        """What comes in place of the one in use, if anything does: gRPC asks at each handshake."""
        nonlocal used
        before, used = used, configuration()
        return None if used is before else used

    return grpc.dynamic_ssl_server_credentials(
        used,
        newer,  # type: ignore[arg-type]  # None is for no change.
        require_client_authentication=authority is not None,
    )


def _configuration(
    certificate: Path, key: Path, authority: Path | None
) -> grpc.ServerCertificateConfiguration:
    _check(certificate, key, authority)
    return grpc.ssl_server_certificate_configuration(
        [(read(key), read(certificate))], None if authority is None else read(authority)
    )


def channel_credentials(directory: str) -> Renewed[grpc.ChannelCredentials]:
    """For clients of such a server. Raises InvalidInput.

    A channel keeps those that it began with, so that others want another channel.
    """
    files = certificate, key, authority = _files(directory)

    def make() -> grpc.ChannelCredentials:
        _check(certificate, key, authority)
        return grpc.ssl_channel_credentials(read(authority), read(key), read(certificate))

    return Renewed(files, make)


def _files(directory: str) -> tuple[Path, Path, Path]:
    of = Path(directory)
    return of / CERTIFICATE, of / KEY, of / AUTHORITY


def _check(certificate: Path, key: Path, authority: Path | None) -> None:
    """Raises InvalidInput for files that gRPC would take, to fail at every handshake."""
    for path in (certificate, key):
        read(path)
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"TLS: {certificate}, {key}: {error}") from None
    if authority is not None:
        read(authority)
        try:
            context.load_verify_locations(authority)
        except (OSError, ValueError) as error:
            raise InvalidInput(f"TLS: {authority}: {error}") from None


def read(path: Path) -> bytes:
    """A file of TLS. Raises InvalidInput."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"TLS: {path}: {error.strerror}") from None
