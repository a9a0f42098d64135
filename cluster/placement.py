"""Which shard goes to which shard server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection as Container
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from cluster.catalog import Collection


def place(
    collections: Iterable[Collection],
    previous: Mapping[str, list[str]],
    servers: Container[str],
) -> dict[str, list[str]]:
    """A server of ``servers`` for every shard: collection id -> server id of each shard number.

    A shard stays where ``previous`` has it if that server is among ``servers``. Any other goes to
    the server with the fewest shards of its collection, then with the fewest shards at all. With
    no servers at hand, everything stays as it is, and new shards get ``""``.
    """
    placements = {}
    for collection in collections:
        before = previous.get(collection.id, [])
        kept = before + [""] * (collection.shard_count - len(before))
        placements[collection.id] = [
            server if server in servers or not servers else "" for server in kept
        ]
    load = Counter(dict.fromkeys(sorted(servers), 0))
    load.update(server for shards in placements.values() for server in shards if server)
    for shards in placements.values():
        own = Counter(shards)
        for number, server in enumerate(shards):
            if not server and servers:
                chosen = min(sorted(servers), key=lambda one: (own[one], load[one]))
                shards[number] = chosen
                own[chosen] += 1
                load[chosen] += 1
    return placements


def with_lingering(
    placements: Mapping[str, list[str]],
    published: Mapping[str, list[str]],
    hosted: AbstractSet[str],
) -> dict[str, list[str]]:
    """``placements``, and those ``published`` of other collections which are ``hosted`` still.

    A deleted collection is thus told of until no shard server takes a write for it any more.
    """
    lingering = (published.keys() & hosted) - placements.keys()
    return {id_: published[id_] for id_ in sorted(lingering)} | dict(placements)
