"""Conditions, and what joins them: asked of one payload, or of all rows of a set at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Protocol

import numpy as np

from shard.fields import Field, Object
from shard.model import Keys, Mask
from shard.predicates import Predicate
from shard.slices import slice_of


class Rows(Protocol):
    """Those that are asked for masks, each (n,)."""

    def __len__(self) -> int: ...
    def has(self, name: str) -> Mask:
        """Which have a vector of that name."""
        ...

    def among(self, keys: Keys) -> Mask:
        """Which have one of ``keys``."""
        ...

    def in_slice(self, total: int, index: int) -> Mask:
        """Which are in that one of ``total`` slices of all points."""
        ...

    def fulfil(self, field: Field, predicate: Predicate) -> Mask | None:
        """Which have an item in the field that the predicate holds for; None where that takes
        their payloads."""
        ...

    def objects(self, field: Field) -> Objects | None:
        """The field's, as rows; None where that takes the payloads."""
        ...


class Objects(Rows, Protocol):
    def owners(self, mask: Mask) -> Mask:
        """Which of the rows that the objects are of have one in ``mask``."""
        ...


class Test(Protocol):
    """A condition, or several joined."""

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        """For a decoded payload, the point's key, and which of the vectors asked for it has."""
        ...

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        """For which rows, (n,), if a field whose rows are unknown fulfils whatever it is asked
        for, or nothing. The array is not to be written to.

        It holds for those of both, and not for those of neither.
        """
        ...

    def fields(self) -> Iterator[Field]:
        """What it reads."""
        ...


@dataclass(frozen=True)
class _Joined:
    tests: Sequence[Test]

    def fields(self) -> Iterator[Field]:
        for test in self.tests:
            yield from test.fields()


class AllOf(_Joined):
    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return all(test.holds(object, key, has) for test in self.tests)

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        if not self.tests:
            return np.ones(len(rows), np.bool_)
        return reduce(np.logical_and, (test.mask(rows, unknown) for test in self.tests))


class AnyOf(_Joined):
    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return any(test.holds(object, key, has) for test in self.tests)

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        if not self.tests:
            return np.zeros(len(rows), np.bool_)
        return reduce(np.logical_or, (test.mask(rows, unknown) for test in self.tests))


@dataclass(frozen=True)
class Not:
    test: Test

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return not self.test.holds(object, key, has)

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        return ~self.test.mask(rows, not unknown)

    def fields(self) -> Iterator[Field]:
        return self.test.fields()


@dataclass(frozen=True)
class AtLeast(_Joined):
    count: int

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return sum(test.holds(object, key, has) for test in self.tests) >= self.count

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        counts = np.zeros(len(rows), np.int32)
        for test in self.tests:
            counts += test.mask(rows, unknown)
        found: Mask = counts >= self.count
        return found


class Fulfils:
    """One of the items of a field fulfils a predicate."""

    def __init__(self, field: Field, predicate: Predicate) -> None:
        self._field = field
        self._items = field.reader()
        self._predicate = predicate

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return any(map(self._predicate.holds, self._items(object)))

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        found = rows.fulfil(self._field, self._predicate)
        return np.full(len(rows), unknown) if found is None else found

    def fields(self) -> Iterator[Field]:
        yield self._field


class Nested:
    """One of the objects of a field, by itself, fulfils a test."""

    def __init__(self, field: Field, test: Test) -> None:
        self._field = field
        self._objects = field.reader()
        self._test = test

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        # An object of an array has no id of its own, and no vectors.
        return any(self._test.holds(item, b"", {}) for item in self._objects(object))

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        objects = rows.objects(self._field)
        if objects is None:
            return np.full(len(rows), unknown)
        return objects.owners(self._test.mask(objects, unknown))

    def fields(self) -> Iterator[Field]:
        yield self._field
        yield from self._test.fields()


class _OfThePoint:
    """Asks for nothing that is in a payload."""

    def fields(self) -> Iterator[Field]:
        return iter(())


class HasId(_OfThePoint):
    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._set = set(keys.tolist())

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return key in self._set

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        return rows.among(self._keys)


@dataclass(frozen=True)
class InSlice(_OfThePoint):
    total: int
    index: int

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        # Objects of an array, which have no id, are in none.
        return key != b"" and slice_of(key, self.total) == self.index

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        return rows.in_slice(self.total, self.index)


@dataclass(frozen=True)
class HasVector(_OfThePoint):
    name: str

    def holds(self, object: Object, key: bytes, has: Mapping[str, bool]) -> bool:
        return has.get(self.name, False)

    def mask(self, rows: Rows, unknown: bool) -> Mask:
        return rows.has(self.name)
