"""Aliases: they stand for their collections everywhere, and are switched at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from cluster.catalog import Catalog, Collection, Names
from cluster.export.jobs import Summary, export_jobs
from cluster.ingest.jobs import ingest_jobs
from cluster.snapshots import Snapshots
from router import directory
from router.api import wire
from router.directory import Directory
from shard.model import Distance, ShardConfig
from shard.objects.local import LocalObjectStore
from tests.faulty_store import FaultyStore
from tests.shoal_in_process import ShoalInProcess

PARAMS = models.VectorParams(size=2, distance=models.Distance.DOT)
POINTS = 20


@pytest.fixture(scope="module")
def directory_of_shoal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shoal")


@pytest.fixture(scope="module")
def shoal(directory_of_shoal: Path) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(directory_of_shoal, default_shards=2) as running:
        yield running


@pytest.fixture(scope="module")
def client(shoal: ShoalInProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url, timeout=30)
    yield client
    client.close()


@pytest.fixture(scope="module")
def other_client(shoal: ShoalInProcess) -> Iterator[QdrantClient]:
    """Of another router."""
    with shoal.router() as url:
        client = QdrantClient(url=url, timeout=30)
        yield client
        client.close()


@pytest.fixture
def http(shoal: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shoal.url, timeout=30) as http:
        yield http


@pytest.fixture
def two(client: QdrantClient) -> Iterator[tuple[str, str]]:
    """Two collections; each point tells which one it is of."""
    names = ("red", "blue")
    for name in names:
        client.create_collection(name, PARAMS)
        points = [
            models.PointStruct(id=number, vector=[float(number), 1.0], payload={"of": name})
            for number in range(POINTS)
        ]
        client.upsert(name, points, wait=True)
    yield names
    for name in names:
        client.delete_collection(name)


def create(alias: str, name: str) -> models.CreateAliasOperation:
    return models.CreateAliasOperation(
        create_alias=models.CreateAlias(collection_name=name, alias_name=alias)
    )


def drop(alias: str) -> models.DeleteAliasOperation:
    return models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias))


def rename(old: str, new: str) -> models.RenameAliasOperation:
    return models.RenameAliasOperation(
        rename_alias=models.RenameAlias(old_alias_name=old, new_alias_name=new)
    )


def aliases(client: QdrantClient) -> dict[str, str]:
    return {one.alias_name: one.collection_name for one in client.get_aliases().aliases}


def result(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()["result"]


def test_created_switched_renamed_and_dropped(client: QdrantClient, two: tuple[str, str]) -> None:
    red, blue = two
    assert client.update_collection_aliases([create("live", red), create("next", blue)])
    assert aliases(client) == {"live": red, "next": blue}
    assert client.update_collection_aliases([create("live", blue)])
    assert client.get_collection_aliases(blue).aliases == [
        models.AliasDescription(alias_name="live", collection_name=blue),
        models.AliasDescription(alias_name="next", collection_name=blue),
    ]
    for name in (red, "live", "none"):
        assert client.get_collection_aliases(name).aliases == []
    assert client.update_collection_aliases([rename("live", "old"), create("live", red)])
    assert aliases(client) == {"live": red, "next": blue, "old": blue}
    assert client.update_collection_aliases([rename("live", "next"), rename("old", "old")])
    assert aliases(client) == {"next": red, "old": blue}
    assert client.update_collection_aliases([drop("next"), drop("none")])
    assert client.update_collection_aliases([])
    assert client.delete_collection(blue)
    assert aliases(client) == {}


def test_an_alias_stands_for_its_collection(
    client: QdrantClient, http: httpx.Client, two: tuple[str, str]
) -> None:
    red, blue = two
    client.update_collection_aliases([create("live", red)])
    assert client.collection_exists("live")
    assert {one.name for one in client.get_collections().collections} == {red, blue}

    client.upsert("live", [models.PointStruct(id=99, vector=[1.0, 1.0])], wait=True)
    client.set_payload("live", {"new": True}, [99], wait=True)
    client.create_payload_index("live", "new", models.PayloadSchemaType.BOOL)
    client.update_collection("live", metadata={"owner": "tests"})
    for name in ("live", red):
        info = client.get_collection(name)
        assert info.points_count == POINTS + 1
        assert list(info.payload_schema) == ["new"]
        assert info.config.metadata == {"owner": "tests"}
        assert client.count(name).count == POINTS + 1
        assert client.retrieve(name, [99])[0].payload == {"new": True}
        assert len(client.scroll(name, limit=100)[0]) == POINTS + 1
        hits = client.query_points(name, POINTS - 1, limit=1).points
        assert [hit.id for hit in hits] == [POINTS - 2]
        batch = client.query_batch_points(name, [models.QueryRequest(query=[1.0, 0.0], limit=3)])
        assert [hit.id for hit in batch[0].points] == [19, 18, 17]
        searched = result(
            http.post(f"/collections/{name}/points/search", json={"vector": [1, 0], "limit": 1})
        )
        assert searched[0]["id"] == 19
    client.delete("live", [99], wait=True)
    client.delete_payload_index("live", "new")
    assert client.count(red).count == POINTS
    assert client.get_collection(red).payload_schema == {}

    # But it is not one that can be deleted.
    assert client.delete_collection("live") is False
    assert client.count("live").count == POINTS


def test_jobs_and_snapshots_are_the_collections(
    client: QdrantClient, http: httpx.Client, directory_of_shoal: Path, two: tuple[str, str]
) -> None:
    red, blue = two
    client.update_collection_aliases([create("live", red)])
    store = LocalObjectStore(directory_of_shoal / "store")
    for kind, body in (
        ("ingest", {"source": "/none"}),
        ("export", {"destination": f"{directory_of_shoal}/exported"}),
    ):
        job = result(http.post(f"/collections/live/{kind}", json=body))
        assert job["collection"] == red
        for name in ("live", red):
            assert result(http.get(f"/collections/{name}/{kind}"))["jobs"] == [job]
            assert result(http.get(f"/collections/{name}/{kind}/{job['id']}")) == job
        assert result(http.get(f"/collections/{blue}/{kind}"))["jobs"] == []

    snapshots = Snapshots(store, str(directory_of_shoal / "store"))
    assert http.post("/collections/live/snapshots?wait=false").status_code == 202
    job = export_jobs(store).all()[-1]
    assert (job.collection, job.prefix) == (red, snapshots.prefix(red, job.prefix.split("/")[-2]))

    config = ShardConfig.unnamed(2, Distance.DOT)
    kept = Collection(id="c" * 32, name=red, shard_count=2, config=config)
    summary = Summary(name="s.snapshot", created=1.0, collection=kept, files=[])
    store.put(f"{snapshots.prefix(red, 's.snapshot')}export.json", msgspec.json.encode(summary))
    assert [one.name for one in client.list_snapshots("live")] == ["s.snapshot"]
    assert http.get("/collections/live/snapshots/s.snapshot").status_code == 200
    location = f"{http.base_url}/collections/live/snapshots/s.snapshot"
    recover = {"location": location}
    answered = http.put("/collections/live/snapshots/recover?wait=false", json=recover)
    assert answered.status_code == 202, answered.text
    recovery = ingest_jobs(store).all()[-1].recovery
    assert recovery is not None
    assert recovery.name == red
    assert client.delete_snapshot("live", "s.snapshot")
    assert client.list_snapshots(red) == []


REFUSED: list[tuple[Any, int, str]] = [
    ({}, 400, "missing required field `actions`"),
    ({"actions": [{}]}, 400, "actions[0]: expected one of `create_alias`, `delete_alias`"),
    (
        {"actions": [{"delete_alias": {"alias_name": "x"}, "rename_alias": None, "x": 1}]},
        400,
        "actions[0].x: unknown",
    ),
    ({"actions": [{"create_alias": {"alias_name": "x"}}]}, 400, "`collection_name`"),
    (
        {
            "actions": [
                {
                    "delete_alias": {"alias_name": "x"},
                    "rename_alias": {"old_alias_name": "live", "new_alias_name": "y"},
                }
            ]
        },
        400,
        "actions[0]: expected one of",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "x", "collection_name": "none"}}]},
        404,
        "Not found: Collection `none` doesn't exist!",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "x", "collection_name": "live"}}]},
        404,
        "Collection `live` doesn't exist!",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "blue", "collection_name": "red"}}]},
        409,
        "Wrong input: Collection `blue` already exists!",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "red", "collection_name": "red"}}]},
        409,
        "Collection `red` already exists!",
    ),
    (
        {"actions": [{"rename_alias": {"old_alias_name": "none", "new_alias_name": "x"}}]},
        404,
        "Not found: Alias `none` doesn't exist!",
    ),
    (
        {"actions": [{"rename_alias": {"old_alias_name": "live", "new_alias_name": "blue"}}]},
        409,
        "Collection `blue` already exists!",
    ),
    (
        {"actions": [{"rename_alias": {"old_alias_name": "live", "new_alias_name": "a/b"}}]},
        422,
        "actions[0].rename_alias.new_alias_name: cannot contain '/'",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "a" * 256, "collection_name": "red"}}]},
        422,
        "actions[0].create_alias.alias_name: expected at most 255 characters",
    ),
    (
        {"actions": [{"create_alias": {"alias_name": "", "collection_name": "red"}}]},
        422,
        "actions[0].create_alias.alias_name",
    ),
]


def test_a_request_with_a_bad_action_changes_nothing(
    client: QdrantClient, http: httpx.Client, two: tuple[str, str]
) -> None:
    client.update_collection_aliases([create("live", "red"), create("next", "blue")])
    good = [
        {"create_alias": {"alias_name": "live", "collection_name": "blue"}},
        {"delete_alias": {"alias_name": "next"}},
    ]
    for body, status, message in REFUSED:
        response = http.post("/collections/aliases", json=body)
        assert response.status_code == status, response.text
        error = msgspec.json.decode(response.content, type=wire.Error).status.error
        assert message in error
        if body:
            changed = http.post("/collections/aliases", json={"actions": [*good, *body["actions"]]})
            assert changed.status_code == status, changed.text
        assert aliases(client) == {"live": "red", "next": "blue"}


def test_no_collection_is_made_with_the_name_of_an_alias(
    client: QdrantClient, two: tuple[str, str]
) -> None:
    client.update_collection_aliases([create("live", "red")])
    with pytest.raises(UnexpectedResponse, match=r"400.*") as raised:
        client.create_collection("live", PARAMS)
    assert b"Alias with the same name already exists" in raised.value.content
    assert client.get_collection("live").points_count == POINTS
    client.update_collection_aliases([drop("live")])
    assert not client.collection_exists("live")
    client.create_collection("live", PARAMS)
    assert client.count("live").count == 0
    client.delete_collection("live")


def test_routes_of_a_collection_that_is_called_aliases(client: QdrantClient) -> None:
    client.create_collection("aliases", PARAMS)
    client.update_collection_aliases([create("live", "aliases")])
    assert client.get_collection("aliases").points_count == 0
    assert client.get_collection_aliases("aliases").aliases[0].alias_name == "live"
    assert client.delete_collection("aliases")
    assert aliases(client) == {}


def test_queries_during_switches_see_one_collection_or_the_other(
    client: QdrantClient, other_client: QdrantClient, two: tuple[str, str]
) -> None:
    client.update_collection_aliases([create("live", "red")])
    over = Event()

    def ask(through: QdrantClient) -> set[str]:
        ways: list[tuple[int, Callable[[], list[Any]]]] = [
            (POINTS, lambda: through.query_points("live", [1.0, 1.0], limit=100).points),
            # A point that is looked up first, and is no answer.
            (POINTS - 1, lambda: through.query_points("live", 3, limit=100).points),
            (POINTS, lambda: through.scroll("live", limit=100)[0]),
            (POINTS, lambda: through.retrieve("live", list(range(POINTS)))),
        ]
        seen = set()
        for count, way in cycle(ways):
            if over.is_set():
                break
            found = way()
            assert len(found) == count
            (word,) = {point.payload["of"] for point in found}
            seen.add(word)
        return seen

    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask, through) for through in 2 * (client, other_client)]
        try:
            for number in range(80):
                through, name = (client, other_client)[number % 2], ("blue", "red")[number // 2 % 2]
                through.update_collection_aliases([drop("live"), create("live", name)])
                if number % 20 == 0:
                    time.sleep(0.1)
        finally:
            over.set()
        for one in asking:
            assert one.result(60) == {"red", "blue"}


def test_what_another_router_has_switched_is_followed(
    client: QdrantClient, other_client: QdrantClient, two: tuple[str, str]
) -> None:
    client.update_collection_aliases([create("live", "red")])
    for name in ("blue", "red"):
        other_client.query_points("live", [1.0, 1.0], limit=1)
        client.update_collection_aliases([create("live", name)])
        # Not asked for anything meanwhile, it has had no occasion to read the catalog again.
        time.sleep(directory.REVALIDATE_SECONDS)
        (hit,) = other_client.query_points("live", [1.0, 1.0], limit=1).points
        assert hit.payload == {"of": name}
    # The collection that it has in mind is gone: it finds out by itself.
    client.update_collection_aliases([create("live", "blue")])
    client.delete_collection("red")
    assert other_client.count("live").count == POINTS


async def test_aliases_are_found_without_the_catalog(
    local_store: LocalObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directory, "REVALIDATE_SECONDS", 0.0)
    monkeypatch.setattr(directory, "ALIAS_WAIT_SECONDS", 0.2)
    store = FaultyStore(local_store)
    catalog = Catalog(store)
    config = ShardConfig.unnamed(2, Distance.DOT)
    for name in ("red", "blue"):
        catalog.create(Collection(id=uuid4().hex, name=name, shard_count=1, config=config))

    def switch(to: str) -> Callable[[Names], None]:
        return lambda names: names.set_alias("live", to)

    catalog.update_aliases(switch("red"))
    found = Directory(Catalog(store))
    assert (await found.find("live")).name == "red"
    catalog.update_aliases(switch("blue"))
    assert (await found.find("live")).name == "blue"

    store.reachable = False
    assert (await found.find("live")).name == "blue"
    store.reachable = True

    # A store that does not answer holds up the first requests only.
    hanging = Event()
    read = found.catalog.names

    def names() -> Names:
        hanging.wait(30)
        return read()

    monkeypatch.setattr(found.catalog, "names", names)
    catalog.update_aliases(switch("red"))
    try:
        started = time.monotonic()
        assert (await found.find("live")).name == "blue"
        assert 0.1 < time.monotonic() - started < 5
        started = time.monotonic()
        for _ in range(20):
            assert (await found.find("live")).name == "blue"
        assert time.monotonic() - started < 1
    finally:
        hanging.set()
    await asyncio.sleep(0.5)
    assert (await found.find("live")).name == "red"


names = st.sampled_from(["a", "b", "c", "d"])
actions = st.one_of(
    st.builds(create, names, names), st.builds(drop, names), st.builds(rename, names, names)
)


class Differential(RuleBasedStateMachine):
    """Few names, so that collections and aliases get into each other's way."""

    shoal: QdrantClient

    def __init__(self) -> None:
        super().__init__()
        self.oracle = QdrantClient(":memory:")
        for name in "abcd":
            self.shoal.delete_collection(name)

    def teardown(self) -> None:
        self.oracle.close()

    def both(self, act: Callable[[QdrantClient], Any]) -> None:
        try:
            expected = act(self.oracle)
        except ValueError:
            with pytest.raises(UnexpectedResponse):
                act(self.shoal)
        else:
            assert act(self.shoal) == expected

    @rule(name=names)
    def create(self, name: str) -> None:
        self.both(lambda client: client.create_collection(name, PARAMS))

    @rule(name=names)
    def delete(self, name: str) -> None:
        self.both(lambda client: client.delete_collection(name))

    @rule(actions=st.lists(actions, min_size=1, max_size=4))
    def change(self, actions: list[Any]) -> None:
        self.both(lambda client: client.update_collection_aliases(actions))

    @rule(name=names, id=st.integers(0, 20))
    def write(self, name: str, id: int) -> None:
        point = models.PointStruct(id=id, vector=[1.0, 0.0])
        self.both(lambda client: client.upsert(name, [point], wait=True).status)

    @rule(name=names)
    def count(self, name: str) -> None:
        self.both(lambda client: client.count(name).count)

    @invariant()
    def same_names(self) -> None:
        assert aliases(self.shoal) == aliases(self.oracle)
        for name in "abcd":
            self.both(lambda client, name=name: client.collection_exists(name))  # type: ignore[misc]
            ours = self.shoal.get_collection_aliases(name).aliases
            theirs = self.oracle.get_collection_aliases(name).aliases
            assert ours == sorted(theirs, key=lambda one: one.alias_name)


def test_same_as_the_oracle(client: QdrantClient) -> None:
    run_state_machine_as_test(
        type("Machine", (Differential,), {"shoal": client}),
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
