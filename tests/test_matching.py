"""Filters in a shard: memtable, flat and indexed segments, dead rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from shard.edits import Edit
from shard.engine import ShardEngine
from shard.filter import Condition, Filter, Match
from shard.model import (
    UNNAMED,
    Delete,
    Distance,
    SearchParams,
    Upsert,
    VectorColumn,
    decode_ids,
    encode_ids,
    unnamed,
)
from shard.rpc.merge import split_hits
from tests import columns
from tests.columns import MANY, SOME, WHOLE, WORDS
from tests.test_imports import DIMENSION, Shard, wait_until

ROWS = 30_000
QUERIES: dict[str, Any] = {
    WHOLE: (0.5, -1.0, 0.25),
    SOME: (-0.5, 1.0, 2.0),
    MANY: ((1.0, 0.0, 0.5), (0.0, -1.0, 0.0)),
    WORDS: {index: 1.5 + index for index in range(0, 12, 2)},
}


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


@pytest.fixture
def mixed(tmp_path: Path) -> Iterator[Shard]:
    """With vectors of all kinds."""
    shard = Shard(tmp_path, columns.config_of(Distance.DOT))
    yield shard
    shard.close()
    shard.builder.close()


def asked(given: Any) -> bytes:
    return msgspec.convert(given, Filter).check("filter")


def below(bound: int) -> bytes:
    given = {"must": [{"key": "n", "range": {"lt": bound}}, {"key": "of", "match": {"value": "x"}}]}
    return asked(given)


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
            VectorColumn(queries), SearchParams(limit=10, exact=exact), [filter] * len(queries)
        )
        assert hits.lengths.tolist() == [min(10, len(expected))] * len(queries)
        found = np.array(decode_ids(hits.points.keys)).reshape(len(queries), -1)
        same = [len(np.intersect1d(one, other)) for one, other in zip(found, truth, strict=True)]
        assert sum(same) >= (1.0 if exact else 0.93) * truth.size


def check_batch(
    engine: ShardEngine,
    queries: VectorColumn,
    params: SearchParams,
    filters: Sequence[bytes],
    alike: list[int],
) -> None:
    """The batch is answered as each of its runs of so many queries of one filter by itself."""
    parts = split_hits(engine.search(queries, params, filters), alike)
    start = 0
    for count, part in zip(alike, parts, strict=True):
        end = start + count
        alone = engine.search(queries.slice(start, end), params, filters[start:end])
        assert part.lengths.tolist() == alone.lengths.tolist()
        assert part.points.keys.tolist() == alone.points.keys.tolist()
        np.testing.assert_allclose(part.scores, alone.scores, rtol=1e-5, atol=1e-6)
        assert part.points.payloads == alone.points.payloads
        for name, column in alone.points.vectors.items():
            read = [
                columns.plain(name, one, engine._config)
                for one in (column, part.points.vectors[name])
            ]
            assert read[0] == read[1]
        start = end


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("with_payload", [False, True])
def test_queries_with_filters_of_their_own_find_what_each_finds_alone(
    shard: Shard, vectors: np.ndarray[Any, Any], exact: bool, with_payload: bool
) -> None:
    engine = shard.engine
    assert engine is not None
    different = [
        below(ROWS // 2),
        below(0),
        b"",
        below(30),
        asked({"must": {"has_id": [1, 2, 7, ROWS - 1, ROWS]}}),
        below(ROWS // 2),
        asked({"must": {"slice": {"total": 3, "index": 1}}}),
        asked({"must": {"key": "missing", "match": {"value": 1}}}),
        below(1),
        below(1_500),
        b"",
    ]
    alike = [1 + number % 3 for number in range(len(different))]
    filters = [filter for filter, count in zip(different, alike, strict=True) for _ in range(count)]
    queries = VectorColumn(vectors[: len(filters)] + np.float32(0.01))
    among = encode_ids(range(0, ROWS, 3)).tobytes()
    for params in (
        SearchParams(limit=10, exact=exact, with_payload=with_payload),
        SearchParams(limit=10, exact=exact, with_vectors=(UNNAMED,), score_threshold=0.9),
        SearchParams(limit=70, exact=exact, among=among),
    ):
        check_batch(engine, queries, params, filters, alike)
    # Nothing is found for any.
    nothing = engine.search(queries, SearchParams(limit=3), [below(0)] * queries.rows)
    assert nothing.lengths.tolist() == [0] * queries.rows


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


@pytest.mark.parametrize("place", ["memtable", "segment", "both"])
def test_points_are_told_apart_by_the_vectors_they_have(mixed: Shard, place: str) -> None:
    engine, config = mixed.engine, mixed.config
    assert engine is not None
    chance = np.random.default_rng(4)
    rows: dict[int, dict[str, Any]] = {}

    def write(ids: range, names: list[str]) -> None:
        drawn = columns.drawn(chance, len(ids), config)
        vectors = {name: drawn[name] for name in names}
        assert engine is not None
        payloads = [b'{"n":%d}' % one for one in ids]
        engine.write([Upsert(encode_ids(ids), vectors, payloads)]).result()
        for row, one in enumerate(ids):
            rows[one] = dict.fromkeys(config.names)
            for name, column in vectors.items():
                rows[one][name] = columns.plain(name, column, config)[row]

    write(range(200), config.names)
    write(range(150, 220), [WHOLE])  # Overwritten with fewer.
    if place != "memtable":
        engine.snapshot()
    if place == "both":
        write(range(100, 160), [WORDS, MANY])
    gone = list(range(0, 220, 7))
    engine.write([Delete(encode_ids(gone))]).result()
    for one in gone:
        del rows[one]

    def check(given: Any, expected: Callable[[int, set[str]], bool]) -> None:
        filter = asked(given)
        has = {
            one: {name for name, row in own.items() if row is not None} for one, own in rows.items()
        }
        ids = sorted(one for one, own in has.items() if expected(one, own))
        assert engine is not None
        assert engine.count(filter) == len(ids)
        listed = engine.scroll(b"", 1_000, with_payload=False, filter=filter)
        assert decode_ids(listed.keys) == ids
        for name in config.names:
            query = columns.column(name, [QUERIES[name]], config)
            hits = engine.search(query, SearchParams(limit=9, using=name), [filter] * query.rows)
            stored = {one: rows[one][name] for one in ids}
            found = decode_ids(hits.points.keys)
            columns.check_nearest(config, name, QUERIES[name], stored, 9, found, hits.scores)

    def has(name: str) -> Callable[[int, set[str]], bool]:
        return lambda _, own: name in own

    def lacks(name: str) -> Callable[[int, set[str]], bool]:
        return lambda _, own: name not in own

    asking = [{"must": {"has_vector": name}} for name in (*config.names, "other")]
    filters = [asked(one) for one in (*asking, {"must_not": {"has_vector": SOME}})]
    for name in config.names:
        queries = columns.column(name, [QUERIES[name]] * len(filters), config)
        params = SearchParams(limit=50, using=name, with_vectors=tuple(config.names))
        check_batch(engine, queries, params, filters, [1] * len(filters))

    for name in config.names:
        check({"must": {"has_vector": name}}, has(name))
        check({"must_not": {"has_vector": name}}, lacks(name))
    check({"must": {"has_vector": ""}}, lambda _, own: False)
    check({"must_not": {"has_vector": "other"}}, lambda _, own: True)
    both = [{"has_vector": SOME}, {"has_vector": WORDS}]
    check({"must": both}, lambda _, own: {SOME, WORDS} <= own)
    check({"should": both}, lambda _, own: bool({SOME, WORDS} & own))
    one_of = {"conditions": [*both, {"has_vector": MANY}], "min_count": 2}
    check({"min_should": one_of}, lambda _, own: len({SOME, WORDS, MANY} & own) >= 2)
    small = {"key": "n", "range": {"lt": 120}}
    check({"must": [{"has_vector": MANY}, small]}, lambda one, own: one < 120 and MANY in own)
    deep = {"must": [{"must_not": {"should": [{"has_vector": MANY}, small]}}]}
    check(deep, lambda one, own: one >= 120 and MANY not in own)
