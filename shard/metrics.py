"""Prometheus metrics of several processes, put together by the one that is asked for them.

Each process collects its own. They travel as bytes, and who puts them together says which process
each part is of.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from time import time
from typing import NamedTuple

import msgspec
from prometheus_client import Metric, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # Else there is a second series for each.


_NOTED = 512
"""Timings that are added up at once."""


class Timings:
    """A histogram of seconds by labels, counted by one thread.

    In plain numbers, which takes a quarter of the time of `prometheus_client.Histogram`, and many
    at once rather than one amid each request.
    """

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._help, self._labels, self._bounds = name, help, labels, bounds
        self._counted: dict[tuple[str, ...], _Counted] = {}
        self._noted: deque[tuple[tuple[str, ...], float, Exemplar | None]] = deque()
        self._adding = Lock()

    def count(self, labels: tuple[str, ...], seconds: float, trace_id: str = "") -> None:
        """``trace_id``: of the trace of what took so long, if it is kept."""
        exemplar = Exemplar({"trace_id": trace_id}, seconds, time()) if trace_id else None
        self._noted.append((labels, seconds, exemplar))
        if len(self._noted) >= _NOTED:
            self._add_up()

    def _add_up(self) -> None:
        with self._adding:
            while self._noted:
                labels, seconds, exemplar = self._noted.popleft()
                counted = self._counted.get(labels)
                if counted is None:
                    counted = self._counted[labels] = _Counted([0] * (len(self._bounds) + 1))
                bucket = bisect_left(self._bounds, seconds)
                counted.buckets[bucket] += 1
                counted.seconds += seconds
                if exemplar is not None:
                    counted.exemplars[bucket] = exemplar

    def totals(self) -> dict[tuple[str, ...], int]:
        """How many there were, by their labels."""
        self._add_up()
        return {labels: sum(one.buckets) for labels, one in self._counted.copy().items()}

    def forget(self, labels: tuple[str, ...]) -> None:
        self._counted.pop(labels, None)

    def collect(self) -> Metric:
        """May be called from any thread."""
        self._add_up()
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, counted in self._counted.copy().items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for number, total in enumerate(accumulate(counted.buckets)):
                bound: str = floatToGoString((*self._bounds, math.inf)[number])  # type: ignore[no-untyped-call]
                exemplar = counted.exemplars.get(number)
                buckets.append((bound, total, exemplar) if exemplar else (bound, total))
            family.add_metric(labels, buckets, counted.seconds)
        return family


@dataclass(slots=True)
class _Counted:
    buckets: list[int]
    seconds: float = 0.0
    exemplars: dict[int, Exemplar] = field(default_factory=dict)
    """The last one of each bucket."""


class _Sample(NamedTuple):
    name: str
    labels: dict[str, str]
    value: float
    exemplar: tuple[dict[str, str], float, float] | None
    """Labels, value, and the time in seconds since 1970."""


class _Family(NamedTuple):
    name: str
    help: str
    kind: str
    samples: list[_Sample]


_decoder = msgspec.msgpack.Decoder(list[_Family])


def pack(collector: Collector) -> bytes:
    """What ``collector`` collects now."""
    families = [
        _Family(
            metric.name,
            metric.documentation,
            metric.type,
            [
                _Sample(one.name, one.labels, float(one.value), _exemplar(one))
                for one in metric.samples
            ],
        )
        for metric in collector.collect()
    ]
    return msgspec.msgpack.encode(families)


def _exemplar(sample: Sample) -> tuple[dict[str, str], float, float] | None:
    given = sample.exemplar
    return given and (given.labels, given.value, float(given.timestamp or 0))


def unpack(data: bytes) -> list[Metric]:
    """What was packed. Raises msgspec.DecodeError."""
    metrics = []
    for family in _decoder.decode(data):
        metric = Metric(family.name, family.help, family.kind)
        for name, labels, value, exemplar in family.samples:
            metric.add_sample(name, labels, value, None, exemplar and Exemplar(*exemplar))
        metrics.append(metric)
    return metrics


class Together(Collector):
    """Metrics of several processes."""

    def __init__(self) -> None:
        self._metrics: dict[str, Metric] = {}

    def add(self, metrics: Iterable[Metric], labels: Mapping[str, str]) -> None:
        """Take in ``metrics``, each with ``labels`` besides its own."""
        for metric in metrics:
            known = self._metrics.setdefault(
                metric.name, Metric(metric.name, metric.documentation, metric.type)
            )
            known.samples += [
                one._replace(labels={**labels, **one.labels}) for one in metric.samples
            ]

    def collect(self) -> Iterable[Metric]:
        return self._metrics.values()
