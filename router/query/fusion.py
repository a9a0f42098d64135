"""One ranking from several: by the points' ranks, or by their scores.

Reciprocal rank fusion is by Cormack, Clarke and Büttcher, "Reciprocal rank fusion outperforms
Condorcet and individual rank learning methods" (2009), with weights as Qdrant has them.
Distribution-based score fusion is by Mazzeschi, "Distribution-Based Score Fusion (DBSF), a new
approach to vector search ranking" (2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard.errors import InvalidInput
from shard.model import KEY_DTYPE, Keys, Scores

Ranking: TypeAlias = tuple[Keys, Scores]
"""Distinct keys (n,) S18 and their scores (n,) float32, nearest first."""
Values: TypeAlias = NDArray[np.float64]

RRF_K = 2


def reciprocal_rank(
    rankings: Sequence[Ranking], k: int = RRF_K, weights: Sequence[float] | None = None
) -> Ranking:
    """Of the points of all ``rankings``, by the sum over these of 1 / (rank / weight + k - 1).

    The highest score comes first, equals by key. ``k`` is at least 1, ranks count from 1. A weight
    of 0 or less makes a ranking count for nothing, though its points are there. Raises InvalidInput
    unless there are as many weights as rankings.
    """
    if k < 1:
        raise InvalidInput(f"rrf.k: expected a number of at least 1, got {k}")
    if weights is None:
        weights = [1.0] * len(rankings)
    if len(weights) != len(rankings):
        raise InvalidInput(
            f"rrf.weights: expected as many as there are prefetches, {len(rankings)}, "
            f"got {len(weights)}"
        )
    parts: list[Values] = []
    with np.errstate(over="ignore", divide="ignore"):
        for (keys, _), weight in zip(rankings, weights, strict=True):
            ranks = np.arange(1, len(keys) + 1)
            parts.append(1 / (ranks / weight + (k - 1)) if weight > 0 else np.zeros(len(keys)))
    return _summed(rankings, parts)


def distribution_based(rankings: Sequence[Ranking]) -> Ranking:
    """Of the points of all ``rankings``, by the sum of their scores, each in units of its ranking:
    0 is three standard deviations below the mean, 1 is three above.

    The highest score comes first, equals by key. Distances are taken for scores, as Qdrant does, so
    that the farthest comes first.
    """
    return _summed(rankings, [_normalised(scores.astype(np.float64)) for _, scores in rankings])


def _normalised(scores: Values) -> Values:
    deviation = scores.std(ddof=1) if len(scores) > 1 else 0.0
    if not deviation:
        return np.full(len(scores), 0.5)
    normalised: Values = 0.5 + (scores - scores.mean()) / (6 * deviation)
    return normalised


def _summed(rankings: Sequence[Ranking], parts: list[Values]) -> Ranking:
    keys, which = np.unique(
        np.concatenate([np.empty(0, KEY_DTYPE), *(keys for keys, _ in rankings)]),
        return_inverse=True,
    )
    sums = np.bincount(which, np.concatenate([np.empty(0), *parts]), len(keys))
    with np.errstate(over="ignore"):
        # What overflows is as high as a float can say.
        scores: Scores = np.nan_to_num(sums.astype(np.float32), copy=False)
    order = np.argsort(-scores, kind="stable")
    return keys[order], scores[order]
