"""What the service is, and whether it is well."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from router.api import wire
from router.api.exchange import Context

QDRANT_VERSION = "1.20.0"
"""The version of Qdrant's REST API that Shoal speaks; clients compare it with their own."""

routes = APIRouter(tags=["Service"])


@routes.get("/", responses=wire.raw_answers(wire.VersionInfo), summary="Version")
async def root() -> dict[str, object]:
    """Name and version."""
    return {"title": "shoal", "version": QDRANT_VERSION, "shoal": {"version": version("shoal")}}


@routes.get("/healthz", response_class=PlainTextResponse, summary="Health")
@routes.get("/livez", response_class=PlainTextResponse, summary="Liveness")
async def alive() -> str:
    """Answers as long as the process does."""
    return "healthz check passed"


@routes.get(
    "/readyz", response_class=PlainTextResponse, responses=wire.failures(), summary="Readiness"
)
async def ready(request: Request) -> Response:
    """Answers once the catalog of collections can be read and there are shard servers."""
    context = Context.of(request)
    await context.directory.refresh()
    context.fanout.check_servers()
    return PlainTextResponse("readyz check passed")
