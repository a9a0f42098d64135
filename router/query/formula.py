"""Scores by a formula over the scores of prefetches, payloads and conditions: Qdrant's formula
queries.

The structs are the JSON that clients send. `Formula` says what is wrong with one, and evaluates it
for many points at once, in float64. As in Qdrant 1.20, what has no finite value is an error, for
whichever point that is; a factor of zero hides what comes after it, and so does a numerator of zero
its denominator. An array of one item counts as that item.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import msgspec
import numpy as np
import orjson

from router.query.fusion import Ranking, Values
from shard import json_path
from shard.errors import InvalidInput
from shard.filter import (
    MAX_DEPTH,
    Condition,
    GeoPoint,
    Matcher,
    Struct,
    TextIndex,
)
from shard.model import Keys, Mask, Rows, Scores, decode_id
from shard.predicates import EARTH_RADIUS
from shard.times import parse_time

MAX_EXPRESSIONS = 1_024
"""Conditions inside of conditions are counted as well."""
MIDPOINT = 0.5
SCALE = 1.0


class Division(Struct):
    left: Operand
    right: Operand
    by_zero_default: float | None = None


class Power(Struct):
    base: Operand
    exponent: Operand


class GeoDistance(Struct):
    """In metres, to the place that the payload's field ``to`` holds."""

    origin: GeoPoint
    to: str


class Decay(Struct):
    """From 1, where ``x`` is ``target``, to ``midpoint``, where it is ``scale`` away from it."""

    x: Operand
    target: Operand | None = None
    """0."""
    scale: float | None = None
    """1."""
    midpoint: float | None = None
    """0.5."""


class Expression(Condition):
    """An operation, or a condition: 1 where it holds, 0 where it does not."""

    sum: list[Operand] | None = None
    mult: list[Operand] | None = None
    max: list[Operand] | None = None
    min: list[Operand] | None = None
    neg: Operand | None = None
    abs: Operand | None = None
    div: Division | None = None
    sqrt: Operand | None = None
    pow: Power | None = None
    exp: Operand | None = None
    log10: Operand | None = None
    ln: Operand | None = None
    acosh: Operand | None = None
    geo_distance: GeoDistance | None = None
    datetime: str | None = None
    """Seconds since 1970."""
    datetime_key: str | None = None
    lin_decay: Decay | None = None
    exp_decay: Decay | None = None
    gauss_decay: Decay | None = None


Operand: TypeAlias = float | str | Expression
"""A number; ``$score``, ``$score[1]`` or a key of the payload; or an expression."""


