"""Whether there is a GPU to compute on: nobody else decides that.

FAISS has to be its GPU build (the ``gpu`` extra), and the process must see a GPU: Ray hides it from
tasks that have not asked for a share of one.
"""

from __future__ import annotations

from threading import local

import faiss
import numpy as np

from shard.model import Rows, Vectors

_TEMPORARY_BYTES = 256 << 20
_threads = local()


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


def _resources() -> faiss.StandardGpuResources:
    # Threads must not share them.
    if not hasattr(_threads, "resources"):
        _threads.resources = faiss.StandardGpuResources()
        _threads.resources.setTempMemory(_TEMPORARY_BYTES)
    return _threads.resources
