"""Requests to an ASGI application in this process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Response:
    """An application's answer."""

    status: int
    headers: dict[str, str]
    body: bytes


async def ask(
    app: ASGIApp,
    method: str,
    path: str,
    query_string: bytes,
    headers: Iterable[tuple[str, str]],
    body: bytes,
) -> Response:
    """What ``app`` answers to a request, with ``path`` decoded. Cancelled, the request is too."""
    incoming: list[Message] = [{"type": "http.request", "body": body}]
    start: Message = {}
    chunks: list[bytes] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop()
        # Who asks stays until there is an answer.
        leaving: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        return await leaving

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            start.update(message)
        else:
            chunks.append(message.get("body", b""))

    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "2",
        "method": method,
        "scheme": "http",
        "path": path,
        "query_string": query_string,
        "root_path": "",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode()) for name, value in headers),
        ],
        "client": None,
        "server": None,
    }
    try:
        await app(scope, receive, send)
    except Exception:
        if not start:
            raise
        # Starlette raises what it has answered, for the server to log.
        logger.exception("%s %s failed", method, path)
    return Response(
        start["status"],
        {name.decode(): value.decode() for name, value in start.get("headers", ())},
        b"".join(chunks),
    )
