"""Exports: an API of Shoal's own, beside Qdrant's."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.export.jobs import ExportJob
from router.api import wire
from router.api.exchange import Context, answer, read_body
from shard.errors import InvalidInput, NotFound

routes = APIRouter(prefix="/collections/{name}/export", tags=["Export"])

_start = wire.Decoder(wire.StartExport)
_HIDDEN = ("cancel", "cleaned", "prefix", "number")


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
    collection = await context.directory.find_fresh(name)
    job = ExportJob(
        id=uuid4().hex,
        collection_id=collection.id,
        collection=name,
        created=time.time(),
        destination=destination,
    )
    await asyncio.to_thread(context.exports.add, job)
    return answer(request, _shown(job))


@routes.get("", responses=wire.answers(wire.ExportJobs), summary="List exports")
async def list_jobs(request: Request, name: str) -> Response:
    """The collection's exports, oldest first."""
    context = Context.of(request)
    collection = await context.directory.find_fresh(name)
    jobs = await asyncio.to_thread(context.exports.all)
    shown = [_shown(job) for job in jobs if job.collection_id == collection.id and not job.prefix]
    return answer(request, {"jobs": shown})


@routes.get("/{job_id}", responses=wire.answers(wire.ExportJob), summary="Export")
async def get(request: Request, name: str, job_id: str) -> Response:
    """How far an export is."""
    return answer(request, _shown(await _find(Context.of(request), name, job_id)))


@routes.delete("/{job_id}", responses=wire.answers(wire.ExportJob), summary="Cancel an export")
async def cancel(request: Request, name: str, job_id: str) -> Response:
    """Call an export off; what it has written is deleted."""
    context = Context.of(request)
    await _find(context, name, job_id)

    def change(job: ExportJob) -> ExportJob:
        if job.state.is_over:
            raise InvalidInput(f"export {job_id} is {job.state} and cannot be cancelled")
        return msgspec.structs.replace(job, cancel=True)

    return answer(request, _shown(await asyncio.to_thread(context.exports.change, job_id, change)))


async def _find(context: Context, name: str, job_id: str) -> ExportJob:
    collection = await context.directory.find_fresh(name)
    job = await asyncio.to_thread(context.exports.get, job_id)
    if job.collection_id != collection.id or job.prefix:
        raise NotFound(f"Job `{job_id}` doesn't exist!")
    return job


def _shown(job: ExportJob) -> dict[str, Any]:
    shown: dict[str, Any] = msgspec.to_builtins(job)
    for field in _HIDDEN:
        del shown[field]
    return shown
