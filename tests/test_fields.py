"""Masks of rows from columns of fields, against what every payload by itself says."""

from __future__ import annotations

import gc
import operator
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import orjson
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models

from shard import fields, memtable
from shard.cache import Cache, memory
from shard.filter import Filter, matcher
from shard.matching import Matching
from shard.memtable import Memtable
from shard.model import UNNAMED, Distance, Keys, Mask, Points, Rows, ShardConfig, encode_ids
from shard.model import VectorColumn as Vectors
from shard.segment import Segment, write_segment
from tests import filters

CONFIG = ShardConfig.unnamed(2, Distance.EUCLID)
PLENTY = 1 << 30

LARGE = [2**53 - 1, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1, -(2**63)]
large = st.sampled_from(LARGE)
odd = large | st.sampled_from([2.0**53, 2.0**63, -0.0, 1e300, 1e-300]) | filters.scalars
values = odd | st.lists(odd | st.lists(odd, max_size=2), max_size=3)
objects = st.dictionaries(st.sampled_from(["a", "b", "n"]), values, max_size=3)
payloads = filters.payloads | st.dictionaries(
    filters.fields, values | objects | st.lists(objects | values, max_size=3), max_size=5
)
bounds = st.none() | st.sampled_from([2.0**53, 2.0**53 + 2, 2.0**63, 1e300, -1e300, 0.0])
ranges = st.builds(models.Range, gt=bounds, gte=bounds, lt=bounds, lte=bounds)
matches = st.one_of(
    large.map(lambda one: models.MatchValue(value=one)),
    st.lists(large, max_size=3).map(lambda some: models.MatchAny(any=some)),
    st.lists(large, max_size=3).map(lambda some: models.MatchExcept(**{"except": some})),
)
of_large = st.builds(models.FieldCondition, key=filters.keys, range=ranges) | st.builds(
    models.FieldCondition, key=filters.keys, match=matches
)
nested = st.builds(
    lambda key, inner: models.NestedCondition(nested=models.Nested(key=key, filter=inner)),
    st.sampled_from(["o", "n[]", "a"]),
    st.builds(models.Filter, must=st.lists(of_large, min_size=1, max_size=2)),
)
every_filter = filters.filters | st.builds(
    lambda *some: models.Filter(must=list(some)), filters.filters, of_large | nested
)


of_one_field = st.one_of(
    [
        st.builds(
            models.FieldCondition, key=st.sampled_from(["a", "a[]", "a[1]"]), **{name: condition}
        )
        for name, condition in {
            "match": filters.matches | matches,
            "range": filters.ranges | ranges | filters.time_ranges,
            "geo_bounding_box": filters.boxes,
            "geo_radius": filters.circles,
            "geo_polygon": filters.polygons,
            "values_count": filters.counts,
            "is_empty": st.booleans(),
            "is_null": st.booleans(),
        }.items()
    ]
)


def encoded(given: Any) -> bytes:
    if isinstance(given, models.Filter):
        given = orjson.loads(given.model_dump_json(by_alias=True, exclude_none=True))
    return msgspec.convert(given, Filter).check("filter")


def points(stored: Sequence[bytes], has: Sequence[bool]) -> Points:
    """With the ids of `tests.filters` first; those of ``has`` with a vector."""
    ids = [*range(4), *range(10, 10 + len(stored))][: len(stored)]
    starts = np.concatenate([[0], np.cumsum(has, dtype=np.int64)])
    vectors = Vectors(np.zeros((starts[-1], 2), np.float32), starts)
    return Points(encode_ids(ids), list(stored), {UNNAMED: vectors})


def segment(directory: Path, of: Points, batch: int = 1 << 20) -> Segment:
    assert of.payloads is not None
    batches = (
        Points(
            of.keys[first : first + batch],
            of.payloads[first : first + batch],
            {UNNAMED: of.vectors[UNNAMED].slice(first, min(first + batch, len(of.keys)))},
        )
        for first in range(0, len(of.keys), batch)
    )
    write_segment(directory, batches, len(of.keys), CONFIG)
    return Segment.open(directory, CONFIG)


class Listed:
    """Rows in memory that count how often their payloads are read."""

    def __init__(self, payloads: Sequence[Any]) -> None:
        stored = [orjson.dumps(one) if one else b"" for one in payloads]
        self.keys = encode_ids(range(len(stored)))
        self.reads = 0
        """Of all payloads."""
        self.looked_up: list[int] = []
        """Rows whose payloads were read by themselves."""
        self._stored = stored

    def has(self, name: str) -> Mask:
        mask: Mask = np.arange(len(self.keys)) % 2 == 0
        return mask

    def among(self, keys: Keys) -> Mask:
        mask: Mask = np.isin(self.keys, keys)
        return mask

    def payload_batches(self) -> Iterable[Sequence[bytes]]:
        self.reads += 1
        return iter([self._stored[:2], self._stored[2:]])

    def payloads(self, rows: Rows) -> list[bytes]:
        self.looked_up += rows.tolist()
        return [self._stored[row] for row in rows.tolist()]


