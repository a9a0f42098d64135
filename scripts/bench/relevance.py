"""How relevant what is found is, to people's judgement: vectors, keywords, and both together.

``python -m scripts.bench.relevance DIRECTORY`` of a test collection in BEIR's form (Thakur et al.,
2021): ``corpus.jsonl``, ``queries.jsonl``, ``qrels.tsv``. All goes through the service's API; a
judgement above 0 counts as relevant. Needs ``scripts/bench/install-peers``, for the model that
embeds texts.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import subprocess
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from qdrant_client import QdrantClient, models

from router.demo import cache_directory
from scripts.bench.peers import ENVIRONMENT
from scripts.bench.services import shoal
from shard.model import Vectors

K = 10
CANDIDATES = 100
BATCH = 256
NAME = "relevance"
_TITLE = 20


@dataclass(frozen=True)
class TestCollection:
    documents: list[str]
    queries: list[str]
    relevant: list[set[int]]
    """Of each query, the numbers of its documents; queries without any are left out."""

    @staticmethod
    def read(directory: Path) -> TestCollection:
        corpus = list(_lines(directory / "corpus.jsonl"))
        number_of = {row["_id"]: number for number, row in enumerate(corpus)}
        judged: dict[str, set[int]] = defaultdict(set)
        with (directory / "qrels.tsv").open() as file:
            for row in csv.DictReader(file, delimiter="\t"):
                if int(row["score"]) > 0 and row["corpus-id"] in number_of:
                    judged[row["query-id"]].add(number_of[row["corpus-id"]])
        asked = [row for row in _lines(directory / "queries.jsonl") if judged[row["_id"]]]
        return TestCollection(
            [_document(row.get("title", ""), row["text"]) for row in corpus],
            [row["text"] for row in asked],
            [judged[row["_id"]] for row in asked],
        )


def _document(title: str, text: str) -> str:
    """Title and text, unless that begins with the title already."""
    return text if text.startswith(title[:_TITLE]) else f"{title} {text}"


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        yield from map(json.loads, file)


def ndcg(found: Sequence[int], relevant: set[int]) -> float:
    """Of the first `K` of ``found``, with relevance 0 or 1: Järvelin and Kekäläinen (2002)."""
    discounts = 1 / np.log2(np.arange(2, K + 2))
    gains = np.array([number in relevant for number in found[:K]])
    best: float = discounts[: len(relevant)].sum()
    return float(gains @ discounts[: len(gains)]) / best


def embed(texts: Sequence[str]) -> Vectors:
    """all-MiniLM-L6-v2's vectors of ``texts``, (n, 384) float32 of unit length.

    They are kept in the cache directory. Raises CalledProcessError.
    """
    encoded = json.dumps(list(texts)).encode()
    path = cache_directory() / f"minilm-{hashlib.sha256(encoded).hexdigest()[:16]}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent) as folder:
            given, made = Path(folder) / "texts.json", Path(folder) / "vectors.npy"
            given.write_bytes(encoded)
            script = Path(__file__).with_name("minilm.py")
            subprocess.run([ENVIRONMENT / "bin" / "python", script, given, made], check=True)
            made.rename(path)
    vectors: Vectors = np.load(path)
    return vectors


def fill(client: QdrantClient, documents: Sequence[str], vectors: Vectors, shards: int) -> None:
    client.create_collection(
        NAME,
        {"dense": models.VectorParams(size=vectors.shape[1], distance=models.Distance.COSINE)},
        sparse_vectors_config={"words": models.SparseVectorParams(modifier=models.Modifier.IDF)},
        shard_number=shards,
    )
    for first in range(0, len(documents), BATCH):
        client.upsert(
            NAME,
            [
                models.PointStruct(
                    id=first + row, vector={"dense": vector.tolist(), "words": _bm25(document)}
                )
                for row, (document, vector) in enumerate(
                    zip(
                        documents[first : first + BATCH],
                        vectors[first : first + BATCH],
                        strict=True,
                    )
                )
            ],
            wait=True,
        )


def _bm25(text: str) -> models.Document:
    return models.Document(text=text, model="qdrant/bm25")


def branches(text: str, vector: Sequence[float]) -> dict[str, dict[str, Any]]:
    """What to ask for one query, by name."""
    dense = {"query": list(vector), "using": "dense"}
    words = {"query": _bm25(text), "using": "words"}
    both = [models.Prefetch(**one, limit=CANDIDATES) for one in (dense, words)]
    return {
        "dense": dense,
        "BM25": words,
        "hybrid, RRF": {
            "query": models.FusionQuery(fusion=models.Fusion.RRF),
            "prefetch": both,
        },
        "hybrid, DBSF": {
            "query": models.FusionQuery(fusion=models.Fusion.DBSF),
            "prefetch": both,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--shards", type=int, default=4)
    arguments = parser.parse_args()
    collection = TestCollection.read(arguments.directory)
    vectors = embed(collection.documents)
    asked = embed(collection.queries)
    scores: dict[str, list[float]] = defaultdict(list)
    with TemporaryDirectory() as data, shoal(data) as service:
        client = QdrantClient(url=service.url, timeout=120, cloud_inference=True)
        fill(client, collection.documents, vectors, arguments.shards)
        for text, vector, relevant in zip(
            collection.queries, asked, collection.relevant, strict=True
        ):
            for name, query in branches(text, vector.tolist()).items():
                hits = client.query_points(NAME, **query, limit=K).points
                scores[name].append(ndcg([int(hit.id) for hit in hits], relevant))
        client.close()
    print(f"{len(collection.documents):,} documents, {len(collection.queries)} queries")
    for name, found in scores.items():
        print(f"{name:>14}  nDCG@{K} {np.mean(found):.4f}")


if __name__ == "__main__":
    main()
