"""A shard as it is in the object store: for the writer that takes it over, or to be read whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import msgspec

from shard.compaction import merged
from shard.errors import Corrupt, Unavailable
from shard.log import Record, WriteAheadLog
from shard.manifest import Manifest, Manifests, SegmentEntry, unpack_alive
from shard.model import Points, ShardConfig
from shard.objects import ObjectStore
from shard.segment import Segment
from shard.segment_store import SegmentStore
from shard.state import ShardState
from shard.view import Layer

_ATTEMPTS = 20

Replayed: TypeAlias = tuple[Manifest, list[Record]]


def take_over(log: WriteAheadLog, manifests: Manifests) -> Replayed:
    """Fence the log, then claim the manifest that it continues.

    Raises Fenced, Corrupt, and Unavailable, also when others keep taking over.
    """
    for _ in range(_ATTEMPTS):
        manifest = manifests.read()
        try:
            records = list(log.take_over(manifest.sequence))
        except Corrupt:
            if manifests.changed():
                continue  # The writer before has truncated what its newer manifest covers.
            raise
        claimed = msgspec.structs.replace(manifest, epoch=log.sequence)
        if manifests.claim(claimed):
            return claimed, records
    raise Unavailable(f"other writers took over {_ATTEMPTS} times meanwhile")


def open_layer(segments: SegmentStore, entry: SegmentEntry, config: ShardConfig) -> Layer:
    """A segment with a local copy. Raises Corrupt, and Unavailable."""
    segments.download(entry.id)
    segment = Segment.open(segments.directory(entry.id), config)
    if segment.rows != entry.rows:
        raise Corrupt(f"segment {entry.id}: {segment.rows} rows, the manifest says {entry.rows}")
    return Layer(
        segment,
        unpack_alive(entry.dead, entry.rows),
        entry.id,
        entry.calibrations,
        entry.unreachable,
    )


def read_points(
    store: ObjectStore, prefix: str, config: ShardConfig, scratch: Path
) -> Iterator[Points]:
    """Every point of the shard at ``prefix``, in key order, in batches with payloads and vectors.

    As of one moment after the call: all that was acknowledged before it is there. Whoever writes
    the shard meanwhile is not disturbed and need not be there. ``scratch`` is an empty directory
    for local copies, wanted until the last batch. Raises Unavailable and Corrupt.
    """
    segments = SegmentStore(store, f"{prefix}/segment", scratch)
    opened: dict[str, Layer] = {}
    for _ in range(_ATTEMPTS):
        manifests = Manifests(store, f"{prefix}/manifest")
        manifest = manifests.read()
        try:
            for entry in manifest.segments:
                if entry.id not in opened:
                    segments.drop(entry.id)
                    opened[entry.id] = open_layer(segments, entry, config)
            layers = [
                replace(opened[entry.id], alive=unpack_alive(entry.dead, entry.rows))
                for entry in manifest.segments
            ]
            state = ShardState(config, layers, manifest.sequence)
            fenced = False
            for record in WriteAheadLog(store, f"{prefix}/log").follow(manifest.sequence):
                fenced = fenced or not record.operations
                state.apply(record.sequence, record.operations)
        except Corrupt:
            if manifests.changed():
                continue  # What the newer one does not need may be gone.
            raise
        # A fence may lie where a batch has been truncated: see `WriteAheadLog`, point 4.
        if not fenced or not manifests.changed():
            yield from merged(state.view.layers, config.names)
            return
    raise Unavailable(f"{prefix}: what it consists of has changed {_ATTEMPTS} times meanwhile")
