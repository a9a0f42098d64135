"""Filters against Qdrant's own evaluation of them."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import models
from qdrant_client.local.payload_filters import check_filter
from qdrant_client.local.siphash import point_id_slice

from shard.errors import InvalidInput
from shard.filter import MAX_FIELDS, Filter, matcher
from shard.model import encode_id, encode_ids
from shard.slices import siphash, slice_of, slices_of
from tests import filters


def decode(given: Any) -> Filter:
    return msgspec.json.decode(orjson.dumps(given), type=Filter)


def as_sent(given: models.Filter) -> Any:
    return orjson.loads(given.model_dump_json(by_alias=True, exclude_none=True))


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(deadline=None, max_examples=1_500)
@given(
    filters.filters,
    st.lists(
        st.tuples(filters.payloads, st.sets(st.sampled_from(["", "other"]))), min_size=1, max_size=6
    ),
)
def test_the_same_points_match_as_in_qdrant(
    filter: models.Filter, points: list[tuple[dict[str, Any], set[str]]]
) -> None:
    ids = filters.IDS[: len(points)]
    encoded = decode(as_sent(filter)).check("filter")
    keys = encode_ids([UUID(one) if isinstance(one, str) else one for one in ids])
    stored = [orjson.dumps(payload) if payload else b"" for payload, _ in points]
    compiled = matcher(encoded or b"{}")
    has = {name: np.array([name in own for _, own in points]) for name in compiled.vector_names}
    assert compiled.matches(keys, stored, has).tolist() == [
        check_filter(filter, orjson.loads(orjson.dumps(payload)), one, dict.fromkeys(own, True))
        for (payload, own), one in zip(points, ids, strict=True)
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"must": [{"key": "a"}]}, "filter.must[0]: key make no condition together"),
        ({"must": {"key": "a..b", "match": {"value": 1}}}, "filter.must.key: 'a..b' is not a path"),
        ({"should": [{"key": "a", "match": {}}]}, "filter.should[0].match: expected one of"),
        (
            {"should": [{"key": "a", "match": {"value": 1, "any": [2]}}]},
            "filter.should[0].match: expected one of",
        ),
        (
            {"must": [{"key": "a", "match": {"value": 1}, "range": {"gt": 1}}]},
            "filter.must[0]: key, match, range make no condition together",
        ),
        (
            {"must": [{"slice": {"total": 3, "index": 3}}]},
            "filter.must[0].slice.index: expected less than `total`, 3, got 3",
        ),
        ({"must": [{"has_id": [-1]}]}, "filter.must[0].has_id[0]: expected an unsigned integer"),
        ({"must": [{"has_id": ["x"]}]}, "filter.must[0].has_id[0]: expected an unsigned integer"),
        (
            {"must_not": [{"key": "a", "range": {"gt": "yesterday"}}]},
            "filter.must_not[0].range.gt: expected a date and time",
        ),
        (
            {"must": [{"key": "a", "range": {"gt": "2024-01-01", "lt": 5}}]},
            "filter.must[0].range.lt: expected a date and time",
        ),
        (
            {"must": [{"nested": {"key": "a", "filter": {"must": [{"key": "b"}]}}}]},
            "filter.must[0].nested.filter.must[0]: key make no",
        ),
        (
            {"must": [{"key": "a", "geo_polygon": {"exterior": {"points": []}}}]},
            "filter.must[0].geo_polygon: expected four or more points",
        ),
    ],
)
def test_what_is_no_filter_is_told(given: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        decode(given).check("filter")
    assert message in str(raised.value)


def test_a_filter_is_about_so_many_fields_at_most() -> None:
    of_one: list[Any] = [{"key": "a", "match": {"value": n}} for n in range(MAX_FIELDS + 1)]
    of_many = [{**one, "key": f"a.b{n}"} for n, one in enumerate(of_one)]
    assert decode({"should": of_one}).check("filter")
    assert decode({"should": of_many[1:]}).check("filter")
    for one in (
        {"should": of_many},
        {"must": {"nested": {"key": "o", "filter": {"should": of_many}}}},
    ):
        with pytest.raises(InvalidInput, match=f"at most {MAX_FIELDS} different fields"):
            decode(one).check("filter")


def test_a_slice_is_a_hash_that_is_published() -> None:
    assert siphash(b"") == 0x1E924B9D737700D7


@given(st.integers(0, 2**64 - 1) | st.uuids(), st.integers(1, 2**32 - 1))
def test_a_point_is_in_the_same_slice_as_in_qdrant(id: int | UUID, total: int) -> None:
    expected = point_id_slice(str(id) if isinstance(id, UUID) else id, total)
    assert slice_of(encode_id(id), total) == expected
    assert slices_of(encode_ids([id, 1, id]), total)[[0, 2]].tolist() == [expected, expected]


def test_empty_filters_ask_for_nothing() -> None:
    empties: list[Any] = [{}, {"must": []}, {"must": [], "should": [], "must_not": []}]
    for empty in empties:
        assert decode(empty).check("filter") == b""
    # But this one asks for what no point can give.
    assert decode({"min_should": {"conditions": [], "min_count": 1}}).check("filter")
