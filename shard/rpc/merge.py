"""One answer out of the answers of several shards, which hold no key in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shard.model import Hits, Keys, Points, Ranked, RankParams, Rows, VectorColumn
from shard.ordering import ordering


def merge_hits(parts: Sequence[Hits], limit: int, *, higher_is_nearer: bool) -> Hits:
    """The nearest ``limit`` hits of each query, nearest first, ties in order of their keys.

    Every part answers the same queries with the same columns.
    """
    queries = len(parts[0].lengths)
    points = concatenate_points([part.points for part in parts])
    scores = np.concatenate([part.scores for part in parts])
    query = np.concatenate([np.repeat(np.arange(queries), part.lengths) for part in parts])
    # lexsort: the last column is the first to sort by.
    order = np.lexsort((points.keys, -scores if higher_is_nearer else scores, query))
    found = np.bincount(query, minlength=queries)
    rank = np.arange(len(query)) - np.repeat(np.cumsum(found) - found, found)
    kept = order[rank < limit]
    return Hits(np.minimum(found, limit), scores[kept], take_points(points, kept))


def stack_hits(parts: Sequence[Hits]) -> Hits:
    """Answers to consecutive runs of queries as the answer to all of them."""
    if len(parts) == 1:
        return parts[0]
    return Hits(
        np.concatenate([part.lengths for part in parts]),
        np.concatenate([part.scores for part in parts]),
        concatenate_points([part.points for part in parts]),
    )


def split_hits(hits: Hits, queries: Sequence[int]) -> list[Hits]:
    """The answer to all as answers to consecutive runs of so many ``queries``. Nothing is copied
    but lists."""
    if len(queries) == 1:
        return [hits]
    ends = np.cumsum(hits.lengths)
    parts = []
    query = row = 0
    for count in queries:
        next_query = query + count
        next_row = int(ends[next_query - 1])
        points = hits.points
        part = Points(
            points.keys[row:next_row],
            None if points.payloads is None else points.payloads[row:next_row],
            {name: one.slice(row, next_row) for name, one in points.vectors.items()},
        )
        parts.append(Hits(hits.lengths[query:next_query], hits.scores[row:next_row], part))
        query, row = next_query, next_row
    return parts


def merge_ascending(parts: Sequence[Points], limit: int) -> Points:
    """The first ``limit`` points in order of their keys."""
    points = concatenate_points(parts)
    return take_points(points, np.argsort(points.keys, kind="stable")[:limit])


def merge_ranked(parts: Sequence[Ranked], params: RankParams) -> Ranked:
    """The first of what several shards have ranked."""
    if len(parts) == 1:
        return parts[0]
    starts = np.cumsum([0, *(len(part.values) for part in parts)]).tolist()
    entries = [
        [
            (value, key, start + row)
            for row, (value, key) in enumerate(
                zip(part.values, part.points.keys.tolist(), strict=True)
            )
        ]
        for start, part in zip(starts, parts, strict=False)
    ]
    if params.order_by:
        merged = ordering(params.order_by).merge(entries, params.limit)
    else:
        merged = sorted(entry for part in entries for entry in part)[: params.limit]
    points = concatenate_points([part.points for part in parts])
    rows = np.array([row for _, _, row in merged], np.int64)
    return Ranked([value for value, _, _ in merged], take_points(points, rows))


def in_order_of(points: Points, keys: Keys) -> Points:
    """``points`` in the order of ``keys``; a key that is not among them is passed over."""
    row_of = {key: row for row, key in enumerate(points.keys.tolist())}
    rows = [row for key in keys.tolist() if (row := row_of.get(key)) is not None]
    return take_points(points, np.array(rows, np.int64))


def concatenate_points(parts: Sequence[Points]) -> Points:
    """All points, part after part. Every part has the same columns."""
    if len(parts) == 1:
        return parts[0]
    payloads = [part.payloads for part in parts if part.payloads is not None]
    return Points(
        np.concatenate([part.keys for part in parts]),
        [payload for column in payloads for payload in column] if payloads else None,
        {
            name: VectorColumn.concatenate([part.vectors[name] for part in parts])
            for name in parts[0].vectors
        },
    )


def take_points(points: Points, rows: Rows) -> Points:
    """The points of ``rows`` (n,) int64, in that order."""
    return Points(
        points.keys[rows],
        None if points.payloads is None else [points.payloads[row] for row in rows.tolist()],
        {name: one.take(rows) for name, one in points.vectors.items()},
    )
