"""Qdrant's gRPC protocol over the wire, through Qdrant's clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Thread
from time import sleep
from typing import Any
from urllib.parse import parse_qsl

import grpc
import numpy as np
import orjson
import pytest
import uvicorn
import uvloop
from grpc import StatusCode
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from qdrant_client import AsyncQdrantClient, QdrantClient, models
from qdrant_client import grpc as grpc_messages
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.models import QueryResponse
from starlette.types import Receive, Scope, Send

from router.grpc.server import reserved_port, serving
from tests.shoal_in_process import HOST, ShoalInProcess
from tests.test_differential import Differential
from tests.test_grpc_conversion import normal

DIMENSION = 4


# Against an application that writes down what it is asked


@dataclass
class Asked:
    method: str
    path: str
    parameters: dict[str, str]
    body: Any
    headers: dict[str, str]


@dataclass
class Scribe:
    """Answers every request with ``result``, or in the way that the collection's name says."""

    result: Any = None
    asked: list[Asked] = field(default_factory=list)
    came: Event = field(default_factory=Event)
    cancelled: Event = field(default_factory=Event)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await lifespan(receive, send)
            return
        body = b""
        while (message := await receive()).get("more_body"):
            body += message["body"]
        body += message["body"]
        self.asked.append(
            Asked(
                scope["method"],
                scope["path"],
                dict(parse_qsl(scope["query_string"].decode())),
                orjson.loads(body) if body else None,
                {name.decode(): value.decode() for name, value in scope["headers"]},
            )
        )
        self.came.set()
        name = scope["path"].removeprefix("/collections/").partition("/")[0]
        status = int(name) if name.isdecimal() else 200
        answer: dict[str, Any] = {"result": self.result, "status": "ok", "time": 0.5}
        if name == "slow":
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if status != 200:
            answer = {"status": {"error": f"é{status}" * 300}, "time": 0.5}
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"retry-after", b"3")],
        }
        await send(start)
        await send({"type": "http.response.body", "body": orjson.dumps(answer)})
        if name == "500":
            raise RuntimeError("after the answer")


async def lifespan(receive: Receive, send: Send) -> None:
    while (event := (await receive())["type"]) != "lifespan.shutdown":
        await send({"type": f"{event}.complete"})
    await send({"type": "lifespan.shutdown.complete"})


@contextmanager
def serves(app: Any) -> Iterator[tuple[str, int]]:
    """Serves ``app``: its URL, and its port for gRPC."""
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.create_server((HOST, 0)) as listening, reserved_port(HOST, 0) as port:

        async def serve() -> None:
            async with serving(app, HOST, port, drain_seconds=1):
                await server.serve([listening])

        thread = Thread(target=uvloop.run, args=(serve(),))
        thread.start()
        while not server.started:
            sleep(0.01)
        try:
            yield f"http://{HOST}:{listening.getsockname()[1]}", port
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Scribed:
    scribe: Scribe
    url: str
    grpc_port: int

    def client(self, **options: Any) -> QdrantClient:
        return QdrantClient(url=self.url, grpc_port=self.grpc_port, **options)


@pytest.fixture(scope="module")
def scribed() -> Iterator[Scribed]:
    scribe = Scribe()
    with serves(scribe) as (url, port):
        yield Scribed(scribe, url, port)


