"""Picks how much of an index to search, from what was measured to be needed.

Rows of the segment itself serve as queries, each left out of its own answers, which makes them
held-out queries of the distribution that is stored.

The recall that counts is the collection's. A segment with a quarter of the rows has two or three of
a query's ten nearest: to find its own tenth would be effort in vain, so that a neighbour counts by
the chance that it is among the collection's nearest.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

from shard.index.exact import scan
from shard.index.ivfpq import IvfPqIndex
from shard.model import Calibration, Distance, Rows, Vectors

K = 10
_QUERIES = 400
_SCANNED_FLOATS = 2**31
"""Bound on queries times components of the exact scan that yields the truth."""
_LEAST_QUERIES = 100
_OVERSAMPLING = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_RERANK_COST = 5.0
"""What a byte of a raw vector at random costs, in bytes of codes in sequence: measured."""


def calibrate(
    index: IvfPqIndex,
    vectors: Vectors,
    distance: Distance,
    target: float,
    share: float,
    seed: int,
) -> Calibration | None:
    """The cheapest settings whose recall@10 is above ``target`` by its standard error.

    None when there are no such settings. ``vectors`` (n, d) are those that ``index`` was built of,
    at most ``share`` of what is searched together.
    """
    rows, dimension = vectors.shape
    k = min(K, rows - 1)
    if k < 1:
        return None
    count = min(rows, _QUERIES, max(_LEAST_QUERIES, _SCANNED_FLOATS // vectors.size))
    asked = np.sort(np.random.default_rng(seed).choice(rows, count, False))
    queries = np.ascontiguousarray(vectors[asked])
    found, _ = scan(vectors, queries, k + 1, distance, None)
    truth = _without(found, asked)[:, :k]

    weights = _weights(k, share)
    best: tuple[float, Calibration] | None = None
    lists = index.lists
    for nprobe in _ladder(lists):
        scanned = nprobe / lists * rows * index.code_bytes + lists * dimension * 4
        if best is not None and scanned >= best[0]:
            break
        widest = min(rows, _OVERSAMPLING[-1] * k + 1)
        candidates = index.candidates(queries, widest, nprobe, None)
        candidates = _without(candidates, asked)
        # A true neighbour is in the answer just if it is a candidate: exact scores do the rest.
        place = np.array(
            [
                np.where(near[:, None] == own[None, :], np.arange(len(own)), widest).min(axis=1)
                for near, own in zip(truth, candidates, strict=True)
            ]
        )
        for oversampling in _OVERSAMPLING:
            recalls = (place < oversampling * k) @ weights
            recall = float(recalls.mean())
            if recall - float(recalls.std()) / count**0.5 < target and recall < 1:
                continue
            cost = scanned + _RERANK_COST * oversampling * k * dimension * 4
            if best is None or cost < best[0]:
                best = (
                    cost,
                    Calibration(
                        nprobe=nprobe,
                        oversampling=float(oversampling),
                        target=target,
                        recall=recall,
                        k=k,
                        queries=count,
                    ),
                )
            break
    return None if best is None else best[1]


def _weights(k: int, share: float) -> NDArray[np.float64]:
    """What a row's neighbour of each rank, nearest first, is of the recall@k of the whole.

    The i-th counts where i or more of the k nearest are here, each being so by chance of ``share``.
    """
    here = [comb(k, n) * share**n * (1 - share) ** (k - n) for n in range(k + 1)]
    at_least = np.cumsum(here[::-1])[::-1][1:]
    weights: NDArray[np.float64] = at_least / at_least.sum()
    return weights


def _ladder(lists: int) -> list[int]:
    """Steps of a square root of two, up to all lists."""
    steps = {min(lists, round(2 ** (half / 2))) for half in range(2 * lists.bit_length() + 1)}
    return sorted(steps)


def _without(found: Rows, asked: Rows) -> Rows:
    """``found`` (q, c) less the row that was ``asked`` (q,), or less the last: (q, c - 1)."""
    own = found == asked[:, None]
    own[~own.any(axis=1), -1] = True
    others: Rows = found[~own].reshape(len(found), -1)
    return others
