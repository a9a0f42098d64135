"""Prometheus metrics of several processes, put together by the one that is asked for them.

Each process collects its own. They travel as bytes, and who puts them together says which process
each part is of.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from prometheus_client import Metric, disable_created_metrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

disable_created_metrics()  # type: ignore[no-untyped-call]  # Else there is a second series for each.


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
