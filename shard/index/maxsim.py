"""Nearness of points with many vectors: the sum over the query's of how near the nearest one is.

Khattab and Zaharia, "ColBERT: Efficient and Effective Passage Search via Contextualized Late
Interaction over BERT" (2020).
"""

from __future__ import annotations

import numpy as np

from shard.index import exact
from shard.model import Distance, Rows, Scores, VectorColumn, Vectors

_BLOCK_VECTORS = 16_384


def similarities(column: VectorColumn, rows: Rows, tokens: Vectors, distance: Distance) -> Scores:
    """Of ``rows`` (n,), each of which has a vector, to a query of ``tokens`` (t, d): (n,).

    Higher is nearer; for Euclid by squared distances, as in Qdrant.
    """
    ends = np.cumsum(column.lengths[rows])
    found = np.empty(len(rows), np.float32)
    first = 0
    while first < len(rows):
        before = int(ends[first - 1]) if first else 0
        end = max(first + 1, int(np.searchsorted(ends, before + _BLOCK_VECTORS, side="right")))
        block = column.take(rows[first:end])
        near = exact.similarities(block.values, np.arange(len(block.values)), tokens, distance)
        starts = np.arange(block.rows) if block.starts is None else block.starts[:-1]
        found[first:end] = np.maximum.reduceat(near, starts, axis=1).sum(axis=0)
        first = end
    return found


def scores(similarities: Scores, distance: Distance) -> Scores:
    """As they are shown: distances are positive, and for Euclid not squared."""
    if distance.higher_is_nearer:
        return similarities
    return np.sqrt(-similarities) if distance is Distance.EUCLID else -similarities
