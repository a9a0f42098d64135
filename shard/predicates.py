"""What conditions ask of what is in a field: of one item, or of a column of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Protocol, TypeAlias

import numpy as np

from shard.fields import Bound, PlaceColumn, Scalar, ScalarColumn
from shard.model import Mask
from shard.text import Analysis, Analyzer

EARTH_RADIUS = 6_371_008.8
"""Metres, the mean one as the IUGG has it."""

Place: TypeAlias = tuple[float, float]
"""Latitude and longitude, degrees."""
Area: TypeAlias = Callable[[Any, Any], Any]
"""Which of some places are inside, given as their latitudes and longitudes: numbers, or arrays."""


class Predicate(Protocol):
    def holds(self, item: Any) -> bool: ...
    def rows(self, column: Any) -> Mask:
        """Those with an item that it holds for. The column is of the field it is for."""
        ...


class Among:
    """Values, or null, are one of ``values``, or, ``negated``, none of them."""

    def __init__(self, values: Iterable[Scalar], *, negated: bool = False) -> None:
        self._values = list(values)
        self._typed = {(type(value), value) for value in self._values}
        """What tells true from 1 and 1 from 1.0."""
        self._negated = negated

    def holds(self, item: Any) -> bool:
        kind = type(item)
        named = kind in (bool, int, str, type(None)) and (kind, item) in self._typed
        return named != self._negated

    def rows(self, column: ScalarColumn) -> Mask:
        return (column.not_among if self._negated else column.among)(self._values)


@dataclass(frozen=True)
class Between:
    """Numbers are within all bounds that are given."""

    gt: Bound = None
    gte: Bound = None
    lt: Bound = None
    lte: Bound = None

    def holds(self, item: Any) -> bool:
        return (
            type(item) in (int, float)
            and (self.gt is None or item > self.gt)
            and (self.gte is None or item >= self.gte)
            and (self.lt is None or item < self.lt)
            and (self.lte is None or item <= self.lte)
        )

    def rows(self, column: ScalarColumn) -> Mask:
        return column.between(self.gt, self.gte, self.lt, self.lte)


class OfTexts:
    """About texts alone, one after the other."""

    def holds(self, item: Any) -> bool:
        return isinstance(item, str) and self.holds_for(item)

    def rows(self, column: ScalarColumn) -> Mask:
        return column.texts(self.holds_for)

    def holds_for(self, text: str) -> bool:
        raise NotImplementedError


@dataclass(frozen=True)
class StartsWith(OfTexts):
    prefix: str

    def holds_for(self, text: str) -> bool:
        return text.startswith(self.prefix)


@dataclass(frozen=True)
class Contains(OfTexts):
    substring: str

    def holds_for(self, text: str) -> bool:
        return self.substring in text


@dataclass(frozen=True)
class HasTerms(OfTexts):
    """Texts have one of ``terms``, or all."""

    terms: frozenset[str]
    analysis: Analysis
    every: bool

    def holds_for(self, text: str) -> bool:
        found = terms(text, self.analysis, query=False)
        return self.terms.issubset(found) if self.every else not self.terms.isdisjoint(found)


@dataclass(frozen=True)
class HasPhrase(OfTexts):
    """Texts have these terms, which are some, one after the other."""

    phrase: tuple[str, ...]
    analysis: Analysis

    def holds_for(self, text: str) -> bool:
        found = terms(text, self.analysis, query=False)
        length = len(self.phrase)
        return any(
            tuple(found[first : first + length]) == self.phrase
            for first in range(len(found) - length + 1)
        )


def terms(text: str, analysis: Analysis, *, query: bool) -> list[str]:
    """``query``: whether the text is searched for, and not stored."""
    return _analyzer(analysis, query=query).terms(text)


@lru_cache(maxsize=32)
def _analyzer(analysis: Analysis, *, query: bool) -> Analyzer[str]:
    return Analyzer(analysis, query=query, of=str)


@dataclass(frozen=True)
class Within:
    """Places are in an area."""

    area: Area

    def holds(self, item: Any) -> bool:
        return bool(self.area(*item))

    def rows(self, column: PlaceColumn) -> Mask:
        return column.places(self.area)


def box(top_left: Place, bottom_right: Place) -> Area:
    (top, left), (bottom, right) = top_left, bottom_right

    def area(lat: Any, lon: Any) -> Any:
        # A box may lie across the antimeridian.
        west, east = lon > left, lon < right
        return (west & east if left <= right else west | east) & (bottom < lat) & (lat < top)

    return area


def circle(center: Place, radius: float) -> Area:
    """``radius``: metres."""
    lat0, lon0 = map(math.radians, center)

    def area(lat: Any, lon: Any) -> Any:
        lat, lon = np.radians(lat), np.radians(lon)
        # The haversine formula.
        half = (
            np.sin((lat - lat0) / 2) ** 2
            + np.cos(lat) * math.cos(lat0) * np.sin((lon - lon0) / 2) ** 2
        )
        return 2 * EARTH_RADIUS * np.arcsin(np.sqrt(np.minimum(1.0, half))) < radius

    return area


def polygon(exterior: list[Place], interiors: list[list[Place]]) -> Area:
    """Each ring ends where it begins."""

    def area(lat: Any, lon: Any) -> Any:
        inside = _in_ring(lat, lon, exterior)
        for ring in interiors:
            inside = inside & ~_in_ring(lat, lon, ring)
        return inside

    return area


def _in_ring(lat: Any, lon: Any, ring: list[Place]) -> Any:
    """Whether a ray from there crosses the ring an odd number of times."""
    inside = np.zeros(np.shape(lat), np.bool_)
    for (lat1, lon1), (lat2, lon2) in pairwise(ring):
        if lon1 != lon2:
            crossing = (lat2 - lat1) * (lon - lon1) / (lon2 - lon1) + lat1
            inside = inside ^ (((lon1 > lon) != (lon2 > lon)) & (lat < crossing))
    return inside
