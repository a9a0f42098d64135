"""Bulk loads: an API of Shoal's own, beside Qdrant's."""

from __future__ import annotations

import asyncio
import time
from uuid import uuid4

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.ingest.jobs import IngestJob, check_free
from router.api import wire
from router.api.exchange import Context, answer, read_body
from router.api.jobs import add_routes
from shard.errors import InvalidInput

routes = APIRouter(prefix="/collections/{name}/ingest", tags=["Ingest"])

_start = wire.Decoder(wire.StartIngest)
_render = add_routes(
    routes,
    "ingest job",
    lambda context: context.ingests,
    wire.IngestJob,
    wire.IngestJobs,
)


@routes.post(
    "",
    openapi_extra=wire.body(_start),
    responses=wire.answers(wire.IngestJob),
    summary="Start an ingest job",
)
async def start(request: Request, name: str) -> Response:
    """Load files from object storage into the collection. Answers the job, which goes on alone."""
    context = Context.of(request)
    body = _start(await read_body(request))
    _check_source(body.source)
    context.locations.check(body.source, "source")
    collection = await context.directory.find_fresh(name)
    job = IngestJob(
        id=uuid4().hex,
        collection_id=collection.id,
        collection=collection.name,
        source=body.source,
        columns=body.columns,
        max_bad_rows=body.max_bad_rows,
        chunk_bytes=body.chunk_mb << 20,
        created=time.time(),
        again=body.again,
        within=context.locations.directories,
    )
    await asyncio.to_thread(context.ingests.add, job, lambda jobs: check_free(jobs, collection.id))
    return answer(request, _render(job))


def _check_source(source: str) -> None:
    if "://" in source and not source.startswith(("s3://", "file://")):
        raise InvalidInput(f"source {source!r:.200}: expected s3://BUCKET/PREFIX or a path")
    if not source.startswith(("s3://", "file:///", "/")):
        raise InvalidInput(f"source {source!r:.200}: expected an absolute path or s3://")
