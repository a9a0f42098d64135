"""Recommend, discover and context against Qdrant's own in-memory implementation."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client.local.local_collection import LocalCollection

from router.query import recommend
from shard.index.examples import Examples, Scoring
from shard.model import (
    Distance,
    Scores,
    ShardConfig,
    SparseConfig,
    VectorColumn,
    VectorConfig,
)
from shard.one_vector import several as points_of
from shard.one_vector import sparse_vector

POINTS = 8
DIMENSION = 3

# Steps of a quarter make ties.
vectors = st.lists(
    st.integers(-8, 8).map(lambda quarters: quarters / 4), min_size=DIMENSION, max_size=DIMENSION
)
points = st.lists(vectors, min_size=1, max_size=POINTS)
examples = st.lists(vectors, max_size=3)
pairs = st.lists(st.tuples(vectors, vectors), max_size=3)
distances = st.sampled_from(list(Distance))
# For cosine rounding says which of two examples at the same angle is the nearer one.
exact = st.sampled_from([Distance.DOT, Distance.EUCLID, Distance.MANHATTAN])
client = QdrantClient(":memory:")


def answer(stored: list[list[float]], distance: Distance, query: Any) -> list[models.ScoredPoint]:
    if client.collection_exists("c"):
        client.delete_collection("c")
    params = models.VectorParams(size=DIMENSION, distance=models.Distance(distance.value))
    client.create_collection("c", vectors_config=params)
    client.upsert(
        "c", [models.PointStruct(id=one, vector=vector) for one, vector in enumerate(stored)]
    )
    return client.query_points("c", query=query, limit=POINTS).points


def by_id(hits: list[models.ScoredPoint]) -> Scores:
    return np.array([hit.score for hit in sorted(hits, key=lambda hit: int(hit.id))], np.float32)


def similarities(stored: list[list[float]], given: list[list[float]], distance: Distance) -> Scores:
    """(examples, points)."""
    config = VectorConfig(dimension=DIMENSION, distance=distance)
    rows, asked = (
        config.prepare(np.array(one, np.float32).reshape(-1, DIMENSION)) for one in (stored, given)
    )
    if distance.higher_is_nearer:
        return asked @ rows.T
    difference = asked[:, None] - rows
    found: Scores = (
        -np.square(difference).sum(axis=2)
        if distance is Distance.EUCLID
        else -np.abs(difference).sum(axis=2)
    )
    return found


def check(
    layout: Examples, given: list[list[float]], stored: Any, distance: Any, query: Any
) -> None:
    assert layout.count == len(given)
    travelled = msgspec.msgpack.decode(msgspec.msgpack.encode(layout), type=Examples)
    found = travelled.scores(similarities(stored, given, distance))
    assert found.dtype == np.float32
    hits = answer(stored, distance, query)
    np.testing.assert_allclose(found, by_id(hits), rtol=1e-4, atol=1e-5)
    assert hits == sorted(hits, key=lambda hit: -hit.score)


def recommended(layout: Examples, rows: Any, stored: Any, distance: Distance) -> None:
    query = models.RecommendInput(
        positive=rows[: layout.positives],
        negative=rows[layout.positives :],
        strategy=models.RecommendStrategy(layout.scoring.value),
    )
    check(layout, rows, stored, distance, models.RecommendQuery(recommend=query))


@settings(deadline=None, max_examples=200)
@given(points, exact, examples, examples)
def test_recommended_by_the_best_score(
    stored: Any, distance: Distance, positive: Any, negative: Any
) -> None:
    assume(positive or negative)
    layout = Examples(Scoring.BEST_SCORE, len(positive), len(negative))
    recommended(layout, positive + negative, stored, distance)


@settings(deadline=None, max_examples=200)
@given(points, distances, examples, examples)
def test_recommended_by_sums_of_scores(
    stored: Any, distance: Distance, positive: Any, negative: Any
) -> None:
    assume(positive or negative)
    layout = Examples(Scoring.SUM_SCORES, len(positive), len(negative))
    recommended(layout, positive + negative, stored, distance)


def context(given: list[tuple[Any, Any]]) -> list[models.ContextPair]:
    return [models.ContextPair(positive=nearer, negative=farther) for nearer, farther in given]


@settings(deadline=None, max_examples=200)
@given(points, exact, vectors, pairs)
def test_discovered(stored: Any, distance: Distance, target: Any, given: Any) -> None:
    layout = Examples(Scoring.DISCOVER, len(given), len(given))
    rows = [target, *(one for one, _ in given), *(one for _, one in given)]
    query = models.DiscoverInput(target=target, context=context(given))
    check(layout, rows, stored, distance, models.DiscoverQuery(discover=query))


@settings(deadline=None, max_examples=200)
@given(points, distances, pairs.filter(bool))
def test_in_context(stored: Any, distance: Distance, given: Any) -> None:
    layout = Examples(Scoring.CONTEXT, len(given), len(given))
    rows = [*(one for one, _ in given), *(one for _, one in given)]
    check(layout, rows, stored, distance, models.ContextQuery(context=context(given)))


def test_examples_at_an_angle() -> None:
    stored = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.1, 1.0]]
    given = [([1.0, 1.0, 0.0], [0.0, 0.0, 1.0]), ([0.0, 2.0, 0.0], [1.0, 0.0, 0.0])]
    rows = [*(one for one, _ in given), *(one for _, one in given)]
    target = [0.0, 0.0, 1.0]
    query = models.DiscoverInput(target=target, context=context(given))
    check(
        Examples(Scoring.DISCOVER, 2, 2),
        [target, *rows],
        stored,
        Distance.COSINE,
        models.DiscoverQuery(discover=query),
    )
    recommended(Examples(Scoring.BEST_SCORE, 2, 2), rows, stored, Distance.COSINE)


@pytest.mark.parametrize("scoring", list(Scoring))
def test_scores_are_finite_whatever_the_similarities(scoring: Scoring) -> None:
    extremes = [-3.4e38, -1e-45, 0.0, 3.4e38]
    layout = Examples(scoring, 2, 2)
    grid = np.meshgrid(*[np.array(extremes, np.float32)] * layout.count)
    found = layout.scores(np.array(grid).reshape(layout.count, -1))
    assert np.isfinite(found).all()


@settings(deadline=None, max_examples=200)
@given(points, distances, examples.filter(bool), examples)
def test_the_average_of_examples_finds_what_qdrant_finds(
    stored: Any, distance: Distance, positive: Any, negative: Any
) -> None:
    query = models.RecommendQuery(
        recommend=models.RecommendInput(positive=positive, negative=negative)
    )
    rows = [np.array(one, np.float32).reshape(-1, DIMENSION) for one in (positive, negative)]
    found = recommend.average(*map(VectorColumn, rows), multi=False)
    assert found.rows == 1 and found.values.dtype == np.float32
    vector = found.values[0]
    np.testing.assert_allclose(
        by_id(answer(stored, distance, vector.tolist())),
        by_id(answer(stored, distance, query)),
        rtol=1e-4,
        atol=1e-4,
    )


sparse = st.dictionaries(st.integers(0, 6), st.integers(-8, 8).map(float), max_size=4)


def column(parts: list[Any], *, multi: bool) -> VectorColumn:
    """Of sparse vectors, or of several a point."""
    if not multi:
        rows = [
            sparse_vector({"indices": list(one), "values": list(one.values())}) for one in parts
        ]
        empty = ShardConfig(sparse={"": SparseConfig()}).empty("")
    else:
        config = VectorConfig(dimension=DIMENSION, distance=Distance.DOT, multi=True)
        rows = [points_of(one, config) for one in parts]
        empty = ShardConfig(vectors={"": config}).empty("")
    return VectorColumn.concatenate(rows) if rows else empty


@settings(deadline=None, max_examples=200)
@given(st.lists(sparse, min_size=1, max_size=3), st.lists(sparse, max_size=3))
def test_the_average_of_sparse_examples_is_that_of_qdrant(positive: Any, negative: Any) -> None:
    asked = [
        [models.SparseVector(indices=list(one), values=list(one.values())) for one in some]
        for some in (positive, negative)
    ]
    expected = LocalCollection._recommend_average_sparse(*asked)
    found = recommend.average(
        column(positive, multi=False), column(negative, multi=False), multi=False
    )
    indices, values = found.indices, found.values
    assert found.rows == 1 and indices is not None
    assert indices.dtype == np.uint32 and values.dtype == np.float32
    assert indices.tolist() == expected.indices
    np.testing.assert_allclose(values, expected.values, rtol=1e-5, atol=1e-6)


several = st.lists(vectors, min_size=1, max_size=3)


@given(st.lists(several, min_size=1, max_size=3), st.lists(several, max_size=2))
def test_the_average_of_multivectors_is_that_of_qdrant(positive: Any, negative: Any) -> None:
    expected = LocalCollection._recommend_average_multi(positive, negative)
    found = recommend.average(
        column(positive, multi=True), column(negative, multi=True), multi=True
    )
    assert found.rows == 1 and found.values.tolist() == expected
