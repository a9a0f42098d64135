"""Nearest points by the vectors of one name, of whatever kind these are."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shard import usage
from shard.index import maxsim, sparse
from shard.index.exact import rerank, scan, similarities
from shard.index.ivfpq import IvfPqIndex
from shard.index.sparse import Postings
from shard.model import (
    Distance,
    Mask,
    Rows,
    Scores,
    VectorColumn,
    VectorConfig,
    Vectors,
)

_OVERSAMPLING = 16.0
_SCAN_SHARE = 0.1
"""With candidates beyond this share of all rows a scan is as cheap as their rerank."""
_MORE_LISTS, _MORE_CANDIDATES = 4, 8
"""Than are calibrated, which is for single vectors: a point that is near by all of its vectors may
be so by none alone. With as many as for single ones recall@10 is 0.7, so it is 0.98 (measured)."""
_GPU_CANDIDATES = 2
"""For each of the nearest: GPU and CPU round as differently as that, and no more."""
_FEW_ROWS = 5_000
"""Up to so many live rows are compared one by one, however many are dead."""


class ColumnIndex(Protocol):
    """Of a `VectorColumn` of n rows. Any number of threads may search it."""

    @property
    def name(self) -> str:
        """``"flat"``, ``"postings"``, or the index as FAISS's index factory has it."""

    def search(
        self,
        queries: VectorColumn,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        """The nearest rows that have a vector, and their exact scores, as of `exact.scan`: both
        (queries, ``limit``).

        With an index, ``limit * oversampling`` candidates from ``nprobe`` lists are reranked by
        their raw vectors.
        """

    def similarities(self, examples: VectorColumn, rows: Rows) -> NDArray[np.float32]:
        """How near the vectors of ``rows`` (n,), which must have some, are to each of the examples:
        (examples, n), higher is nearer. For Euclid and Manhattan negative distances, of which the
        former are squared."""


def open_column(
    column: VectorColumn,
    config: VectorConfig | None,
    index: IvfPqIndex | None = None,
    postings: Postings | None = None,
) -> ColumnIndex:
    """``config`` None: of sparse vectors."""
    if config is None:
        return SparseColumn(column, postings)
    if config.multi:
        return _MultiColumn(column, config, index)
    return _DenseColumn(column, config, index)


class _DenseColumn:
    def __init__(
        self, column: VectorColumn, config: VectorConfig, index: IvfPqIndex | None
    ) -> None:
        self._column = column
        self._vectors = column.values
        self._distance = config.distance
        self._index = index
        self._on_gpu = None
        # Which of the lists' nearest by L2 are the nearest by L1, too, takes many candidates.
        if index is not None and self._distance is not Distance.MANHATTAN:
            self._on_gpu = index.on_gpu(self._vectors)

    @property
    def name(self) -> str:
        return "flat" if self._index is None else self._index.name

    @cached_property
    def _row_of(self) -> Rows:
        """Of each vector; where every row has one, they are the same."""
        return self._column.row_of()

    def search(
        self,
        queries: VectorColumn,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        """More lists are searched where these hold fewer than ``limit`` live rows; where few rows
        are alive, these are compared one by one."""
        whole = self._column.starts is None
        if not whole and alive is not None:
            alive = alive[self._row_of]
        found, scores = self._search(queries.values, limit, exact, nprobe, oversampling, alive)
        if not whole and len(self._row_of):
            found = np.where(found >= 0, self._row_of[found], -1)
        return found, scores

    def _search(
        self,
        queries: Vectors,
        limit: int,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        index, total = self._index, len(self._vectors)
        count = max(limit, math.ceil(limit * (oversampling or _OVERSAMPLING)))
        live = total if alive is None else int(np.count_nonzero(alive))
        if alive is not None and live <= min(_FEW_ROWS, total // 4):
            few = np.repeat(np.flatnonzero(alive)[None], len(queries), axis=0)
            return rerank(self._vectors, queries, few, limit, self._distance)
        if exact or index is None or count >= _SCAN_SHARE * total:
            return scan(self._vectors, queries, limit, self._distance, alive)
        wanted = min(limit, live)
        nprobe = nprobe or max(1, index.lists // 8)
        candidates = self._candidates(index, queries, limit, count, nprobe, alive)
        while wanted and nprobe < index.lists and (candidates[:, wanted - 1] < 0).any():
            nprobe = min(2 * nprobe, index.lists)
            candidates = self._candidates(index, queries, limit, count, nprobe, alive)
        return rerank(self._vectors, queries, candidates, limit, self._distance)

    def _candidates(
        self,
        index: IvfPqIndex,
        queries: Vectors,
        limit: int,
        count: int,
        nprobe: int,
        alive: Mask | None,
    ) -> Rows:
        if self._on_gpu is not None:
            near = self._on_gpu.candidates(queries, _GPU_CANDIDATES * limit, nprobe, alive)
            if near is not None:
                return near
        return index.candidates(queries, count, nprobe, alive)

    def similarities(self, examples: VectorColumn, rows: Rows) -> NDArray[np.float32]:
        starts = self._column.starts
        own = rows if starts is None else starts[rows]
        return similarities(self._vectors, own, examples.values, self._distance)


class _MultiColumn:
    """Candidates are the points whose vectors are near to one of the query's."""

    def __init__(
        self, column: VectorColumn, config: VectorConfig, index: IvfPqIndex | None
    ) -> None:
        self._column = column
        self._distance = config.distance
        self._index = index

    @property
    def name(self) -> str:
        return "flat" if self._index is None else self._index.name

    @cached_property
    def _row_of(self) -> Rows:
        return self._column.row_of()

    @cached_property
    def _has(self) -> Mask:
        return self._column.has()

    def search(
        self,
        queries: VectorColumn,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        alive = self._has if alive is None else self._has & alive
        rows = np.full((queries.rows, limit), -1, np.int64)
        scores = np.zeros((queries.rows, limit), np.float32)
        live = np.flatnonzero(alive)
        for query in range(queries.rows):
            tokens = queries.slice(query, query + 1).values
            compared = live
            if self._index is not None and not exact and len(live) > _FEW_ROWS:
                count = max(limit, math.ceil(limit * (oversampling or _OVERSAMPLING)))
                lists = nprobe or max(1, self._index.lists // 8)
                found = self._index.candidates(
                    tokens,
                    min(_MORE_CANDIDATES * count, len(self._row_of)),
                    _MORE_LISTS * lists,
                    alive[self._row_of],
                )
                near = np.unique(self._row_of[found[found >= 0]])
                compared = near if len(near) >= min(limit, len(live)) else live
            with usage.stage("rerank"):
                close = maxsim.similarities(self._column, compared, tokens, self._distance)
            best = np.argsort(-close, kind="stable")[:limit]
            rows[query, : len(best)] = compared[best]
            scores[query, : len(best)] = maxsim.scores(close[best], self._distance)
        return rows, scores

    def similarities(self, examples: VectorColumn, rows: Rows) -> NDArray[np.float32]:
        found = np.empty((examples.rows, len(rows)), np.float32)
        for number in range(examples.rows):
            tokens = examples.slice(number, number + 1).values
            found[number] = maxsim.similarities(self._column, rows, tokens, self._distance)
        return found


class SparseColumn:
    """Products of vectors, exact; of points that have a component in common with the query."""

    def __init__(self, column: VectorColumn, postings: Postings | None) -> None:
        self._column = column
        self._postings = postings

    @property
    def name(self) -> str:
        return "flat" if self._postings is None else "postings"

    def search(
        self,
        queries: VectorColumn,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        rows = np.full((queries.rows, limit), -1, np.int64)
        scores = np.zeros((queries.rows, limit), np.float32)
        for query in range(queries.rows):
            with usage.stage("scan"):
                products, met = self._products(queries, query)
            if alive is not None:
                met &= alive
            found = np.flatnonzero(met)
            near = products[found]
            if len(found) > limit:
                # All that are as near as the last one, lest which of them depends on NumPy.
                bound = np.partition(near, -limit)[-limit]
                found, near = found[near >= bound], near[near >= bound]
            best = np.argsort(-near, kind="stable")[:limit]
            rows[query, : len(best)] = found[best]
            scores[query, : len(best)] = near[best]
        return rows, scores

    def similarities(self, examples: VectorColumn, rows: Rows) -> NDArray[np.float32]:
        found = [self._products(examples, number)[0][rows] for number in range(examples.rows)]
        return np.array(found, np.float32).reshape(examples.rows, len(rows))

    def points(self, alive: Mask | None) -> int:
        """How many live rows have a vector."""
        has = self._column.has()
        return int(np.count_nonzero(has if alive is None else has & alive))

    def frequencies(self, indices: NDArray[np.uint32], alive: Mask | None) -> NDArray[np.int64]:
        """How many live rows have each of ``indices``, (t,)."""
        if self._postings is not None:
            return self._postings.frequencies(indices, alive)
        return sparse.frequencies(self._column, indices, alive)

    def _products(self, queries: VectorColumn, number: int) -> tuple[Scores, Mask]:
        query = queries.slice(number, number + 1)
        assert query.indices is not None
        if self._postings is not None:
            return self._postings.products(query.indices, query.values)
        return sparse.products(self._column, query.indices, query.values)
