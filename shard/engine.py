"""One shard: a log-structured merge tree of vectors whose truth is in the object store.

A write is committed in the log, then applied to a memtable. A full memtable is frozen, written as a
segment, uploaded, and named in the manifest, which lets the log be truncated. Small segments are
merged into larger ones, and these get an IVF-PQ index. Readers take immutable views and wait for
none of this.

The scheme is that of LSM engines over object storage, such as SlateDB; that of frozen segments with
an index each, merged in the background, is Lucene's.
"""

from __future__ import annotations

import ctypes
import logging
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from time import monotonic

import msgspec
import numpy as np
from numpy.typing import NDArray

from shard import facets
from shard.builder import Builder, Source
from shard.compaction import merged
from shard.edits import Edit, resolve
from shard.errors import Fenced, InvalidInput, ShoalError, Unavailable
from shard.imports import Imports
from shard.log import WriteAheadLog
from shard.manifest import Manifest, Manifests, SegmentEntry, pack_dead
from shard.merge_policy import choose_merge, gets_index
from shard.model import (
    Calibration,
    Frequencies,
    Hits,
    Keys,
    Operation,
    Points,
    Ranked,
    RankParams,
    SearchParams,
    SegmentInfo,
    ShardConfig,
    ShardInfo,
    Upsert,
    VectorColumn,
)
from shard.objects import ObjectStore
from shard.recovery import open_layer, take_over
from shard.segment import Segment, write_segment
from shard.segment_store import SegmentStore
from shard.state import ShardState
from shard.view import Layer
from shard.write_queue import Write, WriteQueue

logger = logging.getLogger(__name__)

MEMTABLE_ROWS = 4_096
MEMTABLE_BYTES = 8 << 20
LOG_BYTES = 32 << 20
"""A memtable is flushed at this many rows or bytes, or bytes of log to replay without it."""
FULL_MEMTABLES = 4
"""Writes wait while the memtable is this many times over its bounds."""
IDLE_SECONDS, IDLE_ROWS = 2.0, 1_024
"""A memtable of so many rows is flushed when nothing has been written for so long."""
DIRTY_SECONDS = 60.0
"""Any memtable is flushed after this long."""
MANY_SEGMENTS = 32
"""With more than so many to scan, it is better for searches that these are merged at their cost."""
SETTLED_SECONDS = 5.0
"""Segments are tidied up when nothing has been written for so long."""
BACKOFF_SECONDS = (0.5, 30.0)


