"""TLS: between clients and routers, and between routers and shard servers."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.topology import TopologyDocument
from shard.errors import InvalidInput, NotFound, Unavailable
from shard.objects.local import LocalObjectStore
from shard.rpc import tls
from shard.rpc.client import ShardClient
from shard.rpc.server import ShardServer
from tests.certificates import issue
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
    client = ShardClient(
        guarded, tls.channel_credentials(str(issue(authority, tmp_path / "router", tls.NAME)))
    )
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
        client = ShardClient(f"127.0.0.1:{server.start()}", mine)
        with pytest.raises(Unavailable):
            await client.count("c", [0], timeout=5)
        await client.close()
        server.stop(0)


def test_files_that_are_missing_are_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"tls\.crt"):
        tls.server_credentials(str(tmp_path))


@pytest.mark.cluster
def test_a_service_with_tls_everywhere(authority: trustme.CA, tmp_path: Path) -> None:
    served = issue(authority, tmp_path / "served", "127.0.0.1")
    inside = trustme.CA()
    cluster = issue(inside, tmp_path / "cluster", tls.NAME)
    options = (
        *("--shard-servers", "1", "--routers", "2"),
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
