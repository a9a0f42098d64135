"""What a router has done, with what all processes tell of themselves: Prometheus metrics.

Where several router processes share a port, whichever is asked answers for all: each
keeps a file of its own metrics, at most `PUBLISH_SECONDS` old, in a directory that they share.
(`prometheus_client` has files for that too, but takes longer to count, and never forgets the series
of collections that are gone.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Gauge,
    Metric,
    ProcessCollector,
)
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar
from starlette.types import Scope

from cluster.catalog import Names
from router.directory import Directory
from router.fanout import Fanout
from router.subjects import Subjects
from shard.errors import Unavailable
from shard.metrics import Timing, Timings, Together, pack, unpack

logger = logging.getLogger(__name__)

PUBLISH_SECONDS = 1.0
SCRAPE_SECONDS = 2.0
"""How long shard servers and the catalog may take to answer."""
_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_NO_NAMES = Names({}, {})
"""Never those of a directory."""


class Kind(NamedTuple):
    """What requests are counted by."""

    method: str
    """Empty for what is none: nobody can make up kinds without end."""
    route: str
    """As ``/collections/{name}/points``; empty where there is none."""
    code: str
    collection: str
    """Empty for what is about none that exists."""


_Request: TypeAlias = tuple[str, str, str, int]
"""One that is over: method as it was given, route, the name in it, status; empty: there is none."""


def _request(scope: Scope, status: int) -> _Request:
    route, params = scope.get("route"), scope.get("path_params")
    name = params.get("name", "") if params else ""
    return scope["method"], "" if route is None else route.path, name, status


class Requests(Collector):
    """Counts requests to one router. Use from one event loop."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._seconds = Timings(
            "shoal_request_seconds",
            "From when a request comes to a router until it is answered.",
            Kind._fields,
            _SECONDS,
        )
        self._names = directory.names
        """Those that `_of` is about."""
        self._of: dict[_Request, Timing] = {}
        self.in_flight = 0

    def count(self, scope: Scope, status: int, seconds: float, exemplar: Exemplar | None) -> None:
        """Take in a request that is over."""
        if self._names is not self._directory.names:
            self._names = self._directory.names
            self._of.clear()
        request = _request(scope, status)
        timing = self._of.get(request)
        if timing is None:
            _, _, name, _ = request
            kind = self._kind(*request)
            timing = self._seconds.of(kind)
            # What is made up would be endless.
            if kind.method and (kind.collection or not name):
                self._of[request] = timing
        timing.count(seconds, exemplar)

    def kind(self, scope: Scope, status: int) -> Kind:
        """What a request is counted by that is over."""
        return self._kind(*_request(scope, status))

    def _kind(self, method: str, route: str, name: str, status: int) -> Kind:
        collection = self._directory.names.get(name)
        return Kind(
            method if method in _METHODS else "",
            route,
            str(status),
            "" if collection is None else collection.name,
        )

    def collect(self) -> Iterable[Metric]:
        requests = CounterMetricFamily("shoal_requests", "Requests answered.", labels=Kind._fields)
        for kind, total in self._seconds.totals().items():
            collection = Kind(*kind).collection
            if collection and collection not in self._directory.names.collections:
                self._seconds.forget(kind)
                self._names = _NO_NAMES  # What was forgotten must not be counted on.
            else:
                requests.add_metric(kind, total)
        yield requests
        yield self._seconds.collect()


