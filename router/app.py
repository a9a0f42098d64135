"""The router's HTTP application: Qdrant's REST dialect over a catalog and a fan-out to shards."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI
from starlette.types import ASGIApp

from cluster.catalog import Catalog, Collection
from cluster.export.jobs import export_jobs
from cluster.ingest.jobs import ingest_jobs
from cluster.snapshots import Snapshots
from router import errors
from router.api import (
    aliases,
    analysis,
    collections,
    export,
    groups,
    indexes,
    ingest,
    openapi,
    points,
    search,
    service,
    snapshots,
    telemetry,
    updates,
)
from router.api.exchange import Context
from router.directory import Directory
from router.fanout import Fanout
from router.hot_path import HotPath
from router.metrics import RouterMetrics
from router.observing import Observation, Observer
from router.security.authentication import Authenticator, ValueExists
from router.security.gate import Gate
from router.security.locations import Locations
from router.security.settings import OPEN, Security
from shard.objects import ObjectStore

MAX_BODY_BYTES = 32 * 1024 * 1024
REQUEST_SECONDS = 60.0


def create_app(
    store: ObjectStore,
    data: str,
    fanout: Fanout,
    *,
    default_shards: int,
    max_body_bytes: int = MAX_BODY_BYTES,
    timeout: float = REQUEST_SECONDS,
    security: Security = OPEN,
    observation: Observation | None = None,
) -> ASGIApp:
    """The application that answers Qdrant's clients.

    ``data`` is the URL of ``store``, ``default_shards`` the shard number of a collection that names
    none, ``timeout`` the seconds given to a request that names none, ``security`` who may ask what.
    ``fanout`` is closed when the application shuts down.
    """

    observation = observation or Observation()
    directory = Directory(Catalog(store))
    shared = None if observation.shared is None else Path(observation.shared)
    metrics = RouterMetrics(directory, fanout, observation.router, shared)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with metrics.published():
                yield
        finally:
            await fanout.close()

    app = FastAPI(
        title="Shoal",
        version=version("shoal"),
        summary="A distributed vector search service that speaks Qdrant's REST dialect.",
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url="/docs",
        redoc_url=None,
    )
    app.state.context = context = Context(
        directory=directory,
        fanout=fanout,
        metrics=metrics,
        ingests=ingest_jobs(store),
        exports=export_jobs(store),
        snapshots=Snapshots(store, data),
        default_shards=default_shards,
        max_body_bytes=max_body_bytes,
        timeout=timeout,
        locations=Locations(security.locations),
    )
    for resource in (
        service,
        telemetry,
        aliases,
        collections,
        indexes,
        search,
        groups,
        analysis,
        updates,
        points,
        ingest,
        export,
        snapshots,
    ):
        app.include_router(resource.routes)
    errors.install(app)
    openapi.install(app)

    async def holds(claim: ValueExists) -> bool:
        encoded = claim.filter().check("value_exists")

        async def count(collection: Collection) -> int:
            return await context.fanout.count(collection, filter=encoded, timeout=timeout)

        return await context.directory.act(claim.collection, count) > 0

    gate = Gate(HotPath(app, search.HOT), security, Authenticator(security, holds))
    return Observer(gate, metrics, observation, has_subjects=security.jwt_rbac)