FILTER = models.Filter(must=[models.HasIdCondition(has_id=[1])])
POINT = models.PointStruct(id=1, vector=[1.0, 2.0], payload={"a": [1, {"b": None}]})
UPDATED = {"operation_id": 7, "status": "completed"}
HIT = {
    "id": 1,
    "version": 2,
    "score": 0.5,
    "payload": {"a": [1, 1.5, True, None, "x", {"b": {}}]},
    "vector": {"d": [1.0, 2.0], "m": [[1.0], [2.0]], "s": {"indices": [3], "values": [4.0]}},
    "order_value": 1.5,
}
RECORD = {key: HIT[key] for key in ("id", "payload", "vector")}
HITS = {"points": [HIT, HIT | {"id": "00000000-0000-0000-0000-000000000007", "order_value": 3}]}
SNAPSHOT = {"name": "s", "creation_time": "2024-01-01T00:00:00", "size": 5, "checksum": "c"}
STRONG = models.WriteOrdering.STRONG
MAJORITY = models.ReadConsistencyType.MAJORITY
DENSE = models.VectorParams(size=2, distance=models.Distance.DOT)

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any], Any]] = [
    ("get_collections", (), {}, {"collections": [{"name": "c"}]}),
    ("collection_exists", ("c",), {}, {"exists": True}),
    ("create_collection", ("c", DENSE), {"timeout": 5, "metadata": {"a": 1}}, True),
    ("update_collection", ("c",), {"hnsw_config": models.HnswConfigDiff(m=0)}, True),
    ("delete_collection", ("a b?{c}",), {"timeout": 5}, False),
    (
        "update_collection_aliases",
        (
            [
                models.CreateAliasOperation(
                    create_alias=models.CreateAlias(collection_name="c", alias_name="a")
                )
            ],
        ),
        {"timeout": 5},
        True,
    ),
    ("get_aliases", (), {}, {"aliases": [{"alias_name": "a", "collection_name": "c"}]}),
    ("get_collection_aliases", ("c",), {}, {"aliases": []}),
    ("create_shard_key", ("c", "k"), {"shards_number": 2}, True),
    ("delete_shard_key", ("c", 5), {}, True),
    (
        "cluster_collection_update",
        (
            "c",
            models.DropShardingKeyOperation(drop_sharding_key=models.DropShardingKey(shard_key=3)),
        ),
        {"timeout": 5},
        True,
    ),
    (
        "collection_cluster_info",
        ("c",),
        {},
        {
            "peer_id": 1,
            "shard_count": 1,
            "local_shards": [{"shard_id": 0, "points_count": 2, "state": "Active"}],
            "remote_shards": [],
            "shard_transfers": [],
            "resharding_operations": [],
        },
    ),
    ("upsert", ("c", [POINT]), {"wait": False, "ordering": STRONG, "timeout": 5}, UPDATED),
    ("upsert", ("c", [POINT]), {"ordering": models.WriteOrdering.WEAK}, UPDATED),
    ("upsert", ("c", [POINT]), {"update_filter": FILTER, "shard_key_selector": "k"}, UPDATED),
    ("delete", ("c", [1, 2]), {"shard_key_selector": [1, "k"]}, UPDATED),
    ("delete", ("c", FILTER), {}, UPDATED),
    ("update_vectors", ("c", [models.PointVectors(id=1, vector={"d": [1.0]})]), {}, UPDATED),
    ("delete_vectors", ("c", ["d"], [1]), {"ordering": STRONG}, UPDATED),
    ("set_payload", ("c", {"a": 1}, [1]), {"key": "k"}, UPDATED),
    ("overwrite_payload", ("c", {"a": 1}, FILTER), {}, UPDATED),
    ("delete_payload", ("c", ["a"], [1]), {}, UPDATED),
    ("clear_payload", ("c", [1]), {}, UPDATED),
    (
        "batch_update_points",
        (
            "c",
            [
                models.UpsertOperation(upsert=models.PointsList(points=[POINT])),
                models.ClearPayloadOperation(clear_payload=models.PointIdsList(points=[1])),
            ],
        ),
        {"ordering": STRONG},
        [UPDATED, UPDATED],
    ),
    ("create_payload_index", ("c", "f", models.PayloadSchemaType.UUID), {}, UPDATED),
    (
        "create_payload_index",
        ("c", "f", models.FloatIndexParams(type=models.FloatIndexType.FLOAT)),
        {},
        UPDATED,
    ),
    ("delete_payload_index", ("c", "a.b[]"), {"timeout": 5}, UPDATED),
    (
        "create_vector_name",
        (
            "c",
            "v",
            models.SparseVectorNameConfig(
                sparse=models.SparseVectorConfig(modifier=models.Modifier.IDF)
            ),
        ),
        {},
        UPDATED,
    ),
    ("delete_vector_name", ("c", "v"), {}, UPDATED),
    ("retrieve", ("c", [1]), {"consistency": MAJORITY, "timeout": 5}, [RECORD]),
    (
        "scroll",
        ("c",),
        {"scroll_filter": FILTER, "offset": 7, "order_by": "f", "consistency": 2},
        {"points": [RECORD | {"order_value": 3}], "next_page_offset": 8},
    ),
    ("scroll", ("c",), {}, {"points": [], "next_page_offset": None}),
    ("count", ("c", FILTER), {"exact": False}, {"count": 3}),
    (
        "facet",
        ("c", "f"),
        {"facet_filter": FILTER},
        {"hits": [{"value": value, "count": 2} for value in ("x", 5, True)]},
    ),
    ("query_points", ("c", [1.0]), {"with_vectors": ["d"], "timeout": 5}, HITS),
    (
        "query_batch_points",
        ("c", [models.QueryRequest(query=1, limit=3), models.QueryRequest(query=[1.0])]),
        {"timeout": 5},
        [HITS, {"points": []}],
    ),
    (
        "query_points_groups",
        ("c", "g", [1.0]),
        {"with_lookup": models.WithLookup(collection="o", with_vectors=True), "timeout": 5},
        {"groups": [{"id": id, "hits": [HIT], "lookup": RECORD} for id in ("x", 5, -5, 2**64 - 1)]},
    ),
    (
        "search_matrix_pairs",
        ("c", FILTER),
        {"using": "d"},
        {"pairs": [{"a": 1, "b": 2, "score": 0.5}]},
    ),
    (
        "search_matrix_offsets",
        ("c",),
        {"timeout": 5},
        {"offsets_row": [0], "offsets_col": [1], "scores": [0.5], "ids": [1, 2]},
    ),
    ("create_snapshot", ("c",), {}, SNAPSHOT),
    ("list_snapshots", ("c",), {}, [SNAPSHOT]),
    ("delete_snapshot", ("c", "s"), {}, True),
    ("create_full_snapshot", (), {}, SNAPSHOT),
    ("list_full_snapshots", (), {}, [SNAPSHOT]),
    ("delete_full_snapshot", ("s",), {}, True),
]


