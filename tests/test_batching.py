"""Batches of searches: who goes when, and that everybody gets what is theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic

import numpy as np
import pytest

from cluster.catalog import Collection
from router.batching import LARGE_FILTER, MAX_BATCH, TURNS, UNDER_WAY, SearchBatcher
from shard.errors import InvalidInput, ShoalError, Unavailable
from shard.model import (
    UNNAMED,
    Distance,
    Hits,
    Points,
    SearchParams,
    ShardConfig,
    VectorColumn,
    encode_ids,
    unnamed,
)

COLLECTION = Collection(
    id="c", name="c", shard_count=1, config=ShardConfig.unnamed(1, Distance.DOT)
)
PARAMS = SearchParams(limit=3)
TIMEOUT = 30.0


class Shards:
    """Answers a query x with x % 4 points, whose ids and scores are x. Refuses some filters."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.params: list[SearchParams] = []
        self.filters: list[list[bytes]] = []
        self.refused: dict[bytes, Exception] = {}
        self.timeouts: list[float] = []
        self.since: list[float] = []
        self.cancelled = 0
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def search(
        self,
        collection: Collection,
        queries: VectorColumn,
        params: SearchParams,
        filters: Sequence[bytes],
        timeout: float,
        since: float,
    ) -> Hits:
        values = queries.values[:, 0].astype(np.int64)
        self.batches.append(values.tolist())
        self.params.append(params)
        self.filters.append(list(filters))
        self.timeouts.append(timeout)
        self.since.append(since)
        try:
            await self.may_answer.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        for filter in filters:
            if filter in self.refused:
                raise self.refused[filter]
        ids = np.repeat(values, values % 4)
        payloads = [str(id_).encode() for id_ in ids]
        points = Points(
            encode_ids(ids.tolist()), payloads, unnamed(ids[:, None].astype(np.float32))
        )
        return Hits(values % 4, ids.astype(np.float32), points)


def vectors(*values: int) -> VectorColumn:
    return VectorColumn(np.array(values, np.float32)[:, None])


def check(hits: Hits, *values: int) -> None:
    expected = [value for value in values for _ in range(value % 4)]
    assert hits.lengths.tolist() == [value % 4 for value in values]
    assert hits.scores.tolist() == expected
    assert hits.points.keys.tolist() == encode_ids(expected).tolist()
    assert hits.points.payloads == [str(value).encode() for value in expected]
    assert hits.points.vectors[UNNAMED].values[:, 0].tolist() == expected


def start(
    batcher: SearchBatcher,
    *values: int,
    params: SearchParams = PARAMS,
    filter: bytes = b"",
    timeout: float = TIMEOUT,
) -> asyncio.Task[Hits]:
    return asyncio.create_task(
        batcher.search(COLLECTION, vectors(*values), params, filter, timeout)
    )


async def turn() -> None:
    for _ in range(3 * TURNS):
        await asyncio.sleep(0)


async def occupy(batcher: SearchBatcher, params: SearchParams = PARAMS) -> list[asyncio.Task[Hits]]:
    """Searches for 0, 1... that are under way, so that what comes next has to wait."""
    searches = []
    for value in range(UNDER_WAY):
        searches.append(start(batcher, value, params=params))
        await turn()
    return searches


async def test_who_comes_at_once_goes_together() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    shards.may_answer.set()
    searches = [start(batcher, value) for value in range(9)]
    for value, search in enumerate(searches):
        check(await search, value)
    assert shards.batches == [list(range(9))]


async def test_who_comes_first_goes_alone_and_the_others_together() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    searches = []
    for value in range(1, 12):
        searches.append(start(batcher, value))
        await turn()
    assert shards.batches == [[value] for value in range(1, UNDER_WAY + 1)]
    shards.may_answer.set()
    for value, search in enumerate(searches, 1):
        check(await search, value)
    assert shards.batches[UNDER_WAY:] == [list(range(UNDER_WAY + 1, 12))]


async def test_batches_are_bounded_and_in_order() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    await occupy(batcher)
    sizes = [1, MAX_BATCH - 1, 2, 40, 24, 3]
    searches = [(start(batcher, *range(size)), size) for size in sizes]
    await turn()
    shards.may_answer.set()
    for search, size in searches:
        check(await search, *range(size))
    assert [len(batch) for batch in shards.batches[UNDER_WAY:]] == [MAX_BATCH, 42, 27]


async def test_a_large_search_waits_for_nobody() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    await occupy(batcher)
    waiting = [start(batcher, value) for value in range(9)]
    await turn()
    large = start(batcher, *range(MAX_BATCH))
    await turn()
    assert shards.batches[-1] == list(range(MAX_BATCH))
    shards.may_answer.set()
    check(await large, *range(MAX_BATCH))
    await asyncio.gather(*waiting)


async def test_other_parameters_are_another_batch() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    other = SearchParams(limit=3, with_payload=True)
    await occupy(batcher)
    await occupy(batcher, other)
    searches = [
        (start(batcher, value, params=params), value)
        for value in range(1, 8)
        for params in (PARAMS, other)
    ]
    await turn()
    shards.may_answer.set()
    for search, value in searches:
        check(await search, value)
    assert len(shards.batches) == 2 * (UNDER_WAY + 1)
    assert shards.params.count(other) == UNDER_WAY + 1


