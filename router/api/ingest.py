"""Bulk loads: an API of Shoal's own, beside Qdrant's."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.ingest.jobs import IngestJob, check_free
from cluster.jobs import State
from router.api import wire
from router.api.exchange import Context, answer, read_body
from shard.errors import InvalidInput, NotFound

routes = APIRouter(prefix="/collections/{name}/ingest", tags=["Ingest"])

_start = wire.Decoder(wire.StartIngest)
_HIDDEN = (
    "becomes",
    "creates",
    "expected_rows",
    "chunk_bytes",
    "cleaned",
    "cancel",
    "fingerprint",
    "number",
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
    collection = await context.directory.find_fresh(name)
    job = IngestJob(
        id=uuid4().hex,
        collection_id=collection.id,
        collection=name,
        source=body.source,
        columns=body.columns,
        max_bad_rows=body.max_bad_rows,
        chunk_bytes=body.chunk_mb << 20,
        created=time.time(),
        again=body.again,
    )
    await asyncio.to_thread(context.ingests.add, job, lambda jobs: check_free(jobs, collection.id))
    return answer(request, _shown(job))


@routes.get("", responses=wire.answers(wire.IngestJobs), summary="List ingest jobs")
async def list_jobs(request: Request, name: str) -> Response:
    """The collection's jobs, oldest first."""
    context = Context.of(request)
    collection = await context.directory.find_fresh(name)
    jobs = await asyncio.to_thread(context.ingests.all)
    shown = [_shown(job) for job in jobs if job.collection_id == collection.id]
    return answer(request, {"jobs": shown})


@routes.get("/{job_id}", responses=wire.answers(wire.IngestJob), summary="Ingest job")
async def get(request: Request, name: str, job_id: str) -> Response:
    """How far a job is, and what was wrong with rows of it."""
    return answer(request, _shown(await _find(Context.of(request), name, job_id)))


@routes.delete("/{job_id}", responses=wire.answers(wire.IngestJob), summary="Cancel an ingest job")
async def cancel(request: Request, name: str, job_id: str) -> Response:
    """Call a job off: the collection stays as it was. Too late once the job is committing."""
    context = Context.of(request)
    await _find(context, name, job_id)

    def change(job: IngestJob) -> IngestJob:
        if job.state.is_over or job.state is State.COMMITTING:
            raise InvalidInput(f"ingest job {job_id} is {job.state} and cannot be cancelled")
        return msgspec.structs.replace(job, cancel=True)

    return answer(request, _shown(await asyncio.to_thread(context.ingests.change, job_id, change)))


async def _find(context: Context, name: str, job_id: str) -> IngestJob:
    collection = await context.directory.find_fresh(name)
    job = await asyncio.to_thread(context.ingests.get, job_id)
    if job.collection_id != collection.id:
        raise NotFound(f"Ingest job `{job_id}` doesn't exist!")
    return job


def _check_source(source: str) -> None:
    if "://" in source and not source.startswith(("s3://", "file://")):
        raise InvalidInput(f"source {source!r:.200}: expected s3://BUCKET/PREFIX or a path")
    if not source.startswith(("s3://", "file:///", "/")):
        raise InvalidInput(f"source {source!r:.200}: expected an absolute path or s3://")


def _shown(job: IngestJob) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(job)
    shown["collection"] = job.becomes or job.collection
    for field in _HIDDEN:
        del shown[field]
    return shown
