"""What the holders of tokens take, by the subject that a token names: a tenant's bill."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from shard.rpc.accounts import usage_counters
from shard.rpc.origin import Origin
from shard.usage import Usage

MAX_SUBJECTS = 1_000
"""Further ones are counted together, as `OTHERS`: series are not made without end."""
OTHERS = ""


class Subjects(Collector):
    """Adds up requests and their usage. Use from one event loop."""

    def __init__(self) -> None:
        self._requests: dict[str, int] = {}
        self._usage: dict[str, Usage] = {}

    def charge(self, subject: str, origin: Origin) -> None:
        """Take in a request that is over."""
        if subject not in self._usage:
            subject = subject if len(self._usage) < MAX_SUBJECTS else OTHERS
            self._usage.setdefault(subject, Usage())
        self._requests[subject] = self._requests.get(subject, 0) + 1
        self._usage[subject].add(origin.usage())

    def collect(self) -> Iterable[Metric]:
        """May be called from any thread."""
        requests = CounterMetricFamily(
            "shoal_subject_requests", "Requests with a token of that subject.", labels=["subject"]
        )
        for subject, count in self._requests.copy().items():
            requests.add_metric([subject], count)
        yield requests
        yield from usage_counters("shoal_subject_usage", "subject", self._usage)
