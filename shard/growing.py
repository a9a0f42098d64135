"""Arrays and columns of vectors that grow at their end."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard.model import VectorColumn

_FIRST_CAPACITY = 256


class GrowingArray:
    """Of any number of rows like those of ``empty``, with room for ``capacity`` at first.

    A buffer that has grown full is replaced rather than resized: what `used` returned stays as it
    is, whatever is appended.
    """

    def __init__(self, empty: NDArray[Any], capacity: int = _FIRST_CAPACITY) -> None:
        self._array = np.empty((capacity, *empty.shape[1:]), empty.dtype)
        self._used = 0

    @property
    def used(self) -> NDArray[Any]:
        return self._array[: self._used]

    def append(self, rows: NDArray[Any]) -> None:
        end = self._used + len(rows)
        if end > len(self._array):
            grown = np.empty((max(end, 2 * len(self._array)), *rows.shape[1:]), rows.dtype)
            grown[: self._used] = self.used
            self._array = grown
        self._array[self._used : end] = rows
        self._used = end


class GrowingColumn:
    """A `VectorColumn` like ``empty``, which has no rows."""

    def __init__(self, empty: VectorColumn, capacity: int = _FIRST_CAPACITY) -> None:
        self._values = GrowingArray(empty.values, capacity)
        self._starts = GrowingArray(np.empty(0, np.int64), capacity + 1)
        self._starts.append(np.zeros(1, np.int64))
        self._indices = None if empty.indices is None else GrowingArray(empty.indices, capacity)
        self._present = None if empty.indices is None else GrowingArray(empty.has(), capacity)
        self._plain = empty.indices is None
        """Whether each row has just one vector up to now."""

    def append(self, column: VectorColumn) -> None:
        ends = len(self._values.used) + np.cumsum(column.lengths)
        self._plain = self._plain and column.starts is None
        self._values.append(column.values)
        self._starts.append(ends)
        if self._indices is not None and self._present is not None and column.indices is not None:
            self._indices.append(column.indices)
            self._present.append(column.has())

    @property
    def used(self) -> VectorColumn:
        if self._plain:
            return VectorColumn(self._values.used)
        return VectorColumn(
            self._values.used,
            self._starts.used,
            None if self._indices is None else self._indices.used,
            None if self._present is None else self._present.used,
        )
