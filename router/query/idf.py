"""How rare the components of sparse vectors are, in all of a collection's shards together."""

from __future__ import annotations

import msgspec
import numpy as np

from cluster.catalog import Collection
from router.fanout import Fanout
from shard.model import VectorColumn


async def weighted(
    fanout: Fanout,
    collection: Collection,
    name: str,
    vectors: VectorColumn,
    *,
    filter: bytes = b"",
    timeout: float,
) -> VectorColumn:
    """Queries with each component weighted by how few points have it, of those that ``filter`` lets
    through, where the vectors of that name are sparse and want that; any others as they are.

    The weight is BM25's, as Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009)
    have it, kept above zero. Raises what `Fanout` does.
    """
    sparse = collection.config.sparse.get(name)
    if sparse is None or not sparse.idf or vectors.indices is None:
        return vectors
    indices, place = np.unique(vectors.indices, return_inverse=True)
    counted = await fanout.frequencies(collection, name, indices, filter, timeout=timeout)
    weights = np.log((counted.points - counted.counts + 0.5) / (counted.counts + 0.5) + 1)
    values = vectors.values * weights[place]
    return msgspec.structs.replace(vectors, values=values.astype(np.float32))
