"""Exports and snapshots: what goes out comes in again, to the last bit."""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from cluster.catalog import Catalog, Collection
from cluster.export.jobs import ExportedFile, Summary
from cluster.export.tasks import _files
from cluster.ingest.jobs import Columns
from cluster.ingest.rows import Parser
from cluster.ingest.sources import Source
from cluster.snapshots import Snapshots, archive_bytes
from router.api.convert import encode_payloads
from shard.errors import InvalidInput, NotFound
from shard.model import UNNAMED, Distance, PointId, Points, ShardConfig, encode_ids, unnamed
from shard.objects.local import LocalObjectStore
from tests import columns
from tests.columns import MANY, SOME, WHOLE, WORDS, rows_of
from tests.shoal_process import ShoalProcess

ids = st.integers(0, 2**64 - 1) | st.uuids()
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
payloads = st.none() | st.dictionaries(st.text(max_size=6), json_values, max_size=4)
components = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None)
@given(
    st.data(),
    st.integers(1, 5),
    st.sampled_from([Distance.COSINE, Distance.EUCLID]),
    st.lists(st.tuples(ids, payloads), max_size=12, unique_by=lambda one: one[0]),
)
def test_rows_come_back_to_the_last_bit(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    dimension: int,
    distance: Distance,
    rows: list[tuple[PointId, dict[str, Any] | None]],
) -> None:
    folder = tmp_path_factory.mktemp("files")
    config = ShardConfig.unnamed(dimension, distance)
    row = st.lists(components, min_size=dimension, max_size=dimension)
    given_vectors = [data.draw(row) for _ in rows]
    own = config.vectors[UNNAMED]
    vectors = own.prepare(np.array(given_vectors, np.float32).reshape(-1, dimension))
    order = sorted(range(len(rows)), key=lambda one: encode_ids([rows[one][0]])[0])
    points = Points(
        encode_ids([rows[one][0] for one in order]),
        encode_payloads([rows[one][1] for one in order], "{}"),
        unnamed(vectors[order]),
    )
    found: list[tuple[bytes, bytes, bytes]] = []
    for path, count in _files(iter([points]), config, folder):
        source = Source(str(path))
        (file,) = source.files()
        before = len(found)
        for part in source.ranges(0, file, 1):
            for batch in source.read(file, part):
                parser = Parser(Columns(), config, batch.columns.schema, file)
                parsed = parser.parse(batch)
                assert not parsed.bad and not parser.ignored
                again = own.prepare(parsed.vectors[UNNAMED].values)
                found += [
                    (bytes(key), payload, vector.tobytes())
                    for key, payload, vector in zip(
                        parsed.keys.tolist(), parsed.payloads, again, strict=True
                    )
                ]
        assert len(found) - before == count
    assert points.payloads is not None
    assert found == [
        (key, payload, vector.tobytes())
        for key, payload, vector in zip(
            points.keys.tolist(), points.payloads, vectors[order], strict=True
        )
    ]


@settings(deadline=None)
@given(
    st.sampled_from([Distance.COSINE, Distance.EUCLID]),
    st.lists(
        st.tuples(
            ids,
            st.fixed_dictionaries(columns.rows | {WHOLE: st.none() | columns.rows[WHOLE]}),
        ),
        max_size=12,
        unique_by=lambda one: one[0],
    ),
)
def test_vectors_of_all_kinds_come_back_and_points_that_have_none(
    tmp_path_factory: pytest.TempPathFactory,
    distance: Distance,
    points: list[tuple[PointId, dict[str, columns.Row]]],
) -> None:
    config = columns.config_of(distance)
    points = sorted(points, key=lambda one: encode_ids([one[0]])[0])
    keys = encode_ids([one for one, _ in points])
    given = {
        name: columns.column(name, [rows[name] for _, rows in points], config)
        for name in config.names
    }
    stored = config.prepare(given, len(points))
    found: list[tuple[bytes, dict[str, columns.Row]]] = []
    exported = Points(keys, [b""] * len(points), stored)
    for path, _ in _files(iter([exported]), config, tmp_path_factory.mktemp("files")):
        source = Source(str(path))
        (file,) = source.files()
        for part in source.ranges(0, file, 1):
            for batch in source.read(file, part):
                parsed = Parser(Columns(), config, batch.columns.schema, file).parse(batch)
                assert not parsed.bad
                vectors = config.prepare(parsed.vectors, len(parsed.keys))
                found += zip(parsed.keys.tolist(), rows_of(vectors, config), strict=True)
    assert found == list(zip(keys.tolist(), rows_of(stored, config), strict=True))