class Formula:
    """Evaluates one formula."""

    fields: set[str]
    """Names of the fields of payloads that it reads, at their top level; none: it reads none."""
    vector_names: set[str]
    """Of the vectors that its conditions ask points for."""

    def __init__(
        self,
        formula: Operand,
        defaults: dict[str, Any] | None,
        field: str,
        text_indexes: Mapping[str, TextIndex] | None = None,
    ) -> None:
        """``defaults`` are for what points lack, by variables as in the formula; ``text_indexes``
        for its conditions, by paths of fields.

        Raises InvalidInput, naming what is wrong below ``field``, where the two are ``formula`` and
        ``defaults``.
        """
        self.fields = set()
        self.vector_names = set()
        self._field = f"{field}.formula"
        self._text_indexes = text_indexes
        self._count = 0
        self._scores: dict[int, float] = {}
        self._payload: dict[tuple[str | int | None, ...], Any] = {}
        for name, value in (defaults or {}).items():
            self._add_default(name, value, f"{field}.defaults[{name!r:.80}]")
        self._evaluate = self._compile(formula, self._field, 0)

    def scores(
        self,
        rankings: Sequence[Ranking],
        keys: Keys,
        payloads: Sequence[bytes],
        has: Mapping[str, Mask] | None = None,
    ) -> Scores:
        """Scores (n,) float32 of the points of ``keys`` (n,), higher is nearer.

        ``rankings`` are those of the prefetches, in order. A point that is not in one has the
        formula's default as its score there, else 0. ``payloads`` are one JSON object a point, with
        `fields` at least; ``b""`` for none. ``has`` says which points have a vector of each of
        `vector_names`.

        Raises InvalidInput, naming the point and the place in the formula, where there is no finite
        score, or a point has not what the formula reads and this has no default.
        """
        points = _Points(rankings, keys, payloads if self.fields else [b""] * len(keys), has or {})
        rows = np.arange(len(keys))
        with np.errstate(all="ignore"):
            found = self._evaluate(points, rows)
            scores = found.astype(np.float32)
        _check_finite(scores.astype(np.float64), [found], points, rows, self._field)
        return scores

    def _add_default(self, name: str, value: Any, field: str) -> None:
        index = _score_index(name, field)
        if index is None:
            self._payload[tuple(json_path.parse(name, field))] = value
        elif value is not None:
            number = _number(value)
            if number is None:
                raise InvalidInput(f"{field}: expected a number, got {value!r:.80}")
            self._scores[index] = number

    def _compile(self, given: Operand, field: str, depth: int) -> _Evaluation:
        if depth > MAX_DEPTH:
            raise InvalidInput(
                f"{self._field}: expected at most {MAX_DEPTH} expressions within one another"
            )
        self._count_in(1)
        if isinstance(given, str):
            return self._variable(given, field)
        if not isinstance(given, Expression):
            return _constant(given)
        names = [name for name in given.__struct_fields__ if getattr(given, name) is not None]
        if _OPERATIONS.isdisjoint(names):
            return self._condition(given, field)
        if len(names) > 1:
            raise InvalidInput(f"{field}: {', '.join(names)} make no expression together")
        (name,) = names
        operand, field = getattr(given, name), f"{field}.{name}"

        def part(given: Operand, suffix: str = "") -> _Evaluation:
            return self._compile(given, field + suffix, depth + 1)

        match operand:
            case list():
                parts = [part(one, f"[{number}]") for number, one in enumerate(operand)]
                return _product(parts) if name == "mult" else _folded(name, parts, field)
            case Division():
                left, right = part(operand.left, ".left"), part(operand.right, ".right")
                return _quotient(left, right, operand.by_zero_default, field)
            case Power():
                base, exponent = part(operand.base, ".base"), part(operand.exponent, ".exponent")
                return _finite(np.power, [base, exponent], field)
            case Decay():
                target = 0.0 if operand.target is None else operand.target
                decayed = _decay(name, operand, field)
                return _applied(decayed, [part(operand.x, ".x"), part(target, ".target")])
            case GeoDistance():
                return self._geo_distance(operand, field)
        if name == "datetime":
            seconds = _seconds(operand)
            if seconds is None:
                raise InvalidInput(f"{field}: expected a date and time, got {operand!r:.80}")
            return _constant(seconds)
        if name == "datetime_key":
            return self._read(operand, field, _seconds, "a date and time")
        if name in _TOTAL:
            return _applied(_TOTAL[name], [part(operand)])
        return _finite(_PARTIAL[name], [part(operand)], field)

    def _count_in(self, expressions: int) -> None:
        self._count += expressions
        if self._count > MAX_EXPRESSIONS:
            raise InvalidInput(f"{self._field}: expected at most {MAX_EXPRESSIONS} expressions")

    def _condition(self, condition: Condition, field: str) -> _Evaluation:
        matcher = Matcher(condition, field, self._text_indexes)
        self._count_in(matcher.conditions - 1)
        self.vector_names |= matcher.vector_names
        for path in _paths(msgspec.to_builtins(condition)):
            self.fields.add(str(json_path.parse(path, field)[0]))

        def holds(points: _Points, rows: Rows) -> Values:
            payloads = [points.payloads[row] for row in rows.tolist()]
            has = {name: mask[rows] for name, mask in points.has.items()}
            return matcher.matches(points.keys[rows], payloads, has).astype(np.float64)

        return holds

    def _variable(self, name: str, field: str) -> _Evaluation:
        index = _score_index(name, field)
        if index is None:
            return self._read(name, field, _number, "a number")
        default = self._scores.get(index, 0.0)

        return lambda points, rows: points.scores(index, default)[rows]

    def _geo_distance(self, given: GeoDistance, field: str) -> _Evaluation:
        places = self._read(given.to, f"{field}.to", _place, "a place with `lat` and `lon`")
        lat0, lon0 = math.radians(given.origin.lat), math.radians(given.origin.lon)

        def metres(points: _Points, rows: Rows) -> Values:
            lat, lon = np.radians(places(points, rows).reshape(-1, 2)).T
            # The haversine formula.
            half = (
                np.sin((lat - lat0) / 2) ** 2
                + np.cos(lat) * np.cos(lat0) * np.sin((lon - lon0) / 2) ** 2
            )
            distances: Values = 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(1, half)))
            return distances

        return metres

    def _read(
        self, path: str, field: str, read: Callable[[Any], Any], expected: str
    ) -> _Evaluation:
        """What ``read`` makes of the value at ``path`` in the payload, else of the default; None:
        nothing."""
        steps = json_path.parse(path, field)
        self.fields.add(str(steps[0]))
        default = self._payload.get(tuple(steps))
        if isinstance(default, list) and len(default) == 1:
            default = default[0]

        def values(points: _Points, rows: Rows) -> Values:
            found = []
            for row in rows.tolist():
                items: list[Any] = []
                for value in json_path.values(points.decoded[row], steps):
                    items += value if isinstance(value, list) else [value]
                value = (items[0] if len(items) == 1 else items) if items else default
                got = read(value)
                if got is None:
                    raise InvalidInput(
                        f"{field}: expected {expected} as {path!r:.80} of point "
                        f"{decode_id(points.keys[row])} or among the defaults, got {value!r:.80}"
                    )
                found.append(got)
            return np.array(found, np.float64)

        return values


