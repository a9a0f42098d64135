from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.index.exact import rerank, scan
from shard.model import Distance, Mask, Rows, Scores, Vectors

DISTANCES = list(Distance)


def oracle(vectors: Vectors, queries: Vectors, distance: Distance) -> Scores:
    """Scores of every pair, (q, n)."""
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)[:, None, :]
    if distance.higher_is_nearer:
        scores = (asked * wide).sum(axis=2)
    elif distance is Distance.EUCLID:
        scores = np.sqrt(((asked - wide) ** 2).sum(axis=2))
    else:
        scores = np.abs(asked - wide).sum(axis=2)
    rounded: Scores = scores.astype(np.float32)
    return rounded


def check(
    vectors: Vectors,
    queries: Vectors,
    limit: int,
    distance: Distance,
    alive: Mask | None,
    found: tuple[Rows, Scores],
) -> None:
    rows, scores = found
    assert rows.shape == scores.shape == (len(queries), limit)
    expected = oracle(vectors, queries, distance)
    live = np.arange(len(vectors)) if alive is None else np.flatnonzero(alive)
    count = min(limit, len(live))
    for row, score, truth in zip(rows, scores, expected, strict=True):
        assert (row[:count] >= 0).all() and (row[count:] == -1).all()
        assert len(set(row[:count].tolist())) == count
        assert np.isin(row[:count], live).all()
        np.testing.assert_allclose(score[:count], truth[row[:count]], rtol=1e-4, atol=1e-5)
        best = np.sort(-truth[live] if distance.higher_is_nearer else truth[live])[:count]
        signed = -score[:count] if distance.higher_is_nearer else score[:count]
        np.testing.assert_allclose(signed, best, rtol=1e-4, atol=1e-5)


@settings(max_examples=150, deadline=None)
@given(
    distance=st.sampled_from(DISTANCES),
    rows=st.integers(0, 60),
    dimension=st.sampled_from([1, 2, 3, 8, 17]),
    queries=st.sampled_from([1, 3, 25]),
    limit=st.integers(1, 80),
    dead=st.sampled_from([None, 0.0, 0.5, 0.95, 1.0]),
    coarse=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_a_scan_finds_what_brute_force_does(
    distance: Distance,
    rows: int,
    dimension: int,
    queries: int,
    limit: int,
    dead: float | None,
    coarse: bool,
    seed: int,
) -> None:
    chance = np.random.default_rng(seed)
    vectors = chance.normal(size=(rows, dimension)).astype(np.float32)
    asked = chance.normal(size=(queries, dimension)).astype(np.float32)
    if coarse:  # Ties, duplicates and zero vectors.
        vectors, asked = np.round(vectors), np.round(asked)
    alive = None if dead is None else chance.random(rows) >= dead
    found = scan(vectors, asked, limit, distance, alive)
    check(vectors, asked, limit, distance, alive, found)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("queries", [1, 40])
def test_a_scan_over_many_blocks(distance: Distance, queries: int) -> None:
    chance = np.random.default_rng(7)
    vectors = chance.normal(size=(60_000, 48)).astype(np.float32)
    asked = chance.normal(size=(queries, 48)).astype(np.float32)
    for alive in (None, chance.random(len(vectors)) < 0.3):
        found = scan(vectors, asked, 12, distance, alive)
        check(vectors, asked, 12, distance, alive, found)


def test_near_ties_are_told_apart_far_from_the_origin() -> None:
    vectors = np.full((50, 4), 1_000, np.float32)
    vectors[:, 0] += np.arange(50, dtype=np.float32) * np.float32(0.01)
    asked = np.repeat(vectors[:1], 30, axis=0)
    rows, scores = scan(vectors, asked, 3, Distance.EUCLID, None)
    assert (rows[:, 0] == 0).all()
    np.testing.assert_allclose(scores[:, :3], [[0, 0.01, 0.02]] * 30, atol=1e-3)


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_rerank_orders_candidates_and_passes_over_gaps(distance: Distance) -> None:
    chance = np.random.default_rng(3)
    vectors = chance.normal(size=(100, 6)).astype(np.float32)
    asked = chance.normal(size=(5, 6)).astype(np.float32)
    candidates = np.array([chance.permutation(100)[:20] for _ in asked])
    candidates[:, ::4] = -1
    rows, scores = rerank(vectors, asked, candidates, 30, distance)
    truth = oracle(vectors, asked, distance)
    for own, row, score, exact in zip(candidates, rows, scores, truth, strict=True):
        live = own[own >= 0]
        order = np.argsort(-exact[live] if distance.higher_is_nearer else exact[live])
        assert row[:15].tolist() == live[order].tolist()
        assert (row[15:] == -1).all()
        np.testing.assert_allclose(score[:15], exact[live[order]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", DISTANCES)
def test_scores_that_overflow_stay_finite(distance: Distance) -> None:
    vectors = np.array([[3e38, -3e38], [1, 1]], np.float32)
    rows, scores = rerank(vectors, -vectors[:1], np.array([[0, 1]]), 2, distance)
    assert set(rows[0].tolist()) == {0, 1}
    assert np.isfinite(scores).all()