def test_large_exports_are_parted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.export.tasks.FILE_BYTES", 40_000)
    monkeypatch.setattr("cluster.export.tasks.ROW_GROUP_BYTES", 16_000)
    config = ShardConfig.unnamed(8, Distance.EUCLID)
    vectors = unnamed(np.ones((500, 8), np.float32))
    batches = [
        Points(encode_ids(list(range(first, first + 500))), [b""] * 500, vectors)
        for first in range(0, 5_000, 500)
    ]
    counts = [count for _, count in _files(iter(batches), config, tmp_path)]
    assert counts == [1_000, 1_000, 1_000, 1_000, 1_000]
    assert list(_files(iter([]), config, tmp_path)) == []


def snapshot_of(store: LocalObjectStore, snapshots: Snapshots) -> Summary:
    config = ShardConfig.unnamed(2, Distance.DOT)
    files = [ExportedFile("shard-0000-000000.parquet", 600, 3), ExportedFile("b.parquet", 512, 1)]
    summary = Summary(
        name="s.snapshot",
        created=1_700_000_000.5,
        collection=Collection(id="c" * 32, name="näme", shard_count=2, config=config),
        files=files,
    )
    for file in files:
        store.put(snapshots.prefix("näme", "s.snapshot") + file.name, b"x" * file.bytes)
    encoded = msgspec.json.encode(summary)
    store.put(snapshots.prefix("näme", "s.snapshot") + "export.json", encoded)
    return summary


def test_archives_are_tar_files_and_come_back(tmp_path: Path) -> None:
    store = LocalObjectStore(tmp_path)
    snapshots = Snapshots(store, str(tmp_path))
    summary = snapshot_of(store, snapshots)
    size, pieces = snapshots.archive("näme", "s.snapshot")
    archive = b"".join(pieces)
    assert len(archive) == size == archive_bytes(summary)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert tar.getnames() == ["export.json", "shard-0000-000000.parquet", "b.parquet"]
    name = snapshots.add("other", io.BytesIO(archive))
    assert snapshots.get("other", name).files == summary.files
    assert [one.name for one in snapshots.all("other")] == [name]
    for damaged in (b"", b"nonsense" * 200, archive[:2_000], archive[: size - 2_048]):
        with pytest.raises(InvalidInput):
            snapshots.add("damaged", io.BytesIO(damaged))
    assert not list(store.list(snapshots.prefix("damaged", "x").rpartition("x")[0]))
    snapshots.delete("näme", "s.snapshot")
    for missing in ("s.snapshot", "../x", "no", ""):
        with pytest.raises(NotFound):
            snapshots.get("näme", missing)


def test_an_archive_with_other_files_is_refused(tmp_path: Path) -> None:
    snapshots = Snapshots(LocalObjectStore(tmp_path), str(tmp_path))
    for name in ("../../evil.parquet", "/etc/passwd", "a/b.parquet", "x.py"):
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
        archive.seek(0)
        with pytest.raises(InvalidInput, match="not a file of a snapshot"):
            snapshots.add("c", archive)


# Live


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export") / "data"


@pytest.fixture(scope="module")
def shoal(data: Path) -> Iterator[ShoalProcess]:
    with ShoalProcess(data, "--shard-servers", "2") as one:
        yield one