@pytest.mark.parametrize(("call", "args", "options", "result"), CALLS)
def test_a_call_is_the_request_that_rest_has_for_it(
    scribed: Scribed, call: str, args: tuple[Any, ...], options: dict[str, Any], result: Any
) -> None:
    scribed.scribe.result = result
    clients = [
        scribed.client(prefer_grpc=prefer, check_compatibility=False) for prefer in (True, False)
    ]
    answers = [getattr(client, call)(*args, **options) for client in clients]
    assert answers[0] == answers[1]
    ours, theirs = scribed.scribe.asked[-2:]
    if "snapshot" in call:
        theirs.parameters.pop("wait", None)  # By gRPC, one always waits.
    if not (theirs.body or theirs.method in ("GET", "DELETE")):
        theirs.body = {}
    assert (ours.method, ours.path) == (theirs.method, theirs.path)
    assert ours.parameters == theirs.parameters
    assert normal(ours.body) == normal(theirs.body)
    for client in clients:
        client.close()


def test_credentials_go_along(scribed: Scribed) -> None:
    scribed.scribe.result = {"collections": []}
    with pytest.warns(UserWarning, match="insecure connection"):
        client = scribed.client(prefer_grpc=True, api_key="secret", check_compatibility=False)
    client.get_collections()
    assert scribed.scribe.asked[-1].headers["api-key"] == "secret"
    client.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, StatusCode.INVALID_ARGUMENT),
        (401, StatusCode.UNAUTHENTICATED),
        (403, StatusCode.PERMISSION_DENIED),
        (404, StatusCode.NOT_FOUND),
        (405, StatusCode.UNIMPLEMENTED),
        (408, StatusCode.DEADLINE_EXCEEDED),
        (409, StatusCode.ALREADY_EXISTS),
        (413, StatusCode.INVALID_ARGUMENT),
        (422, StatusCode.INVALID_ARGUMENT),
        (418, StatusCode.INTERNAL),
        (500, StatusCode.INTERNAL),
        (503, StatusCode.UNAVAILABLE),
    ],
)
def test_errors_are_those_of_grpc(scribed: Scribed, status: int, code: StatusCode) -> None:
    client = scribed.client(prefer_grpc=True, check_compatibility=False)
    with pytest.raises(grpc.RpcError) as raised:
        client.get_collection(str(status))
    assert raised.value.code() is code
    details = raised.value.details() or ""
    expected = "Shoal does not have qdrant.Collections.Get" if status == 405 else f"é{status}" * 5
    assert details.startswith(expected)
    assert len(details) < 2_000
    client.close()


def test_who_comes_too_often_is_told_when_to_come_again(scribed: Scribed) -> None:
    client = scribed.client(prefer_grpc=True, check_compatibility=False)
    with pytest.raises(ResourceExhaustedResponse, match="é429") as raised:
        client.get_collection("429")
    assert raised.value.retry_after_s == 3
    client.close()