async def test_searches_with_other_filters_go_together_those_of_one_side_by_side() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    await occupy(batcher)
    values = [(1,), (2, 3), (5,), (6,), (7,)]
    filters = [b"b", b"", b"a", b"b", b"a"]
    searches = [
        start(batcher, *some, filter=filter) for some, filter in zip(values, filters, strict=True)
    ]
    await turn()
    shards.may_answer.set()
    for search, some in zip(searches, values, strict=True):
        check(await search, *some)
    assert shards.batches[UNDER_WAY:] == [[2, 3, 5, 7, 1, 6]]
    assert shards.filters[UNDER_WAY:] == [[b"", b"", b"a", b"a", b"b", b"b"]]


@pytest.mark.parametrize("slow", [b"x" * (LARGE_FILTER + 1), b'{"match":{"text":"a word"}}'])
async def test_what_may_take_long_is_waited_for_by_its_like_alone(slow: bytes) -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    await occupy(batcher)
    filters = [slow, slow, b"x" * LARGE_FILTER, b""]
    searches = [start(batcher, value, filter=filter) for value, filter in enumerate(filters)]
    await turn()
    assert shards.batches[UNDER_WAY:] == [[0, 1]]
    shards.may_answer.set()
    for value, search in enumerate(searches):
        check(await search, value)
    assert shards.batches[UNDER_WAY + 1 :] == [[3, 2]]


@pytest.mark.parametrize("kind", [InvalidInput, ShoalError])
async def test_what_is_about_one_of_a_batch_fails_that_one_alone(kind: type[Exception]) -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    shards.refused = {b"bad": kind("filter: no"), b"worse": kind("filter: never")}
    await occupy(batcher)
    good = {value: start(batcher, value, filter=b"%d" % (value % 2)) for value in range(1, 8)}
    bad, worse = start(batcher, 8, filter=b"bad"), start(batcher, 9, 10, filter=b"worse")
    plain = start(batcher, 11)
    await turn()
    shards.may_answer.set()
    for value, search in good.items():
        check(await search, value)
    with pytest.raises(kind, match="filter: no"):
        await bad
    with pytest.raises(kind, match="filter: never"):
        await worse
    check(await plain, 11)
    assert len(shards.batches[UNDER_WAY]) == 11
    alone = sorted(shards.batches[UNDER_WAY + 1 :])
    assert alone == [*([value] for value in range(1, 9)), [9, 10], [11]]
    # What comes next goes together as before.
    more = [start(batcher, value) for value in range(5)]
    for value, search in enumerate(more):
        check(await search, value)
    assert shards.batches[-1] == [0, 1, 2, 3, 4]


async def test_an_error_is_that_of_its_batch_alone() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    failing = await occupy(batcher)
    shards.error = Unavailable("no shard")
    shards.may_answer.set()
    for search in failing:
        with pytest.raises(Unavailable, match="no shard"):
            await search
    shards.error = None
    check(await start(batcher, 7), 7)


async def test_who_leaves_takes_nothing_from_the_others() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    await occupy(batcher)
    searches = [start(batcher, value) for value in range(1, 8)]
    await turn()
    searches[-1].cancel()  # While it waits for a batch.
    await turn()
    shards.may_answer.set()
    for value, search in enumerate(searches[:-1], 1):
        check(await search, value)
    assert shards.batches[-1] == [*range(1, 7)]
    assert not shards.cancelled


async def test_what_nobody_waits_for_is_cancelled() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    busy = await occupy(batcher)
    gone = [start(batcher, 100 + value) for value in range(3)]
    await turn()
    for search in (*busy, *gone):
        search.cancel()
    await turn()
    assert shards.cancelled == UNDER_WAY
    assert len(shards.batches) == UNDER_WAY
    shards.may_answer.set()
    check(await start(batcher, 5), 5)


async def test_of_a_batch_the_longest_deadline_counts_and_each_keeps_its_own() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    busy = await occupy(batcher)
    asked = monotonic()
    patient, hasty = start(batcher, 5, timeout=20), start(batcher, 6, timeout=0.01)
    with pytest.raises(TimeoutError, match=r"`c` did not answer within 0\.01 s"):
        await hasty
    waited = monotonic()
    shards.may_answer.set()
    check(await patient, 5)
    await asyncio.gather(*busy)
    assert 18 < shards.timeouts[-1] <= 20
    assert asked <= shards.since[-1] < waited, "waiting for others counts"
    assert shards.batches[-1] == [5]


async def test_nothing_is_kept_of_what_is_over() -> None:
    shards = Shards()
    batcher = SearchBatcher(shards.search)
    shards.may_answer.set()
    searches = [
        start(batcher, value, params=SearchParams(limit=limit), filter=b"%d" % value * 5_000)
        for value in range(5)
        for limit in range(1, 6)
    ]
    await asyncio.gather(*searches)
    await turn()
    assert not batcher._lanes