class RouterMetrics:
    """The metrics of one router process, and on its behalf those of all others."""

    def __init__(
        self, directory: Directory, fanout: Fanout, router: int = 0, shared: Path | None = None
    ) -> None:
        """``router`` is the number of this process, ``shared`` the directory of all of them, if
        there are several."""
        self.requests = Requests(directory)
        self.subjects = Subjects()
        self._directory = directory
        self._fanout = fanout
        self._router = router
        self._shared = shared
        self._registry = CollectorRegistry()
        for collector in (self.requests, self.subjects, *fanout.metrics, GC_COLLECTOR):
            self._registry.register(collector)
        ProcessCollector("shoal", registry=self._registry)
        Gauge(
            "shoal_requests_in_flight", "Requests under way.", registry=self._registry
        ).set_function(lambda: self.requests.in_flight)

    @asynccontextmanager
    async def published(self) -> AsyncIterator[None]:
        """Keeps the file for the other routers, if there are any."""
        if self._shared is None:
            yield
            return
        publishing = asyncio.create_task(self._publish(self._shared))
        try:
            yield
        finally:
            publishing.cancel()

    async def _publish(self, shared: Path) -> None:
        own = shared / f"{self._router}"
        part = shared / f"{self._router}.part"
        while True:
            try:
                # Of many subjects they are many.
                part.write_bytes(await asyncio.to_thread(pack, self._registry))
                part.replace(own)
            except Exception as error:
                logger.warning("metrics of router %d are not told: %s", self._router, error)
            await asyncio.sleep(PUBLISH_SECONDS)

    def _of_routers(self) -> Together:
        """What the router processes of this service have done."""
        together = Together()
        together.add(self._registry.collect(), {"router": str(self._router)})
        for path in sorted(self._shared.iterdir()) if self._shared is not None else ():
            if path.suffix != ".part" and path.name != str(self._router):
                with suppress(OSError):
                    together.add(unpack(path.read_bytes()), {"router": path.name})
        return together

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """What `together` answers, in the first of the formats that a request has in ``accept``,
        and its content type."""
        encode, content_type = choose_encoder(accept)
        return await asyncio.to_thread(encode, await self.together()), content_type

    async def together(self) -> Together:
        """What there is to know of this service and of all shard servers.

        Takes little more than `SCRAPE_SECONDS`; a shard server that does not answer until then is
        left out, and that is told.
        """
        answers, names = await asyncio.gather(
            self._fanout.collect(timeout=SCRAPE_SECONDS), self._names()
        )
        together = await asyncio.to_thread(self._of_routers)
        count = sum(not one.hidden for one in self._directory.names.collections.values())
        together.add([GaugeMetricFamily("shoal_collections", "Collections there are.", count)], {})
        # With thousands of shards this takes long.
        await asyncio.to_thread(_add_servers, together, answers, names)
        return together

    async def _names(self) -> dict[str, str]:
        """Names of collections by their ids."""
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(SCRAPE_SECONDS):
                await self._directory.refresh()
        return {one.id: name for name, one in self._directory.names.collections.items()}


def _add_servers(
    together: Together, answers: Mapping[str, bytes | None], names: Mapping[str, str]
) -> None:
    """Add what shard servers answer, by their names; ``names`` are those of collections by id."""
    up = GaugeMetricFamily(
        "shoal_shard_server_up", "1 for a shard server that has answered.", labels=["server"]
    )
    answering = 0
    for server, answer in answers.items():
        metrics = None
        with suppress(msgspec.DecodeError):  # As from one of another version.
            metrics = None if answer is None else unpack(answer)
        up.add_metric([server], metrics is not None)
        together.add(_named(metrics or [], names), {"server": server})
        answering += metrics is not None
    servers = GaugeMetricFamily("shoal_shard_servers", "Shard servers that answer.", answering)
    together.add([servers, up], {})


def _named(metrics: Iterable[Metric], names: Mapping[str, str]) -> Iterable[Metric]:
    """``metrics`` with collections by name, less those of collections that are gone."""
    for metric in metrics:
        samples, metric.samples = metric.samples, []
        for sample in samples:
            if (collection_id := sample.labels.get("collection")) is not None:
                if collection_id not in names:
                    continue
                sample = sample._replace(
                    labels={**sample.labels, "collection": names[collection_id]}
                )
            metric.samples.append(sample)
        yield metric
