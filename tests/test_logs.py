"""Log lines: their form, and the requests that they name."""

from __future__ import annotations

import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from qdrant_client import QdrantClient, models

from cluster.logs import JsonFormatter, TextFormatter
from router.grpc import protocol
from router.observing import Observation
from shard.engine import ShardEngine
from shard.rpc.origin import Origin, Together, callers
from tests.shoal_in_process import ShoalInProcess
from tests.shoal_process import ShoalProcess

PARAMS = {"vectors": {"size": 4, "distance": "Euclid"}}
QUERY = {"query": [0, 0, 0, 1], "limit": 3, "with_payload": True}
ROUTE = "/collections/{name}/points/query"


class Lines:
    """What is logged, as JSON objects."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.handler = logging.StreamHandler(self._stream)
        self.handler.setFormatter(JsonFormatter())

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """Those that are ``wanted``, as soon as there are some."""
        deadline = time.monotonic() + 20
        while not (found := [line for line in self() if wanted(line)]):
            assert time.monotonic() < deadline, self.text
            time.sleep(0.02)
        return found


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    logging.getLogger().addHandler(lines.handler)
    yield lines
    logging.getLogger().removeHandler(lines.handler)


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    directory = tmp_path_factory.mktemp("shoal")
    with ShoalInProcess(directory, default_shards=2) as running:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            http.put("/collections/songs", json=PARAMS).raise_for_status()
            points = [{"id": n, "vector": [n, 1, 2, 3], "payload": {"n": n}} for n in range(50)]
            path = "/collections/songs/points?wait=true"
            http.put(path, json={"points": points}).raise_for_status()
        yield running


@pytest.fixture
def http(shoal: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shoal.url, timeout=30) as client:
        yield client


def record(message: str, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("some.where").makeRecord(
        "some.where", logging.WARNING, __file__, 1, message, (), None, extra=extra
    )


def test_a_line_is_one_json_object() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        raised = record("it\nfailed", fields={"seconds": 1.5, "odd": {1, 2}})
        raised.exc_info = (ValueError, error, error.__traceback__)
    (text,) = JsonFormatter().format(raised).splitlines()
    line = json.loads(text)
    assert line["message"] == "it\nfailed"
    assert line["level"] == "warning"
    assert line["logger"] == "some.where"
    assert line["seconds"] == 1.5
    assert "ValueError: two\nlines" in line["exception"]
    assert abs(datetime.fromisoformat(line["time"]).timestamp() - raised.created) < 0.01
    assert "request_id" not in line


@pytest.mark.parametrize("ids", [[], ["a"], ["a", "a"], ["a", "b"]])
def test_a_line_names_the_requests_that_it_is_about(ids: list[str]) -> None:
    together = Together()
    for one in ids:
        together.add(Origin(one), 1.0)
    token = callers.set(together)
    try:
        line = json.loads(JsonFormatter().format(record("hm")))
        text = TextFormatter().format(record("hm"))
    finally:
        callers.reset(token)
    assert line.get("request_id") == (ids[0] if len(set(ids)) == 1 else None)
    assert line.get("request_ids") == (ids if len(set(ids)) == 2 else None)
    assert all(f'"{one}"' in text for one in ids)
    assert text.partition(" WARNING ")[2].startswith("some.where: hm")


def test_every_answer_has_the_requests_id_or_a_new_one(http: httpx.Client) -> None:
    def answered(given: str | None, path: str = "/collections/songs") -> str:
        headers = {} if given is None else {"x-request-id": given}
        return http.get(path, headers=headers).headers["x-request-id"]

    for path in ("/collections/songs", "/collections/none", "/nowhere", "/livez"):
        assert answered("mine-1/2.3", path) == "mine-1/2.3"
    made = {answered(given) for given in (None, "", "two words", "x" * 129, None)}
    assert len(made) == 5
    made |= {answered(None, "/livez") for _ in range(300)}
    assert len(made) == 305
    assert all(len(one) == 32 and int(one, 16) >= 0 for one in made)


def test_ids_pass_by_grpc_too(shoal: ShoalInProcess) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{shoal.grpc_port}") as channel:

        def ask(method: str, request: Message, request_id: str) -> Any:
            call = channel.unary_unary(f"/qdrant.Collections/{method}", None, None)
            metadata: Any = (("x-request-id", request_id),)
            return call.with_call(request.SerializeToString(), metadata=metadata, timeout=30)[1]

        exists = protocol.message("CollectionExistsRequest")(collection_name="songs")
        answered = ask("CollectionExists", exists, "mine")
        assert ("x-request-id", "mine") in answered.trailing_metadata()
        missing = protocol.message("GetCollectionInfoRequest")(collection_name="none")
        with pytest.raises(grpc.RpcError) as raised:
            ask("Get", missing, "yours")
        refused: Any = raised.value
        assert refused.code() is grpc.StatusCode.NOT_FOUND
        assert ("x-request-id", "yours") in refused.trailing_metadata()


def test_a_failing_shard_names_the_requests_and_nothing_of_what_they_say(
    http: httpx.Client, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        logging.getLogger("in.a.thread").warning("about to fail")
        raise RuntimeError("out of luck")

    monkeypatch.setattr(ShardEngine, "search", fail)
    monkeypatch.setattr(ShardEngine, "count", fail)
    asked = {"query": [0.125, 0.0625, 77.5, 31.25], "filter": {"must": [{"has_id": [123321]}]}}
    headers = {"x-request-id": "unlucky", "api-key": "open-sesame"}
    answer = http.post("/collections/songs/points/query", json=asked, headers=headers)
    assert answer.status_code == 500
    for logger in ("shard.rpc.status", "in.a.thread", "router.errors"):
        found = lines.until(lambda line, logger=logger: line["logger"] == logger)  # type: ignore[misc]
        assert {line["request_id"] for line in found} == {"unlucky"}
    # By a call that is no message of a stream as well.
    http.post("/collections/songs/points/count", json={}, headers={"x-request-id": "other"})
    lines.until(lambda line: line.get("request_id") == "other" and line["logger"] == "in.a.thread")
    assert not [said for said in ("77.5", "31.25", "123321", "sesame") if said in lines.text]


def test_slow_requests_are_logged_with_where_their_time_went(
    shoal: ShoalInProcess, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ShardEngine.search

    def slowly(self: ShardEngine, *given: Any) -> Any:
        time.sleep(0.3)
        return search(self, *given)

    with (
        shoal.router(observation=Observation(slow_query_ms=250)) as url,
        httpx.Client(base_url=url, timeout=30) as http,
    ):
        http.post("/collections/songs/points/query", json=QUERY).raise_for_status()
        assert not [line for line in lines() if line["logger"] == "router.observing"]
        monkeypatch.setattr(ShardEngine, "search", slowly)
        headers = {"x-request-id": "sluggish"}
        http.post("/collections/songs/points/query", json=QUERY, headers=headers)
    (line,) = lines.until(lambda line: line["logger"] == "router.observing")
    assert line["request_id"] == "sluggish"
    assert (line["method"], line["route"], line["collection"]) == ("POST", ROUTE, "songs")
    assert line["code"] == "200"
    assert 0.3 <= line["seconds"] < 30
    assert len(line["calls"]) == 2
    for call in line["calls"]:
        assert call["method"] == "Search"
        assert 0.3 <= call["seconds"] <= line["seconds"]
        assert {"queue", "scan", "rerank", "merge", "payload"} <= call["stages"].keys()
        assert sum(call["stages"].values()) <= call["seconds"]


@pytest.mark.cluster
def test_all_processes_of_a_service_log_json(tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ["--shard-servers", "1", "--routers", "2", "--log-format", "json"]
    with (
        log.open("w") as stderr,
        ShoalProcess(
            tmp_path / "data",
            *options,
            "--log-level",
            "info",
            "--slow-query-ms",
            "1",
            stderr=stderr,
        ) as shoal,
    ):
        client = QdrantClient(url=shoal.url, timeout=60)
        client.create_collection("songs", models.VectorParams(size=4, distance=models.Distance.DOT))
        client.upsert("songs", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0, 4.0])], wait=True)
        assert client.query_points("songs", [1.0, 2.0, 3.0, 4.0]).points
        assert shoal.stop() == 0
    found = [json.loads(line) for line in log.read_text().splitlines()]
    loggers = {line["logger"] for line in found}
    # Of a router, of the supervisor and of a shard server.
    assert {"router.observing", "cluster.server_actor", "shard.rpc.hosting"} <= loggers
    assert len({line["process"] for line in found}) > 2
