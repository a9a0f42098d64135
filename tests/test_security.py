"""Who may ask what: every route, with every kind of key, token and what is none."""

from __future__ import annotations

import contextlib
import logging
import re
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

import grpc
import httpx
import jwt
import msgspec
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.topology import TopologyWatcher
from router.api import search
from router.app import create_app
from router.fanout import Fanout
from router.grpc import protocol
from router.grpc.operations import OPERATIONS
from router.observing import Observation
from router.security import policy
from router.security.authentication import MAX_SUBJECT, Authenticator, ValueExists
from router.security.gate import Gate
from router.security.settings import Security
from shard.objects.local import LocalObjectStore
from tests.shoal_in_process import ShoalInProcess
from tests.test_floors import FORBIDDEN, ROOT, imports

pytestmark = pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")

ADMIN = "admin-key-that-is-long-enough-to-sign-by-any-algorithm-there-is-0"
ALT = "another-admin-key-to-which-clients-go-over-one-after-the-other-0"
READER = "key-for-reading"
DIMENSION = 4
VECTOR = [0.1, 0.2, 0.3, 0.4]
SECURITY = Security(api_key=ADMIN, alt_api_key=ALT, read_only_api_key=READER, jwt_rbac=True)
OPEN = {"GET /", "GET /healthz", "GET /livez", "GET /readyz"}

# Qdrant's table of access: of tokens with access to the collection, those that may. Manage always
# may, and global read-only what says "g". Apart from the code's own table, so that either is wrong
# only where both are.
READS = "g r prw rw"
TABLE = {
    "GET /openapi.json": "g r prw rw other",
    "GET /docs": "g r prw rw other",
    "GET /docs/oauth2-redirect": "g r prw rw other",
    "HEAD /openapi.json": "g r prw rw other",
    "HEAD /docs": "g r prw rw other",
    "HEAD /docs/oauth2-redirect": "g r prw rw other",
    "GET /metrics": "g",
    "GET /telemetry": "g",
    "GET /profile": "",
    "GET /collections": "g r prw rw other",
    "GET /aliases": "g r prw rw other",
    "POST /collections/aliases": "",
    "GET /collections/{name}": READS,
    "PUT /collections/{name}": "",
    "PATCH /collections/{name}": "",
    "DELETE /collections/{name}": "",
    "GET /collections/{name}/exists": READS,
    "GET /collections/{name}/aliases": READS,
    "PUT /collections/{name}/index": "rw",
    "DELETE /collections/{name}/index/{field}": "rw",
    "PUT /collections/{name}/points": "prw rw",
    "POST /collections/{name}/points": READS,
    "GET /collections/{name}/points/{id}": READS,
    "POST /collections/{name}/points/delete": "prw rw",
    "POST /collections/{name}/points/payload": "prw rw",
    "PUT /collections/{name}/points/payload": "prw rw",
    "POST /collections/{name}/points/payload/delete": "prw rw",
    "POST /collections/{name}/points/payload/clear": "prw rw",
    "PUT /collections/{name}/points/vectors": "prw rw",
    "POST /collections/{name}/points/vectors/delete": "prw rw",
    "POST /collections/{name}/points/batch": "prw rw",
    "POST /collections/{name}/points/scroll": READS,
    "POST /collections/{name}/points/count": READS,
    "POST /collections/{name}/points/query": READS,
    "POST /collections/{name}/points/query/batch": READS,
    "POST /collections/{name}/points/query/groups": READS,
    "POST /collections/{name}/points/search": READS,
    "POST /collections/{name}/points/search/batch": READS,
    "POST /collections/{name}/points/search/matrix/pairs": READS,
    "POST /collections/{name}/points/search/matrix/offsets": READS,
    "POST /collections/{name}/facet": READS,
    "POST /collections/{name}/snapshots": "rw",
    "GET /collections/{name}/snapshots": READS,
    "GET /collections/{name}/snapshots/{snapshot}": READS,
    "DELETE /collections/{name}/snapshots/{snapshot}": "rw",
    "PUT /collections/{name}/snapshots/recover": "",
    "POST /collections/{name}/ingest": "",
    "GET /collections/{name}/ingest": READS,
    "GET /collections/{name}/ingest/{job_id}": READS,
    "DELETE /collections/{name}/ingest/{job_id}": "rw",
    "POST /collections/{name}/export": "",
    "GET /collections/{name}/export": READS,
    "GET /collections/{name}/export/{job_id}": READS,
    "DELETE /collections/{name}/export/{job_id}": "rw",
}