class _Points:
    def __init__(
        self,
        rankings: Sequence[Ranking],
        keys: Keys,
        payloads: Sequence[bytes],
        has: Mapping[str, Mask],
    ) -> None:
        self.keys = keys
        self.has = has
        self.payloads = payloads
        self._rankings = rankings
        self._scores: dict[int, Values] = {}

    @cached_property
    def decoded(self) -> list[Any]:
        return [orjson.loads(payload) if payload else {} for payload in self.payloads]

    def scores(self, number: int, default: float) -> Values:
        """In the ranking of that number, (n,)."""
        if number not in self._scores:
            scores = np.full(len(self.keys), default)
            if number < len(self._rankings):
                keys, found = self._rankings[number]
                _, own, ranked = np.intersect1d(
                    self.keys, keys, assume_unique=True, return_indices=True
                )
                scores[own] = found[ranked]
            self._scores[number] = scores
        return self._scores[number]


_Evaluation: TypeAlias = Callable[[_Points, Rows], Values]
"""Of the points of so many rows, (rows,)."""

_OPERATIONS = set(Expression.__struct_fields__) - set(Condition.__struct_fields__)
_TOTAL: dict[str, Callable[..., Values]] = {"neg": np.negative, "abs": np.abs}
_PARTIAL: dict[str, Callable[..., Values]] = {
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log10": np.log10,
    "ln": np.log,
    "acosh": np.arccosh,
}
_FOLDS: dict[str, tuple[Callable[..., Values], float]] = {
    "sum": (np.add, 0.0),
    "max": (np.fmax, -math.inf),
    "min": (np.fmin, math.inf),
}


def _constant(value: float) -> _Evaluation:
    return lambda points, rows: np.full(len(rows), value)


def _applied(function: Callable[..., Values], parts: list[_Evaluation]) -> _Evaluation:
    return lambda points, rows: function(*(part(points, rows) for part in parts))


def _finite(function: Callable[..., Values], parts: list[_Evaluation], field: str) -> _Evaluation:
    def values(points: _Points, rows: Rows) -> Values:
        operands = [part(points, rows) for part in parts]
        return _check_finite(function(*operands), operands, points, rows, field)

    return values


