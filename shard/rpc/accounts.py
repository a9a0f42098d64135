"""What a shard server has done and what it holds, as Prometheus metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar

import msgspec
from prometheus_client import (
    GC_COLLECTOR,
    CollectorRegistry,
    Gauge,
    Metric,
    ProcessCollector,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from shard import tracing
from shard.cache import Cache
from shard.matching import CACHE
from shard.metrics import Timings
from shard.model import ShardInfo
from shard.rpc.hosting import Hosting
from shard.usage import Cost, Measured, Usage

_CALL_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_CALL_SECONDS)
_STATES = ("serving", "recovering", "failed")
_OF_SHARDS: list[tuple[str, str, Callable[[ShardInfo], float]]] = [
    ("points", "Points.", lambda info: info.points),
    ("indexed_points", "Points that an index covers.", lambda info: info.indexed),
    ("segments", "Segments.", lambda info: len(info.segments)),
    ("garbage_segments", "Segments that are to be deleted.", lambda info: info.garbage),
    ("building", "1 while rows wait for an index, or one is built.", lambda info: info.building),
    ("error", "1 while a build or a snapshot fails.", lambda info: info.error is not None),
    ("log_sequence", "Log sequence up to which writes are applied.", lambda info: info.sequence),
    (
        "snapshot_sequence",
        "Log sequence up to which the newest snapshot covers.",
        lambda info: info.snapshot_sequence,
    ),
    (
        "unsaved_seconds",
        "Age of the oldest write that no snapshot covers.",
        lambda info: info.unsaved_seconds,
    ),
    ("memtable_rows", "Rows in memory.", lambda info: info.memtable_rows),
    ("memtable_bytes", "Bytes of the rows in memory.", lambda info: info.memtable_bytes),
    ("waiting_writes", "Writes to be committed.", lambda info: info.waiting_writes),
    ("waiting_write_bytes", "Bytes of those writes.", lambda info: info.waiting_bytes),
]
_OF_USAGE: list[tuple[str, str, Callable[[Usage], float]]] = [
    ("vectors", "Vectors compared, whole or by their codes.", lambda usage: usage.vectors),
    ("vector_read_bytes", "Bytes of those vectors and codes.", lambda usage: usage.vector_bytes),
    ("payload_read_bytes", "Bytes of payloads looked at.", lambda usage: usage.payload_bytes),
    (
        "vector_written_bytes",
        "Bytes of vectors in writes.",
        lambda usage: usage.written_vector_bytes,
    ),
    (
        "payload_written_bytes",
        "Bytes of payloads in writes.",
        lambda usage: usage.written_payload_bytes,
    ),
    ("cpu_seconds", "CPU time of threads that read.", lambda usage: usage.cpu_seconds),
    ("filters", "Filters looked up, a segment each.", lambda usage: usage.masks),
    ("filters_made", "Of these, those not remembered.", lambda usage: usage.masks_made),
]


class Account(msgspec.Struct):
    """What one call has taken so far."""

    traced: bool = False
    """Whether to measure each shard by itself."""
    cost: Cost = msgspec.field(default_factory=Cost)
    asked: float = 0.0
    """When threads were asked to read, by `perf_counter`."""
    measured: list[tuple[list[int], Measured]] = []
    """Numbers of shards, of which one may come more often, and what was measured of them."""

    def add(self, shards: list[int], measured: Measured) -> None:
        measured.read_cpu()
        self.measured.append((shards, measured))
        self.cost.usage.add(measured.usage)
        stages = self.cost.stages
        for name, lap in measured.stages.items():
            stages[name] = stages.get(name, 0.0) + lap.seconds

    def trace(self, parent: str) -> None:
        """Record what there was in each shard as part of a trace."""
        for (shard, *_), measured in self.measured:
            span = tracing.record(
                f"shard {shard}", parent, self.asked, measured.ended, {"shoal.shard": shard}
            )
            if span is None:
                return
            tracing.record("queue", span.traceparent, self.asked, measured.began)
            for name, lap in measured.stages.items():
                tracing.record(
                    name,
                    span.traceparent,
                    lap.began,
                    lap.ended,
                    {"shoal.seconds": lap.seconds, "shoal.times": lap.times},
                )


_OF_CACHE: list[tuple[str, str, Callable[[Cache], float]]] = [
    ("hits", "Columns and masks that were remembered.", lambda cache: cache.hits),
    ("misses", "Columns and masks that were not.", lambda cache: cache.misses),
    ("evictions", "Columns and masks that made room for others.", lambda cache: cache.evictions),
]

_NOTHING = Usage()
account: ContextVar[Account] = ContextVar("account")
"""That of the call under way."""


def usage_counters(
    prefix: str, label: str, usages: Mapping[str, Usage]
) -> Iterable[CounterMetricFamily]:
    """All that is counted, named with that prefix, of each of ``usages`` by their label's value."""
    usages = dict(usages)  # Another thread may add some.
    for name, help, look in _OF_USAGE:
        counter = CounterMetricFamily(f"{prefix}_{name}", help, labels=[label])
        for value, usage in usages.items():
            counter.add_metric([value], look(usage))
        yield counter


