"""``shoal serve`` from start to stop, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import QdrantClient, models

from cluster.topology import TopologyDocument
from shard.objects.local import LocalObjectStore
from tests.shoal_process import ShoalProcess, wait_until_gone

pytestmark = pytest.mark.cluster

DIMENSION = 8


def points(ids: range) -> list[models.PointStruct]:
    return [
        models.PointStruct(id=number, vector=vector_of(number), payload={"n": number})
        for number in ids
    ]


def vector_of(number: int) -> list[float]:
    vector: list[float] = np.random.default_rng(number).normal(size=DIMENSION).tolist()
    return vector


def create(client: QdrantClient, name: str) -> None:
    client.create_collection(
        name, models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID), shard_number=3
    )


def nearest_id(client: QdrantClient, name: str, number: int) -> object:
    return client.query_points(name, vector_of(number), limit=1).points[0].id


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("serve") / "data"


@pytest.fixture(scope="module")
def shoal(data: Path) -> Iterator[ShoalProcess]:
    with ShoalProcess(data, "--shard-servers", "2") as process:
        yield process


@pytest.fixture(scope="module")
def client(shoal: ShoalProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, timeout=60)
    yield client
    client.close()


def test_it_is_ready_when_it_says_so(shoal: ShoalProcess) -> None:
    assert httpx.get(f"{shoal.url}/readyz").status_code == 200
    assert httpx.get(f"{shoal.url}/openapi.json").json()["info"]["title"] == "Shoal"


def test_shard_servers_listen_on_loopback_only(shoal: ShoalProcess, data: Path) -> None:
    addresses = TopologyDocument(LocalObjectStore(data)).read().servers.values()
    assert len(addresses) == 2
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_a_second_service_on_the_same_directory_says_why_not(
    shoal: ShoalProcess, data: Path
) -> None:
    second = serve("--data", str(data), "--port", "0", "--grpc-port", "0", cwd=data.parent)
    assert second.returncode == 1
    assert "another `shoal serve` is using it" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_killed_shard_server_is_back_within_seconds_with_everything(
    shoal: ShoalProcess, client: QdrantClient
) -> None:
    create(client, "killed")
    client.upsert("killed", points(range(200)), wait=True)
    for round_, pid in enumerate(shoal.find("ray::ShardServerActor")):
        os.kill(pid, signal.SIGKILL)
        assert client.count("killed").count == 200 + round_
        assert nearest_id(client, "killed", 7) == 7
        client.upsert("killed", points(range(200 + round_, 201 + round_)), wait=True)
    assert client.count("killed").count == 202


def test_a_killed_supervisor_is_replaced(shoal: ShoalProcess, client: QdrantClient) -> None:
    (before,) = shoal.find("ray::Supervisor")
    os.kill(before, signal.SIGKILL)
    until(lambda: shoal.find("ray::Supervisor") not in ([], [before]))
    create(client, "placed-by-the-next")
    client.upsert("placed-by-the-next", points(range(10)), wait=True)
    assert client.count("placed-by-the-next").count == 10


def test_a_deleted_collection_is_erased(client: QdrantClient, data: Path) -> None:
    create(client, "erased")
    client.upsert("erased", points(range(10)), wait=True)
    before = set((data / "collections").iterdir())
    client.delete_collection("erased")
    until(lambda: len(list((data / "collections").iterdir())) == len(before) - 1)
    create(client, "erased")
    assert client.count("erased").count == 0


def test_queries_and_writes_go_on_without_rays_head(tmp_path: Path) -> None:
    with ShoalProcess(tmp_path / "data") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "headless")
        client.upsert("headless", points(range(100)), wait=True)
        for name in ("ray::Supervisor", "gcs_server"):
            for pid in shoal.find(name):
                os.kill(pid, signal.SIGKILL)
        for round_ in range(20):
            assert nearest_id(client, "headless", 5) == 5
            client.upsert("headless", points(range(100 + round_, 101 + round_)), wait=True)
            time.sleep(0.25)
        assert client.count("headless").count == 120
        assert shoal.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stops_clean_and_serves_again(tmp_path: Path, number: signal.Signals) -> None:
    data = tmp_path / "data"
    with ShoalProcess(data, "--shard-servers", "1") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "kept")
        client.upsert("kept", points(range(50)), wait=True)
        pids = list(shoal.processes())
        assert shoal.stop(number) == 0
        wait_until_gone(pids, 5)
    assert not (data / ".scratch").exists()
    with ShoalProcess(data, "--shard-servers", "1") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        assert client.count("kept").count == 50
        assert nearest_id(client, "kept", 33) == 33


def test_nothing_stays_behind_when_it_is_killed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with ShoalProcess(data, "--shard-servers", "1") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "kept")
        client.upsert("kept", points(range(50)), wait=True)
        pids = list(shoal.processes())
        os.kill(shoal.pid, signal.SIGKILL)
        wait_until_gone(pids[1:], 20)
    with ShoalProcess(data, "--shard-servers", "1") as shoal:
        # Ready means that its own shard servers are, not that those before it were.
        (address,) = TopologyDocument(LocalObjectStore(data)).read().servers.values()
        host, _, port = address.partition(":")
        socket.create_connection((host, int(port)), 1).close()
        assert QdrantClient(url=shoal.url, timeout=60).count("kept").count == 50


def test_router_processes_share_the_port(tmp_path: Path) -> None:
    with ShoalProcess(tmp_path / "data", "--shard-servers", "1", "--routers", "3") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "routed")
        client.upsert("routed", points(range(50)), wait=True)
        workers = shoal.find("router.worker")
        assert len(workers) == 2
        # Without the others, each one answers, about a collection that it did not create too.
        for answering in (shoal.pid, *workers):
            others = {shoal.pid, *workers} - {answering}
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            assert ask_anew(shoal.url, "routed") == 50
            for pid in others:
                os.kill(pid, signal.SIGCONT)
        os.kill(workers[0], signal.SIGKILL)
        until(lambda: len(set(shoal.find("router.worker")) - {workers[0]}) == 2)
        assert ask_anew(shoal.url, "routed") == 50
        pids = list(shoal.processes())
        assert shoal.stop() == 0
        wait_until_gone(pids, 5)


def test_router_processes_share_the_port_for_grpc(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = ["--shard-servers", "1", "--routers", "3", "--grpc-port", str(port)]
    with ShoalProcess(tmp_path / "data", *options) as shoal:
        listening = {
            connection.pid
            for connection in psutil.net_connections("tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,)
        }
        assert listening == {shoal.pid, *shoal.find("router.worker")}
        for round_ in range(8):  # Each by one of them, or another.
            client = QdrantClient(url=shoal.url, grpc_port=port, prefer_grpc=True, timeout=60)
            if not round_:
                create(client, "routed")
                client.upsert("routed", points(range(50)), wait=True)
            assert client.count("routed").count == 50
            client.close()
        options = ["--data", str(tmp_path / "other"), "--port", "0", "--grpc-port", str(port)]
        assert "cannot listen on" in serve(*options, cwd=tmp_path).stderr


def ask_anew(url: str, name: str) -> int:
    """Count points over a new connection, which whoever accepts first answers."""
    answer = httpx.post(f"{url}/collections/{name}/points/count", json={}, timeout=60)
    count: int = answer.raise_for_status().json()["result"]["count"]
    return count


def test_nothing_of_several_routers_stays_behind_when_it_is_killed(tmp_path: Path) -> None:
    with ShoalProcess(tmp_path / "data", "--shard-servers", "1", "--routers", "2") as shoal:
        pids = list(shoal.processes())
        os.kill(shoal.pid, signal.SIGKILL)
        wait_until_gone(pids[1:], 20)


def test_it_serves_from_s3(s3_url: str) -> None:
    with ShoalProcess(f"{s3_url}/cluster", "--shard-servers", "1") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "remote")
        client.upsert("remote", points(range(50)), wait=True)
        shoal.kill_all()
    with ShoalProcess(f"{s3_url}/cluster", "--shard-servers", "1") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        assert client.count("remote").count == 50
        assert nearest_id(client, "remote", 33) == 33


def test_a_cluster_that_takes_a_store_over_ends_the_other_ones_shards(s3_url: str) -> None:
    with (
        ShoalProcess(f"{s3_url}/taken", "--shard-servers", "1") as first,
        ShoalProcess(f"{s3_url}/taken", "--shard-servers", "1") as second,
    ):
        client = QdrantClient(url=second.url, timeout=60)
        create(client, "shared")
        client.upsert("shared", points(range(50)), wait=True)
        until(lambda: not first.find("ray::ShardServerActor"))
        # The first one's router finds the shards of the second.
        assert QdrantClient(url=first.url, timeout=60).count("shared").count == 50


def test_options_come_from_the_environment(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        grpc_port = probe.getsockname()[1]
    env = {"SHOAL_SHARDS": "5", "SHOAL_SHARD_SERVERS": "1", "SHOAL_LOG_LEVEL": "error"}
    options = ["--grpc-port", str(grpc_port)]
    with ShoalProcess(tmp_path / "data", *options, env=env) as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        client.create_collection(
            "five", models.VectorParams(size=2, distance=models.Distance.COSINE)
        )
        assert client.get_collection("five").config.params.shard_number == 5
        assert len(shoal.find("ray::ShardServerActor")) == 1
        with grpc.insecure_channel(f"127.0.0.1:{grpc_port}") as channel:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    topology = TopologyDocument(LocalObjectStore(tmp_path / "data")).read()
    assert len(topology.servers) == 1


def test_what_cannot_be_served_is_told_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        data = ["--data", str(tmp_path / "data")]
        (tmp_path / "file").write_text("")
        cases = [
            ([*data, "--port", port], "in use", 1),
            ([*data, "--port", "0", "--grpc-port", port], "cannot listen on", 1),
            (["--data", str(tmp_path / "file"), "--port", "0"], "cannot be written", 1),
            (["--data", "ftp://x/y", "--port", "0"], "expected a directory or s3://", 1),
            ([*data, "--port", "66000"], "not in the range", 2),
            ([*data, "--shards", "0"], "not in the range", 2),
        ]
        for arguments, message, status in cases:
            failed = serve(*arguments, cwd=tmp_path)
            assert message in failed.stderr
            assert "Traceback" not in failed.stderr
            assert failed.returncode == status
            assert failed.stdout == ""
    # What fails leaves nothing behind.
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


def serve(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "router.cli", "serve", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
