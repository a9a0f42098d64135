"""Which rows of an immutable set match a filter: worked out once, and remembered."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from shard import usage
from shard.filter import matcher
from shard.model import Keys, Mask

_REMEMBERED = 256
"""Filters for each set of rows, at a bit a row."""


class Matching:
    """The rows of one set that match filters. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._masks: OrderedDict[bytes, NDArray[np.uint8]] = OrderedDict()
        self._lock = Lock()

    def mask(
        self,
        filter: bytes,
        keys: Keys,
        payloads: Callable[[], Iterable[Sequence[bytes]]],
        has: Callable[[str], Mask],
    ) -> Mask:
        """Of the rows with ``keys`` (n,) and ``payloads``, in batches, always the same ones: (n,).

        ``has`` says which of them have a vector of a name.

        Payloads are read once for each filter, a batch at a time.
        """
        with self._lock:
            packed = self._masks.get(filter)
            if packed is not None:
                self._masks.move_to_end(filter)
        usage.count_mask(made=packed is None)
        if packed is None:
            # Two threads may do the same work; neither waits for the other.
            packed = np.packbits(_matches(filter, keys, payloads(), has))
            with self._lock:
                self._masks[filter] = packed
                while len(self._masks) > _REMEMBERED:
                    self._masks.popitem(last=False)
        mask: Mask = np.unpackbits(packed, count=len(keys)).view(np.bool_)
        return mask


def _matches(
    filter: bytes,
    keys: Keys,
    payloads: Iterable[Sequence[bytes]],
    has: Callable[[str], Mask],
) -> Mask:
    found = matcher(filter)
    masks = {name: has(name) for name in found.vector_names}
    mask: Mask = np.empty(len(keys), np.bool_)
    start = 0
    for batch in payloads:
        end = start + len(batch)
        mask[start:end] = found.matches(
            keys[start:end], batch, {name: one[start:end] for name, one in masks.items()}
        )
        start = end
    return mask
