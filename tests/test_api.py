"""The HTTP API as its users meet it: what it takes, what it refuses, and how it says so."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import numpy as np
import orjson
import pytest
from fastapi import FastAPI
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from router import errors
from router.api import wire
from router.api.convert import parse_id, parse_vectors
from router.api.selectors import Selector
from router.errors import Malformed
from shard.errors import (
    AlreadyExists,
    Fenced,
    InvalidInput,
    NotFound,
    Overloaded,
    ShoalError,
    Unavailable,
)
from shard.model import UNNAMED, Distance, ShardConfig
from tests.shoal_in_process import ShoalInProcess

DIMENSION = 4
MAX_BODY = 1_000_000
VECTOR = [1.0, 2.0, 3.0, 4.0]
PARAMS = {"vectors": {"size": DIMENSION, "distance": "Euclid"}}


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    directory = tmp_path_factory.mktemp("shoal")
    with ShoalInProcess(directory, default_shards=2, max_body_bytes=MAX_BODY) as running:
        yield running


@pytest.fixture(scope="module")
def http(shoal: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shoal.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def client(shoal: ShoalInProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, timeout=30)
    yield client
    client.close()


@pytest.fixture(scope="module")
def collection(http: httpx.Client) -> str:
    """A collection of three points that no test changes."""
    ok(http.put("/collections/standing", json=PARAMS))
    points: list[dict[str, Any]] = [
        {"id": number, "vector": [number, 0, 0, 0], "payload": {"n": number, "deep": {"a": [1]}}}
        for number in (1, 2)
    ]
    points.append({"id": str(UUID(int=7)), "vector": VECTOR})
    ok(http.put("/collections/standing/points?wait=true", json={"points": points}))
    return "standing"


@pytest.fixture
def scratch(http: httpx.Client) -> Iterator[str]:
    """A new collection."""
    ok(http.put("/collections/scratch", json=PARAMS))
    yield "scratch"
    http.delete("/collections/scratch")


def ok(response: httpx.Response, type: Any = Any) -> Any:
    """The result of an answer that is exactly as documented."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert body.keys() == {"result", "status", "time"}
    assert body["status"] == "ok"
    assert 0 <= body["time"] < 60
    msgspec.convert(body["result"], type)
    return body["result"]