@settings(deadline=None, max_examples=2_000)
@given(of_one_field, st.lists(st.builds(dict) | st.builds(dict, a=values), max_size=20))
def test_a_column_says_what_payloads_say(
    condition: models.FieldCondition, payloads: list[dict[str, Any]]
) -> None:
    asked = encoded(models.Filter(must=[condition]))
    rows = Listed(payloads)
    found = Matching(Cache(PLENTY)).mask(asked, rows)
    expected = matcher(asked).matches(rows.keys, rows.payloads(np.arange(len(payloads))))
    assert found.tolist() == expected.tolist()


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(deadline=None, max_examples=300)
@given(
    every_filter,
    st.lists(st.tuples(payloads, st.booleans()), min_size=1, max_size=8),
    st.sampled_from([0, 1_000, 4_000, 10_000, 30_000, PLENTY]),
    st.integers(0, 8),
)
def test_segments_and_memtables_say_what_payloads_say(
    filter: models.Filter, rows: list[tuple[dict[str, Any], bool]], max_bytes: int, first: int
) -> None:
    asked = encoded(filter)
    if not asked:
        return
    has = [one for _, one in rows]
    of = points([orjson.dumps(payload) if payload else b"" for payload, _ in rows], has)
    assert of.payloads is not None
    vectors = {
        name: np.array(has) if name == UNNAMED else np.zeros(len(has), np.bool_)
        for name in matcher(asked).vector_names
    }
    expected = matcher(asked).matches(of.keys, of.payloads, vectors)
    with TemporaryDirectory() as folder:
        stored = segment(Path(folder), of, batch=3)
        assert stored.matching(asked).tolist() == expected.tolist()
        # Some columns are too large, or soon forgotten.
        matching = Matching(Cache(max_bytes))
        for _ in range(2):
            assert matching.mask(asked, stored).tolist() == expected.tolist()

    part_rows, memtable._PART_ROWS = memtable._PART_ROWS, 2
    try:
        growing = Memtable(CONFIG)
        seen = []
        for some in (slice(0, first), slice(first, None)):
            column = of.vectors[UNNAMED].take(np.arange(len(of.keys))[some])
            growing.append(of.keys[some], {UNNAMED: column}, of.payloads[some])
            seen.append(growing.published()[0])
            assert seen[-1].matching(asked).tolist() == expected[: seen[-1].rows].tolist()
        assert seen[0].matching(asked).tolist() == expected[: seen[0].rows].tolist()
    finally:
        memtable._PART_ROWS = part_rows


def at(key: str, **condition: Any) -> bytes:
    return encoded({"must": [{"key": key, **condition}]})


def test_large_numbers_are_compared_exactly() -> None:
    numbers = [*LARGE, *map(float, LARGE), True, "1", None, 0, 1, 1.0, 0.5, -1e300]
    rows = Listed([{"a": number} for number in numbers])
    matching = Matching(Cache(PLENTY))
    for number in LARGE:
        found = matching.mask(at("a", match={"value": number}), rows)
        assert found.tolist() == [type(one) is int and one == number for one in numbers]
    for number in LARGE:
        others = [0, *(one for one in LARGE if one != number)]
        found = matching.mask(at("a", match={"any": others}), rows)
        assert found.tolist() == [type(one) is int and one in others for one in numbers]
    comparisons: dict[str, Callable[[Any, Any], bool]] = {
        "gt": operator.gt,
        "gte": operator.ge,
        "lt": operator.lt,
        "lte": operator.le,
    }
    for bound in [*map(float, LARGE), 1.0, 0.25, 1e301]:
        for name, compare in comparisons.items():
            found = matching.mask(at("a", range={name: bound}), rows)
            assert found.tolist() == [
                type(one) in (int, float) and compare(one, bound) for one in numbers
            ]


@pytest.mark.parametrize("name", ["größe", "价格", "\N{FISH}", "a\\b", "", "a.b", "[]", "\0", "\n"])
def test_a_field_may_have_any_name(name: str) -> None:
    rows = Listed([{name: 1}, {"": 1}, {"a": 1, name: 2}, {"a": 1}, {}, {"b": {name: 1}}])
    matching = Matching(Cache(PLENTY))
    found = matching.mask(at(f'"{name}"', match={"value": 1}), rows)
    assert found.tolist() == [True, name == "", False, False, False, False]
    of_both = encoded({"must": [{"key": "a", "match": {"value": 1}},
                                {"key": f'"{name}"', "range": {"gte": 2}}]})  # fmt: skip
    assert np.flatnonzero(matching.mask(of_both, rows)).tolist() == [2]


