"""Which segments to merge, and when.

Merges are geometric, as in log-structured merge trees: a segment is taken into a merge only when
what is merged with it is at least half its size, so that each row is rewritten a number of times
that is logarithmic in the number of rows. Once nothing is written any more, more is rewritten for
fewer segments to search.
"""

from __future__ import annotations

from collections.abc import Sequence

from shard.model import ShardConfig
from shard.view import Layer

MAX_SMALL_SEGMENTS = 8
MAX_DEAD_SHARE = 0.3
_TIER, _SETTLED_TIER, _LEFT_OVER_TIER = 2, 8, 32
"""A segment is merged with others that are together at least one of so many parts of its size:
while there are writes, when there are none, and then with rows that have no index. To scan a 32nd
part of 85,000 rows takes half as long as to search the index of the others."""
_WORTH_INDEXING = 1 / 8
"""Of the threshold: rows without an index that are merged into one when nothing is written."""
_FEW_ROWS = 1_024
"""Segments of fewer rows are not rewritten for their dead ones."""


def choose_merge(layers: Sequence[Layer], config: ShardConfig, *, settled: bool) -> list[Layer]:
    """The segments to merge now, of a view's ``layers``; empty for none.

    ``settled``: nothing has been written for a while, and machines have time to tidy up.

    Dead rows are left out of what is merged, so one segment alone may be "merged" too.
    """
    segments = sorted((one for one in layers if one.segment_id), key=lambda one: one.live)
    waiting = [one for one in segments if _awaits_index(one, config)]
    if _is_enough(sum(one.live for one in waiting), config):
        return _with_smaller(waiting, segments)
    empty = [one for one in segments if not one.live]
    if empty:
        return empty
    flat = [one for one in segments if not one.source.indexed]
    if len(flat) >= MAX_SMALL_SEGMENTS:
        chosen = _with_smaller(flat[:2], flat)
        if len(chosen) >= MAX_SMALL_SEGMENTS:
            return chosen
        return flat[:MAX_SMALL_SEGMENTS]
    for one in segments:
        rows = one.source.rows
        if rows >= _FEW_ROWS and rows - one.live > MAX_DEAD_SHARE * rows:
            return _with_smaller([one], segments)
    if settled and sum(one.live for one in waiting) >= config.flat_threshold * _WORTH_INDEXING:
        chosen = _with_smaller(waiting, segments, _LEFT_OVER_TIER)
        if gets_index(chosen, config):
            return chosen
    if settled:
        indexed = [one for one in segments if one.source.indexed]
        for number, one in enumerate(indexed):
            chosen = _with_smaller([one], indexed[number:], _SETTLED_TIER)
            if len(chosen) > 1 and gets_index(chosen, config):
                return chosen
    return []


def gets_index(chosen: Sequence[Layer], config: ShardConfig) -> bool:
    """Whether the merge of ``chosen`` should have an index."""
    return _is_enough(sum(one.live for one in chosen), config)


def _awaits_index(layer: Layer, config: ShardConfig) -> bool:
    """Whether its rows count towards the next index: no index is there, or was in vain."""
    in_vain = 0 < layer.unreachable <= config.recall_target
    return not layer.source.indexed and not in_vain


def _is_enough(rows: int, config: ShardConfig) -> bool:
    return 0 < config.flat_threshold <= rows


def _with_smaller(chosen: list[Layer], segments: Sequence[Layer], tier: int = _TIER) -> list[Layer]:
    """``chosen``, and of ``segments``, smallest first, what is not too large beside them."""
    gathered = list(chosen)
    live = sum(one.live for one in gathered)
    for one in segments:
        if one in gathered:
            continue
        if one.live > tier * live:
            break
        gathered.append(one)
        live += one.live
    return gathered
