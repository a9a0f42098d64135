"""Prometheus metrics of several processes, put together by the one that is asked for them.

Each process collects its own. They travel as bytes, and who puts them together says which process
each part is of.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import Generic, NamedTuple, TypeVarTuple

import msgspec
from prometheus_client import Metric, disable_created_metrics
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample
from prometheus_client.utils import floatToGoString

disable_created_metrics()  # type: ignore[no-untyped-call]  # Else there is a second series for each.


NOTES = 64
"""That are added up at once. Of calls to a shard server that takes a quarter of a millisecond."""

Ts = TypeVarTuple("Ts")


class Noted(Generic[*Ts]):
    """Takes notes of what is to be counted, and has them counted by ``add``, many at once.

    Amid a request, between other code and other objects, the same lines take four times as long.
    """

    def __init__(self, add: Callable[[*Ts], None]) -> None:
        self._add = add
        self._notes: deque[tuple[*Ts]] = deque()
        self._adding = Lock()

    def note(self, *what: *Ts) -> None:
        """``what`` to call ``add`` with."""
        self._notes.append(what)
        if len(self._notes) >= NOTES:
            self.add_up()

    def add_up(self) -> None:
        """Count what is noted. May be called from any thread."""
        with self._adding:
            while self._notes:
                self._add(*self._notes.popleft())


class Timings:
    """A histogram of seconds by labels, counted by one thread at a time.

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
        self._counted: dict[tuple[str, ...], _Counted] = {}

    def count(
        self, labels: tuple[str, ...], seconds: float, exemplar: Exemplar | None = None
    ) -> None:
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
