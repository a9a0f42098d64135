"""Snapshots of a collection, as Qdrant's clients make, fetch and recover them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import msgspec
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from cluster.catalog import HIDDEN, Collection
from cluster.export.jobs import ExportJob, Summary
from cluster.ingest.jobs import IngestJob, Recovery
from cluster.jobs import Job, Jobs, State
from cluster.snapshots import archive_bytes, new_name
from router.api import wire
from router.api.collections import (
    CREATE_SECONDS,
    check_name,
    describe,
    wait_until_answering,
)
from router.api.exchange import Context, NewName, answer, read_body
from shard.errors import InvalidInput, NotFound

routes = APIRouter(prefix="/collections/{name}/snapshots", tags=["Snapshots"])

_recover = wire.Decoder(wire.RecoverSnapshot)
_LOOK_SECONDS = 0.25
_WAIT_SECONDS = 3_600.0
"""How long a request waits for a job; the job goes on."""
_CHUNK_BYTES = 256 << 20

J = TypeVar("J", bound=Job)


@routes.post(
    "",
    responses=wire.answers(wire.SnapshotDescription) | wire.ACCEPTED,
    summary="Create a snapshot",
)
async def create(request: Request, name: str, wait: bool = True) -> Response:
    """Copy every point into the object store, apart from the collection and what becomes of it."""
    context = Context.of(request)
    collection = await context.directory.find_fresh(name)
    snapshot = new_name()
    job = ExportJob(
        id=uuid4().hex,
        collection_id=collection.id,
        collection=collection.name,
        created=time.time(),
        destination=context.snapshots.url,
        prefix=context.snapshots.prefix(collection.name, snapshot),
    )
    await asyncio.to_thread(context.exports.add, job)
    if not wait:
        return _accepted(request)
    job = await _end_of(context.exports, job)
    summary = await asyncio.to_thread(context.snapshots.get, collection.name, snapshot)
    return answer(request, _described(summary))


@routes.get("", responses=wire.answers(list[wire.SnapshotDescription]), summary="List snapshots")
async def list_snapshots(request: Request, name: str) -> Response:
    """The collection's snapshots, oldest first. They stay when the collection is deleted."""
    context = Context.of(request)
    name = await context.directory.own_name(name)
    summaries = await asyncio.to_thread(context.snapshots.all, name)
    if not summaries:
        await context.directory.find_fresh(name)
    return answer(request, [_described(summary) for summary in summaries])


_FILE: dict[int | str, dict[str, Any]] = {
    200: {
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    }
}


@routes.get(
    "/{snapshot}",
    responses=wire.answers(bool) | _FILE,
    response_class=StreamingResponse,
    summary="Download a snapshot",
)
async def download(request: Request, name: str, snapshot: str) -> Response:
    """A tar file of Parquet files and of ``export.json``, which tells what they are."""
    context = Context.of(request)
    name = await context.directory.own_name(name)
    size, content = await asyncio.to_thread(context.snapshots.archive, name, snapshot)
    headers = {
        "Content-Length": str(size),
        "Content-Disposition": f'attachment; filename="{snapshot}"',
    }
    return StreamingResponse(content, headers=headers, media_type="application/octet-stream")


@routes.delete("/{snapshot}", responses=wire.answers(bool), summary="Delete a snapshot")
async def delete(request: Request, name: str, snapshot: str) -> Response:
    """Delete a snapshot with all its files."""
    context = Context.of(request)
    name = await context.directory.own_name(name)
    await asyncio.to_thread(context.snapshots.delete, name, snapshot)
    return answer(request, True)


@routes.put(
    "/recover",
    openapi_extra=wire.body(_recover),
    responses=wire.answers(bool) | wire.ACCEPTED,
    summary="Recover from a snapshot",
)
async def recover(request: Request, name: NewName, wait: bool = True) -> Response:
    """Put what is in a snapshot in the place of the collection, which is made if need be.

    Until it is all there the collection stays as it was. One that exists keeps its number of
    shards. The snapshot is one of this service's, by its URL, or a file that this router sees.
    """
    context = Context.of(request)
    check_name(name)
    name = await context.directory.own_name(name)
    body = _recover(await read_body(request))
    owner, snapshot, stored = await _locate(request, name, body)
    try:
        job = await _start(context, name, owner, snapshot)
        if not wait:
            return _accepted(request)
        await _end_of(context.ingests, job)
    except InvalidInput:
        if stored:
            await asyncio.to_thread(context.snapshots.delete, owner, snapshot)
        raise
    renamed = await context.directory.find_fresh(name)
    await wait_until_answering(context, renamed, CREATE_SECONDS)
    return answer(request, True)