def _check_finite(
    values: Values, operands: list[Values], points: _Points, rows: Rows, field: str
) -> Values:
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        first = wrong[0]
        given = " and ".join(str(operand[first]) for operand in operands)
        raise InvalidInput(
            f"{field}: expected a finite number for each point, got {values[first]} from {given} "
            f"for point {decode_id(points.keys[rows[first]])}"
        )
    return values


def _folded(name: str, parts: list[_Evaluation], field: str) -> _Evaluation:
    function, first = _FOLDS[name]
    if not parts and name != "sum":
        raise InvalidInput(f"{field}: expected at least one operand")

    def folded(points: _Points, rows: Rows) -> Values:
        result = np.full(len(rows), first)
        for part in parts:
            result = function(result, part(points, rows))
        return result

    return folded


def _product(parts: list[_Evaluation]) -> _Evaluation:
    def product(points: _Points, rows: Rows) -> Values:
        result = np.ones(len(rows))
        left = np.arange(len(rows))
        for part in parts:
            factors = part(points, rows[left])
            result[left] = np.where(factors == 0, 0, result[left] * factors)
            left = left[factors != 0]
        return result

    return product


def _quotient(
    left: _Evaluation, right: _Evaluation, by_zero: float | None, field: str
) -> _Evaluation:
    def quotient(points: _Points, rows: Rows) -> Values:
        result = left(points, rows)
        some = np.flatnonzero(result)
        numerators, denominators = result[some], right(points, rows[some])
        quotients = numerators / denominators
        if by_zero is not None:
            quotients[denominators == 0] = by_zero
        operands = [numerators, denominators]
        result[some] = _check_finite(quotients, operands, points, rows[some], field)
        return result

    return quotient


def _decay(name: str, given: Decay, field: str) -> Callable[[Values, Values], Values]:
    midpoint = MIDPOINT if given.midpoint is None else given.midpoint
    scale = SCALE if given.scale is None else given.scale
    linear = name == "lin_decay"
    if not (0 <= midpoint <= 1 if linear else 0 < midpoint < 1):
        bounds = "from 0 to 1" if linear else "between 0 and 1"
        raise InvalidInput(f"{field}.midpoint: expected a number {bounds}, got {midpoint}")
    if scale <= 0:
        raise InvalidInput(f"{field}.scale: expected a number above 0, got {scale}")
    if linear:
        return lambda x, target: np.fmax(0, 1 - abs(x - target) / scale * (1 - midpoint))
    exponent = math.log(midpoint)
    if name == "exp_decay":
        return lambda x, target: np.exp(exponent * (abs(x - target) / scale))
    return lambda x, target: np.exp(exponent * ((x - target) / scale) ** 2)


_SCORE = re.compile(r"\$score(?:\[([0-9]{1,20})\])?")


def _score_index(name: str, field: str) -> int | None:
    """The number of the prefetch whose score it stands for; None for a key of the payload."""
    if not name.startswith("$"):
        return None
    score = _SCORE.fullmatch(name)
    if not score:
        raise InvalidInput(f"{field}: expected `$score` or such as `$score[1]`, got {name!r:.80}")
    return int(score[1] or 0)


def _paths(condition: Any) -> Iterator[str]:
    """Into the payload, of what a condition reads, from its plain values."""
    if isinstance(condition, list):
        for one in condition:
            yield from _paths(one)
    elif isinstance(condition, dict):
        for name, value in condition.items():
            if name in ("key", "nested"):
                yield value if name == "key" else value["key"]
            else:
                yield from _paths(value)


def _number(value: Any) -> float | None:
    if type(value) not in (int, float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _seconds(value: Any) -> float | None:
    time = parse_time(value) if isinstance(value, str) else None
    return None if time is None else time.timestamp()


def _place(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, dict):
        return None
    try:
        place = msgspec.convert({name: value.get(name) for name in ("lat", "lon")}, GeoPoint)
    except msgspec.ValidationError:
        return None
    return place.lat, place.lon
