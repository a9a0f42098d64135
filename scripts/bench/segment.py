"""Builds one segment of GloVe vectors and searches it, beside an exact scan of the same vectors.

.venv/bin/python -m scripts.bench.segment [--rows N] [--distance Cosine]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import faiss
import numpy as np

from router import word_vectors
from scripts.bench import data
from shard.index.columns import ColumnIndex
from shard.model import (
    UNNAMED,
    Distance,
    Points,
    ShardConfig,
    VectorColumn,
    VectorConfig,
    Vectors,
    encode_ids,
    unnamed,
)
from shard.segment import Segment, build_indexes, write_segment

LIMIT = 10
BATCH = 8_192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=85_000)
    parser.add_argument("--distance", type=Distance, default=Distance.COSINE)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    config = VectorConfig(dimension=word_vectors.DIMENSION, distance=arguments.distance)
    vectors, queries = data.glove()
    stored = config.prepare(vectors[: arguments.rows])
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), config, stored, config.prepare(queries))


def measure(folder: Path, one: VectorConfig, vectors: Vectors, queries: Vectors) -> None:
    rows = len(vectors)
    config = ShardConfig(vectors={UNNAMED: one}, flat_threshold=1)
    keys = encode_ids(range(rows))
    started = time.perf_counter()
    write_segment(
        folder,
        (
            Points(keys[first : first + BATCH], [b"{}"] * len(own), unnamed(own))
            for first in range(0, rows, BATCH)
            if len(own := vectors[first : first + BATCH])
        ),
        rows,
        config,
    )
    written = time.perf_counter()
    calibration = build_indexes(folder, config).get(UNNAMED)
    built = time.perf_counter()
    assert calibration is not None, "the recall target is out of reach"
    column = Segment.open(folder, config).column(UNNAMED)
    nprobe, oversampling = calibration.nprobe, calibration.oversampling

    exact, truth = timed(column, queries, exact=True)
    found, answers = timed(column, queries, nprobe=nprobe, oversampling=oversampling)
    recall = np.mean([len(set(a) & set(b)) / LIMIT for a, b in zip(answers, truth, strict=True)])
    print(f"{rows:,} rows, {one.distance}, one thread, {column.name}")
    print(f"write {written - started:.2f} s, train, add and calibrate {built - written:.2f} s")
    print(f"calibration: nprobe {nprobe}, oversampling {oversampling:g}, {calibration.recall:.3f}")
    print(f"recall@{LIMIT} of {len(queries)} held-out queries: {recall:.3f}")
    print(f"median search {found:.3f} ms, exact scan {exact:.3f} ms: {exact / found:.1f} times")


def timed(
    column: ColumnIndex,
    queries: Vectors,
    *,
    exact: bool = False,
    nprobe: int | None = None,
    oversampling: float | None = None,
) -> tuple[float, list[list[int]]]:
    """Median milliseconds of one query, and the answers."""
    milliseconds, answers = [], []
    for number in range(len(queries)):
        query = VectorColumn(queries[number : number + 1])
        started = time.perf_counter()
        rows, _ = column.search(
            query,
            LIMIT,
            exact=exact,
            nprobe=nprobe,
            oversampling=oversampling,
            alive=None,
        )
        milliseconds.append(1_000 * (time.perf_counter() - started))
        answers.extend(rows.tolist())
    return median(milliseconds), answers


if __name__ == "__main__":
    main()
