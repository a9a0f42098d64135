"""The newest rows of a shard, in memory until they are written as a segment."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from shard import usage
from shard.growing import GrowingArray, GrowingColumn
from shard.index.columns import ColumnIndex, open_column
from shard.matching import Matching
from shard.model import (
    KEY_DTYPE,
    Keys,
    Mask,
    Rows,
    ShardConfig,
    VectorColumn,
    VectorColumns,
)

_PART_ROWS = 512
"""Whose fields are read together. Only those that come last are read anew after a write."""


class Memtable:
    """Rows in order of arrival, appended by one thread.

    A row never changes once appended, so what `published` returned stays readable by any thread
    without a lock. Only `find` must not run beside `append`.
    """

    def __init__(self, config: ShardConfig) -> None:
        self._config = config
        self._keys = GrowingArray(np.empty(0, KEY_DTYPE))
        self._columns = {name: GrowingColumn(config.empty(name)) for name in config.names}
        self._alive = GrowingArray(np.empty(0, np.bool_))
        self._payloads: list[bytes] = []
        self._parts: list[Matching] = []
        """What is known of each `_PART_ROWS` rows that are full."""
        self._row_of: dict[bytes, int] = {}
        self.rows = 0
        self.bytes = 0
        """Bytes of the keys, vectors and payloads held, dead rows among them."""

    def append(self, keys: Keys, vectors: VectorColumns, payloads: Sequence[bytes]) -> None:
        """Add rows: ``keys`` (n,) distinct, ``vectors`` of all names, prepared."""
        start, end = self.rows, self.rows + len(keys)
        self._keys.append(keys)
        self._alive.append(np.ones(len(keys), np.bool_))
        for name, column in self._columns.items():
            column.append(vectors[name])
            self.bytes += vectors[name].nbytes
        self._payloads.extend(payloads)
        self._row_of.update(zip(keys.tolist(), range(start, end), strict=True))
        self.bytes += keys.nbytes + sum(map(len, payloads))
        self.rows = end
        while len(self._parts) < self.rows // _PART_ROWS:
            self._parts.append(Matching())

    def find(self, keys: Keys) -> Rows:
        """The newest row of each key, dead or alive; -1 where there is none. Shape (n,)."""
        get = self._row_of.get
        return np.fromiter((get(key, -1) for key in keys.tolist()), np.int64, len(keys))

    def kill(self, rows: Rows) -> None:
        """Mark ``rows`` deleted or overwritten."""
        self._alive.used[rows] = False

    def published(self) -> tuple[MemtableRows, Mask | None]:
        """The rows as they are now, and which of them are alive (None: all)."""
        columns = {name: column.used for name, column in self._columns.items()}
        rows = MemtableRows(
            self, self._config, self._keys.used, columns, self._payloads, self._parts
        )
        alive = self._alive.used
        return rows, None if alive.all() else alive.copy()


class MemtableRows:
    """The first rows of a memtable, fixed; what a `Segment` is on disk."""

    indexed = False

    def __init__(
        self,
        memtable: Memtable,
        config: ShardConfig,
        keys: Keys,
        columns: VectorColumns,
        payloads: list[bytes],
        parts: list[Matching],
    ) -> None:
        self._memtable = memtable
        self._config = config
        self._columns = columns
        self._payloads = payloads
        self.keys = keys
        self.rows = len(keys)
        self._parts = [*parts[: self.rows // _PART_ROWS], Matching()]

    def find(self, keys: Keys) -> Rows:
        return self._memtable.find(keys)

    def column(self, name: str) -> ColumnIndex:
        """The vectors of that name, always compared one by one."""
        return open_column(self._columns[name], self._config.vectors.get(name))

    def matching(self, filter: bytes) -> Mask:
        """Rows that a filter, not empty, lets through, (rows,)."""
        masks = [
            part.mask(filter, _Part(self, self._payloads, number * _PART_ROWS))
            for number, part in enumerate(self._parts)
        ]
        return np.concatenate(masks)

    def among(self, keys: Keys) -> Mask:
        """Rows that have one of ``keys``, (rows,)."""
        # Not by looking them up, which finds rows that are newer.
        return np.isin(self.keys, keys)

    def has(self, name: str) -> Mask:
        """Rows that have a vector of that name, (rows,)."""
        column = self._columns.get(name)
        return np.zeros(self.rows, np.bool_) if column is None else column.has()

    def payload_batches(self) -> Iterable[Sequence[bytes]]:
        """Those of all rows, in order."""
        payloads = self._payloads[: self.rows]
        usage.count_payloads(sum(map(len, payloads)))
        return [payloads]

    def payloads(self, rows: Rows) -> list[bytes]:
        return [self._payloads[row] for row in rows.tolist()]

    def vectors(self, name: str, rows: Rows) -> VectorColumn:
        return self._columns[name].take(rows)


class _Part:
    """A run of a memtable's rows."""

    def __init__(self, rows: MemtableRows, payloads: list[bytes], first: int) -> None:
        self._rows = rows
        self._payloads = payloads
        self._some = slice(first, min(first + _PART_ROWS, rows.rows))
        self.keys = rows.keys[self._some]

    def has(self, name: str) -> Mask:
        return self._rows.has(name)[self._some]

    def among(self, keys: Keys) -> Mask:
        return np.isin(self.keys, keys)

    def payload_batches(self) -> Iterable[Sequence[bytes]]:
        payloads = self._payloads[self._some]
        usage.count_payloads(sum(map(len, payloads)))
        return [payloads]

    def payloads(self, rows: Rows) -> list[bytes]:
        return self._rows.payloads(rows + self._some.start)
