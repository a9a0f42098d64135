"""Searches that come while others are under way go to the shards together.

A search that finds nothing under way leaves at once: nobody waits for company. While `UNDER_WAY`
batches of the same collection and parameters are out, what comes is gathered, and leaves when one
of them is back. So the batch grows with the load, and what a batch costs beside its queries is
shared by more of them. Each search has a filter of its own; only one that may take long goes with
its like alone.

At once means after `TURNS` of the event loop, which take microseconds when there is nothing else to
do; under load they let those in that have reached the socket already. Without, each batch of many
is followed by a batch of the first one that comes after it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from time import monotonic, perf_counter
from typing import TypeAlias

from prometheus_client import Histogram

from cluster.catalog import Collection
from shard import tracing
from shard.errors import InvalidInput, ShoalError
from shard.filter import is_of_texts
from shard.model import Hits, SearchParams, VectorColumn
from shard.rpc.merge import split_hits
from shard.rpc.origin import Callers, Together, callers

UNDER_WAY = 1
"""Batches alike that are out at a time. With more of them each is smaller, and all are slower."""
TURNS = 4
"""Of the event loop: from when a batch may leave until it does."""
MAX_BATCH = 64
"""Queries. A search that has as many by itself goes alone."""
LARGE_FILTER = 4_096
"""Bytes. Searches with a larger one go with those that have the same one. So do those that have to
do with texts: what takes long is nothing that others should wait for."""
_OF_ONE = (InvalidInput, ShoalError)
"""What may be about one of a batch, or about how much all are together: each is asked for alone."""
_GRACE_SECONDS = 0.25
"""For the batch's own error, which tells more than that time is over."""

Send: TypeAlias = Callable[
    [Collection, VectorColumn, SearchParams, Sequence[bytes], float, float], Awaitable[Hits]
]
"""With a filter for each query, and the seconds it may take, from when on by `monotonic`."""


@dataclass(slots=True, eq=False)
class _Waiting:
    queries: VectorColumn
    filter: bytes
    callers: Callers
    since: float
    """By `perf_counter`."""
    timeout: float
    asked: float
    """By `monotonic`."""
    found: asyncio.Future[Hits]

    @property
    def deadline(self) -> float:
        return self.asked + self.timeout


class SearchBatcher:
    """Gathers searches for ``send``. Use from one event loop."""

    def __init__(self, send: Send) -> None:
        self._forward = send
        self._lanes: dict[tuple[str, SearchParams, bytes], _Lane] = {}
        self.sizes = Histogram(
            "shoal_batch_queries",
            "Queries that go to the shards together.",
            buckets=(1, 2, 4, 8, 16, 32, MAX_BATCH),
            registry=None,
        )

    async def search(
        self,
        collection: Collection,
        queries: VectorColumn,
        params: SearchParams,
        filter: bytes,
        timeout: float,
    ) -> Hits:
        """What ``send`` answers for ``queries``, and raises what it raises."""
        if queries.rows >= MAX_BATCH:
            filters = [filter] * queries.rows
            return await self._send(collection, queries, params, filters, timeout, monotonic())
        alone = len(filter) > LARGE_FILTER or is_of_texts(filter)
        key = (collection.id, params, filter if alone else b"")
        lane = self._lanes.get(key)
        if lane is None:
            lane = _Lane(self._send, collection, params, lambda: self._lanes.pop(key, None))
            self._lanes[key] = lane
        return await lane.search(queries, filter, timeout)

    def _send(
        self,
        collection: Collection,
        queries: VectorColumn,
        params: SearchParams,
        filters: Sequence[bytes],
        timeout: float,
        since: float,
    ) -> Awaitable[Hits]:
        self.sizes.observe(queries.rows)
        return self._forward(collection, queries, params, filters, timeout, since)


