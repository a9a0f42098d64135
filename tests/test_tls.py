"""TLS: between clients and routers, and between routers and shard servers."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.topology import Topology, TopologyDocument, TopologyWatcher
from router.fanout import Fanout
from shard.errors import InvalidInput, NotFound, Unavailable
from shard.objects.local import LocalObjectStore
from shard.rpc import tls
from shard.rpc.client import ShardClient
from shard.rpc.server import ShardServer
from tests.certificates import issue, renew
from tests.shoal_process import ShoalProcess


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def guarded(authority: trustme.CA, tmp_path: Path) -> Iterator[str]:
    """The address of a shard server that wants certificates."""
    directory = issue(authority, tmp_path / "server", tls.NAME)
    store = LocalObjectStore(tmp_path / "store")
    server = ShardServer(store, tmp_path / "scratch", host="127.0.0.1", tls=str(directory))
    yield f"127.0.0.1:{server.start()}"
    server.stop(0)


async def test_a_shard_server_answers_who_has_a_certificate(
    guarded: str, authority: trustme.CA, tmp_path: Path
) -> None:
    credentials = tls.channel_credentials(str(issue(authority, tmp_path / "router", tls.NAME)))
    client = ShardClient(guarded, credentials())
    with pytest.raises(NotFound):
        await client.count("c", [0], timeout=10)
    await client.close()


@pytest.mark.parametrize("kind", ["none", "no certificate", "another authority's"])
async def test_a_shard_server_answers_nobody_else(
    guarded: str, authority: trustme.CA, tmp_path: Path, kind: str
) -> None:
    credentials = None
    if kind == "no certificate":
        credentials = grpc.ssl_channel_credentials(authority.cert_pem.bytes())
    elif kind == "another authority's":
        directory = issue(trustme.CA(), tmp_path / "other", tls.NAME)
        # It trusts the server, but the server does not trust it.
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            (directory / tls.KEY).read_bytes(),
            (directory / tls.CERTIFICATE).read_bytes(),
        )
    client = ShardClient(guarded, credentials)
    with pytest.raises(Unavailable):
        await client.count("c", [0], timeout=5)
    with pytest.raises(Unavailable):
        await client.write("c", {0: []}, wait=False, timeout=5)
    await client.close()


async def test_a_router_asks_no_shard_server_that_it_does_not_know(
    authority: trustme.CA, tmp_path: Path
) -> None:
    mine = tls.channel_credentials(str(issue(authority, tmp_path / "router", tls.NAME)))
    for name, own, whose in (("other", tls.NAME, trustme.CA()), ("named", "x.example", authority)):
        directory = issue(whose, tmp_path / name, own)
        # One that would take anybody's certificate.
        (directory / tls.AUTHORITY).write_bytes(authority.cert_pem.bytes())
        store = LocalObjectStore(tmp_path / "store")
        server = ShardServer(store, tmp_path / f"s-{name}", host="127.0.0.1", tls=str(directory))
        client = ShardClient(f"127.0.0.1:{server.start()}", mine())
        with pytest.raises(Unavailable):
            await client.count("c", [0], timeout=5)
        await client.close()
        server.stop(0)


def test_files_that_are_missing_or_wrong_are_told(authority: trustme.CA, tmp_path: Path) -> None:
    directory = tmp_path / "files"
    for make in (tls.server_credentials, tls.channel_credentials):
        with pytest.raises(InvalidInput, match=r"tls\.crt"):
            make(str(directory))
    issue(authority, directory, tls.NAME)
    issue(authority, tmp_path / "other", tls.NAME)
    for name, content in (
        (tls.KEY, (tmp_path / "other" / tls.KEY).read_bytes()),
        (tls.CERTIFICATE, b"no certificate"),
        (tls.AUTHORITY, b""),
    ):
        before = (directory / name).read_bytes()
        (directory / name).write_bytes(content)
        for make in (tls.server_credentials, tls.channel_credentials):
            with pytest.raises(InvalidInput, match=re.escape(name)):
                make(str(directory))
        (directory / name).write_bytes(before)
    tls.server_credentials(str(directory))


async def test_a_shard_server_takes_renewed_certificates(
    guarded: str, authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0)
    successor = trustme.CA()
    old = tls.channel_credentials(str(issue(authority, tmp_path / "old", tls.NAME)))
    new = tls.channel_credentials(str(issue(successor, tmp_path / "new", tls.NAME)))

    async def is_answered(credentials: grpc.ChannelCredentials) -> bool:
        client = ShardClient(guarded, credentials)
        try:
            with pytest.raises((NotFound, Unavailable)) as raised:
                await client.count("c", [0], timeout=3)
        finally:
            await client.close()
        return raised.type is NotFound

    staying = ShardClient(guarded, old())
    with pytest.raises(NotFound):
        await staying.count("c", [0], timeout=10)
    assert await is_answered(old()) and not await is_answered(new())
    # While files are replaced one after the other, those before are used.
    renewed = issue(successor, tmp_path / "renewed", tls.NAME)
    (renewed / tls.KEY).replace(tmp_path / "server" / tls.KEY)
    assert await is_answered(old()) and not await is_answered(new())
    for name in (tls.CERTIFICATE, tls.AUTHORITY):
        (renewed / name).replace(tmp_path / "server" / name)
    assert await is_answered(new()) and not await is_answered(old())
    with pytest.raises(NotFound):
        await staying.count("c", [0], timeout=10)
    await staying.close()


async def test_a_router_shows_its_renewed_certificate(
    authority: trustme.CA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0)
    store = LocalObjectStore(tmp_path / "store")
    mine = issue(authority, tmp_path / "router", tls.NAME)
    theirs = issue(authority, tmp_path / "server", tls.NAME)
    server = ShardServer(store, tmp_path / "before", host="127.0.0.1", tls=str(theirs))
    port = server.start()
    topology = Topology(servers={"server-0": f"127.0.0.1:{port}"}, placements={})
    fanout = Fanout(
        cast(TopologyWatcher, SimpleNamespace(current=topology)),
        tls.channel_credentials(str(mine)),
    )
    assert (await fanout.collect(timeout=5))["server-0"]
    successor = trustme.CA()
    renew(successor, mine, tls.NAME)
    renew(successor, theirs, tls.NAME)
    assert (await fanout.collect(timeout=5))["server-0"], "by a connection that is made anew"
    server.stop(0)
    server = ShardServer(store, tmp_path / "after", host="127.0.0.1", port=port, tls=str(theirs))
    server.start()
    assert (await fanout.collect(timeout=5))["server-0"]
    await fanout.close()
    server.stop(0)


async def test_what_cannot_be_read_any_more_is_told_and_used_further_on(
    authority: trustme.CA,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tls, "LOOK_SECONDS", 0)
    directory = issue(authority, tmp_path / "files", tls.NAME)
    credentials = tls.channel_credentials(str(directory))
    first = credentials()
    assert credentials() is first
    (directory / tls.KEY).unlink()
    assert credentials() is first and credentials() is first
    assert [one.levelname for one in caplog.records] == ["ERROR"]
    assert tls.KEY in caplog.text
    renew(authority, directory, tls.NAME)
    assert credentials() is not first


@pytest.mark.cluster
def test_a_service_with_tls_everywhere(authority: trustme.CA, tmp_path: Path) -> None:
    served = issue(authority, tmp_path / "served", "127.0.0.1")
    inside = trustme.CA()
    cluster = issue(inside, tmp_path / "cluster", tls.NAME)
    with socket.create_server(("127.0.0.1", 0)) as free:
        grpc_port = free.getsockname()[1]
    options = (
        *("--shard-servers", "1", "--routers", "2", "--grpc-port", str(grpc_port)),
        *("--tls-cert", str(served / tls.CERTIFICATE), "--tls-key", str(served / tls.KEY)),
        *("--tls-client-ca", str(served / tls.AUTHORITY), "--cluster-tls", str(cluster)),
    )
    client = issue(authority, tmp_path / "client", "client@example.org")
    trusting = ssl.create_default_context(cafile=str(served / tls.AUTHORITY))
    known = ssl.create_default_context(cafile=str(served / tls.AUTHORITY))
    known.load_cert_chain(client / tls.CERTIFICATE, client / tls.KEY)
    with ShoalProcess(tmp_path / "data", *options) as shoal:
        assert shoal.url.startswith("https://")
        with httpx.Client(base_url=shoal.url, verify=known, timeout=60) as http:
            params = {"vectors": {"size": 2, "distance": "Dot"}, "shard_number": 2}
            assert http.put("/collections/c", json=params).status_code == 200
            points = {"points": [{"id": 1, "vector": [1, 2]}]}
            assert http.put("/collections/c/points?wait=true", json=points).status_code == 200
            counted = http.post("/collections/c/points/count", json={}).json()
            assert counted["result"]["count"] == 1
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{shoal.url}/", verify=trusting)
        with pytest.raises(httpx.TransportError):
            httpx.get(shoal.url.replace("https", "http"))
        topology = TopologyDocument(LocalObjectStore(tmp_path / "data")).read()
        (address,) = topology.servers.values()
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError):
            stub = health_pb2_grpc.HealthStub(channel)
            stub.Check(health_pb2.HealthCheckRequest(), timeout=5)

        # All are renewed, by other authorities, while it serves.
        successor = trustme.CA()
        for renewed, name in ((served, "127.0.0.1"), (client, "client@example.org")):
            renew(successor, renewed, name)
        renew(trustme.CA(), cluster, tls.NAME)
        time.sleep(2 * tls.LOOK_SECONDS)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{shoal.url}/", verify=known)
        known = ssl.create_default_context(cafile=str(served / tls.AUTHORITY))
        known.load_cert_chain(client / tls.CERTIFICATE, client / tls.KEY)
        trusting = ssl.create_default_context(cafile=str(served / tls.AUTHORITY))
        for _ in range(10):  # Each a connection of its own, to one of the routers.
            counted = httpx.post(
                f"{shoal.url}/collections/c/points/count", json={}, verify=known, timeout=60
            ).json()
            assert counted["result"]["count"] == 1
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{shoal.url}/", verify=trusting)
        credentials = grpc.ssl_channel_credentials(
            successor.cert_pem.bytes(),
            (client / tls.KEY).read_bytes(),
            (client / tls.CERTIFICATE).read_bytes(),
        )
        with grpc.secure_channel(f"127.0.0.1:{grpc_port}", credentials) as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=10
            )
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
