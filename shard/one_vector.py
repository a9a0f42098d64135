"""One sparse vector, or the many vectors of one point, as users write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shard.errors import InvalidInput
from shard.model import VectorColumn, VectorConfig

MAX_COMPONENTS = 1_000_000
"""Of one point's vectors of one name."""


def sparse_vector(value: Any) -> VectorColumn:
    """A column of one row, of ``{"indices": [...], "values": [...]}``. Raises InvalidInput."""
    if not isinstance(value, dict) or value.keys() != {"indices", "values"}:
        raise InvalidInput("expected `indices` and `values`")
    indices, values = value["indices"], value["values"]
    if not isinstance(indices, Sequence) or not isinstance(values, Sequence):
        raise InvalidInput("indices, values: expected lists")
    if len(indices) != len(values):
        raise InvalidInput(f"values: expected as many as indices, {len(indices)}")
    if len(indices) > MAX_COMPONENTS:
        raise InvalidInput(f"indices: expected at most {MAX_COMPONENTS}")
    if not all(type(one) is int and 0 <= one < 1 << 32 for one in indices):
        raise InvalidInput("indices: expected unsigned 32-bit integers")
    components = _floats(values, "values")
    places = np.array(indices, np.uint32)
    order = np.argsort(places)
    places = places[order]
    if (places[1:] == places[:-1]).any():
        raise InvalidInput("indices: must be unique")
    return VectorColumn(components[order], np.array([0, len(places)]), places)


def several(value: Any, config: VectorConfig) -> VectorColumn:
    """A column of one row, of a list of lists of numbers. Raises InvalidInput."""
    if not isinstance(value, list) or not value or not all(isinstance(one, list) for one in value):
        raise InvalidInput("expected a list of one or more vectors")
    for one in value:
        if len(one) != config.dimension:
            raise InvalidInput(
                f"Vector dimension error: expected dim: {config.dimension}, got {len(one)}"
            )
    if len(value) * config.dimension > MAX_COMPONENTS:
        raise InvalidInput(f"expected at most {MAX_COMPONENTS} components")
    values = _floats([number for one in value for number in one], "vectors")
    return VectorColumn(values.reshape(-1, config.dimension), np.array([0, len(value)]))


def _floats(numbers: Sequence[Any], field: str) -> np.ndarray[Any, np.dtype[np.float32]]:
    if not all(type(one) in (int, float) for one in numbers):
        raise InvalidInput(f"{field}: expected numbers")
    too_large = InvalidInput(f"{field}: a number is out of range for float32")
    try:
        with np.errstate(over="ignore"):
            found = np.array(numbers, np.float64).astype(np.float32)
    except OverflowError:  # An integer that float64 cannot hold either.
        raise too_large from None
    if not np.isfinite(found).all():
        raise too_large
    return found
