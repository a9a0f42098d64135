"""Bulk loads into a live service, with real processes that may be killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import pytest
from qdrant_client import QdrantClient, models

from shard.objects import ObjectStore, open_object_store
from shard.objects.local import LocalObjectStore
from tests.shoal_process import ShoalProcess

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

DIMENSION = 16
ROWS = 120_000


VECTORS: np.ndarray[Any, Any] = (
    np.random.default_rng(0).normal(size=(ROWS + 5_000, DIMENSION)).astype(np.float32)
)


def vectors_of(ids: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
    """Of each id its own, whatever file or row it is in."""
    found: np.ndarray[Any, Any] = VECTORS[ids]
    return found


def table_of(ids: np.ndarray[Any, np.dtype[np.int64]], word: str) -> pa.Table:
    vectors = pa.FixedSizeListArray.from_arrays(vectors_of(ids).reshape(-1), DIMENSION)
    return pa.table({"id": ids, "vector": vectors, "of": [word] * len(ids)})


def write_files(directory: Path, files: int = 4, rows: int = ROWS, word: str = "job") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, ids in enumerate(np.array_split(np.arange(rows), files)):
        table = table_of(ids, word)
        pq.write_table(table, directory / f"{number}.parquet", row_group_size=2_500)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ingest") / "data"


@pytest.fixture(scope="module")
def shoal(data: Path) -> Iterator[ShoalProcess]:
    with ShoalProcess(data, "--shard-servers", "2") as process:
        yield process


@pytest.fixture(scope="module")
def store(data: Path) -> ObjectStore:
    return LocalObjectStore(data)


@pytest.fixture
def collection(shoal: ShoalProcess, request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.node.name.partition("[")[0]
    client = QdrantClient(url=shoal.url, timeout=60)
    create(client, name)
    yield name
    client.delete_collection(name)
    client.close()


@pytest.fixture
def client(shoal: ShoalProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, timeout=60)
    yield client
    client.close()


def create(client: QdrantClient, name: str) -> None:
    client.create_collection(
        name, models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID), shard_number=3
    )


class Jobs:
    def __init__(self, url: str, collection: str) -> None:
        self._where = f"{url}/collections/{collection}/ingest"
        self._http = httpx.Client(timeout=60)

    def start(self, source: object, **settings: Any) -> dict[str, Any]:
        answered = self._http.post(self._where, json={"source": str(source), **settings})
        assert answered.status_code == 200, answered.text
        job: dict[str, Any] = answered.json()["result"]
        return job

    def get(self, job: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get(f"{self._where}/{job['id']}").json()["result"]
        return found

    def cancel(self, job: dict[str, Any]) -> httpx.Response:
        return self._http.delete(f"{self._where}/{job['id']}")

    def end(self, job: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        while True:
            job = self.get(job)
            if job["state"] in ("done", "failed", "cancelled"):
                return job
            assert time.monotonic() < deadline, job
            time.sleep(0.1)


def words(client: QdrantClient, collection: str) -> dict[int, str]:
    """The payload's word of every point, by id."""
    found: dict[int, str] = {}
    start: Any = None
    while True:
        records, start = client.scroll(collection, limit=20_000, offset=start)
        for record in records:
            assert isinstance(record.id, int) and record.id not in found
            found[record.id] = (record.payload or {})["of"]
        if start is None:
            return found


def left_over(store: ObjectStore, job: dict[str, Any]) -> list[str]:
    """What is still stored of a job but its rejects."""
    keys = [key for key in store.list(f"ingest/{job['id']}/") if "/rejects/" not in key]
    keys += [key for key in store.list(f"collections/{job['collection_id']}/") if job["id"] in key]
    return keys


