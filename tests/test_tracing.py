"""Traces of requests: who has part in them, and how the parts hang together."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from time import monotonic, sleep

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from qdrant_client import QdrantClient, models

from shard import tracing
from shard.engine import ShardEngine
from tests.shoal_in_process import ShoalInProcess
from tests.shoal_process import ShoalProcess

PARAMS = {"vectors": {"size": 4, "distance": "Euclid"}}
FILTER = {"must": [{"key": "n", "range": {"lt": 80}}]}
QUERY = {"query": [0, 0, 0, 1], "limit": 3, "with_payload": True, "filter": FILTER}
PATH = "/collections/songs/points/query"
ROUTE = "POST /collections/{name}/points/query"
STAGES = {"queue", "filter", "scan", "rerank", "merge", "payload"}
OURS = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{OURS}-b7ad6b7169203331"
"""Of a traceparent, without the flags."""


class Trace:
    """The spans of one trace."""

    def __init__(self, spans: list[ReadableSpan]) -> None:
        self.spans = spans

    def named(self, name: str, parent: ReadableSpan | None = None) -> list[ReadableSpan]:
        """Those of that name that are part of ``parent``; None: of any."""
        return [
            one
            for one in self.spans
            if one.name == name and (parent is None or id_of(parent) == parent_of(one))
        ]

    def one(self, name: str, parent: ReadableSpan | None = None) -> ReadableSpan:
        (found,) = self.named(name, parent)
        return found

    def parts(self, parent: ReadableSpan) -> set[str]:
        return {one.name for one in self.spans if parent_of(one) == id_of(parent)}


class Traces:
    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def __call__(self) -> dict[str, Trace]:
        """What there is of each, by its id."""
        found: dict[str, list[ReadableSpan]] = {}
        for span in self._exporter.get_finished_spans():
            assert span.context is not None
            found.setdefault(f"{span.context.trace_id:032x}", []).append(span)
        return {trace_id: Trace(spans) for trace_id, spans in found.items()}

    def of(self, route: str, count: int = 1) -> list[Trace]:
        """The traces of requests to that route, as soon as there are so many."""
        deadline = monotonic() + 20
        while True:
            found = [one for one in self().values() if one.named(route)]
            if len(found) >= count or monotonic() > deadline:
                assert len(found) == count
                return found
            sleep(0.01)


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    number: int = span.context.span_id
    return number


def parent_of(span: ReadableSpan) -> int:
    number: int = span.parent.span_id if span.parent is not None else 0
    return number


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path_factory.mktemp("shoal"), default_shards=3) as shoal:
        with httpx.Client(base_url=shoal.url, timeout=30) as http:
            http.put("/collections/songs", json=PARAMS).raise_for_status()
            points = [{"id": n, "vector": [n, 1, 2, 3], "payload": {"n": n}} for n in range(90)]
            path = "/collections/songs/points?wait=true"
            http.put(path, json={"points": points}).raise_for_status()
        yield shoal


@pytest.fixture
def http(running: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=running.url, timeout=30) as client:
        yield client


@pytest.fixture
def traces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Traces]:
    """Of every request that does not say otherwise."""
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    exporter = InMemorySpanExporter()
    with tracing.exporting("shoal", SimpleSpanProcessor(exporter)):
        yield Traces(exporter)


def test_a_query_is_traced_from_the_router_into_each_stage_of_each_shard(
    http: httpx.Client, traces: Traces
) -> None:
    http.post(PATH, json=QUERY, headers={"x-request-id": "mine"}).raise_for_status()
    (trace,) = traces.of(ROUTE)
    request = trace.one(ROUTE)
    assert request.parent is None
    assert request.kind is SpanKind.SERVER
    assert request.attributes == {
        "http.request.method": "POST",
        "http.route": "/collections/{name}/points/query",
        "http.response.status_code": 200,
        "db.collection.name": "songs",
        "shoal.request_id": "mine",
    }
    assert trace.parts(request) == {"gather", "Search"}
    calls = trace.named("Search", request)
    asked = {call.attributes["shoal.shards"] for call in calls if call.attributes is not None}
    assert asked == {(0, 2), (1,)}
    for call in calls:
        assert call.kind is SpanKind.CLIENT
        answered = trace.one("Search", call)
        assert answered.kind is SpanKind.SERVER
        assert call.attributes is not None
        shards: object = call.attributes["shoal.shards"]
        assert trace.parts(answered) == {f"shard {shard}" for shard in shards}  # type: ignore[attr-defined]
    for shard in range(3):
        assert trace.parts(trace.one(f"shard {shard}")) == STAGES
    # What is part of another is within its time, give or take the clock's steps.
    spans = {id_of(one): one for one in trace.spans}
    slack = 1_000_000
    for span in trace.spans:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
        if span.parent is not None:
            whole = spans[span.parent.span_id]
            assert whole.start_time is not None
            assert whole.end_time is not None
            assert whole.start_time - slack <= span.start_time
            assert span.end_time <= whole.end_time + slack


def test_a_trace_goes_on_with_what_its_client_says(http: httpx.Client, traces: Traces) -> None:
    http.post(PATH, json=QUERY, headers={"traceparent": f"{PARENT}-00"}).raise_for_status()
    http.post(PATH, json=QUERY, headers={"traceparent": f"{PARENT}-01"}).raise_for_status()
    (trace,) = traces.of(ROUTE)
    assert list(traces()) == [OURS]
    request = trace.one(ROUTE)
    assert f"{parent_of(request):016x}" == "b7ad6b7169203331"
    assert len(trace.named("Search", request)) == 2


def test_a_malformed_traceparent_begins_a_trace(http: httpx.Client, traces: Traces) -> None:
    http.post(PATH, json=QUERY, headers={"traceparent": "00-zz-zz-01"}).raise_for_status()
    (trace,) = traces.of(ROUTE)
    assert trace.one(ROUTE).parent is None


def test_calls_that_are_no_messages_of_a_stream_are_traced(
    http: httpx.Client, traces: Traces
) -> None:
    http.post("/collections/songs/points/count", json={"filter": FILTER}).raise_for_status()
    (trace,) = traces.of("POST /collections/{name}/points/count")
    for shard in range(3):
        assert {"queue", "filter"} <= trace.parts(trace.one(f"shard {shard}"))


def test_writes_are_traced(http: httpx.Client, traces: Traces) -> None:
    points = [{"id": n, "vector": [n, 1, 2, 3], "payload": {"n": n}} for n in range(90)]
    path = "/collections/songs/points?wait=true"
    http.put(path, json={"points": points}).raise_for_status()
    (trace,) = traces.of("PUT /collections/{name}/points")
    for call in trace.named("Write", trace.one("PUT /collections/{name}/points")):
        assert trace.one("Write", call).kind is SpanKind.SERVER


def test_by_grpc_a_request_is_traced_too(running: ShoalInProcess, traces: Traces) -> None:
    client = QdrantClient(
        url=running.url, grpc_port=running.grpc_port, prefer_grpc=True, timeout=30
    )
    client.query_points("songs", [0.0, 0.0, 0.0, 1.0])
    client.close()
    (trace,) = traces.of(ROUTE)
    assert len(trace.named("Search", trace.one(ROUTE))) == 2


def test_searches_that_go_together_are_traced_each_by_itself(
    http: httpx.Client, traces: Traces
) -> None:
    def ask(number: int) -> httpx.Response:
        own = {"must": [FILTER, {"key": "n", "range": {"gte": -number}}]}
        return http.post(PATH, json=QUERY | {"filter": own})

    with ThreadPoolExecutor(16) as clients:
        answers = clients.map(ask, range(64))
        assert {answer.status_code for answer in answers} == {200}
    together = 0
    for trace in traces.of(ROUTE, 64):
        request = trace.one(ROUTE)
        assert len(trace.named("Search", request)) == 2
        for shard in range(3):
            assert trace.parts(trace.one(f"shard {shard}")) == STAGES
        attributes = trace.one("gather").attributes
        assert attributes is not None
        queries = attributes["shoal.batch.queries"]
        assert isinstance(queries, int)
        together += queries > 1
    assert together


def test_what_fails_is_marked(
    http: httpx.Client, traces: Traces, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret")

    http.post(PATH, json={"query": [1]})
    monkeypatch.setattr(ShardEngine, "search", fail)
    http.post(PATH, json=QUERY)
    refused, failed = traces.of(ROUTE, 2)
    assert refused.one(ROUTE).status.status_code is StatusCode.UNSET, "the client's failure"
    assert failed.one(ROUTE).status.status_code is StatusCode.ERROR
    kinds = {
        (one.kind, one.status.description)
        for one in failed.named("Search")
        if one.status.status_code is StatusCode.ERROR
    }
    assert (SpanKind.SERVER, "INTERNAL") in kinds
    assert (SpanKind.CLIENT, "ShoalError") in kinds
    assert not [one for one in failed.spans if "secret" in one.to_json()]


def test_histograms_name_traces_as_examples(http: httpx.Client, traces: Traces) -> None:
    http.post(PATH, json=QUERY).raise_for_status()
    traces.of(ROUTE)
    accept = {"accept": "application/openmetrics-text; version=1.0.0"}
    text = http.get("/metrics", headers=accept).raise_for_status().text
    examples = {
        sample.exemplar.labels["trace_id"]
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
        if sample.exemplar is not None and sample.labels["collection"] == "songs"
    }
    assert examples & traces().keys()


def test_of_what_says_nothing_some_are_traced_each_second(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "TRACES_A_SECOND", 10)
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    asked = 0
    with tracing.exporting("shoal", SimpleSpanProcessor(exporter)):
        began = monotonic()
        while monotonic() < began + 1.5:
            http.post(PATH, json=QUERY).raise_for_status()
            asked += 1
        took = monotonic() - began
        # Who has decided is not counted.
        http.post(PATH, json=QUERY, headers={"traceparent": f"{PARENT}-01"}).raise_for_status()
        sleep(0.2)
    found = traces()
    assert found.pop(OURS)
    assert min(asked, 3) <= len(found) <= 1 + 10 * took
    assert all(len(one.named("Search")) == 4 for one in found.values()), "all of one, or nothing"


@pytest.mark.parametrize(("ratio", "least", "most"), [("0", 0, 0), ("0.5", 10, 50), ("1", 60, 60)])
def test_the_sampler_of_the_environment_decides(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch, ratio: str, least: int, most: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", ratio)
    exporter = InMemorySpanExporter()
    traces = Traces(exporter)
    with tracing.exporting("shoal", SimpleSpanProcessor(exporter)):
        for _ in range(60):
            http.post(PATH, json=QUERY).raise_for_status()
        sleep(0.2)
    # Else by a chance of less than one in ten million.
    assert least <= len(traces()) <= most


def test_nothing_is_traced_unless_it_is_asked_for(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    with tracing.exporting("shoal"):
        assert tracing.begin("nothing") is None
        http.post(PATH, json=QUERY).raise_for_status()


def test_a_service_runs_without_opentelemetrys_sdk(tmp_path: Path) -> None:
    """It does not even import what is there, and says so where it would be needed."""
    code = """
