"""A shard as readers see it: immutable layers of rows, published whole after every group of writes.

As in Lucene, a reader takes one view and sees one state from beginning to end, whatever is written,
flushed or compacted meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shard import facets, usage
from shard.errors import InvalidInput
from shard.filter import runs
from shard.index.columns import ColumnIndex, SparseColumn
from shard.index.examples import Examples
from shard.model import (
    KEY_DTYPE,
    Calibration,
    Frequencies,
    Hits,
    Keys,
    Mask,
    Points,
    Ranked,
    RankParams,
    Rows,
    Scores,
    SearchParams,
    ShardConfig,
    VectorColumn,
)
from shard.ordering import ordering


class RowSet(Protocol):
    """Rows that never change: a `Segment` or a `MemtableRows`."""

    @property
    def rows(self) -> int: ...
    @property
    def keys(self) -> Keys: ...
    @property
    def indexed(self) -> bool: ...
    def find(self, keys: Keys) -> Rows: ...
    def column(self, name: str) -> ColumnIndex: ...
    def has(self, name: str) -> Mask: ...
    def matching(self, filter: bytes) -> Mask: ...
    def among(self, keys: Keys) -> Mask: ...
    def payload_batches(self) -> Iterable[Sequence[bytes]]: ...
    def payloads(self, rows: Rows) -> list[bytes]: ...
    def vectors(self, name: str, rows: Rows) -> VectorColumn: ...


@dataclass(frozen=True, eq=False)
class Layer:
    """Rows and which of them are alive (None: all). A key is alive in one layer at most."""

    source: RowSet
    alive: Mask | None = None
    segment_id: str = ""
    """Empty for a memtable."""
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    """By the name of the vectors."""
    unreachable: float = 0.0
    """The recall target that no calibration has reached; 0 when none was missed."""

    @cached_property
    def live(self) -> int:
        return self.source.rows if self.alive is None else int(np.count_nonzero(self.alive))

    def matching(self, filter: bytes) -> Layer:
        """The layer with only those rows alive that the filter lets through; ``b""``: all."""
        if not filter or not self.live:
            return self
        with usage.stage("filter"):
            mask = self.source.matching(filter)
        return replace(self, alive=mask if self.alive is None else mask & self.alive)

    def among(self, keys: Keys) -> Layer:
        """The layer with only those rows alive that have one of ``keys``."""
        mask = self.source.among(keys)
        return replace(self, alive=mask if self.alive is None else mask & self.alive)

    def find_live(self, keys: Keys) -> Rows:
        """The live row of each key, -1 where there is none."""
        rows = self.source.find(keys)
        if self.alive is not None:
            # -1 reads the last row's mark, which the second condition discards.
            rows = np.where((rows >= 0) & self.alive[rows], rows, -1)
        return rows

    def search(self, queries: VectorColumn, params: SearchParams) -> tuple[Rows, Scores]:
        """The nearest live rows; exact where only that reaches the recall target."""
        if params.examples:
            return self._by_examples(queries, params)
        picked = self.calibrations.get(params.using)
        return self.source.column(params.using).search(
            queries,
            params.limit,
            exact=params.exact or (picked is None and params.nprobe is None),
            nprobe=params.nprobe or (self._nprobe(picked) if picked else None),
            oversampling=params.oversampling or (picked.oversampling if picked else None),
            alive=self.alive,
        )

    def _by_examples(self, examples: VectorColumn, params: SearchParams) -> tuple[Rows, Scores]:
        has = self.source.has(params.using)
        live = np.flatnonzero(has if self.alive is None else has & self.alive)
        similarities = self.source.column(params.using).similarities(examples, live)
        scores = Examples.decode(params.examples).scores(similarities)
        best = np.argsort(-scores, kind="stable")[: params.limit]
        return live[best][None], scores[best][None]

    def _nprobe(self, picked: Calibration) -> int:
        """As many lists as are calibrated for; more where the nearest live rows lie farther off."""
        return math.ceil(picked.nprobe * math.sqrt(self.source.rows / max(1, self.live)))

    def sampled(self, limit: int) -> list[tuple[float, int]]:
        """Up to ``limit`` live rows by chance, each behind the number that decided it."""
        rows = np.arange(self.source.rows) if self.alive is None else np.flatnonzero(self.alive)
        chances = np.random.default_rng().random(len(rows))
        chosen = np.argsort(chances)[:limit]
        return list(zip(chances[chosen].tolist(), rows[chosen].tolist(), strict=True))

    def live_from(self, start: bytes, limit: int) -> Rows:
        """Up to ``limit`` live rows with keys from ``start`` on, in key order."""
        if self.segment_id:
            return self._segment_rows_from(start, limit)
        order, keys = self._sorted_memtable
        first = int(np.searchsorted(keys, np.array(start, KEY_DTYPE))) if start else 0
        return order[first : first + limit]

    @cached_property
    def _sorted_memtable(self) -> tuple[Rows, Keys]:
        rows = np.arange(self.source.rows) if self.alive is None else np.flatnonzero(self.alive)
        keys = self.source.keys[rows]
        order = np.argsort(keys)
        return rows[order], keys[order]

    def _segment_rows_from(self, start: bytes, limit: int) -> Rows:
        keys, total = self.source.keys, self.source.rows
        position = int(np.searchsorted(keys, np.array(start, KEY_DTYPE))) if start else 0
        found: list[Rows] = []
        missing = limit
        while missing > 0 and position < total:
            end = min(total, position + max(missing, 1024))
            rows = np.arange(position, end)
            if self.alive is not None:
                rows = rows[self.alive[position:end]]
            found.append(rows[:missing])
            missing -= len(found[-1])
            position = end
        return np.concatenate(found) if found else np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class View:
    """One state of a shard. ``layers`` ends with the active memtable."""

    layers: tuple[Layer, ...]
    config: ShardConfig
    sequence: int
    """Log sequence up to which writes are seen."""

    def count(self, filter: bytes = b"") -> int:
        """How many points the filter lets through; ``b""``: all."""
        return sum(layer.matching(filter).live for layer in self.layers)

    def matching_keys(self, filter: bytes) -> Keys:
        """Keys of all points that the filter lets through."""
        found = [layer.matching(filter) for layer in self.layers]
        return np.concatenate(
            [one.source.keys if one.alive is None else one.source.keys[one.alive] for one in found]
        )

    def search(self, queries: VectorColumn, params: SearchParams, filters: Sequence[bytes]) -> Hits:
        """The nearest points to each of ``queries``, which are prepared, with ``filters`` as in
        `ShardEngine.search`. Those of one filter, side by side, are searched for together."""
        alike = list(runs(filters, queries.rows))
        searched = []
        for number, layer in enumerate(self._among(params.among)):
            found = [
                (start, end, *one.search(queries.slice(start, end), params))
                for filter, start, end in alike
                if (one := layer.matching(filter)).live
            ]
            if found:
                searched.append((number, *_in_place(found, queries.rows, params.limit)))
        if not searched:
            return Hits(
                np.zeros(1 if params.examples else queries.rows, np.int64),
                np.empty(0, np.float32),
                self._points(_Located.none(), params.with_payload, params.with_vectors),
            )
        with usage.stage("merge"):
            lengths, hit_scores, located, hit_keys = self._merged(searched, params)
        points = self._points(located, params.with_payload, params.with_vectors, hit_keys)
        return Hits(lengths, hit_scores, points)

    def _merged(
        self, searched: Sequence[tuple[int, Rows, Scores]], params: SearchParams
    ) -> tuple[NDArray[np.int64], Scores, _Located, Keys]:
        """Lengths, scores, places and keys of the nearest, query by query."""
        higher_is_nearer = self.config.higher_is_nearer(params)
        layers, rows, scores = _nearest(searched, params.limit, higher_is_nearer)
        kept = rows >= 0
        if params.score_threshold is not None:
            threshold = np.float32(params.score_threshold)
            near = scores >= threshold if higher_is_nearer else scores <= threshold
            kept &= near
        lengths = kept.sum(axis=1)
        located = _Located(layers[kept], rows[kept])
        hit_scores = scores[kept]
        hit_keys = self._keys(located)
        if (hit_scores[1:] == hit_scores[:-1]).any():
            # Equal scores answer in key order, so that answers do not depend on the layers.
            rank = -hit_scores if higher_is_nearer else hit_scores
            order = np.lexsort((hit_keys, rank, np.repeat(np.arange(len(lengths)), lengths)))
            located = _Located(located.layers[order], located.rows[order])
            hit_scores, hit_keys = hit_scores[order], hit_keys[order]
        return lengths, hit_scores, located, hit_keys

    def rank(self, params: RankParams) -> Ranked:
        """The first points in the order that is asked for."""
        layers = [layer.matching(params.filter) for layer in self._among(params.among)]
        if params.order_by:
            asked = ordering(params.order_by)
            with usage.stage("scan"):
                parts = [
                    [
                        (value, key, (number, row))
                        for value, key, row in asked.first(
                            layer.source.keys,
                            layer.source.payload_batches(),
                            layer.alive,
                            params.limit,
                        )
                    ]
                    for number, layer in enumerate(layers)
                    if layer.live
                ]
            found = asked.merge(parts, params.limit)
            values = [value for value, _, _ in found]
            places = [place for _, _, place in found]
        else:
            chances = [
                (chance, (number, row))
                for number, layer in enumerate(layers)
                for chance, row in layer.sampled(params.limit)
            ]
            chosen = sorted(chances)[: params.limit]
            values = [chance for chance, _ in chosen]
            places = [place for _, place in chosen]
        where = np.array(places, np.int64).reshape(-1, 2)
        located = _Located(where[:, 0], where[:, 1])
        return Ranked(values, self._points(located, params.with_payload, params.with_vectors))

    def facet(self, key: str, filter: bytes) -> facets.Counts:
        """In how many of the points that the filter lets through each value of a field occurs."""
        layers = [layer.matching(filter) for layer in self.layers]
        with usage.stage("scan"):
            return facets.total(
                facets.count(key, layer.source.payload_batches(), layer.alive)
                for layer in layers
                if layer.live
            )

    def _among(self, among: bytes) -> Sequence[Layer]:
        """The layers, with only those rows alive that have one of these keys; ``b""``: all."""
        if not among:
            return self.layers
        keys = np.frombuffer(among, KEY_DTYPE)
        return [layer.among(keys) for layer in self.layers]

    def retrieve(
        self, keys: Keys, active_rows: Rows, *, with_payload: bool, with_vectors: Sequence[str]
    ) -> Points:
        """The points that exist of ``keys``, in that order.

        ``active_rows`` are the keys' rows in the active memtable (-1 for none), which only its
        owner may look up.
        """
        layers = np.full(len(keys), -1, np.int64)
        rows = np.full(len(keys), -1, np.int64)
        for number, layer in enumerate(self.layers):
            if number < len(self.layers) - 1:
                found = layer.find_live(keys)
            else:
                found = active_rows
                if layer.alive is not None:
                    found = np.where((found >= 0) & layer.alive[found], found, -1)
            layers[found >= 0] = number
            rows[found >= 0] = found[found >= 0]
        here = layers >= 0
        located = _Located(layers[here], rows[here])
        return self._points(located, with_payload, with_vectors, keys[here])

    def scroll(
        self,
        start: bytes,
        limit: int,
        *,
        with_payload: bool,
        with_vectors: Sequence[str],
        filter: bytes = b"",
    ) -> Points:
        """Up to ``limit`` points with keys from ``start`` on (``b""``: all), in key order.

        Of these, those that the filter lets through; ``b""``: all.
        """
        found = [layer.matching(filter).live_from(start, limit) for layer in self.layers]
        located = _Located(
            np.repeat(np.arange(len(found)), [len(rows) for rows in found]), np.concatenate(found)
        )
        keys = self._keys(located)
        order = np.argsort(keys)[:limit]
        located = _Located(located.layers[order], located.rows[order])
        return self._points(located, with_payload, with_vectors, keys[order])

    def frequencies(self, name: str, indices: NDArray[np.uint32], filter: bytes) -> Frequencies:
        """Of ``indices`` (t,) in the sparse vectors of that name of what the filter lets through;
        ``b""``: all."""
        points = 0
        counts = np.zeros(len(indices), np.int64)
        for layer in self.layers:
            found = layer.matching(filter)
            if found.live:
                column = layer.source.column(name)
                assert isinstance(column, SparseColumn)
                points += column.points(found.alive)
                counts += column.frequencies(indices, found.alive)
        return Frequencies(points, counts)

    def _keys(self, located: _Located) -> Keys:
        keys = np.empty(len(located.rows), KEY_DTYPE)
        for layer, where, rows in located.by_layer(self.layers):
            keys[where] = layer.source.keys[rows]
        return keys

    def _points(
        self,
        located: _Located,
        with_payload: bool,
        with_vectors: Sequence[str],
        keys: Keys | None = None,
    ) -> Points:
        payloads: list[bytes] | None = None
        with usage.stage("payload"):
            if with_payload:
                payloads = self._payloads(located)
            vectors = {name: self._vectors(name, located) for name in with_vectors}
            keys = self._keys(located) if keys is None else keys
        return Points(keys, payloads, vectors)

    def _payloads(self, located: _Located) -> list[bytes]:
        payloads = [b""] * len(located.rows)
        for layer, where, rows in located.by_layer(self.layers):
            for place, payload in zip(where.tolist(), layer.source.payloads(rows), strict=True):
                payloads[place] = payload
        usage.count_payloads(sum(map(len, payloads)))
        return payloads

    def _vectors(self, name: str, located: _Located) -> VectorColumn:
        if name not in self.config.names:
            raise InvalidInput(f"Not existing vector name error: {name}")
        groups = located.by_layer(self.layers)
        if not groups:
            return self.config.empty(name)
        found = [layer.source.vectors(name, rows) for layer, _, rows in groups]
        if len(found) == 1:
            return found[0]
        places = np.concatenate([where for _, where, _ in groups])
        return VectorColumn.concatenate(found).take(np.argsort(places))


@dataclass(frozen=True, eq=False)
class _Located:
    """Rows of several layers: ``layers`` and ``rows``, both (n,)."""

    layers: NDArray[np.int64]
    rows: Rows

    @staticmethod
    def none() -> _Located:
        return _Located(np.empty(0, np.int64), np.empty(0, np.int64))

    def by_layer(self, layers: Sequence[Layer]) -> list[tuple[Layer, NDArray[np.int64], Rows]]:
        """For each layer that has some: the layer, the places of its rows here, and its rows."""
        if len(self.layers) and (self.layers == self.layers[0]).all():
            return [(layers[int(self.layers[0])], np.arange(len(self.rows)), self.rows)]
        groups = []
        for number in np.unique(self.layers).tolist():
            where = np.flatnonzero(self.layers == number)
            groups.append((layers[number], where, self.rows[where]))
        return groups


def _in_place(
    found: Sequence[tuple[int, int, Rows, Scores]], queries: int, limit: int
) -> tuple[Rows, Scores]:
    """What runs of so many queries have found in a layer, each from a first one to before another,
    as of all of them, (queries, ``limit``); row -1 for those in between."""
    start, end, rows, scores = found[0]
    if end - start == queries:
        return rows, scores
    rows = np.full((queries, limit), -1, np.int64)
    scores = np.zeros((queries, limit), np.float32)
    for start, end, own_rows, own_scores in found:
        rows[start:end], scores[start:end] = own_rows, own_scores
    return rows, scores


def _nearest(
    searched: Sequence[tuple[int, Rows, Scores]], limit: int, higher_is_nearer: bool
) -> tuple[NDArray[np.int64], Rows, Scores]:
    """The nearest of several layers' answers, each (q, n), nearest first and then row -1.

    Answers layers, rows and scores, all (q, up to ``limit``).
    """
    if len(searched) == 1:
        ((number, rows, scores),) = searched
        return np.full(rows.shape, number, np.int64), rows, scores
    rows = np.concatenate([rows for _, rows, _ in searched], axis=1)
    scores = np.concatenate([scores for _, _, scores in searched], axis=1)
    layers = np.concatenate([np.full(own.shape, n, np.int64) for n, own, _ in searched], axis=1)
    rank = np.where(rows >= 0, -scores if higher_is_nearer else scores, np.inf)
    nearest = np.argsort(rank, axis=1, kind="stable")[:, :limit]
    query = np.arange(len(rows))[:, None]
    return layers[query, nearest], rows[query, nearest], scores[query, nearest]