class Accounts(Collector):
    """Adds up accounts, and looks at what ``hosting`` has when asked. Use from one event loop."""

    def __init__(self, hosting: Hosting) -> None:
        self._hosting = hosting
        self._registry = CollectorRegistry()
        ProcessCollector("shoal", registry=self._registry)
        self._registry.register(GC_COLLECTOR)
        self._calls = Timings(
            "shoal_shard_server_call_seconds",
            "From when a call comes to a shard server until it is answered.",
            ("method", "code"),
            _CALL_SECONDS,
        )
        self._stages = Timings(
            "shoal_shard_server_stage_seconds",
            "What a call spends in a stage, in all threads of a shard server.",
            ("stage",),
            _STAGE_SECONDS,
        )
        self._usage: dict[str, Usage] = defaultdict(Usage)
        self.watch("cache_bytes", "What columns and masks take.", lambda: CACHE.bytes)
        self.watch("cache_limit_bytes", "What they may take.", lambda: CACHE.max_bytes)

    def watch(self, name: str, help: str, look: Callable[[], float]) -> None:
        """Tell what ``look`` answers, as ``shoal_shard_server_`` and that name."""
        Gauge(f"shoal_shard_server_{name}", help, registry=self._registry).set_function(look)

    def settle(
        self, cost: Cost, collection_id: str, method: str, code: str, seconds: float
    ) -> None:
        """Take in a call that is over, on the collection's account if it has taken anything."""
        self._calls.of((method, code)).count(seconds)
        for stage, spent in cost.stages.items():
            self._stages.of((stage,)).count(spent)
        if cost.usage != _NOTHING:
            self._usage[collection_id].add(cost.usage)

    def collect(self) -> Iterable[Metric]:
        """Collections are named by their ids. May be called from any thread."""
        yield from self._registry.collect()
        yield self._calls.collect()
        yield self._stages.collect()
        for name, help, count in _OF_CACHE:
            yield CounterMetricFamily(f"shoal_shard_server_cache_{name}", help, count(CACHE))
        statuses = self._hosting.status()
        collections = {collection_id for collection_id, _ in statuses}
        for gone in self._usage.keys() - collections:
            del self._usage[gone]
        yield from usage_counters("shoal_usage", "collection", self._usage)
        state = GaugeMetricFamily(
            "shoal_shard_state",
            "1 for the state that a shard is in.",
            labels=["collection", "shard", "state"],
        )
        for (collection_id, number), status in statuses.items():
            for one in _STATES:
                labels = [collection_id, str(number), one]
                state.add_metric(labels, status.partition(":")[0] == one)
        yield state
        infos = self._hosting.infos()
        for name, help, look_at in _OF_SHARDS:
            gauge = GaugeMetricFamily(f"shoal_shard_{name}", help, labels=["collection", "shard"])
            for (collection_id, number), info in infos.items():
                gauge.add_metric([collection_id, str(number)], look_at(info))
            yield gauge
