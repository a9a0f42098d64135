"""Indexes are those that FAISS would make of the same centroids."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from shard.index import coarse
from shard.index.exact import scan
from shard.index.ivfpq import IvfPqIndex
from shard.model import Distance, Vectors

ROWS, DIMENSION = 20_000, 24


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(300, DIMENSION))
    near = centres[generator.integers(len(centres), size=ROWS)]
    found: Vectors = (near + generator.normal(scale=0.3, size=near.shape)).astype(np.float32)
    return found


@pytest.mark.parametrize("distance", [Distance.DOT, Distance.EUCLID])
def test_filling_a_trained_index_is_what_faiss_adds(
    vectors: Vectors, distance: Distance, tmp_path: Path
) -> None:
    trained = IvfPqIndex.train(vectors[:10_000], ROWS, distance, seed=0)
    trained.write(tmp_path / "trained")
    filled = trained.filled(vectors)
    del trained  # What it owns must live on.
    reference = faiss.read_index(str(tmp_path / "trained"))
    reference.add(vectors)
    _, expected = reference.search(vectors[:500], 20, params=faiss.SearchParametersIVF(nprobe=8))
    found = filled.candidates(vectors[:500], 20, 8, None)
    assert filled.rows == ROWS
    # Rounding may decide otherwise between two lists or two codes that are as near.
    assert (found == expected).mean() > 0.999
    filled.write(tmp_path / "filled")
    stored = IvfPqIndex.open(tmp_path / "filled")
    assert (stored.candidates(vectors[:500], 20, 8, None) == found).all()


@pytest.mark.parametrize("distance", [Distance.DOT, Distance.EUCLID])
def test_assignment_is_the_nearest_by_exact_scan(vectors: Vectors, distance: Distance) -> None:
    centroids = vectors[:200]
    nearest = coarse.assign(vectors, centroids, distance)
    rows, _ = scan(centroids, vectors[:3_000], 1, distance, None)
    assert (nearest[:3_000] == rows[:, 0]).mean() > 0.999


def test_centroids_are_as_good_as_those_of_faiss(vectors: Vectors) -> None:
    lists = 200

    def error(centroids: Vectors) -> float:
        nearest = coarse.assign(vectors, centroids, Distance.EUCLID)
        return float(((vectors - centroids[nearest]) ** 2).sum() / len(vectors))

    own, of_faiss = [], []
    for seed in range(5):
        own.append(error(coarse.train(vectors[:8_000], lists, Distance.EUCLID, seed)))
        reference = faiss.Kmeans(DIMENSION, lists, niter=coarse.ITERATIONS, seed=seed)
        reference.train(vectors[:8_000])
        of_faiss.append(error(reference.centroids))
    assert np.mean(own) < 1.03 * np.mean(of_faiss)


def test_a_list_that_nothing_is_near_to_starts_again() -> None:
    """All but a few of the sample are the same: most of the first centroids are."""
    sample = np.ones((400, 4), np.float32)
    sample[:40] = np.random.default_rng(0).normal(size=(40, 4))
    centroids = coarse.train(sample, 30, Distance.EUCLID, seed=0)
    assert len(np.unique(centroids, axis=0)) > 10
    assert np.isfinite(coarse.train(np.zeros((40, 4), np.float32), 4, Distance.DOT, seed=0)).all()
