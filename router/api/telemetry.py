"""What the service tells of its work: metrics for Prometheus, telemetry as Qdrant has it, and a
profile of one of its processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Query
from prometheus_client.samples import Sample
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from router.api import wire
from router.api.collections import config_of
from router.api.exchange import Context, answer
from router.api.service import QDRANT_VERSION
from router.observing import hardware
from shard.profiling import MAX_HERTZ, MAX_SECONDS, Profiler
from shard.usage import Usage

routes = APIRouter(tags=["Service"])

_ID = str(uuid4())
_STARTED = datetime.now(UTC)
_profiler = Profiler()
_PROFILE_GRACE_SECONDS = 10
"""For a shard server that is busy to answer."""
_USAGE = {
    "shoal_usage_vector_read_bytes_total": "vector_bytes",
    "shoal_usage_payload_read_bytes_total": "payload_bytes",
    "shoal_usage_vector_written_bytes_total": "written_vector_bytes",
    "shoal_usage_payload_written_bytes_total": "written_payload_bytes",
    "shoal_usage_cpu_seconds_total": "cpu_seconds",
}


@routes.get("/metrics", response_class=PlainTextResponse, summary="Metrics")
async def metrics(request: Request) -> Response:
    """What routers and shard servers have done, and what they hold, for Prometheus."""
    accept = request.headers.get("accept", "")
    text, content_type = await Context.of(request).metrics.exposition(accept)
    return Response(text, headers={"content-type": content_type})


@routes.get("/telemetry", responses=wire.answers(wire.Telemetry), summary="Telemetry")
async def telemetry(
    request: Request,
    anonymize: Annotated[bool, Query(description="Leave out what names collections.")] = False,
    details_level: Annotated[int, Query(ge=0, description="From 1 on: list collections.")] = 0,
    per_collection: Annotated[bool, Query(description="Requests of each collection too.")] = False,
    timeout: Annotated[int | None, Query(ge=1, description="Taken, and not needed.")] = None,
) -> Response:
    """How many requests there were since the processes of the service started, what they took, and
    how long they lasted."""
    context = Context.of(request)
    together = await context.metrics.together()
    samples = [sample for metric in together.collect() for sample in metric.samples]
    known = context.directory.names.collections
    collections = {name: one for name, one in known.items() if not one.hidden}
    told: dict[str, Any] = {"number_of_collections": len(collections)}
    rest: dict[str, Any] = {"responses": _responses(samples)}
    found: dict[str, Any] = {
        "id": _ID,
        "app": {"name": "shoal", "version": QDRANT_VERSION, "startup": _STARTED.isoformat()},
        "collections": told,
        "requests": {"rest": rest, "grpc": {"responses": {}}},
    }
    if not anonymize:
        found["hardware"] = {"collection_data": _hardware(samples)}
        if details_level:
            told["collections"] = [
                {"id": name, "config": config_of(one)} for name, one in collections.items()
            ]
        if per_collection:
            of_each: dict[str, list[Sample]] = {name: [] for name in collections}
            for sample in samples:
                if (name := sample.labels.get("collection")) in of_each:
                    of_each[name].append(sample)
            rest["per_collection_responses"] = {
                name: _responses(own) for name, own in of_each.items()
            }
    return answer(request, found)


@routes.get(
    "/profile", response_class=PlainTextResponse, responses=wire.failures(), summary="Profile"
)
async def profile(
    request: Request,
    server: Annotated[
        str | None, Query(description="Name of a shard server; else it is of this router.")
    ] = None,
    seconds: Annotated[float, Query(gt=0, le=MAX_SECONDS, description="How long.")] = 10,
    hertz: Annotated[int, Query(ge=1, le=MAX_HERTZ, description="Looks a second.")] = 100,
) -> Response:
    """What the threads of one process do, as folded stacks. One profile of it at a time."""
    if server is None:
        return PlainTextResponse(await _profiler.take(seconds, hertz))
    fanout = Context.of(request).fanout
    timeout = seconds + _PROFILE_GRACE_SECONDS
    return PlainTextResponse(await fanout.profile(server, seconds, hertz, timeout=timeout))


def _responses(samples: Iterable[Sample]) -> dict[str, dict[str, Any]]:
    """Of each operation and status: how many requests, and how long they took."""
    counts: dict[tuple[str, str], float] = defaultdict(float)
    seconds: dict[tuple[str, str], float] = defaultdict(float)
    totals = {"shoal_request_seconds_count": counts, "shoal_request_seconds_sum": seconds}
    for name, labels, value, *_ in samples:
        if name in totals and labels["route"]:
            totals[name][f"{labels['method']} {labels['route']}", labels["code"]] += value
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for (operation, code), count in counts.items():
        micros = seconds[operation, code] * 1e6
        found[operation][code] = {
            "count": int(count),
            "avg_duration_micros": micros / count,
            "total_duration_micros": int(micros),
        }
    return found


def _hardware(samples: Iterable[Sample]) -> dict[str, dict[str, int]]:
    """What each collection's requests have taken."""
    usage: dict[str, Usage] = defaultdict(Usage)
    for name, labels, value, *_ in samples:
        if name in _USAGE:
            of = usage[labels["collection"]]
            setattr(of, _USAGE[name], getattr(of, _USAGE[name]) + value)
    return {name: hardware(of) for name, of in usage.items()}
