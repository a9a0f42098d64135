from __future__ import annotations

from dataclasses import dataclass, field, replace

import msgspec
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.compaction import merged
from shard.memtable import Memtable
from shard.merge_policy import MAX_SMALL_SEGMENTS, choose_merge, gets_index
from shard.model import Distance, Keys, Mask, ShardConfig, decode_ids, encode_ids
from shard.view import Layer
from tests import columns

FLAT = ShardConfig.unnamed(2, Distance.EUCLID, flat_threshold=0)
INDEXED = ShardConfig.unnamed(2, Distance.EUCLID, flat_threshold=2_000)


@dataclass(eq=False)
class Rows:
    """As many rows as are said, and nothing in them."""

    rows: int
    indexed: bool = False
    keys: Keys = field(default_factory=lambda: encode_ids([]))


def layer(rows: int, *, dead: int = 0, indexed: bool = False, in_vain: float = 0.0) -> Layer:
    alive: Mask | None = None
    if dead:
        alive = np.arange(rows) >= dead
    return Layer(
        Rows(rows, indexed),  # type: ignore[arg-type]
        alive,
        segment_id="s",
        unreachable=in_vain,
    )


def settle(
    layers: list[Layer], config: ShardConfig, *, settled: bool = False
) -> tuple[list[Layer], int]:
    """Merge until there is nothing to merge; also the rows written by that."""
    written = 0
    for _ in range(1_000):
        chosen = choose_merge(layers, config, settled=settled)
        if not chosen:
            return layers, written
        live = sum(one.live for one in chosen)
        written += live
        layers = [one for one in layers if one not in chosen]
        if live:
            layers.append(layer(live, indexed=gets_index(chosen, config)))
    raise AssertionError("merges without end")


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3_000), min_size=1, max_size=120),
    config=st.sampled_from([FLAT, INDEXED]),
)
def test_merges_end_and_rewrite_each_row_a_logarithmic_number_of_times(
    sizes: list[int], config: ShardConfig
) -> None:
    layers: list[Layer] = []
    written = 0
    for size in sizes:
        layers, more = settle([*layers, layer(size)], config)
        written += more
        flat = [one for one in layers if not one.source.indexed]
        assert len(flat) < MAX_SMALL_SEGMENTS
        if config is INDEXED:
            assert sum(one.live for one in flat) < INDEXED.flat_threshold
    total = sum(sizes)
    assert sum(one.live for one in layers) == total
    assert written <= total * (3 + 2 * np.log2(max(2, total)))


def test_rows_that_add_up_to_the_threshold_get_one_index() -> None:
    layers, _ = settle([layer(700), layer(700), layer(700)], INDEXED)
    (only,) = layers
    assert only.source.indexed and only.live == 2_100


def test_a_large_index_is_left_alone_by_a_small_one() -> None:
    large = layer(100_000, indexed=True)
    layers, _ = settle([large, layer(1_500), layer(1_500)], INDEXED)
    assert large in layers and len(layers) == 2


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3_000), min_size=1, max_size=120),
    pauses=st.sets(st.integers(0, 120)),
    config=st.sampled_from([FLAT, INDEXED]),
)
def test_tidying_up_leaves_few_rows_without_an_index_and_rewrites_no_more_than_its_share(
    sizes: list[int], pauses: set[int], config: ShardConfig
) -> None:
    layers: list[Layer] = []
    written = 0
    for number, size in enumerate(sizes):
        settled = number in pauses
        layers, more = settle([*layers, layer(size)], config, settled=settled)
        written += more
        flat = sum(one.live for one in layers if not one.source.indexed)
        largest = max((one.live for one in layers if one.source.indexed), default=0)
        if settled and largest:
            assert flat < INDEXED.flat_threshold / 8 or largest > 32 * flat
    total = sum(sizes)
    assert sum(one.live for one in layers) == total
    assert written <= total * (33 + 2 * np.log2(max(2, total)))


def test_tidying_up_joins_what_is_left_over_with_an_index() -> None:
    layers, _ = settle([layer(8_000, indexed=True), layer(1_000)], INDEXED, settled=True)
    (only,) = layers
    assert only.source.indexed and only.live == 9_000
    apart = [layer(33_000, indexed=True), layer(1_000)]
    assert settle(apart, INDEXED, settled=True)[0] == apart
    few = [layer(1_900, indexed=True), layer(249)]
    assert settle(few, INDEXED, settled=True)[0] == few
    assert settle([layer(500)], INDEXED, settled=True)[1] == 0


def test_dead_rows_are_dropped() -> None:
    assert choose_merge([layer(10, dead=10)], INDEXED, settled=False)
    layers, _ = settle([layer(10_000, dead=5_000, indexed=True)], INDEXED)
    assert [one.source.rows for one in layers] == [5_000]
    assert not choose_merge([layer(10_000, dead=1_000, indexed=True)], INDEXED, settled=False)


def test_an_index_that_was_in_vain_is_not_tried_again() -> None:
    hopeless = layer(5_000, in_vain=0.95)
    assert not choose_merge([hopeless], INDEXED, settled=False)
    easier = replace_target(INDEXED, 0.8)
    assert choose_merge([hopeless], easier, settled=False) == [hopeless]


def replace_target(config: ShardConfig, target: float) -> ShardConfig:
    return msgspec.structs.replace(config, recall_target=target)


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.lists(st.integers(0, 10_000), max_size=200), max_size=4),
    seed=st.integers(0, 2**32),
)
def test_merged_layers_are_their_live_rows_in_key_order(groups: list[list[int]], seed: int) -> None:
    chance = np.random.default_rng(seed)
    seen: set[int] = set()
    expected: dict[int, tuple[dict[str, columns.Row], bytes]] = {}
    layers = []
    for number, group in enumerate(groups):
        ids = [point for point in dict.fromkeys(group) if point not in seen]
        memtable = Memtable(columns.CONFIG)
        vectors = columns.drawn(chance, len(ids))
        rows = columns.rows_of(vectors, columns.CONFIG)
        payloads = [b"%d of %d" % (point, number) for point in ids]
        memtable.append(encode_ids(ids), vectors, payloads)
        alive = chance.random(len(ids)) < 0.7
        layers.append(replace(Layer(*memtable.published()), alive=alive))
        for row, own in enumerate(ids):
            if alive[row]:
                seen.add(own)
                expected[own] = (rows[row], payloads[row])
    found: dict[int, tuple[dict[str, columns.Row], bytes]] = {}
    for batch in merged(layers, columns.CONFIG.names):
        assert batch.payloads is not None
        for point, payload, vectors_of_it in zip(
            decode_ids(batch.keys),
            batch.payloads,
            columns.rows_of(batch.vectors, columns.CONFIG),
            strict=True,
        ):
            assert isinstance(point, int)
            found[point] = (vectors_of_it, payload)
    assert found == expected
    assert list(found) == sorted(expected)


def test_indexed_segments_are_merged_once_nothing_is_written() -> None:
    many = [layer(rows, indexed=True) for rows in (50_000, 25_000, 10_000)]
    assert choose_merge(many, INDEXED, settled=False) == []
    assert [one.live for one in settle(many, INDEXED, settled=True)[0]] == [85_000]
    apart = [layer(rows, indexed=True) for rows in (100_000, 10_000)]
    assert choose_merge(apart, INDEXED, settled=True) == []
    # They keep their indexes where the merged one would get none.
    assert choose_merge(many, FLAT, settled=True) == []
