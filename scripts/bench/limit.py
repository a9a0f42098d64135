"""Raw FAISS over a collection's own indexes: what is left when everything but FAISS is taken away.

The same index files, nprobe, oversampling and rerank as Shoal's, in this process: no HTTP, no log,
no ids, no payloads, no rows that are not in an index.
"""

from __future__ import annotations

from pathlib import Path
from time import perf_counter

import faiss
import numpy as np

from cluster.catalog import Catalog
from scripts.bench.collection import NAME
from shard.manifest import Manifests
from shard.model import UNNAMED, Calibration, Rows, Vectors, decode_ids
from shard.objects.local import LocalObjectStore


class RawFaiss:
    """The indexes of the collection under ``data``, a directory that a Shoal has as its data."""

    def __init__(self, data: Path) -> None:
        store = LocalObjectStore(data)
        collection = Catalog(store).get(NAME)
        self._config = collection.config.vectors[UNNAMED]
        self._indexes: list[tuple[faiss.Index, Calibration, Rows]] = []
        self._vectors: list[Vectors] = []
        for shard in range(collection.shard_count):
            prefix = f"{collection.prefix}/shard-{shard:04d}"
            for entry in Manifests(store, f"{prefix}/manifest").read().segments:
                if (calibration := entry.calibrations.get(UNNAMED)) is not None:
                    self._open(data / prefix / "segment" / entry.id, calibration)

    @property
    def rows(self) -> int:
        return sum(len(ids) for _, _, ids in self._indexes)

    def search(self, queries: Vectors, k: int, nprobe: int | None = None) -> Rows:
        """Ids of the nearest, (q, k); ``nprobe`` None: as calibrated."""
        queries = self._config.prepare(queries)
        found, scores = [], []
        for index, calibration, ids in self._indexes:
            parameters = faiss.IndexRefineSearchParameters(
                k_factor=calibration.oversampling,
                base_index_params=faiss.SearchParametersIVF(nprobe=nprobe or calibration.nprobe),
            )
            near, rows = index.search(queries, k, params=parameters)
            found.append(ids[rows])
            scores.append(near if self._config.distance.higher_is_nearer else -near)
        order = np.argsort(-np.concatenate(scores, axis=1), axis=1)[:, :k]
        nearest: Rows = np.take_along_axis(np.concatenate(found, axis=1), order, axis=1)
        return nearest

    def rate(
        self, queries: Vectors, k: int, batch: int, seconds: float, nprobe: int | None = None
    ) -> float:
        """Queries a second in batches, one after the other, with as many threads as FAISS has."""
        done, started = 0, perf_counter()
        while (took := perf_counter() - started) < seconds:
            first = done % (len(queries) - batch + 1)
            self.search(queries[first : first + batch], k, nprobe)
            done += batch
        return done / took

    def _open(self, segment: Path, calibration: Calibration) -> None:
        base = faiss.read_index(str(segment / "index-0.faiss"))
        vectors = np.load(segment / "vectors-0.npy")
        index = faiss.IndexRefineFlat(base, faiss.swig_ptr(vectors))
        index.own_fields = False
        self._vectors.append(vectors)  # FAISS has but a pointer to them.
        ids = np.array(decode_ids(np.load(segment / "keys.npy")), np.int64)
        self._indexes.append((index, calibration, ids))
