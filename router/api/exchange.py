"""One HTTP exchange: the context that handlers work in, reading a body, writing an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from time import perf_counter
from typing import Annotated, Any, Literal

import orjson
from fastapi import Depends, Path, Query
from starlette.requests import Request
from starlette.responses import Response

from cluster.export.jobs import ExportJob
from cluster.ingest.jobs import IngestJob
from cluster.jobs import Jobs
from cluster.snapshots import Snapshots
from router.api.wire import NAME_SCHEMA
from router.directory import Directory
from router.errors import TooLarge
from router.fanout import Fanout
from router.metrics import RouterMetrics
from router.observing import usage_of
from router.security.access import FULL, Access, Level
from router.security.locations import Locations


@dataclass(frozen=True, kw_only=True)
class Context:
    """What every handler works with."""

    directory: Directory
    fanout: Fanout
    metrics: RouterMetrics
    ingests: Jobs[IngestJob]
    exports: Jobs[ExportJob]
    snapshots: Snapshots
    default_shards: int
    max_body_bytes: int
    timeout: float
    """Seconds given to a request that names no timeout of its own."""
    locations: Locations
    access: Access = FULL
    """What the request may do."""

    @staticmethod
    def of(request: Request) -> Context:
        context: Context = request.app.state.context
        access: Access = request.scope.get("access", FULL)
        return context if access.level is Level.MANAGE else replace(context, access=access)


NewName = Annotated[str, Path(json_schema_extra=NAME_SCHEMA)]
"""Of a collection that the request may make; `router.api.collections.check_name` checks it."""
Timeout = Annotated[
    int | None,
    Query(ge=1, le=86_400, description="Seconds to wait for the answer, in place of the default."),
]


@dataclass(frozen=True)
class WriteOptions:
    """What every request that changes points may say beside its body."""

    wait: bool
    timeout: int | None


def _write_options(
    wait: Annotated[
        bool,
        Query(
            description="Answer once the points can be searched, and not as soon as they are "
            "durable."
        ),
    ] = False,
    ordering: Annotated[
        Literal["weak", "medium", "strong"],
        Query(description="Every shard has a single writer: each value is as good as `strong`."),
    ] = "weak",
    timeout: Timeout = None,
) -> WriteOptions:
    return WriteOptions(wait, timeout)


Writing = Annotated[WriteOptions, Depends(_write_options)]


async def read_body(request: Request) -> bytes:
    """The request's whole body. Raises TooLarge, before more than the limit is held."""
    limit = Context.of(request).max_body_bytes
    too_large = TooLarge(f"JSON body is larger than allowed (limit: {limit} bytes)")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        chunks.append(chunk)
    return b"".join(chunks)


def answer(request: Request, result: Any) -> Response:
    """200 with ``result``, which may hold NumPy arrays, UUIDs and `orjson.Fragment`."""
    body = {
        "result": result,
        "status": "ok",
        "time": perf_counter() - request.scope["started"],
    }
    if request.scope["reports_usage"]:
        body["usage"] = usage_of(request.scope["origin"])
    return Response(
        orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json"
    )
