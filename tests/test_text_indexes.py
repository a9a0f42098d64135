"""Declared text indexes, over the whole way of a request."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from qdrant_client import QdrantClient, models

from tests.shoal_in_process import ShoalInProcess

NAME = "films"
TITLES: list[Any] = ["He runs", ["Run", "away"], "Runner", "Das Boot", ["run-down", "no"]]
STEMMED = models.TextIndexParams(
    type=models.TextIndexType.TEXT,
    tokenizer=models.TokenizerType.WHITESPACE,
    stemmer=models.SnowballParams(
        type=models.Snowball.SNOWBALL, language=models.SnowballLanguage.ENGLISH
    ),
)
IS_RUNNING = models.FieldCondition(key="title", match=models.MatchText(text="running"))
RUNNING = models.Filter(must=[IS_RUNNING])
FOUND = {0, 1}
SPARSE = models.SparseVector(indices=[7], values=[1.0])


@pytest.fixture(scope="module")
def shoal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShoalInProcess]:
    with ShoalInProcess(tmp_path_factory.mktemp("texts"), default_shards=1) as shoal:
        yield shoal


@pytest.fixture(scope="module")
def connected(shoal: ShoalInProcess) -> Iterator[QdrantClient]:
    client = QdrantClient(url=shoal.url)
    client.create_collection(
        NAME,
        {"d": models.VectorParams(size=2, distance=models.Distance.EUCLID)},
        sparse_vectors_config={"s": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        shard_number=3,
    )
    yield client
    client.close()


@pytest.fixture
def client(connected: QdrantClient) -> QdrantClient:
    connected.create_payload_index(NAME, "title", STEMMED, wait=True)
    connected.upsert(NAME, points())
    return connected


def points() -> list[models.PointStruct]:
    return [
        models.PointStruct(id=n, vector={"d": [n, 0.0], "s": SPARSE}, payload={"title": one})
        for n, one in enumerate(TITLES)
    ]


def near(*, filter: models.Filter | None = None) -> models.Prefetch:
    return models.Prefetch(query=[0.0, 0.0], using="d", filter=filter)


def ids(points: Any) -> set[Any]:
    return {point.id for point in points}


def grouped(client: QdrantClient) -> set[Any]:
    groups = client.query_points_groups(
        NAME, "title", query=[0.0, 0.0], using="d", query_filter=RUNNING
    ).groups
    return {hit.id for group in groups for hit in group.hits}


READS: dict[str, Callable[[QdrantClient], set[Any]]] = {
    "scroll": lambda client: ids(client.scroll(NAME, RUNNING)[0]),
    "retrieve in order": lambda client: ids(client.query_points(NAME, query_filter=RUNNING).points),
    "search": lambda client: ids(
        client.query_points(NAME, [0.0, 0.0], using="d", query_filter=RUNNING).points
    ),
    "sparse search": lambda client: ids(
        client.query_points(NAME, SPARSE, using="s", query_filter=RUNNING).points
    ),
    "batch": lambda client: ids(
        client.query_batch_points(
            NAME, [models.QueryRequest(query=[0.0, 0.0], using="d", filter=RUNNING)]
        )[0].points
    ),
    "prefetch": lambda client: ids(
        client.query_points(
            NAME,
            models.FusionQuery(fusion=models.Fusion.RRF),
            prefetch=[near(filter=RUNNING), near(filter=RUNNING)],
        ).points
    ),
    "over prefetches": lambda client: ids(
        client.query_points(
            NAME, [0.0, 0.0], using="d", prefetch=near(), query_filter=RUNNING
        ).points
    ),
    "examples": lambda client: ids(
        client.query_points(
            NAME,
            models.RecommendQuery(
                recommend=models.RecommendInput(
                    positive=[[0.0, 0.0]], strategy=models.RecommendStrategy.BEST_SCORE
                )
            ),
            using="d",
            query_filter=RUNNING,
        ).points
    ),
    "sample": lambda client: ids(
        client.query_points(
            NAME, models.SampleQuery(sample=models.Sample.RANDOM), query_filter=RUNNING
        ).points
    ),
    "groups": grouped,
    "formula": lambda client: {
        point.id
        for point in client.query_points(
            NAME,
            models.FormulaQuery(formula=IS_RUNNING),
            prefetch=near(),
        ).points
        if point.score == 1
    },
    "matrix": lambda client: set(client.search_matrix_offsets(NAME, RUNNING, using="d").ids),
}
"""What finds points, by filters."""


@pytest.mark.parametrize("read", READS)
def test_whatever_reads_by_filter_goes_by_the_index(client: QdrantClient, read: str) -> None:
    assert READS[read](client) == FOUND
    client.delete_payload_index(NAME, "title", wait=True)
    assert READS[read](client) == set()


def test_whatever_counts_by_filter_goes_by_the_index(client: QdrantClient) -> None:
    assert client.count(NAME, RUNNING).count == len(FOUND)
    facets = client.facet(NAME, "title", facet_filter=RUNNING).hits
    assert {hit.value for hit in facets} == {"He runs", "Run", "away"}
    corpus = models.SearchParams(idf=models.IdfCorpusParams(corpus=RUNNING))
    best = client.query_points(NAME, SPARSE, using="s", search_params=corpus).points[0]
    # All of the corpus have the component.
    assert best.score == pytest.approx(math.log(0.5 / (len(FOUND) + 0.5) + 1), rel=1e-5)


def new(n: int) -> models.PointStruct:
    return models.PointStruct(id=n, vector={"d": [9.0, 9.0]}, payload={"seen": True})


def seen(client: QdrantClient) -> set[Any]:
    has = models.Filter(
        must=[models.FieldCondition(key="seen", match=models.MatchValue(value=True))]
    )
    return ids(client.scroll(NAME, has)[0])


def without(client: QdrantClient, empty: Any) -> set[Any]:
    return ids(client.scroll(NAME, models.Filter(must=[empty]))[0])


NO_TITLE = models.IsEmptyCondition(is_empty=models.PayloadField(key="title"))
NO_SPARSE = models.Filter(must_not=[models.HasVectorCondition(has_vector="s")])


def moved(client: QdrantClient) -> set[Any]:
    records = client.scroll(NAME, with_vectors=True)[0]
    return {record.id for record in records if record.vector["d"] == [9.0, 9.0]}  # type: ignore[index, call-overload]


EVERY = range(len(TITLES))
CHANGES: dict[str, tuple[Callable[[QdrantClient], Any], Callable[[QdrantClient], set[Any]]]] = {
    "delete": (
        lambda client: client.delete(NAME, models.FilterSelector(filter=RUNNING)),
        lambda client: set(EVERY) - ids(client.scroll(NAME)[0]),
    ),
    "set payload": (lambda client: client.set_payload(NAME, {"seen": True}, RUNNING), seen),
    "overwrite payload": (
        lambda client: client.overwrite_payload(NAME, {"seen": True}, RUNNING),
        seen,
    ),
    "delete payload": (
        lambda client: client.delete_payload(NAME, ["title"], RUNNING),
        lambda client: without(client, NO_TITLE),
    ),
    "clear payload": (
        lambda client: client.clear_payload(NAME, models.FilterSelector(filter=RUNNING)),
        lambda client: without(client, NO_TITLE),
    ),
    "delete vectors": (
        lambda client: client.delete_vectors(NAME, ["s"], RUNNING),
        lambda client: without(client, NO_SPARSE),
    ),
    "upsert on a condition": (
        lambda client: client.upsert(NAME, [new(n) for n in EVERY], update_filter=RUNNING),
        seen,
    ),
    "update vectors on a condition": (
        lambda client: client.update_vectors(
            NAME,
            [models.PointVectors(id=n, vector={"d": [9.0, 9.0]}) for n in EVERY],
            update_filter=RUNNING,
        ),
        moved,
    ),
    "batch": (
        lambda client: client.batch_update_points(
            NAME,
            [
                models.SetPayloadOperation(
                    set_payload=models.SetPayload(payload={"seen": True}, filter=RUNNING)
                )
            ],
        ),
        seen,
    ),
}
"""What changes points, by filters, and the points that it has changed."""


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_by_filter_goes_by_the_index(client: QdrantClient, change: str) -> None:
    make, changed = CHANGES[change]
    make(client)
    assert changed(client) == FOUND


def test_an_index_that_is_declared_anew_holds_at_once(client: QdrantClient) -> None:
    for tokenizer, found in (("prefix", {0, 1, 2, 4}), ("word", {1, 4}), ("whitespace", {1})):
        index = models.TextIndexParams(type=models.TextIndexType.TEXT, tokenizer=tokenizer)  # type: ignore[arg-type]
        client.create_payload_index(NAME, "title", index, wait=True)
        run = models.FieldCondition(key="title", match=models.MatchText(text="run"))
        assert ids(client.scroll(NAME, models.Filter(must=[run]))[0]) == found


def test_phrases_match_where_they_are_declared_to(client: QdrantClient) -> None:
    phrase = models.Filter(
        must=[models.FieldCondition(key="title", match=models.MatchPhrase(phrase="das boot"))]
    )
    assert client.count(NAME, phrase).count == 0
    index = models.TextIndexParams(type=models.TextIndexType.TEXT, phrase_matching=True)
    client.create_payload_index(NAME, "title", index, wait=True)
    assert ids(client.scroll(NAME, phrase)[0]) == {3}


def test_all_parameters_are_kept_and_told(client: QdrantClient) -> None:
    index = models.TextIndexParams(
        type=models.TextIndexType.TEXT,
        tokenizer=models.TokenizerType.CODE,
        min_token_len=2,
        max_token_len=20,
        lowercase=False,
        ascii_folding=True,
        phrase_matching=True,
        stopwords=models.StopwordsSet(languages=[models.Language.GERMAN], custom=["x"]),
        on_disk=True,
        memory=models.Memory.COLD,
        stemmer=models.SnowballParams(
            type=models.Snowball.SNOWBALL, language=models.SnowballLanguage.GERMAN
        ),
        enable_hnsw=False,
    )
    for one in (index, STEMMED, index.model_copy(update={"stopwords": models.Language.ENGLISH})):
        client.create_payload_index(NAME, "title", one, wait=True)
        assert client.get_collection(NAME).payload_schema["title"].params == one


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"tokenizer": "multilingual"}, "field_schema.tokenizer: `multilingual` is not supported"),
        ({"tokenizer": "letters"}, "field_schema.tokenizer"),
        ({"stopwords": "klingon"}, "field_schema.stopwords: 'klingon' is not supported, expected"),
        ({"stopwords": {"languages": ["english", "x"]}}, "field_schema.stopwords.languages[1]"),
        ({"stopwords": {"custom": ["x" * 20_000]}}, "field_schema.stopwords.custom: expected at m"),
        ({"stemmer": {"type": "porter"}}, "field_schema.stemmer"),
        (
            {"stemmer": {"type": "snowball", "language": "armenian"}},
            "field_schema.stemmer.language: 'armenian' has no stemmer here",
        ),
        ({"min_token_len": -1}, "field_schema.min_token_len"),
        ({"scoring": True}, "field_schema.scoring"),
        ({"nested": "o"}, "field_schema.nested"),
        ({"type": "keyword", "lowercase": True}, "field_schema.lowercase: expected only with the"),
    ],
)
def test_what_an_index_cannot_have_is_told(
    client: QdrantClient, shoal: ShoalInProcess, schema: dict[str, Any], message: str
) -> None:
    answer = httpx.put(
        f"{shoal.url}/collections/{NAME}/index",
        json={"field_name": "title", "field_schema": {"type": "text", **schema}},
    )
    assert 400 <= answer.status_code < 500
    assert message in answer.json()["status"]["error"]


def test_clients_cannot_bring_indexes_of_their_own(
    client: QdrantClient, shoal: ShoalInProcess
) -> None:
    given = {"must": [], "text_indexes": {"title": {"tokenizer": "prefix"}}}
    answer = httpx.post(f"{shoal.url}/collections/{NAME}/points/count", json={"filter": given})
    assert answer.status_code == 400
    assert "text_indexes" in answer.json()["status"]["error"]