def token(secret: str = ADMIN, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode(claims, secret, algorithm)


def scoped(access: str, collection: str = "songs", **more: Any) -> list[dict[str, Any]]:
    return [{"collection": collection, "access": access, **more}]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


HOLDERS: dict[str, dict[str, str]] = {
    "g": {"api-key": READER},
    "r": bearer(token(access=scoped("r"))),
    "prw": bearer(token(access=scoped("prw"))),
    "rw": {"api-key": token(access=scoped("rw"))},
    "other": bearer(token(access=scoped("rw", "others"))),
}


def managers() -> dict[str, dict[str, str]]:
    """Those who may do all, now: one of them not for long."""
    return {
        "key": {"api-key": ADMIN},
        "bearer": bearer(ADMIN),
        "other key": {"api-key": ALT},
        "token signed with the other key": bearer(token(ALT, access="m")),
        "lower case": {"Authorization": f"bearer {ADMIN}"},
        "token": bearer(token(access="m", exp=int(time.time()) + 3_600)),
        "token that says nothing": bearer(token()),
        "token just over": bearer(token(exp=int(time.time()) - 5)),
    }


STRANGERS: dict[str, dict[str, str]] = {
    "nothing": {},
    "no key": {"api-key": ""},
    "wrong key": {"api-key": "wrong"},
    "part of the key": {"api-key": ADMIN[:-1]},
    "more than the key": {"api-key": f"{ADMIN}x"},
    "more than the other key": {"api-key": f"{ALT}x"},
    "both keys": {"api-key": f"{ADMIN}{ALT}"},
    "wrong key first": {"api-key": "wrong", **bearer(ADMIN)},
    "no bearer": {"Authorization": ADMIN},
    "basic": {"Authorization": f"Basic {ADMIN}"},
    "empty bearer": {"Authorization": "Bearer "},
    "not UTF-8": {"api-key": "\xff\xfe"},
    "dots": bearer("a.b.c"),
    "not signed": bearer(token("", "none", access="m")),
    "other algorithm": bearer(token(algorithm="HS512", access="m")),
    "other secret": bearer(token("another-secret-of-enough-characters", access="m")),
    "signed with the reader's key": bearer(token(READER * 3, access="m")),
    "expired": bearer(token(access="m", exp=int(time.time()) - 60)),
    "expired, of the other key": bearer(token(ALT, access="m", exp=int(time.time()) - 60)),
    "not yet": bearer(token(access="m", nbf=int(time.time()) + 10**8)),
    "unknown access": bearer(token(access="w")),
    "null access": bearer(token(access=None)),
    "manage a collection": bearer(token(access=scoped("m"))),
    "payload restriction": bearer(token(access=scoped("r", payload={"tenant": "a"}))),
    "unknown restriction": bearer(token(access=scoped("r", fields=["a"]))),
    "a collection twice": bearer(token(access=scoped("r") + scoped("rw"))),
    "bad expiry": bearer(token(access="m", exp="soon")),
    "bad value_exists": bearer(token(access="m", value_exists={"collection": "users"})),
    "bad key of value_exists": bearer(
        token(access="m", value_exists={"collection": "u", "matches": [{"key": "[", "value": 1}]})
    ),
}


def application(directory: Path, security: Security = SECURITY) -> ASGIApp:
    fanout = Fanout(cast(TopologyWatcher, None))
    store = LocalObjectStore(directory)
    return create_app(store, str(directory), fanout, default_shards=1, security=security)


def routes(app: Any) -> list[Route]:
    """Every route of the application, however deep it is."""
    while not isinstance(app, FastAPI):
        app = next(
            value
            for name, value in vars(app).items()
            if name in ("app", "_app", "_api") and callable(value)
        )
    found: list[Any] = []
    for one in app.routes:
        found += one.original_router.routes if hasattr(one, "original_router") else [one]
    assert all(isinstance(one, Route) for one in found)
    return cast(list[Route], found)


@pytest.fixture(scope="module")
def all_routes(tmp_path_factory: pytest.TempPathFactory) -> list[Route]:
    return routes(application(tmp_path_factory.mktemp("routes")))


def names(all_routes: list[Route]) -> set[str]:
    return {f"{method} {one.path}" for one in all_routes for method in one.methods or ()}


def test_every_route_says_what_it_needs(all_routes: list[Route]) -> None:
    assert names(all_routes) == policy.ROUTES.keys()
    assert OPEN | TABLE.keys() == policy.ROUTES.keys()
    for hot in search.HOT:
        assert f"POST /collections/{{name}}/{hot}" in TABLE


def concrete(route: str, collection: str = "songs") -> tuple[str, str]:
    method, _, path = route.partition(" ")
    return method, path.format(name=collection, field="f", id=1, snapshot="s", job_id="j")


def test_the_policy_finds_the_route_that_is_taken(all_routes: list[Route]) -> None:
    for one in all_routes:
        for method in one.methods or ():
            name = f"{method} {one.path}"
            found = policy.find(*concrete(name))
            assert found is not None and found.name == name
            assert found.collection == ("songs" if "{name}" in name else None)


@given(
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"]),
    st.lists(
        st.sampled_from(
            [
                *sorted({part for route in policy.ROUTES for part in route.split("/")[1:]}),
                *("x", "..", ".", "x\n", "\n", " ", "é", "%2F", "{}", "songs"),
            ]
        ),
        max_size=7,
    ),
)
def test_the_policy_never_takes_a_request_for_another_than_it_is(
    all_routes: list[Route], method: str, parts: list[str]
) -> None:
    path = "/" + "/".join(parts)
    scope = {"type": "http", "method": method, "path": path, "root_path": ""}
    taken = next((one for one in all_routes if one.matches(scope)[0] is Match.FULL), None)
    found = policy.find(method, path)
    if found is not None:
        assert taken is not None and found.name == f"{method} {taken.path}"
        if found.collection is not None:
            assert taken.matches(scope)[1]["path_params"]["name"] == found.collection
    if taken is not None and "\n" not in path:
        assert found is not None


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """With bytes that are no UTF-8, and no space at an end, which HTTP does not have."""
    return [(name.encode(), value.encode("latin-1").strip()) for name, value in headers.items()]


@dataclass
class Recorder:
    """What stands behind the gate here: writes down what gets through."""

    came: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.came.append(f"{scope['method']} {scope['path']}")
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _never(claim: ValueExists) -> bool:
    raise AssertionError("no such token here")


Ask = Callable[..., Awaitable[httpx.Response]]


@pytest.fixture
def gated() -> tuple[Ask, Recorder]:
    recorder = Recorder()
    gate = Gate(recorder, SECURITY, Authenticator(SECURITY, _never))

    async def ask(route: str, headers: dict[str, str]) -> httpx.Response:
        transport = httpx.ASGITransport(gate)
        async with httpx.AsyncClient(transport=transport, base_url="http://shoal") as client:
            method, path = concrete(route)
            return await client.request(method, path, headers=encoded(headers), content=b"{")

    return ask, recorder


@pytest.mark.parametrize("route", policy.ROUTES)
async def test_only_who_may_passes_the_gate(gated: tuple[Ask, Recorder], route: str) -> None:
    ask, recorder = gated
    for name, headers in STRANGERS.items():
        response = await ask(route, headers)
        if route in OPEN:
            assert response.status_code == 299, name
            continue
        assert response.status_code in (401, 403), name
        refused = name in ("other secret", "signed with the reader's key") or "expired" in name
        assert response.status_code == (403 if refused else 401), name
        if not route.startswith("HEAD"):
            assert response.json()["status"]["error"]
        if response.status_code == 401:
            assert response.headers["www-authenticate"] == "Bearer"
    assert route in OPEN or not recorder.came
    for name, headers in managers().items():
        assert (await ask(route, headers)).status_code == 299, name
    for name, headers in HOLDERS.items():
        before = len(recorder.came)
        response = await ask(route, headers)
        if route in OPEN or name in TABLE[route].split():
            assert response.status_code == 299, name
        else:
            assert response.status_code == 403, name
            assert len(recorder.came) == before


async def test_what_is_not_known_is_for_managers(gated: tuple[Ask, Recorder]) -> None:
    ask, recorder = gated
    for route in ("GET /new", "POST /collections", "GET /collections//points/1", "POST //"):
        assert (await ask(route, {})).status_code == 401
        for headers in HOLDERS.values():
            response = await ask(route, headers)
            assert response.status_code == 404
            assert response.json()["status"]["error"].startswith("Not found")
        assert not recorder.came
        assert (await ask(route, {"api-key": ADMIN})).status_code == 299
        recorder.came.clear()


async def test_a_key_is_compared_as_a_whole_with_each() -> None:
    """One alone may be set, and an empty one lets nobody in."""
    for security, good, bad in (
        (Security(api_key=ADMIN), ADMIN, READER),
        (Security(read_only_api_key=READER), READER, ADMIN),
    ):
        authenticator = Authenticator(security, _never)
        assert (await authenticator.access([(b"api-key", good.encode())])).level is not None
        for wrong in (bad, "", token(access="m")):
            with pytest.raises(Exception, match="Invalid API key or JWT"):
                await authenticator.access([(b"api-key", wrong.encode())])


def test_keys_are_in_no_representation() -> None:
    assert ADMIN not in repr(SECURITY) and ADMIN not in str(SECURITY)
    assert READER not in f"{SECURITY}" and ALT not in f"{SECURITY}"


# The whole service


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    directory = tmp_path_factory.mktemp("shoal")
    with ShoalInProcess(directory, default_shards=2, security=SECURITY) as running:
        manager = QdrantClient(url=running.url, api_key=ADMIN)
        for name in ("songs", "others", "users"):
            manager.create_collection(
                name, models.VectorParams(size=DIMENSION, distance=models.Distance.DOT)
            )
            payload = {"of": name, "user": "ann", "group": 1}
            manager.upsert(name, [models.PointStruct(id=1, vector=VECTOR, payload=payload)])
        for alias, name in (("tunes", "songs"), ("secret", "others")):
            create = models.CreateAlias(collection_name=name, alias_name=alias)
            operation = models.CreateAliasOperation(create_alias=create)
            manager.update_collection_aliases([operation])
        manager.close()
        yield running


@pytest.fixture
def shards_asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of collections whose shards are asked anything."""
    asked: list[str] = []
    ask = Fanout._ask

    async def note(self: Fanout, collection: Any, *rest: Any) -> Any:
        asked.append(collection.name)
        return await ask(self, collection, *rest)

    monkeypatch.setattr(Fanout, "_ask", note)
    return asked


def client_with(shoal: ShoalInProcess, key: str) -> QdrantClient:
    return QdrantClient(url=shoal.url, api_key=key, check_compatibility=False)


def test_no_refused_request_reaches_a_shard(shoal: ShoalInProcess, shards_asked: list[str]) -> None:
    bodies = cycle([b"", b"{}", b"{", b"[" * 100_000, b'{"query": [1, 2, 3, 4]}', b"\xff"])
    with httpx.Client(base_url=shoal.url) as http:
        for route, allowed in TABLE.items():
            method, path = concrete(route)
            wrong = {name: one for name, one in HOLDERS.items() if name not in allowed.split()}
            for name, headers in (STRANGERS | wrong).items():
                response = http.request(
                    method, path, headers=encoded(headers), content=next(bodies)
                )
                assert response.status_code in (401, 403), (route, name, response.text)
    assert not shards_asked


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"\x80\x04K\x01.", b'{"a":'])
def test_malformed_bodies_are_refused_with_the_best_of_keys(
    shoal: ShoalInProcess, shards_asked: list[str], body: bytes
) -> None:
    deep = b'{"filter":' + b'{"must":' * 5_000 + b"{}" + b"}" * 5_001
    with httpx.Client(base_url=shoal.url, headers={"api-key": ADMIN}) as http:
        for route in TABLE:
            method, path = concrete(route)
            if method not in ("POST", "PUT", "PATCH") or route == (
                "POST /collections/{name}/snapshots"  # Has no body.
            ):
                continue
            for one in (body, deep):
                response = http.request(method, path, content=one)
                assert 400 <= response.status_code < 500, (route, one[:20], response.text)
    assert not shards_asked


def test_clients_with_keys(shoal: ShoalInProcess) -> None:
    for prefer_grpc in (False, True):
        for key, may_write in (
            (ADMIN, True),
            (ALT, True),
            (token(ALT), True),
            (READER, False),
            (token(access="r"), False),
        ):
            client = QdrantClient(
                url=shoal.url,
                grpc_port=shoal.grpc_port,
                prefer_grpc=prefer_grpc,
                https=False,
                api_key=key,
            )
            assert client.count("songs").count == 1
            point = models.PointStruct(id=1, vector=VECTOR, payload={"of": "songs", "group": 1})
            if may_write:
                client.upsert("songs", [point])
            else:
                with pytest.raises((UnexpectedResponse, grpc.RpcError), match="manage access"):
                    client.upsert("songs", [point])
            client.close()


def test_grpc_wants_a_key(shoal: ShoalInProcess, shards_asked: list[str]) -> None:
    asks: list[Callable[[QdrantClient], object]] = [
        lambda client: client.count("songs"),
        lambda client: client.query_points("songs", VECTOR),
        lambda client: client.upsert("songs", [models.PointStruct(id=1, vector=VECTOR)]),
        lambda client: client.delete_collection("songs"),
        lambda client: client.create_snapshot("songs"),
    ]
    for key, code in (
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("wrong", grpc.StatusCode.UNAUTHENTICATED),
        (
            HOLDERS["other"]["Authorization"].removeprefix("Bearer "),
            grpc.StatusCode.PERMISSION_DENIED,
        ),
    ):
        client = QdrantClient(
            url=shoal.url,
            grpc_port=shoal.grpc_port,
            prefer_grpc=True,
            https=False,
            api_key=key,
            check_compatibility=False,
        )
        for ask in asks:
            with pytest.raises(grpc.RpcError) as raised:
                ask(client)
            assert cast(grpc.Call, raised.value).code() is code
        client.close()
    assert not shards_asked


def calls() -> Iterator[tuple[str, bytes, str]]:
    """Every method of gRPC, a message for it, and the route that it takes."""
    for service in map(protocol.service, protocol.SERVICES):
        for method in service.methods:
            message = protocol.message(method.input_type.name)()
            for name in ("collection_name", "field_name", "vector_name", "snapshot_name"):
                if name in message.DESCRIPTOR.fields_by_name:
                    setattr(message, name, "songs" if name == "collection_name" else "x")
            operation = OPERATIONS[f"{service.name}.{method.name}"]
            route = policy.find(operation.method, operation.path(message))
            name = "" if route is None else route.name
            yield f"/{service.full_name}/{method.name}", message.SerializeToString(), name


def test_no_refused_call_by_grpc_reaches_a_shard(
    shoal: ShoalInProcess, shards_asked: list[str]
) -> None:
    asked = 0
    with grpc.insecure_channel(f"127.0.0.1:{shoal.grpc_port}") as channel:
        for method, message, route in calls():
            if route in OPEN:
                continue
            allowed = TABLE.get(route, "").split()
            wrong = {name: one for name, one in HOLDERS.items() if name not in allowed}
            for name, headers in (STRANGERS | wrong).items():
                metadata = tuple((key.lower(), value) for key, value in headers.items())
                if not all(value.isascii() for _, value in metadata):
                    continue
                with pytest.raises(grpc.RpcError) as raised:
                    channel.unary_unary(method, None, None)(message, timeout=20, metadata=metadata)
                asked += 1
                code = cast(grpc.Call, raised.value).code()
                if name in wrong:
                    expected = {grpc.StatusCode.PERMISSION_DENIED}
                    if not route:
                        expected = {grpc.StatusCode.UNIMPLEMENTED}
                else:
                    expected = {
                        grpc.StatusCode.UNAUTHENTICATED,
                        grpc.StatusCode.PERMISSION_DENIED,
                    }
                assert code in expected, (method, name, raised.value)
    assert asked > 40 * len(STRANGERS)
    assert not shards_asked


@pytest.mark.parametrize("data", [b"\xff", b"\x00", b"\x80\x04K\x01."])
def test_malformed_calls_by_grpc_are_refused_with_the_best_of_keys(
    shoal: ShoalInProcess, shards_asked: list[str], data: bytes
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{shoal.grpc_port}") as channel:
        for method, _, _ in calls():
            call = channel.unary_unary(method, None, None)
            with pytest.raises(grpc.RpcError) as raised:
                call(data, timeout=20, metadata=(("api-key", ADMIN),))
            code = cast(grpc.Call, raised.value).code()
            assert code is grpc.StatusCode.INVALID_ARGUMENT, (method, raised.value)
    assert not shards_asked


def test_no_log_line_has_a_key_or_token(
    shoal: ShoalInProcess, caplog: pytest.LogCaptureFixture
) -> None:
    sent = {**managers(), **HOLDERS, **STRANGERS}
    slow = Observation(slow_query_ms=1)
    with (
        caplog.at_level(logging.DEBUG),
        shoal.router(observation=slow) as url,
        httpx.Client(base_url=url, timeout=30) as http,
        grpc.insecure_channel(f"127.0.0.1:{shoal.grpc_port}") as channel,
    ):
        count = channel.unary_unary("/qdrant.Points/Count", None, None)
        message = protocol.message("CountPoints")(collection_name="songs").SerializeToString()
        for headers in sent.values():
            for path, body in (("query", b'{"query": [1, 2, 3, 4]}'), ("query", b"{"), ("x", b"")):
                http.post(
                    f"/collections/songs/points/{path}", headers=encoded(headers), content=body
                )
            metadata = tuple((name.lower(), value) for name, value in headers.items())
            if all(value.isascii() for _, value in metadata):
                with contextlib.suppress(grpc.RpcError):
                    count(message, timeout=20, metadata=metadata)
    # Not those of the client here.
    ours = "\n".join(
        f"{one.getMessage()} {one.__dict__}"
        for one in caplog.records
        if one.name.partition(".")[0] in ("shard", "cluster", "router", "uvicorn", "grpc")
    )
    assert "slow: POST /collections/{name}/points/query" in ours
    for headers in sent.values():
        for value in headers.values():
            secret = value.rpartition(" ")[2]
            assert len(secret) < 8 or secret not in ours


def test_lists_show_what_may_be_seen(shoal: ShoalInProcess) -> None:
    for key, collections, aliases in (
        (ADMIN, {"songs", "others", "users"}, {"tunes", "secret"}),
        (READER, {"songs", "others", "users"}, {"tunes", "secret"}),
        (token(access=scoped("r")), {"songs"}, {"tunes"}),
        (token(access=scoped("r", "tunes")), set(), {"tunes"}),
        (token(access=[]), set(), set()),
    ):
        client = client_with(shoal, key)
        assert {one.name for one in client.get_collections().collections} == collections
        assert {one.alias_name for one in client.get_aliases().aliases} == aliases
        client.close()


def test_a_collection_is_used_by_the_name_that_the_token_has(shoal: ShoalInProcess) -> None:
    by_alias = client_with(shoal, token(access=scoped("r", "tunes")))
    assert by_alias.count("tunes").count == 1
    by_name = client_with(shoal, token(access=scoped("r")))
    for client, name in ((by_alias, "songs"), (by_name, "tunes"), (by_name, "secret")):
        with pytest.raises(UnexpectedResponse, match=f"Access to collection {name}"):
            client.count(name)
        with pytest.raises(UnexpectedResponse, match=f"Access to collection {name}"):
            client.query_points(name, VECTOR)
        with pytest.raises(UnexpectedResponse, match=f"Access to collection {name}"):
            client.list_snapshots(name)
    by_alias.close()
    by_name.close()


@pytest.mark.parametrize("collection", ["others", "secret"])
def test_nothing_is_looked_up_elsewhere(
    shoal: ShoalInProcess, shards_asked: list[str], collection: str
) -> None:
    client = client_with(shoal, token(access=scoped("rw")))
    lookup = models.LookupLocation(collection=collection)
    prefetch = models.Prefetch(query=1, lookup_from=lookup, limit=1)
    plain = models.QueryRequest(query=VECTOR)
    deep = models.Prefetch(
        query=VECTOR, prefetch=[models.Prefetch(prefetch=prefetch, query=VECTOR)]
    )
    for ask in (
        lambda: client.query_points("songs", 1, lookup_from=lookup),
        lambda: client.query_points("songs", VECTOR, prefetch=prefetch),
        lambda: client.query_points("songs", VECTOR, prefetch=deep),
        lambda: client.query_batch_points(
            "songs", [plain, models.QueryRequest(query=1, lookup_from=lookup)]
        ),
        lambda: client.query_points_groups("songs", "group", VECTOR, with_lookup=collection),
        lambda: client.query_points_groups("songs", "group", 1, lookup_from=lookup),
    ):
        with pytest.raises(UnexpectedResponse, match=f"Access to collection {collection}"):
            ask()
    assert not shards_asked
    both = client_with(shoal, token(access=scoped("r") + scoped("r", collection)))
    assert both.query_points("songs", 1, lookup_from=lookup).points
    groups = both.query_points_groups("songs", "group", VECTOR, with_lookup=collection).groups
    assert cast(models.Record, groups[0].lookup).payload == {
        "of": "others",
        "user": "ann",
        "group": 1,
    }
    both.close()
    client.close()


def test_a_token_is_revoked_by_a_point(shoal: ShoalInProcess) -> None:
    claim = {"collection": "users", "matches": [{"key": "user", "value": "bob"}]}
    manager = client_with(shoal, ADMIN)
    manager.upsert("users", [models.PointStruct(id=2, vector=VECTOR, payload={"user": "bob"})])
    bob = client_with(shoal, token(access=scoped("r"), value_exists=claim))
    assert bob.count("songs").count == 1
    manager.delete("users", [2])
    with pytest.raises(UnexpectedResponse, match="stateful validation failed") as raised:
        bob.count("songs")
    assert raised.value.status_code == 401
    nowhere = client_with(shoal, token(access="r", value_exists=claim | {"collection": "none"}))
    with pytest.raises(UnexpectedResponse, match="stateful validation failed") as raised:
        nowhere.count("songs")
    assert raised.value.status_code == 403
    for client in (manager, bob, nowhere):
        client.close()


def test_a_token_that_was_good_ends(shoal: ShoalInProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_with(shoal, token(access="r", exp=int(time.time()) + 60))
    assert client.count("songs").count == 1
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(UnexpectedResponse, match="expired") as raised:
        client.count("songs")
    assert raised.value.status_code == 403
    client.close()


# The audit log


async def test_changes_and_refusals_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    security = msgspec.structs.replace(SECURITY, audit_log=str(path))
    gate = Gate(Recorder(), security, Authenticator(security, _never))
    ann = bearer(token(access=scoped("rw", "one\ntwo"), subject="ann"))
    asked = [
        ("PUT /collections/{name}/points", ann),
        ("POST /collections/{name}/points/query", ann),
        ("DELETE /collections/{name}", ann),
        ("DELETE /collections/{name}", {"api-key": ADMIN}),
        ("DELETE /collections/{name}", {"api-key": ALT}),
        ("GET /collections", {"api-key": "guessed"}),
        ("GET /healthz", {}),
    ]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(gate), base_url="http://shoal"
    ) as client:
        for number, (route, headers) in enumerate(asked):
            method, target = concrete(route, "one\ntwo")
            await client.request(method, quote(target), headers=headers)
            if number == 2:
                path.rename(tmp_path / "rotated")
    lines = [
        msgspec.json.decode(line)
        for file in (tmp_path / "rotated", path)
        for line in file.read_text().splitlines()
    ]
    told = [(one["holder"], one["subject"], one["operation"], one["outcome"]) for one in lines]
    assert told == [
        ("token", "ann", "PUT /collections/{name}/points", "done"),
        ("token", "ann", "DELETE /collections/{name}", "refused"),
        ("api key", None, "DELETE /collections/{name}", "done"),
        ("alt api key", None, "DELETE /collections/{name}", "done"),
        ("unknown", None, "GET /collections", "refused"),
    ]
    assert [one["status"] for one in lines] == [299, 403, 299, 299, 401]
    assert lines[0]["collection"] == "one\ntwo" and lines[0]["remote"]
    text = (tmp_path / "rotated").read_text() + path.read_text()
    for secret in (ADMIN, ALT, "guessed", ann["Authorization"].removeprefix("Bearer ")):
        assert secret not in text


# Open to this machine only


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 299),
        ({"host": "127.0.0.1:6333"}, 299),
        ({"host": "localhost"}, 299),
        ({"host": "[::1]:6333"}, 299),
        ({"host": "10.1.2.3:6333"}, 299),
        ({"host": "evil.example:6333"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example:6333"}, 403),
        ({"host": "127.0.0.1:6333", "origin": "http://127.0.0.1:6333"}, 299),
        ({"host": "127.0.0.1:6333", "origin": "http://evil.example"}, 403),
        ({"host": "127.0.0.1:6333", "origin": "http://127.0.0.1:8080"}, 403),
        ({"host": "127.0.0.1:6333", "origin": "null"}, 403),
        ({"host": "evil.example", "origin": "http://evil.example"}, 403),
    ],
)
async def test_web_pages_cannot_use_what_is_open_to_this_machine(
    headers: dict[str, str], status: int
) -> None:
    security = Security().check("127.0.0.1", allow_anonymous=False)
    recorder = Recorder()
    gate = Gate(recorder, security, Authenticator(security, _never))
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/collections/songs/points/delete",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await gate(scope, receive, send)
    assert sent[0]["status"] == status
    assert bool(recorder.came) == (status == 299)


# The code


def test_bandits_rules_find_nothing() -> None:
    """Where something stands all the same, it says why."""
    floors = [str(ROOT / floor) for floor in FORBIDDEN]
    # S101: assertions check no input.
    rules = ("--no-cache", "--select=S", "--ignore=S101")
    command = (str(Path(sys.executable).with_name("ruff")), "check", *rules, *floors)
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
    for file in (file for floor in floors for file in Path(floor).rglob("*.py")):
        assert not re.search(r"noqa: S\d+$", file.read_text(), re.MULTILINE), file


def test_nothing_can_be_unpickled() -> None:
    for file in (file for floor in FORBIDDEN for file in (ROOT / floor).rglob("*.py")):
        wrong = {"cloudpickle", "dill", "marshal", "pickle", "shelve"} & set(imports(file))
        assert not wrong, f"{file} imports {wrong}"
        # NumPy's only where it is asked to.
        assert not re.search(r"allow_pickle(?!=False)", file.read_text()), file


@pytest.mark.parametrize(
    ("given", "told"), [("ann", "ann"), ("\ud800x", "?x"), ("a" * 1_000, "a" * MAX_SUBJECT)]
)
async def test_a_subject_is_text_that_can_be_told(given: str, told: str) -> None:
    authenticator = Authenticator(SECURITY, _never)
    headers = [(b"api-key", token(sub=given).encode())]
    assert (await authenticator.access(headers)).subject == told
