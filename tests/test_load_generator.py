"""The benchmarks' load generator: it counts every request, and waiting as waiting."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import httptools
import numpy as np

from scripts.bench.load import Load, generate, request

SERVICE_SECONDS = 0.02


class Slow(asyncio.Protocol):
    """Answers each request with its own body after a while; 500 where the body is "bad"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.start()

    def start(self) -> None:
        self.body = b""
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        asyncio.get_running_loop().call_later(SERVICE_SECONDS, self.answer)

    def answer(self) -> None:
        status = b"500 Error" if self.body == b"bad" else b"200 OK"
        head = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (status, len(self.body))
        self.transport.write(head + self.body)  # type: ignore[attr-defined]
        self.start()


@contextmanager
def slow_server() -> Iterator[str]:
    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(loop.create_server(Slow, "127.0.0.1", 0))
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


def test_a_closed_loop_waits_for_answers() -> None:
    with slow_server() as url:
        bodies = [b"a", b"bb" * 50_000, b"bad"]
        requests = [request("POST", f"{url}/x?y=1", body) for body in bodies]
        outcome = generate(
            Load(url=url, requests=requests, clients=3, seconds=1, warm_up_seconds=0.2)
        )
    assert outcome.answers == bodies
    assert (outcome.latencies >= SERVICE_SECONDS).all()
    assert 3 <= len(outcome.latencies) <= 3 * (outcome.seconds / SERVICE_SECONDS + 1)
    assert abs(outcome.failures - len(outcome.latencies) / 3) <= 3
    assert outcome.rate == len(outcome.latencies) / outcome.seconds


def test_an_open_loop_counts_the_time_that_requests_had_to_wait() -> None:
    rate, seconds = 2 / SERVICE_SECONDS, 1.0
    with slow_server() as url:
        load = Load(
            url=url,
            requests=[request("POST", url, b"a")],
            clients=1,
            seconds=seconds,
            warm_up_seconds=0,
            rate=rate,
        )
        outcome = generate(load)
    # One connection answers half of what is due: the last one waits for as long as all took.
    assert len(outcome.latencies) == int(rate * seconds)
    assert outcome.failures == 0
    assert np.median(outcome.latencies) > 0.3 * seconds
    assert outcome.latencies.max() > 0.6 * seconds
