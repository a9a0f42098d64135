"""Products of sparse vectors: by scanning them, or from postings, term by term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard import usage
from shard.model import Mask, Rows, Scores, VectorColumn

_COMPONENT_BYTES = 8
"""Of an index, or a row, and a value."""


def products(
    column: VectorColumn, indices: NDArray[np.uint32], values: Scores
) -> tuple[Scores, Mask]:
    """Of every row of ``column`` with a query, whose ``indices`` (t,) are ascending; and which rows
    have any of them. Both (n,)."""
    assert column.indices is not None
    _count(len(column.indices))
    place = np.searchsorted(indices, column.indices)
    place[place == len(indices)] = 0
    met = indices[place] == column.indices if len(indices) else np.zeros(len(place), np.bool_)
    rows = column.row_of()[met]
    found = np.bincount(rows, column.values[met] * values[place[met]], minlength=column.rows)
    touched: Mask = np.bincount(rows, minlength=column.rows) > 0
    return found.astype(np.float32), touched


def frequencies(
    column: VectorColumn, indices: NDArray[np.uint32], alive: Mask | None
) -> NDArray[np.int64]:
    """How many live rows of ``column`` have each of ``indices``, (t,)."""
    assert column.indices is not None
    found = column.indices if alive is None else column.indices[alive[column.row_of()]]
    return np.array([np.count_nonzero(found == index) for index in indices], np.int64)


def _count(components: int) -> None:
    usage.count_vectors(components, components * _COMPONENT_BYTES)


class Postings:
    """An inverted file: of each term the rows that have it, and their components."""

    FILES = ("terms", "starts", "rows", "values")

    def __init__(self, arrays: Mapping[str, NDArray[Any]], rows: int) -> None:
        self._terms = arrays["terms"]
        self._starts = arrays["starts"]
        self._rows = arrays["rows"]
        self._values = arrays["values"]
        self._count = rows

    @staticmethod
    def arrays(column: VectorColumn) -> dict[str, NDArray[Any]]:
        """What to store of ``column``, and to open again, by the names in `FILES`."""
        assert column.indices is not None
        order = np.argsort(column.indices, kind="stable")
        terms, starts = np.unique(column.indices[order], return_index=True)
        return {
            "terms": terms.astype(np.uint32),
            "starts": np.append(starts, len(order)).astype(np.int64),
            "rows": column.row_of()[order].astype(np.uint32),
            "values": column.values[order],
        }

    def products(self, indices: NDArray[np.uint32], values: Scores) -> tuple[Scores, Mask]:
        """As `products`."""
        found = np.zeros(self._count, np.float32)
        met = np.zeros(self._count, np.bool_)
        for index, value in zip(indices, values, strict=True):
            some = self._of(index)
            rows = self._rows[some]
            _count(len(rows))
            found[rows] += self._values[some] * value
            met[rows] = True
        return found, met

    def frequencies(self, indices: NDArray[np.uint32], alive: Mask | None) -> NDArray[np.int64]:
        """How many live rows have each of ``indices``, (t,)."""
        counts = []
        for index in indices:
            rows: Rows = self._rows[self._of(index)]
            counts.append(len(rows) if alive is None else int(np.count_nonzero(alive[rows])))
        return np.array(counts, np.int64)

    def _of(self, index: np.uint32) -> slice:
        place = int(np.searchsorted(self._terms, index))
        if place == len(self._terms) or self._terms[place] != index:
            return slice(0, 0)
        return slice(int(self._starts[place]), int(self._starts[place + 1]))
