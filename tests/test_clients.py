"""Clients that people have already, as they are: the vector stores of LangChain, LlamaIndex and
Haystack, and texts that the official client leaves to the server to embed.

All of them store the same few texts, and what they find is compared with a score for every text
that is worked out here. Embeddings are made of the words' checksums: nothing is downloaded, and a
connection beyond this machine fails the test.
"""

from __future__ import annotations

import inspect
import os
import socket
import uuid
import zlib
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from itertools import chain
from math import log, sqrt
from typing import Any, TypeAlias
from uuid import UUID

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"  # Read when it is imported.
import mmh3
import numpy as np
import pytest
from haystack import Document
from haystack.dataclasses import SparseEmbedding
from haystack.document_stores.errors import DuplicateDocumentError
from haystack.document_stores.types import DuplicatePolicy
from haystack_integrations.components.retrievers.qdrant import (
    QdrantEmbeddingRetriever,
    QdrantHybridRetriever,
    QdrantSparseEmbeddingRetriever,
)
from haystack_integrations.document_stores.qdrant import (
    QdrantDocumentStore,
    migrate_to_sparse_embeddings_support,
)
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode, SparseEmbeddings
from langchain_qdrant.sparse_embeddings import SparseVector
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import AsyncQdrantClient, QdrantClient, models

from tests.shoal_in_process import ShoalInProcess

DIMENSION = 16
SHARDS = 3
RRF_K = 2
WORDS = (
    *("amber", "basalt", "cedar", "delta", "ember", "fern", "fjord", "garnet", "heron", "island"),
    *("kelp", "lagoon", "meadow", "moss", "nectar", "otter", "quartz", "raven", "sand", "tundra"),
    *("umber", "violet", "willow", "yarrow"),
)
"""All of them their own stems, and no stopword."""
COLOURS = ("red", "green", "blue")


def _texts(count: int) -> list[str]:
    random = np.random.default_rng(7)
    return [" ".join(random.choice(WORDS, random.integers(4, 12))) for _ in range(count)]


TEXTS = _texts(60)
QUERY = "heron lagoon amber quartz willow"
IDS = [str(UUID(int=1_000 + number)) for number in range(len(TEXTS))]
PLACES = {id: place for place, id in enumerate(IDS)}
METADATA: list[dict[str, Any]] = [
    {"colour": COLOURS[number % 3], "number": number} for number in range(len(TEXTS))
]

Scores: TypeAlias = dict[int, float]
"""Of texts, by their place in `TEXTS`."""


# Embeddings, and what is nearest by them


def dense(text: str) -> list[float]:
    words = [np.random.default_rng(zlib.crc32(word.encode())) for word in text.split()]
    vector = np.sum([word.normal(size=DIMENSION) for word in words], axis=0)
    return [float(one) for one in vector.astype(np.float32)]


def sparse(text: str) -> tuple[list[int], list[float]]:
    """Indices and values. No two texts have the same value for a word."""
    scale = 1 + zlib.crc32(text.encode()) % 1_000 / 1_000
    counts = Counter(text.split())
    indices = [zlib.crc32(word.encode()) for word in counts]
    return indices, [float(np.float32(sqrt(count) * scale)) for count in counts.values()]


def weights(text: str) -> dict[int, float]:
    """Its sparse embedding, by index."""
    return dict(zip(*sparse(text), strict=True))


def dense_scores(query: str, places: Sequence[int] = range(len(TEXTS))) -> Scores:
    """Cosines."""
    asked = np.array(dense(query))
    found = {place: np.array(dense(TEXTS[place])) for place in places}
    return {
        place: float(asked @ one / np.linalg.norm(asked) / np.linalg.norm(one))
        for place, one in found.items()
    }


def sparse_scores(query: str, places: Sequence[int] = range(len(TEXTS))) -> Scores:
    """Products, of the texts that share a word with the query."""
    asked = weights(query)
    scores = {}
    for place in places:
        stored = weights(TEXTS[place])
        if shared := asked.keys() & stored.keys():
            scores[place] = sum(asked[index] * stored[index] for index in shared)
    return scores


def best(scores: Scores, limit: int) -> list[int]:
    return sorted(scores, key=lambda place: -scores[place])[:limit]


def fused(
    rankings: Sequence[Sequence[int]], k: int = RRF_K, weights: Sequence[float] = (1, 1)
) -> Scores:
    """By reciprocal ranks."""
    scores: Scores = defaultdict(float)
    for ranking, weight in zip(rankings, weights, strict=True):
        for rank, place in enumerate(ranking, start=1):
            scores[place] += 1 / (rank / weight + k - 1)
    return scores


def assert_nearest(found: Sequence[tuple[int, float]], scores: Scores, limit: int) -> None:
    """``found`` are the best of ``scores``; of equals any may be there, in any order."""
    assert len({place for place, _ in found}) == len(found)
    for place, score in found:
        assert score == pytest.approx(scores[place], abs=1e-4)
    expected = sorted(scores.values(), reverse=True)[:limit]
    assert [score for _, score in found] == pytest.approx(expected, abs=1e-4)
    assert expected, "nothing to find"


