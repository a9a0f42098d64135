"""What is computed on a GPU is what is computed without one."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from shard.index import coarse, gpu
from shard.index.ivfpq import IvfPqIndex
from shard.model import Distance

pytestmark = pytest.mark.skipif(
    not gpu.is_there(), reason="no GPU here, or FAISS without GPUs (see the `gpu` extra)"
)


@pytest.mark.parametrize("distance", [Distance.DOT, Distance.EUCLID])
def test_assignment_agrees(distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(50_000, 96)).astype(np.float32)
    centroids = generator.normal(size=(400, 96)).astype(np.float32)
    there = coarse.assign(vectors, centroids, distance)
    monkeypatch.setattr(gpu, "is_there", lambda: False)
    here = coarse.assign(vectors, centroids, distance)
    assert there.dtype == here.dtype and (there == here).mean() > 0.999


@pytest.mark.parametrize("distance", [Distance.DOT, Distance.EUCLID])
def test_an_index_finds_as_much(distance: Distance, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(500, 64))
    near = centres[generator.integers(500, size=40_000)]
    vectors = (near + generator.normal(scale=0.3, size=near.shape)).astype(np.float32)
    queries = vectors[::100]
    exact = faiss.IndexFlat(
        64, faiss.METRIC_INNER_PRODUCT if distance.higher_is_nearer else faiss.METRIC_L2
    )
    exact.add(vectors)
    _, truth = exact.search(queries, 10)

    def recall() -> float:
        index = IvfPqIndex.build(vectors, distance, seed=0)
        found = index.candidates(queries, 100, 16, None)
        return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))

    there = recall()
    monkeypatch.setattr(gpu, "is_there", lambda: False)
    assert abs(there - recall()) < 0.02
