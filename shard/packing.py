"""A column of vectors as bytes, in the log and on the wire: little-endian, row after row."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from shard.errors import InvalidInput
from shard.model import VectorColumn

_FLOAT, _INDEX, _LENGTH = (np.dtype(form) for form in ("<f4", "<u4", "<u4"))


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """What is not there is empty."""

    dimension: int
    """Of dense vectors; 0: sparse."""
    values: memoryview
    """float32."""
    lengths: memoryview
    """uint32, of each point; empty: each has one dense vector."""
    indices: memoryview
    """uint32."""
    present: memoryview
    """A byte a point; empty: all have a vector."""


def pack(column: VectorColumn) -> Packed:
    return Packed(
        0 if column.indices is not None else column.values.shape[1],
        _bytes_of(column.values, _FLOAT),
        _bytes_of(column.lengths if column.starts is not None else np.empty(0), _LENGTH),
        _bytes_of(column.indices if column.indices is not None else np.empty(0), _INDEX),
        _bytes_of(
            column.present if column.present is not None else np.empty(0), np.dtype(np.bool_)
        ),
    )


def unpack(packed: Packed, rows: int, name: str) -> VectorColumn:
    """The vectors of so many points; arrays may be read-only views of what is packed.

    Raises InvalidInput, naming what is wrong with those of ``name``, where they are no column.
    """
    try:
        values = np.frombuffer(packed.values, _FLOAT)
        # Whole words, which what is packed need not begin at.
        values = np.require(values, np.float32, "A")
        if packed.dimension:
            values = values.reshape(-1, packed.dimension)
        starts = None
        if len(packed.lengths) or packed.dimension == 0:
            lengths = np.frombuffer(packed.lengths, _LENGTH).astype(np.int64)
            starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
            if starts[-1] != len(values):
                raise ValueError(f"lengths add up to {starts[-1]}, not to {len(values)}")
        if packed.dimension:
            column = VectorColumn(values, starts)
        else:
            assert starts is not None
            indices = np.frombuffer(packed.indices, _INDEX).astype(np.uint32)
            if len(indices) != len(values):
                raise ValueError(f"{len(indices)} indices for {len(values)} values")
            _check_ascending(indices, starts)
            present = None
            if len(packed.present):
                present = np.frombuffer(packed.present, np.uint8) > 0
                if len(present) != len(lengths):
                    raise ValueError(f"{len(present)} marks for {len(lengths)} points")
                if lengths[~present].any():
                    raise ValueError("components of points that have no vector")
            column = VectorColumn(values, starts, indices, present)
    except ValueError as error:
        raise InvalidInput(f"vectors {name!r}: {error}") from error
    if column.rows != rows:
        raise InvalidInput(f"vectors {name!r}: expected those of {rows} points, got {column.rows}")
    return column


def _check_ascending(indices: NDArray[np.uint32], starts: NDArray[np.int64]) -> None:
    rising = np.ones(len(indices), np.bool_)
    rising[1:] = indices[1:] > indices[:-1]
    rising[starts[:-1][starts[:-1] < len(indices)]] = True
    if not rising.all():
        raise ValueError("indices are not ascending")


def _bytes_of(array: NDArray[Any] | None, dtype: np.dtype[Any]) -> memoryview:
    if array is None:
        return memoryview(b"")
    return np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data