# Shoal


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    connect = socket.socket.connect
    refused: list[Any] = []

    def checked(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            refused.append(address)
            raise ConnectionRefusedError(f"{address} is beyond this machine")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", checked)
    yield
    assert not refused


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ShoalInProcess(tmp_path_factory.mktemp("shoal"), default_shards=SHARDS) as shoal:
        yield shoal.url


@pytest.fixture(params=["sync", "async"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "async")


@pytest.fixture
def collection(url: str) -> Iterator[str]:
    """The name of no collection yet."""
    name = f"clients-{uuid.uuid4().hex}"
    yield name
    client = QdrantClient(url=url, timeout=30)
    client.delete_collection(name)
    client.close()


async def done(answer: Any) -> Any:
    """What either kind of API answers in the end."""
    return await answer if inspect.isawaitable(answer) else answer


# LangChain


class DenseEmbeddings(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [dense(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return dense(text)


class CountEmbeddings(SparseEmbeddings):
    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> SparseVector:
        indices, values = sparse(text)
        return SparseVector(indices=indices, values=values)


class LangChain:
    """A store of all texts, by whichever of its APIs."""

    def __init__(self, url: str, collection: str, mode: RetrievalMode, is_async: bool) -> None:
        self.mode = mode
        self.collection = collection
        self._url = url
        self._prefix = "a" if is_async else ""
        self._store: LangChainStore

    async def make(self) -> None:
        self._store = await self.call(
            "from_texts", TEXTS, metadatas=METADATA, ids=IDS, of=LangChainStore, **self.options
        )

    @property
    def options(self) -> dict[str, Any]:
        return {
            "url": self._url,
            "collection_name": self.collection,
            "retrieval_mode": self.mode,
            "embedding": None if self.mode is RetrievalMode.SPARSE else DenseEmbeddings(),
            "sparse_embedding": None if self.mode is RetrievalMode.DENSE else CountEmbeddings(),
        }

    async def call(self, method: str, *args: Any, of: Any = None, **kwargs: Any) -> Any:
        return await done(getattr(of or self._store, f"{self._prefix}{method}")(*args, **kwargs))

    def scores(self, limit: int, places: Sequence[int] = range(len(TEXTS))) -> Scores:
        """What a search for `QUERY` gives."""
        kinds = {
            RetrievalMode.DENSE: [dense_scores],
            RetrievalMode.SPARSE: [sparse_scores],
            RetrievalMode.HYBRID: [dense_scores, sparse_scores],
        }
        found = [kind(QUERY, places) for kind in kinds[self.mode]]
        return found[0] if len(found) == 1 else fused([best(one, limit) for one in found])


def _place(document: LangChainDocument) -> int:
    place = PLACES[document.metadata["_id"]]
    assert document.page_content == TEXTS[place]
    assert document.metadata.items() >= METADATA[place].items()
    return place


def _scored(found: list[tuple[LangChainDocument, float]]) -> list[tuple[int, float]]:
    return [(_place(document), score) for document, score in found]


@pytest.fixture(params=list(RetrievalMode))
async def langchain(
    request: pytest.FixtureRequest, url: str, collection: str, is_async: bool
) -> LangChain:
    store = LangChain(url, collection, request.param, is_async)
    await store.make()
    return store


async def test_langchain_finds_what_is_nearest(langchain: LangChain) -> None:
    for limit in (1, 7, 25):
        found = _scored(await langchain.call("similarity_search_with_score", QUERY, k=limit))
        assert_nearest(found, langchain.scores(limit), limit)
    documents = await langchain.call("similarity_search", QUERY, k=7)
    assert [document.page_content for document in documents] == [
        TEXTS[place]
        for place, _ in _scored(await langchain.call("similarity_search_with_score", QUERY, k=7))
    ]


async def test_langchain_filters_and_cuts_scores_off(langchain: LangChain) -> None:
    wanted = [place for place, one in enumerate(METADATA) if one["colour"] == "green"]
    green = models.Filter(
        must=[models.FieldCondition(key="metadata.colour", match=models.MatchValue(value="green"))]
    )
    search = "similarity_search_with_score"
    found = _scored(await langchain.call(search, QUERY, k=8, filter=green))
    assert_nearest(found, langchain.scores(8, wanted), 8)

    everything = langchain.scores(8, wanted)
    threshold = float(np.mean([everything[place] for place in best(everything, 4)]))
    above = {place: score for place, score in everything.items() if score > threshold}
    found = _scored(
        await langchain.call(search, QUERY, k=8, filter=green, score_threshold=threshold)
    )
    assert_nearest(found, above, 8)
    assert 0 < len(found) < 4


async def test_langchain_adds_gets_and_deletes(langchain: LangChain) -> None:
    new = [str(UUID(int=number)) for number in (1, 2)]
    documents = [
        LangChainDocument(page_content=QUERY, metadata={"colour": "white", "number": -1}),
        LangChainDocument(page_content="zinc", metadata={"colour": "grey"}),
    ]
    assert await langchain.call("add_documents", documents, ids=new) == new
    (first,) = await langchain.call("similarity_search", QUERY, k=1)
    assert (first.metadata["_id"], first.page_content) == (new[0], QUERY)

    got = await langchain.call("get_by_ids", [new[1], IDS[3], str(UUID(int=99))])
    assert {one.metadata["_id"]: one.page_content for one in got} == {
        new[1]: "zinc",
        IDS[3]: TEXTS[3],
    }
    assert await langchain.call("delete", new) is True
    assert await langchain.call("get_by_ids", new) == []
    found = _scored(await langchain.call("similarity_search_with_score", QUERY, k=5))
    assert_nearest(found, langchain.scores(5), 5)


async def test_langchain_takes_up_a_collection_that_is_there(
    langchain: LangChain, is_async: bool
) -> None:
    again = LangChainStore.from_existing_collection(**langchain.options)
    found = again.similarity_search_with_score(QUERY, k=5)
    assert_nearest(_scored(found), langchain.scores(5), 5)
    # It reads the collection's info and finds that this is not how it was made.
    with pytest.raises(Exception, match=r"does not contain|is built with unnamed"):
        LangChainStore.from_existing_collection(
            **langchain.options | {"vector_name": "other", "sparse_vector_name": "other"}
        )
    await langchain.call(
        "from_documents",
        [LangChainDocument(page_content="zinc")],
        of=LangChainStore,
        ids=[IDS[0]],
        force_recreate=True,
        **langchain.options,
    )
    (only,) = again.similarity_search("zinc", k=5)
    assert only.page_content == "zinc"


async def test_langchain_picks_what_is_near_and_diverse(
    url: str, collection: str, is_async: bool
) -> None:
    store = LangChain(url, collection, RetrievalMode.DENSE, is_async)
    await store.make()
    for balance in (0.0, 0.3, 0.9):
        found = await store.call(
            "max_marginal_relevance_search", QUERY, k=6, fetch_k=25, lambda_mult=balance
        )
        assert [_place(one) for one in found] == _diverse(6, 25, balance)
    assert _diverse(6, 25, 0.9) != _diverse(6, 25, 0.0) == best(dense_scores(QUERY), 6)


def _diverse(count: int, candidates: int, diversity: float) -> list[int]:
    """By maximal marginal relevance."""
    scores = dense_scores(QUERY)
    left = best(scores, candidates)
    picked = [left.pop(0)]
    alike = {place: dense_scores(TEXTS[place]) for place in left + picked}
    while len(picked) < count:
        place = max(
            left,
            key=lambda one: (
                (1 - diversity) * scores[one]
                - diversity * max(alike[one][other] for other in picked)
            ),
        )
        left.remove(place)
        picked.append(place)
    return picked


# LlamaIndex


class LlamaIndex:
    """A store of all texts, by whichever of its APIs: it has a client for that one alone."""

    def __init__(self, url: str, collection: str, *, is_async: bool, hybrid: bool) -> None:
        self.is_async = is_async
        self.hybrid = hybrid
        kind: Any = AsyncQdrantClient if is_async else QdrantClient
        self.client = kind(url=url, timeout=30)
        keyword: Any = {"field_name": "colour", "field_schema": models.PayloadSchemaType.KEYWORD}
        self.store = LlamaIndexStore(
            collection,
            client=None if is_async else self.client,
            aclient=self.client if is_async else None,
            enable_hybrid=hybrid,
            sparse_doc_fn=_sparse_of,
            sparse_query_fn=_sparse_of,
            payload_indexes=[keyword],
            batch_size=25,
        )

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        if self.is_async:
            method = "async_add" if method == "add" else f"a{method}"
        return await done(getattr(self.store, method)(*args, **kwargs))

    async def query(self, mode: VectorStoreQueryMode, limit: int, **more: Any) -> Any:
        """The result of a search for `QUERY`."""
        query = VectorStoreQuery(
            query_embedding=dense(QUERY),
            query_str=QUERY,
            mode=mode,
            similarity_top_k=limit,
            **more,
        )
        return await self.call("query", query)


def _sparse_of(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
    found = [sparse(text) for text in texts]
    return [indices for indices, _ in found], [values for _, values in found]


def _node(place: int) -> TextNode:
    """A part of one of four documents."""
    return TextNode(
        id_=IDS[place],
        text=TEXTS[place],
        metadata=METADATA[place] | {"tag": []} if place % 2 else METADATA[place] | {"tag": "even"},
        excluded_embed_metadata_keys=["colour", "number", "tag"],
        embedding=dense(TEXTS[place]),
        relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=f"document-{place % 4}")},
    )


@pytest.fixture(params=[False, True], ids=["dense", "hybrid"])
async def llama_index(
    request: pytest.FixtureRequest, url: str, collection: str, is_async: bool
) -> AsyncIterator[LlamaIndex]:
    made = LlamaIndex(url, collection, is_async=is_async, hybrid=request.param)
    assert await made.call("add", [_node(place) for place in range(len(TEXTS))]) == IDS
    yield made
    await done(made.client.close())


def _found(result: Any) -> list[tuple[int, float]]:
    for node, id in zip(result.nodes, result.ids, strict=True):
        assert node.node_id == id
        assert node.text == TEXTS[PLACES[id]]
        assert node.metadata.items() >= METADATA[PLACES[id]].items()
        assert node.ref_doc_id == f"document-{PLACES[id] % 4}"
    return list(zip(map(PLACES.__getitem__, result.ids), result.similarities, strict=True))


def _combined(limit: int, alpha: float) -> Scores:
    """As LlamaIndex fuses scores: both kinds of the best ones put between 0 and 1."""
    scores: Scores = defaultdict(float)
    for kind, weight in ((dense_scores, alpha), (sparse_scores, 1 - alpha)):
        found = kind(QUERY)
        top = {place: found[place] for place in best(found, limit)}
        low, high = min(top.values()), max(top.values())
        for place, score in top.items():
            scores[place] += weight * (score - low) / (high - low)
    return scores


async def test_llama_index_finds_what_is_nearest(llama_index: LlamaIndex) -> None:
    for limit in (1, 9):
        found = await llama_index.query(VectorStoreQueryMode.DEFAULT, limit)
        assert_nearest(_found(found), dense_scores(QUERY), limit)
    if not llama_index.hybrid:
        with pytest.raises(ValueError, match="Hybrid search is not enabled"):
            await llama_index.query(VectorStoreQueryMode.HYBRID, 9)
        return
    found = await llama_index.query(VectorStoreQueryMode.SPARSE, 9)
    assert_nearest(_found(found), sparse_scores(QUERY), 9)
    for alpha in (0.2, 0.8):
        found = await llama_index.query(VectorStoreQueryMode.HYBRID, 9, alpha=alpha)
        assert_nearest(_found(found), _combined(9, alpha), 9)


Holds: TypeAlias = Callable[[int], bool]
"""Whether a condition is true of the text at that place."""

LLAMA_INDEX_FILTERS: list[tuple[MetadataFilters, Holds]] = [
    (
        MetadataFilters(filters=[MetadataFilter(key="colour", value="red")]),
        lambda place: place % 3 == 0,
    ),
    (
        MetadataFilters(filters=[MetadataFilter(key="number", value=7.0)]),
        lambda place: place == 7,
    ),
    (
        MetadataFilters(
            filters=[
                MetadataFilter(key="colour", value=["red", "blue"], operator=FilterOperator.NIN),
                MetadataFilter(key="number", value=20, operator=FilterOperator.GTE),
            ]
        ),
        lambda place: place % 3 == 1 and place >= 20,
    ),
    (
        MetadataFilters(
            filters=[
                MetadataFilter(key="number", value=[40, 41], operator=FilterOperator.IN),
                MetadataFilter(key="number", value=5, operator=FilterOperator.LT),
            ],
            condition=FilterCondition.OR,
        ),
        lambda place: place in (40, 41) or place < 5,
    ),
    (
        MetadataFilters(
            filters=[
                MetadataFilter(key="colour", value="red", operator=FilterOperator.NE),
                MetadataFilter(key="number", value=30, operator=FilterOperator.GT),
            ],
            condition=FilterCondition.NOT,
        ),
        lambda place: place % 3 == 0 and place <= 30,
    ),
    (
        MetadataFilters(
            filters=[
                MetadataFilter(key="tag", value=None, operator=FilterOperator.IS_EMPTY),
                MetadataFilters(
                    filters=[
                        MetadataFilter(
                            key="colour", value="green", operator=FilterOperator.TEXT_MATCH
                        ),
                        MetadataFilter(key="number", value=9, operator=FilterOperator.LTE),
                    ],
                    condition=FilterCondition.OR,
                ),
            ]
        ),
        lambda place: place % 2 == 1 and (place % 3 == 1 or place <= 9),
    ),
]


async def test_llama_index_filters(llama_index: LlamaIndex) -> None:
    for filters, holds in LLAMA_INDEX_FILTERS:
        wanted = [place for place in range(len(TEXTS)) if holds(place)]
        found = await llama_index.query(VectorStoreQueryMode.DEFAULT, 8, filters=filters)
        assert_nearest(_found(found), dense_scores(QUERY, wanted), 8)
        if llama_index.hybrid:
            found = await llama_index.query(VectorStoreQueryMode.SPARSE, 8, filters=filters)
            assert_nearest(_found(found), sparse_scores(QUERY, wanted), 8)
        nodes = await llama_index.call("get_nodes", filters=filters)
        assert {PLACES[node.node_id] for node in nodes} == set(wanted)


async def test_llama_index_asks_within_documents_and_nodes(llama_index: LlamaIndex) -> None:
    found = await llama_index.query(
        VectorStoreQueryMode.DEFAULT, 8, doc_ids=["document-1", "document-2"]
    )
    wanted = [place for place in range(len(TEXTS)) if place % 4 in (1, 2)]
    assert_nearest(_found(found), dense_scores(QUERY, wanted), 8)
    found = await llama_index.query(VectorStoreQueryMode.DEFAULT, 8, node_ids=IDS[:5])
    assert_nearest(_found(found), dense_scores(QUERY, range(5)), 8)


async def test_llama_index_gets_nodes(llama_index: LlamaIndex) -> None:
    nodes = await llama_index.call("get_nodes", node_ids=[*IDS[10:13], str(UUID(int=99))])
    assert {node.node_id for node in nodes} == set(IDS[10:13])
    for node in nodes:
        vector = np.array(dense(node.text))
        assert node.embedding == pytest.approx(vector / np.linalg.norm(vector), abs=1e-5)
    assert len(await llama_index.call("get_nodes")) == len(TEXTS)


async def test_llama_index_deletes(llama_index: LlamaIndex) -> None:
    async def left() -> set[int]:
        return {PLACES[node.node_id] for node in await llama_index.call("get_nodes")}

    there = set(range(len(TEXTS)))
    await llama_index.call("delete", "document-3")
    there -= {place for place in there if place % 4 == 3}
    assert await left() == there

    await llama_index.call("delete_nodes", [IDS[0], IDS[1]])
    there -= {0, 1}
    assert await left() == there

    blue = MetadataFilters(filters=[MetadataFilter(key="colour", value="blue")])
    await llama_index.call("delete_nodes", filters=blue)
    there -= {place for place in there if place % 3 == 2}
    assert await left() == there
    found = await llama_index.query(VectorStoreQueryMode.DEFAULT, 8)
    assert_nearest(_found(found), dense_scores(QUERY, sorted(there)), 8)

    await llama_index.call("clear")
    assert not await done(llama_index.client.collection_exists(llama_index.store.collection_name))
    await llama_index.call("add", [_node(5)])
    assert await left() == {5}


# Haystack


class Haystack:
    """A store, by whichever of its APIs."""

    def __init__(self, url: str, collection: str, *, is_async: bool, **options: Any) -> None:
        self.suffix = "_async" if is_async else ""
        self.hybrid = bool(options.get("use_sparse_embeddings"))
        self.store = QdrantDocumentStore(
            url=url,
            index=collection,
            embedding_dim=DIMENSION,
            scroll_size=13,
            write_batch_size=25,
            progress_bar=False,
            **options,
        )

    async def call(self, method: str, *args: Any, of: Any = None, **kwargs: Any) -> Any:
        return await done(getattr(of or self.store, f"{method}{self.suffix}")(*args, **kwargs))

    async def retrieve(self, kind: Callable[..., Any], **asked: Any) -> list[Any]:
        """The documents that a retriever of that kind finds."""
        answer = await self.call("run", of=kind(self.store), **asked)
        documents: list[Any] = answer["documents"]
        return documents


def _document(place: int, *, hybrid: bool = True, **more: Any) -> Any:
    indices, values = sparse(TEXTS[place])
    return Document(
        id=f"text {place}",
        content=TEXTS[place],
        meta=METADATA[place] | more,
        embedding=dense(TEXTS[place]),
        sparse_embedding=SparseEmbedding(indices, values) if hybrid else None,
    )


@pytest.fixture(params=[False, True], ids=["dense", "hybrid"])
async def haystack(
    request: pytest.FixtureRequest, url: str, collection: str, is_async: bool
) -> AsyncIterator[Haystack]:
    made = Haystack(
        url,
        collection,
        is_async=is_async,
        use_sparse_embeddings=request.param,
        payload_fields_to_index=[{"field_name": "meta.colour", "field_schema": "keyword"}],
    )
    documents = [_document(place, hybrid=made.hybrid) for place in range(len(TEXTS))]
    assert await made.call("write_documents", documents) == len(TEXTS)
    yield made
    made.store.close()
    await made.store.close_async()


def _document_place(document: Any) -> int:
    place = int(document.id.removeprefix("text "))
    assert document.content == TEXTS[place]
    assert document.meta.items() >= METADATA[place].items()
    return place


def _scored_documents(documents: Sequence[Any]) -> list[tuple[int, float]]:
    return [(_document_place(document), document.score) for document in documents]


def _field(name: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": f"meta.{name}", "operator": operator, "value": value}


async def test_haystack_finds_what_is_nearest_by_embeddings(haystack: Haystack) -> None:
    asked = {"query_embedding": dense(QUERY)}
    scores = dense_scores(QUERY)
    found = await haystack.retrieve(QdrantEmbeddingRetriever, **asked, top_k=9)
    assert_nearest(_scored_documents(found), scores, 9)
    assert found[0].embedding is None

    found = await haystack.retrieve(
        QdrantEmbeddingRetriever, **asked, top_k=9, scale_score=True, return_embedding=True
    )
    scaled = {place: (score + 1) / 2 for place, score in scores.items()}
    assert_nearest(_scored_documents(found), scaled, 9)
    vector = np.array(dense(found[0].content))
    assert found[0].embedding == pytest.approx(vector / np.linalg.norm(vector), abs=1e-5)

    threshold = sum(sorted(scores.values())[-4:-2]) / 2
    found = await haystack.retrieve(
        QdrantEmbeddingRetriever, **asked, top_k=9, score_threshold=threshold
    )
    assert [place for place, _ in _scored_documents(found)] == best(scores, 3)

    wanted = [place for place in range(len(TEXTS)) if place % 3 != 1 and place > 10]
    found = await haystack.retrieve(
        QdrantEmbeddingRetriever,
        **asked,
        top_k=9,
        filters={
            "operator": "AND",
            "conditions": [_field("colour", "!=", "green"), _field("number", ">", 10)],
        },
    )
    assert_nearest(_scored_documents(found), dense_scores(QUERY, wanted), 9)


async def test_haystack_finds_what_is_nearest_by_sparse_embeddings(
    url: str, collection: str, is_async: bool
) -> None:
    haystack = Haystack(url, collection, is_async=is_async, use_sparse_embeddings=True)
    await haystack.call("write_documents", [_document(place) for place in range(len(TEXTS))])
    query = SparseEmbedding(*sparse(QUERY))
    found = await haystack.retrieve(
        QdrantSparseEmbeddingRetriever, query_sparse_embedding=query, top_k=9, return_embedding=True
    )
    assert_nearest(_scored_documents(found), sparse_scores(QUERY), 9)
    stored = found[0].sparse_embedding
    assert dict(zip(stored.indices, stored.values, strict=True)) == pytest.approx(
        weights(found[0].content)
    )

    wanted = [place for place in range(len(TEXTS)) if place % 3 == 2]
    found = await haystack.retrieve(
        QdrantSparseEmbeddingRetriever,
        query_sparse_embedding=query,
        top_k=9,
        filters=_field("colour", "in", ["blue", "white"]),
    )
    assert_nearest(_scored_documents(found), sparse_scores(QUERY, wanted), 9)


async def test_haystack_weighs_rare_words_more_where_asked(
    url: str, collection: str, is_async: bool
) -> None:
    haystack = Haystack(
        url, collection, is_async=is_async, use_sparse_embeddings=True, sparse_idf=True
    )
    await haystack.call("write_documents", [_document(place) for place in range(len(TEXTS))])
    found = await haystack.retrieve(
        QdrantSparseEmbeddingRetriever,
        query_sparse_embedding=SparseEmbedding(*sparse(QUERY)),
        top_k=9,
    )
    scores: Scores = defaultdict(float)
    for index, weight in weights(QUERY).items():
        held = {
            place: stored[index]
            for place, stored in enumerate(map(weights, TEXTS))
            if index in stored
        }
        for place, value in held.items():
            scores[place] += weight * value * _idf(len(held))
    assert_nearest(_scored_documents(found), scores, 9)


def _idf(holding: int) -> float:
    """How much a term counts that so many of `TEXTS` have."""
    return log((len(TEXTS) - holding + 0.5) / (holding + 0.5) + 1)


async def test_haystack_fuses_both_kinds(url: str, collection: str, is_async: bool) -> None:
    haystack = Haystack(url, collection, is_async=is_async, use_sparse_embeddings=True)
    await haystack.call("write_documents", [_document(place) for place in range(len(TEXTS))])
    asked = {
        "query_embedding": dense(QUERY),
        "query_sparse_embedding": SparseEmbedding(*sparse(QUERY)),
    }

    def rankings(places: Sequence[int] = range(len(TEXTS)), limit: int = 10) -> list[list[int]]:
        kinds = (sparse_scores(QUERY, places), dense_scores(QUERY, places))
        return [best(one, limit) for one in kinds]

    found = await haystack.retrieve(QdrantHybridRetriever, **asked, top_k=9)
    assert_nearest(_scored_documents(found), fused(rankings()), 9)

    found = await haystack.retrieve(
        QdrantHybridRetriever, **asked, top_k=9, rrf_k=5, rrf_weights=[3.0, 1.0]
    )
    assert_nearest(_scored_documents(found), fused(rankings(), 5, (3, 1)), 9)

    wanted = [place for place in range(len(TEXTS)) if place >= 20]
    found = await haystack.retrieve(
        QdrantHybridRetriever, **asked, top_k=9, filters=_field("number", ">=", 20)
    )
    assert_nearest(_scored_documents(found), fused(rankings(wanted)), 9)

    found = await haystack.retrieve(
        QdrantHybridRetriever, **asked, top_k=3, group_by="meta.colour", group_size=2
    )
    # Both prefetches find group_size times as many.
    scores = fused(rankings(limit=20))
    groups = [[scores[place] for place in best(scores, 40) if place % 3 == n] for n in range(3)]
    groups = sorted((group[:2] for group in groups), reverse=True)
    assert [one.score for one in found] == pytest.approx([*chain(*groups)], abs=1e-4)
    for place, score in _scored_documents(found):
        assert score == pytest.approx(scores[place], abs=1e-4)


async def test_haystack_groups(haystack: Haystack) -> None:
    found = await haystack.retrieve(
        QdrantEmbeddingRetriever,
        query_embedding=dense(QUERY),
        top_k=2,
        group_by="meta.colour",
        group_size=4,
    )
    scores = dense_scores(QUERY)
    ranking = best(scores, len(TEXTS))
    groups = list(dict.fromkeys(place % 3 for place in ranking))[:2]
    expected = [[place for place in ranking if place % 3 == group][:4] for group in groups]
    assert [_document_place(one) for one in found] == [*chain(*expected)]


HAYSTACK_FILTERS: list[tuple[dict[str, Any], Holds]] = [
    (_field("colour", "==", "red"), lambda place: place % 3 == 0),
    (_field("number", "in", [3, 4, 99]), lambda place: place in (3, 4)),
    (_field("colour", "not in", ["red", "green"]), lambda place: place % 3 == 2),
    (
        {
            "operator": "AND",
            "conditions": [_field("number", ">=", 10), _field("number", "<", 30)],
        },
        lambda place: 10 <= place < 30,
    ),
    (
        {
            "operator": "OR",
            "conditions": [
                _field("number", "<=", 2),
                {"operator": "NOT", "conditions": [_field("number", "<", 50)]},
            ],
        },
        lambda place: place <= 2 or place >= 50,
    ),
]


async def test_haystack_filters(haystack: Haystack) -> None:
    for filters, holds in HAYSTACK_FILTERS:
        wanted = [place for place in range(len(TEXTS)) if holds(place)]
        found = await haystack.call("filter_documents", filters)
        assert sorted(map(_document_place, found)) == wanted
        assert await haystack.call("count_documents_by_filter", filters) == len(wanted)

    there = set(range(len(TEXTS)))
    for filters, holds in HAYSTACK_FILTERS:
        gone = {place for place in there if holds(place)}
        assert await haystack.call("delete_by_filter", filters) == len(gone)
        there -= gone
        found = await haystack.call("filter_documents")
        assert sorted(map(_document_place, found)) == sorted(there)
    assert there


async def test_haystack_writes_again_as_it_is_told_to(haystack: Haystack) -> None:
    first = _document(0, hybrid=haystack.hybrid)
    other = Document(id=first.id, content="zinc", embedding=dense("zinc"))
    with pytest.raises(DuplicateDocumentError):
        await haystack.call("write_documents", [first], policy=DuplicatePolicy.FAIL)
    await haystack.call("write_documents", [other], policy=DuplicatePolicy.SKIP)
    (stored,) = await haystack.call("get_documents_by_id", [first.id])
    assert stored.content == TEXTS[0]
    await haystack.call("write_documents", [other], policy=DuplicatePolicy.OVERWRITE)
    (stored,) = await haystack.call("get_documents_by_id", [first.id])
    assert stored.content == "zinc"
    assert await haystack.call("count_documents") == len(TEXTS)
    (found,) = await haystack.retrieve(
        QdrantEmbeddingRetriever, query_embedding=dense("zinc"), top_k=1
    )
    assert found.id == first.id


async def test_haystack_updates_and_deletes(haystack: Haystack) -> None:
    changed = await haystack.call(
        "update_by_filter", _field("colour", "==", "red"), {"size": "large"}
    )
    assert changed == 20
    found = await haystack.call("filter_documents", _field("size", "==", "large"))
    assert sorted(map(_document_place, found)) == list(range(0, len(TEXTS), 3))
    # Vectors are written back as they were.
    found = await haystack.retrieve(
        QdrantEmbeddingRetriever, query_embedding=dense(QUERY), top_k=20
    )
    assert_nearest(_scored_documents(found), dense_scores(QUERY), 20)

    await haystack.call("delete_documents", ["text 0", "text 1", "none of them"])
    assert await haystack.call("count_documents") == len(TEXTS) - 2
    await haystack.call("delete_all_documents")
    assert await haystack.call("count_documents") == 0
    assert await haystack.call("filter_documents") == []


async def test_haystack_makes_the_collection_anew(
    url: str, collection: str, is_async: bool
) -> None:
    haystack = Haystack(url, collection, is_async=is_async)
    await haystack.call("write_documents", [_document(0, hybrid=False)])
    await haystack.call("delete_all_documents", recreate_index=True)
    assert await haystack.call("count_documents") == 0
    await haystack.call("write_documents", [_document(1, hybrid=False)])
    (found,) = await haystack.retrieve(QdrantEmbeddingRetriever, query_embedding=dense(QUERY))
    assert _document_place(found) == 1

    other = Haystack(url, collection, is_async=is_async, similarity="dot_product")
    with pytest.raises(ValueError, match="configured with a similarity 'COSINE'"):
        await other.call("count_documents")
    other = Haystack(
        url, collection, is_async=is_async, similarity="dot_product", recreate_index=True
    )
    await other.call("write_documents", [_document(2, hybrid=False)])
    (found,) = await other.retrieve(QdrantEmbeddingRetriever, query_embedding=dense(QUERY))
    assert found.score == pytest.approx(np.dot(dense(QUERY), dense(TEXTS[2])), rel=1e-5)


def test_haystack_takes_documents_to_a_collection_with_sparse_embeddings(
    url: str, collection: str
) -> None:
    old = Haystack(url, f"{collection}-old", is_async=False)
    old.store.write_documents([_document(place, hybrid=False) for place in range(len(TEXTS))])
    threshold = _indexing_threshold(url, old.store.index)
    migrate_to_sparse_embeddings_support(old.store, collection)
    new = Haystack(url, collection, is_async=False, use_sparse_embeddings=True)
    found = QdrantEmbeddingRetriever(new.store).run(query_embedding=dense(QUERY))
    assert_nearest(_scored_documents(found["documents"]), dense_scores(QUERY), 10)
    # While it copies it sets it to zero.
    assert _indexing_threshold(url, collection) == threshold > 0


def _indexing_threshold(url: str, collection: str) -> int:
    client = QdrantClient(url=url)
    threshold = client.get_collection(collection).config.optimizer_config.indexing_threshold
    client.close()
    assert threshold is not None
    return threshold


async def test_haystack_asks_for_pages_of_large_vectors(
    url: str, collection: str, is_async: bool
) -> None:
    # By itself for ten thousand points a page.
    store = QdrantDocumentStore(url=url, index=collection, embedding_dim=1_536, progress_bar=False)
    vector = [1.0] + [0.0] * 1_535
    suffix = "_async" if is_async else ""
    written = [Document(id=id, embedding=vector, meta={"n": 1}) for id in "abc"]
    await done(getattr(store, f"write_documents{suffix}")(written))
    found = await done(getattr(store, f"filter_documents{suffix}")())
    assert {one.id: one.embedding for one in found} == dict.fromkeys("abc", vector)
    equal = _field("n", "==", 1)
    assert await done(getattr(store, f"update_by_filter{suffix}")(equal, {"n": 2})) == 3


async def test_haystack_tells_of_metadata(haystack: Haystack) -> None:
    # Of fields with an index, by what the collection's info says of them.
    assert (await haystack.call("get_metadata_fields_info")).keys() == {"colour"}
    assert await haystack.call("get_metadata_field_min_max", "number") == {"min": 0, "max": 59}
    assert await haystack.call(
        "count_unique_metadata_by_filter", _field("number", "<", 10), ["colour", "number"]
    ) == {"colour": 3, "number": 10}
    assert await haystack.call("get_metadata_field_unique_values", "colour") == (
        ["blue", "green", "red"],
        3,
    )


# The official client, with texts that the server embeds


def _bm25_scores(query: str) -> Scores:
    """Of the texts that share a term with the query."""
    k, b, usual = 1.2, 0.75, 256
    counts = [Counter(text.split()) for text in TEXTS]
    scores: Scores = defaultdict(float)
    for term in query.split():
        idf = _idf(sum(term in one for one in counts))
        for place, one in enumerate(counts):
            if term in one:
                length = 1 - b + b * one.total() / usual
                scores[place] += idf * one[term] * (k + 1) / (one[term] + k * length)
    return scores


def _text(text: str) -> models.Document:
    return models.Document(text=text, model="Qdrant/bm25")


async def test_texts_are_embedded_by_the_server(url: str, collection: str, is_async: bool) -> None:
    # Without `cloud_inference` the client would embed them itself, with what it downloads.
    kind: Any = AsyncQdrantClient if is_async else QdrantClient
    client = kind(url=url, timeout=30, cloud_inference=True)
    await done(
        client.create_collection(
            collection,
            vectors_config={
                "dense": models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
            },
            sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        )
    )
    points = [
        models.PointStruct(
            id=place,
            vector={"dense": dense(text), "bm25": _text(text)},
            payload={"colour": COLOURS[place % 3]},
        )
        for place, text in enumerate(TEXTS)
    ]
    await done(client.upsert(collection, points[:40], wait=True))
    uploaded = client.upload_points(collection, points[40:], wait=True)
    await done(uploaded)

    (stored,) = await done(client.retrieve(collection, [7], with_vectors=["bm25"]))
    assert sorted(stored.vector["bm25"].indices) == sorted(
        {abs(mmh3.hash(word)) for word in TEXTS[7].split()}
    )

    found = await done(client.query_points(collection, query=_text(QUERY), using="bm25", limit=9))
    assert_nearest([(one.id, one.score) for one in found.points], _bm25_scores(QUERY), 9)

    hybrid: Mapping[str, Any] = {
        "prefetch": [
            models.Prefetch(query=dense(QUERY), using="dense", limit=20),
            models.Prefetch(query=_text(QUERY), using="bm25", limit=20),
        ],
        "query": models.FusionQuery(fusion=models.Fusion.RRF),
    }
    scores = fused([best(dense_scores(QUERY), 20), best(_bm25_scores(QUERY), 20)])
    found = await done(client.query_points(collection, **hybrid, limit=9))
    assert_nearest([(one.id, one.score) for one in found.points], scores, 9)

    (found,) = await done(
        client.query_batch_points(collection, [models.QueryRequest(**hybrid, limit=9)])
    )
    assert_nearest([(one.id, one.score) for one in found.points], scores, 9)

    await done(
        client.update_vectors(
            collection,
            [models.PointVectors(id=0, vector={"bm25": _text("heron " * 3)})],
            wait=True,
        )
    )
    found = await done(
        client.query_points_groups(
            collection, group_by="colour", query=_text("heron"), using="bm25", limit=1, group_size=1
        )
    )
    assert found.groups[0].hits[0].id == 0
    await done(client.close())