class _Lane:
    """The searches of one collection with the same parameters, while there are any."""

    def __init__(
        self, send: Send, collection: Collection, params: SearchParams, end: Callable[[], object]
    ) -> None:
        self._send = send
        self._collection = collection
        self._params = params
        self._end = end
        self._waiting: deque[_Waiting] = deque()
        self._batches: set[asyncio.Task[None]] = set()
        self._filling = False

    async def search(self, queries: VectorColumn, filter: bytes, timeout: float) -> Hits:
        found: asyncio.Future[Hits] = asyncio.get_running_loop().create_future()
        self._waiting.append(
            _Waiting(queries, filter, callers.get(), perf_counter(), timeout, monotonic(), found)
        )
        self._fill_soon()
        try:
            async with asyncio.timeout(timeout + _GRACE_SECONDS):
                return await found
        except TimeoutError as error:
            raise TimeoutError(
                str(error)
                or f"collection `{self._collection.name}` did not answer within {timeout:.3g} s"
            ) from None

    def _fill_soon(self) -> None:
        """Send batches after `TURNS` of the event loop, unless that is to happen anyway."""
        if not self._filling:
            self._filling = True
            self._turn(TURNS)

    def _turn(self, left: int) -> None:
        if left:
            asyncio.get_running_loop().call_soon(self._turn, left - 1)
            return
        self._filling = False
        self._fill()
        if not self._batches:
            self._end()

    def _fill(self) -> None:
        while self._waiting and len(self._batches) < UNDER_WAY:
            batch = self._take()
            if not batch:
                return
            task = asyncio.create_task(self._run(batch))
            task.add_done_callback(self._done)
            self._batches.add(task)
            cancel = partial(_cancel_if_unwanted, task, batch)
            for one in batch:
                one.found.add_done_callback(cancel)

    def _take(self) -> list[_Waiting]:
        """The next batch, without those who have gone. Those of one filter are side by side."""
        batch: list[_Waiting] = []
        size = 0
        while self._waiting:
            one = self._waiting[0]
            if not one.found.done():
                size += one.queries.rows
                if batch and size > MAX_BATCH:
                    break
                batch.append(one)
            self._waiting.popleft()
        batch.sort(key=attrgetter("filter"))
        return batch

    def _done(self, task: asyncio.Task[None]) -> None:
        self._batches.discard(task)
        self._fill_soon()

    async def _run(self, batch: list[_Waiting]) -> None:
        queries = VectorColumn.concatenate([one.queries for one in batch])
        filters = [one.filter for one in batch for _ in range(one.queries.rows)]
        callers.set(_together(batch, queries.rows))
        last = max(batch, key=attrgetter("deadline"))
        try:
            hits = await self._send(
                self._collection, queries, self._params, filters, last.timeout, last.asked
            )
        except asyncio.CancelledError:
            for one in batch:
                one.found.cancel()
            raise
        except Exception as error:
            if type(error) in _OF_ONE and len(batch) > 1:
                alone = [self._run([one]) for one in batch if not one.found.done()]
                await asyncio.gather(*alone)
                return
            for one in batch:
                if not one.found.done():
                    one.found.set_exception(error)
            return
        parts = split_hits(hits, [one.queries.rows for one in batch])
        for one, part in zip(batch, parts, strict=True):
            if not one.found.done():
                one.found.set_result(part)


def _together(batch: list[_Waiting], queries: int) -> Together:
    """Whom a batch of so many queries is for, each with its share. Traces their waiting."""
    now = perf_counter()
    attributes = {"shoal.batch.queries": queries}
    together = Together()
    for one in batch:
        for origin in one.callers.origins:
            together.add(origin, one.queries.rows / queries)
            if origin.traceparent:
                tracing.record("gather", origin.traceparent, one.since, now, attributes)
    return together


def _cancel_if_unwanted(
    task: asyncio.Task[None], batch: list[_Waiting], _: asyncio.Future[Hits]
) -> None:
    """Cancel a batch that everybody has gone from."""
    if not task.done() and all(one.found.cancelled() for one in batch):
        task.cancel()