class ShardEngine:
    """One writer's hold on a shard. Methods may be called from any thread.

    When another writer takes the shard over, or something unforeseen happens while writing, the
    engine has a `failure` and takes no more writes; the shard must be opened again.
    """

    def __init__(
        self,
        config: ShardConfig,
        state: ShardState,
        log: WriteAheadLog,
        manifests: Manifests,
        segments: SegmentStore,
        imports: Imports,
        builder: Builder,
        manifest: Manifest,
    ) -> None:
        self._config = config
        self._state = state
        self._log = log
        self._manifests = manifests
        self._segments = segments
        self._imports = imports
        self._builder = builder
        self._epoch = manifest.epoch

        self._queue = WriteQueue()
        self._failure: ShoalError | None = None
        self._error: str | None = None
        self._closing = Event()

        self._flushing = Lock()
        self._frozen: tuple[Layer | None, int] | None = None
        self._frozen_since: float | None = None
        self._covered = manifest.sequence
        self._manifesting = Lock()
        self._uncommitted = False
        self._garbage: set[str] = set()
        self._awaited = dict(manifest.awaited)
        self._taken_in = set(manifest.taken_in)

        self._wake = Condition()
        self._last_write = monotonic()
        self._dirty_since = monotonic() if state.view.sequence > self._covered else None
        self._log_bytes = 0
        self._build: Future[None] | None = None
        self._build_failures = 0
        self._build_after = 0.0

        self._threads = [
            Thread(target=self._write_loop, name="write", daemon=True),
            Thread(target=self._maintain, name="maintain", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(
        cls, store: ObjectStore, prefix: str, config: ShardConfig, scratch: Path, builder: Builder
    ) -> ShardEngine:
        """Take the shard at ``prefix`` over from whoever has it, and recover it.

        ``scratch`` is a directory for local copies, emptied here.
        Blocks. Raises Unavailable, Fenced when another writer takes it over at the same time, and
        Corrupt.
        """
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True, exist_ok=True)
        # An engine that was closed in the midst of a build may still write beside this one.
        own = Path(tempfile.mkdtemp(dir=scratch))
        log = WriteAheadLog(store, f"{prefix}/log")
        manifests = Manifests(store, f"{prefix}/manifest")
        segments = SegmentStore(store, f"{prefix}/segment", own)
        manifest, records = take_over(log, manifests)
        layers = [open_layer(segments, entry, config) for entry in manifest.segments]
        state = ShardState(config, layers, manifest.sequence)
        for record in records:
            state.apply(record.sequence, record.operations)
        imports = Imports(store, prefix)
        return cls(config, state, log, manifests, segments, imports, builder, manifest)

    @property
    def failure(self) -> ShoalError | None:
        """Why the shard must be opened again, if it must."""
        return self._failure

    def write(self, operations: Sequence[Operation], *, applied: bool = True) -> Future[int]:
        """Commit ``operations``, all or none; answers with their log sequence.

        That is when they are durable, and with ``applied`` also seen by readers. Raises, or answers
        with, Overloaded, InvalidInput, Fenced, or Unavailable: the write may then come about or
        not.
        """
        write = Write([self._prepare(operation) for operation in operations], applied)
        self._queue.put(write)
        return write.committed

    def edit(
        self, edit: Edit, chosen: Keys | Upsert | None, filter: bytes, *, applied: bool = True
    ) -> Future[int]:
        """Carry out ``edit`` as `edits.resolve` has it, on points as they are when its turn has
        come. Answers and raises as `write` does.

        What takes several records of the log may come about in part.
        """
        if isinstance(chosen, Upsert):
            prepared = self._config.prepare(chosen.vectors, len(chosen.keys))
            chosen = msgspec.structs.replace(chosen, vectors=prepared)
        write = Write([], applied, lambda: resolve(edit, self._state, chosen, filter))
        self._queue.put(write)
        return write.committed

    def search(
        self, queries: VectorColumn, params: SearchParams, filters: Sequence[bytes] = ()
    ) -> Hits:
        """The nearest points to each of ``queries``, by their vectors named ``params.using``.

        ``filters``: one a query, of the points that it is for; ``b""``, or none at all: every one.
        Raises InvalidInput where there are none of that name, or they are of another kind.
        """
        prepared = self._config.prepare({params.using: queries}, queries.rows)[params.using]
        if not prepared.has().all():
            raise InvalidInput("queries: expected a vector each")
        return self._state.view.search(prepared, params, filters)

    def retrieve(
        self, keys: Keys, *, with_payload: bool, with_vectors: Sequence[str] = ()
    ) -> Points:
        """The points that exist of ``keys``, in that order."""
        return self._state.retrieve(keys, with_payload=with_payload, with_vectors=with_vectors)

    def scroll(
        self,
        start: bytes,
        limit: int,
        *,
        with_payload: bool,
        with_vectors: Sequence[str] = (),
        filter: bytes = b"",
    ) -> Points:
        """Up to ``limit`` points with keys from ``start`` on, in key order, that ``filter`` lets
        through; ``b""``: all."""
        return self._state.view.scroll(
            start, limit, with_payload=with_payload, with_vectors=with_vectors, filter=filter
        )

    @property
    def rows(self) -> int:
        """Of all layers, dead ones too."""
        return sum(layer.source.rows for layer in self._state.view.layers)

    def count(self, filter: bytes = b"") -> int:
        """How many points ``filter`` lets through; ``b""``: all."""
        return self._state.view.count(filter)

    def rank(self, params: RankParams) -> Ranked:
        """The first points in the order that is asked for."""
        return self._state.view.rank(params)

    def facet(self, key: str, filter: bytes = b"") -> facets.Counts:
        """As `facets.count`, of the points that ``filter`` lets through; ``b""``: all."""
        return self._state.view.facet(key, filter)

    def frequencies(
        self, name: str, indices: NDArray[np.uint32], filter: bytes = b""
    ) -> Frequencies:
        """Of ``indices`` (t,) in the sparse vectors of that name of points that ``filter`` lets
        through; ``b""``: all. Raises InvalidInput where there are no such vectors."""
        if name not in self._config.sparse:
            raise InvalidInput(f"Not existing vector name error: {name}")
        return self._state.view.frequencies(name, indices, filter)

    def info(self) -> ShardInfo:
        """What the shard holds and is doing."""
        view = self._state.view
        unsaved = self._frozen_since or self._dirty_since
        waiting_writes, waiting_bytes = self._queue.waiting
        to_merge = choose_merge(view.layers, self._config, settled=True)
        return ShardInfo(
            points=view.count(),
            indexed=sum(one.live for one in view.layers if one.source.indexed),
            building=self._is_building() or gets_index(to_merge, self._config),
            sequence=view.sequence,
            snapshot_sequence=self._covered,
            segments=[
                SegmentInfo(
                    id=one.segment_id,
                    rows=one.source.rows,
                    live=one.live,
                    indexes={name: one.source.column(name).name for name in self._config.names},
                    calibrations=dict(one.calibrations),
                )
                for one in view.layers
                if one.segment_id
            ],
            garbage=len(self._garbage),
            memtable_rows=self._state.memtable_rows,
            memtable_bytes=self._state.memtable_bytes,
            waiting_writes=waiting_writes,
            waiting_bytes=waiting_bytes,
            unsaved_seconds=0.0 if unsaved is None else monotonic() - unsaved,
            error=str(self._failure) if self._failure else self._error,
        )

    def reconfigure(self, config: ShardConfig) -> None:
        """Aim at another recall, or index at another size, from now on."""
        self._config = config
        self._notify()

    def snapshot(self) -> None:
        """Cover every write up to now by a manifest. Raises Unavailable and Fenced."""
        self._flush()

    def close(self) -> None:
        """Stop; nothing committed is lost. Writes that still wait are refused."""
        self._closing.set()
        self._queue.close(self._failure or Unavailable("the shard is closing"))
        self._notify()
        for thread in self._threads:
            thread.join()
        if self._build is not None:
            self._build.cancel()

    # Writing

    def _prepare(self, operation: Operation) -> Operation:
        if not isinstance(operation, Upsert):
            return operation
        prepared = self._config.prepare(operation.vectors, len(operation.keys))
        return msgspec.structs.replace(operation, vectors=prepared)

    def _write_loop(self) -> None:
        while True:
            group, size = self._queue.take()
            if not group:
                return
            try:
                self._commit(group, size)
            except Exception as error:
                if isinstance(error, Fenced):
                    failure: ShoalError = error
                elif isinstance(error, Unavailable):
                    failure = Unavailable(f"not known whether the write is committed: {error}")
                else:
                    logger.exception("writing failed")
                    failure = Unavailable(f"writing failed: {error!r}")
                if isinstance(error, Fenced) or not isinstance(error, Unavailable):
                    self._fail(failure)
                for write in group:
                    write.settle(failure)
                if self._failure is None:
                    self._take_over_again(failure)

    def _commit(self, group: list[Write], size: int) -> None:
        if (resolve := group[0].resolve) is not None:
            sequence = self._state.view.sequence
            try:
                for operation in resolve():
                    sequence = self._log.append([operation])
                    self._apply(sequence, [operation], Write([operation], False).bytes)
                    self._wait_for_room()
            except InvalidInput as error:
                group[0].settle(error)
            else:
                group[0].settle(sequence)
            return
        operations = [operation for write in group for operation in write.operations]
        sequence = self._log.append(operations)
        for write in group:
            if not write.applied:
                write.settle(sequence)
        self._apply(sequence, operations, size)
        for write in group:
            write.settle(sequence)
        self._wait_for_room()

    def _wait_for_room(self) -> None:
        with self._wake:
            self._wake.wait_for(lambda: self._has_room() or self._closing.is_set())

    def _apply(self, sequence: int, operations: Sequence[Operation], size: int) -> None:
        self._state.apply(sequence, operations)
        self._log_bytes += size
        self._last_write = monotonic()
        if self._dirty_since is None:
            self._dirty_since = self._last_write
        if self._is_full():
            self._notify()

    def _take_over_again(self, refusal: ShoalError) -> None:
        """Find out what has become of the last append, and be able to append again."""
        self._queue.refuse(refusal)
        first, longest = BACKOFF_SECONDS
        while not self._closing.wait(first):
            try:
                for record in self._log.take_over(self._state.view.sequence):
                    self._apply(record.sequence, record.operations, 0)
                with self._manifesting:
                    self._manifests.check_epoch(self._epoch)
            except Exception as error:
                if isinstance(error, Fenced) or not isinstance(error, Unavailable):
                    self._fail(error)
                    return
                first = min(2 * first, longest)
            else:
                self._queue.refuse(self._failure)
                return

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            known = isinstance(error, ShoalError)
            self._failure = error if known else Unavailable(f"the shard failed: {error!r}")  # type: ignore[assignment]
        self._queue.refuse(self._failure)

    # Maintenance

    def _maintain(self) -> None:
        orphans = False
        failures = 0
        while not self._closing.is_set() and self._failure is None:
            try:
                if not orphans:
                    named = {one.segment_id for one in self._state.view.layers if one.segment_id}
                    self._segments.delete_orphans(self._epoch, named, self._config.is_over)
                    orphans = True
                if self._is_due():
                    self._flush()
                elif self._uncommitted:
                    self._commit_manifest()
                self._follow_imports()
                self._start_build()
            except Fenced as error:
                self._fail(error)
                return
            except Exception as error:
                if self._closing.is_set():
                    return
                self._note_error("maintenance", error)
                failures += 1
                first, longest = BACKOFF_SECONDS
                self._closing.wait(min(longest, first * 2 ** min(failures, 16)))
                continue
            if failures:
                self._error, failures = None, 0
            with self._wake:
                self._wake.wait_for(
                    lambda: self._closing.is_set() or self._is_due(), timeout=IDLE_SECONDS / 4
                )

    def _note_error(self, what: str, error: Exception) -> None:
        if isinstance(error, Unavailable):
            logger.warning("%s failed, and is tried again: %s", what, error)
        else:
            logger.error("%s failed, and is tried again", what, exc_info=error)
        self._error = f"{what}: {error}"

    def _notify(self) -> None:
        with self._wake:
            self._wake.notify_all()

    def _is_full(self) -> bool:
        return (
            self._state.memtable_rows >= MEMTABLE_ROWS
            or self._state.memtable_bytes >= MEMTABLE_BYTES
            or self._log_bytes >= LOG_BYTES
        )

    def _has_room(self) -> bool:
        return (
            self._state.memtable_rows < FULL_MEMTABLES * MEMTABLE_ROWS
            and self._state.memtable_bytes < FULL_MEMTABLES * MEMTABLE_BYTES
        )

    def _is_due(self) -> bool:
        dirty_since = self._dirty_since
        if self._frozen is not None or self._is_full():
            return True
        if dirty_since is None:
            return False
        now = monotonic()
        idle = now - self._last_write >= IDLE_SECONDS
        return (idle and self._state.memtable_rows >= IDLE_ROWS) or (
            now - dirty_since >= DIRTY_SECONDS
        )

    def _flush(self) -> None:
        """Write what is in memory as a segment, and let the log be truncated.

        After an error the frozen memtable stays where it is, and the next call starts with it.
        """
        with self._flushing:
            self._flush_alone()

    def _flush_alone(self) -> None:
        if self._frozen is None:
            self._frozen_since, self._dirty_since, self._log_bytes = self._dirty_since, None, 0
            self._frozen = self._state.freeze()
            self._notify()
        layer, sequence = self._frozen
        if layer is not None:
            by = self._make_segment(partial(self._write, layer)) if layer.live else None
            self._state.replace([layer], by)
        self._frozen = None
        if sequence == self._covered:
            return
        self._covered = sequence
        self._uncommitted = True
        self._commit_manifest()
        self._log.truncate(min([sequence, *self._awaited.values()]))

    def _make_segment(self, write: Callable[[Path], tuple[dict[str, Calibration], float]]) -> Layer:
        """A new segment, durable, but not yet named.

        ``write`` puts it into a directory, and answers the new layer's
        calibrations, and the target that was missed.
        """
        segment_id = self._segments.new(self._epoch)
        directory = self._segments.directory(segment_id)
        try:
            calibrations, unreachable = write(directory)
            if self._closing.is_set():
                raise Unavailable("the shard is closing")
            segment = Segment.open(directory, self._config)
            self._segments.upload(segment_id)
        except BaseException:
            self._segments.drop(segment_id)
            self._garbage.add(segment_id)
            raise
        return Layer(
            segment, segment_id=segment_id, calibrations=calibrations, unreachable=unreachable
        )

    def _write(self, layer: Layer, directory: Path) -> tuple[dict[str, Calibration], float]:
        config = self._config
        write_segment(directory, merged([layer], config.names), layer.live, config)
        return {}, 0.0

    def _commit_manifest(self) -> None:
        with self._manifesting:
            self._uncommitted = False
            garbage = self._garbage.copy()
            covered = self._covered
            entries = [
                SegmentEntry(
                    id=one.segment_id,
                    rows=one.source.rows,
                    dead=pack_dead(one.alive),
                    calibrations=dict(one.calibrations),
                    unreachable=one.unreachable,
                )
                for one in self._state.view.layers
                if one.segment_id
            ]
            try:
                self._manifests.commit(
                    Manifest(
                        epoch=self._epoch,
                        sequence=covered,
                        segments=entries,
                        awaited=self._awaited.copy(),
                        taken_in=sorted(self._taken_in),
                    )
                )
                if self._frozen is None:
                    self._frozen_since = None
                for segment_id in garbage:
                    self._segments.delete(segment_id)
                    self._garbage.discard(segment_id)
            except BaseException:
                self._uncommitted = True
                raise

    # Bulk loads

    def _follow_imports(self) -> None:
        """Do what is due for the bulk loads under way, and forget those that are over."""
        config = self._config
        over = {job for job in self._awaited.keys() | self._taken_in if config.is_over(job)}
        if over:
            with self._manifesting:
                for job in over:
                    self._awaited.pop(job, None)
                    self._taken_in.discard(job)
                self._uncommitted = True
        for one in config.imports:
            if one.job in self._taken_in:
                continue
            if one.job not in self._awaited:
                self._await(one.job)
            elif one.ready:
                self._take_in(one.job)
        if self._uncommitted:
            self._commit_manifest()

    def _await(self, job: str) -> None:
        """Keep the log from here on, which tells what is newer than what the job brings.

        All that is older is in segments: what is replayed after a crash is newer.
        """
        with self._flushing:
            self._flush_alone()
            with self._manifesting:
                self._awaited[job] = self._covered
                self._uncommitted = True

    def _take_in(self, job: str) -> None:
        layers = []
        for entry in self._imports.get_list(job):
            self._segments.drop(entry.id)  # What an attempt that failed has left.
            layers.append(open_layer(self._segments, entry, self._config))
        watched = self._state.watch()
        touched = [
            operation.keys
            for record in self._log.follow(self._awaited[job], watched)
            for operation in record.operations
        ]
        # Together, for whatever manifest is written next.
        with self._manifesting:
            self._state.take_in(layers, touched)
            del self._awaited[job]
            self._taken_in.add(job)
            self._uncommitted = True

    # Merging and indexing

    def _is_building(self) -> bool:
        return self._build is not None and not self._build.done()

    def _start_build(self) -> None:
        if self._is_building() or monotonic() < self._build_after:
            return
        layers = self._state.view.layers
        settled = monotonic() - self._last_write >= SETTLED_SECONDS
        chosen = choose_merge(layers, self._config, settled=settled)
        if chosen:
            self._submit(_Merge(chosen))
            return
        for layer in layers:
            if layer.source.indexed and _aimed_at(layer) != self._config.recall_target:
                self._submit(_Recalibration(layer))
                return

    def _submit(self, work: _Merge | _Recalibration) -> None:
        try:
            self._build = self._builder.submit(partial(self._run_build, work))
        except RuntimeError:  # The executor is shut down, and so is this engine presently.
            self._build_after = monotonic() + BACKOFF_SECONDS[1]

    def _run_build(self, work: _Merge | _Recalibration) -> None:
        if self._closing.is_set() or self._failure is not None:
            return
        try:
            if isinstance(work, _Merge):
                self._merge(work.layers)
            else:
                self._recalibrate(work.layer)
            self._commit_manifest()
        except Fenced as error:
            self._fail(error)
        except Exception as error:
            if self._closing.is_set():
                return
            self._note_error("building", error)
            self._build_failures += 1
            first, longest = BACKOFF_SECONDS
            delay = min(longest, first * 2 ** min(self._build_failures, 16))
            self._build_after = monotonic() + delay
        else:
            if self._build_failures:
                self._error, self._build_failures = None, 0
        finally:
            _return_memory()
            self._notify()

    def _merge(self, chosen: list[Layer]) -> None:
        live = [one for one in chosen if one.live]
        by = self._make_segment(partial(self._write_merged, live)) if live else None
        self._state.replace(chosen, by)
        for one in chosen:
            self._garbage.add(one.segment_id)
            self._segments.drop(one.segment_id)

    def _write_merged(
        self, layers: list[Layer], directory: Path
    ) -> tuple[dict[str, Calibration], float]:
        config = self._config
        indexed = gets_index(layers, config)
        sources = [
            Source(
                str(self._segments.directory(one.segment_id)),
                one.source.rows,
                pack_dead(one.alive),
            )
            for one in layers
        ]
        flat = sum(1 for one in self._state.view.layers if not one.source.indexed)
        calibrations = self._builder.merge(
            sources, directory, config, indexed=indexed, urgent=flat > MANY_SEGMENTS
        )
        missed = config.recall_target if indexed and not calibrations else 0.0
        return calibrations, missed

    def _recalibrate(self, layer: Layer) -> None:
        config = self._config
        directory = self._segments.directory(layer.segment_id)
        calibrations = self._builder.calibrate(directory, config)
        missed = 0.0 if calibrations else config.recall_target
        self._state.replace([layer], replace(layer, calibrations=calibrations, unreachable=missed))


class _Merge(msgspec.Struct, frozen=True):
    layers: list[Layer]


class _Recalibration(msgspec.Struct, frozen=True):
    layer: Layer


def _aimed_at(layer: Layer) -> float:
    targets = [one.target for one in layer.calibrations.values()]
    return targets[0] if targets else layer.unreachable


def _return_memory() -> None:
    """Give what flushes have freed back to the machine; glibc would keep it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
