"""Watches each request from its first byte to the last of its answer: counts it, gives it an id by
which log lines and the shard servers know it, charges the holder of its token, and tells of slow
ones.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable
from secrets import token_hex
from time import perf_counter, time
from typing import Any

import msgspec
from prometheus_client.samples import Exemplar
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from router.metrics import Kind, RouterMetrics
from router.security.access import Access
from shard import tracing
from shard.rpc.origin import Origin, callers
from shard.usage import Usage

logger = logging.getLogger(__name__)

_ID = re.compile(rb"[!-~]{1,128}")
_HEADERS = {b"x-request-id", b"traceparent", b"shoal-usage"}
_SLOWEST_CALLS = 8
_CLIENT_GONE, _FAILED = 499, 500
"""What a request is counted as that has no answer. The former is nginx's."""
_IDS = 256
"""That are made at once."""


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """How a router is watched."""

    slow_query_ms: int = 0
    """Requests that take so long are logged; 0: none."""
    hardware_reporting: bool = False
    """Whether every answer tells what it has taken, and not just those that are asked to."""
    router: int = 0
    """Number of the process among the routers of a service."""
    shared: str | None = None
    """Directory that these share, if there are several."""


class Observer:
    """ASGI middleware. Puts into the scope when the request ``started``, by `perf_counter`, its
    ``origin``, and whether the answer ``reports_usage``.

    Use from one event loop.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: RouterMetrics,
        observation: Observation,
        *,
        has_subjects: bool = False,
    ) -> None:
        """``has_subjects``: there may be tokens, whose holders are charged."""
        self._app = app
        self._requests = metrics.requests
        self._subjects = metrics.subjects
        self._slow_seconds = observation.slow_query_ms / 1_000 or float("inf")
        self._charges_all = has_subjects or observation.slow_query_ms > 0
        self._reports_usage = observation.hardware_reporting
        self._ids: list[bytes] = []
        self._over: list[tuple[Scope, int, float, tracing.Span | None]] = []
        """Status, seconds and span of requests that are yet to be taken in."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = scope["started"] = perf_counter()
        request_id = traceparent = b""
        reports_usage = self._reports_usage
        for name, value in scope["headers"]:
            if name not in _HEADERS:
                continue
            if name == b"traceparent":
                traceparent = value
            elif name == b"shoal-usage":
                reports_usage = value == b"true"
            elif _ID.fullmatch(value):
                request_id = value
        scope["reports_usage"] = reports_usage
        request_id = request_id or self._new_id()
        span = None
        if traceparent or tracing.may_begin(started):
            span = tracing.begin(scope["method"], traceparent.decode("latin-1"), kind="server")
        origin = Origin(
            request_id.decode(),
            "" if span is None else span.traceparent,
            reports_usage or self._charges_all,
        )
        scope["origin"] = origin
        callers.set(origin)
        status = _CLIENT_GONE

        # No coroutine of its own around the server's.
        def answer(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            return send(message)

        self._requests.in_flight += 1
        try:
            await self._app(scope, receive, answer)
        except Exception:
            if status == _CLIENT_GONE:
                status = _FAILED
            raise
        finally:
            self._requests.in_flight -= 1
            seconds = perf_counter() - started
            if not self._over:
                asyncio.get_running_loop().call_soon(self._take_in)
            self._over.append((scope, status, seconds, span))
            if seconds >= self._slow_seconds:
                _tell(self._requests.kind(scope, status), seconds, origin)

    def _take_in(self) -> None:
        """Take in the requests that are over: by now the answers have left that were ready."""
        over, self._over = self._over, []
        for scope, status, seconds, span in over:
            origin: Origin = scope["origin"]
            exemplar = None
            if span is not None:
                exemplar = Exemplar({"trace_id": origin.trace_id}, seconds, time())
                ended = scope["started"] + seconds
                _end(span, ended, self._requests.kind(scope, status), origin.request_id)
            self._requests.count(scope, status, seconds, exemplar)
            access: Access | None = scope.get("access")
            if access is not None and access.subject is not None:
                self._subjects.charge(access.subject, origin)

    def _new_id(self) -> bytes:
        if not self._ids:
            digits = token_hex(16 * _IDS).encode()
            self._ids = [digits[start : start + 32] for start in range(0, len(digits), 32)]
        return self._ids.pop()


def usage_of(origin: Origin) -> dict[str, Any]:
    """What a request has taken until now, as Qdrant tells it, with Shoal's own beside."""
    total = origin.usage()
    own = {"vectors": round(total.vectors), "cpu_seconds": total.cpu_seconds}
    return {"hardware": hardware(total), "inference": None, "shoal": own}


def hardware(usage: Usage) -> dict[str, int]:
    """``usage`` as Qdrant tells it: in bytes, and CPU time in microseconds."""
    return {
        "cpu": round(usage.cpu_seconds * 1e6),
        "payload_io_read": round(usage.payload_bytes),
        "payload_io_write": round(usage.written_payload_bytes),
        "payload_index_io_read": 0,
        "payload_index_io_write": 0,
        "vector_io_read": round(usage.vector_bytes),
        "vector_io_write": round(usage.written_vector_bytes),
    }


def _end(span: tracing.Span, at: float, kind: Kind, request_id: str) -> None:
    span.end(
        at=at,
        name=f"{kind.method} {kind.route}".rstrip(),
        # Others than the server's own failures are the client's, by OpenTelemetry's conventions.
        error=kind.code if kind.code.startswith("5") else "",
        attributes={
            "http.request.method": kind.method,
            "http.route": kind.route,
            "http.response.status_code": int(kind.code),
            "db.collection.name": kind.collection,
            "shoal.request_id": request_id,
        },
    )


def _tell(kind: Kind, seconds: float, origin: Origin) -> None:
    """Log a request that was slow. Nothing of its body or its answer is told."""
    calls = [charge for charge, _ in origin.charges()]
    slowest = sorted(calls, key=lambda charge: -charge.seconds)[:_SLOWEST_CALLS]
    logger.warning(
        "slow: %s %s took %.3f s",
        kind.method,
        kind.route,
        seconds,
        extra={
            "fields": {
                **kind._asdict(),
                "seconds": round(seconds, 6),
                "calls": [
                    {
                        "server": one.server,
                        "method": one.method,
                        "seconds": round(one.seconds, 6),
                        "stages": {name: round(s, 6) for name, s in one.cost.stages.items()},
                    }
                    for one in slowest
                ],
            }
        },
    )
