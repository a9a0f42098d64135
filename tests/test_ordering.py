"""``order_by`` against Qdrant's own ordering."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.local.datetime_utils import parse

from shard.errors import InvalidInput
from shard.model import PointId, decode_id, encode_ids
from shard.ordering import OrderBy, ordering
from shard.times import parse_time
from tests import filters

NUMBERS = [-0.0, 1e300, 5e-324, 2**53 + 1, float(2**53), 2**63 - 1, -(2**63), 2**64 - 1]
ordered = filters.numbers | filters.times | st.sampled_from(NUMBERS)
values = ordered | filters.scalars
fields = values | st.lists(values, max_size=4)
objects = st.dictionaries(st.sampled_from(["a", "b"]), fields, max_size=2)
some = fields | objects | st.lists(objects | fields, max_size=3)
payloads: st.SearchStrategy[dict[str, Any]] = st.just({}) | st.fixed_dictionaries(
    {"n": ordered | st.lists(ordered, min_size=1, max_size=3)},
    optional=dict.fromkeys(["a", "b", "o", "a.b"], some),
)
points = st.lists(
    st.tuples(st.sampled_from(filters.IDS), payloads, st.sampled_from([True, True, False])),
    max_size=6,
    unique_by=lambda point: point[0],
)
starts = (
    st.none()
    | filters.numbers
    | st.sampled_from([*NUMBERS, datetime(2024, 1, 1), date(2024, 6, 30)])
    | st.sampled_from(filters.TIMES[:5]).map(datetime.fromisoformat)
)
order_bys = st.builds(
    models.OrderBy,
    key=st.just("n") | filters.keys,
    direction=st.none() | st.sampled_from(models.Direction),
    start_from=starts,
)


def keys_of(ids: list[Any]) -> Any:
    return encode_ids([UUID(one) if isinstance(one, str) else one for one in ids])


def oracle(given: list[Any], order_by: models.OrderBy, limit: int) -> list[tuple[Any, Any]]:
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    # It keeps equals in the order in which they came; a cluster has them in that of their ids.
    descending = order_by.direction is models.Direction.DESC
    sent = sorted(given, key=lambda point: bytes(keys_of([point[0]])[0]), reverse=descending)
    stored = [
        models.PointStruct(id=id, vector=[1.0], payload=orjson.loads(orjson.dumps(payload)))
        for id, payload, _ in sent
    ]
    if stored:
        client.upsert("c", stored)
    alive: list[Any] = [id for id, _, is_alive in given if is_alive]
    chosen = models.Filter(must=models.HasIdCondition(has_id=alive))
    found, following = client.scroll("c", chosen, limit=limit, order_by=order_by)
    assert following is None
    asked = models.OrderByQuery(order_by=order_by)
    hits = client.query_points("c", asked, query_filter=chosen, limit=limit).points
    assert [(hit.id, hit.order_value) for hit in hits] == [
        (record.id, record.order_value) for record in found
    ]
    return [(record.order_value, record.id) for record in found]


@settings(deadline=None, max_examples=600)
@given(points, st.lists(st.integers(0, 6), max_size=2), order_bys, st.integers(1, 8))
def test_ordered_as_in_qdrant(
    given: list[Any], cuts: list[int], order_by: models.OrderBy, limit: int
) -> None:
    asked = msgspec.json.decode(order_by.model_dump_json(exclude_none=True), type=OrderBy)
    found = ordering(asked.check("order_by"))
    parts = []
    for first, last in zip([0, *sorted(cuts)], [*sorted(cuts), len(given)], strict=True):
        part = given[first:last]
        encoded = [orjson.dumps(payload) if payload else b"" for _, payload, _ in part]
        alive = np.array([is_alive for _, _, is_alive in part], np.bool_)
        ids = [id for id, _, _ in part]
        entries = found.first(
            keys_of(ids), [encoded[:2], encoded[2:]], None if alive.all() else alive, limit
        )
        assert [decode_id(key) for _, key, _ in entries] == [
            UUID(ids[row]) if isinstance(ids[row], str) else ids[row] for _, _, row in entries
        ]
        parts.append(entries)
    merged = [(value, str(decode_id(key))) for value, key, _ in found.merge(parts, limit)]
    expected = [(value, str(id)) for value, id in oracle(given, order_by, limit)]
    assert merged == expected
    assert [type(value) for value, _ in merged] == [type(value) for value, _ in expected]


def test_equals_come_in_the_order_of_ids() -> None:
    encoded = [b'{"n":[2,1]}', b'{"n":1.0}', b'{"n":[1,1.0,1]}', b"", b'{"n":"x"}']
    ids: list[PointId] = [7, UUID(int=1), 5, 1, 2]
    for direction, expected in (
        ("asc", [(1, 5), (1, 7), (1.0, UUID(int=1)), (2, 7)]),
        ("desc", [(2, 7), (1.0, UUID(int=1)), (1, 7), (1, 5)]),
    ):
        asked = msgspec.convert({"key": "n", "direction": direction}, OrderBy)
        found = ordering(asked.check("order_by")).first(encode_ids(ids), [encoded], None, 9)
        assert [(value, decode_id(key)) for value, key, _ in found] == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"key": "a..b"}, "order_by.key: 'a..b' is not a path"),
        ({"key": ""}, "order_by.key: '' is not a path"),
        ({"key": "a", "start_from": "soon"}, "order_by.start_from: expected a number or a date"),
    ],
)
def test_what_is_no_order_is_told(given: Any, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        msgspec.convert(given, OrderBy).check("order_by")
    assert message in str(raised.value)


dates = st.sampled_from(["2024-01-01", "2024-1-1", "0001-01-01", "9999-12-31", "2024-02-30", "x"])
clocks = st.sampled_from(
    [
        *("", "12", "1:2:3", "12:30", "12:30:15", "12:30:60", "24:00:00"),
        *("12:30:15.", "12:30:15,5", "12:30:15.5", "12:30:15.1234567", "23:59:59.999999"),
    ]
)
zones = st.sampled_from(
    [
        *("", "Z", "z", " Z", "UTC", " UTC", "GMT", "+1", "+01", " -10", "-0100", " -0100"),
        *("+01:00", " +01:00", "-00:00", "-23:59", "+24:00", "+01:60"),
    ]
)


@settings(deadline=None, max_examples=2_000)
@given(dates, st.sampled_from(["", "T", "t", " ", "_"]), clocks, zones)
def test_dates_and_times_are_read_as_in_qdrant(
    date: str, separator: str, clock: str, zone: str
) -> None:
    text = f"{date}{separator}{clock}{zone}"
    assert parse_time(text) == parse(text)
