"""The newest rows of a shard, in memory until they are written as a segment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shard.index.exact import scan
from shard.matching import Matching
from shard.model import KEY_DTYPE, Distance, Keys, Mask, Rows, Scores, Vectors

_FIRST_CAPACITY = 256


class Memtable:
    """Rows in order of arrival, appended by one thread.

    A row never changes once appended, and a buffer that has grown full is replaced rather than
    resized, so what `published` returned stays readable by any thread without a lock. Only `find`
    must not run beside `append`.
    """

    def __init__(self, dimension: int, distance: Distance) -> None:
        self._distance = distance
        self._keys = np.empty(_FIRST_CAPACITY, KEY_DTYPE)
        self._vectors = np.empty((_FIRST_CAPACITY, dimension), np.float32)
        self._alive = np.empty(_FIRST_CAPACITY, np.bool_)
        self._payloads: list[bytes] = []
        self._row_of: dict[bytes, int] = {}
        self.rows = 0
        self.bytes = 0
        """Bytes of the keys, vectors and payloads held, dead rows among them."""

    def append(self, keys: Keys, vectors: Vectors, payloads: Sequence[bytes]) -> None:
        """Add rows: ``keys`` (n,) distinct, ``vectors`` (n, dimension) prepared float32."""
        start, end = self.rows, self.rows + len(keys)
        if end > len(self._keys):
            capacity = max(end, 2 * len(self._keys))
            self._keys = _grown(self._keys, capacity, start)
            self._vectors = _grown(self._vectors, capacity, start)
            self._alive = _grown(self._alive, capacity, start)
        self._keys[start:end] = keys
        self._vectors[start:end] = vectors
        self._alive[start:end] = True
        self._payloads.extend(payloads)
        self._row_of.update(zip(keys.tolist(), range(start, end), strict=True))
        self.bytes += keys.nbytes + vectors.nbytes + sum(map(len, payloads))
        self.rows = end

    def find(self, keys: Keys) -> Rows:
        """The newest row of each key, dead or alive; -1 where there is none. Shape (n,)."""
        get = self._row_of.get
        return np.fromiter((get(key, -1) for key in keys.tolist()), np.int64, len(keys))

    def kill(self, rows: Rows) -> None:
        """Mark ``rows`` deleted or overwritten."""
        self._alive[rows] = False

    def published(self) -> tuple[MemtableRows, Mask | None]:
        """The rows as they are now, and which of them are alive (None: all)."""
        rows = MemtableRows(
            self, self._keys[: self.rows], self._vectors[: self.rows], self._payloads
        )
        alive = self._alive[: self.rows]
        return rows, None if alive.all() else alive.copy()

    @property
    def distance(self) -> Distance:
        return self._distance


class MemtableRows:
    """The first rows of a memtable, fixed; what a `Segment` is on disk."""

    indexed = False
    index_name = "flat"

    def __init__(
        self, memtable: Memtable, keys: Keys, vectors: Vectors, payloads: list[bytes]
    ) -> None:
        self._memtable = memtable
        self._vectors = vectors
        self._payloads = payloads
        self.keys = keys
        self.rows = len(keys)
        self._matching = Matching()

    def find(self, keys: Keys) -> Rows:
        return self._memtable.find(keys)

    def search(
        self,
        queries: Vectors,
        limit: int,
        *,
        exact: bool,
        nprobe: int | None,
        oversampling: float | None,
        alive: Mask | None,
    ) -> tuple[Rows, Scores]:
        """The nearest rows, always by exact scan. Both (queries, limit)."""
        return scan(self._vectors, queries, limit, self._memtable.distance, alive)

    def matching(self, filter: bytes) -> Mask:
        """Rows that a filter, not empty, lets through, (rows,)."""
        return self._matching.mask(filter, self.keys, lambda: [self._payloads[: self.rows]])

    def payloads(self, rows: Rows) -> list[bytes]:
        return [self._payloads[row] for row in rows.tolist()]

    def vectors(self, rows: Rows) -> Vectors:
        chosen: Vectors = self._vectors[rows]
        return chosen


def _grown(array: NDArray[Any], capacity: int, used: int) -> NDArray[Any]:
    grown = np.empty((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
