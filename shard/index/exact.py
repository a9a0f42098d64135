"""Exact nearest neighbours by scanning vectors, and exact scores of candidates."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

from shard import usage
from shard.model import Distance, Mask, Rows, Scores, Vectors

_BLOCK_BYTES = 8 << 20
"""Vectors gathered at a time."""
_BLAS_QUERIES = 20
"""From so many queries on FAISS takes distances from products of matrices, which cancels digits."""


def scan(
    vectors: Vectors, queries: Vectors, limit: int, distance: Distance, alive: Mask | None
) -> tuple[Rows, Scores]:
    """The nearest ``limit`` rows of ``vectors`` (n, d) to each of ``queries`` (q, d).

    ``alive`` (n,) says which rows count; None: all. Both answers are (q, limit), nearest first,
    with row -1 where there are fewer. Scores are similarities for cosine and dot, distances for
    euclid (not squared) and manhattan.
    """
    with usage.stage("scan"):
        if distance is Distance.MANHATTAN:
            rows = _scan_manhattan(vectors, queries, limit, alive)
        else:
            rows = _scan(vectors, queries, limit, distance, alive)
    live = len(vectors) if alive is None else int(np.count_nonzero(alive))
    _count(len(queries) * live, vectors)
    return rerank(vectors, queries, rows, limit, distance)


def rerank(
    vectors: Vectors, queries: Vectors, candidates: Rows, limit: int, distance: Distance
) -> tuple[Rows, Scores]:
    """The nearest ``limit`` of each query's ``candidates`` (q, c), by exact scores, as in `scan`.

    Candidates are rows of ``vectors``, in any order, then -1.
    """
    _count(candidates.size, vectors)
    with usage.stage("rerank"):
        return _nearest(vectors, queries, candidates, limit, distance)


def _count(compared: int, vectors: Vectors) -> None:
    """Tell that so many of ``vectors`` are compared."""
    usage.count_vectors(compared, compared * vectors.shape[1] * vectors.itemsize)


def _nearest(
    vectors: Vectors, queries: Vectors, candidates: Rows, limit: int, distance: Distance
) -> tuple[Rows, Scores]:
    if distance is not Distance.MANHATTAN and candidates.shape[1]:
        rows, scores = _rerank(vectors, queries, candidates, limit, distance)
        complete = bool((rows[:, -1] >= 0).all())
        if not complete:
            found = rows >= 0
            scores[~found] = 0
            expected = np.minimum((candidates >= 0).sum(axis=1), limit).sum()
            complete = bool(np.count_nonzero(found) == expected)
        # Scores that overflow are for the careful way.
        if complete and np.isfinite(scores).all():
            return rows, scores
    return _rerank_carefully(vectors, queries, candidates, limit, distance)


def _rerank(
    vectors: Vectors, queries: Vectors, candidates: Rows, limit: int, distance: Distance
) -> tuple[Rows, Scores]:
    """Without a copy of what is compared; row -1 where there are too few."""
    count, width = candidates.shape
    queries = np.ascontiguousarray(queries)
    candidates = np.ascontiguousarray(candidates)
    rows = np.empty((count, limit), np.int64)
    scores = np.empty((count, limit), np.float32)
    pointers = [faiss.swig_ptr(array) for array in (queries, vectors, candidates)]
    # FAISS 1.15 takes its own default for the stride, -1, at its word.
    found = [faiss.swig_ptr(scores), faiss.swig_ptr(rows), width]
    shape = (vectors.shape[1], count, len(vectors), width, limit)
    if distance.higher_is_nearer:
        faiss.knn_inner_products_by_idx(*pointers, *shape, *found)
    else:
        faiss.knn_L2sqr_by_idx(*pointers, *shape, *found)
        np.sqrt(scores, out=scores)
    return rows, scores


def _rerank_carefully(
    vectors: Vectors, queries: Vectors, candidates: Rows, limit: int, distance: Distance
) -> tuple[Rows, Scores]:
    count, width = candidates.shape
    rows = np.full((count, limit), -1, np.int64)
    scores = np.zeros((count, limit), np.float32)
    kept = min(limit, width)
    step = max(1, _BLOCK_BYTES // max(1, width * vectors.itemsize * vectors.shape[1]))
    for start in range(0, count if kept else 0, step):
        block = candidates[start : start + step]
        exact = _scores(vectors[block], queries[start : start + step], distance)
        rank = -exact if distance.higher_is_nearer else exact
        order = np.argsort(np.where(block >= 0, rank, np.inf), axis=1, kind="stable")[:, :kept]
        rows[start : start + step, :kept] = np.take_along_axis(block, order, axis=1)
        scores[start : start + step, :kept] = np.take_along_axis(exact, order, axis=1)
    return rows, scores


def _scores(gathered: Vectors, queries: Vectors, distance: Distance) -> Scores:
    """Scores of ``gathered`` (q, c, d) against ``queries`` (q, d): (q, c)."""
    scores: Scores
    with np.errstate(over="ignore", invalid="ignore"):
        if distance.higher_is_nearer:
            scores = np.matmul(gathered, queries[:, :, None])[:, :, 0]
        else:
            difference = gathered - queries[:, None, :]
            if distance is Distance.MANHATTAN:
                scores = np.abs(difference).sum(axis=2)
            else:
                scores = np.sqrt(np.einsum("qcd,qcd->qc", difference, difference))
    # What overflows is as near, or as far, as a float can say.
    return np.nan_to_num(scores, copy=False)


def similarities(vectors: Vectors, rows: Rows, queries: Vectors, distance: Distance) -> Scores:
    """How near ``rows`` (n,) of ``vectors`` are to each of ``queries`` (q, d): (q, n).

    Higher is nearer: products, or negative distances, for Euclid squared.
    """
    _count(len(queries) * len(rows), vectors)
    found = np.empty((len(queries), len(rows)), np.float32)
    step = max(1, _BLOCK_BYTES // (vectors.itemsize * vectors.shape[1]))
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(rows), step):
            block = vectors[rows[start : start + step]]
            some = found[:, start : start + step]
            if distance.higher_is_nearer:
                np.matmul(queries, block.T, out=some)
                continue
            for number, query in enumerate(queries):
                difference = block - query
                if distance is Distance.MANHATTAN:
                    some[number] = -np.abs(difference).sum(axis=1)
                else:
                    some[number] = -np.einsum("nd,nd->n", difference, difference)
    return np.nan_to_num(found, copy=False)


def _scan(
    vectors: Vectors, queries: Vectors, limit: int, distance: Distance, alive: Mask | None
) -> Rows:
    queries = np.ascontiguousarray(queries)
    # A few more, since products of matrices may put near ties into the wrong order.
    found = min(len(vectors), limit + (8 if len(queries) >= _BLAS_QUERIES else 0))
    rows = np.full((len(queries), found), -1, np.int64)
    if not found:
        return rows
    scores = np.empty((len(queries), found), np.float32)
    selector: list[Any] = [] if alive is None else [_selector(alive)]
    shape = (vectors.shape[1], len(queries), len(vectors), found)
    pointers = [faiss.swig_ptr(array) for array in (queries, vectors, scores, rows)]
    if distance.higher_is_nearer:
        faiss.knn_inner_product(*pointers[:2], *shape, *pointers[2:], *selector)
    else:
        faiss.knn_L2sqr(*pointers[:2], *shape, *pointers[2:], None, *selector)
    return rows


def _scan_manhattan(vectors: Vectors, queries: Vectors, limit: int, alive: Mask | None) -> Rows:
    """FAISS takes no selector for this metric: live rows are gathered block by block."""
    step = max(1, _BLOCK_BYTES // (vectors.itemsize * vectors.shape[1]))
    best = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(vectors), step):
        block = np.arange(start, min(start + step, len(vectors)))
        if alive is not None:
            block = block[alive[start : start + step]]
        if not len(block):
            continue
        gathered = vectors[start : start + step] if len(block) == step else vectors[block]
        _, found = faiss.knn(
            np.ascontiguousarray(queries),
            np.ascontiguousarray(gathered),
            min(limit, len(block)),
            metric=faiss.METRIC_L1,
        )
        candidates = np.concatenate([best, block[found]], axis=1)
        best, _ = _nearest(
            vectors, queries, candidates, min(limit, candidates.shape[1]), Distance.MANHATTAN
        )
    return best


def _selector(alive: Mask) -> Any:
    return faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
