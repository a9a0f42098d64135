"""The way past FastAPI for the requests that come by the thousand a second.

FastAPI spends more time on a query than Shoal's own code and the way to the shards: routing,
dependencies, validation of parameters that are hardly ever given. A request to a hot route without
parameters goes straight to its handler; any other takes FastAPI's way to the same one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from router.errors import on_error
from shard.errors import ShoalError

Handler: TypeAlias = Callable[[Request, str], Awaitable[Response]]
"""Answers a request for the collection of that name."""


class HotPath:
    """ASGI middleware: ``POST /collections/{name}/{route}`` goes to ``handlers[route]``."""

    def __init__(self, app: ASGIApp, handlers: Mapping[str, Handler]) -> None:
        self.app = app
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            await self.app(scope, receive, send)
            return
        before, _, rest = scope["path"].partition("/collections/")
        name, _, route = rest.partition("/")
        handler = self._handlers.get(route)
        if handler is None or before:
            await self.app(scope, receive, send)
            return
        # The handlers find the application, and its context, in the scope.
        request = Request(scope, receive)
        try:
            response = await handler(request, name)
        except (ShoalError, TimeoutError) as error:
            response = await on_error(request, error)
        except ClientDisconnect:
            return
        await response(scope, receive, send)
