"""What requests take: told by their answers, added up by collection, and in the telemetry."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jwt
import numpy as np
import pytest
from grpc import insecure_channel as channel
from prometheus_client.parser import text_string_to_metric_families
from qdrant_client import QdrantClient, grpc
from qdrant_client.http import models

from router.observing import Observation
from router.security.settings import Security
from router.subjects import MAX_SUBJECTS, OTHERS, Subjects
from shard import usage
from shard.rpc.origin import Charge, Origin, Together
from shard.usage import (
    Cost,
    Measured,
    Usage,
    count_mask,
    count_payloads,
    count_vectors,
    measure,
    stage,
)
from tests.shoal_in_process import ShoalInProcess

DIMENSION = 16
ROWS = 200
PATH = "/collections/songs/points/query"
ASKED = {"shoal-usage": "true"}
KEY = "k" * 32


@pytest.fixture
def shoal(tmp_path: Path) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path, default_shards=3) as running:
        with httpx.Client(base_url=running.url, timeout=30) as http:
            for name in ("songs", "albums"):
                vectors = {"size": DIMENSION, "distance": "Dot"}
                http.put(f"/collections/{name}", json={"vectors": vectors}).raise_for_status()
            put_points(http)
        yield running


@pytest.fixture
def http(shoal: ShoalInProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=shoal.url, timeout=30) as client:
        yield client


def put_points(http: httpx.Client, **headers: str) -> dict[str, Any]:
    points = [
        {"id": n, "vector": vector(n), "payload": {"n": n, "text": "x" * 50}} for n in range(ROWS)
    ]
    path = "/collections/songs/points?wait=true"
    answer = http.put(path, json={"points": points}, headers=headers).raise_for_status()
    found: dict[str, Any] = answer.json()
    return found


def vector(seed: int) -> list[float]:
    found: list[float] = np.random.default_rng(seed).random(DIMENSION).tolist()
    return found


def total(http: httpx.Client, name: str, collection: str | None = "songs") -> float:
    text = http.get("/metrics").raise_for_status().text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and sample.labels.get("collection") == collection
    )


def test_answers_tell_what_they_have_taken_when_asked(http: httpx.Client) -> None:
    query = {"query": vector(0), "limit": 5, "with_payload": True, "params": {"exact": True}}
    assert "usage" not in http.post(PATH, json=query).json()
    answer = http.post(PATH, json=query, headers=ASKED).json()
    told = answer["usage"]
    models.Usage.model_validate(told)
    # Every vector is scanned, and five of each shard are compared once more.
    compared = ROWS + 3 * 5
    assert told["shoal"]["vectors"] == compared
    assert told["hardware"]["vector_io_read"] == compared * DIMENSION * 4
    answered = len(answer["result"]["points"]) * len('{"n":1,"text":""}')
    assert answered <= told["hardware"]["payload_io_read"] < 3 * 5 * 80
    assert told["hardware"]["cpu"] > 0
    assert told["hardware"]["vector_io_write"] == 0
    assert "usage" in http.get("/collections", headers=ASKED).json()


def test_writes_tell_what_they_write(http: httpx.Client) -> None:
    told = put_points(http, **ASKED)["usage"]["hardware"]
    assert told["vector_io_write"] == ROWS * DIMENSION * 4
    assert told["payload_io_write"] > ROWS * 50
    assert told["vector_io_read"] == 0


def test_all_answers_tell_it_where_the_service_is_told_to(shoal: ShoalInProcess) -> None:
    observation = Observation(hardware_reporting=True)
    with shoal.router(observation=observation) as url, httpx.Client(base_url=url) as http:
        query = {"query": vector(0)}
        assert http.post(PATH, json=query).json()["usage"]["hardware"]["vector_io_read"] > 0
        answer = http.post(PATH, json=query, headers={"shoal-usage": "false"}).json()
        assert "usage" not in answer


def test_by_grpc_usage_is_told_too(shoal: ShoalInProcess) -> None:
    with channel(f"127.0.0.1:{shoal.grpc_port}") as connected:
        answer = grpc.PointsStub(connected).Search(  # type: ignore[no-untyped-call]
            grpc.SearchPoints(collection_name="songs", vector=vector(0), limit=5),
            metadata=(("shoal-usage", "true"),),
            timeout=30,
        )
    assert answer.usage.hardware.vector_io_read > 0


def test_what_goes_together_is_shared_out_and_adds_up(http: httpx.Client) -> None:
    before = total(http, "shoal_usage_vectors_total")
    cpu_before = total(http, "shoal_usage_cpu_seconds_total")

    def ask(number: int) -> Any:
        query: dict[str, Any] = {"query": vector(number), "limit": 5}
        if number % 3:
            query["filter"] = {"must": {"key": "n", "range": {"lt": 10 * (number % 20)}}}
        return http.post(PATH, json=query, headers=ASKED).json()["usage"]["shoal"]

    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(60)))
    assert total(http, "shoal_batch_queries_count", None) < 60, "some went together"
    compared = total(http, "shoal_usage_vectors_total") - before
    assert sum(one["vectors"] for one in answers) == pytest.approx(compared, abs=60)
    cpu = total(http, "shoal_usage_cpu_seconds_total") - cpu_before
    assert sum(one["cpu_seconds"] for one in answers) == pytest.approx(cpu, rel=0.01)


def test_telemetry_is_what_qdrants_clients_read(shoal: ShoalInProcess, http: httpx.Client) -> None:
    for _ in range(3):
        http.post(PATH, json={"query": vector(0)}).raise_for_status()
    http.post(PATH, json={"query": [1.0]})
    client = QdrantClient(url=shoal.url, timeout=30)
    whole = client.http.service_api.telemetry(details_level=1, per_collection=True).result
    assert whole is not None
    assert whole.app is not None
    assert whole.app.name == "shoal"
    assert whole.collections.number_of_collections == 2
    assert whole.collections.collections is not None
    listed = {one.id: one for one in whole.collections.collections}  # type: ignore[union-attr]
    assert listed.keys() == {"songs", "albums"}
    assert whole.requests is not None
    operation = "POST /collections/{name}/points/query"
    found = whole.requests.rest.responses[operation]
    assert {code: one.count for code, one in found.items()} == {"200": 3, "400": 1}
    assert found["200"].avg_duration_micros is not None
    assert 0 < found["200"].avg_duration_micros < 60e6
    of_each = whole.requests.rest.per_collection_responses
    assert of_each is not None
    assert of_each["songs"][operation].keys() == {"200", "400"}
    assert operation not in of_each["albums"]
    assert whole.hardware is not None
    assert whole.hardware.collection_data["songs"].vector_io_write == ROWS * DIMENSION * 4

    short = http.get("/telemetry").json()["result"]
    assert "per_collection_responses" not in short["requests"]["rest"]
    assert (
        "songs" not in http.get("/telemetry", params={"anonymize": True, "details_level": 3}).text
    )
    client.close()


def test_what_is_measured_is_what_the_thread_does() -> None:
    count_vectors(1, 1)  # Nobody measures.
    with stage("scan"):
        pass

    def work() -> str:
        for _ in range(3):
            with stage("scan"):
                count_vectors(2, 10)
                count_payloads(5)
                count_mask(made=False)
        count_mask(made=True)
        with stage("merge"):
            sum(range(100_000))
        return "done"

    result, measured = measure(work)
    assert result == "done"
    assert (measured.usage.vectors, measured.usage.vector_bytes) == (6, 30)
    assert measured.usage.payload_bytes == 15
    assert (measured.usage.masks, measured.usage.masks_made) == (4, 1)
    measured.read_cpu()
    assert measured.usage.cpu_seconds > 0
    scan, merge = measured.stages["scan"], measured.stages["merge"]
    assert (scan.times, merge.times) == (3, 1)
    assert measured.began <= scan.began <= scan.ended <= merge.began <= merge.ended
    assert merge.ended <= measured.ended
    assert scan.seconds <= scan.ended - scan.began
    count_vectors(1, 1)
    assert measured.usage.vectors == 6


def test_a_thread_is_charged_for_what_it_does_and_not_for_what_comes_after() -> None:
    def burn(seconds: float) -> None:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass

    with ThreadPoolExecutor(1) as threads:

        def measured(seconds: float) -> Measured:
            return threads.submit(measure, partial(burn, seconds)).result()[1]

        first = measured(0.05)
        first.read_cpu()
        second = measured(0.05)
        third = measured(0.2)
        third.read_cpu()
        threads.submit(burn, 0.2).result()
        for one in (first, second, third):
            one.read_cpu()
    assert 0.05 <= first.usage.cpu_seconds < 0.15
    assert 0.05 <= second.usage.cpu_seconds < 0.15
    assert 0.2 <= third.usage.cpu_seconds < 0.4


def test_a_thread_whose_clock_others_cannot_read_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage._thread, "cpu_clock", None)
    _, measured = measure(lambda: sum(range(100_000)))
    taken = measured.usage.cpu_seconds
    measured.read_cpu()
    assert measured.usage.cpu_seconds == taken > 0


def test_a_stage_that_fails_has_taken_its_time() -> None:
    def work() -> None:
        for _ in range(2):
            with suppress(ZeroDivisionError), stage("scan"):
                time.sleep(0.01)
                1 // 0  # noqa: B018 - it fails
        with stage("merge"):
            pass

    _, measured = measure(work)
    scan, merge = measured.stages["scan"], measured.stages["merge"]
    assert (scan.times, merge.times) == (2, 1)
    assert 0.02 <= scan.seconds <= scan.ended - scan.began
    assert scan.ended <= merge.began


def test_nothing_is_measured_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError):
        measure(lambda: 1 // 0)
    assert usage._thread.measured is None


def test_shares_of_what_was_taken_add_up() -> None:
    whole = Usage(vectors=100, vector_bytes=4_000, payload_bytes=7, cpu_seconds=1.5)
    parts = Usage()
    for share in (0.25, 0.25, 0.5):
        parts.add(whole.part(share))
    assert (parts.vectors, parts.vector_bytes, parts.cpu_seconds) == (100, 4_000, 1.5)
    assert abs(parts.payload_bytes - 7) <= 3


def test_costs_are_read_as_they_are_written() -> None:
    cost = Cost(Usage(vectors=1, cpu_seconds=0.5), {"queue": 0.25})
    assert Cost.decode(cost.encode()) == cost
    assert Cost.decode(b"") == Cost()


def test_the_holder_of_a_token_is_charged(tmp_path: Path) -> None:
    security = Security(api_key=KEY, jwt_rbac=True)
    with (
        ShoalInProcess(tmp_path, default_shards=3, security=security) as shoal,
        httpx.Client(base_url=shoal.url, headers={"api-key": KEY}, timeout=30) as http,
    ):
        vectors = {"size": DIMENSION, "distance": "Dot"}
        http.put("/collections/songs", json={"vectors": vectors}).raise_for_status()
        put_points(http)
        query = {"query": vector(0), "limit": 5, "with_payload": True, "params": {"exact": True}}
        told = 0
        for subject, times in (("ann", 3), ("bob", 1)):
            # Bob is charged without asking.
            asked = ASKED if subject == "ann" else {}
            own = {"Authorization": f"Bearer {jwt.encode({'sub': subject}, KEY)}", **asked}
            with httpx.Client(base_url=shoal.url, headers=own, timeout=30) as client:
                for _ in range(times):
                    answer = client.post(PATH, json=query).raise_for_status().json()
                    told += answer["usage"]["hardware"]["vector_io_read"] if asked else 0
                put_points(client)
        samples = {
            (sample.name, sample.labels["subject"]): sample.value
            for family in text_string_to_metric_families(http.get("/metrics").text)
            for sample in family.samples
            if "subject" in sample.labels
        }
    assert samples["shoal_subject_requests_total", "ann"] == 4
    assert samples["shoal_subject_requests_total", "bob"] == 2
    assert samples["shoal_subject_usage_vector_read_bytes_total", "ann"] == told > 0
    assert samples["shoal_subject_usage_vector_read_bytes_total", "bob"] == told / 3
    written = samples["shoal_subject_usage_vector_written_bytes_total", "bob"]
    assert written == ROWS * DIMENSION * 4
    # Who has the key itself is nobody in particular.
    assert {subject for _, subject in samples} == {"ann", "bob"}


def test_small_shares_of_a_call_add_up() -> None:
    subjects = Subjects()
    origins = [Origin(str(number)) for number in range(32)]
    together = Together()
    for origin in origins:
        together.add(origin, 1 / 32)
    together.pay(Charge("server", "Search", 1.0, Cost(Usage(masks=8, payload_bytes=15))))
    for origin in origins:
        subjects.charge("ann", origin)
    found = {
        sample.name: sample.value for family in subjects.collect() for sample in family.samples
    }
    assert found["shoal_subject_usage_filters_total"] == 8
    assert found["shoal_subject_usage_payload_read_bytes_total"] == 15


def test_who_does_not_ask_pays_and_keeps_nothing() -> None:
    asks, asks_not = Origin("one"), Origin("other", charged=False)
    charge = Charge("server", "Search", 1.0, Cost(Usage(vectors=8)))
    for others in ([asks, asks_not], [asks_not]):
        together = Together()
        for origin in others:
            together.add(origin, 1 / len(others))
        together.pay(charge)
    assert asks.usage().vectors == 4
    assert list(asks_not.charges()) == []


def test_subjects_beyond_a_number_are_charged_together() -> None:
    subjects = Subjects()
    origin = Origin("a")
    origin.pay(Charge("server", "Search", 1.0, Cost(Usage(vectors=2))))
    for number in range(MAX_SUBJECTS + 5):
        subjects.charge(str(number), origin)
    subjects.charge("3", origin)
    requests, vectors, *_ = subjects.collect()
    for family, each in ((requests, 1), (vectors, 2)):
        found = {sample.labels["subject"]: sample.value for sample in family.samples}
        assert len(found) == MAX_SUBJECTS + 1
        assert found["3"] == 2 * each
        assert found[OTHERS] == 5 * each
