"""The requests that a call to a shard server is made for.

They go with the call, and log lines at both ends name them. What the call has taken is told back,
and charged to each by its share: searches that go together are one call.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple

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


origins: ContextVar[tuple[Origin, ...]] = ContextVar("origins", default=())
"""Those of what is under way."""
