"""Which points a request is about, by their payloads and ids: Qdrant's filters.

The structs are the JSON that clients send, and travel to the shards as such. `Filter.check` says
what is wrong with one; `Matcher` evaluates it. What a condition means for arrays, nulls and missing
fields is as in Qdrant 1.16: a condition holds for an array if it does for one of its items.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import groupby, repeat
from typing import Annotated, NamedTuple
from uuid import UUID

import msgspec
import numpy as np
import orjson
from msgspec import Meta

from shard import conditions, json_path
from shard.conditions import AllOf, AnyOf, AtLeast, Fulfils, HasId, HasVector, InSlice, Not, Test
from shard.errors import InvalidInput
from shard.fields import Field, Steps
from shard.model import KEY_DTYPE, Keys, Mask, encode_id
from shard.predicates import (
    Among,
    Area,
    Between,
    Contains,
    HasPhrase,
    HasTerms,
    Place,
    StartsWith,
    Within,
    box,
    circle,
    polygon,
    terms,
)
from shard.text import Analysis
from shard.times import microseconds, parse_time

MAX_CONDITIONS = 8_192
MAX_FIELDS = 256
"""Different ones: of each, a column is made in every segment, while others wait for the thread."""
MAX_DEPTH = 32

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
        test, count = _compile_filter(self, field)
        if count > MAX_CONDITIONS:
            raise InvalidInput(f"{field}: expected at most {MAX_CONDITIONS} conditions")
        if len(set(test.fields())) > MAX_FIELDS:
            raise InvalidInput(f"{field}: expected at most {MAX_FIELDS} different fields")
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


def runs(filters: Sequence[bytes], queries: int) -> Iterator[tuple[bytes, int, int]]:
    """Each filter with the number of the first query that it is for, and of the one after the last.

    ``filters``: of so many queries, one each, or none at all, which are as many empty ones. They
    come again where others are in between.
    """
    start = 0
    for filter, alike in groupby(filters) if filters else [(b"", range(queries))]:
        end = start + sum(1 for _ in alike)
        yield filter, start, end
        start = end


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
        of = _Objects(
            {_steps(path, "text_indexes"): index for path, index in (text_indexes or {}).items()}
        )
        self.test, self.conditions = (
            _compile(filter, field, 0, of)
            if isinstance(filter, Condition)
            else _compile_filter(filter, field, 0, of)
        )
        self.vector_names = frozenset(_vector_names(filter))
        """Of the vectors that it asks points for."""
        self.fields = frozenset(self.test.fields())

    def matches(
        self, keys: Keys, payloads: Sequence[bytes], has: Mapping[str, Mask] | None = None
    ) -> Mask:
        """Which points fulfil it, (n,); ``has``: which have a vector of each of
        `vector_names`."""
        holds = self.test.holds
        loads = orjson.loads
        return np.fromiter(
            (
                holds(loads(payload) if payload else {}, key, had)
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


class _Objects(NamedTuple):
    """Those that a filter is about: points, or objects in arrays."""

    text_indexes: Mapping[Steps, TextIndex] = {}
    """By paths from there."""
    within: tuple[Steps, ...] = ()
    """As in a `Field`."""

    def below(self, steps: Steps) -> _Objects:
        """The objects in the arrays there."""
        to_items = (*steps, None)
        return _Objects(
            {
                path[len(to_items) :]: index
                for path, index in self.text_indexes.items()
                if path[: len(to_items)] == to_items
            },
            (*self.within, steps),
        )


_POINTS = _Objects()


def _compile_filter(
    filter: Filter | Condition, field: str, depth: int = 0, of: _Objects = _POINTS
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
        compiled = _compile_all(given, f"{field}.{name}", depth, of)
        total += sum(count for _, count in compiled)
        parts = [test for test, _ in compiled]
        if not parts:
            continue  # Nothing is asked for.
        tests.append(_JOINED[name](parts))
    if filter.min_should is not None:
        compiled = _compile_all(filter.min_should.conditions, f"{field}.min_should", depth, of)
        total += max(1, sum(count for _, count in compiled))
        tests.append(AtLeast([test for test, _ in compiled], filter.min_should.min_count))
    return _all_of(tests), total


def _compile_all(
    given: Condition | list[Condition], field: str, depth: int, of: _Objects
) -> list[tuple[Test, int]]:
    if isinstance(given, Condition):
        return [_compile(given, field, depth, of)]
    return [_compile(one, f"{field}[{number}]", depth, of) for number, one in enumerate(given)]


def _all_of(tests: list[Test]) -> Test:
    return tests[0] if len(tests) == 1 else AllOf(tests)


_JOINED: dict[str, Callable[[list[Test]], Test]] = {
    "must": _all_of,
    "should": AnyOf,
    "must_not": lambda tests: Not(AnyOf(tests)),
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


def _compile(condition: Condition, field: str, depth: int, of: _Objects) -> tuple[Test, int]:
    given = [name for name in condition.__struct_fields__ if getattr(condition, name) is not None]
    if all(name in _GROUPS for name in given):
        # One that asks for nothing counts as well: `must_not` of it lets nothing through.
        test, count = _compile_filter(condition, field, depth + 1, of)
        return test, max(1, count)
    match given:
        case ["key", name] if name in _FIELD_TESTS:
            steps = _steps(condition.key or "", f"{field}.key")
            return _compile_field(condition, name, steps, f"{field}.{name}", of), 1
        case ["is_empty" | "is_null" as name]:
            named = getattr(condition, name)
            if isinstance(named, PayloadField):
                steps = _steps(named.key, f"{field}.{name}.key")
                return _PRESENCE[name](Field(steps, within=of.within)), 1
        case ["has_id"]:
            return _has_id(condition.has_id or [], f"{field}.has_id"), 1
        case ["slice"]:
            assert condition.slice is not None
            return _in_slice(condition.slice, f"{field}.slice"), 1
        case ["has_vector"]:
            return HasVector(condition.has_vector or ""), 1
        case ["nested"]:
            assert condition.nested is not None
            return _compile_nested(condition.nested, f"{field}.nested", depth + 1, of)
    raise InvalidInput(f"{field}: {', '.join(given)} make no condition together")


def _steps(path: str, field: str) -> Steps:
    return tuple(json_path.parse(path, field))


def _compile_field(condition: Condition, test: str, steps: Steps, field: str, of: _Objects) -> Test:
    values = Field(steps, within=of.within)
    places = values._replace(read="places")
    match test:
        case "is_empty" | "is_null":
            wanted = getattr(condition, test)
            if not isinstance(wanted, bool):
                raise InvalidInput(f"{field}: expected true or false beside `key`")
            found = _PRESENCE[test](values)
            return found if wanted else Not(found)
        case "values_count":
            assert condition.values_count is not None
            bounds = msgspec.structs.asdict(condition.values_count)
            return Fulfils(values._replace(read="counts"), Between(**bounds))
        case "match":
            assert condition.match is not None
            return _match(condition.match, field, values, of.text_indexes.get(steps))
        case "range":
            assert condition.range is not None
            return _range(condition.range, field, values)
        case "geo_bounding_box":
            assert condition.geo_bounding_box is not None
            top_left, bottom_right = _places(
                [condition.geo_bounding_box.top_left, condition.geo_bounding_box.bottom_right]
            )
            return Fulfils(places, Within(box(top_left, bottom_right)))
        case "geo_radius":
            assert condition.geo_radius is not None
            (center,) = _places([condition.geo_radius.center])
            return Fulfils(places, Within(circle(center, condition.geo_radius.radius)))
    assert condition.geo_polygon is not None
    return Fulfils(places, Within(_polygon(condition.geo_polygon, field)))


_PRESENCE: dict[str, Callable[[Field], Test]] = {
    "is_empty": lambda field: Not(Fulfils(field._replace(read="counts"), Between(gt=0))),
    "is_null": lambda field: Fulfils(field, Among([None])),
}


def _has_id(ids: list[int | str], field: str) -> Test:
    wanted = []
    for number, one in enumerate(ids):
        try:
            wanted.append(encode_id(one if isinstance(one, int) else UUID(one)))
        except (InvalidInput, ValueError):
            raise InvalidInput(
                f"{field}[{number}]: expected an unsigned integer or a UUID, got {one!r:.80}"
            ) from None
    return HasId(np.array(wanted, KEY_DTYPE))


def _in_slice(slice: Slice, field: str) -> Test:
    total, index = slice.total, slice.index
    if index >= total:
        raise InvalidInput(f"{field}.index: expected less than `total`, {total}, got {index}")
    return InSlice(total, index)


def _compile_nested(nested: Nested, field: str, depth: int, of: _Objects) -> tuple[Test, int]:
    path = nested.key[:-2] if nested.key.endswith("[]") else nested.key
    steps = _steps(path, f"{field}.key")
    test, count = _compile_filter(nested.filter, f"{field}.filter", depth, of.below(steps))
    return conditions.Nested(Field(steps, "objects", of.within), test), count + 1


_MATCHES = Match.__struct_encode_fields__


def _match(match: Match, field: str, values: Field, index: TextIndex | None) -> Test:
    given = [name for name in match.__struct_fields__ if getattr(match, name) is not None]
    if len(given) != 1:
        raise InvalidInput(f"{field}: expected one of {', '.join(_MATCHES)}")
    if match.value is not None:
        return Fulfils(values, Among([match.value]))
    if match.any is not None:
        return Fulfils(values, Among(match.any))
    if match.except_ is not None:
        return Fulfils(values, Among([None, *match.except_], negated=True))
    if match.prefix is not None:
        return Fulfils(values, StartsWith(match.prefix))
    if match.substring is not None:
        return Fulfils(values, Contains(match.substring))
    analysis = index or Analysis()
    if match.phrase is not None:
        # Not as a query: of words that have prefixes all are part of the phrase.
        phrase = tuple(terms(match.phrase, analysis, query=False))
        if not phrase or (index is not None and not index.phrase_matching):
            return AnyOf([])
        return Fulfils(values, HasPhrase(phrase, analysis))
    words = frozenset(terms(match.text or match.text_any or "", analysis, query=True))
    if match.text is None or not words:
        return Fulfils(values, HasTerms(words, analysis, every=False))
    if index is not None and not values.within:
        # All texts of the field are one.
        return AllOf(
            [
                Fulfils(values, HasTerms(frozenset([word]), analysis, every=False))
                for word in sorted(words)
            ]
        )
    return Fulfils(values, HasTerms(words, analysis, every=True))


def _range(range: Range, field: str, values: Field) -> Test:
    bounds = {name: one for name, one in msgspec.structs.asdict(range).items() if one is not None}
    if not any(isinstance(one, str) for one in bounds.values()):
        return Fulfils(values, Between(**bounds))
    times = {}
    for name, one in bounds.items():
        time = parse_time(one) if isinstance(one, str) else None
        if time is None:
            raise InvalidInput(f"{field}.{name}: expected a date and time, got {one!r:.80}")
        times[name] = microseconds(time)
    return Fulfils(values._replace(read="times"), Between(**times))


def _places(points: list[GeoPoint]) -> list[Place]:
    return [(point.lat, point.lon) for point in points]


def _polygon(given: GeoPolygon, field: str) -> Area:
    rings = [given.exterior, *(given.interiors or [])]
    for ring in rings:
        if len(ring.points) < 4 or ring.points[0] != ring.points[-1]:
            raise InvalidInput(f"{field}: expected four or more points, the last as the first")
    outer, *holes = [_places(ring.points) for ring in rings]
    return polygon(outer, holes)
