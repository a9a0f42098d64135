"""What can be asked of the background jobs of a collection, of any sort."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.jobs import Job, Jobs, State
from router.api import wire
from router.api.exchange import Context, answer
from shard.errors import InvalidInput, NotFound

J = TypeVar("J", bound=Job)


def add_routes(
    routes: APIRouter,
    what: str,
    jobs_of: Callable[[Context], Jobs[J]],
    shape: type[msgspec.Struct],
    listing: type[msgspec.Struct],
    shown: Callable[[J], bool] = lambda job: True,
) -> Callable[[J], dict[str, Any]]:
    """Add to ``routes`` a list of jobs, one, and its cancelling; answers what renders a job.

    ``what`` a job is called; ``shape`` has the fields that are answered of one; ``shown`` says
    which of them there are for users.
    """

    def render(job: J) -> dict[str, Any]:
        fields = msgspec.to_builtins(job)
        return {name: fields[name] for name in shape.__struct_fields__} | {"collection": job.named}

    async def find(context: Context, name: str, job_id: str) -> J:
        collection = await context.directory.find_fresh(name)
        job = await asyncio.to_thread(jobs_of(context).get, job_id)
        if job.collection_id != collection.id or not shown(job):
            raise NotFound(f"Job `{job_id}` doesn't exist!")
        return job

    @routes.get("", responses=wire.answers(listing), summary=f"List {what}s")
    async def list_jobs(request: Request, name: str) -> Response:
        """Those of the collection, oldest first."""
        context = Context.of(request)
        collection = await context.directory.find_fresh(name)
        jobs = await asyncio.to_thread(jobs_of(context).all)
        own = [job for job in jobs if job.collection_id == collection.id and shown(job)]
        return answer(request, {"jobs": [render(job) for job in own]})

    @routes.get("/{job_id}", responses=wire.answers(shape), summary=f"One {what}")
    async def get(request: Request, name: str, job_id: str) -> Response:
        """How far it is."""
        return answer(request, render(await find(Context.of(request), name, job_id)))

    @routes.delete("/{job_id}", responses=wire.answers(shape), summary=f"Cancel an {what}")
    async def cancel(request: Request, name: str, job_id: str) -> Response:
        """Call it off: what it has made is deleted, and the collection stays as it was.

        Too late once it is committing.
        """
        context = Context.of(request)
        await find(context, name, job_id)

        def change(job: J) -> J:
            if job.state.is_over or job.state is State.COMMITTING:
                raise InvalidInput(f"{what} {job_id} is {job.state} and cannot be cancelled")
            return msgspec.structs.replace(job, cancel=True)

        return answer(
            request, render(await asyncio.to_thread(jobs_of(context).change, job_id, change))
        )

    return render
