"""Whether there is a GPU to compute on, and what it computes: nobody else decides that.

FAISS has to be its GPU build (the ``gpu`` extra), and the process must see a GPU. Ray shows a task
or an actor those that it has asked for, and all of the node where it has asked for none.
"""

from __future__ import annotations

import logging
from itertools import count
from threading import Lock, local
from typing import Any

import faiss
import numpy as np

from shard import usage
from shard.model import Mask, Rows, Vectors

logger = logging.getLogger(__name__)

_TEMPORARY_BYTES = 256 << 20
_SEARCH_BYTES = 64 << 20
_COPIED_BYTES = 256 << 20
_MOST = 2_048
"""FAISS selects no more than that on a GPU: lists for a query, or rows."""
_threads = local()
_placed = count()


def is_there() -> bool:
    return bool(faiss.get_num_gpus())


def nearest(vectors: Vectors, of: Vectors, *, inner_product: bool) -> Rows:
    """Of each of ``vectors`` (n, d) the row of the nearest one of ``of`` (m, d), on the GPU.

    By L2 distance, or by ``inner_product``.
    """
    metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
    _, rows = faiss.knn_gpu(
        _resources(), np.ascontiguousarray(vectors), np.ascontiguousarray(of), 1, metric=metric
    )
    found: Rows = rows[:, 0]
    return found


def _resources() -> Any:
    # Threads must not share them.
    if not hasattr(_threads, "resources"):
        _threads.resources = faiss.StandardGpuResources()
        _threads.resources.setTempMemory(_TEMPORARY_BYTES)
    return _threads.resources


class GpuLists:
    """The lists of an inverted file on a GPU, with whole vectors instead of codes.

    Threads may share it, one searches at a time.
    """

    def __init__(self, vectors: Vectors, centroids: Vectors, *, inner_product: bool) -> None:
        """Raises RuntimeError where they do not fit."""
        self._rows, dimension = vectors.shape
        self._row_bytes = dimension * vectors.itemsize
        self._lists = len(centroids)
        self._lock = Lock()
        resources = faiss.StandardGpuResources()
        resources.setTempMemory(_SEARCH_BYTES)
        # By itself it takes 256 MiB, which copies of large arrays would go through.
        resources.setPinnedMemory(0)
        device = next(_placed) % faiss.get_num_gpus()
        metric = faiss.METRIC_INNER_PRODUCT if inner_product else faiss.METRIC_L2
        of_centroids = faiss.GpuIndexFlatConfig()
        of_centroids.device = device
        quantizer = faiss.GpuIndexFlat(resources, dimension, metric, of_centroids)
        quantizer.add(np.ascontiguousarray(centroids))
        of_lists = faiss.GpuIndexIVFFlatConfig()
        of_lists.device = device
        of_lists.indicesOptions = faiss.INDICES_32_BIT
        # It keeps both alive.
        self._index = faiss.GpuIndexIVFFlat(
            resources, quantizer, dimension, self._lists, metric, of_lists
        )
        # At once where the lists are even; and what has no room is told before it is copied.
        self._index.reserveMemory(self._rows)
        step = max(1, _COPIED_BYTES // self._row_bytes)
        for first in range(0, self._rows, step):
            self._index.add(np.ascontiguousarray(vectors[first : first + step]))
        self._index.reclaimMemory()

    @classmethod
    def of(cls, vectors: Vectors, centroids: Vectors, *, inner_product: bool) -> GpuLists | None:
        """Of ``vectors`` (n, d), prepared float32; None without a GPU that has room for them."""
        if not is_there():
            return None
        try:
            return cls(vectors, centroids, inner_product=inner_product)
        except RuntimeError as error:
            logger.info("%d vectors are searched on the CPU: %s", len(vectors), error)
            return None

    def candidates(
        self, queries: Vectors, count: int, nprobe: int, alive: Mask | None
    ) -> Rows | None:
        """The nearest in ``nprobe`` lists, as of `IvfPqIndex.candidates`, or more than ``count``.

        None where so many rows are not ``alive`` that they would have to be selected, too.
        """
        dead = 0 if alive is None else self._rows - int(np.count_nonzero(alive))
        wanted = min(count + dead, self._rows)
        if wanted > _MOST:
            return None
        nprobe = min(nprobe, self._lists, _MOST)
        compared = len(queries) * self._rows * nprobe // self._lists
        usage.count_vectors(compared, compared * self._row_bytes)
        rows: Rows
        with usage.stage("scan"), self._lock:
            self._index.nprobe = nprobe
            _, rows = self._index.search(np.ascontiguousarray(queries), wanted)
        if alive is not None:
            rows = np.where((rows >= 0) & alive[rows], rows, -1)
            rows = np.take_along_axis(rows, np.argsort(rows < 0, axis=1, kind="stable"), axis=1)
        return rows
