"""Maximal marginal relevance: near to the query, and far from what is picked already.

Carbonell and Goldstein, "The use of MMR, diversity-based reranking" (1998), with similarities as
Qdrant has them: products of vectors, or negative distances, for Euclid squared.
"""

from __future__ import annotations

import numpy as np

from shard.index.columns import open_column
from shard.model import Rows, VectorColumn, VectorConfig


def pick(
    query: VectorColumn,
    candidates: VectorColumn,
    config: VectorConfig | None,
    diversity: float,
    count: int,
) -> Rows:
    """Up to ``count`` rows of ``candidates``, in the order in which they are picked.

    ``query`` has one row; all are prepared, and have a vector. ``config`` None: they are sparse.
    ``diversity`` from 0, the nearest, to 1. Of equals any may win.
    """
    rows = np.arange(candidates.rows)
    column = open_column(candidates, config)
    relevance = column.similarities(query, rows)[0]
    nearest = np.full(len(rows), -np.inf, np.float32)
    left = np.ones(len(rows), np.bool_)
    picked: list[int] = []
    while len(picked) < min(count, len(rows)):
        score = relevance
        if picked:
            score = (1 - diversity) * relevance - diversity * nearest
        best = int(np.argmax(np.where(left, score, -np.inf)))
        picked.append(best)
        left[best] = False
        again = column.similarities(candidates.slice(best, best + 1), rows)[0]
        nearest = np.maximum(nearest, again)
    return np.array(picked, np.int64)
