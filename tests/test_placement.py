"""Placement: every shard somewhere, few moves, even load."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster.catalog import Collection
from cluster.placement import place, with_lingering
from shard.model import Distance, ShardConfig

SERVERS = st.sets(st.sampled_from("abcdefg"))
SHARD_COUNTS = st.lists(st.integers(1, 20), max_size=6)


def collections(shard_counts: list[int]) -> list[Collection]:
    config = ShardConfig.unnamed(2, Distance.DOT)
    return [
        Collection(id=f"{number:032x}", name=str(number), shard_count=count, config=config)
        for number, count in enumerate(shard_counts)
    ]


def shards(placements: dict[str, list[str]]) -> list[tuple[str, int, str]]:
    return [(id_, number, at) for id_, own in placements.items() for number, at in enumerate(own)]


@given(SHARD_COUNTS, st.lists(SERVERS, max_size=6))
def test_every_shard_is_placed_and_none_moves_without_need(
    shard_counts: list[int], history: list[set[str]]
) -> None:
    existing = collections(shard_counts)
    placements: dict[str, list[str]] = {}
    for servers in history:
        before = {(id_, number): at for id_, number, at in shards(placements)}
        placements = place(existing, placements, servers)
        assert {id_: len(own) for id_, own in placements.items()} == {
            one.id: one.shard_count for one in existing
        }
        for id_, number, at in shards(placements):
            old = before.get((id_, number), "")
            if not servers or old in servers:
                assert at == old
            else:
                assert at in servers
        assert place(existing, placements, servers) == placements


@given(SHARD_COUNTS, SERVERS.filter(bool))
def test_new_collections_are_spread_evenly(shard_counts: list[int], servers: set[str]) -> None:
    placements = place(collections(shard_counts), {}, servers)
    for own in placements.values():
        load = Counter(own)
        assert max(load.values()) - min(load[server] for server in servers) <= 1
    total = Counter(at for _, _, at in shards(placements))
    assert max(total.values(), default=0) - min(total[server] for server in servers) <= 1


@given(SHARD_COUNTS, SERVERS.filter(lambda servers: len(servers) > 1))
def test_what_a_lost_server_had_is_spread_over_the_others(
    shard_counts: list[int], servers: set[str]
) -> None:
    existing = collections(shard_counts)
    before = place(existing, {}, servers)
    left = servers - {min(servers)}
    for own in place(existing, before, left).values():
        load = Counter(own)
        assert max(load.values()) - min(load[server] for server in left) <= 1


@given(SHARD_COUNTS, SERVERS)
def test_deleted_collections_are_forgotten(shard_counts: list[int], servers: set[str]) -> None:
    existing = collections(shard_counts)
    placements = place(existing, {}, servers)
    assert place(existing[1:], placements, servers).keys() == {one.id for one in existing[1:]}


def test_a_deleted_collection_is_told_of_while_it_is_hosted() -> None:
    published = {"old": ["a"], "gone": ["b"], "moved": ["b"]}
    told = with_lingering({"moved": ["a"], "new": ["a"]}, published, {"old", "moved", "strange"})
    assert told == {"old": ["a"], "moved": ["a"], "new": ["a"]}
