"""Which points a request is about, by their payloads and ids: Qdrant's filters.

The structs are the JSON that clients send, and travel to the shards as such. `Filter.check` says
what is wrong with one; `Matcher` evaluates it. What a condition means for arrays, nulls and missing
fields is as in Qdrant 1.16: a condition holds for an array if it does for one of its items.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from itertools import pairwise, repeat
from typing import Annotated, Any, NamedTuple, TypeAlias
from uuid import UUID

import msgspec
import numpy as np
import orjson
from msgspec import Meta

from shard import json_path
from shard.errors import InvalidInput
from shard.model import Keys, Mask, encode_id
from shard.slices import slice_of
from shard.text import Analysis, Analyzer

EARTH_RADIUS = 6_371_008.8
"""Metres, the mean one as the IUGG has it."""
MAX_CONDITIONS = 65_536
MAX_DEPTH = 32

Test: TypeAlias = Callable[[Any, bytes, Mapping[str, bool]], bool]
"""Of a decoded payload, the point's key, and which of the vectors asked for it has."""
ValueTest: TypeAlias = Callable[[Any], bool]
Value = bool | int | str
Bound = float | str


class Struct(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    pass


class Match(Struct):
    """One of these."""

    value: Value | None = None
    any: list[Value] | None = None
    except_: list[Value] | None = msgspec.field(name="except", default=None)
    text: str | None = None
    text_any: str | None = None
    phrase: str | None = None
    prefix: str | None = None
    substring: str | None = None


class Range(Struct):
    """Of numbers, or of dates and times as RFC 3339 writes them."""

    gt: Bound | None = None
    gte: Bound | None = None
    lt: Bound | None = None
    lte: Bound | None = None


class ValuesCount(Struct):
    gt: int | None = None
    gte: int | None = None
    lt: int | None = None
    lte: int | None = None


class GeoPoint(Struct):
    lat: Annotated[float, Meta(ge=-90, le=90)]
    lon: Annotated[float, Meta(ge=-180, le=180)]


class GeoBoundingBox(Struct):
    top_left: GeoPoint
    bottom_right: GeoPoint


class GeoRadius(Struct):
    center: GeoPoint
    radius: float
    """Metres."""


class GeoLine(Struct):
    points: list[GeoPoint]


class GeoPolygon(Struct):
    exterior: GeoLine
    interiors: list[GeoLine] | None = None


class PayloadField(Struct):
    key: str


class MinShould(Struct):
    conditions: list[Condition]
    min_count: Annotated[int, Meta(ge=1)]


class Nested(Struct):
    key: str
    filter: Filter


class Slice(Struct):
    """One of so many parts of all points, each in one of them, by their ids."""

    total: Annotated[int, Meta(ge=1, le=2**32 - 1)]
    index: Annotated[int, Meta(ge=0)]


class Condition(Struct):
    """One of: a ``key`` with what is to hold for it; a field that is empty or null; ids; a slice of
    the ids; a vector that the point has; a filter for the objects of an array; a filter."""

    key: str | None = None
    match: Match | None = None
    range: Range | None = None
    geo_bounding_box: GeoBoundingBox | None = None
    geo_radius: GeoRadius | None = None
    geo_polygon: GeoPolygon | None = None
    values_count: ValuesCount | None = None
    is_empty: PayloadField | bool | None = None
    is_null: PayloadField | bool | None = None
    has_id: list[int | str] | None = None
    slice: Slice | None = None
    has_vector: str | None = None
    nested: Nested | None = None
    must: Condition | list[Condition] | None = None
    should: Condition | list[Condition] | None = None
    must_not: Condition | list[Condition] | None = None
    min_should: MinShould | None = None


class Filter(Struct):
    """All of ``must``, one of ``should``, none of ``must_not``, and so many of ``min_should``."""

    must: Condition | list[Condition] | None = None
    should: Condition | list[Condition] | None = None
    must_not: Condition | list[Condition] | None = None
    min_should: MinShould | None = None

    def as_condition(self) -> Condition:
        """For another filter to have it as one of its conditions."""
        return Condition(**{name: getattr(self, name) for name in self.__struct_fields__})

    def check(self, field: str) -> bytes:
        """The filter as it goes to the shards, ``b""`` if it is empty.

        Raises InvalidInput, naming what is wrong below ``field``.
        """
        count = _compile_filter(self, field)[1]
        if count > MAX_CONDITIONS:
            raise InvalidInput(f"{field}: expected at most {MAX_CONDITIONS} conditions")
        return msgspec.json.encode(self) if count else b""


class TextIndex(Analysis, frozen=True, kw_only=True):
    """How the texts of a field match: by their terms, those of an array by the terms of all."""

    phrase_matching: bool | None = None
    """Whether phrases match at all [false]."""


class _IndexedFilter(Filter):
    """A filter as it goes to the shards."""

    text_indexes: dict[str, TextIndex] = {}
    """By paths of fields. Texts in any other one are taken apart into words, one by one."""


_OF_TEXTS = re.compile(rb'"(?:text|text_any|phrase)":')


def is_of_texts(encoded: bytes) -> bool:
    """Whether a filter, as `Filter.check` encodes it, has to do with text indexes."""
    return _OF_TEXTS.search(encoded) is not None


def with_text_indexes(encoded: bytes, indexes: Mapping[str, TextIndex]) -> bytes:
    """A filter, not empty, that `Filter.check` has encoded, for texts with these indexes, by paths
    of fields."""
    return encoded[:-1] + b',"text_indexes":' + msgspec.json.encode(indexes) + b"}"


# Made before threads use it: see `shard.objects.document`.
_decoder = msgspec.json.Decoder(_IndexedFilter)


@lru_cache(maxsize=256)
def matcher(encoded: bytes) -> Matcher:
    """The matcher of a filter that `Filter.check` has encoded, or `with_text_indexes` after it."""
    try:
        found = _decoder.decode(encoded)
    except msgspec.DecodeError as error:
        raise InvalidInput(f"filter: {error}") from error
    return Matcher(found, text_indexes=found.text_indexes)


class Matcher:
    """Evaluates one filter or condition.

    Raises InvalidInput for what is none, naming what is wrong below ``field``.
    """

    def __init__(
        self,
        filter: Filter | Condition,
        field: str = "filter",
        text_indexes: Mapping[str, TextIndex] | None = None,
    ) -> None:
        """``text_indexes``: by paths of fields."""
        indexes = _TextIndexes(
            {
                tuple(json_path.parse(path, "text_indexes")): index
                for path, index in (text_indexes or {}).items()
            }
        )
        self._test, self.conditions = (
            _compile(filter, field, 0, indexes)
            if isinstance(filter, Condition)
            else _compile_filter(filter, field, indexes=indexes)
        )
        self.vector_names = frozenset(_vector_names(filter))
        """Of the vectors that it asks points for."""

    def matches(
        self, keys: Keys, payloads: Sequence[bytes], has: Mapping[str, Mask] | None = None
    ) -> Mask:
        """Which points fulfil it, (n,); ``has``: which have a vector of each of
        `vector_names`."""
        test = self._test
        loads = orjson.loads
        return np.fromiter(
            (
                test(loads(payload) if payload else {}, key, had)
                for key, payload, had in zip(
                    keys.tolist(), payloads, _rows_of(has or {}, len(keys)), strict=True
                )
            ),
            np.bool_,
            len(keys),
        )


def _rows_of(has: Mapping[str, Mask], rows: int) -> Iterator[Mapping[str, bool]]:
    if not has:
        return repeat({}, rows)
    columns = [mask.tolist() for mask in has.values()]
    return (dict(zip(has, row, strict=True)) for row in zip(*columns, strict=True))


def _vector_names(filter: Filter | Condition) -> Iterator[str]:
    for name in ("must", "should", "must_not"):
        given: Condition | list[Condition] | None = getattr(filter, name)
        for one in [given] if isinstance(given, Condition) else given or []:
            yield from _vector_names(one)
    if filter.min_should is not None:
        for one in filter.min_should.conditions:
            yield from _vector_names(one)
    if isinstance(filter, Condition) and filter.has_vector is not None:
        yield filter.has_vector


class _TextIndexes(NamedTuple):
    by_steps: dict[tuple[str | int | None, ...], TextIndex]
    nested: bool = False

    def below(self, steps: json_path.Steps) -> _TextIndexes:
        """For the objects in the arrays there."""
        to_items = (*steps, None)
        return _TextIndexes(
            {
                path[len(to_items) :]: index
                for path, index in self.by_steps.items()
                if path[: len(to_items)] == to_items
            },
            nested=True,
        )


_NO_INDEXES = _TextIndexes({})


def _compile_filter(
    filter: Filter | Condition, field: str, depth: int = 0, indexes: _TextIndexes = _NO_INDEXES
) -> tuple[Test, int]:
    """What to test, and how many conditions there are in it."""
    if depth > MAX_DEPTH:
        raise InvalidInput(f"filter: expected at most {MAX_DEPTH} filters within one another")
    tests: list[Test] = []
    total = 0
    for name in ("must", "should", "must_not"):
        given: Condition | list[Condition] | None = getattr(filter, name)
        if given is None:
            continue
        compiled = _compile_all(given, f"{field}.{name}", depth, indexes)
        total += sum(count for _, count in compiled)
        parts = [test for test, _ in compiled]
        if not parts:
            continue  # Nothing is asked for.
        tests.append(_COMBINED[name](parts))
    if filter.min_should is not None:
        compiled = _compile_all(filter.min_should.conditions, f"{field}.min_should", depth, indexes)
        total += max(1, sum(count for _, count in compiled))
        tests.append(_at_least(filter.min_should.min_count, [test for test, _ in compiled]))
    return _all_of(tests), total


def _compile_all(
    given: Condition | list[Condition], field: str, depth: int, indexes: _TextIndexes
) -> list[tuple[Test, int]]:
    if isinstance(given, Condition):
        return [_compile(given, field, depth, indexes)]
    return [_compile(one, f"{field}[{number}]", depth, indexes) for number, one in enumerate(given)]


def _all_of(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda payload, key, has: all(test(payload, key, has) for test in tests)


def _any_of(tests: list[Test]) -> Test:
    return lambda payload, key, has: any(test(payload, key, has) for test in tests)


def _none_of(tests: list[Test]) -> Test:
    return lambda payload, key, has: not any(test(payload, key, has) for test in tests)


def _at_least(count: int, tests: list[Test]) -> Test:
    return lambda payload, key, has: sum(test(payload, key, has) for test in tests) >= count


_COMBINED: dict[str, Callable[[list[Test]], Test]] = {
    "must": _all_of,
    "should": _any_of,
    "must_not": _none_of,
}
_FIELD_TESTS = (
    "match",
    "range",
    "geo_bounding_box",
    "geo_radius",
    "geo_polygon",
    "values_count",
    "is_empty",
    "is_null",
)
_GROUPS = ("must", "should", "must_not", "min_should")


def _compile(
    condition: Condition, field: str, depth: int, indexes: _TextIndexes
) -> tuple[Test, int]:
    given = [name for name in condition.__struct_fields__ if getattr(condition, name) is not None]
    if all(name in _GROUPS for name in given):
        # One that asks for nothing counts as well: `must_not` of it lets nothing through.
        test, count = _compile_filter(condition, field, depth + 1, indexes)
        return test, max(1, count)
    match given:
        case ["key", name] if name in _FIELD_TESTS:
            steps = json_path.parse(condition.key or "", f"{field}.key")
            return _compile_field(condition, name, steps, f"{field}.{name}", indexes), 1
        case ["is_empty" | "is_null" as name]:
            named = getattr(condition, name)
            if isinstance(named, PayloadField):
                steps = json_path.parse(named.key, f"{field}.{name}.key")
                return (_is_empty if name == "is_empty" else _is_null)(steps), 1
        case ["has_id"]:
            return _has_id(condition.has_id or [], f"{field}.has_id"), 1
        case ["slice"]:
            assert condition.slice is not None
            return _in_slice(condition.slice, f"{field}.slice"), 1
        case ["has_vector"]:
            name = condition.has_vector or ""
            return lambda payload, key, has: has.get(name, False), 1
        case ["nested"]:
            assert condition.nested is not None
            return _compile_nested(condition.nested, f"{field}.nested", depth + 1, indexes)
    raise InvalidInput(f"{field}: {', '.join(given)} make no condition together")


def _compile_field(
    condition: Condition, test: str, steps: json_path.Steps, field: str, indexes: _TextIndexes
) -> Test:
    match test:
        case "is_empty" | "is_null":
            wanted = getattr(condition, test)
            if not isinstance(wanted, bool):
                raise InvalidInput(f"{field}: expected true or false beside `key`")
            found = (_is_empty if test == "is_empty" else _is_null)(steps)
            return lambda payload, key, has: found(payload, key, has) == wanted
        case "values_count":
            assert condition.values_count is not None
            in_range = _between(condition.values_count)
            return lambda payload, key, has: any(
                in_range(_count(value)) for value in json_path.values(payload, steps) or [None]
            )
        case "match":
            assert condition.match is not None
            index = indexes.by_steps.get(tuple(steps))
            tests = _match(condition.match, field, index, together=not indexes.nested)
            return _all_of([_any_value(steps, test) for test in tests])
        case "range":
            assert condition.range is not None
            return _any_value(steps, _range(condition.range, field))
        case "geo_bounding_box":
            assert condition.geo_bounding_box is not None
            return _any_value(steps, _in_box(condition.geo_bounding_box))
        case "geo_radius":
            assert condition.geo_radius is not None
            return _any_value(steps, _in_radius(condition.geo_radius))
    assert condition.geo_polygon is not None
    return _any_value(steps, _in_polygon(condition.geo_polygon, field))


def _any_value(steps: json_path.Steps, test: ValueTest) -> Test:
    """One of the values that are selected fulfils ``test``; items stand for their array."""
    if len(steps) == 1 and isinstance(name := steps[0], str):

        def simple(payload: Any, key: bytes, has: Mapping[str, bool]) -> bool:
            value = payload.get(name)
            if isinstance(value, list):
                return any(map(test, value))
            return test(value) if value is not None or name in payload else False

        return simple

    def general(payload: Any, key: bytes, has: Mapping[str, bool]) -> bool:
        for value in json_path.values(payload, steps):
            if any(map(test, value)) if isinstance(value, list) else test(value):
                return True
        return False

    return general


# Presence


def _is_empty(steps: json_path.Steps) -> Test:
    return lambda payload, key, has: all(
        value is None or value == [] for value in json_path.values(payload, steps)
    )


def _is_null(steps: json_path.Steps) -> Test:
    return lambda payload, key, has: any(
        value is None or (isinstance(value, list) and None in value)
        for value in json_path.values(payload, steps)
    )


def _count(value: Any) -> int:
    if value is None:
        return 0
    return len(value) if isinstance(value, list) else 1


def _has_id(ids: list[int | str], field: str) -> Test:
    wanted = set()
    for number, one in enumerate(ids):
        try:
            wanted.add(encode_id(one if isinstance(one, int) else UUID(one)))
        except (InvalidInput, ValueError):
            raise InvalidInput(
                f"{field}[{number}]: expected an unsigned integer or a UUID, got {one!r:.80}"
            ) from None
    return lambda payload, key, has: key in wanted


def _in_slice(slice: Slice, field: str) -> Test:
    total, index = slice.total, slice.index
    if index >= total:
        raise InvalidInput(f"{field}.index: expected less than `total`, {total}, got {index}")
    # Objects of an array, which have no id, are in none.
    return lambda payload, key, has: key != b"" and slice_of(key, total) == index


def _compile_nested(
    nested: Nested, field: str, depth: int, indexes: _TextIndexes
) -> tuple[Test, int]:
    path = nested.key[:-2] if nested.key.endswith("[]") else nested.key
    steps = json_path.parse(path, f"{field}.key")
    test, count = _compile_filter(nested.filter, f"{field}.filter", depth, indexes.below(steps))

    def one_of(payload: Any, key: bytes, has: Mapping[str, bool]) -> bool:
        # An object of an array has no id of its own.
        return any(
            test(item, b"", {})
            for value in json_path.values(payload, steps)
            if isinstance(value, list)
            for item in value
            if isinstance(item, dict)
        )

    return one_of, count + 1


# Values


_MATCHES = Match.__struct_encode_fields__


def _match(match: Match, field: str, index: TextIndex | None, *, together: bool) -> list[ValueTest]:
    """What is to hold for one of the values each. ``together``: whether, with an index, all texts
    of the field are one."""
    given = [name for name in match.__struct_fields__ if getattr(match, name) is not None]
    if len(given) != 1:
        raise InvalidInput(f"{field}: expected one of {', '.join(_MATCHES)}")
    if match.value is not None:
        wanted = {_typed(match.value)}
        return [lambda value: _typed(value) in wanted]
    if match.any is not None:
        some = set(map(_typed, match.any))
        return [lambda value: _typed(value) in some]
    if match.except_ is not None:
        others = set(map(_typed, match.except_))
        return [lambda value: value is not None and _typed(value) not in others]
    if match.prefix is not None:
        prefix = match.prefix
        return [lambda value: isinstance(value, str) and value.startswith(prefix)]
    if match.substring is not None:
        substring = match.substring
        return [lambda value: isinstance(value, str) and substring in value]
    if match.phrase is not None:
        return [_has_phrase(match.phrase, index)]
    analysis = index or Analysis()
    words = set(_analyzer(analysis, query=True).terms(match.text or match.text_any or ""))
    found = _analyzer(analysis, query=False).terms

    def has_any(words: set[str]) -> ValueTest:
        return lambda value: isinstance(value, str) and not words.isdisjoint(found(value))

    if match.text is None or not words:
        return [has_any(words)]
    if index is not None and together:
        return [has_any({word}) for word in sorted(words)]
    return [lambda value: isinstance(value, str) and words <= set(found(value))]


def _has_phrase(given: str, index: TextIndex | None) -> ValueTest:
    # Not as a query: of words that have prefixes all are part of the phrase.
    terms = _analyzer(index or Analysis(), query=False).terms
    phrase = terms(given)
    if not phrase or (index is not None and not index.phrase_matching):
        return lambda value: False

    def has_phrase(value: Any) -> bool:
        if not isinstance(value, str):
            return False
        found = terms(value)
        return any(
            found[first : first + len(phrase)] == phrase
            for first in range(len(found) - len(phrase) + 1)
        )

    return has_phrase


@lru_cache(maxsize=32)
def _analyzer(analysis: Analysis, *, query: bool) -> Analyzer[str]:
    return Analyzer(analysis, query=query, of=str)


def _typed(value: Any) -> tuple[type, Any] | None:
    """What tells true from 1 and 1 from 1.0; None for what no condition can name."""
    kind = type(value)
    return (kind, value) if kind in (bool, int, str) else None


def _between(bounds: Range | ValuesCount) -> Callable[[Any], bool]:
    gt, gte, lt, lte = bounds.gt, bounds.gte, bounds.lt, bounds.lte
    return lambda value: (
        (gt is None or value > gt)
        and (gte is None or value >= gte)
        and (lt is None or value < lt)
        and (lte is None or value <= lte)
    )


def _range(range: Range, field: str) -> ValueTest:
    bounds = {name: getattr(range, name) for name in ("gt", "gte", "lt", "lte")}
    given = [one for one in bounds.values() if one is not None]
    if any(isinstance(one, str) for one in given):
        times: dict[str, Any] = {}
        for name, one in bounds.items():
            if one is not None:
                times[name] = parse_time(one) if isinstance(one, str) else None
                if times[name] is None:
                    raise InvalidInput(f"{field}.{name}: expected a date and time, got {one!r:.80}")
        in_time = _between(msgspec.structs.replace(range, **times))

        def is_in_time(value: Any) -> bool:
            time = parse_time(value) if isinstance(value, str) else None
            return time is not None and in_time(time)

        return is_in_time
    in_range = _between(range)
    return lambda value: type(value) in (int, float) and in_range(value)


_TIME = re.compile(
    r"(\d{4})-(\d\d?)-(\d\d?)(?:[Tt ](\d\d?):(\d\d?)"
    r"(?::(\d\d?)(?:\.(\d+))?(?: ?(?:[Zz]|([+-]\d\d(?::?[0-5]\d)?)))?)?)?",
    re.ASCII,
)


def parse_time(text: str) -> datetime | None:
    """A date and time as Qdrant reads it, UTC unless it says otherwise; None for what is none."""
    text = text.lstrip()
    text = text.removesuffix(" UTC") + "Z" if text.endswith(" UTC") else text
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    year, *parts, fraction, offset = found.groups("")
    month, day, hour, minute, second = (part.zfill(2) for part in parts)
    try:
        time = datetime.fromisoformat(
            f"{year}-{month}-{day}T{hour}:{minute}:{second}.{fraction or 0}{offset}"
        )
    except ValueError:
        return None
    return time if offset else time.replace(tzinfo=UTC)


# Places


def _place(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, dict):
        return None
    lat, lon = value.get("lat"), value.get("lon")
    if type(lat) not in (int, float) or type(lon) not in (int, float):
        return None
    return (lat, lon)  # type: ignore[return-value]


def _in_box(box: GeoBoundingBox) -> ValueTest:
    top, left = box.top_left.lat, box.top_left.lon
    bottom, right = box.bottom_right.lat, box.bottom_right.lon

    def is_in(value: Any) -> bool:
        place = _place(value)
        if place is None:
            return False
        lat, lon = place
        # A box may lie across the antimeridian.
        within = left < lon < right if left <= right else lon > left or lon < right
        return within and bottom < lat < top

    return is_in


def _in_radius(circle: GeoRadius) -> ValueTest:
    lat0, lon0 = math.radians(circle.center.lat), math.radians(circle.center.lon)

    def is_in(value: Any) -> bool:
        place = _place(value)
        if place is None:
            return False
        lat, lon = map(math.radians, place)
        # The haversine formula.
        half = (
            math.sin((lat - lat0) / 2) ** 2
            + math.cos(lat) * math.cos(lat0) * math.sin((lon - lon0) / 2) ** 2
        )
        return 2 * EARTH_RADIUS * math.asin(math.sqrt(min(1.0, half))) < circle.radius

    return is_in


def _in_polygon(polygon: GeoPolygon, field: str) -> ValueTest:
    rings = [polygon.exterior, *(polygon.interiors or [])]
    for ring in rings:
        if len(ring.points) < 4 or ring.points[0] != ring.points[-1]:
            raise InvalidInput(f"{field}: expected four or more points, the last as the first")
    outer, *holes = [[(point.lat, point.lon) for point in ring.points] for ring in rings]

    def is_in(value: Any) -> bool:
        place = _place(value)
        if place is None or not _in_ring(place, outer):
            return False
        return not any(_in_ring(place, hole) for hole in holes)

    return is_in


def _in_ring(place: tuple[float, float], ring: list[tuple[float, float]]) -> bool:
    """Whether a ray from there crosses the ring an odd number of times."""
    lat, lon = place
    inside = False
    for (lat1, lon1), (lat2, lon2) in pairwise(ring):
        if (lon1 > lon) != (lon2 > lon) and lat < (lat2 - lat1) * (lon - lon1) / (
            lon2 - lon1
        ) + lat1:
            inside = not inside
    return inside
