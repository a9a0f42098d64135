"""Columns of what payloads hold in a field: which rows fulfil a condition, without the payloads.

Made when they are first asked for, of all rows at once, and never stored: like Lucene's doc values,
but held in memory only.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, reduce
from itertools import chain, compress, count, islice
from sys import getsizeof
from typing import Any, Literal, NamedTuple, TypeAlias, TypedDict

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shard import json_path
from shard.model import Mask
from shard.times import microseconds, parse_time

Scalar = bool | int | str | None
Bound = float | None
Object: TypeAlias = Mapping[str, Any]
Array: TypeAlias = NDArray[Any]
Steps: TypeAlias = tuple[str | int | None, ...]

_BATCH_ROWS = 1_024
"""So few that what is decoded stays in the cache."""


class Field(NamedTuple):
    """What is read of an object: of the payload, or of each object in an array."""

    steps: Steps
    read: Literal["values", "counts", "times", "places", "objects"] = "values"
    """``values``: those that the path selects, an array's items in its place. ``counts``: how many
    those are, for each value selected; 0 if none is. ``times``: of those that are dates and times,
    microseconds from 1970. ``places``: of those that are places, latitude and longitude, degrees.
    ``objects``: those that are in arrays.
    """
    within: tuple[Steps, ...] = ()
    """Paths, each to the arrays whose objects are read instead of the object before."""

    @property
    def name(self) -> str:
        """The key of the payload that it is below."""
        return str((self.within[0] if self.within else self.steps)[0])

    def reader(self) -> Callable[[Object], list[Any]]:
        """What answers all of it, for one object after the other."""
        name, *below = steps = self.steps
        pick = _READ[self.read]
        if below:
            return lambda of: pick(json_path.values(of, steps))
        return lambda of: pick([of[name]] if name in of else [])  # type: ignore[index]


def _values(selected: list[Any]) -> list[Any]:
    if len(selected) == 1:
        (value,) = selected
        return value if isinstance(value, list) else selected
    found: list[Any] = []
    for value in selected:
        if isinstance(value, list):
            found += value
        else:
            found.append(value)
    return found


def _count(value: Any) -> int:
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else 1


def _counts(selected: list[Any]) -> list[int]:
    return [_count(value) for value in selected] or [0]


def _times(selected: list[Any]) -> list[int]:
    texts = (value for value in _values(selected) if isinstance(value, str))
    return [microseconds(time) for text in texts if (time := parse_time(text)) is not None]


def _places(selected: list[Any]) -> list[tuple[float, float]]:
    found = []
    for value in _values(selected):
        if isinstance(value, dict):
            lat, lon = value.get("lat"), value.get("lon")
            if type(lat) in (int, float) and type(lon) in (int, float):
                found.append((float(lat), float(lon)))  # type: ignore[arg-type]
    return found


def _objects(selected: list[Any]) -> list[Object]:
    return [
        item
        for value in selected
        if isinstance(value, list)
        for item in value
        if isinstance(item, dict)
    ]


_READ: dict[str, Callable[[list[Any]], list[Any]]] = {
    "values": _values,
    "counts": _counts,
    "times": _times,
    "places": _places,
    "objects": _objects,
}


_NOTHING, _NULL, _FALSE, _TRUE, _OTHER, _INTEGER, _LARGE, _FLOAT, _TEXT = range(9)
"""Kinds of items. The first five are codes as well; those of what has values come behind."""
_KINDS: dict[type, int] = {
    type(None): _NULL,
    bool: _FALSE,
    int: _INTEGER,
    float: _FLOAT,
    str: _TEXT,
    dict: _OTHER,
    list: _OTHER,
}
_NUMBERS: dict[int, Any] = {_INTEGER: np.int64, _LARGE: np.uint64, _FLOAT: np.float64}
"""By their kinds; large are the integers that only an unsigned one of 64 bits holds."""
_MAX = 2**63 - 1
_TEXT_BYTES = 100
"""What a text takes in a dict."""


class ScalarColumn:
    """The values in a field of n rows, each a code, the same for what is equal and of one type.

    The first code of a row is in one array, its others are in another. Codes of numbers ascend as
    the numbers of a type do, so that a range is one of codes; they are compared as Python does,
    exactly. Codes of texts ascend as their hashes do.
    """

    def __init__(
        self,
        rows: int,
        row_of: Array,
        kinds: Array,
        numbers: Mapping[int, Array],
        texts: Sequence[str],
        text_codes: Array,
    ) -> None:
        """``row_of`` (m,), ascending, and ``kinds`` (m,): of every item. ``numbers``: those of each
        kind. ``text_codes``: which of ``texts``, all different, each item is that is one."""
        codes = kinds.astype(np.int64)
        self._numbers: list[tuple[int, Array]] = []
        """Those of a type, ascending, behind the code of the first."""
        first = _INTEGER
        for kind, values in numbers.items():
            if not len(values):
                continue
            different, which = np.unique(values, return_inverse=True)
            codes[kinds == kind] = first + which
            self._numbers.append((first, different))
            first += len(different)
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        order = np.argsort(hashes)
        codes[kinds == _TEXT] = first + np.argsort(order)[text_codes]
        self._first_text = first
        self._hashes = hashes[order]
        self._texts = pa.array([texts[place] for place in order.tolist()], pa.large_string())
        self._end = first + len(texts)
        codes = codes.astype(np.min_scalar_type(self._end))
        is_first = np.diff(row_of, prepend=-1) > 0
        self._codes = np.full(rows, _NOTHING, codes.dtype)
        self._codes[row_of[is_first]] = codes[is_first]
        self._other_codes = codes[~is_first]
        self._other_rows = row_of[~is_first]

    @property
    def nbytes(self) -> int:
        arrays = [self._codes, self._other_codes, self._other_rows, self._hashes, self._texts]
        return sum(int(one.nbytes) for one in (*arrays, *(values for _, values in self._numbers)))

    def among(self, values: Iterable[Scalar]) -> Mask:
        """Rows with one of ``values``, (n,); true is not 1, and no float is any of them."""
        codes = self._codes_of(values)
        if not codes:
            return np.zeros(len(self._codes), np.bool_)
        if len(codes) == 1:
            (code,) = codes
            return self._any(lambda own: own == code)
        hits = np.zeros(self._end, np.bool_)
        hits[codes] = True
        return self._any(hits.take)

    def not_among(self, values: Iterable[Scalar]) -> Mask:
        """Rows with something that is none of ``values``, (n,)."""
        hits = np.ones(self._end, np.bool_)
        hits[[_NOTHING, *self._codes_of(values)]] = False
        return self._any(hits.take)

    def between(
        self, gt: Bound = None, gte: Bound = None, lt: Bound = None, lte: Bound = None
    ) -> Mask:
        """Rows with a number that is within all bounds given, (n,)."""
        ranges = [
            (first + start, first + end)
            for first, values in self._numbers
            for start, end in [_range(values, gt, gte, lt, lte)]
            if start < end
        ]

        if not ranges:
            return np.zeros(len(self._codes), np.bool_)

        def hit(codes: Array) -> Mask:
            # What is below the start wraps around.
            hits = (codes - codes.dtype.type(start) < end - start for start, end in ranges)
            return reduce(np.logical_or, hits)

        return self._any(hit)

    def texts(self, test: Callable[[str], bool]) -> Mask:
        """Rows with a text that ``test`` holds for, (n,)."""
        hits = np.zeros(self._end, np.bool_)
        hits[self._first_text :] = [test(text) for text in self._texts.to_pylist()]
        return self._any(hits.take)

    def _any(self, hit: Callable[[Array], Mask]) -> Mask:
        """``hit``: which of some codes are wanted."""
        mask = hit(self._codes)
        if len(self._other_rows):
            mask[self._other_rows[hit(self._other_codes)]] = True
        return mask

    def _codes_of(self, values: Iterable[Scalar]) -> list[int]:
        """Of those of the values that are there."""
        by_type: dict[type, list[Any]] = {bool: [], int: [], str: [], type(None): []}
        for value in values:
            by_type[type(value)].append(value)
        codes = [_NULL for _ in by_type[type(None)]]
        codes += [_TRUE if value else _FALSE for value in by_type[bool]]
        for first, there in self._numbers:
            if there.dtype != np.float64:
                limits = np.iinfo(there.dtype)
                within = [one for one in by_type[int] if limits.min <= one <= limits.max]
                wanted = np.array(within, there.dtype)  # NumPy would choose floats for some.
                places = np.searchsorted(there, wanted)
                places = np.minimum(places, len(there) - 1)
                codes += (first + places[there[places] == wanted]).tolist()
        texts = by_type[str]
        hashes = np.fromiter(map(hash, texts), np.int64, len(texts))
        starts = np.searchsorted(self._hashes, hashes).tolist()
        ends = np.searchsorted(self._hashes, hashes, side="right").tolist()
        for text, start, end in zip(texts, starts, ends, strict=True):
            same = (place for place in range(start, end) if self._texts[place].as_py() == text)
            codes += [self._first_text + place for place in same]
        return codes


def _range(values: Array, gt: Bound, gte: Bound, lt: Bound, lte: Bound) -> tuple[int, int]:
    """Where those of ascending values are that lie within."""
    exact = float if values.dtype == np.float64 else int
    start, end = 0, len(values)
    if gt is not None:
        start = bisect_right(values, gt, key=exact)
    if gte is not None:
        start = max(start, bisect_left(values, gte, key=exact))
    if lt is not None:
        end = bisect_left(values, lt, key=exact)
    if lte is not None:
        end = min(end, bisect_right(values, lte, key=exact))
    return start, end


class PlaceColumn:
    """The places in a field of n rows."""

    def __init__(self, rows: int, row_of: Array, places: Array) -> None:
        """``row_of`` (m,), ``places`` (m, 2): latitude and longitude, degrees."""
        self._rows = rows
        self._row_of = row_of
        self._lat, self._lon = np.ascontiguousarray(places.T)

    @property
    def nbytes(self) -> int:
        return int(self._row_of.nbytes + self._lat.nbytes + self._lon.nbytes)

    def places(self, test: Callable[[Array, Array], Mask]) -> Mask:
        """Rows with a place that ``test`` holds for, given latitudes and longitudes, (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):  # Numbers that are nowhere on earth.
            inside = test(self._lat, self._lon)
        mask = np.zeros(self._rows, np.bool_)
        mask[self._row_of[inside]] = True
        return mask