import sys
sys.modules["opentelemetry.sdk"] = sys.modules["opentelemetry.exporter"] = None
import router.http, shard.rpc.server
from shard import tracing
with tracing.exporting("shoal"):
    assert tracing.begin("nothing") is None
"""
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "shoal[otel]" in done.stderr


def test_a_collector_that_does_not_answer_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        with tracing.exporting("shoal"):
            span = tracing.begin("hm")
            assert span is not None
            span.end()
            began = monotonic()
        assert monotonic() - began < tracing.LAST_SECONDS + 5


class Collector:
    """Takes spans by OTLP, as a collector does."""

    def __init__(self) -> None:
        self.requests: list[ExportTraceServiceRequest] = []
        received = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                received.append(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Collector:
        Thread(target=self._server.serve_forever).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.cluster
def test_processes_of_a_service_send_the_parts_of_a_trace(tmp_path: Path) -> None:
    with Collector() as collector:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with ShoalProcess(tmp_path / "data", "--shard-servers", "2", env=env) as shoal:
            client = QdrantClient(url=shoal.url, timeout=60)
            client.create_collection(
                "songs",
                models.VectorParams(size=4, distance=models.Distance.DOT),
                shard_number=2,
            )
            client.upsert("songs", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0, 4.0])])
            headers = {"traceparent": f"{PARENT}-01"}
            httpx.post(
                f"{shoal.url}{PATH}", json={"query": [1, 2, 3, 4]}, headers=headers, timeout=60
            ).raise_for_status()
            sleep(2)
            assert shoal.stop() == 0
    spans: dict[str, set[str]] = {}
    processes = set()
    for request in collector.requests:
        for resource in request.resource_spans:
            attributes = {one.key: one.value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    if span.trace_id.hex() == OURS:
                        service = attributes["service.name"].string_value
                        spans.setdefault(service, set()).add(span.name)
                        processes.add(attributes["process.pid"].int_value)
    assert spans["shoal-router"] == {ROUTE, "gather", "Search"}
    assert {"Search", "shard 0", "shard 1", "queue", "scan"} <= spans["shoal-shard-server"]
    assert len(processes) == 3
