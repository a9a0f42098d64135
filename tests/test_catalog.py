"""The catalog: collections by name, and what is left of deleted ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import msgspec
import pytest

from cluster.catalog import CATALOG, HIDDEN, Catalog, Collection, Names
from shard.errors import AlreadyExists, Corrupt, InvalidInput, NotFound
from shard.model import Distance, ShardConfig
from shard.objects.document import VersionedDocument
from shard.objects.local import LocalObjectStore


def collection(name: str, shard_count: int = 2) -> Collection:
    config = ShardConfig.unnamed(4, Distance.DOT)
    settings = {"on_disk": True}
    return Collection(
        id=uuid4().hex, name=name, shard_count=shard_count, config=config, settings=settings
    )


def wider(collection: Collection) -> Collection:
    return msgspec.structs.replace(collection, settings={"on_disk": False})


def test_a_collection_from_creation_to_nothing(local_store: LocalObjectStore) -> None:
    catalog, other = Catalog(local_store), Catalog(local_store)
    assert catalog.collections() == {}
    songs = collection("songs")
    catalog.create(songs)
    assert other.get("songs") == songs
    assert other.update("songs", wider) == wider(songs)
    assert catalog.collections() == {"songs": wider(songs)}
    assert catalog.delete("songs")
    assert other.collections() == {}
    assert other.deleted() == [songs.id]
    other.forget(songs.id)
    assert catalog.deleted() == []


def test_a_name_is_taken_once(local_store: LocalObjectStore) -> None:
    catalog = Catalog(local_store)
    first = collection("songs")
    catalog.create(first)
    catalog.create(first)  # As after an answer that was lost.
    with pytest.raises(AlreadyExists, match="songs"):
        catalog.create(collection("songs"))
    assert catalog.get("songs") == first


def test_a_name_may_be_taken_again_after_deletion(local_store: LocalObjectStore) -> None:
    catalog = Catalog(local_store)
    before, after = collection("songs"), collection("songs", shard_count=7)
    catalog.create(before)
    catalog.delete("songs")
    catalog.create(after)
    catalog.forget(before.id)
    assert catalog.get("songs") == after
    assert catalog.deleted() == []


def test_what_is_not_there(local_store: LocalObjectStore) -> None:
    catalog = Catalog(local_store)
    catalog.create(collection("songs"))
    with pytest.raises(NotFound, match="films"):
        catalog.get("films")
    with pytest.raises(NotFound, match="films"):
        catalog.update("films", wider)
    assert not catalog.delete("films")
    assert catalog.deleted() == []


def test_of_many_creators_of_one_name_one_succeeds(local_store: LocalObjectStore) -> None:
    def create(name: str) -> bool:
        try:
            Catalog(local_store).create(collection(name))
        except AlreadyExists:
            return False
        return True

    names = ["songs", "films"] * 6
    with ThreadPoolExecutor(len(names)) as threads:
        created = list(threads.map(create, names))
    assert sum(created) == 2
    assert Catalog(local_store).collections().keys() == {"songs", "films"}


def aliased(local_store: LocalObjectStore, **aliases: str) -> Catalog:
    """Songs and films, with these aliases."""
    catalog = Catalog(local_store)
    for name in ("songs", "films"):
        catalog.create(collection(name))
    set_all(catalog, aliases)
    return catalog


def set_all(catalog: Catalog, aliases: dict[str, str]) -> None:
    def change(names: Names) -> None:
        for alias, name in aliases.items():
            names.set_alias(alias, name)

    catalog.update_aliases(change)


def test_a_collection_is_found_and_changed_by_its_alias(local_store: LocalObjectStore) -> None:
    catalog = aliased(local_store, live="songs")
    assert catalog.get("live").name == "songs"
    assert catalog.update("live", wider) == catalog.get("songs") == wider(catalog.get("songs"))
    assert catalog.collections().keys() == {"songs", "films"}
    assert not catalog.delete("live")
    assert catalog.names().aliases == {"live": "songs"}


def test_aliases_go_with_their_collection(local_store: LocalObjectStore) -> None:
    catalog = aliased(local_store, live="songs", other="films", last="songs")
    catalog.delete("songs")
    assert catalog.names().aliases == {"other": "films"}
    catalog.create(collection("songs"))
    with pytest.raises(NotFound):
        catalog.get("live")


def test_no_name_stands_for_two_things(local_store: LocalObjectStore) -> None:
    catalog = aliased(local_store, live="songs")
    hidden = collection(f"{HIDDEN}new")
    catalog.create(hidden)
    for kind, alias, name in (
        (AlreadyExists, "films", "songs"),
        (NotFound, "x", "live"),
        (NotFound, "x", hidden.name),
    ):
        with pytest.raises(kind):
            set_all(catalog, {"good": "films", alias: name})
    with pytest.raises(AlreadyExists):
        catalog.update_aliases(lambda names: names.rename_alias("live", "films"))
    with pytest.raises(InvalidInput, match="Alias"):
        catalog.create(collection("live"))
    with pytest.raises(InvalidInput, match="Alias"):
        catalog.rename(hidden.id, "live")
    assert catalog.names().aliases == {"live": "songs"}
    assert catalog.collections().keys() == {"songs", "films", hidden.name}


def test_aliases_follow_the_name_to_what_takes_its_place(local_store: LocalObjectStore) -> None:
    catalog = aliased(local_store, live="songs")
    before, after = catalog.get("songs"), collection(f"{HIDDEN}new")
    catalog.create(after)
    catalog.rename(after.id, "songs")
    assert catalog.get("live").id == after.id
    assert catalog.deleted() == [before.id]


def test_readers_see_all_of_a_change_of_aliases_or_nothing(local_store: LocalObjectStore) -> None:
    catalog = aliased(local_store, live="songs", old="films")

    def swap(names: Names) -> None:
        live = names.aliases["live"]
        names.rename_alias("old", "live")
        names.set_alias("old", live)

    def repeat(times: int) -> None:
        for _ in range(times):
            catalog.update_aliases(swap)

    def read() -> set[str]:
        reader, seen = Catalog(local_store), set()
        while not swapping.done():
            names = reader.names()
            assert {names.find("live").name, names.find("old").name} == {"songs", "films"}
            seen.add(names.aliases["live"])
        return seen

    with ThreadPoolExecutor(3) as threads:
        swapping = threads.submit(repeat, 50)
        reading = [threads.submit(read) for _ in range(2)]
        assert all(one.result(60) == {"songs", "films"} for one in reading)


def test_of_aliases_there_are_only_so_many(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.catalog.MAX_ALIASES", 2)
    catalog = aliased(local_store, one="songs", two="songs")
    set_all(catalog, {"two": "films"})
    with pytest.raises(InvalidInput, match="at most 2 aliases"):
        set_all(catalog, {"three": "songs"})


def test_a_catalog_from_before_there_were_aliases(local_store: LocalObjectStore) -> None:
    songs = collection("songs")
    before = msgspec.json.encode({"collections": [songs], "deleted": []})
    VersionedDocument(local_store, CATALOG).update(lambda _: before)
    set_all(Catalog(local_store), {"live": "songs"})
    assert Catalog(local_store).get("live") == songs


@pytest.mark.parametrize("data", [b"{", b'{"collections": 1}', b"\xff"])
def test_what_is_no_catalog_is_corrupt(local_store: LocalObjectStore, data: bytes) -> None:
    VersionedDocument(local_store, CATALOG).update(lambda _: data)
    with pytest.raises(Corrupt, match=CATALOG):
        Catalog(local_store).collections()
    with pytest.raises(Corrupt, match=CATALOG):
        Catalog(local_store).create(collection("songs"))
