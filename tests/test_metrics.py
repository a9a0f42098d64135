"""Metrics: what requests are counted as, and what shard servers tell of themselves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from qdrant_client import QdrantClient

from router.metrics import PUBLISH_SECONDS
from router.observing import Observation
from shard.metrics import Together, pack, unpack
from tests.shoal_in_process import ShoalInProcess
from tests.shoal_process import ShoalProcess

PARAMS = {"vectors": {"size": 4, "distance": "Euclid"}}
POINTS = [
    {"id": number, "vector": [number, 1, 2, 3], "payload": {"n": number}} for number in range(100)
]
QUERY = {"query": [0, 0, 0, 1], "limit": 3, "with_payload": True}
FILTER = {"must": [{"key": "n", "range": {"lt": 50}}]}


@pytest.fixture
def shoal(tmp_path: Path) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path, default_shards=3) as running:
        yield running


@pytest.fixture
def http(shoal: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shoal.url, timeout=30) as client:
        yield client


def create(http: httpx.Client, name: str) -> None:
    http.put(f"/collections/{name}", json=PARAMS).raise_for_status()
    http.put(f"/collections/{name}/points?wait=true", json={"points": POINTS}).raise_for_status()


def scrape(http: httpx.Client) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples by their names."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    text = http.get("/metrics").raise_for_status().text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(
    samples: dict[str, list[tuple[dict[str, str], float]]], name: str, **labels: str
) -> float:
    """The sum of the samples that have these labels."""
    return sum(value for own, value in samples.get(name, []) if labels.items() <= own.items())


def test_requests_are_counted_by_what_they_ask(shoal: ShoalInProcess, http: httpx.Client) -> None:
    create(http, "songs")
    for _ in range(5):
        http.post("/collections/songs/points/query", json=QUERY).raise_for_status()
    http.post("/collections/songs/points/query?timeout=5", json=QUERY).raise_for_status()
    http.post("/collections/songs/points/query", json={"query": [1]})
    http.post("/collections/songs/points/scroll", json={"limit": 1})
    grpc = QdrantClient(url=shoal.url, grpc_port=shoal.grpc_port, prefer_grpc=True, timeout=30)
    grpc.query_points("songs", [0.0, 0.0, 0.0, 1.0])
    grpc.close()

    samples = scrape(http)
    route = "/collections/{name}/points/query"
    asked = {"method": "POST", "route": route, "collection": "songs"}
    assert total(samples, "shoal_requests_total", **asked, code="200") == 7
    assert total(samples, "shoal_requests_total", **asked, code="400") == 1
    assert total(samples, "shoal_request_seconds_count", **asked) == 8
    assert total(samples, "shoal_request_seconds_bucket", **asked, le="+Inf") == 8
    assert 0 < total(samples, "shoal_request_seconds_sum", **asked) < 60
    scrolled = {"route": "/collections/{name}/points/scroll", "collection": "songs"}
    assert total(samples, "shoal_requests_total", **scrolled) == 1
    assert total(samples, "shoal_requests_in_flight") == 1, "the one that asks"
    assert total(samples, "shoal_batch_queries_count") == 8 - 1
    assert total(samples, "shoal_batch_queries_sum") == 8 - 1


def test_nobody_can_make_up_series(http: httpx.Client) -> None:
    create(http, "songs")
    scrape(http)
    before = {frozenset(labels.items()) for labels, _ in scrape(http)["shoal_requests_total"]}
    for number in range(50):
        http.get(f"/nowhere/{number}")
        http.post(f"/collections/nobody-{number}/points/query", json=QUERY)
        http.request("PATCH", f"/collections/songs-{number}/points/query")
        http.request("PROPFIND", f"/nowhere/{number}")
        http.request("MKCOL", f"/nowhere/{number}")
    made = {
        frozenset(labels.items()) for labels, _ in scrape(http)["shoal_requests_total"]
    } - before
    assert len(made) == 4
    assert {dict(labels)["collection"] for labels in made} == {""}
    assert {dict(labels)["method"] for labels in made} == {"GET", "POST", "PATCH", ""}


def test_an_alias_counts_as_its_collection_and_a_deleted_one_is_forgotten(
    http: httpx.Client,
) -> None:
    create(http, "songs")
    action = {"create_alias": {"alias_name": "tunes", "collection_name": "songs"}}
    http.post("/collections/aliases", json={"actions": [action]}).raise_for_status()
    http.post("/collections/tunes/points/query", json=QUERY).raise_for_status()
    asked = {"route": "/collections/{name}/points/query", "collection": "songs"}
    samples = scrape(http)
    assert total(samples, "shoal_requests_total", **asked) == 1
    assert total(samples, "shoal_shard_points", collection="songs") == 100
    assert total(samples, "shoal_collections") == 1

    http.delete("/collections/songs").raise_for_status()
    for name, found in scrape(http).items():
        assert not [labels for labels, _ in found if labels.get("collection") == "songs"], name

    create(http, "songs")
    http.post("/collections/songs/points/query", json=QUERY).raise_for_status()
    assert total(scrape(http), "shoal_requests_total", **asked) == 1


def test_a_request_counts_for_what_its_alias_stood_for(http: httpx.Client) -> None:
    for times, name in enumerate(("songs", "airs"), start=1):
        create(http, name)
        action = {"create_alias": {"alias_name": "tunes", "collection_name": name}}
        http.post("/collections/aliases", json={"actions": [action]}).raise_for_status()
        for _ in range(times):
            http.post("/collections/tunes/points/query", json=QUERY).raise_for_status()
    samples = scrape(http)
    route = "/collections/{name}/points/query"
    assert total(samples, "shoal_requests_total", route=route, collection="songs") == 1
    assert total(samples, "shoal_requests_total", route=route, collection="airs") == 2


def test_shard_servers_tell_what_they_hold_and_have_done(http: httpx.Client) -> None:
    create(http, "songs")
    before = scrape(http)
    for _ in range(2):
        asked = QUERY | {"filter": FILTER}
        http.post("/collections/songs/points/query", json=asked).raise_for_status()
    samples = scrape(http)
    assert total(samples, "shoal_shard_servers") == 2
    shards = {
        (labels["shard"], labels["server"])
        for labels, value in samples["shoal_shard_state"]
        if labels["state"] == "serving" and value == 1
    }
    assert shards == {("0", "server-0"), ("1", "server-1"), ("2", "server-0")}
    assert total(samples, "shoal_shard_state") == 3
    assert total(samples, "shoal_shard_points", collection="songs") == 100
    assert total(samples, "shoal_shard_memtable_rows") == 100
    assert total(samples, "shoal_shard_log_sequence", shard="0") > 0
    assert total(samples, "shoal_shard_snapshot_sequence", shard="0") == 0
    assert all(0 < age < 60 for _, age in samples["shoal_shard_unsaved_seconds"])
    calls = {"method": "Search", "code": "OK"}
    assert total(samples, "shoal_shard_server_call_seconds_count", **calls) == 4
    for stage in ("queue", "filter", "scan", "rerank", "merge", "payload"):
        assert total(samples, "shoal_shard_server_stage_seconds_count", stage=stage) >= 4, stage
    # The cache is the whole process's, here that of all shard servers.
    assert total(samples, "shoal_shard_server_cache_bytes", server="server-0") > 0
    limit = total(samples, "shoal_shard_server_cache_limit_bytes", server="server-0")
    assert total(samples, "shoal_shard_server_cache_bytes", server="server-0") < limit
    for what in ("hits", "misses"):
        name = f"shoal_shard_server_cache_{what}_total"
        since = total(samples, name, server="server-0") - total(before, name, server="server-0")
        assert since >= 3, what
    assert "shoal_shard_server_cache_evictions_total" in samples
    # A filter was worked out once a shard, and remembered; then its 50 points were compared.
    assert total(samples, "shoal_usage_filters_total", collection="songs") == 6
    assert total(samples, "shoal_usage_filters_made_total", collection="songs") == 3
    assert total(samples, "shoal_usage_vectors_total", collection="songs") >= 2 * 50
    read = total(samples, "shoal_usage_vector_read_bytes_total", collection="songs")
    assert read == 4 * 4 * total(samples, "shoal_usage_vectors_total", collection="songs")
    assert total(samples, "shoal_usage_vector_written_bytes_total") == 100 * 4 * 4
    payloads = sum(len(f'{{"n":{number}}}') for number in range(100))
    assert total(samples, "shoal_usage_payload_written_bytes_total") == payloads
    assert total(samples, "shoal_usage_payload_read_bytes_total") > payloads
    assert total(samples, "shoal_usage_cpu_seconds_total", collection="songs") > 0


def test_a_dead_shard_server_is_told_and_holds_nobody_up(tmp_path: Path) -> None:
    with (
        ShoalInProcess(tmp_path, default_shards=2) as shoal,
        httpx.Client(base_url=shoal.url, timeout=30) as http,
    ):
        create(http, "songs")
        shoal.stop_server(1)
        began = time.monotonic()
        samples = scrape(http)
        assert time.monotonic() - began < 10
        assert total(samples, "shoal_shard_server_up", server="server-0") == 1
        assert total(samples, "shoal_shard_server_up", server="server-1") == 0
        assert total(samples, "shoal_shard_servers") == 1
        assert {labels["server"] for labels, _ in samples["shoal_shard_points"]} == {"server-0"}


def test_any_router_process_answers_for_all(shoal: ShoalInProcess, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    first, second = (Observation(router=number, shared=str(shared)) for number in range(2))
    with (
        shoal.router(observation=first) as url,
        shoal.router(observation=second) as other_url,
        httpx.Client(base_url=url) as http,
        httpx.Client(base_url=other_url) as other,
    ):
        create(http, "songs")
        for client, times in ((http, 3), (other, 4)):
            for _ in range(times):
                client.post("/collections/songs/points/query", json=QUERY).raise_for_status()
        time.sleep(2 * PUBLISH_SECONDS)
        asked = {"route": "/collections/{name}/points/query", "collection": "songs"}
        for client in (http, other):
            samples = scrape(client)
            assert total(samples, "shoal_requests_total", **asked, router="0") == 3
            assert total(samples, "shoal_requests_total", **asked, router="1") == 4
            assert total(samples, "shoal_shard_points") == 100


def test_what_is_packed_is_what_is_unpacked() -> None:
    registry = CollectorRegistry()
    Gauge("size", "Of it.", ["kind"], registry=registry).labels("large").set(float("inf"))
    Counter("times", "Often.", registry=registry).inc(3)
    seconds = Histogram("seconds", "Long.", registry=registry, buckets=(0.5, 1))
    seconds.observe(0.7, {"trace_id": "abc"})
    together = Together()
    together.add(unpack(pack(registry)), {})
    encode, _ = choose_encoder("application/openmetrics-text")
    assert encode(together) == encode(registry)
    assert b'trace_id="abc"' in encode(together)


def test_metrics_of_several_processes_are_told_apart() -> None:
    together = Together()
    for number in range(2):
        registry = CollectorRegistry()
        Counter("times", "Often.", registry=registry).inc(number + 1)
        together.add(registry.collect(), {"process": str(number)})
    (family,) = together.collect()
    samples = [(one.labels, one.value) for one in family.samples if one.name == "times_total"]
    assert samples == [({"process": "0"}, 1), ({"process": "1"}, 2)]


@pytest.mark.cluster
def test_a_service_of_several_routers_tells_of_them_all(tmp_path: Path) -> None:
    with (
        ShoalProcess(tmp_path / "data", "--shard-servers", "2", "--routers", "2") as shoal,
        httpx.Client(base_url=shoal.url, timeout=60) as http,
    ):
        create(http, "songs")
        for _ in range(40):  # Over connections of their own, which whoever is free takes.
            answer = httpx.post(f"{shoal.url}/collections/songs/points/query", json=QUERY)
            answer.raise_for_status()
        time.sleep(2 * PUBLISH_SECONDS)
        samples = scrape(http)
        asked = {"route": "/collections/{name}/points/query", "collection": "songs"}
        assert total(samples, "shoal_requests_total", **asked) == 40
        routers = {labels["router"] for labels, _ in samples["shoal_requests_in_flight"]}
        assert routers == {"0", "1"}
        assert total(samples, "shoal_shard_servers") == 2
        assert total(samples, "shoal_shard_points") == 100
        # Of two routers and two shard servers.
        assert len(samples["shoal_process_start_time_seconds"]) == 4
