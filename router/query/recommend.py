"""The vector to search by for the average of examples: Qdrant's strategy ``average_vector``.

That is the mean of the positive examples, moved away from that of the negative ones by as much as
lies between them. There must be a positive one. Examples are as they are stored or given: nothing
is scaled before the mean is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard.model import Scores, Vectors

Sparse: TypeAlias = tuple[NDArray[np.uint32], Scores]
"""Distinct indices (t,) and their components (t,) float32."""


def average(positives: Vectors, negatives: Vectors) -> Vectors:
    """Of examples (p, d) and (n, d), the latter maybe none: (d,) float32."""
    mean: NDArray[np.float64] = positives.mean(axis=0, dtype=np.float64)
    if len(negatives):
        mean = 2 * mean - negatives.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def average_sparse(positives: Sequence[Sparse], negatives: Sequence[Sparse]) -> Sparse:
    """Of sparse examples: all of their indices, ascending, with components that may be zero."""
    examples = [*positives, *negatives]
    indices, which = np.unique(
        np.concatenate([indices for indices, _ in examples]), return_inverse=True
    )
    values = np.concatenate([values for _, values in examples])
    cut = sum(len(indices) for indices, _ in positives)
    mean = np.bincount(which[:cut], values[:cut], len(indices)) / len(positives)
    if negatives:
        mean = 2 * mean - np.bincount(which[cut:], values[cut:], len(indices)) / len(negatives)
    return indices, mean.astype(np.float32)


def average_multi(positives: Sequence[Vectors], negatives: Sequence[Vectors]) -> Vectors:
    """Of examples that are several vectors each: all of these, the negative ones' negated."""
    return np.concatenate([*positives, *(-vectors for vectors in negatives)])
