"""A load generator: HTTP/1.1 requests made beforehand, over many connections, from one process.

It runs in a process of its own, so that what it takes of the cores is known, and does as little as
it can a request: it writes bytes that lie ready, and reads an answer by its content-length.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
from collections import deque
from collections.abc import Coroutine, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import Self, cast
from urllib.parse import urlsplit

import httptools
import numpy as np
import uvloop
from numpy.typing import NDArray

DRAIN_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """What to send, and how.

    ``clients`` connections each send the next of ``requests``, round and round, as soon as they
    have the answer to the one before (a closed loop). With a ``rate`` requests are due that many a
    second, whether or not earlier ones are answered (an open loop), and wait for a free connection.
    """

    url: str
    requests: Sequence[bytes]
    clients: int
    seconds: float
    warm_up_seconds: float = 1.0
    rate: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it, the warm-up left out."""

    latencies: NDArray[np.float64]
    """Seconds from when a request was due until its answer was read; in an open loop that is from
    when it should have been sent, so that waiting counts (no coordinated omission)."""
    seconds: float
    failures: int
    """Answers other than 200."""
    answers: list[bytes]
    """The last answer to each of the requests, empty where there was none."""
    cpu_seconds: float
    """CPU time of the generator itself."""

    @property
    def rate(self) -> float:
        """Requests answered a second."""
        return len(self.latencies) / self.seconds

    def every_answer(self) -> list[bytes]:
        """An answer to each of the requests. Raises RuntimeError when one failed or is missing."""
        missing = self.answers.count(b"")
        if missing or self.failures:
            raise RuntimeError(f"{missing} requests not answered, {self.failures} failed")
        return self.answers

    def quantile(self, share: float) -> float:
        """Milliseconds."""
        return float(np.quantile(self.latencies, share)) * 1_000


def request(method: str, url: str, body: bytes) -> bytes:
    """One HTTP/1.1 request as it goes over the wire, with a JSON body."""
    parts = urlsplit(url)
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    head = (
        f"{method} {target} HTTP/1.1\r\nhost: {parts.netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def generate(load: Load) -> Outcome:
    """Run ``load`` in a process of its own. Raises OSError where there is, or stays, no connection,
    and TimeoutError where answers do not come.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as process:
        return process.submit(_run, load).result()


def _run(load: Load) -> Outcome:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_generate(load))


async def _generate(load: Load) -> Outcome:
    async with Generator(load) as generator:
        return await generator.run()


class Generator:
    """A context manager: there are connections in it, and requests under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._next = 0
        self._answers = [b""] * len(load.requests)
        self._latencies: list[float] = []
        self._failures = 0
        self._due: deque[float] = deque()
        self._idle: deque[_Connection] = deque()
        self._connections: list[_Connection] = []
        self._drained = asyncio.Event()
        self._lost = asyncio.Event()
        self._over = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        where = urlsplit(self._load.url)
        host, port = where.hostname or "127.0.0.1", where.port or 80
        for _ in range(self._load.clients):
            _, connection = await loop.create_connection(lambda: _Connection(self), host, port)
            self._connections.append(connection)
        if self._load.rate:
            self._idle.extend(self._connections)
        else:
            for connection in self._connections:
                connection.send(perf_counter(), *self._take())
        return self

    async def __aexit__(self, *raised: object) -> None:
        self._over = True
        for connection in self._connections:
            connection.close()

    async def run(self) -> Outcome:
        """Warm up, and then do what the load says."""
        load = self._load
        await self.send(load.warm_up_seconds)
        started, cpu = perf_counter(), _cpu_seconds()
        await self.send(load.seconds)
        if load.rate:
            await self._unless_lost(self._drain())
        seconds, cpu = perf_counter() - started, _cpu_seconds() - cpu
        return Outcome(
            latencies=np.array(self._latencies),
            seconds=seconds,
            failures=self._failures,
            answers=self._answers,
            cpu_seconds=cpu,
        )

    async def send(self, seconds: float) -> tuple[int, int]:
        """Go on for so long: how many requests were answered meanwhile, and how many failed."""
        self._latencies, self._failures = [], 0
        work = self._send_when_due if self._load.rate else asyncio.sleep
        await self._unless_lost(work(seconds))
        return len(self._latencies), self._failures

    def done(
        self, connection: _Connection, due: float, number: int, status: int, body: bytes
    ) -> None:
        now = perf_counter()
        self._latencies.append(now - due)
        self._answers[number] = body
        self._failures += status != 200
        if self._over:
            return
        if self._load.rate is None:
            connection.send(now, *self._take())
        elif self._due:
            connection.send(self._due.popleft(), *self._take())
        else:
            self._idle.append(connection)
            if len(self._idle) == self._load.clients:
                self._drained.set()

    def lost(self) -> None:
        self._lost.set()

    async def _unless_lost(self, work: Coroutine[None, None, None]) -> None:
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self._lost.wait())]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if self._lost.is_set():
            raise ConnectionError(f"{self._load.url}: the server closed a connection")
        for task in done:
            await task

    async def _send_when_due(self, seconds: float) -> None:
        assert self._load.rate is not None
        # Arrivals of many independent users: exponential gaps.
        gaps = np.random.default_rng(0).exponential(
            1 / self._load.rate, int(seconds * self._load.rate)
        )
        due = perf_counter()
        for gap in gaps.tolist():
            due += gap
            await asyncio.sleep(due - perf_counter())
            self._drained.clear()
            if self._idle:
                self._idle.popleft().send(due, *self._take())
            else:
                self._due.append(due)

    async def _drain(self) -> None:
        async with asyncio.timeout(DRAIN_SECONDS):
            await self._drained.wait()

    def _take(self) -> tuple[int, bytes]:
        number = self._next
        self._next = (number + 1) % len(self._load.requests)
        return number, self._load.requests[number]


class _Connection(asyncio.Protocol):
    """One request at a time, and its answer."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._generator.lost()

    def send(self, due: float, number: int, data: bytes) -> None:
        assert self._transport is not None
        self._due, self._number = due, number
        self._chunks: list[bytes] = []
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(data)

    def close(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        self._generator.done(
            self, self._due, self._number, self._parser.get_status_code(), b"".join(self._chunks)
        )


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
