"""The way past FastAPI for the requests that come by the thousand a second.

On a small request FastAPI spends more time than Shoal's own code does: middleware, routing,
dependencies, validation of parameters that are hardly ever given. A request to a hot route without
parameters goes straight to its handler; any other takes FastAPI's way to the same one.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, TypeAlias

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from router.errors import on_error
from shard.errors import ShoalError

logger = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Request, str], Awaitable[Response]]
"""Answers a request for the collection of that name."""


class HotRoute(NamedTuple):
    """What a request's scope has for FastAPI's own routes, as far as it is wanted."""

    path: str


class HotPath:
    """ASGI application: ``POST /collections/{name}/{route}`` goes to ``handlers[route]``, and
    everything else to ``api``.
    """

    def __init__(self, api: FastAPI, handlers: Mapping[str, Handler]) -> None:
        self._api = api
        self._handlers = handlers
        self._routes = {route: HotRoute(f"/collections/{{name}}/{route}") for route in handlers}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or scope["query_string"]:
            await self._api(scope, receive, send)
            return
        before, _, rest = scope["path"].partition("/collections/")
        name, _, route = rest.partition("/")
        handler = self._handlers.get(route)
        if handler is None or before:
            await self._api(scope, receive, send)
            return
        scope["app"] = self._api  # There handlers find the application's state.
        scope["route"] = self._routes[route]
        scope["path_params"] = {"name": name}
        request = Request(scope, receive)
        try:
            response = await handler(request, name)
        except ClientDisconnect:
            return
        except Exception as error:
            response = await on_error(request, error)
            if not isinstance(error, ShoalError | TimeoutError):
                logger.exception("%s failed", scope["path"])
        await response(scope, receive, send)
