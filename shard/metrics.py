"""Prometheus metrics of several processes, put together by the one that is asked for them.

Each process collects its own. They travel as bytes, and who puts them together says which process
each part is of.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import msgspec
from prometheus_client import Metric, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # Else there is a second series for each.


class Timing:
    """A histogram of seconds, counted by one thread at a time."""

    __slots__ = ("_bounds", "buckets", "exemplars", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        """How many fall between two bounds."""
        self.seconds = 0.0
        """All together."""
        self.exemplars: dict[int, Exemplar] = {}
        """The last one of each bucket."""

    def count(self, seconds: float, exemplar: Exemplar | None = None) -> None:
        bucket = bisect_left(self._bounds, seconds)
        self.buckets[bucket] += 1
        self.seconds += seconds
        if exemplar is not None:
            self.exemplars[bucket] = exemplar


class Timings:
    """Histograms of seconds by labels, made by one thread.

    In plain numbers, which takes a quarter of the time of `prometheus_client.Histogram`.
    """

    def __init__(
        self,
        name: str,
        help: str,
        labels: Sequence[str],
        bounds: Sequence[float],
    ) -> None:
        self._name, self._help, self._labels, self._bounds = name, help, labels, bounds
        self._counted: dict[tuple[str, ...], Timing] = {}

    def of(self, labels: tuple[str, ...]) -> Timing:
        """The one of these labels, always the same until it is forgotten."""
        timing = self._counted.get(labels)
        if timing is None:
            timing = self._counted[labels] = Timing(self._bounds)
        return timing

    def totals(self) -> dict[tuple[str, ...], int]:
        """How many there were, by their labels."""
        return {labels: sum(one.buckets) for labels, one in self._counted.copy().items()}

    def forget(self, labels: tuple[str, ...]) -> None:
        self._counted.pop(labels, None)

    def collect(self) -> Metric:
        """May be called from any thread."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        for labels, counted in self._counted.copy().items():
            buckets: list[tuple[str, float] | tuple[str, float, Exemplar]] = []
            for number, total in enumerate(accumulate(counted.buckets)):
                bound: str = floatToGoString((*self._bounds, math.inf)[number])  # type: ignore[no-untyped-call]
                exemplar = counted.exemplars.get(number)
                buckets.append((bound, total, exemplar) if exemplar else (bound, total))
            family.add_metric(labels, buckets, counted.seconds)
        return family


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