class ObjectColumn:
    """The objects in arrays in a field of n rows."""

    def __init__(self, rows: int, row_of: Array) -> None:
        self._rows = rows
        self._row_of = row_of

    def __len__(self) -> int:
        """How many objects there are in all."""
        return len(self._row_of)

    @property
    def nbytes(self) -> int:
        return int(self._row_of.nbytes)

    def objects(self, mask: Mask) -> Mask:
        """Rows with one of the objects that are in ``mask`` (m,), (n,)."""
        rows = np.zeros(self._rows, np.bool_)
        rows[self._row_of[mask]] = True
        return rows


Column = ScalarColumn | PlaceColumn | ObjectColumn


class _Reader:
    """Makes a column of what is read batch after batch."""

    def __init__(self, field: Field) -> None:
        self._items = field.reader()
        self._rows = 0
        self._row_of: list[Array] = [np.empty(0, np.int32)]
        self.bytes = 0
        """That it takes, roughly."""

    def add(self, objects: Sequence[Object]) -> None:
        found = list(map(self._items, objects))
        rows = np.arange(self._rows, self._rows + len(found), dtype=np.int32)
        self._rows += len(found)
        self._row_of.append(np.repeat(rows, list(map(len, found))))
        self.bytes += self._row_of[-1].nbytes
        self._add_items(list(chain.from_iterable(found)))

    def _add_items(self, items: list[Any]) -> None:
        """Nothing but their number counts."""

    def column(self) -> Column:
        return ObjectColumn(self._rows, np.concatenate(self._row_of))


