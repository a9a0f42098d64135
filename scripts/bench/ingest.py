"""A bulk load from a real S3 server, beside what FAISS alone takes.

    .venv/bin/python -m scripts.bench.ingest [--data NAME] [--out FILE]

Parquet files go from S3 into four shards whose truth is in the same S3. One reference trains, adds
and writes the same IVF-PQ index from an array in memory, on all cores. Another is the least that
ends where the load ends: processes that read the files from S3, add them to indexes, and put these
and the vectors into S3. Then the load is started again, and for its recall beside it the same rows
are upserted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from time import perf_counter, sleep
from typing import Any

import faiss
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
from rich.console import Console

from cluster.ingest.driver import Plan
from cluster.ingest.sources import Source
from scripts.bench import collection, data, s3, services
from scripts.bench.__main__ import MANY, K, closed
from shard.index import coarse
from shard.index.ivfpq import IvfPqIndex, sample_rows
from shard.model import UNNAMED, ShardConfig, VectorConfig, Vectors
from shard.objects.s3 import S3ObjectStore

SHARDS = 4
FILES, ROW_GROUP = 8, 65_536
CHUNK_MB = 256
_ADDED_ROWS = 65_536
_LOOK_SECONDS = 0.1


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="clustered-128-1m")
    arguments.add_argument("--out", type=Path)
    arguments.add_argument("--without-upserts", action="store_true", help="spares some minutes")
    chosen = arguments.parse_args()
    with TemporaryDirectory() as folder, s3.seaweedfs(Path(folder) / "s3") as server:
        os.environ.update(server.environment)
        figures = _measure(Path(folder), server, chosen.data, upserts=not chosen.without_upserts)
    Console().print_json(json.dumps(figures))
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1) + "\n")


def _measure(folder: Path, server: s3.S3Server, name: str, *, upserts: bool) -> dict[str, Any]:
    loaded = data.load(name)
    source = f"s3://{server.bucket}/source"
    _store(loaded, server)
    config = VectorConfig(dimension=loaded.vectors.shape[1], distance=loaded.distance)
    plan = Plan.of(Source(source), ShardConfig(vectors={UNNAMED: config}), CHUNK_MB << 20)
    figures: dict[str, Any] = {"kind": "ingest", "data": name, "rows": len(loaded.vectors)}

    np.save(folder / "vectors.npy", loaded.vectors)
    # A process of its own, as a user of FAISS has it.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        arguments = (folder / "vectors.npy", config, max(plan.rows) // SHARDS, folder / "index")
        figures["FAISS alone, s"] = pool.apply(_faiss_alone, arguments)
    (folder / "vectors.npy").unlink()
    figures["FAISS between S3 and S3, s"] = _between(folder, server, config, max(plan.rows))

    with services.shoal(f"s3://{server.bucket}/shoal") as shoal:
        collection.create(shoal.url, loaded, SHARDS)
        before = shoal.anonymous_bytes("")
        with _Watching(shoal) as watching:
            job, stages = _ingest(shoal.url, source)
        took = sum(stages.values())
        figures["ingest, s"] = took
        figures["stages, s"] = stages
        figures["ratio"] = took / sum(figures["FAISS alone, s"].values())
        figures["ratio to FAISS between S3 and S3"] = took / figures["FAISS between S3 and S3, s"]
        figures["peak memory, GiB"] = watching.peak / 2**30
        figures["of which the job's, GiB"] = (watching.peak - before) / 2**30
        assert job["rows_loaded"] == len(loaded.vectors), job
        again, stages = _ingest(shoal.url, source)
        assert again["same_as"] == job["id"], again
        figures["second run, s"] = sum(stages.values())
        figures["recall@10 at once"] = _recall(shoal, loaded)
        collection.settle(shoal.url)
        figures["recall@10 settled"] = _recall(shoal, loaded)
        if upserts:
            figures["upserts, s"] = collection.fill(shoal.url, loaded, SHARDS)
            collection.settle(shoal.url)
            figures["recall@10 of upserts"] = _recall(shoal, loaded)
    return figures


def _files(server: s3.S3Server) -> pa_fs.S3FileSystem:
    return pa_fs.S3FileSystem(
        endpoint_override=server.endpoint.removeprefix("http://"),
        scheme="http",
        region=s3.REGION,
        access_key=s3.ACCESS_KEY,
        secret_key=s3.SECRET_KEY,
    )


def _store(loaded: data.DataSet, server: s3.S3Server) -> None:
    files = _files(server)
    dimension = loaded.vectors.shape[1]
    for number, ids in enumerate(np.array_split(np.arange(len(loaded.vectors)), FILES)):
        flat = pa.array(loaded.vectors[ids].reshape(-1))
        vectors = pa.FixedSizeListArray.from_arrays(flat, dimension)
        pq.write_table(
            pa.table({"id": ids, "vector": vectors}),
            f"{server.bucket}/source/{number:03d}.parquet",
            filesystem=files,
            row_group_size=ROW_GROUP,
        )


def _faiss_alone(path: Path, config: VectorConfig, rows: int, index: Path) -> dict[str, float]:
    """Seconds that FAISS takes on all cores; ``rows`` is what the template is for."""
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    vectors = config.prepare(np.load(path))
    picked = np.random.default_rng(0).choice(len(vectors), sample_rows(rows), replace=False)
    sample = vectors[np.sort(picked)]
    name = IvfPqIndex.train(sample, rows, config.distance, seed=0).name
    times = [perf_counter()]
    metric = faiss.METRIC_INNER_PRODUCT if config.distance.higher_is_nearer else faiss.METRIC_L2
    made = faiss.index_factory(vectors.shape[1], name, metric)
    made.cp.niter = coarse.ITERATIONS
    made.train(sample)
    times.append(perf_counter())
    for first in range(0, len(vectors), _ADDED_ROWS):
        made.add(vectors[first : first + _ADDED_ROWS])
    times.append(perf_counter())
    faiss.write_index(made, str(index))
    times.append(perf_counter())
    return dict(zip(("train", "add", "write"), np.diff(times).tolist(), strict=True))


def _between(folder: Path, server: s3.S3Server, config: VectorConfig, rows: int) -> float:
    """Seconds from the files to one index and one array of vectors for each, in S3."""
    cores = len(os.sched_getaffinity(0))
    with multiprocessing.get_context("spawn").Pool(cores) as pool:
        pool.map(_begin, range(cores), chunksize=1)
        started = perf_counter()
        template = pool.apply(_train_one, (folder, server, config, rows // SHARDS))
        pool.map(partial(_add_one, folder, server, config, template), range(FILES), chunksize=1)
        return perf_counter() - started


def _begin(_: int) -> None:
    """By importing what the work needs."""
    faiss.omp_set_num_threads(1)


def _read_one(server: s3.S3Server, config: VectorConfig, number: int) -> Vectors:
    table = pq.read_table(f"{server.bucket}/source/{number:03d}.parquet", filesystem=_files(server))
    flat = table["vector"].combine_chunks().flatten().to_numpy()
    return config.prepare(flat.reshape(-1, config.dimension))


def _train_one(folder: Path, server: s3.S3Server, config: VectorConfig, rows: int) -> Path:
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    sample = _read_one(server, config, 0)[: sample_rows(rows)]
    index = IvfPqIndex.train(sample, rows, config.distance, seed=0)
    index.write(folder / "template")
    faiss.omp_set_num_threads(1)
    return folder / "template"


def _add_one(
    folder: Path, server: s3.S3Server, config: VectorConfig, template: Path, number: int
) -> None:
    vectors = _read_one(server, config, number)
    index, array = folder / f"{number}.faiss", folder / f"{number}.npy"
    IvfPqIndex.open(template).filled(vectors).write(index)
    np.save(array, vectors)
    store = S3ObjectStore(server.bucket, "between")
    for path in (index, array):
        store.put_file(path.name, path)
        path.unlink()


def _ingest(url: str, source: str) -> tuple[dict[str, Any], dict[str, float]]:
    """The job, once it is done, and the seconds that it was seen in each state."""
    where = f"{url}/collections/{collection.NAME}/ingest"
    stages: dict[str, float] = {}
    seen = perf_counter()
    with httpx.Client(timeout=60) as client:
        job = client.post(where, json={"source": source, "chunk_mb": CHUNK_MB}).json()["result"]
        while job["state"] not in ("done", "failed", "cancelled"):
            sleep(_LOOK_SECONDS)
            now = perf_counter()
            stages[job["state"]] = stages.get(job["state"], 0.0) + now - seen
            seen = now
            job = client.get(f"{where}/{job['id']}").json()["result"]
    if job["state"] != "done":
        raise RuntimeError(f"the job is {job['state']}: {job['error']}")
    return job, stages


def _recall(shoal: services.Service, loaded: data.DataSet) -> float:
    answers = closed(shoal, collection.single_queries(shoal.url, loaded.queries, K), MANY)
    return loaded.recall(np.array(collection.found(answers.every_answer())), K)


class _Watching:
    """The most memory in use until the block ends."""

    def __init__(self, shoal: services.Service) -> None:
        self.peak = 0
        self._shoal = shoal
        self._over = Event()
        self._thread = Thread(target=self._memory)

    def __enter__(self) -> _Watching:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _memory(self) -> None:
        while not self._over.wait(1.0):
            self.peak = max(self.peak, self._shoal.anonymous_bytes(""))


if __name__ == "__main__":
    main()
