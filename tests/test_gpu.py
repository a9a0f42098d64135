"""What is computed on a GPU is what is computed without one."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from shard.index import coarse, gpu
from shard.index.columns import open_column
from shard.index.exact import scan
from shard.index.ivfpq import IvfPqIndex
from shard.model import Distance, VectorColumn, VectorConfig

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


@pytest.mark.parametrize("distance", list(Distance))
def test_a_search_of_every_list_finds_what_a_scan_finds(distance: Distance) -> None:
    generator = np.random.default_rng(0)
    config = VectorConfig(dimension=33, distance=distance)  # Codes are of two dimensions.
    made = generator.normal(size=(20_000, 33)).astype(np.float32)
    vectors, queries = config.prepare(made), config.prepare(made[:50] + 0.1)
    index = IvfPqIndex.build(vectors, distance, seed=0)
    column = open_column(VectorColumn(vectors), config, index)
    for dead in (0, 500, 10_000):  # Of so many that the index is searched, by a selector.
        alive = np.ones(len(vectors), np.bool_)
        alive[generator.choice(len(vectors), dead, replace=False)] = False
        given = alive if dead else None
        found, scores = column.search(
            *(VectorColumn(queries), 10), exact=False, nprobe=999, oversampling=64.0, alive=given
        )
        expected, exact = scan(vectors, queries, 10, distance, given)
        least = 0.9 if distance is Distance.MANHATTAN or dead == 10_000 else 0.999
        assert (found == expected).mean() > least
        assert np.allclose(scores[found == expected], exact[found == expected])


def test_fewer_lists_are_searched_on_demand() -> None:
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(20_000, 16)).astype(np.float32)
    index = IvfPqIndex.build(vectors, Distance.EUCLID, seed=0)
    there = index.on_gpu(vectors)
    assert there is not None
    few = there.candidates(vectors[:100], 50, 1, None)
    assert few is not None and (few[:, 0] == np.arange(100)).all()
    # In one list of 280 there are not so many.
    assert few.shape == (100, 50)
    one_list = there.candidates(vectors[:100], 1_000, 1, None)
    assert one_list is not None and (one_list[:, -1] == -1).all()


def test_no_more_are_selected_than_faiss_can() -> None:
    vectors = np.random.default_rng(0).normal(size=(5_000, 8)).astype(np.float32)
    there = IvfPqIndex.build(vectors, Distance.DOT, seed=0).on_gpu(vectors)
    assert there is not None
    found = there.candidates(vectors[:3], 2_048, 999, None)
    assert found is not None and (found >= 0).all() and found.shape == (3, 2_048)
    assert there.candidates(vectors[:3], 2_049, 999, None) is None


def test_what_has_no_room_on_the_gpu_stays_off_it() -> None:
    one = np.ones((1, 1_024), np.float32)
    huge = np.broadcast_to(one, (1 << 27, 1_024))  # Half a terabyte.
    assert gpu.GpuLists.of(huge, one, inner_product=True) is None
