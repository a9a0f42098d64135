"""Shoal over the wire against Qdrant's own in-memory implementation, through Qdrant's client.

Random sequences of operations go to both, and every answer must be the same. Collections are small
enough to be searched exactly, so that scores must agree too. Among points of equal score either
side may pick any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle, pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from qdrant_client import QdrantClient, models

from tests import filters
from tests.shoal_in_process import ShoalInProcess

DIMENSION = 3
TOLERANCE = 2e-5

UUIDS = [UUID(int=number * 0x1234_5678_9ABC_DEF0_1357_9BDF) for number in range(6)]
IDS: list[Any] = [*range(12), 2**32, 2**63, 2**64 - 1, *map(str, UUIDS)]
SPELLINGS = [*IDS, *(uuid.hex for uuid in UUIDS), *(uuid.urn for uuid in UUIDS), *UUIDS]

ids = st.sampled_from(SPELLINGS)
# Steps of a quarter make ties; none is so small that its square leaves float32.
numbers = st.integers(-20, 20).map(lambda quarters: quarters / 4)
vectors = st.lists(numbers, min_size=DIMENSION, max_size=DIMENSION)
keys = st.sampled_from(["a", "b", "c", "a.b", "é", ""])
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(keys, below, max_size=3),
    max_leaves=6,
)
# Of the form that the paths below go into.
inner = st.dictionaries(keys, values, min_size=1, max_size=2)
branches = inner | st.lists(inner | values, min_size=1, max_size=2)
payloads = (
    st.none()
    | st.dictionaries(keys, values, max_size=3)
    | st.dictionaries(keys, branches | st.dictionaries(keys, branches), min_size=1, max_size=3)
    | filters.payloads
)
paths = st.lists(
    st.sampled_from(["a", "b", "a.b", "a.b.c", "b[].a", "c[]", "c[0]", '"a.b"', "b[].b[].c"]),
    max_size=3,
)
selectors = (
    st.booleans()
    | paths
    | paths.map(lambda given: models.PayloadSelectorInclude(include=given))
    | paths.map(lambda given: models.PayloadSelectorExclude(exclude=given))
)
limits = st.integers(1, 30)
offsets = st.none() | st.integers(0, 8)
queries = vectors | ids


class Differential(RuleBasedStateMachine):
    """One collection, held by Shoal and by the oracle."""

    shoal: QdrantClient
    distance: models.Distance
    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.name = f"differential-{self.distance.value}-{self.made}"
        self.oracle = QdrantClient(":memory:")
        self.both = (self.shoal, self.oracle)
        for client in self.both:
            client.create_collection(
                self.name,
                vectors_config=models.VectorParams(size=DIMENSION, distance=self.distance),
            )

    def teardown(self) -> None:
        self.shoal.delete_collection(self.name)
        self.oracle.close()

    def ask_both(self, operation: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        ours, theirs = (
            getattr(client, operation)(self.name, *args, **kwargs) for client in self.both
        )
        return ours, theirs

    @rule(
        points=st.lists(
            st.builds(models.PointStruct, id=ids, vector=vectors, payload=payloads),
            min_size=1,
            max_size=10,
        )
    )
    def upsert(self, points: list[models.PointStruct]) -> None:
        for client in self.both:
            result = client.upsert(self.name, points, wait=True)
            assert result.status == models.UpdateStatus.COMPLETED

    @rule(
        rows=st.lists(st.tuples(ids, vectors, payloads), min_size=1, max_size=10),
        with_payloads=st.booleans(),
    )
    def upsert_batch(self, rows: list[tuple[Any, list[float], Any]], with_payloads: bool) -> None:
        given, numbers, carried = zip(*rows, strict=True)
        batch = models.Batch(
            ids=list(given),
            vectors=list(numbers),
            payloads=[one or {} for one in carried] if with_payloads else None,
        )
        for client in self.both:
            client.upsert(self.name, batch, wait=True)

    @rule(given=st.lists(ids, min_size=1, max_size=5))
    def delete(self, given: list[Any]) -> None:
        for client in self.both:
            result = client.delete(self.name, models.PointIdsList(points=given), wait=True)
            assert result.status == models.UpdateStatus.COMPLETED

    @rule(
        which=st.lists(ids, min_size=1, max_size=5) | filters.filters,
        payload=payloads.filter(lambda one: one is not None),
        key=st.none()
        | st.sampled_from(["a", "b.a", "c[]", "c[0].b", "b[].a", '"a.b"', "o.a", "n"]),
        overwrite=st.booleans(),
    )
    def set_payload(self, which: Any, payload: Any, key: str | None, overwrite: bool) -> None:
        if (selector := self.existing(which)) is None:
            return
        for client in self.both:
            if overwrite:
                client.overwrite_payload(self.name, payload, selector, wait=True)
            else:
                client.set_payload(self.name, payload, selector, key=key, wait=True)

    @rule(
        which=st.lists(ids, min_size=1, max_size=5) | filters.filters,
        keys=st.lists(
            st.sampled_from(["a", "b", "a.b", "b[].a", "c[]", "c[0]", "n", "o[1].a"]),
            min_size=1,
            max_size=3,
        ),
        clear=st.booleans(),
    )
    def delete_payload(self, which: Any, keys: list[str], clear: bool) -> None:
        if (selector := self.existing(which)) is None:
            return
        for client in self.both:
            if clear:
                client.clear_payload(self.name, selector, wait=True)
            else:
                client.delete_payload(self.name, keys, selector, wait=True)

    def existing(self, which: Any) -> Any:
        """What is selected, if it is there; some points that are not there are an error."""
        if isinstance(which, models.Filter):
            return models.FilterSelector(filter=which)
        there = [one for one in which if self.oracle.retrieve(self.name, [one])]
        return there or None

    @invariant()
    def same_payloads(self) -> None:
        (ours, _), (theirs, _) = self.ask_both("scroll", limit=100)
        assert_same_records(ours, theirs)

    @rule(filter=filters.filters)
    def delete_matching(self, filter: models.Filter) -> None:
        matching = self.oracle.count(self.name, count_filter=filter).count
        if 2 * matching > self.oracle.count(self.name).count:
            return  # Lest there be nothing left for the others.
        for client in self.both:
            client.delete(self.name, models.FilterSelector(filter=filter), wait=True)

    @rule(filter=filters.filters, limit=st.integers(1, 7), to=vectors, offset=offsets)
    def match(self, filter: models.Filter, limit: int, to: list[float], offset: int | None) -> None:
        ours, theirs = self.ask_both("count", count_filter=filter)
        assert ours.count == theirs.count
        (ours, _), (theirs, _) = self.ask_both("scroll", scroll_filter=filter, limit=limit)
        assert_same_records(ours, theirs)
        (theirs, _) = self.oracle.scroll(self.name, scroll_filter=filter, limit=100)
        matching = {record.id for record in theirs}
        ours, theirs = self.ask_both(
            "query_points", to, query_filter=filter, limit=limit, offset=offset
        )
        assert [hit.score for hit in ours.points] == pytest.approx(
            [hit.score for hit in theirs.points], rel=TOLERANCE, abs=TOLERANCE
        )
        assert {hit.id for hit in ours.points} <= matching
        ours, theirs = self.ask_both("query_points", query_filter=filter, limit=limit)
        assert_same_records(ours.points, theirs.points)

    @rule(given=st.lists(ids, max_size=8), selector=selectors, with_vectors=st.booleans())
    def retrieve(self, given: list[Any], selector: Any, with_vectors: bool) -> None:
        ours, theirs = self.ask_both(
            "retrieve", given, with_payload=selector, with_vectors=with_vectors
        )
        assert_same_records(ours, theirs)

    @rule(
        limit=st.integers(1, 7),
        offset=st.none() | ids,
        selector=selectors,
        with_vectors=st.booleans(),
    )
    def scroll(self, limit: int, offset: Any, selector: Any, with_vectors: bool) -> None:
        while True:
            (ours, our_next), (theirs, their_next) = self.ask_both(
                "scroll",
                limit=limit,
                offset=offset,
                with_payload=selector,
                with_vectors=with_vectors,
            )
            assert_same_records(ours, theirs)
            assert our_next == their_next
            if our_next is None:
                return
            offset = our_next

    @rule(
        to=queries,
        limit=limits,
        offset=offsets,
        selector=selectors,
        with_vectors=st.booleans(),
        cut=st.none() | st.integers(0, 10),
        wrapped=st.booleans(),
    )
    def query(
        self,
        to: Any,
        limit: int,
        offset: int | None,
        selector: Any,
        with_vectors: bool,
        cut: int | None,
        wrapped: bool,
    ) -> None:
        ranking = self.rank(to)
        if ranking is None:
            with pytest.raises(Exception, match=r"No point with id .* found"):
                self.shoal.query_points(self.name, to)
            return
        threshold = None if cut is None else self.between(ranking, cut)
        ours, theirs = self.ask_both(
            "query_points",
            models.NearestQuery(nearest=to) if wrapped else to,
            limit=limit,
            offset=offset,
            score_threshold=threshold,
            with_payload=selector,
            with_vectors=with_vectors,
            search_params=models.SearchParams(exact=True),
        )
        self.assert_same_hits(ours.points, theirs.points, ranking, selector, with_vectors)

    @rule(
        to=vectors,
        limit=st.integers(1, 8),
        candidates=st.none() | st.integers(1, 20),
        diversity=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
        with_vectors=st.booleans(),
    )
    def query_diverse(
        self,
        to: list[float],
        limit: int,
        candidates: int | None,
        diversity: float,
        with_vectors: bool,
    ) -> None:
        mmr = models.Mmr(diversity=diversity, candidates_limit=candidates)
        ours, theirs = self.ask_both(
            "query_points",
            models.NearestQuery(nearest=to, mmr=mmr),
            limit=limit,
            with_vectors=with_vectors,
        )
        assert len(ours.points) == len(theirs.points)
        # Ties are picked in either way, and so is all that follows: the first is the nearest.
        if ours.points:
            first, other = ours.points[0], theirs.points[0]
            assert first.score == pytest.approx(other.score, rel=TOLERANCE, abs=TOLERANCE)
            assert (first.vector is None) == (other.vector is None)

    @rule(limit=limits, offset=offsets, selector=selectors)
    def query_nothing(self, limit: int, offset: int | None, selector: Any) -> None:
        ours, theirs = self.ask_both(
            "query_points", limit=limit, offset=offset, with_payload=selector
        )
        assert_same_records(ours.points, theirs.points)

    @rule(
        asked=st.lists(queries, min_size=1, max_size=6),
        shapes=st.lists(st.tuples(limits, offsets, selectors), min_size=1, max_size=2),
    )
    def query_batch(self, asked: list[Any], shapes: list[tuple[int, int | None, Any]]) -> None:
        ranked = [(to, ranking) for to in asked if (ranking := self.rank(to)) is not None]
        if not ranked:
            return
        requests = [
            models.QueryRequest(query=to, limit=limit, offset=offset, with_payload=selector)
            for (to, _), (limit, offset, selector) in zip(ranked, cycle(shapes), strict=False)
        ]
        ours, theirs = self.ask_both("query_batch_points", requests)
        assert len(ours) == len(requests)
        for our, their, request, (_, ranking) in zip(ours, theirs, requests, ranked, strict=True):
            self.assert_same_hits(our.points, their.points, ranking, request.with_payload, False)

    @invariant()
    def same_count(self) -> None:
        ours, theirs = self.ask_both("count")
        assert ours.count == theirs.count

    def rank(self, to: Any) -> dict[Any, models.ScoredPoint] | None:
        """Every point by id as the oracle scores it; None when ``to`` is no point of it."""
        if not isinstance(to, list) and not self.oracle.retrieve(self.name, [to]):
            return None
        hits = self.oracle.query_points(self.name, to, limit=100, with_vectors=True).points
        return {hit.id: hit for hit in hits}

    @staticmethod
    def between(ranking: dict[Any, models.ScoredPoint], cut: int) -> float | None:
        """A threshold that no score is near, after the first ``cut`` points or so."""
        scores = sorted((hit.score for hit in ranking.values()), reverse=True)
        for high, low in list(pairwise(scores))[cut:]:
            if high - low > 100 * TOLERANCE:
                return (high + low) / 2
        return None

    def assert_same_hits(
        self,
        ours: list[models.ScoredPoint],
        theirs: list[models.ScoredPoint],
        ranking: dict[Any, models.ScoredPoint],
        selector: Any,
        with_vectors: bool,
    ) -> None:
        assert [hit.score for hit in ours] == pytest.approx(
            [hit.score for hit in theirs], rel=TOLERANCE, abs=TOLERANCE
        )
        found = [hit.id for hit in ours]
        assert len(set(found)) == len(found)
        expected = self.oracle.retrieve(
            self.name, found, with_payload=selector, with_vectors=with_vectors
        )
        assert_same_records(ours, expected)
        for hit in ours:
            assert hit.score == pytest.approx(ranking[hit.id].score, rel=TOLERANCE, abs=TOLERANCE)


def assert_same_records(ours: list[Any], theirs: list[Any]) -> None:
    assert [record.id for record in ours] == [record.id for record in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert same_json(our.payload, their.payload), (our.payload, their.payload)
        if their.vector is None:
            assert our.vector is None
        else:
            assert our.vector == pytest.approx(their.vector, rel=1e-6, abs=1e-6)


def same_json(one: Any, other: Any) -> bool:
    """Equality that tells 1 from True and 0.0 from -0.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return one == other and math.copysign(1, one) == math.copysign(1, other)
    return type(one) is type(other) and bool(one == other)


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantClient]:
    with ShoalInProcess(tmp_path_factory.mktemp("shoal"), default_shards=3) as running:
        client = QdrantClient(url=running.url, timeout=30)
        yield client
        client.close()


@pytest.mark.filterwarnings("ignore:Local mode performs exact")
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("distance", list(models.Distance))
def test_same_answers_as_the_oracle(shoal: QdrantClient, distance: models.Distance) -> None:
    run_state_machine_as_test(
        type("Machine", (Differential,), {"shoal": shoal, "distance": distance}),
        settings=settings(
            max_examples=8,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            # Shrinking a sequence takes minutes; the steps that failed are printed as they were.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
