"""Which rows of an immutable set match a filter: worked out once, and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from shard.filter import matcher
from shard.model import Keys, Mask

_REMEMBERED = 256
"""Filters for each set of rows, at a bit a row."""


class Matching:
    """The rows of one set that match filters. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._masks: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def mask(self, filter: bytes, keys: Keys, payloads: Callable[[], Sequence[bytes]]) -> Mask:
        """Of the rows with ``keys`` (n,) and ``payloads``, always the same ones: (n,)."""
        with self._lock:
            packed = self._masks.get(filter)
            if packed is not None:
                self._masks.move_to_end(filter)
        if packed is None:
            # Two threads may do the same work; neither waits for the other.
            packed = np.packbits(matcher(filter).matches(keys, payloads()))
            with self._lock:
                self._masks[filter] = packed
                while len(self._masks) > _REMEMBERED:
                    self._masks.popitem(last=False)
        mask: Mask = np.unpackbits(packed, count=len(keys)).view(np.bool_)
        return mask
