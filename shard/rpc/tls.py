"""TLS between the processes of a cluster: each shows that the cluster's own authority knows it.

A directory has the three files that a Kubernetes Secret of type ``kubernetes.io/tls`` has. The
certificate is for `NAME`, whatever address a process has, and serves both ends.
"""

from __future__ import annotations

from pathlib import Path

import grpc

from shard.errors import InvalidInput

NAME = "shoal-cluster"
"""For which the certificates are: shard servers come and go, and so do their addresses."""
CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "ca.crt"
OPTIONS = (("grpc.ssl_target_name_override", NAME),)
"""Of a channel with `channel_credentials`."""


def server_credentials(directory: str) -> grpc.ServerCredentials:
    """For a server that lets nobody in without a certificate. Raises InvalidInput."""
    certificate, key, authority = _files(directory)
    return grpc.ssl_server_credentials([(key, certificate)], authority, require_client_auth=True)


def channel_credentials(directory: str) -> grpc.ChannelCredentials:
    """For clients of such a server. Raises InvalidInput."""
    certificate, key, authority = _files(directory)
    return grpc.ssl_channel_credentials(authority, key, certificate)


def _files(directory: str) -> tuple[bytes, bytes, bytes]:
    return (
        read(Path(directory) / CERTIFICATE),
        read(Path(directory) / KEY),
        read(Path(directory) / AUTHORITY),
    )


def read(path: Path) -> bytes:
    """A file of TLS. Raises InvalidInput."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"TLS: {path}: {error.strerror}") from None
