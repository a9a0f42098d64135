"""Filters and payloads that have something to do with each other, as hypothesis makes them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st
from qdrant_client import models

WORDS = ["red", "Green", "blue-ish", "the quick brown fox", "quick fox", "ünïcode", "1", ""]
TIMES = [
    "2024-01-01T00:00:00Z",
    "2024-01-01",
    "2024-01-01T01:00:00+01:00",
    "2024-06-30 12:30:15.25",
    "2025-12-31T23:59:59.999999Z",
    "2024-01-01 02:00:00-01",
    "not a time",
]
IDS: list[Any] = [0, 1, 2, 3, 2**64 - 1, "00000000-0000-0000-0000-000000000007"]

words = st.sampled_from(WORDS)
parts = words | st.sampled_from(["re", "Gr", "gr", "quick ", "ox", "-", "ï", "20"])
times = st.sampled_from(TIMES)
small = st.integers(-3, 3)
numbers = small | st.sampled_from([0.5, 1.0, -2.5, 3.0])
places = st.builds(
    lambda lat, lon: {"lat": lat, "lon": lon},
    st.sampled_from([-60.0, 0, 10.5, 52.5, 89.0]),
    st.sampled_from([-179.5, -10, 0.0, 13.4, 179.5]),
)
scalars = st.none() | st.booleans() | numbers | words | times | places
leaves = scalars | st.lists(scalars, max_size=3)
objects = st.dictionaries(st.sampled_from(["a", "b"]), leaves, max_size=2)
fields = st.sampled_from(["a", "b", "n", "o", "a.b"])
payloads = st.dictionaries(
    fields, leaves | objects | st.lists(objects | scalars, max_size=3), max_size=5
)
keys = st.sampled_from(
    ["a", "b", "n", "o", "o.a", "o.b", "o[].a", "n[].b", "a[0]", "o[1].a", '"a.b"', "missing"]
)

matches = st.one_of(
    st.builds(models.MatchValue, value=st.booleans() | small | words),
    st.builds(models.MatchAny, any=st.lists(words, max_size=3) | st.lists(small, max_size=3)),
    st.builds(
        lambda given: models.MatchExcept(**{"except": given}),
        st.lists(words, max_size=3) | st.lists(small, max_size=3),
    ),
    st.builds(models.MatchText, text=words),
    st.builds(models.MatchTextAny, text_any=words),
    st.builds(models.MatchPhrase, phrase=words),
    st.builds(models.MatchPrefix, prefix=parts),
    st.builds(models.MatchSubstring, substring=parts),
)
bounds = {name: st.none() | numbers for name in ("gt", "gte", "lt", "lte")}
ranges = st.builds(models.Range, **bounds)
moments = st.none() | st.sampled_from(TIMES[:5])
time_ranges = st.builds(
    models.DatetimeRange, **dict.fromkeys(("gt", "gte", "lt", "lte"), moments)
).filter(lambda one: any(value is not None for value in one.model_dump().values()))
points = st.builds(
    models.GeoPoint,
    lat=st.sampled_from([-80.0, -5.0, 0.0, 11.0, 53.0, 89.5]),
    lon=st.sampled_from([-179.0, -11.0, 0.5, 14.0, 179.0]),
)
boxes = st.builds(models.GeoBoundingBox, top_left=points, bottom_right=points)
circles = st.builds(
    models.GeoRadius, center=points, radius=st.sampled_from([1.0, 200_000.0, 3e6, 2.5e7])
)
rings = st.sampled_from(
    [
        [(-70.0, -50.0), (-70.0, 50.0), (60.0, 50.0), (60.0, -50.0), (-70.0, -50.0)],
        [(5.0, -20.0), (60.0, 0.7), (5.0, 20.0), (5.0, -20.0)],
    ]
).map(
    lambda ring: models.GeoLineString(
        points=[models.GeoPoint(lat=lat, lon=lon) for lat, lon in ring]
    )
)
polygons = st.builds(
    models.GeoPolygon, exterior=rings, interiors=st.none() | st.lists(rings, max_size=1)
)
counts = st.builds(
    models.ValuesCount,
    **{name: st.none() | st.integers(0, 3) for name in ("gt", "gte", "lt", "lte")},
)


def _field(name: str, of: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda key, value: models.FieldCondition(key=key, **{name: value}), keys, of)


simple = st.one_of(
    _field("match", matches),
    _field("match", matches),
    _field("range", ranges),
    _field("range", time_ranges),
    _field("geo_bounding_box", boxes),
    _field("geo_radius", circles),
    _field("geo_polygon", polygons),
    _field("values_count", counts),
    _field("is_empty", st.booleans()),
    _field("is_null", st.booleans()),
    keys.map(lambda key: models.IsEmptyCondition(is_empty=models.PayloadField(key=key))),
    keys.map(lambda key: models.IsNullCondition(is_null=models.PayloadField(key=key))),
    st.lists(st.sampled_from(IDS), max_size=3).map(lambda ids: models.HasIdCondition(has_id=ids)),
    st.integers(1, 4).flatmap(
        lambda total: st.integers(0, total - 1).map(
            lambda index: models.SliceCondition(slice=models.Slice(total=total, index=index))
        )
    ),
    st.sampled_from(["", "other", "missing"]).map(
        lambda name: models.HasVectorCondition(has_vector=name)
    ),
)


def _filters(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[models.Filter]:
    some = st.none() | st.lists(conditions, max_size=3)
    at_least = st.builds(
        models.MinShould,
        conditions=st.lists(conditions, max_size=3),
        min_count=st.integers(1, 3),
    )
    return st.builds(
        models.Filter,
        must=some | conditions,
        should=some | conditions,
        must_not=some | conditions,
        min_should=st.none() | at_least,
    )


def _nested(conditions: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    nested = st.builds(
        models.Nested,
        key=st.sampled_from(["o", "n", "o[]", "a", "missing"]),
        filter=_filters(conditions),
    )
    return nested.map(lambda one: models.NestedCondition(nested=one))


conditions = simple | _filters(simple) | _nested(simple | _filters(simple))
filters = _filters(conditions)
