"""The audit log: who has changed what, and who was refused, one line of JSON each."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from http import HTTPStatus
from logging.handlers import WatchedFileHandler

import orjson
from starlette.types import Message, Scope, Send

from router.security.access import Access
from router.security.policy import Route
from shard.errors import InvalidInput

_REFUSED = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)


class AuditLog:
    """Lines at the end of a file, which several processes may share and logrotate may move away.

    Raises InvalidInput where it cannot be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = WatchedFileHandler(path)
        except OSError as error:
            raise InvalidInput(f"--audit-log {path}: {error.strerror}") from None

    def noting(self, scope: Scope, send: Send, access: Access | None, route: Route | None) -> Send:
        """``send`` for the answer to a request, which notes how it ended. ``access`` is whose the
        request is; None: nobody's that is known."""
        began = time.time()

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                status = message["status"]
                if status in _REFUSED or (route is not None and route.writes):
                    self._write(began, scope, access, route, status)
            await send(message)

        return note

    def _write(
        self, began: float, scope: Scope, access: Access | None, route: Route | None, status: int
    ) -> None:
        client = scope.get("client")
        line = {
            "time": datetime.fromtimestamp(began, UTC).isoformat(),
            "holder": "unknown" if access is None else access.holder,
            "subject": None if access is None else access.subject,
            "remote": None if client is None else client[0],
            "operation": f"{scope['method']} ?" if route is None else route.name,
            "collection": None if route is None else route.collection,
            "path": scope["path"],
            "status": status,
            "outcome": "refused" if status in _REFUSED else "done" if status < 400 else "failed",
        }
        text = orjson.dumps(line).decode()
        self._file.handle(logging.makeLogRecord({"msg": "%s", "args": (text,)}))
