"""Errors as gRPC statuses, and back."""

from __future__ import annotations

import logging

import grpc

from shard.errors import (
    AlreadyExists,
    Corrupt,
    InvalidInput,
    NotFound,
    Overloaded,
    ShoalError,
    Unavailable,
)

logger = logging.getLogger(__name__)

# Statuses travel in HTTP/2 trailers, which gRPC limits to 8 KiB.
MAX_DETAILS = 1_000

_STATUS_OF: list[tuple[type[Exception], grpc.StatusCode]] = [
    (InvalidInput, grpc.StatusCode.INVALID_ARGUMENT),
    (NotFound, grpc.StatusCode.NOT_FOUND),
    (AlreadyExists, grpc.StatusCode.ALREADY_EXISTS),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Unavailable, grpc.StatusCode.UNAVAILABLE),
    (Corrupt, grpc.StatusCode.DATA_LOSS),
    (TimeoutError, grpc.StatusCode.DEADLINE_EXCEEDED),
]
_ERROR_OF: dict[grpc.StatusCode, type[Exception]] = {
    **{status: error for error, status in _STATUS_OF},
    # What gRPC itself answers for a process that is shutting down, or whose connection broke.
    grpc.StatusCode.CANCELLED: Unavailable,
    grpc.StatusCode.UNKNOWN: Unavailable,
}

_CODE_OF = {code.value[0]: code for code in grpc.StatusCode}


def status_of(error: Exception, method: str) -> tuple[grpc.StatusCode, str]:
    """Status and details of ``error``; one that nobody raised on purpose is logged."""
    for kind, status in _STATUS_OF:
        if isinstance(error, kind):
            return status, str(error)[:MAX_DETAILS]
    logger.error("%s failed", method, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"{type(error).__name__}: {error}"[:MAX_DETAILS]


def code_of(number: int) -> grpc.StatusCode:
    """The status of that number; UNKNOWN where there is none."""
    return _CODE_OF.get(number, grpc.StatusCode.UNKNOWN)


def error_of(status: grpc.StatusCode, details: str, address: str) -> Exception:
    """The error that a call to ``address`` ended in; `ShoalError` for one of no other kind."""
    if status in _ERROR_OF:
        kind = _ERROR_OF[status]
        remote = kind in (Unavailable, TimeoutError)
        return kind(f"shard server {address}: {details}" if remote else details)
    return ShoalError(f"shard server {address}: {status.name}: {details}")