def wait_until_clean(store: ObjectStore, job: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while left_over(store, job):
        assert time.monotonic() < deadline, left_over(store, job)
        time.sleep(0.2)


def test_files_become_points_and_a_second_run_changes_nothing(
    shoal: ShoalProcess, client: QdrantClient, collection: str, tmp_path: Path
) -> None:
    write_files(tmp_path / "files")
    jobs = Jobs(shoal.url, collection)
    began = time.monotonic()
    job = jobs.end(jobs.start(tmp_path / "files"))
    took = time.monotonic() - began
    assert job["state"] == "done", job
    assert job["rows_total"] == job["rows_read"] == job["rows_loaded"] == ROWS
    assert client.count(collection).count == ROWS
    assert words(client, collection) == dict.fromkeys(range(ROWS), "job")
    asked = vectors_of(np.array([5, ROWS - 1, 30_000]))
    for number, vector in zip((5, ROWS - 1, 30_000), asked, strict=True):
        (hit,) = client.query_points(collection, vector.tolist(), limit=1).points
        assert hit.id == number and hit.score < 1e-3
    assert client.get_collection(collection).indexed_vectors_count == ROWS

    client.delete(collection, [1, 2, 3], wait=True)
    began = time.monotonic()
    again = jobs.end(jobs.start(tmp_path / "files"))
    assert again["same_as"] == job["id"] and time.monotonic() - began < max(3.0, took)
    assert client.count(collection).count == ROWS - 3
    forced = jobs.end(jobs.start(tmp_path / "files", again=True))
    assert forced["state"] == "done" and not forced["same_as"]
    assert client.count(collection).count == ROWS


@pytest.mark.parametrize("dense", [1, 2])
def test_vectors_by_name_are_loaded_and_searched(
    shoal: ShoalProcess, client: QdrantClient, tmp_path: Path, dense: int
) -> None:
    """A template is for all segments where only one name is that of dense vectors."""
    rows, collection = 45_000, f"named-{dense}"
    params = models.VectorParams(size=DIMENSION, distance=models.Distance.EUCLID)
    client.create_collection(
        collection,
        dict.fromkeys(("image", "more")[:dense], params),
        sparse_vectors_config={"words": models.SparseVectorParams()},
        shard_number=3,
    )
    ids = np.arange(rows)
    # Every tenth point has no image, every third no words, and so every thirtieth nothing.
    terms = np.random.default_rng(1).integers(0, 5_000, (rows, 2))
    images = [row if one % 10 else None for one, row in enumerate(VECTORS[:rows])]
    words = [
        {"indices": np.unique(own), "values": np.unique(own) / 100} if one % 3 else None
        for one, own in enumerate(terms)
    ]
    sparse = pa.struct([("indices", pa.list_(pa.int64())), ("values", pa.list_(pa.float64()))])
    table = pa.table(
        {
            "id": ids,
            "picture": pa.array(images, pa.list_(pa.float32(), DIMENSION)),
            "sparse_values": pa.array(words, sparse),
            "of": ["job"] * rows,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5_000)
    jobs = Jobs(shoal.url, collection)
    lost = rows // 30
    job = jobs.end(
        jobs.start(tmp_path, columns={"vectors": {"image": "picture"}}, max_bad_rows=lost)
    )
    assert job["state"] == "done", job
    assert (job["rows_loaded"], job["bad_rows"]) == (rows - lost, lost)
    assert job["bad"][0] == {"file": "a.parquet", "row": 0, "reason": "no vector"}
    deadline = time.monotonic() + 60
    while client.get_collection(collection).indexed_vectors_count != rows - lost:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for one in (1, 3, 44_999):
        (hit,) = client.query_points(
            collection, VECTORS[one].tolist(), using="image", limit=1
        ).points
        assert hit.id == one and hit.score < 1e-3
        query = models.SparseVector(indices=terms[one].tolist(), values=[1.0, 2.0])
        hits = client.query_points(collection, query, using="words", limit=5).points
        scores = (terms[:, :, None] == terms[one]) * (terms / 100)[:, :, None] * [1.0, 2.0]
        scores[terms[:, 0] == terms[:, 1], 1] = 0  # Twice the same term is there once.
        best = np.sort(scores.sum(axis=(1, 2))[ids % 3 > 0])[::-1][:5]
        np.testing.assert_allclose([hit.score for hit in hits], best[best > 0], rtol=1e-5)
    (record,) = client.retrieve(collection, [3], with_vectors=True)
    assert isinstance(record.vector, dict) and record.vector.keys() == {"image"}
    np.testing.assert_array_equal(np.array(record.vector["image"], np.float32), VECTORS[3])
    client.delete_collection(collection)


def test_a_live_collection_keeps_what_is_newer(
    shoal: ShoalProcess,
    client: QdrantClient,
    collection: str,
    tmp_path: Path,
    store: ObjectStore,
) -> None:
    """Points are written and deleted all the time, some of them the job's as well."""
    write_files(tmp_path / "files")

    def upsert(ids: list[Any], word: str) -> None:
        vectors = vectors_of(np.array(ids))
        payloads = [{"of": word}] * len(ids)
        client.upsert(
            collection, models.Batch(ids=ids, vectors=vectors.tolist(), payloads=payloads)
        )

    expected = dict.fromkeys(range(ROWS), "job")
    upsert([*range(1_000), *range(ROWS, ROWS + 1_000)], "before")
    client.delete(collection, list(range(500, 600)), wait=True)
    expected |= dict.fromkeys(range(ROWS, ROWS + 1_000), "before")
    jobs = Jobs(shoal.url, collection)
    job = jobs.start(tmp_path / "files", chunk_mb=1)
    while jobs.get(job)["state"] in ("queued", "planning"):
        time.sleep(0.02)
    random.seed(0)
    counts: list[int] = []
    while jobs.get(job)["state"] in ("training", "encoding") or not counts:
        ids = random.sample(range(ROWS + 2_000), 50)
        upsert(ids, "after")
        expected |= dict.fromkeys(ids, "after")
        gone: list[Any] = random.sample(range(ROWS), 10)
        client.delete(collection, gone, wait=True)
        for one in gone:
            expected.pop(one, None)
        counts.append(client.count(collection).count)
    assert max(counts) < 20_000  # All or nothing.
    assert jobs.end(job)["state"] == "done"
    assert words(client, collection) == expected
    wait_until_clean_but_segments(store, job)


def wait_for_chunk(store: ObjectStore, job: dict[str, Any]) -> None:
    """Until a part of the job is encoded."""
    deadline = time.monotonic() + 60
    while not any(store.list(f"ingest/{job['id']}/chunk/")):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_until_clean_but_segments(store: ObjectStore, job: dict[str, Any]) -> None:
    deadline = time.monotonic() + 60
    while any("/segment/" not in key for key in left_over(store, job)):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_bad_rows_are_counted_told_and_kept(
    shoal: ShoalProcess,
    client: QdrantClient,
    collection: str,
    tmp_path: Path,
    store: ObjectStore,
) -> None:
    files = tmp_path / "files"
    write_files(files, files=2, rows=10_000)
    # Ids that are there before, in the same file and in another one, and vectors of all sorts.
    pq.write_table(table_of(np.array([7, 20_000, 20_000, 9_999]), "twice"), files / "z.parquet")
    lines = (
        '{"id": 30000, "vector": [1]}\n'
        '{"id": 30001, "vector": ' + str([0.5] * DIMENSION) + ', "of": "line"}\n'
        "nonsense\n"
        '{"id": 30002, "vector": null}\n'
    )
    (files / "zz.jsonl").write_text(lines)
    jobs = Jobs(shoal.url, collection)
    job = jobs.end(jobs.start(files, max_bad_rows=5))
    assert job["state"] == "failed" and "6 bad rows, expected at most 5" in job["error"], job
    assert client.count(collection).count == 0
    wait_until_clean(store, job)

    job = jobs.end(jobs.start(files, max_bad_rows=6, chunk_mb=1))
    assert job["state"] == "done", job
    assert (job["bad_rows"], job["rows_loaded"], job["rows_read"]) == (6, 10_002, 10_008)
    told = {(one["file"], one["row"]): one["reason"] for one in job["bad"]}
    assert told[("z.parquet", 0)] == "id 7 is there before"
    assert told[("z.parquet", 2)] == "id 20000 is there before"
    assert told[("z.parquet", 3)] == "id 9999 is there before"
    assert told[("zz.jsonl", 0)] == "vector: expected dimension 16, got 1"
    assert told[("zz.jsonl", 2)].startswith("unparsable")
    assert told[("zz.jsonl", 3)] == "vector: null"
    rejected = b"".join(store.get(key) for key in store.list(f"ingest/{job['id']}/rejects/"))
    assert rejected.count(b"\n") == 6
    found = words(client, collection)
    assert len(found) == 10_002
    assert (found[7], found[20_000], found[30_001]) == ("job", "twice", "line")


def test_a_job_that_is_cancelled_leaves_nothing(
    shoal: ShoalProcess,
    client: QdrantClient,
    collection: str,
    tmp_path: Path,
    store: ObjectStore,
) -> None:
    write_files(tmp_path / "files")
    jobs = Jobs(shoal.url, collection)
    job = jobs.start(tmp_path / "files", chunk_mb=1)
    wait_for_chunk(store, job)
    refused = httpx.post(
        f"{shoal.url}/collections/{collection}/ingest", json={"source": "/somewhere"}
    )
    assert refused.status_code == 400 and "is under way" in refused.text
    assert jobs.cancel(job).status_code == 200
    assert jobs.end(job)["state"] == "cancelled"
    assert jobs.cancel(job).status_code == 400
    wait_until_clean(store, job)
    assert client.count(collection).count == 0


def test_what_cannot_be_loaded_is_said(
    shoal: ShoalProcess, client: QdrantClient, collection: str, tmp_path: Path
) -> None:
    jobs = Jobs(shoal.url, collection)
    url = f"{shoal.url}/collections/{collection}/ingest"
    for body, status, message in (
        ({}, 400, "source"),
        ({"source": "relative/path"}, 400, "expected an absolute path"),
        ({"source": "http://127.0.0.1/x"}, 400, "expected s3://"),
        ({"source": "/x", "chunk_mb": 0}, 422, "chunk_mb"),
        ({"source": "/x", "columns": {"ids": "a"}}, 400, "ids"),
    ):
        answered = httpx.post(url, json=body)
        assert (answered.status_code, message in answered.text) == (status, True), answered.text
    assert (
        httpx.post(f"{shoal.url}/collections/no/ingest", json={"source": "/x"}).status_code == 404
    )
    assert httpx.get(f"{url}/{'0' * 32}").status_code == 404
    job = jobs.end(jobs.start(tmp_path / "nowhere"))
    assert job["state"] == "failed" and "no file there" in job["error"]
    pq.write_table(pa.table({"id": [1], "v": ["text"]}), tmp_path / "a.parquet")
    job = jobs.end(jobs.start(tmp_path))
    assert job["state"] == "failed" and "columns.vector" in job["error"], job
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    job = jobs.end(jobs.start(tmp_path))
    assert job["state"] == "failed" and "a.parquet" in job["error"], job


def test_the_command_line_loads_and_watches(
    shoal: ShoalProcess, client: QdrantClient, collection: str, tmp_path: Path
) -> None:
    write_files(tmp_path / "files", rows=5_000)
    command = [sys.executable, "-m", "router.cli", "ingest", "files", "--watch"]
    command += ["--url", shoal.url, "--collection"]
    done = subprocess.run(
        [*command, collection], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "5,000 rows in" in done.stdout, done
    done = subprocess.run(
        [*command, collection], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "nothing to do" in done.stdout, done
    failed = subprocess.run(
        [*command, "missing"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1 and "doesn't exist" in failed.stderr
    assert client.count(collection).count == 5_000


def test_from_a_bucket(s3_url: str, tmp_path: Path) -> None:
    write_files(tmp_path / "files", rows=20_000)
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    s3 = pa_fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    bucket = s3_url.removeprefix("s3://").replace("test-", "source-")
    pa_fs.copy_files(str(tmp_path / "files"), bucket, destination_filesystem=s3)
    with ShoalProcess(s3_url, "--shard-servers", "2") as shoal:
        client = QdrantClient(url=shoal.url, timeout=60)
        create(client, "bucket")
        jobs = Jobs(shoal.url, "bucket")
        job = jobs.end(jobs.start(f"s3://{bucket}/*.parquet"))
        assert job["state"] == "done", job
        shoal.kill_all()
        shoal.start()
        client = QdrantClient(url=shoal.url, timeout=60)
        assert words(client, "bucket") == dict.fromkeys(range(20_000), "job")
        assert not any("/segment/" not in key for key in left_over(open_object_store(s3_url), job))


@pytest.mark.parametrize("victim", ["ray::encode", "ray::Supervisor", "ray::ShardServerActor"])
def test_whatever_is_killed_the_job_ends_with_exactly_its_rows(
    shoal: ShoalProcess, client: QdrantClient, collection: str, tmp_path: Path, victim: str
) -> None:
    write_files(tmp_path / "files")
    jobs = Jobs(shoal.url, collection)
    rounds = int(os.environ.get("SHOAL_TEST_KILLS", "2"))
    killed = tries = 0
    while killed < rounds:
        tries += 1
        assert tries <= 3 * rounds  # A job may be over before its turn comes.
        job = jobs.start(tmp_path / "files", chunk_mb=1, again=True)
        over = Event()

        def kill(over: Event = over) -> None:
            nonlocal killed
            # Encoding is soon over; the others are there all the time.
            time.sleep(random.random() * (0.2 if victim == "ray::encode" else 1.5))
            while not over.is_set():
                victims = [pid for pid in shoal.find(victim) if pid != shoal.pid]
                if victims:
                    os.kill(random.choice(victims), signal.SIGKILL)
                    killed += 1
                    return
                time.sleep(0.005)

        killer = Thread(target=kill)
        killer.start()
        job = jobs.end(job, 180)
        over.set()
        killer.join()
        assert job["state"] == "done", job
        assert job["rows_loaded"] == ROWS
        assert words(client, collection) == dict.fromkeys(range(ROWS), "job")
