"""The catalog: collections by name, and what is left of deleted ones."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import msgspec
import pytest

from cluster.catalog import CATALOG, Catalog, Collection
from shard.errors import AlreadyExists, Corrupt, NotFound
from shard.model import Distance, ShardConfig
from shard.objects.document import VersionedDocument
from shard.objects.local import LocalObjectStore


def collection(name: str, shard_count: int = 2) -> Collection:
    config = ShardConfig(dimension=4, distance=Distance.DOT)
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


@pytest.mark.parametrize("data", [b"{", b'{"collections": 1}', b"\xff"])
def test_what_is_no_catalog_is_corrupt(local_store: LocalObjectStore, data: bytes) -> None:
    VersionedDocument(local_store, CATALOG).update(lambda _: data)
    with pytest.raises(Corrupt, match=CATALOG):
        Catalog(local_store).collections()
    with pytest.raises(Corrupt, match=CATALOG):
        Catalog(local_store).create(collection("songs"))
