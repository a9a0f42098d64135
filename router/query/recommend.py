"""The vector to search by for the average of examples: Qdrant's strategy ``average_vector``.

That is the mean of the positive examples, moved away from that of the negative ones by as much as
lies between them. There must be a positive one. Examples are as they are stored or given: nothing
is scaled before the mean is taken.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shard.errors import InvalidInput
from shard.model import VectorColumn


def average(positives: VectorColumn, negatives: VectorColumn, *, multi: bool) -> VectorColumn:
    """A column of one row, from those of p > 0 examples and of n, which may be none.

    Of sparse examples all components, those that cancel out too; where a point has several vectors
    (``multi``) all of these, those of negative ones negated. Raises InvalidInput without a positive
    one.
    """
    if not positives.rows:
        raise InvalidInput("recommend.positive: expected at least one positive example")
    if multi:
        values = np.concatenate([positives.values, -negatives.values])
        return VectorColumn(values, np.array([0, len(values)]))
    weights = _weights(positives.rows, negatives.rows)
    examples = VectorColumn.concatenate([positives, negatives]) if negatives.rows else positives
    if examples.indices is None:
        mean = weights @ examples.values.astype(np.float64)
        return VectorColumn(mean.astype(np.float32)[None])
    indices, which = np.unique(examples.indices, return_inverse=True)
    components = np.repeat(weights, examples.lengths) * examples.values
    sums = np.bincount(which, components, len(indices)).astype(np.float32)
    return VectorColumn(sums, np.array([0, len(indices)]), indices)


def _weights(positives: int, negatives: int) -> NDArray[np.float64]:
    """Of each example, whose sum is one."""
    if not negatives:
        return np.full(positives, 1 / positives)
    return np.repeat([2 / positives, -1 / negatives], [positives, negatives])
