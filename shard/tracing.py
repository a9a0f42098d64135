"""Traces, by OpenTelemetry: spans that name what they are part of by W3C's traceparent.

Nothing is traced, and nothing taken, unless OpenTelemetry's SDK is installed (``pip install
shoal[otel]``) and its standard environment variables say where spans go. Spans do not hang on
a context of the thread: a call to a shard server may be part of many traces.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from random import getrandbits
from threading import Thread
from time import perf_counter, perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor

logger = logging.getLogger(__name__)

TRACES_A_SECOND = 1.0
"""Of requests that bring no decision, how many a process traces at most, unless
``OTEL_TRACES_SAMPLER`` is set. A trace takes more than a small search does: so there are some where
there is little to do, and they take next to nothing where there is much. X-Ray's default is alike.
"""
LAST_SECONDS = 3.0
"""How long what is left may take to be sent in the end."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")

Kind: TypeAlias = Literal["internal", "server", "client"]
Attributes: TypeAlias = Mapping[str, str | int | float | list[int]]


class Span:
    """One that is kept. ``traceparent`` is what its parts name."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: trace.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-01"

    def end(
        self,
        *,
        at: float | None = None,
        name: str = "",
        error: str = "",
        attributes: Attributes | None = None,
    ) -> None:
        """``at``, by `perf_counter`; None: now. ``name``: a better one than it began with;
        ``error``: what it ended in, in a word."""
        if name:
            self._span.update_name(name)
        if attributes:
            self._span.set_attributes(attributes)
        if error:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, error)
        self._span.end(None if at is None else _nanoseconds(at))


class _Tracing:
    """Makes spans, with an SDK that is there."""

    def __init__(self, service: str, processor: SpanProcessor) -> None:
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Decision, ParentBased
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        class Ids(RandomIdGenerator):
            """Takes the id of a trace that has been chosen."""

            chosen = 0

            def generate_trace_id(self) -> int:
                chosen, self.chosen = self.chosen, 0
                return chosen or super().generate_trace_id()

        named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get(
            "OTEL_RESOURCE_ATTRIBUTES", ""
        )
        attributes: dict[str, Any] = {"process.pid": os.getpid()}
        if not named:
            attributes["service.name"] = service
        self._ids = Ids()
        self.next_at = float("-inf")
        """When the next request may be chosen, by `perf_counter`."""
        self._has_sampler = "OTEL_TRACES_SAMPLER" in os.environ
        self.provider = TracerProvider(
            sampler=None if self._has_sampler else ParentBased(ALWAYS_ON),
            resource=Resource.create(attributes),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self.provider.add_span_processor(processor)
        self._tracer = self.provider.get_tracer("shoal")
        self._nothing = Context()
        self._sample = Decision.RECORD_AND_SAMPLE
        self._extract = TraceContextTextMapPropagator().extract
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "server": trace.SpanKind.SERVER,
            "client": trace.SpanKind.CLIENT,
        }

    def begin(
        self, name: str, parent: str, kind: Kind, at: float | None, attributes: Attributes | None
    ) -> Span | None:
        if not parent or not (context := self._extract({"traceparent": parent}, self._nothing)):
            if not self._is_chosen(name):
                return None
            context = self._nothing
        span = self._tracer.start_span(
            name,
            context,
            self._kinds[kind],
            attributes,
            start_time=None if at is None else _nanoseconds(at),
        )
        return Span(span) if span.get_span_context().trace_flags.sampled else None

    def _is_chosen(self, name: str) -> bool:
        """Whether to trace what is part of nothing."""
        if not self._has_sampler:
            now = perf_counter()
            if now < self.next_at:
                return False
            self.next_at = now + 1 / TRACES_A_SECOND
            return True
        # To begin a span that is not kept takes four times as long as to ask.
        trace_id = getrandbits(128)
        found = self.provider.sampler.should_sample(self._nothing, trace_id, name)
        if found.decision is not self._sample:
            return False
        self._ids.chosen = trace_id
        return True


_tracing: _Tracing | None = None


@contextmanager
def exporting(service: str, processor: SpanProcessor | None = None) -> Iterator[None]:
    """Traces meanwhile, as a service of that name, and sends what is left at the end.

    ``processor`` takes the spans; None: they go where the environment says, if it does.
    """
    global _tracing
    processor = processor or _processor_of_environment()
    if processor is None:
        yield
        return
    own = _tracing = _Tracing(service, processor)
    try:
        yield
    finally:
        if _tracing is own:
            _tracing = None
        # It would wait half a minute for a collector that does not answer.
        sending = Thread(target=own.provider.shutdown, daemon=True)
        sending.start()
        sending.join(LAST_SECONDS)


def _processor_of_environment() -> SpanProcessor | None:
    disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    elsewhere = os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp"
    if disabled or elsewhere or not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        logger.warning("nothing is traced: that takes `pip install shoal[otel]`")
        return None
    return BatchSpanProcessor(OTLPSpanExporter())


def may_begin(now: float) -> bool:
    """Whether `begin` may answer a span that is the first of a trace; ``now`` by `perf_counter`."""
    return _tracing is not None and now >= _tracing.next_at


def begin(
    name: str,
    parent: str = "",
    *,
    kind: Kind = "internal",
    at: float | None = None,
    attributes: Attributes | None = None,
) -> Span | None:
    """A span, from ``at`` on, by `perf_counter`, or from now; None where it is not traced.

    ``parent`` is a traceparent; empty, or malformed: the span is the first of a trace.
    """
    if _tracing is None:
        return None
    return _tracing.begin(name, parent, kind, at, attributes)


def record(
    name: str, parent: str, began: float, ended: float, attributes: Attributes | None = None
) -> Span | None:
    """A span that has been, by `perf_counter`."""
    span = begin(name, parent, at=began, attributes=attributes)
    if span is not None:
        span.end(at=ended)
    return span


def _nanoseconds(at: float) -> int:
    """Since 1970."""
    return time_ns() - perf_counter_ns() + int(at * 1e9)