def test_a_call_that_is_over_its_deadline_is_cancelled(scribed: Scribed) -> None:
    scribed.scribe.cancelled.clear()
    client = scribed.client(prefer_grpc=True, timeout=1, check_compatibility=False)
    with pytest.raises(grpc.RpcError) as raised:
        client.get_collection("slow")
    assert raised.value.code() is StatusCode.DEADLINE_EXCEEDED
    assert scribed.scribe.cancelled.wait(5)
    client.close()


async def test_a_call_that_nobody_waits_for_is_cancelled(scribed: Scribed) -> None:
    scribed.scribe.cancelled.clear()
    scribed.scribe.came.clear()
    client = AsyncQdrantClient(
        url=scribed.url, grpc_port=scribed.grpc_port, prefer_grpc=True, check_compatibility=False
    )
    asking = asyncio.create_task(client.get_collection("slow"))
    assert await asyncio.to_thread(scribed.scribe.came.wait, 5)
    assert not scribed.scribe.cancelled.is_set()
    asking.cancel()
    assert await asyncio.to_thread(scribed.scribe.cancelled.wait, 5)
    await client.close()


# Against Shoal


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path_factory.mktemp("shoal"), default_shards=3) as running:
        yield running


@pytest.fixture(scope="module")
def client(shoal: ShoalInProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, grpc_port=shoal.grpc_port, prefer_grpc=True, timeout=30)
    yield client
    client.close()


COSINE = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
IDS: list[Any] = [*range(20), 2**64 - 1, "00000000-0000-0000-0000-000000000007"]


def points() -> list[models.PointStruct]:
    rows = np.random.default_rng(0).normal(size=(len(IDS), DIMENSION)).astype(np.float32)
    return [
        models.PointStruct(id=id, vector=row.tolist(), payload={"n": n, "text": f"word {n % 3}"})
        for n, (id, row) in enumerate(zip(IDS, rows, strict=True))
    ]


def test_a_collection_lives_and_ends(client: QdrantClient) -> None:
    assert client.info().title == "shoal"
    assert client.create_collection("life", COSINE, shard_number=2, metadata={"a": [1, None]})
    assert client.collection_exists("life")
    assert "life" in {one.name for one in client.get_collections().collections}
    client.update_collection("life", hnsw_config=models.HnswConfigDiff(m=7))
    client.create_payload_index("life", "n", models.PayloadSchemaType.INTEGER)
    client.upsert("life", points(), wait=True)
    info = client.get_collection("life")
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == len(IDS)
    assert info.config.params.shard_number == 2
    assert info.config.params.vectors == COSINE
    assert info.config.hnsw_config.m == 7
    assert info.config.metadata == {"a": [1, None]}
    assert info.payload_schema["n"].data_type == models.PayloadSchemaType.INTEGER
    assert info.payload_schema["n"].points == len(IDS)
    client.delete_collection("life")
    assert not client.collection_exists("life")


def test_points_are_written_and_read(client: QdrantClient) -> None:
    client.create_collection("points", COSINE)
    given = points()
    for ordering in (None, models.WriteOrdering.STRONG):
        result = client.upsert("points", given, wait=True, ordering=ordering)
        assert result.status == models.UpdateStatus.COMPLETED
    filter = models.Filter(
        must=[models.FieldCondition(key="n", range=models.Range(gte=5, lt=15.5))],
        must_not=[models.FieldCondition(key="text", match=models.MatchText(text="1"))],
    )
    expected = {point.id for point in given if point.payload and 5 <= point.payload["n"] < 16}
    expected -= {point.id for point in given if point.payload and point.payload["n"] % 3 == 1}
    found, offset = client.scroll("points", filter, limit=5)
    rest, end = client.scroll("points", filter, limit=50, offset=offset)
    assert {record.id for record in found + rest} == expected
    assert end is None
    assert client.count("points", filter).count == len(expected)
    (record,) = client.retrieve("points", [IDS[-1]], with_payload=["n"], with_vectors=True)
    assert record.payload == {"n": len(IDS) - 1}
    unit = np.array(given[-1].vector) / np.linalg.norm(np.array(given[-1].vector))
    assert record.vector == pytest.approx(unit.tolist(), abs=1e-6)
    client.set_payload("points", {"deep": {"er": 1.5}}, [3], key="new", wait=True)
    client.delete_payload("points", ["text"], models.Filter(must=[filter]), wait=True)
    client.overwrite_payload("points", {"all": None}, [1], wait=True)
    client.clear_payload("points", [2], wait=True)
    payloads = {one.id: one.payload for one in client.retrieve("points", [1, 2, 3, 5])}
    assert payloads == {
        1: {"all": None},
        2: {},
        3: {"n": 3, "text": "word 0", "new": {"deep": {"er": 1.5}}},
        5: {"n": 5},
    }
    client.delete("points", [1, IDS[-1]], wait=True)
    client.delete("points", filter, wait=True)
    left = {record.id for record in client.scroll("points", limit=50)[0]}
    assert left == set(IDS) - expected - {1, IDS[-1]}


