"""Facets against Qdrant's own counting."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models

from shard import facets
from shard.errors import InvalidInput
from shard.facets import Counts, count, top, total
from tests import filters

UUIDS = ["0A1b2c3d-0000-4000-8000-000000000001", UUID(int=7).hex, str(UUID(int=7)), "g" * 32]
values = filters.scalars | st.sampled_from(UUIDS) | st.sampled_from([2**63, 2**64 - 1])
fields = values | st.lists(values, max_size=4)
objects = st.dictionaries(st.sampled_from(["a", "b"]), fields, max_size=2)
payloads = st.dictionaries(
    filters.fields, fields | objects | st.lists(objects | fields, max_size=3), max_size=5
)
rows = st.lists(st.tuples(payloads, st.booleans()), max_size=8)


def stored(given: list[dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps(payload) if payload else b"" for payload in given]


def same(ours: Counts, theirs: list[models.FacetValueHit]) -> bool:
    """Equality that tells 1 from True."""
    expected = [(type(hit.value), hit.value, hit.count) for hit in theirs]
    return [(type(value), value, points) for value, points in ours] == expected


def oracle(given: list[tuple[dict[str, Any], bool]], key: str, limit: int) -> Any:
    client = QdrantClient(":memory:")
    client.create_collection("c", models.VectorParams(size=1, distance=models.Distance.DOT))
    points = [
        models.PointStruct(id=number, vector=[1.0], payload=orjson.loads(orjson.dumps(payload)))
        for number, (payload, _) in enumerate(given)
    ]
    if points:
        client.upsert("c", points)
    alive: list[Any] = [number for number, (_, is_alive) in enumerate(given) if is_alive]
    chosen = models.Filter(must=models.HasIdCondition(has_id=alive))
    return client.facet("c", key, facet_filter=chosen, limit=limit).hits


@settings(deadline=None, max_examples=600)
@given(st.lists(rows, max_size=3), st.data(), filters.keys, st.integers(1, 6))
def test_counted_as_in_qdrant(
    sets: list[list[tuple[dict[str, Any], bool]]], data: st.DataObject, key: str, limit: int
) -> None:
    parts = []
    for points in sets:
        encoded = stored([payload for payload, _ in points])
        cut = data.draw(st.integers(0, len(encoded)))
        alive = np.array([is_alive for _, is_alive in points], np.bool_)
        parts.append(count(key, [encoded[:cut], encoded[cut:]], None if alive.all() else alive))
    found = top(total(parts), limit)
    assert same(found, oracle([point for points in sets for point in points], key, limit))


def test_the_most_frequent_are_chosen_after_the_merge() -> None:
    # None of these is among the two most frequent of one part alone.
    parts: list[Counts] = [[("a", 5), ("b", 5), ("x", 4)], [("c", 5), ("d", 5), ("x", 4)]]
    assert top(total(parts), 2) == [("x", 8), ("a", 5)]


def test_true_is_not_one_nor_is_one_its_text() -> None:
    encoded = [b'{"a":[true,1,"1",1.0,null]}', b'{"a":[1,1]}', b'{"a":false}']
    found = top(count("a", [encoded], None), 10)
    expected: Counts = [(1, 2), (False, 1), (True, 1), ("1", 1)]
    assert [(type(value), value, points) for value, points in found] == [
        (type(value), value, points) for value, points in expected
    ]


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInput, match=r"key: 'a\.\.b' is not a path"):
        count("a..b", [], None)
    monkeypatch.setattr(facets, "MAX_VALUES", 2)
    encoded = [b'{"a":[1,2]}', b'{"a":[2,1]}', b'{"a":3}']
    assert len(count("a", [encoded[:2]], None)) == 2
    with pytest.raises(InvalidInput, match="key: expected at most 2 different values"):
        count("a", [encoded], None)
    with pytest.raises(InvalidInput, match="key: expected at most 2 different values"):
        total([[(1, 1), (2, 1)], [(2, 1), (3, 1)]])
