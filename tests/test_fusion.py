"""Fusion of rankings against that of Qdrant's client."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.hybrid import fusion as oracle

from router.query import fusion
from router.query.fusion import Ranking
from shard.errors import InvalidInput
from shard.model import decode_ids, encode_ids

LIMIT = 1_000

# Of these some are equal, and rankings have points in common.
scores = st.integers(-6, 6).map(lambda eighths: eighths / 8) | st.floats(-1e3, 1e3, width=32)
rankings = st.lists(
    st.dictionaries(st.integers(0, 15), scores, max_size=12).map(
        lambda scored: sorted(scored.items(), key=lambda pair: -pair[1])
    ),
    min_size=1,
    max_size=4,
)


def ranking(scored: list[tuple[int, float]]) -> Ranking:
    return (
        encode_ids([point for point, _ in scored]),
        np.array([score for _, score in scored], np.float32),
    )


def responses(given: list[list[tuple[int, float]]]) -> list[list[models.ScoredPoint]]:
    return [
        [models.ScoredPoint(id=point, version=0, score=score) for point, score in scored]
        for scored in given
    ]


def check(fused: Ranking, expected: list[models.ScoredPoint]) -> None:
    keys, found = fused
    ids: list[Any] = decode_ids(keys)
    truth = {point.id: point.score for point in expected}
    assert set(ids) == set(truth) and len(ids) == len(truth)
    np.testing.assert_allclose(found, [truth[one] for one in ids], rtol=1e-5, atol=1e-6)
    assert found.dtype == np.float32
    pairs = list(zip((-found).tolist(), keys.tolist(), strict=True))
    assert pairs == sorted(pairs)


@given(rankings, st.none() | st.integers(1, 100), st.data())
def test_reciprocal_ranks_give_the_scores_of_qdrant(
    given: list[list[tuple[int, float]]], k: int | None, data: st.DataObject
) -> None:
    one = st.sampled_from([0.0, -1.0, 1.0]) | st.floats(1e-3, 1e3)
    weights = data.draw(st.none() | st.lists(one, min_size=len(given), max_size=len(given)))
    expected = oracle.reciprocal_rank_fusion(responses(given), LIMIT, k, weights)
    asked = {} if k is None else {"k": k}
    check(fusion.reciprocal_rank(list(map(ranking, given)), weights=weights, **asked), expected)


@given(rankings)
def test_distributions_of_scores_give_the_scores_of_qdrant(
    given: list[list[tuple[int, float]]],
) -> None:
    expected = oracle.distribution_based_score_fusion(responses(given), LIMIT)
    check(fusion.distribution_based(list(map(ranking, given))), expected)


@pytest.mark.parametrize("fuse", [fusion.reciprocal_rank, fusion.distribution_based])
def test_of_nothing_there_is_an_empty_ranking(fuse: Any) -> None:
    for nothing in ([], [ranking([])], [ranking([]), ranking([])]):
        keys, found = fuse(nothing)
        assert len(keys) == len(found) == 0


def test_scores_are_finite_whatever_the_weights_and_scores() -> None:
    large = float(np.finfo(np.float64).max)
    tiny = float(np.finfo(np.float64).smallest_subnormal)
    both = [ranking([(1, 3e38), (2, -3e38)]), ranking([(1, 0.1), (2, 0.1)])]
    for k in (1, 2):
        for weights in ([large, large], [tiny, large]):
            assert np.isfinite(fusion.reciprocal_rank(both, k, weights)[1]).all()
    _, found = fusion.distribution_based(both)
    np.testing.assert_allclose(found, 1 + np.array([1, -1]) / (6 * np.sqrt(2)), rtol=1e-6)


def test_wrong_parameters_are_told() -> None:
    both = [ranking([(1, 1.0)]), ranking([(2, 1.0)])]
    with pytest.raises(InvalidInput, match=r"rrf\.weights: expected as many .*, 2, got 3"):
        fusion.reciprocal_rank(both, weights=[1, 1, 1])
    with pytest.raises(InvalidInput, match=r"rrf\.k: expected a number of at least 1, got 0"):
        fusion.reciprocal_rank(both, 0)
