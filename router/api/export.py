"""Exports: an API of Shoal's own, beside Qdrant's."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.export.jobs import ExportJob
from router.api import wire
from router.api.exchange import Context, answer, read_body
from router.api.jobs import add_routes
from shard.errors import InvalidInput

routes = APIRouter(prefix="/collections/{name}/export", tags=["Export"])

_start = wire.Decoder(wire.StartExport)
_render = add_routes(
    routes,
    "export",
    lambda context: context.exports,
    wire.ExportJob,
    wire.ExportJobs,
    shown=lambda job: not job.prefix,
)


@routes.post(
    "",
    openapi_extra=wire.body(_start),
    responses=wire.answers(wire.ExportJob),
    summary="Start an export",
)
async def start(request: Request, name: str) -> Response:
    """Write the collection's points into Parquet files. Answers the job, which goes on alone."""
    context = Context.of(request)
    destination = _start(await read_body(request)).destination
    if not destination.startswith(("s3://", "file:///", "/")):
        raise InvalidInput(f"destination {destination!r:.200}: expected s3:// or an absolute path")
    context.locations.check(destination, "destination")
    collection = await context.directory.find_fresh(name)
    job = ExportJob(
        id=uuid4().hex,
        collection_id=collection.id,
        collection=collection.name,
        created=time.time(),
        destination=destination,
    )
    await asyncio.to_thread(context.exports.add, job)
    return answer(request, _render(job))
