"""The live rows of several layers as one run, sorted by key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shard.model import KEY_DTYPE, Points, VectorColumn
from shard.view import Layer

_BATCH_ROWS = 8_192


def merged(layers: Sequence[Layer], names: Sequence[str]) -> Iterator[Points]:
    """All live rows of ``layers``, in key order, in batches with payloads and the vectors of
    ``names``.

    Each key is live in one of the layers at most.
    """
    rows = [
        np.arange(one.source.rows) if one.alive is None else np.flatnonzero(one.alive)
        for one in layers
    ]
    keys = np.concatenate(
        [one.source.keys[live] for one, live in zip(layers, rows, strict=True)]
        or [np.empty(0, KEY_DTYPE)]
    )
    order = np.argsort(keys)
    starts = np.cumsum([0, *map(len, rows)])
    for first in range(0, len(order), _BATCH_ROWS):
        chosen = order[first : first + _BATCH_ROWS]
        payloads = [b""] * len(chosen)
        parts: list[NDArray[np.int64]] = []
        found: dict[str, list[VectorColumn]] = {name: [] for name in names}
        for number, layer in enumerate(layers):
            places = np.flatnonzero((chosen >= starts[number]) & (chosen < starts[number + 1]))
            if not len(places):
                continue
            own = rows[number][chosen[places] - starts[number]]
            parts.append(places)
            for name, columns in found.items():
                columns.append(layer.source.vectors(name, own))
            for place, payload in zip(places.tolist(), layer.source.payloads(own), strict=True):
                payloads[place] = payload
        # All of one layer, which is the most common, are in order.
        back = np.argsort(np.concatenate(parts)) if len(parts) > 1 else None
        yield Points(
            keys[chosen],
            payloads,
            {
                name: columns[0] if back is None else VectorColumn.concatenate(columns).take(back)
                for name, columns in found.items()
            },
        )
