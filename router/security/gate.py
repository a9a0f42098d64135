"""The way into the application: nothing passes it that is not allowed.

It stands before the hot path and FastAPI alike, and before a body is read. What a body says of
other collections is checked where it is understood, by the `Access` that goes along.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from router.errors import NO_OPERATION, Forbidden, error_response, on_error
from router.security import policy
from router.security.access import FULL, Access, Level
from router.security.audit import AuditLog
from router.security.authentication import Authenticator, Headers
from router.security.policy import Route
from router.security.settings import Security
from shard.errors import ShoalError


class Gate:
    """ASGI middleware: lets requests through to ``app`` with ``access`` in their scope."""

    def __init__(self, app: ASGIApp, security: Security, authenticator: Authenticator) -> None:
        self._app = app
        self._local = security.local
        self._authenticator = authenticator if security.has_keys else None
        self._audit = None if security.audit_log is None else AuditLog(security.audit_log)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = policy.find(scope["method"], scope["path"])
        access: Access | None = None
        try:
            access = await self._access(scope, route)
            if self._audit is not None:
                send = self._audit.noting(scope, send, access, route)
            if route is not None:
                route.check(access)
        except (ShoalError, TimeoutError) as error:
            if self._audit is not None and access is None:
                send = self._audit.noting(scope, send, None, route)
            await (await on_error(Request(scope), error))(scope, receive, send)
            return
        if route is None and access.level is not Level.MANAGE:
            # What is not in the policy is not there, for those who may not do everything.
            message = f"{NO_OPERATION} {scope['method']} {scope['path']}"
            response = error_response(Request(scope), HTTPStatus.NOT_FOUND, message)
            await response(scope, receive, send)
            return
        scope["access"] = access
        await self._app(scope, receive, send)

    async def _access(self, scope: Scope, route: Route | None) -> Access:
        """Whose the request is. Raises Unauthorized, Forbidden, and others."""
        if self._authenticator is None:
            if self._local:
                _refuse_web_pages(scope["headers"])
            return FULL
        if route is not None and route.need.scope is policy.Scope.OPEN:
            return FULL
        return await self._authenticator.access(scope["headers"])


def _refuse_web_pages(headers: Headers) -> None:
    """Raises Forbidden for what a browser on this machine asks on behalf of a page from elsewhere.

    Such a page may send requests to any address, or have a name of its own resolve to this one.
    """
    host = origin = ""
    for name, value in headers:
        if name == b"host":
            host = value.decode("latin-1")
        elif name == b"origin":
            origin = value.decode("latin-1")
    if origin and origin.partition("://")[2] != host:
        raise Forbidden(f"Origin {origin:.200}: web pages of others may not use this service")
    if host and not _is_address(host):
        raise Forbidden(
            f"Host {host:.200}: without an API key this service answers by the name `localhost` "
            "or an address only"
        )


@lru_cache(maxsize=64)
def _is_address(host: str) -> bool:
    """Whether no DNS server has told where the host is."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name.lower() == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
