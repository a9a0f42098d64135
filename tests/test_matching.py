"""Filters in a shard: memtable, flat and indexed segments, dead rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest

from shard.edits import Edit
from shard.filter import Condition, Filter, Match
from shard.model import (
    Delete,
    SearchParams,
    Upsert,
    VectorColumn,
    decode_ids,
    encode_ids,
    unnamed,
)
from tests.test_imports import DIMENSION, Shard, wait_until

ROWS = 30_000


@pytest.fixture(scope="module")
def numbers() -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.random.default_rng(1).permutation(ROWS)
    return found


@pytest.fixture(scope="module")
def vectors() -> np.ndarray[Any, Any]:
    found: np.ndarray[Any, Any] = np.random.default_rng(0).normal(size=(ROWS, DIMENSION))
    return found.astype(np.float32)


@pytest.fixture(scope="module")
def shard(
    tmp_path_factory: pytest.TempPathFactory,
    numbers: np.ndarray[Any, Any],
    vectors: np.ndarray[Any, Any],
) -> Iterator[Shard]:
    """Most rows with an index, the last ones in a memtable, every seventh deleted."""
    shard = Shard(tmp_path_factory.mktemp("matching"))
    assert shard.engine is not None

    def write(first: int, end: int) -> None:
        payloads = [
            b'{"n":%d,"of":["x",%d]}' % (number, number % 3) for number in numbers[first:end]
        ]
        ids = encode_ids(list(range(first, end)))
        assert shard.engine is not None
        shard.engine.write([Upsert(ids, unnamed(vectors[first:end]), payloads)]).result()

    for first in range(0, ROWS - 1_000, 4_000):
        write(first, min(first + 4_000, ROWS - 1_000))
    engine = shard.engine
    wait_until(lambda: engine.info().indexed > ROWS // 2, 60)
    write(ROWS - 1_000, ROWS)
    shard.engine.write([Delete(encode_ids(list(range(0, ROWS, 7))))]).result()
    yield shard
    shard.close()
    shard.builder.close()


def below(bound: int) -> bytes:
    given = {"must": [{"key": "n", "range": {"lt": bound}}, {"key": "of", "match": {"value": "x"}}]}
    return msgspec.convert(given, Filter).check("filter")


@pytest.mark.parametrize("bound", [0, 1, 30, 1_500, ROWS // 2, ROWS])
def test_what_matches_is_counted_listed_and_found(
    shard: Shard, numbers: np.ndarray[Any, Any], vectors: np.ndarray[Any, Any], bound: int
) -> None:
    engine = shard.engine
    assert engine is not None
    ids = np.arange(ROWS)
    expected = ids[(numbers < bound) & (ids % 7 != 0)]
    filter = below(bound)
    assert engine.count(filter) == len(expected)
    for limit in (100, ROWS):
        listed = engine.scroll(b"", limit, with_payload=False, filter=filter)
        assert decode_ids(listed.keys) == expected[:limit].tolist()

    queries = vectors[:50] + np.float32(0.01)
    distances = ((queries[:, None, :] - vectors[expected][None]) ** 2).sum(axis=2)
    truth = expected[np.argsort(distances, axis=1, kind="stable")[:, :10]]
    for exact in (True, False):
        hits = engine.search(
            VectorColumn(queries), SearchParams(limit=10, exact=exact, filter=filter)
        )
        assert hits.lengths.tolist() == [min(10, len(expected))] * len(queries)
        found = np.array(decode_ids(hits.points.keys)).reshape(len(queries), -1)
        same = [len(np.intersect1d(one, other)) for one, other in zip(found, truth, strict=True)]
        assert sum(same) >= (1.0 if exact else 0.93) * truth.size


def test_an_edit_is_for_just_what_matches(shard: Shard, numbers: np.ndarray[Any, Any]) -> None:
    """The last one: it writes rows anew."""
    engine = shard.engine
    assert engine is not None
    ids = np.arange(ROWS)
    expected = ids[(numbers < 9_000) & (ids % 7 != 0)]
    engine.edit(Edit(action="set", payload={"seen": True}), None, below(9_000)).result()
    seen = Filter(must=Condition(key="seen", match=Match(value=True))).check("filter")
    listed = engine.scroll(b"", ROWS, with_payload=False, filter=seen)
    assert decode_ids(listed.keys) == expected.tolist()
    engine.edit(Edit(action="delete_points"), None, seen).result()
    assert (engine.count(seen), engine.count(below(9_000))) == (0, 0)
    assert engine.count() == np.count_nonzero(ids % 7) - len(expected)
