"""Builds an index and searches on the GPU, beside the same on all cores of this machine.

    .venv/bin/python -m scripts.bench.gpu [--data NAME] [--out FILE]

Needs a GPU and the ``gpu`` extra. As a segment would: train, add, search one query or a batch at a
time, the CPU's searches as calibrated for a recall of 0.95.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import faiss
import numpy as np

from scripts.bench import data
from shard.index import gpu
from shard.index.calibration import calibrate
from shard.index.columns import open_column
from shard.index.ivfpq import IvfPqIndex, sample_rows
from shard.model import Rows, VectorColumn, VectorConfig, Vectors

K = 10
_SEED = 1
_TARGET = 0.95
_BATCHES = (1, 64)
_ROUNDS = 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--data", default="clustered-128-1m")
    arguments.add_argument("--out", type=Path)
    chosen = arguments.parse_args()
    if not gpu.is_there():
        arguments.error("there is no GPU, or FAISS is without")
    loaded = data.load(chosen.data)
    config = VectorConfig(dimension=loaded.vectors.shape[1], distance=loaded.distance)
    vectors, queries = config.prepare(loaded.vectors), config.prepare(loaded.queries)
    with mock.patch.object(gpu, "is_there", lambda: False):
        cpu = _measure(loaded, config, vectors, queries)
    figures: dict[str, Any] = {
        "kind": "gpu",
        "data": loaded.name,
        "threads": faiss.omp_get_max_threads(),
        "on CPU": cpu,
        "on GPU": _measure(loaded, config, vectors, queries),
    }
    figures["ratio"] = {
        name: there / here if name.startswith("queries") else here / there
        for name, here in cpu.items()
        if not name.startswith(("recall", "open")) and (there := figures["on GPU"][name])
    }
    print(json.dumps(figures, indent=1))
    if chosen.out:
        chosen.out.write_text(json.dumps(figures, indent=1) + "\n")


def _measure(
    loaded: data.DataSet, config: VectorConfig, vectors: Vectors, queries: Vectors
) -> dict[str, float]:
    """Times and rates by their names; of what is repeated the best."""
    figures: dict[str, float] = {}
    rows = len(vectors)
    sample = vectors[: sample_rows(rows)]
    for _ in range(_ROUNDS):
        started = perf_counter()
        trained = IvfPqIndex.train(sample, rows, config.distance, _SEED)
        there = perf_counter()
        index = trained.filled(vectors)
        ended = perf_counter()
        for name, took in {"train, s": there - started, "add, s": ended - there}.items():
            figures[name] = min(took, figures.get(name, took))
    calibration = calibrate(index, vectors, config.distance, _TARGET, 1.0, _SEED)
    assert calibration is not None, "the recall target is out of reach"
    started = perf_counter()
    column = open_column(VectorColumn(vectors), config, index)
    figures["open, s"] = perf_counter() - started
    for batch in _BATCHES:
        found: list[Rows] = []
        seconds: list[float] = []
        for first in range(0, len(queries) - batch + 1, batch):
            started = perf_counter()
            near, _ = column.search(
                VectorColumn(queries[first : first + batch]),
                K,
                exact=False,
                nprobe=calibration.nprobe,
                oversampling=calibration.oversampling,
                alive=None,
            )
            seconds.append(perf_counter() - started)
            found.append(near)
        figures[f"queries/s, {batch} at a time"] = batch / median(seconds)
        figures[f"recall@{K}, {batch} at a time"] = loaded.recall(np.concatenate(found), K)
    return figures


if __name__ == "__main__":
    main()
