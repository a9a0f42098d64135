"""Data sets with held-out queries and their true neighbours.

``glove`` is real: GloVe's 340,479 word vectors of 100 dimensions. ``clustered-DIM-ROWS`` is made:
vectors around centres that are themselves around centres, on a subspace, so that a quantizer finds
in them what it finds in embeddings; uniform noise would measure the worst case alone. A path names
a file of the ANN field: ``.hdf5`` of ann-benchmarks, ``.fvecs`` or ``.fbin``.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from router import word_vectors
from router.demo import cache_directory
from shard.index.exact import scan
from shard.model import Distance, Rows, VectorConfig, Vectors

QUERIES = 1_000
TRUE_NEIGHBOURS = 100
_READ_ROWS = 8_192
_MADE = re.compile(r"clustered-(\d+)-(\d+)(k|m)")


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """``vectors`` (n, d) and ``queries`` (q, d) float32, as users would send them."""

    name: str
    distance: Distance
    vectors: Vectors
    queries: Vectors
    truth: Rows
    """(q, TRUE_NEIGHBOURS): rows of ``vectors``, nearest first."""

    def recall(self, found: Rows, k: int) -> float:
        """Recall@k of ``found`` (q, >= k), which answers the first q of the queries."""
        hits = [
            len(np.intersect1d(own[:k], true[:k])) / k
            for own, true in zip(found, self.truth, strict=False)
        ]
        return float(np.mean(hits))


def load(name: str, rows: int | None = None) -> DataSet:
    """The data set of that name, or the first ``rows`` of it. Raises ValueError for another name.

    True neighbours are kept in the cache directory.
    """
    if name == "glove":
        distance, vectors, queries = Distance.COSINE, *glove()
    elif made := _MADE.fullmatch(name):
        count = int(made[2]) * (1_000 if made[3] == "k" else 1_000_000)
        distance, vectors, queries = Distance.COSINE, *clustered(int(made[1]), count)
    elif Path(name).exists():
        distance, vectors, queries = _read(Path(name))
        name = Path(name).stem
    else:
        raise ValueError(f"{name}: expected glove, a file, or such as clustered-128-100k")
    vectors = vectors[:rows]
    return DataSet(
        name=name,
        distance=distance,
        vectors=vectors,
        queries=queries,
        truth=_truth(vectors, queries, distance),
    )


def clustered(dimension: int, rows: int, seed: int = 0) -> tuple[Vectors, Vectors]:
    """``rows`` vectors and QUERIES more of the same distribution."""
    generator = np.random.default_rng(seed)
    inner = max(8, dimension // 4)
    centres = generator.normal(size=(64, inner))[generator.integers(64, size=4_096)]
    centres += generator.normal(scale=0.6, size=centres.shape)
    spread = generator.normal(size=(inner, dimension)) / inner**0.5
    every = np.empty((rows + QUERIES, dimension), np.float32)
    for start in range(0, len(every), 65_536):
        some = every[start : start + 65_536]
        near = centres[generator.integers(len(centres), size=len(some))]
        near += generator.normal(scale=0.5, size=near.shape)
        some[:] = near @ spread + generator.normal(scale=0.15, size=some.shape)
    return every[QUERIES:], every[:QUERIES]


def glove() -> tuple[Vectors, Vectors]:
    """GloVe's vectors in random order, and QUERIES of them held out."""
    package = word_vectors.download(cache_directory(), lambda done, total: None)
    every = np.concatenate([batch for _, batch in word_vectors.read(package, _READ_ROWS)])
    order = np.random.default_rng(0).permutation(len(every))
    return every[order[QUERIES:]], every[order[:QUERIES]]


def _read(path: Path) -> tuple[Distance, Vectors, Vectors]:
    if path.suffix in (".hdf5", ".h5"):
        import h5py  # Only who has such files needs it.

        with h5py.File(path) as file:
            distance = {
                "angular": Distance.COSINE,
                "euclidean": Distance.EUCLID,
                "dot": Distance.DOT,
            }[str(file.attrs.get("distance", "euclidean"))]
            vectors: Vectors = file["train"][:]
            queries: Vectors = file["test"][:QUERIES]
        return distance, vectors, queries
    if path.suffix == ".fvecs":
        width = int(np.fromfile(path, np.int32, 1)[0])
        every = np.fromfile(path, np.float32).reshape(-1, width + 1)[:, 1:].copy()
    elif path.suffix == ".fbin":
        rows, width = np.fromfile(path, np.uint32, 2).tolist()
        every = np.fromfile(path, np.float32, offset=8).reshape(rows, width)
    else:
        raise ValueError(f"{path}: expected .hdf5, .fvecs or .fbin")
    return Distance.EUCLID, every[QUERIES:], every[:QUERIES]


def _truth(vectors: Vectors, queries: Vectors, distance: Distance) -> Rows:
    digest = hashlib.sha256(vectors[:: max(1, len(vectors) // 1_000)].tobytes())
    digest.update(queries.tobytes() + f"{distance} {vectors.shape}".encode())
    path = cache_directory() / f"truth-{digest.hexdigest()[:16]}.npy"
    if path.exists():
        truth: Rows = np.load(path)
        return truth
    config = VectorConfig(dimension=vectors.shape[1], distance=distance)
    truth, _ = scan(
        config.prepare(vectors), config.prepare(queries), TRUE_NEIGHBOURS, distance, None
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, truth)
    partial.rename(path)
    return truth
