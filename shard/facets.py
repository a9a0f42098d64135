"""Facets: in how many points each value of a payload's field occurs.

Values are strings, integers and booleans, and UUIDs in whatever form they are written; a point
whose array has a value twice counts once. Counts are exact, so that which values are the most
frequent is decided only once those of all shards are added up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import nsmallest
from itertools import chain, compress
from typing import Any, TypeAlias
from uuid import UUID

import orjson

from shard import json_path
from shard.errors import InvalidInput
from shard.model import Mask

Value: TypeAlias = bool | int | str
Counts: TypeAlias = list[tuple[Value, int]]
"""Values, each once, with the number of points that have it."""

MAX_VALUES = 1_000_000
"""Different ones that are counted; all of a shard's go to the router."""
_KINDS: dict[type, int] = {bool: 0, int: 1, str: 2}
"""Types of values, in the order in which equals are told: true is not 1."""
_UUID_DIGITS = 32

_Counter: TypeAlias = Counter[tuple[int, Value]]


def count(key: str, payloads: Iterable[Sequence[bytes]], alive: Mask | None) -> Counts:
    """Of the points that are alive, (n,), None for all, with ``payloads``, JSON, in batches.

    ``key`` is a path, as `shard.json_path` has it. Raises InvalidInput for one that is none, and
    for more than `MAX_VALUES` values.
    """
    steps = json_path.parse(key, "key")
    rows = chain.from_iterable(payloads)
    counter: _Counter = Counter()
    for payload in rows if alive is None else compress(rows, alive):
        if payload:
            counter.update(set(_values(orjson.loads(payload), steps)))
            _check(counter)
    return _counts(counter)


def total(parts: Iterable[Counts]) -> Counts:
    """Of disjoint sets of points, together. Raises InvalidInput for more than `MAX_VALUES`."""
    counter: _Counter = Counter()
    for part in parts:
        for value, points in part:
            counter[_KINDS[type(value)], value] += points
        _check(counter)
    return _counts(counter)


def top(counts: Counts, limit: int) -> Counts:
    """The ``limit`` most frequent values, the most frequent first; equals by value."""
    return nsmallest(limit, counts, key=lambda one: (-one[1], _KINDS[type(one[0])], one[0]))


def _values(payload: Any, steps: json_path.Steps) -> Iterator[tuple[int, Value]]:
    for selected in json_path.values(payload, steps):
        for value in selected if isinstance(selected, list) else [selected]:
            kind = _KINDS.get(type(value))
            if kind is not None:
                yield kind, _normal(value) if isinstance(value, str) else value


def _normal(text: str) -> str:
    if len(text) < _UUID_DIGITS:
        return text
    try:
        return str(UUID(text))
    except ValueError:
        return text


def _check(counter: _Counter) -> None:
    if len(counter) > MAX_VALUES:
        raise InvalidInput(f"key: expected at most {MAX_VALUES} different values")


def _counts(counter: _Counter) -> Counts:
    return [(value, points) for (_, value), points in counter.items()]
