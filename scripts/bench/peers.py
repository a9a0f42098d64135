"""Peers beside Shoal. ``chromadb`` is a server, reached over HTTP like Shoal; the rest is embedded.

Peers live in an environment of their own, which ``scripts/bench/install-peers`` makes.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import httpx
import numpy as np
import orjson

from scripts.bench import load, services
from scripts.bench.data import DataSet
from shard.model import Distance, Rows, Vectors

ENVIRONMENT = Path(".venv-peers")
EMBEDDED = ("usearch", "lancedb", "qdrant-edge", "milvus-lite")
_COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"
_SPACES = {Distance.COSINE: "cosine", Distance.EUCLID: "l2", Distance.DOT: "ip"}
_BATCH = 512
_PORT = 8_765


class Chroma:
    """One collection in a chromadb server, over its HTTP API and not its Python client, which
    would be the slower of the two ways.
    """

    def __init__(self, directory: Path, data: DataSet) -> None:
        self._directory = directory
        self._data = data

    @contextmanager
    def serving(self) -> Iterator[services.Service]:
        executable = ENVIRONMENT / "bin" / "chroma"
        with services.chroma(executable, self._directory, _PORT) as service:
            self._url = service.url + _COLLECTIONS
            yield service

    def fill(self) -> float:
        """Create the collection with Chroma's own settings; rows upserted a second."""
        space = _SPACES[self._data.distance]
        created = httpx.post(
            self._url, json={"name": "bench", "configuration": {"hnsw": {"space": space}}}
        )
        created.raise_for_status()
        where = f"{self._url}/{created.json()['id']}/upsert"
        vectors = self._data.vectors
        started = perf_counter()
        with httpx.Client(timeout=120) as client:
            for first in range(0, len(vectors), _BATCH):
                some = vectors[first : first + _BATCH]
                ids = [str(number) for number in range(first, first + len(some))]
                body = orjson.dumps(
                    {"ids": ids, "embeddings": some}, option=orjson.OPT_SERIALIZE_NUMPY
                )
                client.post(where, content=body).raise_for_status()
        return len(vectors) / (perf_counter() - started)

    def widen(self, ef: int) -> None:
        """Search with that ``ef_search``, once the server is started again."""
        httpx.put(
            f"{self._url}/{self._id()}", json={"new_configuration": {"hnsw": {"ef_search": ef}}}
        ).raise_for_status()

    def requests(self, queries: Vectors, k: int) -> list[bytes]:
        where = f"{self._url}/{self._id()}/query"
        return [
            load.request(
                "POST",
                where,
                orjson.dumps(
                    {"query_embeddings": [query], "n_results": k, "include": ["distances"]},
                    option=orjson.OPT_SERIALIZE_NUMPY,
                ),
            )
            for query in queries
        ]

    def found(self, answers: Sequence[bytes]) -> Rows:
        return np.array([list(map(int, orjson.loads(one)["ids"][0])) for one in answers])

    def _id(self) -> str:
        collection: dict[str, Any] = httpx.get(f"{self._url}/bench").raise_for_status().json()
        return str(collection["id"])


def embedded(name: str, data: DataSet, recall: float) -> dict[str, Any]:
    """What ``scripts/bench/embedded.py`` measures of a peer in its own process."""
    with TemporaryDirectory(prefix="shoal-bench-") as folder:
        directory = Path(folder)
        for part in ("vectors", "queries", "truth"):
            np.save(directory / f"{part}.npy", getattr(data, part))
        command = [ENVIRONMENT / "bin" / "python", Path(__file__).with_name("embedded.py")]
        options = [name, str(directory), str(data.distance), str(recall)]
        done = subprocess.run([*command, *options], stdout=subprocess.PIPE, check=True)
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured
