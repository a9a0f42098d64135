"""Which rows of a set that never changes match a filter: by columns of the fields it is about."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import partial
from sys import getsizeof
from typing import Protocol

import numpy as np

from shard import usage
from shard.cache import Cache, memory
from shard.fields import Column, Field, ObjectColumn, read
from shard.filter import Matcher, matcher
from shard.model import Keys, Mask, Rows
from shard.predicates import OfTexts, Predicate
from shard.slices import slices_of

CACHE = Cache(memory() // 16)
"""Columns of fields and masks of filters, of all that this process hosts."""
_LARGEST_COLUMN = 1 / 8
"""As a share of the cache. Where a field would take more, payloads are looked at."""
_PAYLOADS = 1_024
"""That are in memory at a time."""
_UNKNOWN = object()


class RowSet(Protocol):
    """Rows that are always the same."""

    @property
    def keys(self) -> Keys: ...
    def has(self, name: str) -> Mask: ...
    def among(self, keys: Keys) -> Mask: ...
    def payload_batches(self) -> Iterable[Sequence[bytes]]: ...
    def payloads(self, rows: Rows) -> list[bytes]: ...


class Matching:
    """What is known of one set of rows. Methods may be called from any thread; of two that need
    the same, both work it out, and neither waits."""

    def __init__(self, cache: Cache = CACHE) -> None:
        self._cache = cache
        self._number = cache.number(self)

    def mask(self, filter: bytes, rows: RowSet) -> Mask:
        """The rows that a filter, not empty, lets through, (n,), not to be written to. They are
        always the same ones.

        Payloads are read when a filter is about a field for the first time, or again where that has
        been forgotten, or is too large to be kept as a column.
        """
        made = False

        def make() -> Mask:
            nonlocal made
            made = True
            return self._matches(matcher(filter), rows)

        mask = self.remembered(filter, len(rows.keys), make)
        usage.count_mask(made=made)
        return mask

    def remembered(self, key: Hashable, count: int, make: Callable[[], Mask]) -> Mask:
        """What ``make`` answers, (count,), always the same for ``key``. Not to be written to."""
        packed = self._cache.get(self._number, key)
        if packed is None:
            mask = make()
            packed = np.packbits(mask)
            self._cache.put(self._number, key, packed, packed.nbytes + getsizeof(key))
        else:
            mask = np.unpackbits(packed, count=count).view(np.bool_)
        return mask

    def _matches(self, filter: Matcher, rows: RowSet) -> Mask:
        columns = self._columns(filter.fields, rows)
        asked = _AskedRows(self, rows, columns)
        found = filter.test.mask(asked, unknown=False)
        if None in columns.values():
            open = np.flatnonzero(filter.test.mask(asked, unknown=True) & ~found)
            has = {name: rows.has(name) for name in filter.vector_names}
            found = found.copy()
            for first in range(0, len(open), _PAYLOADS):
                some = open[first : first + _PAYLOADS]
                had = {name: mask[some] for name, mask in has.items()}
                payloads = rows.payloads(some)
                usage.count_payloads(sum(map(len, payloads)))
                found[some] = filter.matches(rows.keys[some], payloads, had)
        return found

    def _columns(self, fields: Iterable[Field], rows: RowSet) -> dict[Field, Column | None]:
        """None for what is too large."""
        columns = {field: self._cache.get(self._number, field, _UNKNOWN) for field in fields}
        missing = [field for field, column in columns.items() if column is _UNKNOWN]
        if missing:
            max_bytes = int(self._cache.max_bytes * _LARGEST_COLUMN)
            made = read(rows.payload_batches(), missing, max_bytes)
            for field, column in made.items():
                self._cache.put(self._number, field, column, column.nbytes if column else 0)
            columns |= made
        return columns


class _AskedRows:
    """As a test asks them (`shard.conditions.Rows`)."""

    def __init__(
        self, matching: Matching, rows: RowSet, columns: Mapping[Field, Column | None]
    ) -> None:
        self._matching = matching
        self._rows = rows
        self._columns = columns

    def __len__(self) -> int:
        return len(self._rows.keys)

    def has(self, name: str) -> Mask:
        return self._rows.has(name)

    def among(self, keys: Keys) -> Mask:
        return self._rows.among(keys)

    def in_slice(self, total: int, index: int) -> Mask:
        mask: Mask = slices_of(self._rows.keys, total) == index
        return mask

    def fulfil(self, field: Field, predicate: Predicate) -> Mask | None:
        column = self._columns[field]
        if column is None:
            return None
        make = partial(predicate.rows, column)
        if isinstance(predicate, OfTexts):  # Slow.
            return self._matching.remembered((field, predicate), len(self), make)
        return make()

    def objects(self, field: Field) -> _AskedObjects | None:
        column = self._columns[field]
        if column is None:
            return None
        assert isinstance(column, ObjectColumn)
        return _AskedObjects(self._matching, self._rows, self._columns, column)


class _AskedObjects(_AskedRows):
    """The objects of a field as rows. They have no ids and no vectors of their own."""

    def __init__(
        self,
        matching: Matching,
        rows: RowSet,
        columns: Mapping[Field, Column | None],
        objects: ObjectColumn,
    ) -> None:
        super().__init__(matching, rows, columns)
        self._objects = objects

    def __len__(self) -> int:
        return len(self._objects)

    def has(self, name: str) -> Mask:
        return np.zeros(len(self), np.bool_)

    def among(self, keys: Keys) -> Mask:
        return np.zeros(len(self), np.bool_)

    def in_slice(self, total: int, index: int) -> Mask:
        return np.zeros(len(self), np.bool_)

    def owners(self, mask: Mask) -> Mask:
        return self._objects.objects(mask)
