"""The requests that a call to a shard server is made for.

They go with the call, and log lines at both ends name them. What the call has taken is told back,
and charged to each by its share: searches that go together are one call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from time import perf_counter
from typing import NamedTuple

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
"""Those of what is under way."""


@dataclass(slots=True)
class Outgoing:
    """A call: what goes with it, and what it is told to have taken."""

    request_ids: list[str]
    traceparents: list[str]
    cost: Cost = field(default_factory=Cost)


@contextmanager
def calling(server: str, method: str, shards: Iterable[int]) -> Iterator[Outgoing]:
    """Makes a call to the server at that address for the current origins: traces it for each that
    is traced, and charges them all in the end. ``shards`` are numbers.
    """
    callers = origins.get()
    began = perf_counter()
    spans = []
    for one in callers:
        if one.traceparent:
            attributes: tracing.Attributes = {
                "server.address": server,
                "shoal.shards": list(shards),
            }
            span = tracing.begin(method, one.traceparent, kind="client", attributes=attributes)
            spans += [span] if span is not None else []
    outgoing = Outgoing([one.request_id for one in callers], [one.traceparent for one in spans])
    error = ""
    try:
        yield outgoing
    except BaseException as raised:
        error = type(raised).__name__
        raise
    finally:
        seconds = perf_counter() - began
        for one in callers:
            one.charges.append(Charge(server, method, seconds, one.share, outgoing.cost))
        for span in spans:
            span.end(error=error)
