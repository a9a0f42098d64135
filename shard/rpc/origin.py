"""The requests that a call to a shard server is made for.

They go with the call, and log lines at both ends name them. What the call has taken is told back,
and charged to each by its share: searches that go together are one call.

This is on the way of every search, and makes few objects: those that live as long as a request are
what the garbage collector runs for, and looks through.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import NamedTuple, Self, TypeAlias

import msgspec

from shard import tracing
from shard.usage import Cost, Usage


class Charge(NamedTuple):
    """What one call has taken."""

    server: str
    """Address of the shard server."""
    method: str
    seconds: float
    cost: Cost


class Origin(msgspec.Struct, eq=False):
    """One request. By itself it is the only one of `Callers`."""

    request_id: str
    traceparent: str = ""
    """W3C trace context of what is under way for it, if it is traced."""
    charged: bool = True
    """Whether to keep what it is charged with, for whoever asks."""
    _shares: list[tuple[list[Charge], float]] | None = None

    @property
    def trace_id(self) -> str:
        """Empty where the request is not traced."""
        return self.traceparent[3:35]

    @property
    def origins(self) -> Sequence[Origin]:
        return (self,)

    @property
    def traced(self) -> Sequence[Origin]:
        return (self,) if self.traceparent else ()

    def pay(self, charge: Charge) -> None:
        self.take_part([charge], 1.0)

    def take_part(self, charges: list[Charge], share: float) -> None:
        """Pay for a share of ``charges``, which may go on growing."""
        if self._shares is None:
            self._shares = []
        self._shares.append((charges, share))

    def charges(self) -> Iterator[tuple[Charge, float]]:
        """The calls until now, and the request's share of each."""
        for charges, share in self._shares or ():
            for charge in charges:
                yield charge, share

    def usage(self) -> Usage:
        """What these have taken."""
        total = Usage()
        for charge, share in self.charges():
            total.add(charge.cost.usage.part(share))
        return total


class Together:
    """Requests that something is done for at once."""

    __slots__ = ("_charges", "charged", "origins", "traced")

    def __init__(self) -> None:
        self.charged = False
        self._charges: list[Charge] = []
        self.origins: list[Origin] = []
        self.traced: list[Origin] = []

    def add(self, origin: Origin, share: float) -> None:
        """It is done for ``origin`` as well, which pays for that share of it."""
        self.origins.append(origin)
        if origin.charged:
            self.charged = True
            origin.take_part(self._charges, share)
        if origin.traceparent:
            self.traced.append(origin)

    def pay(self, charge: Charge) -> None:
        if self.charged:  # Else nobody would ever take them.
            self._charges.append(charge)


Callers: TypeAlias = Origin | Together
callers: ContextVar[Callers] = ContextVar("callers", default=Together())  # noqa: B039 - it takes nothing in
"""Those of what is under way in a router."""
served: ContextVar[Sequence[str]] = ContextVar("served", default=())
"""Ids of the requests that a call to a shard server is for, there."""


class Calling:
    """Makes a call to the server at that address for the current callers: traces it for each that
    is traced, and charges them all in the end. ``shards`` are numbers.

    What goes with the call is in it; what it is told to have taken is put into it, if `charged`.
    """

    __slots__ = ("_began", "_callers", "_method", "_server", "_spans", "cost", "traceparents")

    def __init__(self, server: str, method: str, shards: Iterable[int]) -> None:
        self._server = server
        self._method = method
        self._callers = callers.get()
        self._began = perf_counter()
        self._spans: list[tracing.Span] = []
        self.cost = Cost()
        for one in self._callers.traced:
            attributes: tracing.Attributes = {
                "server.address": server,
                "shoal.shards": list(shards),
            }
            span = tracing.begin(method, one.traceparent, kind="client", attributes=attributes)
            self._spans += [span] if span is not None else []
        self.traceparents = [one.traceparent for one in self._spans]

    @property
    def charged(self) -> bool:
        """Whether anybody asks what it takes."""
        return self._callers.charged

    @property
    def request_ids(self) -> list[str]:
        return [one.request_id for one in self._callers.origins]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *raised: object) -> None:
        if self.charged:
            seconds = perf_counter() - self._began
            self._callers.pay(Charge(self._server, self._method, seconds, self.cost))
        for span in self._spans:
            span.end(error="" if kind is None else kind.__name__)