class _PlaceReader(_Reader):
    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self._places: list[Array] = [np.empty((0, 2), np.float64)]

    def _add_items(self, items: list[Any]) -> None:
        self._places.append(np.array(items, np.float64).reshape(-1, 2))
        self.bytes += self._places[-1].nbytes

    def column(self) -> Column:
        return PlaceColumn(self._rows, np.concatenate(self._row_of), np.concatenate(self._places))


class _ScalarReader(_Reader):
    def __init__(self, field: Field) -> None:
        super().__init__(field)
        self._kinds: list[Array] = [np.empty(0, np.uint8)]
        self._numbers: dict[int, list[Array]] = {
            kind: [np.empty(0, dtype)] for kind, dtype in _NUMBERS.items()
        }
        self._text_codes: list[Array] = [np.empty(0, np.int32)]
        self._texts: defaultdict[str, int] = defaultdict(count().__next__)

    def _add_items(self, items: list[Any]) -> None:
        kinds = np.fromiter(map(_KINDS.__getitem__, map(type, items)), np.uint8, len(items))

        def of(kind: int) -> list[Any]:
            there = kinds == kind
            return items if there.all() else list(compress(items, there.tolist()))

        kinds[kinds == _FALSE] += np.array(of(_FALSE), np.uint8)
        kinds[kinds == _INTEGER] += np.array([one > _MAX for one in of(_INTEGER)], np.uint8)
        self._kinds.append(kinds)
        for kind, arrays in self._numbers.items():
            arrays.append(np.array(of(kind), _NUMBERS[kind]))
        texts = of(_TEXT)
        known = len(self._texts)
        codes = np.fromiter(map(self._texts.__getitem__, texts), np.int32, len(texts))
        self._text_codes.append(codes)
        new = islice(reversed(self._texts), len(self._texts) - known)
        self.bytes += 9 * len(items) + sum(_TEXT_BYTES + getsizeof(text) for text in new)

    def column(self) -> Column:
        return ScalarColumn(
            self._rows,
            np.concatenate(self._row_of),
            np.concatenate(self._kinds),
            {kind: np.concatenate(arrays) for kind, arrays in self._numbers.items()},
            list(self._texts),
            np.concatenate(self._text_codes),
        )


