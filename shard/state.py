"""What a shard holds at this moment: the writable side of its views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Lock

import numpy as np

from shard.memtable import Memtable
from shard.model import KEY_DTYPE, Keys, Mask, Operation, Points, Rows, ShardConfig, Upsert
from shard.view import Layer, View


class ShardState:
    """Layers of rows with a memtable on top. Methods may be called from any thread.

    One writer applies; others may at the same time freeze the memtable, and replace layers by what
    they have made of them.
    """

    def __init__(self, config: ShardConfig, layers: Sequence[Layer], sequence: int) -> None:
        self._config = config
        self._lock = Lock()
        self._layers = list(layers)
        self._memtable = Memtable(self._config)
        self._sequence = sequence
        self._touched: list[Keys] | None = None
        self._publish()

    @property
    def view(self) -> View:
        """The newest view."""
        return self._view

    @property
    def memtable_rows(self) -> int:
        return self._memtable.rows

    @property
    def memtable_bytes(self) -> int:
        return self._memtable.bytes

    def apply(self, sequence: int, operations: Sequence[Operation]) -> None:
        """Apply one record of the log; views show all of it or nothing."""
        with self._lock:
            for operation in operations:
                self._kill(operation.keys)
                if self._touched is not None:
                    self._touched.append(operation.keys)
                if isinstance(operation, Upsert):
                    self._memtable.append(operation.keys, operation.vectors, operation.payloads)
            self._sequence = sequence
            self._publish()

    def freeze(self) -> tuple[Layer | None, int]:
        """Start a new memtable. Answers the old one, None if it was empty, and the sequence up to
        which it and the layers beneath hold everything.
        """
        with self._lock:
            frozen = None
            if self._memtable.rows:
                frozen = Layer(*self._memtable.published())
                self._layers.append(frozen)
                self._memtable = Memtable(self._config)
                self._publish()
            return frozen, self._sequence

    def replace(self, replaced: Sequence[Layer], by: Layer | None) -> None:
        """Put ``by`` into the place of the layers it was made from.

        ``replaced`` are those layers as they were then: what has died in them since is dead in
        ``by`` too.
        """
        with self._lock:
            now = {id(layer.source): layer for layer in self._layers}
            if by is not None:
                for before in replaced:
                    died = _died(before, now[id(before.source)])
                    if len(died):
                        rows = by.source.find(died)
                        by = _without(by, rows[rows >= 0])
            gone = {id(layer.source) for layer in replaced}
            self._layers = [layer for layer in self._layers if id(layer.source) not in gone]
            if by is not None:
                self._layers.append(by)
            self._publish()

    def watch(self) -> int:
        """Remember the keys of every write from now on, for `take_in`; the sequence before them."""
        with self._lock:
            self._touched = []
            return self._sequence

    def take_in(self, layers: Sequence[Layer], touched: Sequence[Keys]) -> None:
        """Add ``layers`` as if they had been written before what is ``touched``, or since `watch`.

        Of their keys what is older is dead, and where a key is among the touched, so is theirs.
        A key is live in one of ``layers`` at most.
        """
        with self._lock:
            watched, self._touched = self._touched or [], None
            newer = np.unique(np.concatenate([*touched, *watched, np.empty(0, KEY_DTYPE)]))
            taken = []
            for layer in layers:
                rows = layer.find_live(newer)
                taken.append(_without(layer, rows[rows >= 0]))
                self._kill(taken[-1].source.keys[_alive_rows(taken[-1])])
            self._layers.extend(taken)
            self._publish()

    def retrieve(self, keys: Keys, *, with_payload: bool, with_vectors: Sequence[str]) -> Points:
        """As `View.retrieve`."""
        with self._lock:
            view = self._view
            rows = self._memtable.find(keys)
        return view.retrieve(keys, rows, with_payload=with_payload, with_vectors=with_vectors)

    def matching(self, keys: Keys, filter: bytes) -> Mask:
        """Which of ``keys`` exist and are let through by ``filter``; ``b""``: all. For the writer
        alone."""
        found = np.zeros(len(keys), np.bool_)
        for layer in self._view.layers:
            found |= layer.matching(filter).find_live(keys) >= 0
        return found

    def _kill(self, keys: Keys) -> None:
        for number, layer in enumerate(self._layers):
            rows = layer.find_live(keys)
            rows = rows[rows >= 0]
            if len(rows):
                self._layers[number] = _without(layer, rows)
        rows = self._memtable.find(keys)
        self._memtable.kill(rows[rows >= 0])

    def _publish(self) -> None:
        active = Layer(*self._memtable.published())
        self._view = View((*self._layers, active), self._config, self._sequence)


def _without(layer: Layer, rows: Rows) -> Layer:
    if not len(rows):
        return layer
    # A copy: views that were published before share the old mask.
    alive: Mask = (
        np.ones(layer.source.rows, np.bool_) if layer.alive is None else layer.alive.copy()
    )
    alive[rows] = False
    return replace(layer, alive=alive)


def _alive_rows(layer: Layer) -> Rows:
    return np.arange(layer.source.rows) if layer.alive is None else np.flatnonzero(layer.alive)


def _died(before: Layer, now: Layer) -> Keys:
    if now.alive is before.alive or now.alive is None:
        return before.source.keys[:0]
    died = ~now.alive if before.alive is None else before.alive & ~now.alive
    return before.source.keys[died]
