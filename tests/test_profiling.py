"""Profiles: what threads are seen to do, and who may look."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event, Thread, Timer
from time import monotonic, sleep

import httpx
import pytest

from shard import profiling
from tests.shoal_in_process import ShoalInProcess


@pytest.fixture
def http(tmp_path: Path) -> Iterator[httpx.Client]:
    with (
        ShoalInProcess(tmp_path, servers=1, default_shards=1) as shoal,
        httpx.Client(base_url=shoal.url, timeout=30) as client,
    ):
        vectors = {"size": 4, "distance": "Dot"}
        client.put("/collections/songs", json={"vectors": vectors}).raise_for_status()
        yield client


def counts(text: str) -> dict[str, int]:
    """How often each stack was seen."""
    found = {}
    for line in text.splitlines():
        assert re.fullmatch(r"[^; ]+(;[^; ]+)+ [0-9]+", line), line
        stack, _, count = line.rpartition(" ")
        found[stack] = int(count)
    return found


class _Work:
    def spin(self, until: Event) -> None:
        while not until.is_set():
            pass


def test_what_threads_do_is_seen_as_often_as_they_do_it() -> None:
    done = Event()
    threads = [
        Thread(target=_Work().spin, args=(done,), name="works; hard", daemon=True),
        Thread(target=done.wait, name="waits", daemon=True),
    ]
    for thread in threads:
        thread.start()
    found = counts(profiling.sample(0.5, 100, Event()))
    done.set()
    busy = {stack: count for stack, count in found.items() if stack.startswith("works_hard;")}
    waiting = {stack: count for stack, count in found.items() if stack.startswith("waits;")}
    assert all("tests.test_profiling:_Work.spin" in stack for stack in busy)
    assert all(stack.endswith(";threading:Condition.wait") for stack in waiting)
    for each in (busy, waiting):
        assert 5 < sum(each.values()) <= 51
    assert not [stack for stack in found if "profiling:sample" in stack]


def test_it_ends_when_it_is_told() -> None:
    stop = Event()
    began = monotonic()
    Timer(0.1, stop.set).start()
    assert profiling.sample(60, 1, stop)
    assert monotonic() - began < 10


def test_a_router_is_profiled_while_it_serves(http: httpx.Client) -> None:
    with ThreadPoolExecutor() as pool:
        profile = pool.submit(http.get, "/profile", params={"seconds": 1, "hertz": 500})
        sleep(0.1)
        second = http.get("/profile")
        assert second.status_code == 429
        assert second.json()["status"]["error"].startswith("Too many requests: a profile")
        while not profile.done():
            http.get("/collections").raise_for_status()
        response = profile.result().raise_for_status()
    assert response.headers["content-type"].startswith("text/plain")
    found = counts(response.text)
    assert [stack for stack in found if stack.startswith("router;")]
    assert not [stack for stack in found if "shard.profiling:sample" in stack]
    http.get("/profile", params={"seconds": 0.01}).raise_for_status()


def test_a_request_is_seen(http: httpx.Client) -> None:
    # Threads are looked at when they let go of the interpreter, which a short request does seldom.
    http.headers["content-type"] = "application/json"
    long = json.dumps({"filter": {"must": [{"has_id": list(range(100_000))}]}})
    deadline = monotonic() + 60
    seen = False
    with ThreadPoolExecutor() as pool:
        while not seen and monotonic() < deadline:
            profile = pool.submit(http.get, "/profile", params={"seconds": 0.5, "hertz": 500})
            while not profile.done():
                http.post("/collections/songs/points/count", content=long).raise_for_status()
            stacks = counts(profile.result().raise_for_status().text)
            seen = any("router.observing:Observer.__call__" in stack for stack in stacks)
    assert seen


def test_a_shard_server_is_profiled_by_any_router(http: httpx.Client) -> None:
    with ThreadPoolExecutor() as pool:
        asked: dict[str, str | float] = {"server": "server-0", "seconds": 3, "hertz": 500}
        profile = pool.submit(http.get, "/profile", params=asked)
        sleep(1)
        assert http.get("/profile", params=asked).status_code == 429
        # The router's own is another matter, as it would be in a process of its own.
        http.get("/profile", params={"seconds": 0.01}).raise_for_status()
        response = profile.result().raise_for_status()
    found = counts(response.text)
    assert [stack for stack in found if "shard.rpc.server:ShardServer._run" in stack]
    http.get("/profile", params=asked | {"seconds": 0.01}).raise_for_status()


def test_a_shard_server_that_is_not_there_is_named(http: httpx.Client) -> None:
    response = http.get("/profile", params={"server": "server-1"})
    assert response.status_code == 404
    error = response.json()["status"]["error"]
    assert "no shard server 'server-1'" in error
    assert "server-0" in error


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("seconds", value) for value in ("0", "-1", "nan", "inf", "x", "")),
        ("seconds", str(profiling.MAX_SECONDS + 1)),
        *(("hertz", value) for value in ("0", "1001", "1.5", "x")),
    ],
)
def test_what_is_asked_is_bounded(http: httpx.Client, name: str, value: str) -> None:
    response = http.get("/profile", params={name: value})
    assert response.status_code == 422
    assert name in response.json()["status"]["error"]
