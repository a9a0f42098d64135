"""Named, sparse and several vectors, and queries on queries, against Qdrant's own implementation.

As `tests.test_differential`: what is asked of both must be answered alike, whatever the shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from qdrant_client import QdrantClient, models

from tests import filters
from tests.shoal_in_process import ShoalInProcess

TOLERANCE = 3e-5
DENSE = {"text": (3, models.Distance.COSINE), "image": (2, models.Distance.EUCLID)}
MULTI = {"tokens": (2, models.Distance.DOT), "patches": (2, models.Distance.MANHATTAN)}
SPARSE = {"words": None, "bm25": models.Modifier.IDF}
NAMES = [*DENSE, *MULTI, *SPARSE]

ids = st.integers(0, 15)
numbers = st.integers(-20, 20).map(lambda quarters: quarters / 4)


def dense(dimension: int) -> st.SearchStrategy[list[float]]:
    return st.lists(numbers, min_size=dimension, max_size=dimension)


sparse = st.dictionaries(st.sampled_from([0, 1, 2, 3, 7, 2**32 - 1]), numbers, max_size=5).map(
    lambda given: models.SparseVector(indices=list(given), values=list(given.values()))
)
VECTORS: dict[str, st.SearchStrategy[Any]] = {
    **{name: dense(dimension) for name, (dimension, _) in DENSE.items()},
    **{
        name: st.lists(dense(dimension), min_size=1, max_size=3)
        for name, (dimension, _) in MULTI.items()
    },
    **dict.fromkeys(SPARSE, sparse),
}
vectors = st.fixed_dictionaries({}, optional=VECTORS)
points = st.builds(models.PointStruct, id=ids, vector=vectors, payload=filters.payloads)
conditions = st.none() | filters.filters
limits = st.integers(1, 20)


@st.composite
def inputs(draw: st.DrawFn, using: str) -> Any:
    return draw(st.one_of(VECTORS[using], ids))


@st.composite
def leaves(draw: st.DrawFn) -> dict[str, Any]:
    """A query by vectors: what to ask, and of which vectors."""
    using = draw(st.sampled_from(NAMES))
    some = st.lists(inputs(using), max_size=3)
    pairs = st.lists(
        st.builds(models.ContextPair, positive=inputs(using), negative=inputs(using)),
        min_size=1,
        max_size=3,
    )
    positive = draw(some)
    negative = draw(some)
    if not positive:
        positive = [draw(inputs(using))]
    strategy = draw(st.sampled_from(list(models.RecommendStrategy)))
    query = draw(
        st.one_of(
            inputs(using).map(lambda one: models.NearestQuery(nearest=one)),
            st.just(
                models.RecommendQuery(
                    recommend=models.RecommendInput(
                        positive=positive, negative=negative, strategy=strategy
                    )
                )
            ),
            st.builds(
                lambda target, context: models.DiscoverQuery(
                    discover=models.DiscoverInput(target=target, context=context)
                ),
                inputs(using),
                pairs,
            ),
            pairs.map(lambda context: models.ContextQuery(context=context)),
        )
    )
    return {"query": query, "using": using}


@st.composite
def prefetches(draw: st.DrawFn) -> models.Prefetch:
    return models.Prefetch(
        **draw(leaves()), filter=draw(conditions), limit=draw(st.integers(20, 40))
    )


class QueryDifferential(RuleBasedStateMachine):
    """One collection with vectors of all kinds, held by Shoal and by the oracle."""

    shoal: QdrantClient
    shards: int
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.name = f"query-differential-{self.shards}-{self.made}"
        self.oracle = QdrantClient(":memory:")
        self.both = (self.shoal, self.oracle)
        several = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        for client in self.both:
            client.create_collection(
                self.name,
                vectors_config={
                    **{
                        name: models.VectorParams(size=size, distance=distance)
                        for name, (size, distance) in DENSE.items()
                    },
                    **{
                        name: models.VectorParams(
                            size=size, distance=distance, multivector_config=several
                        )
                        for name, (size, distance) in MULTI.items()
                    },
                },
                sparse_vectors_config={
                    name: models.SparseVectorParams(modifier=modifier)
                    for name, modifier in SPARSE.items()
                },
                shard_number=self.shards,
            )
        self.upsert([models.PointStruct(id=0, vector={})])

    def teardown(self) -> None:
        self.shoal.delete_collection(self.name)
        self.oracle.close()

    def ask_both(self, operation: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """What both answer; what one refuses the other must refuse as well."""
        answers: list[Any] = []
        for client in self.both:
            try:
                answers.append(getattr(client, operation)(self.name, *args, **kwargs))
            except Exception as error:
                answers.append(error)
        ours, theirs = answers
        assert isinstance(ours, Exception) == isinstance(theirs, Exception), answers
        return ours, theirs

    @rule(given=st.lists(points, min_size=1, max_size=8))
    def upsert(self, given: list[models.PointStruct]) -> None:
        for client in self.both:
            client.upsert(self.name, given, wait=True)

    @rule(
        given=st.lists(points, min_size=1, max_size=6),
        condition=conditions,
        mode=st.sampled_from([None, *models.UpdateMode]),
    )
    def upsert_if(self, given: list[Any], condition: Any, mode: Any) -> None:
        distinct = list({point.id: point for point in given}.values())
        self.ask_both("upsert", distinct, wait=True, update_filter=condition, update_mode=mode)

    @rule(given=st.lists(ids, min_size=1, max_size=3))
    def delete(self, given: list[int]) -> None:
        for client in self.both:
            client.delete(self.name, models.PointIdsList(points=[*given]), wait=True)

    @rule(
        given=st.dictionaries(
            ids,
            st.sampled_from(NAMES).flatmap(
                lambda name: VECTORS[name].map(lambda vector: {name: vector})
            ),
            min_size=1,
            max_size=4,
        ),
        condition=conditions,
    )
    def update_vectors(self, given: dict[int, Any], condition: Any) -> None:
        updates = [models.PointVectors(id=one, vector=vector) for one, vector in given.items()]
        self.ask_both("update_vectors", updates, wait=True, update_filter=condition)

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3),
        which=st.lists(ids, min_size=1, max_size=4) | filters.filters,
    )
    def delete_vectors(self, names: list[str], which: Any) -> None:
        selector = (
            models.FilterSelector(filter=which) if isinstance(which, models.Filter) else which
        )
        self.ask_both("delete_vectors", names, selector, wait=True)

    @rule(
        first=st.lists(points, min_size=1, max_size=3),
        gone=st.lists(ids, min_size=1, max_size=2),
        payload=filters.payloads.filter(bool),
    )
    def batch_update(self, first: list[Any], gone: list[int], payload: Any) -> None:
        operations = [
            models.UpsertOperation(upsert=models.PointsList(points=first)),
            models.SetPayloadOperation(
                set_payload=models.SetPayload(payload=payload, points=[first[0].id])
            ),
            models.DeleteOperation(delete=models.PointIdsList(points=[*gone])),
        ]
        self.ask_both("batch_update_points", operations, wait=True)

    @invariant()
    def same_points(self) -> None:
        (ours, _), (theirs, _) = self.ask_both("scroll", limit=100, with_vectors=True)
        assert [one.id for one in ours] == [one.id for one in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert_same_vectors(our.vector, their.vector)

    @rule(
        name=st.sampled_from(NAMES), wanted=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)
    )
    def has_vector(self, name: str, wanted: list[str]) -> None:
        condition = models.Filter(must=[models.HasVectorCondition(has_vector=name)])
        (ours, _), (theirs, _) = self.ask_both(
            "scroll", scroll_filter=condition, limit=100, with_vectors=wanted
        )
        assert [one.id for one in ours] == [one.id for one in theirs]
        for our, their in zip(ours, theirs, strict=True):
            assert_same_vectors(our.vector, their.vector)

    @rule(asked=leaves(), condition=conditions, limit=limits, offset=st.integers(0, 3))
    def query(self, asked: dict[str, Any], condition: Any, limit: int, offset: int) -> None:
        ours, theirs = self.ask_both(
            "query_points", **asked, query_filter=condition, limit=limit, offset=offset
        )
        if not isinstance(ours, Exception):
            assert_same_ranking(ours.points, theirs.points)

    @rule(
        asked=leaves(),
        prefetch=st.lists(prefetches(), min_size=1, max_size=3),
        condition=conditions,
        limit=limits,
    )
    def rescore(self, asked: dict[str, Any], prefetch: Any, condition: Any, limit: int) -> None:
        ours, theirs = self.ask_both(
            "query_points", **asked, prefetch=prefetch, query_filter=condition, limit=limit
        )
        if not isinstance(ours, Exception):
            assert_same_ranking(ours.points, theirs.points)

    @rule(
        prefetch=st.lists(prefetches(), min_size=1, max_size=3),
        fusion=st.sampled_from(["rrf", "dbsf", "k"]),
        weights=st.none() | st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=3, max_size=3),
        k=st.none() | st.integers(1, 60),
        condition=conditions,
        limit=limits,
        offset=st.integers(0, 3),
        nested=st.booleans(),
    )
    def fuse(
        self,
        prefetch: list[models.Prefetch],
        fusion: str,
        weights: Any,
        k: int | None,
        condition: Any,
        limit: int,
        offset: int,
        nested: bool,
    ) -> None:
        prefetch = [one for one in prefetch if not self.has_ties(one, condition)]
        if not prefetch:
            return
        query: Any
        if fusion != "k":
            query = models.FusionQuery(fusion=models.Fusion(fusion))
        else:
            given = weights and weights[: len(prefetch)]
            query = models.RrfQuery(rrf=models.Rrf(k=k, weights=given))
        if nested:
            prefetch = [models.Prefetch(query=query, prefetch=prefetch, limit=100)]
            query = models.FusionQuery(fusion=models.Fusion.RRF)
        ours, theirs = self.ask_both(
            "query_points",
            query,
            prefetch=prefetch,
            query_filter=condition,
            limit=limit,
            offset=offset,
        )
        if not isinstance(ours, Exception) and not nested:
            assert_same_ranking(ours.points, theirs.points)

    def has_ties(self, prefetch: models.Prefetch, condition: Any) -> bool:
        """Whether ranks depend on which of equals comes first, or on who is left out."""
        try:
            hits = self.oracle.query_points(
                self.name,
                prefetch.query,
                using=prefetch.using,
                query_filter=_both(condition, prefetch.filter),
                limit=100,
            ).points
        except Exception:
            return False
        scores = sorted(hit.score for hit in hits)
        close = any(high - low < 100 * TOLERANCE for low, high in pairwise(scores))
        return close or len(hits) > (prefetch.limit or 10)

    @rule(
        prefetch=prefetches(),
        condition=conditions,
        limit=limits,
        weight=st.sampled_from([0.5, -1.0, 2.0]),
    )
    def rescore_by_formula(self, prefetch: Any, condition: Any, limit: int, weight: float) -> None:
        formula = models.FormulaQuery(
            formula=models.SumExpression(
                sum=[
                    models.MultExpression(mult=[weight, "$score"]),
                    models.MultExpression(mult=[0.25, "n"]),
                    models.FieldCondition(key="b", match=models.MatchValue(value=True)),
                    models.HasVectorCondition(has_vector="text"),
                ]
            ),
            defaults={"n": 0.5},
        )
        if self.has_ties(prefetch, condition):
            return
        ours, theirs = self.ask_both(
            "query_points", formula, prefetch=prefetch, query_filter=condition, limit=limit
        )
        if not isinstance(ours, Exception):
            assert_same_ranking(ours.points, theirs.points)

    @rule(
        key=st.sampled_from(["n", "a", "o.a", "missing", "b"]),
        direction=st.sampled_from([None, *models.Direction]),
        start=st.none() | st.sampled_from([0, 1.5, "2024-01-01T00:00:00Z"]),
        condition=conditions,
        limit=limits,
    )
    def in_order(self, key: str, direction: Any, start: Any, condition: Any, limit: int) -> None:
        order = models.OrderBy(key=key, direction=direction, start_from=start)
        ours, theirs = self.ask_both("scroll", scroll_filter=condition, order_by=order, limit=limit)
        assert isinstance(ours, Exception) == isinstance(theirs, Exception)
        if not isinstance(ours, Exception):
            assert [(one.id, one.order_value) for one in ours[0]] == [
                (one.id, one.order_value) for one in theirs[0]
            ]
        ours, theirs = self.ask_both(
            "query_points",
            models.OrderByQuery(order_by=order),
            query_filter=condition,
            limit=limit,
        )
        if not isinstance(ours, Exception):
            assert [(one.id, one.order_value, one.score) for one in ours.points] == [
                (one.id, one.order_value, one.score) for one in theirs.points
            ]

    @rule(condition=conditions, limit=limits)
    def sample(self, condition: Any, limit: int) -> None:
        query = models.SampleQuery(sample=models.Sample.RANDOM)
        ours, theirs = self.ask_both("query_points", query, query_filter=condition, limit=limit)
        assert len(ours.points) == len(theirs.points)
        (everything, _) = self.oracle.scroll(self.name, condition, limit=100)
        found = [one.id for one in ours.points]
        assert len(set(found)) == len(found)
        assert set(found) <= {one.id for one in everything}

    @rule(
        key=st.sampled_from(["a", "b", "n", "o.a", "o[].b", "missing"]),
        condition=conditions,
        limit=st.integers(1, 5),
    )
    def facet(self, key: str, condition: Any, limit: int) -> None:
        ours, theirs = self.ask_both("facet", key, facet_filter=condition, limit=limit, exact=True)
        assert [(type(one.value), one.value, one.count) for one in ours.hits] == [
            (type(one.value), one.value, one.count) for one in theirs.hits
        ]

    @rule(
        asked=leaves(),
        key=st.sampled_from(["a", "b", "n", "o.a"]),
        condition=conditions,
        limit=st.integers(1, 4),
        size=st.integers(1, 3),
    )
    def group(self, asked: dict[str, Any], key: str, condition: Any, limit: int, size: int) -> None:
        everything = models.Prefetch(**asked, filter=condition, limit=100)
        if self.has_ties(everything, None):
            return
        ours, theirs = self.ask_both(
            "query_points_groups",
            key,
            **asked,
            query_filter=condition,
            limit=limit,
            group_size=size,
        )
        if not isinstance(ours, Exception):
            assert [(one.id, [hit.id for hit in one.hits]) for one in ours.groups] == [
                (one.id, [hit.id for hit in one.hits]) for one in theirs.groups
            ]

    @rule(using=st.sampled_from(NAMES), condition=conditions, limit=st.integers(1, 4))
    def matrix(self, using: str, condition: Any, limit: int) -> None:
        ours, theirs = self.ask_both(
            "search_matrix_pairs", condition, using=using, limit=limit, sample=100
        )
        if isinstance(ours, Exception):
            return
        mine, others = (
            sorted((pair.a, round(pair.score, 3)) for pair in found.pairs)
            for found in (ours, theirs)
        )
        assert [one for one, _ in mine] == [one for one, _ in others]
        assert [score for _, score in mine] == pytest.approx(
            [score for _, score in others], rel=1e-3, abs=2e-3
        )


def _both(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    return models.Filter(must=[one, other])


def assert_same_vectors(ours: Any, theirs: Any) -> None:
    if not isinstance(theirs, dict):
        assert ours == theirs
        return
    assert ours.keys() == theirs.keys()
    for name, vector in theirs.items():
        mine = ours[name]
        if isinstance(vector, models.SparseVector):
            mine = dict(zip(mine.indices, mine.values, strict=True))
            vector = dict(zip(vector.indices, vector.values, strict=True))
            assert mine == pytest.approx(vector, rel=1e-6)
        elif isinstance(vector[0], list):
            for one, other in zip(mine, vector, strict=True):
                assert one == pytest.approx(other, rel=1e-6, abs=1e-6)
        else:
            assert mine == pytest.approx(vector, rel=1e-6, abs=1e-6)


def assert_same_ranking(ours: list[Any], theirs: list[Any]) -> None:
    """Of equal scores either side may take any; where scores differ, so must points."""
    assert [one.score for one in ours] == pytest.approx(
        [one.score for one in theirs], rel=TOLERANCE, abs=TOLERANCE
    )
    last = theirs[-1].score if theirs else 0
    sure = {one.id for one in theirs if abs(one.score - last) > 100 * TOLERANCE}
    assert sure <= {one.id for one in ours}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path_factory.mktemp("shoal"), default_shards=3) as running:
        yield running


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize(("shards", "by_grpc"), [(1, False), (3, False), (3, True)])
def test_same_answers_as_the_oracle(running: ShoalInProcess, shards: int, by_grpc: bool) -> None:
    client = QdrantClient(
        url=running.url, grpc_port=running.grpc_port, prefer_grpc=by_grpc, timeout=30
    )
    run_state_machine_as_test(
        type("Machine", (QueryDifferential,), {"shoal": client, "shards": shards}),
        settings=settings(
            max_examples=10,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    client.close()