def read(
    payloads: Iterable[Sequence[bytes]], fields: Iterable[Field], max_bytes: int
) -> dict[Field, Column | None]:
    """Columns of rows with ``payloads``, JSON, in batches: one for each of ``fields``, and None in
    place of those that would take more than about ``max_bytes`` to make."""
    readers = {field: _reader(field) for field in fields}
    columns: dict[Field, Column | None] = dict.fromkeys(readers)
    decode = _decoder(frozenset(field.name for field in readers))
    for batch in payloads:
        if not readers:
            break
        for first in range(0, len(batch), _BATCH_ROWS):
            objects: _Nested = {(): decode(batch[first : first + _BATCH_ROWS])}
            for field, reader in list(readers.items()):
                reader.add(_within(objects, field.within))
                if reader.bytes > max_bytes:
                    del readers[field]
    return columns | {field: reader.column() for field, reader in readers.items()}


def _reader(field: Field) -> _Reader:
    if field.read == "objects":
        return _Reader(field)
    return _PlaceReader(field) if field.read == "places" else _ScalarReader(field)


_Nested: TypeAlias = dict[tuple[Steps, ...], list[Object]]


def _within(objects: _Nested, paths: tuple[Steps, ...]) -> list[Object]:
    """Those that ``paths`` lead to, remembered in ``objects``."""
    if paths not in objects:
        *before, last = paths
        outer = _within(objects, tuple(before))
        objects[paths] = list(chain.from_iterable(map(Field(last, "objects").reader(), outer)))
    return objects[paths]


@lru_cache(maxsize=256)
def _decoder(names: frozenset[str]) -> Callable[[Sequence[bytes]], list[Object]]:
    """Decodes those fields of payloads; what is skipped costs half as much."""
    wanted = TypedDict("Fields", dict.fromkeys(names, Any), total=False)  # type: ignore[misc]
    # Of others, msgspec does not find those whose UTF-8 Python has not made yet (msgspec#1126).
    plain = all(map(str.isascii, names))
    decode = msgspec.json.Decoder(wanted if plain else dict[str, Any]).decode
    return lambda payloads: [decode(payload) if payload else {} for payload in payloads]