def test_payloads_are_read_once_for_a_field() -> None:
    rows = Listed(
        [{"a": number % 3, "b": [str(number)], "o": [{"a": number}]} for number in range(9)]
    )
    matching = Matching(Cache(PLENTY))
    for number in range(9):
        found = matching.mask(at("a", match={"value": number}), rows)
        assert found.tolist() == [row % 3 == number for row in range(9)]
    assert rows.reads == 1
    several: list[Any] = [
        {"key": "b", "match": {"any": ["3", "8"]}},
        {"key": "b", "values_count": {"gt": 0}},
        {"nested": {"key": "o", "filter": {"must": [{"key": "a", "range": {"gt": 3}}]}}},
    ]
    assert np.flatnonzero(matching.mask(encoded({"must": several}), rows)).tolist() == [8]
    assert rows.reads == 2
    matching.mask(encoded({"should": several}), rows)
    assert rows.reads == 2


def test_ids_and_vectors_are_known_without_payloads() -> None:
    rows = Listed([{"a": 1}] * 9)
    matching = Matching(Cache(PLENTY))
    asked = encoded({"must": [{"has_id": [1, 2, 4, 77]}, {"has_vector": ""}]})
    assert np.flatnonzero(matching.mask(asked, rows)).tolist() == [2, 4]
    none = encoded({"must_not": [{"nested": {"key": "o", "filter": {"must": {"has_id": [1]}}}}]})
    assert rows.reads == 0
    assert matching.mask(none, rows).all()


def test_what_is_too_large_is_looked_up_where_the_rest_leaves_it_open() -> None:
    rows = Listed([{"a": number % 100, "text": f"{number} {'x' * 1_000}"} for number in range(500)])
    matching = Matching(Cache(8 * 60_000))
    both = [{"key": "a", "match": {"value": 7}}, {"key": "text", "match": {"text": "207"}}]
    assert np.flatnonzero(matching.mask(encoded({"must": both}), rows)).tolist() == [207]
    assert rows.looked_up == [7, 107, 207, 307, 407]
    either = matching.mask(encoded({"must_not": both}), rows)
    assert np.flatnonzero(~either).tolist() == [7, 107, 207, 307, 407]
    assert len(rows.looked_up) == 500
    assert rows.reads == 1


def test_texts_with_the_same_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "hash", len, raising=False)
    words = ["ab", "cd", "ef", "g", "", "ab"]
    rows = Listed([{"a": word} for word in words])
    matching = Matching(Cache(PLENTY))
    for word in [*words, "xy", "xyz"]:
        found = matching.mask(at("a", match={"value": word}), rows)
        assert found.tolist() == [one == word for one in words]


def test_any_number_of_threads_may_ask() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 50, 2_000)
    rows = Listed([{"a": number, "b": [number, str(number)]} for number in numbers.tolist()])
    cache = Cache(40_000)
    matching = Matching(cache)

    def ask(number: int) -> bool:
        bound = number % 60
        both = [
            {"key": "a", "range": {"lt": bound}},
            {"key": "b", "match": {"any": [str(one) for one in range(bound // 2, 60)]}},
        ]
        found = matching.mask(encoded({"must": both}), rows)
        return bool((found == ((numbers < bound) & (numbers >= bound // 2))).all())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(400)))
    assert cache.bytes <= cache.max_bytes


def test_what_was_used_last_is_remembered_longest() -> None:
    cache = Cache(10_000)
    owner = cache.number(cache)
    for key in range(5):
        cache.put(owner, key, str(key), 1_000)
    assert cache.get(owner, 0) == "0"
    for key in range(5, 10):
        cache.put(owner, key, str(key), 1_000)
    assert cache.bytes <= 10_000
    assert [key for key in range(10) if cache.get(owner, key)] == [0, 4, 5, 6, 7, 8, 9][-7:]
    cache.put(owner, 9, "again", 500)
    assert cache.get(owner, 9) == "again"
    assert (cache.hits, cache.misses, cache.evictions) == (1 + 7 + 1, 3, 3)


def test_a_container_has_the_memory_that_it_is_held_to(tmp_path: Path) -> None:
    there = psutil.virtual_memory().total
    assert memory(tmp_path) == there
    (tmp_path / "memory.max").write_text("max\n")
    assert memory(tmp_path) == there
    (tmp_path / "memory.max").write_text("1073741824\n")
    assert memory(tmp_path) == 2**30
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert memory(tmp_path) == there
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("536870912\n")
    assert memory(tmp_path) == 2**29


def test_what_is_known_of_rows_goes_with_them() -> None:
    cache = Cache(PLENTY)
    kept, gone = Matching(cache), Matching(cache)
    asked = at("a", match={"value": 1})
    for matching in (kept, gone):
        matching.mask(asked, Listed([{"a": 1}]))
    held = cache.bytes
    del gone, matching
    gc.collect()
    kept.mask(at("a", match={"value": 2}), Listed([{"a": 1}]))
    assert cache.bytes < held
