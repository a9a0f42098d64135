"""An inverted-file index of 4-bit product codes, scanned with SIMD: FAISS's ``IVFn,PQmx4fs``.

The fast scan of 4-bit codes is from André, Kermarrec and Le Scouarnec, "Quicker ADC" (2018).
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from shard import usage
from shard.errors import Corrupt
from shard.index import coarse
from shard.index.gpu import GpuLists
from shard.model import Distance, Mask, Rows, Vectors

_SAMPLE_PER_LIST = 40
"""Vectors that a list is trained on; FAISS warns of fewer than 39."""
_MANY_DIMENSIONS = 512
_CODE_BITS = 4
_ADD_ROWS = 65_536


class IvfPqIndex:
    """Approximate candidates, by row number. Searches may run in many threads at once."""

    def __init__(self, index: faiss.IndexIVFPQFastScan) -> None:
        self._index = index
        self.rows: int = index.ntotal
        self.lists: int = index.nlist
        self.code_bytes: int = index.code_size

    @classmethod
    def build(cls, vectors: Vectors, distance: Distance, seed: int) -> IvfPqIndex:
        """Train on a sample of ``vectors`` (n, d), prepared float32, n > 0, and add them all."""
        rows = len(vectors)
        sampled = np.random.default_rng(seed).choice(rows, min(rows, sample_rows(rows)), False)
        return cls.train(vectors[np.sort(sampled)], rows, distance, seed).filled(vectors)

    @classmethod
    def train(cls, sample: Vectors, rows: int, distance: Distance, seed: int) -> IvfPqIndex:
        """An empty index for ``rows`` vectors, from a ``sample`` (n, d) of them, n > 0.

        There are two lists per square root of rows, half of what FAISS advises for codes that are
        slower to scan: shorter lists would cost more than they spare.
        """
        dimension = sample.shape[1]
        lists = min(_lists(rows), max(1, len(sample) // _SAMPLE_PER_LIST))
        width = code_width(dimension)
        codes = -(-dimension // width)
        padded = codes * width
        # By inner product also for cosine: by L2 distance a zero vector would be nearer to a query
        # than most others. It is also the faster one, with one look-up table for all lists.
        metric = faiss.METRIC_INNER_PRODUCT if distance.higher_is_nearer else faiss.METRIC_L2
        index = faiss.index_factory(padded, f"IVF{lists},PQ{codes}x4fs", metric)
        index.pq.cp.min_points_per_centroid = 1
        sample = _pad(sample, padded)
        chosen = np.random.default_rng(seed).choice(
            len(sample), min(len(sample), lists * _SAMPLE_PER_LIST), replace=False
        )
        # FAISS trains no quantizer that has its centroids already.
        index.quantizer.add(coarse.train(sample[np.sort(chosen)], lists, distance, seed))
        if len(sample) < 16:  # FAISS wants as many vectors as a code has values.
            sample = np.resize(sample, (16, padded))
        index.train(sample)
        return cls(index)

    def filled(self, vectors: Vectors) -> IvfPqIndex:
        """This index, trained and empty, with ``vectors`` (n, d), prepared float32, as its rows."""
        empty = self._index
        # Codes in the order of rows first: FAISS packs those of a fast scan list by list, and takes
        # lists that are known only here.
        index = faiss.IndexIVFPQ(
            empty.quantizer, empty.d, empty.nlist, empty.pq.M, _CODE_BITS, empty.metric_type
        )
        index.by_residual = False
        index.pq = empty.pq
        index.is_trained = True
        centroids = empty.quantizer.reconstruct_n(0, empty.nlist)
        distance = _distance_of(empty)
        for start in range(0, len(vectors), _ADD_ROWS):
            some = _pad(vectors[start : start + _ADD_ROWS], empty.d)
            lists = coarse.assign(some, centroids, distance)
            index.add_core(len(some), faiss.swig_ptr(some), None, faiss.swig_ptr(lists))
        packed = faiss.IndexIVFPQFastScan(index, empty.bbs)
        # What FAISS keeps alive with it: the owner of its quantizer, but not the unpacked codes.
        packed.referenced_objects = [empty]
        return IvfPqIndex(packed)

    @classmethod
    def open(cls, path: Path) -> IvfPqIndex:
        """Raises Corrupt."""
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise Corrupt(f"{path.name}: {error}") from error
        if not isinstance(index, faiss.IndexIVFPQFastScan):
            raise Corrupt(f"{path.name}: not an IVF-PQ fast-scan index")
        return cls(index)

    def write(self, path: Path) -> None:
        faiss.write_index(self._index, str(path))

    def on_gpu(self, vectors: Vectors) -> GpuLists | None:
        """Its lists with the ``vectors`` (n, d) it was filled with; None where that has no room."""
        return GpuLists.of(
            vectors,
            self._index.quantizer.reconstruct_n(0, self.lists)[:, : vectors.shape[1]],
            inner_product=_distance_of(self._index).higher_is_nearer,
        )

    @property
    def name(self) -> str:
        """As FAISS's index factory has it."""
        return f"IVF{self.lists},PQ{self._index.pq.M}x4fs"

    def candidates(self, queries: Vectors, count: int, nprobe: int, alive: Mask | None) -> Rows:
        """Rows that are probably near, (q, ``count``), nearest first; -1 where there are fewer.

        ``nprobe`` lists are scanned for each of ``queries`` (q, d); ``alive`` (n,) says which rows
        count, None: all.
        """
        nprobe = min(nprobe, self.lists)
        # By the lists' mean length; FAISS knows better only for a whole process.
        codes = len(queries) * self.rows * nprobe // self.lists
        usage.count_vectors(codes, codes * self.code_bytes)
        with usage.stage("scan"):
            if alive is None:
                parameters = faiss.SearchParametersIVF(nprobe=nprobe)
            else:
                selector = faiss.IDSelectorBitmap(np.packbits(alive, bitorder="little"))
                parameters = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
            rows: Rows
            _, rows = self._index.search(_pad(queries, self._index.d), count, params=parameters)
        return rows


def _distance_of(index: faiss.Index) -> Distance:
    inner = index.metric_type == faiss.METRIC_INNER_PRODUCT
    return Distance.DOT if inner else Distance.EUCLID


def sample_rows(rows: int) -> int:
    """How many vectors to train on for an index of ``rows``."""
    return max(_lists(rows), 256) * _SAMPLE_PER_LIST


def _lists(rows: int) -> int:
    return max(1, min(int(2 * rows**0.5), rows // _SAMPLE_PER_LIST))


def code_width(dimension: int) -> int:
    """How many dimensions a code of four bits is for.

    Two; or four, a bit each as in RaBitQ, where there are many. There the errors of codes even out:
    half the memory, and faster at equal recall (measured).
    """
    return 4 if dimension >= _MANY_DIMENSIONS else 2


def _pad(vectors: Vectors, dimension: int) -> Vectors:
    """With zeros added up to ``dimension``, which change no distance."""
    missing = dimension - vectors.shape[1]
    if missing:
        return np.pad(vectors, ((0, 0), (0, missing)))
    return np.ascontiguousarray(vectors)