async def _start(context: Context, name: str, owner: str, snapshot: str) -> IngestJob:
    summary = await asyncio.to_thread(context.snapshots.get, owner, snapshot)
    try:
        describe(summary.collection, [])  # Its settings are as they came.
    except Exception as error:
        raise InvalidInput(f"location: settings of the collection: {error!r}") from error
    try:
        shard_count = (await context.directory.find_fresh(name)).shard_count
    except NotFound:
        shard_count = summary.collection.shard_count
    collection_id = uuid4().hex
    # Unseen until it is whole, and then under the name.
    collection = Collection(
        id=collection_id,
        name=f"{HIDDEN}{collection_id}",
        shard_count=shard_count,
        config=msgspec.structs.replace(
            summary.collection.config, share=1 / shard_count, imports=(), imports_known=0
        ),
        settings=summary.collection.settings,
    )
    job = IngestJob(
        id=uuid4().hex,
        collection_id=collection_id,
        collection=collection.name,
        created=time.time(),
        source=context.snapshots.source(owner, snapshot),
        chunk_bytes=_CHUNK_BYTES,
        recovery=Recovery(collection, name, summary.rows),
    )
    return await asyncio.to_thread(context.ingests.add, job)


async def _locate(request: Request, name: str, body: wire.RecoverSnapshot) -> tuple[str, str, bool]:
    """The collection that a snapshot is of, its name, and whether it has been stored for this."""
    context = Context.of(request)
    host = request.headers.get("host")
    try:
        parts = urlsplit(body.location)
    except ValueError as error:
        raise InvalidInput(f"location {body.location!r:.200}: {error}") from error
    match parts.scheme:
        case "file":
            snapshot = await asyncio.to_thread(_add, context, name, unquote(parts.path), body)
            return name, snapshot, True
        case "http" | "https" if parts.netloc == host:
            match [unquote(part) for part in parts.path.split("/")]:
                case ["", "collections", named, "snapshots", snapshot]:
                    owner = await context.directory.own_name(named)
                    await asyncio.to_thread(_check_stored, context, owner, snapshot, body)
                    return owner, snapshot, False
    raise InvalidInput(
        f"location {body.location!r:.200}: expected file:///PATH or "
        f"http://{host}/collections/COLLECTION/snapshots/SNAPSHOT"
    )


def _add(context: Context, name: str, path: str, body: wire.RecoverSnapshot) -> str:
    try:
        with context.locations.open(path, "location") as file:
            if body.checksum:
                _check_sum(body.checksum, hashlib.file_digest(file, "sha256").hexdigest())
                file.seek(0)
            return context.snapshots.add(name, file)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"location: {error}") from error


def _check_stored(context: Context, owner: str, snapshot: str, body: wire.RecoverSnapshot) -> None:
    if body.checksum:
        digest = hashlib.sha256()
        for piece in context.snapshots.archive(owner, snapshot)[1]:
            digest.update(piece)
        _check_sum(body.checksum, digest.hexdigest())


def _check_sum(expected: str, found: str) -> None:
    if found != expected.lower():
        raise InvalidInput(f"checksum: expected {expected:.80}, the snapshot has {found}")


async def _end_of(jobs: Jobs[J], job: J) -> J:
    deadline = time.monotonic() + _WAIT_SECONDS
    while not job.state.is_over:
        if time.monotonic() > deadline:
            raise TimeoutError(f"job {job.id} goes on")
        await asyncio.sleep(_LOOK_SECONDS)
        job = await asyncio.to_thread(jobs.get, job.id)
    if job.state is not State.DONE:
        raise InvalidInput(f"job {job.id} {job.state}: {job.error}")
    return job


def _described(summary: Summary) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(summary.created))
    return {
        "name": summary.name,
        "creation_time": created,
        "size": archive_bytes(summary),
        "checksum": None,
    }


def _accepted(request: Request) -> Response:
    body = {"status": "accepted", "time": time.perf_counter() - request.scope["started"]}
    return Response(orjson.dumps(body), HTTPStatus.ACCEPTED, media_type="application/json")
