"""Vectors of every kind: as hypothesis makes them, as plain Python has them, and how near they are.

Of a point, a plain row is None where it has no vector; else a dense vector is a tuple of numbers,
several are a tuple of such, and a sparse one is a dictionary of components.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from shard.model import (
    Distance,
    Scores,
    ShardConfig,
    SparseConfig,
    VectorColumn,
    VectorColumns,
    VectorConfig,
)

Row: TypeAlias = Any
DIMENSION = 3
WHOLE, SOME, MANY, WORDS = "whole", "some", "many", "words"
"""Names of vectors: dense ones that all points have, or some, several a point, and sparse ones."""


def config_of(distance: Distance = Distance.EUCLID, **others: Any) -> ShardConfig:
    one = VectorConfig(dimension=DIMENSION, distance=distance)
    several = VectorConfig(dimension=DIMENSION, distance=distance, multi=True)
    return ShardConfig(
        vectors={WHOLE: one, SOME: one, MANY: several}, sparse={WORDS: SparseConfig()}, **others
    )


CONFIG = config_of()

numbers = st.floats(-1e6, 1e6, width=32)
_dense = st.tuples(*[numbers] * DIMENSION)
rows: dict[str, st.SearchStrategy[Row]] = {
    WHOLE: _dense,
    SOME: st.none() | _dense,
    MANY: st.none() | st.lists(_dense, min_size=1, max_size=3).map(tuple),
    WORDS: st.none()
    | st.dictionaries(st.integers(0, 5) | st.integers(0, 2**32 - 1), numbers, max_size=4),
}
"""By name."""


def column(name: str, given: Sequence[Row], config: ShardConfig = CONFIG) -> VectorColumn:
    """Plain rows as a column, with no more arrays than it needs."""
    if name in config.sparse:
        items = [item for row in given for item in sorted((row or {}).items())]
        present = np.array([row is not None for row in given], np.bool_)
        return VectorColumn(
            np.array([value for _, value in items], np.float32),
            _starts([len(row or {}) for row in given]),
            np.array([index for index, _ in items], np.uint32),
            None if present.all() else present,
        )
    own = config.vectors[name]
    vectors = [one for row in given if row is not None for one in (row if own.multi else [row])]
    lengths = [0 if row is None else len(row) if own.multi else 1 for row in given]
    return VectorColumn(
        np.array(vectors, np.float32).reshape(-1, own.dimension),
        None if lengths == [1] * len(given) else _starts(lengths),
    )


def _starts(lengths: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([sum(lengths[:row]) for row in range(len(lengths) + 1)], np.int64)


def plain(name: str, column: VectorColumn, config: ShardConfig = CONFIG) -> list[Row]:
    """The inverse of `column`."""
    starts = range(len(column.values) + 1) if column.starts is None else column.starts.tolist()
    found: list[Row] = []
    for row in range(len(starts) - 1):
        some = slice(starts[row], starts[row + 1])
        values = column.values[some].tolist()
        if column.indices is not None:
            absent = column.present is not None and not column.present[row]
            indices = column.indices[some].tolist()
            assert indices == sorted(set(indices)) and not (absent and indices)
            found.append(None if absent else dict(zip(indices, values, strict=True)))
        elif not values:
            found.append(None)
        elif config.vectors[name].multi:
            found.append(tuple(map(tuple, values)))
        else:
            (only,) = values
            found.append(tuple(only))
    return found


def rows_of(vectors: VectorColumns, config: ShardConfig) -> list[dict[str, Row]]:
    """Plain rows by name, of each point."""
    found = [plain(name, column, config) for name, column in vectors.items()]
    return [dict(zip(vectors, row, strict=True)) for row in zip(*found, strict=True)]


def drawn(
    chance: np.random.Generator, count: int, config: ShardConfig = CONFIG, terms: int = 12
) -> VectorColumns:
    """Vectors for so many points: of the first name each has one, of the others about two thirds.

    Sparse ones are of so many ``terms``, and some of them are empty.
    """
    found = {}
    for number, name in enumerate(config.names):
        has = (chance.random(count) < 0.66) | (number == 0 and name not in config.sparse)
        given: list[Row] = []
        for one in has.tolist():
            if not one:
                given.append(None)
            elif name in config.sparse:
                indices = chance.choice(terms, chance.integers(0, min(terms, 5)), replace=False)
                given.append({int(index): float(chance.normal()) for index in indices})
            else:
                own = config.vectors[name]
                vectors = chance.normal(size=(chance.integers(1, 4), own.dimension)).tolist()
                given.append(tuple(map(tuple, vectors)) if own.multi else tuple(vectors[0]))
        found[name] = column(name, given, config)
    return found


def score(config: ShardConfig, name: str, query: Row, row: Row) -> float | None:
    """Qdrant's score of a plain row, which is stored, for a query; None where it is no hit."""
    if row is None:
        return None
    if name in config.sparse:
        common = query.keys() & row.keys()
        return math.fsum(query[index] * row[index] for index in common) if common else None
    own = config.vectors[name]
    tokens, vectors = (
        np.array(one, np.float32).astype(np.float64).reshape(-1, own.dimension)
        for one in (query, row)
    )
    if own.distance is Distance.COSINE:
        tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    if own.distance.higher_is_nearer:
        return float((tokens @ vectors.T).max(axis=1).sum())
    difference = tokens[:, None] - vectors
    if own.distance is Distance.MANHATTAN:
        return float(np.abs(difference).sum(axis=2).min(axis=1).sum())
    return float(np.sqrt((difference**2).sum(axis=2).min(axis=1).sum()))


def check_nearest(
    config: ShardConfig,
    name: str,
    query: Row,
    stored: Mapping[int, Row],
    limit: int,
    ids: Sequence[Any],
    scores: Scores,
) -> None:
    """``ids`` with ``scores`` are the ``limit`` nearest of what is ``stored``, nearest first."""
    every = {one: score(config, name, query, row) for one, row in stored.items()}
    hits = {one: own for one, own in every.items() if own is not None}
    higher = name in config.sparse or config.vectors[name].distance.higher_is_nearer
    best = sorted(hits.values(), reverse=higher)[:limit]
    assert len(ids) == len(set(ids)) == len(best)
    np.testing.assert_allclose(scores, best, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(scores, [hits[one] for one in ids], rtol=1e-4, atol=1e-5)