def refused(response: httpx.Response, status: int) -> str:
    """The message of an error, which must be in Qdrant's form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    return msgspec.json.decode(response.content, type=wire.Error).status.error


def named_points(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    return {"points": [{"id": id, "vector": vector} for id, vector in pairs]}


CREATE_REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({}, 400, "vectors: expected parameters of one at least"),
    ({"vectors": {"distance": "Dot"}}, 400, "vectors: object missing required field `size`"),
    ({"vectors": {"size": 4}}, 400, "vectors: object missing required field `distance`"),
    ({"vectors": {"size": 0, "distance": "Dot"}}, 422, "vectors.size"),
    ({"vectors": {"size": 65_537, "distance": "Dot"}}, 422, "vectors.size"),
    ({"vectors": {"size": "4", "distance": "Dot"}}, 400, "vectors.size: expected `int`"),
    ({"vectors": {"size": 4, "distance": "Hamming"}}, 400, '"Cosine"` or `"Dot"'),
    ({"vectors": {"size": 4, "distance": "Dot", "datatype": "uint8"}}, 400, "vectors.datatype"),
    (
        {"vectors": {"size": 4, "distance": "Dot", "multivector_config": {}}},
        400,
        "vectors.multivector_config: object missing required field `comparator`",
    ),
    ({"vectors": {"image": {"size": 0, "distance": "Dot"}}}, 422, "vectors.image.size"),
    ({"vectors": {"image": 4}}, 400, "vectors.image: expected `object`, got `int`"),
    (
        {"vectors": {str(number): PARAMS["vectors"] for number in range(65)}},
        400,
        "vectors: expected at most 64 names, got 65",
    ),
    ({"vectors": {"n" * 256: PARAMS["vectors"]}}, 400, "vectors: expected names of at most 255"),
    ({**PARAMS, "sparse_vectors": {"": {}}}, 400, "sparse_vectors: '' is the name of dense"),
    ({**PARAMS, "sparse_vectors": {"text": {"modifier": "x"}}}, 400, "].modifier: 'x' is not supp"),
    ({**PARAMS, "replication_factor": 2}, 400, "replication_factor: 2 is not supported"),
    ({**PARAMS, "write_consistency_factor": 2}, 400, "write_consistency_factor"),
    ({**PARAMS, "sharding_method": "custom"}, 400, "sharding_method"),
    ({**PARAMS, "shard_number": 0}, 422, "shard_number"),
    ({**PARAMS, "shard_number": 100_000}, 422, "shard_number"),
    ({**PARAMS, "recall_target": 1.5}, 422, "recall_target"),
    ({**PARAMS, "hnsw_config": {"m": "many"}}, 400, "hnsw_config.m"),
    ({**PARAMS, "optimizers_config": {"indexing": 1}}, 400, "optimizers_config.indexing: unknown"),
    ({**PARAMS, "strict_mode_config": {"enabled": True}}, 400, "strict_mode_config.enabled"),
    ({**PARAMS, "quantization_config": {}}, 400, "quantization_config: expected one of"),
    ({**PARAMS, "metadata": {"n": 2**64}}, 400, "metadata"),
    ({**PARAMS, "shards": 2}, 400, "shards: unknown or unsupported field"),
]


@pytest.mark.parametrize(("body", "status", "message"), CREATE_REFUSED)
def test_create_refuses(
    http: httpx.Client, body: dict[str, Any], status: int, message: str
) -> None:
    assert message in refused(http.put("/collections/refused", json=body), status)
    assert ok(http.get("/collections/refused/exists"), wire.Exists) == {"exists": False}


POINTS_REFUSED: list[tuple[str, str, dict[str, Any], int, str]] = [
    ("PUT", "", {}, 400, "expected one of `points` and `batch`"),
    ("PUT", "", {"points": []}, 400, "Empty update request"),
    ("PUT", "", named_points((1, [1, 2, 3])), 400, "Wrong input: Vector dimension error: "
     "expected dim: 4, got 3"),
    ("PUT", "", named_points((1, VECTOR), (2, [])), 400, "expected dim: 4, got 0"),
    ("PUT", "", named_points((1, [1, 2, 3, 1e39])), 400, "out of range for float32"),
    ("PUT", "", named_points((1, [1, 2, 3, "4"])), 400, "points[0].vector[3]: expected `float | "
     "array`, got `str`"),
    ("PUT", "", named_points((1, [1, 2, 3, None])), 400, "points[0].vector[3]"),
    ("PUT", "", named_points((1, {"image": VECTOR})), 400,
     "Wrong input: Not existing vector name error: image"),
    ("PUT", "", named_points((1, [VECTOR])), 400, "vector: expected a list of 4 numbers"),
    ("PUT", "", named_points((1, VECTOR), (-1, VECTOR)), 400, "points[1].id: value -1"),
    ("PUT", "", named_points((2**64, VECTOR)), 400, "points[0].id"),
    ("PUT", "", named_points(("7", VECTOR)), 400, "valid values are either an unsigned integer"),
    ("PUT", "", named_points((1.5, VECTOR)), 400, "points[0].id: expected `int | str`"),
    ("PUT", "", {"points": [{"id": 1}]}, 400, "missing required field `vector`"),
    ("PUT", "", {"points": [{"id": 1, "vector": VECTOR, "payload": [1]}]}, 400,
     "points[0].payload: expected `object | null`"),
    ("PUT", "", {"points": [{"id": 1, "vector": VECTOR, "payload": {"n": 2**64}}]}, 400,
     "points[0].payload"),
    ("PUT", "", {"batch": {"ids": [1, 2], "vectors": [VECTOR]}}, 400, "as many as ids, 2, got 1"),
    ("PUT", "", {"batch": {"ids": [1], "vectors": [VECTOR], "payloads": []}}, 400,
     "batch.payloads"),
    ("PUT", "", {"batch": {"ids": [1], "vectors": {"image": [VECTOR]}}}, 400,
     "Not existing vector name error: image"),
    ("PUT", "", {"batch": {"ids": [1], "vectors": {"": [VECTOR, VECTOR]}}}, 400, "batch.vectors"),
    ("PUT", "", {**named_points((1, VECTOR)), "shard_key": "a"}, 400, "shard_key: not supported"),
    ("PUT", "", {**named_points((1, VECTOR)), "update_mode": "never"}, 400,
     "update_mode: 'never' is not supported"),
    ("POST", "/delete", {"filter": {"key": 1}}, 400, "filter.key: unknown or unsupported field"),
    ("POST", "/delete", {"filter": {}, "points": [1]}, 400, "one of `points` and `filter`"),
    ("POST", "/delete", {"points": ["x"]}, 400, "points[0]: value 'x' is not a valid point ID"),
    ("POST", "/delete", {}, 400, "one of `points` and `filter`"),
    ("POST", "", {"ids": [1], "with_vector": ["image"]}, 400,
     "Not existing vector name error: image"),
    ("POST", "", {"ids": [1], "with_payload": {"include": ["a"], "exclude": ["b"]}}, 400,
     "with_payload"),
    ("POST", "", {"ids": [1], "with_payload": ["a..b"]}, 400, "with_payload: 'a..b'"),
    ("POST", "/scroll", {"limit": 0}, 422, "limit: expected `int` >= 1"),
    ("POST", "/scroll", {"limit": 10**9}, 422, "limit"),
    ("POST", "/scroll", {"order_by": "n", "offset": 1}, 400, "cannot be used with `order_by`"),
    ("POST", "/scroll", {"filter": {"must": [{"key": "n"}]}}, 400, "filter.must[0]: key make no"),
    ("POST", "/count", {"filter": {"must_not": {"key": "n"}}}, 400, "filter.must_not: key make no"),
    ("POST", "/count", {"filter": {"must": {"key": "n", "match": {"value": 1.5}}}}, 400,
     "filter.must.match.value"),
    ("POST", "/query", {"filter": {"min_should": {"conditions": [], "min_count": 0}}}, 422,
     "filter.min_should.min_count"),
    ("POST", "/query/batch", {"searches": [{"filter": {"must": {"has_id": ["x"]}}}]}, 400,
     "searches[0].filter.must.has_id[0]"),
    ("POST", "/query", {"query": [1, 2, 3]}, 400, "expected dim: 4, got 3"),
    ("POST", "/query", {"query": [1, 2, 3, 1e300]}, 400, "out of range for float32"),
    ("POST", "/query", {"query": 99}, 404, "Not found: No point with id 99 found"),
    ("POST", "/query", {"query": "x"}, 400, "query: value 'x'"),
    ("POST", "/query", {"query": {"recommend": {"positive": []}}}, 400,
     "recommend.positive: expected at least one"),
    ("POST", "/query", {"query": {"recommend": {"positive": [99]}}}, 404, "No point with id 99"),
    ("POST", "/query", {"query": {"fusion": "rrf"}}, 400, "query: expected a `prefetch`"),
    ("POST", "/query", {"prefetch": [{"query": [1]}], "query": VECTOR}, 400, "got 1"),
    ("POST", "/query", {"query": {"nearest": VECTOR, "mmr": {"diversity": 2}}}, 422,
     "query.mmr.diversity"),
    ("POST", "/query", {"query": {"indices": [1], "values": [1]}}, 400,
     "vector: expected a list of 4 numbers"),
    ("POST", "/query", {"query": VECTOR, "limit": 0}, 422, "limit"),
    ("POST", "/query", {"query": VECTOR, "limit": -1}, 422, "limit"),
    ("POST", "/query", {"query": VECTOR, "offset": -1}, 422, "offset"),
    ("POST", "/query", {"query": VECTOR, "limit": 99_999, "offset": 2}, 422, "limit"),
    ("POST", "/query", {"query": VECTOR, "using": "image"}, 400,
     "Not existing vector name error: image"),
    ("POST", "/query", {"query": VECTOR, "score_threshold": 1e39}, 422, "score_threshold"),
    ("POST", "/query", {"query": VECTOR, "params": {"nprobe": 0}}, 422, "params.nprobe"),
    ("POST", "/query", {"query": VECTOR, "params": {"indexed_only": True}}, 400, "indexed_only"),
    ("POST", "/query", {"query": VECTOR, "params": {"quantization": {"oversampling": 0.5}}}, 422,
     "params.quantization.oversampling"),
    ("POST", "/query", {"query": 1, "lookup_from": {"collection": "a"}}, 404,
     "Collection `a` doesn't exist!"),
    ("POST", "/query/batch", {"searches": [{"query": VECTOR}, {"query": [1]}]}, 400, "got 1"),
    ("POST", "/query/batch", {"searches": [{"limit": 0}]}, 422, "searches[0].limit"),
    ("POST", "/query/batch", {"searches": [{"query": VECTOR, "limit": 100_000}] * 11}, 422,
     "searches: expected at most 1000000 hits"),
    ("POST", "/search", {"vector": VECTOR}, 400, "missing required field `limit`"),
    ("POST", "/search", {"vector": {"name": "a", "vector": VECTOR}, "limit": 1}, 400,
     "Not existing vector name error: a"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "message"), POINTS_REFUSED)
def test_points_refuse(
    http: httpx.Client,
    collection: str,
    method: str,
    path: str,
    body: dict[str, Any],
    status: int,
    message: str,
) -> None:
    response = http.request(method, f"/collections/{collection}/points{path}", json=body)
    assert message in refused(response, status)
    assert ok(http.post(f"/collections/{collection}/points/count", json={}))["count"] == 3


def test_stored_vectors_of_another_form_are_refused(http: httpx.Client, collection: str) -> None:
    ok(http.put("/collections/forms", json={"vectors": {"size": 3, "distance": "Dot"},
                                            "sparse_vectors": {"words": {}}}))  # fmt: skip
    vectors = {"": [1, 2, 3], "words": {"indices": [1], "values": [2]}}
    ok(http.put("/collections/forms/points?wait=true", json=named_points((1, vectors), (2, {}))))
    recommend = {"positive": [1, VECTOR]}
    for query in (1, {"recommend": recommend}, {"context": [{"positive": 1, "negative": VECTOR}]}):
        for name, form in (("", "3,"), ("words", "")):
            body = {"query": query, "lookup_from": {"collection": "forms", "vector": name}}
            response = http.post(f"/collections/{collection}/points/query", json=body)
            assert f"vectors '': expected 4, got ({form})" in refused(response, 400)
    body = {"query": 2, "lookup_from": {"collection": "forms"}}
    response = http.post(f"/collections/{collection}/points/query", json=body)
    assert "No point with id 2 found" in refused(response, 404)
    ok(http.delete("/collections/forms"))


@pytest.mark.parametrize("number", [1e39, 10**39, 10**400])
def test_numbers_out_of_range_are_refused_in_vectors_of_every_kind(
    http: httpx.Client, number: float
) -> None:
    several = {"size": 2, "distance": "Dot", "multivector_config": {"comparator": "max_sim"}}
    params = {"vectors": {"several": several, "one": {"size": 2, "distance": "Dot"}}}
    ok(http.put("/collections/kinds", json={**params, "sparse_vectors": {"words": {}}}))
    for vector in (
        {"several": [[1, number]]},
        {"one": [1, number]},
        {"words": {"indices": [1], "values": [number]}},
    ):
        ((using, query),) = vector.items()
        body = named_points((1, vector))
        response = http.put("/collections/kinds/points?wait=true", json=body)
        assert "out of range" in refused(response, 400)
        body = {"query": query, "using": using}
        response = http.post("/collections/kinds/points/query", json=body)
        assert "out of range" in refused(response, 400)
    ok(http.delete("/collections/kinds"))


WHOLE_BODIES: list[tuple[str, str, dict[str, Any]]] = [
    ("PUT", "/odd/points", {"points": [{"id": 1, "vector": VECTOR, "payload": {"a": [1]}}]}),
    ("PUT", "/odd/points", {"batch": {"ids": [1], "vectors": [VECTOR], "payloads": [{}]}}),
    ("POST", "/odd/points", {"ids": [1], "with_payload": {"include": ["a"]}, "with_vector": []}),
    ("POST", "/odd/points/delete", {"points": [9]}),
    ("POST", "/odd/points/scroll", {"offset": 1, "limit": 2, "filter": {"must": []}}),
    (
        "POST",
        "/odd/points/query",
        {
            "query": {"nearest": VECTOR},
            "limit": 3,
            "score_threshold": 0.5,
            "params": {"exact": True, "nprobe": 3, "quantization": {"oversampling": 2.0}},
        },
    ),
    ("POST", "/odd/points/search/batch", {"searches": [{"vector": VECTOR, "limit": 2}]}),
    (
        "PATCH",
        "/odd",
        {
            "recall_target": 0.9,
            "vectors": {"": {"on_disk": True}},
            "optimizers_config": {"indexing_threshold": 10},
            "quantization_config": {"scalar": {"type": "int8"}},
            "metadata": {"a": 1},
        },
    ),
]
ODD: list[Any] = [
    *(None, True, 0, -1, 1.5, 1e300, 2**63, 2**64, 10**400, "", "x", "\0", "x" * 5000),
    *([], {}, [[]], [None], {"a": 1}, {"": None}, ["x"], VECTOR),
]


def with_one_value_replaced(body: Any, replacement: Any) -> Iterator[Any]:
    yield replacement
    if isinstance(body, dict):
        for key, value in body.items():
            for one in with_one_value_replaced(value, replacement):
                yield {**body, key: one}
    elif isinstance(body, list) and body:
        for one in with_one_value_replaced(body[0], replacement):
            yield [one, *body[1:]]


def test_no_odd_value_anywhere_makes_it_fail(http: httpx.Client) -> None:
    ok(http.put("/collections/odd", json=PARAMS))
    ok(http.put("/collections/odd/points?wait=true", json=named_points((1, VECTOR))))
    taken = 0
    for method, path, body in WHOLE_BODIES:
        for odd in ODD:
            for changed in with_one_value_replaced(body, odd):
                response = http.request(method, f"/collections{path}", json=changed)
                assert response.status_code in (200, 400, 404, 422), (changed, response.text)
                assert len(response.content) < 2_000
                taken += response.status_code == 200
    assert taken > 100
    ok(http.get("/collections/odd"), wire.CollectionInfo)
    ok(http.delete("/collections/odd"))


def nested(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


POINT = b'{"points":[{"id":1,"vector":[1,2,3,4],"payload":%s}]}'
MALFORMED: list[tuple[bytes, str]] = [
    (b"", "truncated"),
    (b"{", "truncated"),
    (b"[]", "body: expected `object`, got `array`"),
    (b'"x"', "body: expected `object`"),
    (b'{"points":[{"id":1,"vector":[1,2,3,NaN]}]}', "malformed"),
    (b'{"points":[{"id":1,"vector":[1,2,3,1e999]}]}', "points[0].vector[3]: number out of range"),
    (POINT % b'{"a":"\xff"}', "UTF-8"),
    (POINT % b'{"\xc3\x28":1}', "UTF-8"),
    (POINT % b'{"a":"\\ud800"}', "body"),
    (POINT % b'{"a":1e999}', "points[0].payload"),
    (POINT % b'{"a":Infinity}', "malformed"),
    (POINT % nested(300), "points[0].payload"),
    (POINT % nested(100_000), "nested too deeply"),
    (POINT % b"{} trailing", "malformed"),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED, ids=range(len(MALFORMED)))
def test_malformed_bodies(http: httpx.Client, collection: str, body: bytes, message: str) -> None:
    response = http.put(f"/collections/{collection}/points", content=body)
    error = refused(response, 400)
    assert error.startswith("Format error in JSON body: ")
    assert message in error


def test_deepest_payload_is_read_back_whole_and_in_part(http: httpx.Client, scratch: str) -> None:
    payload = msgspec.json.decode(nested(250))
    point = {"id": 1, "vector": VECTOR, "payload": payload}
    ok(http.put(f"/collections/{scratch}/points?wait=true", json={"points": [point]}))
    assert ok(http.get(f"/collections/{scratch}/points/1"), wire.Record)["payload"] == payload
    part = {"ids": [1], "with_payload": ["a.a"]}
    (record,) = ok(http.post(f"/collections/{scratch}/points", json=part), list[wire.Record])
    assert record["payload"] == payload


def test_body_over_the_limit(http: httpx.Client, collection: str) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(MAX_BODY // 1000 + 2):
            yield b" " * 1000

    path = f"/collections/{collection}/points"
    whole = http.put(path, content=b" " * (MAX_BODY + 1))
    assert f"limit: {MAX_BODY} bytes" in refused(whole, 413)
    assert f"limit: {MAX_BODY} bytes" in refused(http.put(path, content=chunks()), 413)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/collections/none", 404, "Not found: Collection `none` doesn't exist!"),
        ("PATCH", "/collections/none", 404, "Collection `none` doesn't exist!"),
        ("POST", "/collections/none/points/count", 404, "Collection `none` doesn't exist!"),
        ("GET", "/collections/none/points/1", 404, "Collection `none` doesn't exist!"),
        ("GET", "/collections/standing/points/99", 404, "Point with id 99"),
        ("GET", "/collections/standing/points/x", 400, "'x' is not a valid point ID"),
        ("GET", "/nowhere", 404, "no operation GET /nowhere"),
        ("POST", "/collections/standing/points/1", 405, "no operation POST"),
        ("POST", "/collections/standing/faces", 404, "no operation POST"),
        ("DELETE", "/collections", 405, "no operation DELETE /collections"),
        ("PUT", "/collections/standing/points?wait=maybe", 422, "query parameters: [wait"),
        ("PUT", "/collections/standing/points?ordering=none", 422, "[ordering"),
        ("POST", "/collections/standing/points/query?timeout=0", 422, "[timeout"),
        ("PUT", "/collections/a%3Ab", 422, "collection_name: cannot contain ':'"),
        ("PUT", "/collections/" + "n" * 256, 422, "at most 255 characters"),
    ],
)
def test_paths_and_parameters(
    http: httpx.Client, collection: str, method: str, path: str, status: int, message: str
) -> None:
    assert message in refused(http.request(method, path, content=b"{}"), status)


def test_service(http: httpx.Client) -> None:
    version = msgspec.json.decode(http.get("/").content, type=wire.VersionInfo)
    assert version.title == "shoal"
    for path in ("/healthz", "/livez", "/readyz"):
        assert http.get(path).status_code == 200


def test_official_client_finds_the_version_compatible(shoal: ShoalInProcess) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client = QdrantClient(url=shoal.url, timeout=30)
        client._client._check_compatibility(shoal.url, {}, None, 30)  # type: ignore[attr-defined]
        client.close()


def test_collection_settings_are_kept_and_shown(client: QdrantClient, http: httpx.Client) -> None:
    client.create_collection(
        "settings",
        vectors_config=models.VectorParams(
            size=8,
            distance=models.Distance.DOT,
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=8),
        ),
        shard_number=1,
        replication_factor=1,
        on_disk_payload=False,
        hnsw_config=models.HnswConfigDiff(ef_construct=50),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=4000),
        wal_config=models.WalConfigDiff(wal_capacity_mb=64),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.9)
        ),
        metadata={"owner": "tests"},
    )
    config = client.get_collection("settings").config
    assert config.params.vectors == models.VectorParams(
        size=8, distance=models.Distance.DOT, on_disk=True, hnsw_config=models.HnswConfigDiff(m=8)
    )
    assert config.params.shard_number == 1
    assert config.params.on_disk_payload is False
    assert (config.hnsw_config.m, config.hnsw_config.ef_construct) == (16, 50)
    assert config.optimizer_config.indexing_threshold == 4000
    assert config.optimizer_config.deleted_threshold == 0.2
    assert config.wal_config is not None
    assert config.wal_config.wal_capacity_mb == 64
    assert config.quantization_config is not None
    assert config.metadata == {"owner": "tests"}

    client.update_collection(
        "settings",
        hnsw_config=models.HnswConfigDiff(m=32),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=0),
        quantization_config=models.Disabled.DISABLED,
        metadata={"stage": "test"},
    )
    ok(http.patch("/collections/settings", json={"recall_target": 0.99}), bool)
    info = ok(http.get("/collections/settings"), wire.CollectionInfo)
    assert info["config"]["hnsw_config"]["m"] == 32
    assert info["config"]["hnsw_config"]["ef_construct"] == 50
    assert info["config"]["optimizer_config"]["indexing_threshold"] == 0
    assert info["config"]["quantization_config"] is None
    assert info["config"]["metadata"] == {"owner": "tests", "stage": "test"}
    assert info["shoal"]["recall_target"] == 0.99
    assert len(info["shoal"]["shards"]) == 1
    assert info["status"] == "green"
    assert client.delete_collection("settings")


@pytest.mark.parametrize(
    "body",
    [
        {"replication_factor": 3},
        {"params": {"replication_factor": 3}},
        {"params": {"read_fan_out_factor": 1}},
        {"sparse_vectors": {"text": {}}},
        {"vectors": {"image": {"on_disk": True}}},
        {"vectors": {"": {"size": 8}}},
    ],
)
def test_update_collection_refuses(
    http: httpx.Client, collection: str, body: dict[str, Any]
) -> None:
    refused(http.patch(f"/collections/{collection}", json=body), 400)


def test_collections_come_and_go(http: httpx.Client, scratch: str) -> None:
    assert "already exists" in refused(http.put(f"/collections/{scratch}", json=PARAMS), 409)
    names = ok(http.get("/collections"), wire.Collections)["collections"]
    assert {"name": scratch} in names
    assert ok(http.delete(f"/collections/{scratch}"), bool) is True
    assert ok(http.delete(f"/collections/{scratch}"), bool) is False
    assert "doesn't exist" in refused(http.get(f"/collections/{scratch}"), 404)


def test_names_of_many_kinds(client: QdrantClient) -> None:
    for name in ("with space", "é", "a.b", "%41", "#!", "n" * 255):
        client.create_collection(name, models.VectorParams(size=2, distance=models.Distance.DOT))
        assert client.collection_exists(name)
        client.upsert(name, [models.PointStruct(id=1, vector=[1.0, 2.0])])
        assert client.count(name).count == 1
        assert client.delete_collection(name)


def test_another_router_sees_what_this_one_does(shoal: ShoalInProcess, http: httpx.Client) -> None:
    with shoal.router() as url, httpx.Client(base_url=url, timeout=30) as other:
        ok(http.put("/collections/shared", json=PARAMS))
        body = named_points((1, VECTOR))
        result = ok(other.put("/collections/shared/points?wait=true", json=body))
        assert result["status"] == "completed"
        assert ok(http.post("/collections/shared/points/count", json={}))["count"] == 1

        # Deleted and made anew there, of another dimension: the stale cache here must not show.
        ok(other.delete("/collections/shared"))
        ok(other.put("/collections/shared", json={"vectors": {"size": 2, "distance": "Dot"}}))
        ok(http.put("/collections/shared/points?wait=true", json=named_points((1, [1, 2]))))
        answer = ok(other.post("/collections/shared/points/query", json={"query": [1, 1]}))
        assert [hit["score"] for hit in answer["points"]] == [3]

        ok(other.delete("/collections/shared"))
        refused(http.get("/collections/shared"), 404)


def test_what_is_written_to_a_collection_made_anew_is_in_the_new_one(
    shoal: ShoalInProcess, http: httpx.Client
) -> None:
    """Another router knows the old one, and a shard server has not heard that it is deleted."""
    params = {**PARAMS, "shard_number": 1}
    with shoal.router() as url, httpx.Client(base_url=url, timeout=30) as other:
        ok(http.put("/collections/anew", json=params))
        ok(other.put("/collections/anew/points?wait=true", json=named_points((1, VECTOR))))
        shoal.deaf, shoal.first_server = {0}, 1
        try:
            ok(http.delete("/collections/anew"))
            with ThreadPoolExecutor(1) as thread:
                creating = thread.submit(http.put, "/collections/anew", json=params)
                ok(other.put("/collections/anew/points?wait=true", json=named_points((2, VECTOR))))
                with pytest.raises(TimeoutError):
                    creating.result(1)
                shoal.deaf = set()
                ok(creating.result(30))
        finally:
            shoal.deaf, shoal.first_server = set(), 0
        ok(other.put("/collections/anew/points?wait=true", json=named_points((3, VECTOR))))
        for router in (http, other):
            assert ok(router.post("/collections/anew/points/count", json={}))["count"] == 1
        ok(http.delete("/collections/anew"))


HOT_ROUTES: dict[str, list[Any]] = {
    "points/query": [{"query": VECTOR, "with_payload": True}, {"query": [1]}, {"query": 99}],
    "points/query/batch": [{"searches": [{"query": VECTOR}, {"query": 1, "with_vector": True}]}],
    "points/search": [{"vector": VECTOR, "limit": 2, "score_threshold": 1.5}, {"vector": VECTOR}],
    "points/search/batch": [{"searches": [{"vector": VECTOR, "limit": 2}]}, {"searches": 1}],
}


@pytest.mark.parametrize("route", HOT_ROUTES)
@pytest.mark.parametrize("name", ["standing", "n%20one", "a%2Fb"])
def test_hot_routes_answer_alike_on_both_ways(
    http: httpx.Client, collection: str, route: str, name: str
) -> None:
    bodies = [orjson.dumps(body) for body in HOT_ROUTES[route]]
    for body in (*bodies, b"", b"{", b"[]", b"\xff", b"null", b'{"x": 1}', b"[" * 10_000):
        hot, other = (
            http.post(f"/collections/{name}/{route}{parameters}", content=body)
            for parameters in ("", "?timeout=30")
        )
        assert hot.status_code == other.status_code
        assert hot.headers["content-type"] == other.headers["content-type"]
        assert {**hot.json(), "time": 0} == {**other.json(), "time": 0}
    refused(http.post(f"/prefix/collections/{name}/{route}", content=bodies[0]), 404)


def test_shards_out_of_reach(tmp_path: Path) -> None:
    with (
        ShoalInProcess(tmp_path, default_shards=2) as shoal,
        httpx.Client(base_url=shoal.url, timeout=30) as http,
    ):
        ok(http.put("/collections/half", json=PARAMS))
        shoal.stop_server(1)
        for method, path, body in (
            ("PUT", "/points", named_points(*((id, VECTOR) for id in range(20)))),
            ("POST", "/points/query", {"query": VECTOR}),
            ("POST", "/points/count", {}),
        ):
            response = http.request(method, f"/collections/half{path}?timeout=1", json=body)
            assert "could not answer within 1 s" in refused(response, 503)
            assert response.headers["retry-after"] == "1"
        response = http.put("/collections/late?timeout=1", json=PARAMS)
        assert "`late` is created, but its shards do not all answer" in refused(response, 408)
        assert ok(http.get("/collections/late/exists"))["exists"] is True
        assert ok(http.delete("/collections/late")) is True


def test_update_answers(http: httpx.Client, scratch: str) -> None:
    path = f"/collections/{scratch}/points"
    first = ok(http.put(path, json=named_points((1, VECTOR))), wire.UpdateResult)
    assert first["status"] == "acknowledged"
    second = ok(
        http.put(f"{path}?wait=true&ordering=strong", json=named_points((1, VECTOR))),
        wire.UpdateResult,
    )
    assert second["status"] == "completed"
    assert second["operation_id"] > first["operation_id"]
    gone = ok(http.post(f"{path}/delete?wait=true", json={"points": [1, 1, 5]}), wire.UpdateResult)
    assert gone["status"] == "completed"
    assert ok(http.post(f"{path}/count", json={}), wire.CountResult) == {"count": 0}


def test_last_of_an_id_in_one_upsert_wins(http: httpx.Client, scratch: str) -> None:
    path = f"/collections/{scratch}/points"
    uuid = UUID(int=5)
    batch = {
        "ids": [str(uuid), 1, uuid.hex, 1, uuid.urn],
        "vectors": [[row] * 4 for row in range(5)],
        "payloads": [{"row": row} for row in range(5)],
    }
    ok(http.put(f"{path}?wait=true", json={"batch": batch}))
    page = ok(http.post(f"{path}/scroll", json={"with_vector": True}), wire.Page)
    assert page == {
        "points": [
            {"id": 1, "payload": {"row": 3}, "vector": [3] * 4},
            {"id": str(uuid), "payload": {"row": 4}, "vector": [4] * 4},
        ],
        "next_page_offset": None,
    }


def test_answers_are_as_documented(http: httpx.Client, collection: str) -> None:
    path = f"/collections/{collection}/points"
    query = {"query": VECTOR, "with_payload": True, "with_vector": True, "limit": 2}
    hits = ok(http.post(f"{path}/query", json=query), wire.ScoredPoints)["points"]
    assert [hit["id"] for hit in hits] == [str(UUID(int=7)), 1]
    assert hits[0]["score"] == 0
    assert hits[0]["payload"] == {}
    many = ok(
        http.post(f"{path}/query/batch", json={"searches": [query, {"query": 1}, {}]}),
        list[wire.ScoredPoints],
    )
    assert many[0]["points"] == hits
    assert [hit["id"] for hit in many[1]["points"]] == [2, str(UUID(int=7))]
    assert [hit["id"] for hit in many[2]["points"]] == [1, 2, str(UUID(int=7))]
    search = {"vector": VECTOR, "limit": 2, "with_payload": True, "with_vector": True}
    assert ok(http.post(f"{path}/search", json=search), list[wire.ScoredPoint]) == hits
    batch = {"searches": [search, {"vector": VECTOR, "limit": 1, "score_threshold": 0}]}
    assert ok(http.post(f"{path}/search/batch", json=batch), list[list[wire.ScoredPoint]]) == [
        hits,
        [],
    ]
    record = ok(http.get(f"{path}/2"), wire.Record)
    assert record == {"id": 2, "payload": {"n": 2, "deep": {"a": [1]}}, "vector": [2, 0, 0, 0]}
    found = ok(http.post(path, json={"ids": [2, 77, 1, 2]}), list[wire.Record])
    assert [one["id"] for one in found] == [2, 1, 2]
    assert ok(http.post(path, json={"ids": []}), list[wire.Record]) == []


def test_search_parameters_are_taken(http: httpx.Client, collection: str) -> None:
    params = {
        "exact": True,
        "hnsw_ef": 64,
        "nprobe": 4,
        "quantization": {"ignore": True, "rescore": True, "oversampling": 2.0},
        "indexed_only": False,
    }
    empty: dict[str, Any] = {"must": [], "should": None}
    body = {"query": VECTOR, "params": params, "filter": empty, "prefetch": [], "using": ""}
    answer = ok(http.post(f"/collections/{collection}/points/query", json=body))
    assert len(answer["points"]) == 3


def test_too_many_vectors_for_one_answer(http: httpx.Client) -> None:
    ok(http.put("/collections/wide", json={"vectors": {"size": 65_536, "distance": "Dot"}}))
    path = "/collections/wide/points"
    # A page may be larger than what there is.
    ok(http.post(f"{path}/scroll", json={"limit": 193, "with_vector": True}), wire.Page)
    points = [{"id": number, "vector": {}} for number in range(193)]
    ok(http.put(f"{path}?wait=true", json={"points": points}))
    message = "expected at most 192 points of dimension 65536"
    for method, body in (
        ("/scroll", {"limit": 193}),
        ("", {"ids": list(range(193))}),
        ("/query", {"limit": 193}),
    ):
        response = http.post(f"{path}{method}", json={**body, "with_vector": True})
        assert message in refused(response, 422)
        ok(http.post(f"{path}{method}", json=body))
    ok(http.delete("/collections/wide"))


def test_a_product_beyond_float32_is_still_a_number(http: httpx.Client) -> None:
    ok(http.put("/collections/huge", json={"vectors": {"size": 2, "distance": "Dot"}}))
    ok(http.put("/collections/huge/points?wait=true", json=named_points((1, [1e38, 1e38]))))
    answer = ok(
        http.post("/collections/huge/points/query", json={"query": [1e38, 1e38]}),
        wire.ScoredPoints,
    )
    assert answer["points"][0]["score"] == pytest.approx(3.4028235e38)
    ok(http.delete("/collections/huge"))


def test_official_client_sees_errors(client: QdrantClient, collection: str) -> None:
    with pytest.raises(UnexpectedResponse, match="expected dim: 4, got 2") as caught:
        client.query_points(collection, [1.0, 2.0])
    assert caught.value.status_code == 400
    condition = models.FieldCondition(key="n")
    with pytest.raises(UnexpectedResponse, match=r"filter.must\[0\]: key make no condition"):
        client.query_points(collection, VECTOR, query_filter=models.Filter(must=[condition]))


@pytest.mark.parametrize(
    ("error", "status", "message", "retry"),
    [
        (InvalidInput("limit: x"), 400, "Wrong input: limit: x", False),
        (NotFound("it"), 404, "Not found: it", False),
        (AlreadyExists("it"), 409, "Wrong input: it", False),
        (Overloaded("queue is full"), 429, "Too many requests: queue is full", True),
        (Unavailable("recovering"), 503, "Service unavailable: recovering", True),
        (Fenced("moved"), 503, "Service unavailable: moved", True),
        (TimeoutError("after 3 s"), 408, "Timeout error: after 3 s", False),
        (ShoalError("odd"), 500, "Service internal error: odd", False),
        (ValueError("bug"), 500, "Service internal error: bug", False),
    ],
)
async def test_every_error_has_its_status(
    error: Exception, status: int, message: str, retry: bool
) -> None:
    app = FastAPI()
    errors.install(app)

    @app.get("/")
    async def fail() -> None:
        raise error

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.get("/")
    assert refused(response, status) == message
    assert ("retry-after" in response.headers) is retry


def test_openapi_page_describes_every_body(http: httpx.Client) -> None:
    page = http.get("/openapi.json").json()
    schemas = page["components"]["schemas"]

    def resolve(node: Any) -> None:
        if isinstance(node, dict):
            if "$ref" in node:
                assert node["$ref"].removeprefix("#/components/schemas/") in schemas
            for value in node.values():
                resolve(value)
        elif isinstance(node, list):
            for value in node:
                resolve(value)

    resolve(page)
    assert schemas["Query"]["additionalProperties"] is False
    for path, operations in page["paths"].items():
        for method, operation in operations.items():
            if method in ("put", "patch") or (method == "post" and "points" in path):
                assert "requestBody" in operation, (method, path)
            answers = operation["responses"]["200"]["content"]
            assert all(content["schema"] for content in answers.values()), (method, path)
    assert http.get("/docs").status_code == 200


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [
        (0, 0),
        (2**64 - 1, 2**64 - 1),
        ("00000000-0000-0000-0000-0000000000ff", UUID(int=255)),
        ("000000000000000000000000000000FF", UUID(int=255)),
        ("urn:uuid:00000000-0000-0000-0000-0000000000ff", UUID(int=255)),
        ("{00000000-0000-0000-0000-0000000000ff}", UUID(int=255)),
    ],
)
def test_ids(spelling: int | str, expected: int | UUID) -> None:
    assert parse_id(spelling, "id") == expected


@pytest.mark.parametrize(
    "spelling",
    [-1, 2**64, "", "1", "00000000-0000-0000-0000-0000000000f", "0-" * 16, "g" * 32,
     "000000000000000000000000000000ff\n", "urn:uuid:000000000000000000000000000000ff"],
)  # fmt: skip
def test_what_is_no_id(spelling: int | str) -> None:
    with pytest.raises(Malformed, match=r"points\[3\].id"):
        parse_id(spelling, "points[3].id")


def test_vectors_keep_their_float32_values() -> None:
    def config(dimension: int) -> ShardConfig:
        return ShardConfig.unnamed(dimension, Distance.EUCLID)

    expected = np.random.default_rng(1).standard_normal((50, 7)).astype(np.float32)
    parsed = parse_vectors(expected.tolist(), config(7))[UNNAMED].values
    assert parsed.dtype == np.float32
    np.testing.assert_array_equal(parsed, expected)
    np.testing.assert_array_equal(
        parse_vectors([[3.4028234e38, -3.4028234e38, 1e-46]], config(3))[UNNAMED].values,
        np.array([[3.4028234e38, -3.4028234e38, 0]], np.float32),
    )


PAYLOAD = {"a": {"b": 1, "c": [{"d": 1, "e": 2}, 5]}, "a.b": 2, "l": [1, 2]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (True, PAYLOAD),
        ([], {}),
        (["a.b"], {"a": {"b": 1}}),
        (['"a.b"', "l"], {"a.b": 2, "l": [1, 2]}),
        (["a.c[].d"], {"a": {"c": [{"d": 1}, 5]}}),
        (["a", "a.b"], {"a": PAYLOAD["a"]}),
        (["a.b", "a"], {"a": PAYLOAD["a"]}),
        (["l[0]"], {"l": []}),
        (wire.PayloadSelector(exclude=["a.c", "l"]), {"a": {"b": 1}, "a.b": 2}),
        (wire.PayloadSelector(exclude=["a.c[].e", '"a.b"']),
         {"a": {"b": 1, "c": [{"d": 1}, 5]}, "l": [1, 2]}),
        (wire.PayloadSelector(include=["none"]), {}),
    ],
)  # fmt: skip
def test_payload_selectors(asked: Any, expected: Any) -> None:
    selected = Selector.of(asked, default=False).apply(msgspec.json.encode(PAYLOAD))
    assert orjson.loads(orjson.dumps(selected)) == expected


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "a[", "a[x]", 'a"b"', "a b", "[]"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InvalidInput, match="with_payload"):
        Selector.of([path], default=False)


def test_payload_indexes_are_kept_and_told(client: QdrantClient) -> None:
    name = "indexes"
    client.create_collection(
        name, models.VectorParams(size=2, distance=models.Distance.DOT), shard_number=2
    )
    assert client.get_collection(name).payload_schema == {}
    payloads: list[dict[str, Any]] = [
        {"city": "Oslo", "n": 1},
        {"city": ["Rome", "Bern"]},
        {"n": None},
        {},
    ]
    client.upsert(
        name,
        [
            models.PointStruct(id=row, vector=[1.0, row], payload=payload)
            for row, payload in enumerate(payloads)
        ],
    )
    integer = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=True)
    text = models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD
    )
    declared: list[tuple[str, Any]] = [
        ("city", models.PayloadSchemaType.KEYWORD),
        ("n", integer),
        ("a.b[].c", text),
    ]
    for field, schema in declared:
        result = client.create_payload_index(name, field, schema, wait=True)
        assert result.status == models.UpdateStatus.COMPLETED
    found: dict[str, Any] = dict(client.get_collection(name).payload_schema)
    assert {field: (str(one.data_type), one.points) for field, one in found.items()} == {
        "city": ("keyword", 2),
        "n": ("integer", 1),
        "a.b[].c": ("text", 0),
    }
    assert found["n"].params.lookup is True
    client.delete_payload_index(name, "a.b[].c")
    client.delete_payload_index(name, "never")
    assert set(client.get_collection(name).payload_schema) == {"city", "n"}
    client.delete_collection(name)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"field_schema": "keyword"}, 400, "field_name"),
        ({"field_name": "a"}, 400, "field_schema: expected a type"),
        ({"field_name": "a..b", "field_schema": "keyword"}, 400, "field_name: 'a..b'"),
        ({"field_name": "a", "field_schema": "number"}, 400, "field_schema"),
        (
            {"field_name": "a", "field_schema": {"type": "text", "tokenizer": "multilingual"}},
            400,
            "field_schema.tokenizer: `multilingual` is not supported",
        ),
    ],
)
def test_payload_indexes_refuse(
    http: httpx.Client, collection: str, body: dict[str, Any], status: int, message: str
) -> None:
    answered = http.put(f"/collections/{collection}/index", json=body)
    assert message in refused(answered, status)
    assert (
        http.put(
            "/collections/none/index", json={"field_name": "a", "field_schema": "bool"}
        ).status_code
        == 404
    )


def test_payloads_are_changed_one_after_the_other(client: QdrantClient) -> None:
    """Many at once set other fields of the same points: none is lost."""
    name = "edits"
    client.create_collection(
        name, models.VectorParams(size=2, distance=models.Distance.EUCLID), shard_number=2
    )
    rows = 9_000
    for first in range(0, rows, 3_000):
        ids: list[Any] = list(range(first, first + 3_000))
        vectors = [[float(one), 1.0] for one in ids]
        client.upsert(name, models.Batch(ids=ids, vectors=vectors), wait=True)
    everything = models.FilterSelector(filter=models.Filter())
    below = models.FieldCondition(key="of.all", match=models.MatchValue(value=True))

    def edit(number: int) -> None:
        client.set_payload(name, {f"k{number}": number}, [3, 4], wait=True)

    client.set_payload(name, {"all": True}, everything, key="of", wait=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(edit, range(40)))
    expected = {"of": {"all": True}, **{f"k{number}": number for number in range(40)}}
    assert [record.payload for record in client.retrieve(name, [3, 4])] == [expected] * 2
    assert client.count(name, count_filter=models.Filter(must=[below])).count == rows
    found = client.query_points(name, [5_000.0, 1.0], limit=1, with_payload=True).points[0]
    assert (found.id, found.score, found.payload) == (5_000, 0.0, {"of": {"all": True}})
    with pytest.raises(UnexpectedResponse, match="No point with id 90000 found"):
        client.overwrite_payload(name, {"x": 1}, [5, 90_000], wait=True)
    assert client.retrieve(name, [5])[0].payload == {"x": 1}
    assert client.count(name).count == rows
    client.clear_payload(name, everything, wait=True)
    assert client.count(name, count_filter=models.Filter(must=[below])).count == 0
    client.delete(name, everything, wait=True)
    assert client.count(name).count == 0
    client.delete_collection(name)


@pytest.mark.parametrize(
    ("method", "path", "body", "message"),
    [
        ("POST", "payload", {"payload": {}}, "one of `points` and `filter`"),
        ("POST", "payload", {"points": [1]}, "payload"),
        ("POST", "payload", {"payload": {}, "points": [1], "filter": {}}, "one of `points`"),
        ("PUT", "payload", {"payload": {}, "points": [-1]}, "points[0]"),
        ("POST", "payload", {"payload": {}, "points": [1], "key": "a..b"}, "key: 'a..b'"),
        ("POST", "payload", {"payload": {"n": 2**70}, "points": [1]}, "payload"),
        ("POST", "payload/delete", {"keys": ["a["], "points": [1]}, "keys: 'a['"),
        ("POST", "payload/delete", {"points": [1]}, "keys"),
        ("POST", "payload/clear", {}, "one of `points` and `filter`"),
        ("POST", "payload/clear", {"filter": {"must": {"key": "a"}}}, "filter.must"),
    ],
)
def test_changes_of_payloads_refuse(
    http: httpx.Client, collection: str, method: str, path: str, body: Any, message: str
) -> None:
    answered = http.request(method, f"/collections/{collection}/points/{path}", json=body)
    assert message in refused(answered, 400)


def test_what_is_nested_too_deeply_harms_nothing(http: httpx.Client) -> None:
    name = "/collections/deep"
    ok(http.put(name, json={"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 1}))
    deep: Any = {}
    for _ in range(230):
        deep = {"a": deep}
    points = [{"id": 1, "vector": [1, 2], "payload": deep}]
    ok(http.put(f"{name}/points?wait=true", json={"points": points}))
    where = f"{name}/points/payload?wait=true"
    edit = {"payload": {"b": deep}, "points": [1], "key": ".".join("a" * 40)}
    assert "Recursion limit" in refused(http.post(where, json=edit), 400)
    edit = {"payload": {"b": 1}, "points": [1], "key": ".".join("a" * 3_000)}
    assert "too long" in refused(http.post(where, json=edit), 400)
    only: Any = {"must": [{"key": "a", "match": {"value": 1}}]}
    for _ in range(200):
        only = {"must": [only]}
    count = http.post(f"{name}/points/count", json={"filter": only})
    assert "within one another" in refused(count, 400)
    # It still takes writes.
    ok(http.post(where, json={"payload": {"b": 1}, "points": [1], "key": "c"}))
    found = http.get(f"{name}/points/1").json()["result"]["payload"]
    assert found == {**deep, "c": {"b": 1}}
    ok(http.delete(name))


def test_the_one_vector_may_be_given_by_its_empty_name(client: QdrantClient) -> None:
    name = "unnamed"
    params = models.VectorParams(size=2, distance=models.Distance.EUCLID)
    client.create_collection(name, {"": params}, shard_number=2)
    info: Any = client.get_collection(name).config.params.vectors
    assert info.size == 2
    points = [models.PointStruct(id=1, vector={"": [1.0, 2.0]})]
    client.upsert(name, [*points, models.PointStruct(id=2, vector=[3.0, 4.0])])
    client.upsert(name, models.Batch(ids=[3, 4], vectors={"": [[5.0, 6.0], [7.0, 8.0]]}))
    found = client.query_points(name, [5.0, 6.0], using="", limit=1, with_vectors=True).points[0]
    assert (found.id, found.vector) == (3, [5.0, 6.0])
    with pytest.raises(UnexpectedResponse, match="Not existing vector name error: b"):
        client.upsert(name, [models.PointStruct(id=1, vector={"": [1.0, 2.0], "b": [1.0]})])
    with pytest.raises(UnexpectedResponse, match="expected dim: 2, got 3"):
        client.upsert(name, [models.PointStruct(id=1, vector={"": [1.0, 2.0, 3.0]})])
    client.delete_collection(name)


def test_diverse_answers_are_those_of_the_oracle(client: QdrantClient) -> None:
    """Vectors without ties, so that there is one answer."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(60, 5)).tolist()
    oracle = QdrantClient(":memory:")
    for distance in models.Distance:
        for one in (client, oracle):
            one.create_collection("diverse", models.VectorParams(size=5, distance=distance))
            one.upsert("diverse", models.Batch(ids=list(range(60)), vectors=vectors))
        for diversity in (None, 0.0, 0.2, 0.7, 1.0):
            for candidates, limit, offset in ((None, 5, 0), (30, 8, 0), (20, 4, 3), (100, 60, 0)):
                mmr = models.Mmr(diversity=diversity, candidates_limit=candidates)
                query = models.NearestQuery(nearest=generator.normal(size=5).tolist(), mmr=mmr)
                ours, theirs = (
                    one.query_points("diverse", query, limit=limit, offset=offset).points
                    for one in (client, oracle)
                )
                assert [hit.id for hit in ours] == [hit.id for hit in theirs]
                assert all(hit.vector is None for hit in ours)
        for one in (client, oracle):
            one.delete_collection("diverse")
    oracle.close()
