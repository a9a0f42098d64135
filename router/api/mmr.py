"""Maximal marginal relevance: near to the query, and far from what is picked already.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking" (1998), with similarities as
Qdrant has them: products of vectors, or negative distances, for Euclid squared.
"""

from __future__ import annotations

import numpy as np

from shard.model import Distance, Rows, Scores, Vectors


def pick(
    query: Vectors, candidates: Vectors, distance: Distance, diversity: float, count: int
) -> Rows:
    """Up to ``count`` rows of ``candidates`` (n, d), in the order in which they are picked.

    ``query`` (d,); all prepared. ``diversity`` from 0, the nearest, to 1. Of equals any may win.
    """
    relevance = _similarities(candidates, query, distance)
    nearest = np.full(len(candidates), -np.inf, np.float32)
    left = np.ones(len(candidates), np.bool_)
    picked: list[int] = []
    while len(picked) < min(count, len(candidates)):
        score = relevance
        if picked:
            score = (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(left, score, -np.inf)))
        picked.append(best)
        left[best] = False
        nearest = np.maximum(nearest, _similarities(candidates, candidates[best], distance))
    return np.array(picked, np.int64)


def _similarities(vectors: Vectors, to: Vectors, distance: Distance) -> Scores:
    similarities: Scores
    if distance.higher_is_nearer:
        similarities = vectors @ to
    elif distance is Distance.MANHATTAN:
        similarities = -np.abs(vectors - to).sum(axis=1)
    else:
        similarities = -np.square(vectors - to).sum(axis=1)
    return similarities