def test_queries_find_the_nearest(client: QdrantClient) -> None:
    client.create_collection("queries", COSINE)
    given = points()
    client.upsert("queries", given, wait=True)
    rows = np.array([point.vector for point in given])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    query = np.ones(DIMENSION) / np.sqrt(DIMENSION)
    scores = rows @ query
    nearest = [IDS[row] for row in np.argsort(-scores)]
    found = client.query_points("queries", query.tolist(), limit=5, with_vectors=True).points
    assert [hit.id for hit in found] == nearest[:5]
    assert [hit.score for hit in found] == pytest.approx(sorted(scores)[::-1][:5], abs=1e-6)
    assert found[0].payload == given[IDS.index(nearest[0])].payload
    assert found[0].vector == pytest.approx(rows[IDS.index(nearest[0])].tolist(), abs=1e-6)
    shapes = [
        models.QueryRequest(query=query.tolist(), limit=2, offset=1),
        models.QueryRequest(query=nearest[0], limit=1, with_payload=True),
    ]
    first, second = client.query_batch_points("queries", shapes)
    assert [hit.id for hit in first.points] == nearest[1:3]
    assert first.points[0].payload is None
    assert second.points[0].id != nearest[0]
    assert second.points[0].payload is not None


def test_searches_from_before_there_were_queries_find_the_same(client: QdrantClient) -> None:
    client.create_collection("searches", COSINE)
    client.upsert("searches", points(), wait=True)
    stub = client.grpc_points
    message = grpc_messages.SearchPoints(
        collection_name="searches", vector=[1.0] * DIMENSION, limit=3
    )
    (found,) = stub.SearchBatch(
        grpc_messages.SearchBatchPoints(collection_name="searches", search_points=[message])
    ).result
    expected = client.query_points("searches", [1.0] * DIMENSION, limit=3, with_payload=False)
    assert list(stub.Search(message).result) == list(found.result)
    assert [hit.score for hit in found.result] == [hit.score for hit in expected.points]


def test_errors_say_what_is_wrong(client: QdrantClient) -> None:
    client.create_collection("errors", COSINE)
    cases: list[tuple[Callable[[], Any], StatusCode, str]] = [
        (
            lambda: client.get_collection("missing"),
            StatusCode.NOT_FOUND,
            "Collection `missing` doesn't exist!",
        ),
        (
            lambda: client.create_collection("errors", COSINE),
            StatusCode.ALREADY_EXISTS,
            "Collection `errors` already exists!",
        ),
        (
            lambda: client.query_points("errors", [1.0]),
            StatusCode.INVALID_ARGUMENT,
            "expected dim: 4, got 1",
        ),
        (
            lambda: client.query_points("errors", [1.0] * DIMENSION, limit=10**6),
            StatusCode.INVALID_ARGUMENT,
            "limit: expected",
        ),
        (
            lambda: client.query_points("errors", 5),
            StatusCode.NOT_FOUND,
            "No point with id 5 found",
        ),
        (
            lambda: client.delete_collection("errors/points/1"),
            StatusCode.INVALID_ARGUMENT,
            "cannot contain '/'",
        ),
        (
            lambda: client.create_shard_key("errors", "k"),
            StatusCode.UNIMPLEMENTED,
            "Shoal does not have qdrant.Collections.CreateShardKey",
        ),
        (
            lambda: client.list_full_snapshots(),
            StatusCode.UNIMPLEMENTED,
            "Shoal does not have qdrant.Snapshots.ListFull",
        ),
    ]
    for call, code, message in cases:
        with pytest.raises(grpc.RpcError) as raised:
            call()
        assert raised.value.code() is code
        assert message in (raised.value.details() or "")


