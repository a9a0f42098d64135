"""Log lines, as text or as JSON objects, that name the requests they are about.

A record's attribute ``fields``, given by ``extra``, has what is to be told besides the message.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

import orjson

from shard.rpc.origin import callers, served

LogFormat: TypeAlias = Literal["text", "json"]


class TextFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        line = super().formatMessage(record)
        fields = _fields(record)
        return f"{line} {_dump(fields)}" if fields else line


class JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _dump(line)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What is told besides the message: the requests, if there are any, and the record's own."""
    origins = callers.get().origins
    ids = list(dict.fromkeys([*served.get(), *(one.request_id for one in origins)]))
    about: dict[str, Any] = {}
    if len(ids) == 1:
        about["request_id"] = ids[0]
        if origins and origins[0].trace_id:
            about["trace_id"] = origins[0].trace_id
    elif ids:
        about["request_ids"] = ids
    return about | getattr(record, "fields", {})


def _dump(given: dict[str, Any]) -> str:
    return orjson.dumps(given, default=str).decode()
