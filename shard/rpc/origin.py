"""The requests that a call to a shard server is made for.

They go with the call, and log lines at both ends name them. What the call has taken is told back,
and charged to each by its share: searches that go together are one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple, Self

from shard import tracing
from shard.usage import Cost


class Charge(NamedTuple):
    """What one call has taken, of which the request has a share."""

    server: str
    """Address of the shard server."""
    method: str
    seconds: float
    share: float
    cost: Cost


@dataclass(frozen=True, slots=True)
class Origin:
    """One request."""

    request_id: str
    traceparent: str = ""
    """W3C trace context of what is under way for it, if it is traced."""
    share: float = 1.0
    charges: list[Charge] = field(default_factory=list)
    """Of all that is done for the request."""

    @property
    def trace_id(self) -> str:
        """Empty where the request is not traced."""
        return self.traceparent[3:35]


origins: ContextVar[tuple[Origin, ...]] = ContextVar("origins", default=())
"""Those of what is under way in a router."""
served: ContextVar[Sequence[str]] = ContextVar("served", default=())
"""Ids of the requests that a call to a shard server is for, there."""


class Calling:
    """Makes a call to the server at that address for the current origins: traces it for each that
    is traced, and charges them all in the end. ``shards`` are numbers.

    What goes with the call is in it; what it is told to have taken is put into it.
    """

    __slots__ = ("_began", "_callers", "_method", "_server", "_spans", "cost", "traceparents")

    def __init__(self, server: str, method: str, shards: Iterable[int]) -> None:
        self._server = server
        self._method = method
        self._callers = origins.get()
        self._began = perf_counter()
        self._spans: list[tracing.Span] = []
        self.cost = Cost()
        for one in self._callers:
            if one.traceparent:
                attributes: tracing.Attributes = {
                    "server.address": server,
                    "shoal.shards": list(shards),
                }
                span = tracing.begin(method, one.traceparent, kind="client", attributes=attributes)
                self._spans += [span] if span is not None else []
        self.traceparents = [one.traceparent for one in self._spans]

    @property
    def request_ids(self) -> list[str]:
        return [one.request_id for one in self._callers]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        seconds = perf_counter() - self._began
        for one in self._callers:
            charge = Charge(self._server, self._method, seconds, one.share, self.cost)
            one.charges.append(charge)
        for span in self._spans:
            span.end(error="" if kind is None else kind.__name__)
