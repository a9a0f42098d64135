"""Where users may have the service read and write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cluster.ingest.sources import Source
from router.errors import Forbidden
from router.security.locations import Locations
from router.security.settings import Security
from shard.errors import InvalidInput
from tests.shoal_in_process import ShoalInProcess


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """``allowed`` and ``secret`` beside it, with links from the one to the other."""
    (tmp_path / "allowed" / "below").mkdir(parents=True)
    (tmp_path / "secret").mkdir()
    for name in ("allowed/a.jsonl", "allowed/below/b.jsonl", "secret/s.jsonl"):
        (tmp_path / name).write_text('{"id": 1, "vector": [1]}\n')
    (tmp_path / "allowed" / "directory").symlink_to(tmp_path / "secret")
    (tmp_path / "allowed" / "inside").symlink_to(tmp_path / "allowed" / "below")
    (tmp_path / "allowed-too").mkdir()
    return tmp_path


def test_paths(place: Path) -> None:
    locations = Locations([str(place / "allowed")])
    for good in (
        "allowed",
        "allowed/",
        "allowed/new/x",
        "allowed/*.jsonl",
        "allowed/inside/b.jsonl",
    ):
        locations.check(f"{place}/{good}", "source")
        locations.check(f"file://{place}/{good}", "source")
    for bad in (
        "",
        "secret",
        "allowed-too",
        "allow*",
        "*/a.jsonl",
        "allowed/../secret",
        "allowed/below/../../secret/s.jsonl",
        "allowed/directory",
        "allowed/directory/*",
        "allowed/directory/s.jsonl",
    ):
        with pytest.raises(Forbidden, match="--allow-location"):
            locations.check(f"{place}/{bad}", "source")
        with pytest.raises(Forbidden, match="--allow-location"):
            locations.check(f"file://{place}/{bad}", "source")
    for elsewhere in ("/", "/etc/passwd", "s3://bucket/x", "/proc/self/environ"):
        with pytest.raises(Forbidden):
            locations.check(elsewhere, "source")
        Locations(None).check(elsewhere, "source")
        with pytest.raises(Forbidden):
            Locations([]).check(elsewhere, "source")


def test_buckets() -> None:
    locations = Locations(["s3://bucket/data", "s3://whole"])
    for good in ("s3://bucket/data", "s3://bucket/data/", "s3://bucket/data/x*", "s3://whole/any"):
        locations.check(good, "source")
    for bad in (
        "s3://",
        "s3://bucket",
        "s3://bucket/*",
        "s3://bucket/dat?",
        "s3://bucket/database",
        "s3://bucket/data/../secret",
        "s3://bucket/data/./x",
        "s3://bucket/data//x",
        "s3://wholesale",
        "s3://whole/../bucket",
        "/bucket/data",
    ):
        with pytest.raises(Forbidden):
            locations.check(bad, "source")


@pytest.mark.parametrize("bad", ["", "s3://", "http://x/y", "/data/*", "s3://b/[a]", "/data/../x"])
def test_what_is_no_place_is_not_allowed(bad: str) -> None:
    with pytest.raises(InvalidInput, match="--allow-location"):
        Locations([bad])
    with pytest.raises(InvalidInput, match="--allow-location"):
        Security(locations=[bad]).check("127.0.0.1", allow_anonymous=False)


def test_the_default_is_everywhere_on_this_machine_and_nowhere_beyond() -> None:
    assert Security().check("127.0.0.1", allow_anonymous=False).locations is None
    assert Security().check("0.0.0.0", allow_anonymous=True).locations == []
    assert Security(api_key="k").check("127.0.0.1", allow_anonymous=False).locations == []
    given = Security(locations=["/data"]).check("127.0.0.1", allow_anonymous=False)
    assert given.locations == ["/data"]


def test_a_file_is_opened_where_it_is_allowed(place: Path) -> None:
    locations = Locations([str(place / "allowed")])
    os.mkfifo(place / "allowed" / "pipe")
    (place / "allowed" / "link").symlink_to(place / "secret" / "s.jsonl")
    with locations.open(f"{place}/allowed/inside/b.jsonl", "location") as file:
        assert file.read()
    for name in ("pipe", "below"):
        with pytest.raises((InvalidInput, IsADirectoryError)):
            locations.open(f"{place}/allowed/{name}", "location")
    for name in ("allowed/link", "secret/s.jsonl", "allowed/directory/s.jsonl"):
        with pytest.raises(Forbidden):
            locations.open(f"{place}/{name}", "location")


def test_a_link_that_comes_between_is_found_out(place: Path) -> None:
    locations = Locations([str(place / "allowed")])
    check, checked = locations.check, list[str]()

    def switch(url: str, field: str) -> None:
        check(url, field)
        if not checked:
            (place / "allowed" / "a.jsonl").unlink()
            (place / "allowed" / "a.jsonl").symlink_to(place / "secret" / "s.jsonl")
        checked.append(url)

    locations.check = switch  # type: ignore[method-assign]
    with pytest.raises(Forbidden):
        locations.open(f"{place}/allowed/a.jsonl", "location")


def test_links_in_a_source_lead_nowhere_else(place: Path) -> None:
    allowed = [os.path.realpath(place / "allowed")]
    url = str(place / "allowed")
    (place / "allowed" / "directory").unlink()
    files = Source(url, allowed).files()
    assert [file.name for file in files][:2] == ["a.jsonl", "below/b.jsonl"]
    (place / "allowed" / "c.jsonl").symlink_to(place / "secret" / "s.jsonl")
    with pytest.raises(InvalidInput, match=r"c\.jsonl leads to where it is not allowed"):
        Source(url, allowed).files()
    assert "c.jsonl" in [file.name for file in Source(url).files()]
    # A file that becomes one after it was found.
    (place / "allowed" / "c.jsonl").unlink()
    source = Source(url, allowed)
    (part,) = source.ranges(0, files[0], 4)
    assert list(source.read(files[0], part))
    (place / "allowed" / "a.jsonl").unlink()
    (place / "allowed" / "a.jsonl").symlink_to(place / "secret" / "s.jsonl")
    with pytest.raises(InvalidInput, match="not allowed"):
        list(source.read(files[0], part))


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    directory = tmp_path_factory.mktemp("shoal")
    security = Security(locations=[str(directory / "allowed")])
    with ShoalInProcess(directory, default_shards=1, security=security) as shoal:
        params = {"vectors": {"size": 1, "distance": "Dot"}}
        assert httpx.put(f"{shoal.url}/collections/c", json=params).status_code == 200
        yield shoal.url


@pytest.mark.parametrize(
    "place",
    [
        "/etc",
        "/a\0b",
        "file:///etc/passwd",
        "s3://bucket/x",
        "/proc/self/root/etc",
        "file:///etc/%70asswd",
    ],
)
def test_the_service_reads_and_writes_nowhere_else(url: str, place: str) -> None:
    for kind, field in (("ingest", "source"), ("export", "destination")):
        refused = httpx.post(f"{url}/collections/c/{kind}", json={field: place})
        assert refused.status_code == (400 if "\0" in place else 403) and field in refused.text
    if place.startswith("file://"):
        body = {"location": place}
        refused = httpx.put(f"{url}/collections/c/snapshots/recover", json=body)
        assert refused.status_code == 403 and "location" in refused.text


@pytest.mark.parametrize(
    "location",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://127.0.0.1:1/collections/c/snapshots/s",
        "https://evil.example/collections/c/snapshots/s",
        "ftp://127.0.0.1/x",
        "gopher://127.0.0.1/x",
        "http://user@127.0.0.1/collections/c/snapshots/s",
    ],
)
def test_nothing_is_fetched_from_other_hosts(url: str, location: str) -> None:
    body = {"location": location}
    refused = httpx.put(f"{url}/collections/c/snapshots/recover", json=body)
    assert refused.status_code == 400 and "location" in refused.text
