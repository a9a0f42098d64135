"""Points in the order of a payload's field: Qdrant's ``order_by``.

A point comes once for each different number, or date and time, that its field has, and not at all
if it has none. Equals come in the order of their ids, which a descending order reverses as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from heapq import merge, nlargest, nsmallest
from itertools import chain, compress, islice
from operator import itemgetter
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec
import orjson

from shard import json_path
from shard.errors import InvalidInput
from shard.model import Keys, Mask
from shard.times import microseconds, parse_time

T = TypeVar("T")

Value: TypeAlias = int | float
"""A number of the payload, or a time as microseconds from 1970."""


class OrderBy(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The JSON that clients send, and that travels to the shards as such."""

    key: str
    direction: Literal["asc", "desc"] | None = None
    start_from: int | float | str | None = None
    """The value to begin with; a date and time as RFC 3339 writes it."""

    def check(self, field: str) -> bytes:
        """As it goes to the shards. Raises InvalidInput, naming what is wrong below ``field``."""
        Ordering(self, field)
        return msgspec.json.encode(self)


# Made before threads use it: see `shard.objects.document`.
_decoder = msgspec.json.Decoder(OrderBy)


@lru_cache(maxsize=256)
def ordering(encoded: bytes) -> Ordering:
    """Of what `OrderBy.check` has encoded."""
    try:
        return Ordering(_decoder.decode(encoded))
    except msgspec.DecodeError as error:
        raise InvalidInput(f"order_by: {error}") from error


class Ordering:
    """One ``order_by``."""

    def __init__(self, order_by: OrderBy, field: str = "order_by") -> None:
        self._steps = json_path.parse(order_by.key, f"{field}.key")
        self._descending = order_by.direction == "desc"
        self._start = None if order_by.start_from is None else _value(order_by.start_from)
        if self._start is None and order_by.start_from is not None:
            raise InvalidInput(
                f"{field}.start_from: expected a number or a date and time, "
                f"got {order_by.start_from!r:.80}"
            )

    def first(
        self, keys: Keys, payloads: Iterable[Sequence[bytes]], alive: Mask | None, limit: int
    ) -> list[tuple[Value, bytes, int]]:
        """The first ``limit`` values with the points that have them, by key and row, in order.

        Of rows with ``keys`` (n,) and ``payloads``, JSON, in batches, those that are ``alive``,
        (n,), None for all. No more than ``limit`` are in memory at a time.
        """
        rows = zip(keys, range(len(keys)), chain.from_iterable(payloads), strict=True)
        found = (
            (value, bytes(key), row)
            for key, row, payload in (rows if alive is None else compress(rows, alive))
            if payload
            for value in self._values(orjson.loads(payload))
        )
        return nlargest(limit, found) if self._descending else nsmallest(limit, found)

    def merge(
        self, parts: Iterable[Iterable[tuple[Value, bytes, T]]], limit: int
    ) -> list[tuple[Value, bytes, T]]:
        """The first ``limit`` of what has been found in several places, each in order.

        The last item of each is the caller's own.
        """
        ordered = merge(*parts, key=itemgetter(0, 1), reverse=self._descending)
        return list(islice(ordered, limit))

    def _values(self, payload: Any) -> Iterable[Value]:
        """The different ones of a point, from the start on; of 1 and 1.0 that which comes first."""
        found = (
            _value(item)
            for selected in json_path.values(payload, self._steps)
            for item in (selected if isinstance(selected, list) else [selected])
        )
        return dict.fromkeys(one for one in found if one is not None and self._is_asked_for(one))

    def _is_asked_for(self, value: Value) -> bool:
        if self._start is None:
            return True
        return value <= self._start if self._descending else value >= self._start


def _value(given: Any) -> Value | None:
    kind = type(given)
    if kind is int or kind is float:
        number: Value = given
        return number
    time = parse_time(given) if kind is str else None
    return None if time is None else microseconds(time)