@pytest.fixture
def client(shoal: ShoalProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, timeout=120)
    yield client
    for one in client.get_collections().collections:
        client.delete_collection(one.name)
    client.close()


def fill(client: QdrantClient, name: str, rows: int = 4_000) -> None:
    client.create_collection(
        name, models.VectorParams(size=12, distance=models.Distance.COSINE), shard_number=3
    )
    vectors = np.random.default_rng(1).normal(size=(rows, 12))
    for first in range(0, rows, 1_000):
        points = [
            models.PointStruct(
                id=str(UUID(int=row)) if row % 3 == 0 else 2**63 + row,
                vector=vectors[row].tolist(),
                payload=None if row % 5 == 0 else {"n": row, "null": None, "s": ["ü", {"x": 0.1}]},
            )
            for row in range(first, first + 1_000)
        ]
        client.upsert(name, points)
    client.delete(name, [2**63 + 1, 2**63 + 2])


def everything(client: QdrantClient, name: str) -> list[tuple[Any, ...]]:
    found: list[tuple[Any, ...]] = []
    start: Any = None
    while True:
        records, start = client.scroll(name, limit=1_500, offset=start, with_vectors=True)
        found += [(record.id, record.payload, record.vector) for record in records]
        if start is None:
            return found


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.cluster
def test_an_export_is_ingested_as_the_same_collection(
    shoal: ShoalProcess, client: QdrantClient, tmp_path: Path
) -> None:
    fill(client, "here")
    place, options = str(tmp_path / "out"), ["--watch", "--url", shoal.url]
    done = run("export", place, "--collection", "here", *options)
    assert done.returncode == 0 and "3,998 rows in" in done.stdout, done
    again = run("export", place, "--collection", "here", *options)
    assert again.returncode == 1 and "expected an empty place" in again.stdout, again
    assert run("export", place, "--collection", "no", *options).returncode == 1
    client.create_collection(
        "there", models.VectorParams(size=12, distance=models.Distance.COSINE), shard_number=5
    )
    done = run("ingest", place, "--collection", "there", *options)
    assert done.returncode == 0 and "3,998 rows in" in done.stdout, done
    assert everything(client, "there") == everything(client, "here")
    where = f"{shoal.url}/collections/here/export"
    assert [one["state"] for one in httpx.get(where).json()["result"]["jobs"]] == ["done", "failed"]
    for body in ({}, {"destination": "relative"}, {"destination": "http://x/y"}):
        assert httpx.post(where, json=body).status_code == 400
    assert httpx.delete(f"{where}/{'0' * 32}").status_code == 404


@pytest.mark.cluster
def test_vectors_by_name_go_out_and_come_in_again(
    shoal: ShoalProcess, client: QdrantClient, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "vectors_config": {
            name: models.VectorParams(
                size=columns.DIMENSION,
                distance=models.Distance.COSINE,
                multivector_config=models.MultiVectorConfig(
                    comparator=models.MultiVectorComparator.MAX_SIM
                )
                if name == MANY
                else None,
            )
            for name in (WHOLE, SOME, MANY)
        },
        "sparse_vectors_config": {WORDS: models.SparseVectorParams()},
    }
    client.create_collection("named", shard_number=3, **settings)
    config = columns.config_of(Distance.COSINE)
    drawn = rows_of(columns.drawn(np.random.default_rng(0), 1_500, config), config)
    drawn[7] = dict.fromkeys(config.names)
    for first in range(0, len(drawn), 500):
        points = [
            models.PointStruct(
                id=first + number,
                payload={"n": first + number},
                vector={
                    name: models.SparseVector(indices=list(row), values=list(row.values()))
                    if name == WORDS
                    else row
                    for name, row in rows.items()
                    if row is not None
                },
            )
            for number, rows in enumerate(drawn[first : first + 500])
        ]
        client.upsert("named", points)
    before = everything(client, "named")
    assert [len(vector) for _, _, vector in before] == [
        sum(row is not None for row in rows.values()) for rows in drawn
    ]

    made = client.create_snapshot("named")
    assert made is not None
    client.delete("named", list(range(0, 1_500, 3)))
    client.upsert("named", [models.PointStruct(id=1, vector={}), points[0]])
    url = f"{shoal.url}/collections/named/snapshots/{made.name}"
    assert client.recover_snapshot("named", url)
    assert everything(client, "named") == before

    place, options = str(tmp_path / "out"), ["--watch", "--url", shoal.url]
    assert run("export", place, "--collection", "named", *options).returncode == 0
    client.create_collection("again", shard_number=2, **settings)
    done = run("ingest", place, "--collection", "again", *options)
    assert done.returncode == 0 and "1,500 rows in" in done.stdout, done
    assert everything(client, "again") == before
    query = models.SparseVector(indices=[3, 5], values=[1.0, 2.0])
    hits = [client.query_points(one, query, using=WORDS).points for one in ("named", "again")]
    assert hits[0] == hits[1] and len(hits[0]) == 10