async def test_asynchronous_clients(shoal: ShoalInProcess) -> None:
    client = AsyncQdrantClient(
        url=shoal.url, grpc_port=shoal.grpc_port, prefer_grpc=True, timeout=30
    )
    await client.create_collection("async", COSINE)
    await client.upsert("async", points(), wait=True)
    vectors: list[Any] = [point.vector for point in points()]
    answers = await asyncio.gather(
        *(client.query_points("async", vector, limit=1) for vector in vectors)
    )
    assert [answer.points[0].id for answer in answers] == IDS
    await client.close()


def test_probes_are_told_what_is_set() -> None:
    async def check() -> None:
        with reserved_port(HOST, 0) as port:
            async with (
                serving(Scribe(), HOST, port, drain_seconds=1) as wellness,
                grpc.aio.insecure_channel(f"{HOST}:{port}") as channel,
            ):
                stub = health_pb2_grpc.HealthStub(channel)
                for status in ("NOT_SERVING", "SERVING"):
                    await wellness.set(
                        "", health_pb2.HealthCheckResponse.ServingStatus.Value(status)
                    )
                    answer = await stub.Check(health_pb2.HealthCheckRequest())
                    assert (
                        health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status) == status
                    )

    asyncio.run(check())


def test_calls_under_way_end_before_the_server_does() -> None:
    came, leave = asyncio.Event(), asyncio.Event()

    async def answer_late(scope: Scope, receive: Receive, send: Send) -> None:
        came.set()
        await leave.wait()
        await Scribe(result={"exists": True})(scope, receive, send)

    async def check() -> None:
        with reserved_port(HOST, 0) as port:
            client = AsyncQdrantClient(
                host=HOST, grpc_port=port, prefer_grpc=True, check_compatibility=False
            )
            async with serving(answer_late, HOST, port, drain_seconds=30):
                call = asyncio.create_task(client.collection_exists("c"))
                await came.wait()
                asyncio.get_running_loop().call_later(0.2, leave.set)
            assert await call
            with pytest.raises(grpc.RpcError):
                await client.collection_exists("c")
            await client.close()

    asyncio.run(check())


def test_a_port_is_shared_by_its_service_only() -> None:
    with (
        reserved_port(HOST, 0) as port,
        pytest.raises(OSError, match="cannot listen on"),
        reserved_port(HOST, port),
    ):
        pass


class AsByGrpc:
    """A client whose payloads are those that go by gRPC.

    Their integers have 64 bits and a sign, and an empty one that comes back is like none.
    """

    def __init__(self, client: QdrantClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._client, name)

        def called(*args: Any, **options: Any) -> Any:
            if name in ("upsert", "set_payload", "overwrite_payload"):
                args = tuple(map(held, args))
            answer = call(*args, **options)
            forget_empty_payloads(answer)
            return answer

        return called if callable(call) else call


def held(value: Any) -> Any:
    match value:
        case int() if value >= 2**63 and not isinstance(value, bool):
            return value - 2**63
        case list():
            return [held(one) for one in value]
        case dict():
            return {key: held(one) for key, one in value.items()}
        case models.PointStruct():
            return value.model_copy(update={"payload": held(value.payload)})
        case models.Batch():
            return value.model_copy(update={"payloads": held(value.payloads)})
    return value


def forget_empty_payloads(answer: Any) -> None:
    if isinstance(answer, list | tuple):
        for one in answer:
            forget_empty_payloads(one)
    elif isinstance(answer, QueryResponse):
        forget_empty_payloads(answer.points)
    elif isinstance(answer, models.Record | models.ScoredPoint) and not answer.payload:
        answer.payload = None


class DifferentialByGrpc(Differential):
    def __init__(self) -> None:
        super().__init__()
        self.oracle: Any = AsByGrpc(self.oracle)
        self.both: Any = (AsByGrpc(self.shoal), self.oracle)


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
def test_same_answers_as_the_oracle(client: QdrantClient) -> None:
    run_state_machine_as_test(
        type(
            "Machine", (DifferentialByGrpc,), {"shoal": client, "distance": models.Distance.COSINE}
        ),
        settings=settings(
            max_examples=8,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