@pytest.mark.cluster
def test_two_exports_do_not_share_a_place(
    shoal: ShoalProcess, client: QdrantClient, tmp_path: Path
) -> None:
    fill(client, "a", 2_000)
    fill(client, "b", 2_000)
    jobs = [
        httpx.post(
            f"{shoal.url}/collections/{name}/export", json={"destination": str(tmp_path / "out")}
        ).json()["result"]
        for name in ("a", "b")
    ]
    ended = [end_of(shoal, f"{job['collection']}/export", job) for job in jobs]
    assert sorted(job["state"] for job in ended) == ["done", "failed"]
    (done,) = [job for job in ended if job["state"] == "done"]
    deadline = time.monotonic() + 30
    while (tmp_path / "out" / "export.job").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    summary = msgspec.json.decode((tmp_path / "out" / "export.json").read_bytes(), type=Summary)
    assert summary.collection.name == done["collection"] and summary.rows == 1_998


def end_of(shoal: ShoalProcess, where: str, job: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while job["state"] not in ("done", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.1)
        job = httpx.get(f"{shoal.url}/collections/{where}/{job['id']}").json()["result"]
    return job


@pytest.mark.cluster
def test_a_bad_snapshot_leaves_the_collection_as_it_was(
    shoal: ShoalProcess, client: QdrantClient, data: Path, tmp_path: Path
) -> None:
    fill(client, "kept", 1_000)
    before = everything(client, "kept")
    made = client.create_snapshot("kept")
    assert made is not None
    archive = httpx.get(f"{shoal.url}/collections/kept/snapshots/{made.name}").content
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]
    told = msgspec.json.decode(members["export.json"])

    def changed(**changes: Any) -> Path:
        summary = msgspec.json.decode(members["export.json"])
        for path, value in changes.items():
            *parents, last = path.split("__")
            inner = summary
            for step in parents:
                inner = inner[int(step) if step.isdecimal() else step]
            inner[last] = value
        place = tmp_path / "changed.snapshot"
        with tarfile.open(place, "w") as out:
            for name, content in (members | {"export.json": msgspec.json.encode(summary)}).items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
        return place

    bad: list[dict[str, Any]] = [
        {"collection__config__vectors____dimension": -5},
        {"collection__config__vectors____dimension": 13},
        {"collection__config__vectors": {}},
        {"collection__config__sparse": {"": {}}},
        {"collection__shard_count": 0},
        {"collection__shard_count": 10**9},
        {"collection__settings": {"hnsw_config": 5, "vectors": "x"}},
        {"created": 1e300},
        {"files__0__rows": told["files"][0]["rows"] + 1},
        {"files": []},
    ]
    for changes in bad:
        with pytest.raises(UnexpectedResponse, match="400"):
            client.recover_snapshot("kept", f"file://{changed(**changes)}")
    for location in ("file:///tmp/a%00b", "http://[::1", "file:///dev/zero", "file:///tmp"):
        with pytest.raises(UnexpectedResponse, match="400"):
            client.recover_snapshot("kept", location)
    assert everything(client, "kept") == before
    assert [one.name for one in client.list_snapshots("kept")] == [made.name]
    good = tmp_path / "good.snapshot"
    good.write_bytes(archive)
    checksum = hashlib.sha256(archive).hexdigest()
    assert client.recover_snapshot("kept", f"file://{good}", checksum=checksum)
    assert everything(client, "kept") == before
    deadline = time.monotonic() + 60
    catalog = Catalog(LocalObjectStore(data))
    while any(one.hidden for one in catalog.collections().values()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.cluster
def test_snapshots_by_the_official_client(
    shoal: ShoalProcess, client: QdrantClient, tmp_path: Path
) -> None:
    fill(client, "one")
    before = everything(client, "one")
    made = client.create_snapshot("one", wait=True)
    assert made is not None
    assert [one.name for one in client.list_snapshots("one")] == [made.name]
    url = f"{shoal.url}/collections/one/snapshots/{made.name}"
    archive = httpx.get(url).content
    assert len(archive) == made.size
    (tmp_path / "a.snapshot").write_bytes(archive)

    # Into the collection itself, which has gone on since.
    client.delete("one", [2**63 + 4, 2**63 + 5])
    client.upsert("one", [models.PointStruct(id=1, vector=[1.0] * 12)])
    checksum = hashlib.sha256(archive).hexdigest()
    with pytest.raises(UnexpectedResponse, match="checksum"):
        client.recover_snapshot("one", url, checksum="0" * 64)
    assert client.recover_snapshot("one", url, checksum=checksum)
    assert everything(client, "one") == before

    # Into one that is made by it, and one with other shards.
    assert client.recover_snapshot("two", f"file://{tmp_path}/a.snapshot")
    assert everything(client, "two") == before
    client.create_collection(
        "three", models.VectorParams(size=3, distance=models.Distance.DOT), shard_number=5
    )
    assert client.recover_snapshot("three", url)
    assert everything(client, "three") == before
    info = httpx.get(f"{shoal.url}/collections/three").json()["result"]
    assert info["config"]["params"]["shard_number"] == 5
    names = {one.name for one in client.get_collections().collections}
    assert names == {"one", "two", "three"}
    hit = client.query_points("three", before[7][2], limit=1).points[0]
    assert str(hit.id) == str(before[7][0])

    for location in ("http://elsewhere/collections/one/snapshots/x", "ftp://x", "file:///no/file"):
        with pytest.raises(UnexpectedResponse, match="400"):
            client.recover_snapshot("one", location)
    with pytest.raises(UnexpectedResponse, match="404"):
        client.recover_snapshot("one", f"{shoal.url}/collections/one/snapshots/none")
    assert client.delete_snapshot("one", made.name)
    assert client.list_snapshots("one") == []
    with pytest.raises(UnexpectedResponse, match="404"):
        client.delete_snapshot("one", made.name)
    with pytest.raises(UnexpectedResponse, match="404"):
        client.create_snapshot("nowhere")
    assert everything(client, "one") == before


@pytest.mark.cluster
def test_an_empty_collection_and_not_waiting(shoal: ShoalProcess, client: QdrantClient) -> None:
    client.create_collection(
        "empty", models.VectorParams(size=3, distance=models.Distance.DOT), shard_number=2
    )
    answered = httpx.post(f"{shoal.url}/collections/empty/snapshots?wait=false")
    assert (answered.status_code, answered.json()["status"]) == (202, "accepted")
    deadline = time.monotonic() + 30
    while not client.list_snapshots("empty"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    (made,) = client.list_snapshots("empty")
    client.upsert("empty", [models.PointStruct(id=1, vector=[1.0, 2.0, 3.0])])
    assert client.recover_snapshot("empty", f"{shoal.url}/collections/empty/snapshots/{made.name}")
    assert client.count("empty").count == 0
