"""Takes bulk loads from their first step to their last."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from time import monotonic, sleep, time
from typing import Any, TypeVar

import msgspec
import ray

from cluster.catalog import Catalog, Collection
from cluster.driving import CLEAN_SECONDS, LOOK_SECONDS, TASK_RETRIES, Driving
from cluster.ingest import tasks
from cluster.ingest.jobs import SAMPLES, BadRow, IngestJob, ingest_jobs
from cluster.ingest.sources import Range, Source, SourceFile
from cluster.ingest.tasks import Encoded, JobFiles, Resolved, Work, shard_prefix
from cluster.jobs import State
from cluster.settings import ClusterSettings
from shard.errors import InvalidInput, NotFound
from shard.imports import Imports
from shard.manifest import Manifest, Manifests
from shard.model import KEY_BYTES, ShardConfig
from shard.objects import ObjectStore
from shard.objects.document import decode_stored

T = TypeVar("T")

TELL_SECONDS = 1.0
"""Between changes of the job's progress."""
SAMPLED_RANGES = 64
"""Parts of files that the training sample is taken from."""


class Plan(msgspec.Struct, frozen=True):
    """What a job reads, as it was found."""

    files: list[SourceFile]
    chunks: list[list[Range]]

    @classmethod
    def of(cls, source: Source, config: ShardConfig, chunk_bytes: int) -> Plan:
        """Look at the files, and part their rows into chunks of about ``chunk_bytes`` of vectors.

        Raises NotFound, InvalidInput, and Unavailable.
        """
        row_bytes = config.row_bytes + KEY_BYTES
        files = source.files()
        ranges = [
            part
            for number, file in enumerate(files)
            for part in source.ranges(number, file, row_bytes)
        ]
        return cls(files, list(_chunks(ranges, max(1, chunk_bytes // row_bytes))))

    @property
    def rows(self) -> list[int]:
        """Of each chunk."""
        return [sum(part.rows for part in chunk) for chunk in self.chunks]


class IngestDriving(Driving[IngestJob]):
    """One attempt at a bulk load."""

    def __init__(self, store: ObjectStore, settings: ClusterSettings, job_id: str) -> None:
        super().__init__(store, settings, ingest_jobs(store), job_id)
        self.files = JobFiles(store, self.job)
        self._told_at = 0.0

    def work(self, collection: Collection) -> None:
        recovery = self.job.recovery
        if recovery is not None and not recovery.rows:
            # Its shards must show that they can be opened before another one gives way to it.
            self._wait_for_shards(collection, lambda manifest: manifest.epoch > 0)
        else:
            if self.job.state is not State.COMMITTING and not self._load(collection):
                return
            self._wait_for_shards(collection, self._is_taken_in)
        if recovery is not None:
            Catalog(self.store).rename(collection.id, recovery.name)
        self.end(State.DONE)

    def collection(self) -> Collection:
        try:
            return super().collection()
        except NotFound:
            recovery = self.job.recovery
            if recovery is None or self.job.state not in (State.QUEUED, State.PLANNING):
                raise
            Catalog(self.store).create(recovery.collection)
            return recovery.collection

    def _load(self, collection: Collection) -> bool:
        """Bring the job to its commitment. False where there is nothing to do."""
        self.enter(State.PLANNING, started=self.job.started or time())
        plan = self._plan(collection)
        fingerprint = _fingerprint(self.job, plan)
        for other in self.jobs.all():
            if (
                not self.job.again
                and other.state is State.DONE
                and other.fingerprint == fingerprint
                and other.collection_id == self.job.collection_id
                and other.id != self.job_id
            ):
                same = other.same_as or other.id
                self.end(State.DONE, same_as=same, fingerprint=fingerprint)
                return False
        self.tell(fingerprint=fingerprint, rows_total=sum(plan.rows))
        work = Work(
            data=self.settings.data,
            scratch=f"{self.settings.scratch}/ingest",
            job=self.job,
            collection=collection,
            files=plan.files,
        )
        encoded = self._encode(work, plan)
        # From then on each shard remembers what is written to it, which is newer than the job.
        self._wait_for_shards(collection, self._is_awaited)
        self.enter(State.CHECKING)
        resolved = self._resolve(work, collection, encoded)
        samples = [sample for one in encoded for sample in one.samples]
        samples += [sample for one in resolved for sample in one.samples]
        self.tell(
            rows_read=sum(one.read for one in encoded),
            rows_loaded=sum(one.rows for one in resolved),
            bad_rows=sum(one.bad for one in encoded) + sum(one.bad for one in resolved),
            bad=samples[:SAMPLES],
        )
        self._check_bad_rows()
        recovery = self.job.recovery
        if recovery is not None and self.job.rows_loaded != recovery.rows:
            raise InvalidInput(
                f"{self.job.rows_loaded} rows, expected {recovery.rows} of the snapshot"
            )
        return self.commit()

    # Steps

    def _plan(self, collection: Collection) -> Plan:
        try:
            return decode_stored(self.store.get(self.files.plan), Plan, self.files.plan)
        except NotFound:
            pass
        plan = Plan.of(
            Source(self.job.source, self.job.within), collection.config, self.job.chunk_bytes
        )
        # Put once: every driver of the job reads the same.
        self.store.put_if_absent(self.files.plan, msgspec.json.encode(plan))
        return decode_stored(self.store.get(self.files.plan), Plan, self.files.plan)

    def _encode(self, work: Work, plan: Plan) -> list[Encoded]:
        """Chunks made into segments, those that are there already included.

        What they share is trained at the same time: encoding begins with reading.
        """
        found: dict[int, Encoded] = {}
        for chunk in range(len(plan.chunks)):
            if (one := self._stored(self.files.encoded(chunk), Encoded)) is not None:
                found[chunk] = one
        left = [chunk for chunk in range(len(plan.chunks)) if chunk not in found]
        segment_rows = max(plan.rows, default=0) // work.collection.shard_count
        indexed = segment_rows >= work.collection.config.flat_threshold
        share = self.gpu_share()
        encode = ray.remote(tasks.encode).options(
            num_cpus=1, num_gpus=share, max_retries=TASK_RETRIES
        )
        starts: list[Callable[[], Any]] = [
            partial(encode.remote, work, chunk, plan.chunks[chunk], indexed) for chunk in left
        ]
        parallel = self.parallel()
        trained = not left or not indexed or self._is_trained()
        if not trained:
            every = [part for chunk in plan.chunks for part in chunk]
            chosen = every[:: max(1, len(every) // SAMPLED_RANGES)]
            sample = ray.remote(tasks.sample).options(num_cpus=0, max_retries=TASK_RETRIES)
            starts.append(partial(sample.remote, work, chosen, segment_rows))
            # The last is started first.
            parallel += 1
        shards = _Shards(self.store, work.collection)
        self._count(found)

        def look() -> None:
            if self.job.state is State.PLANNING and shards.all(self._is_awaited):
                self.tell(state=State.TRAINING)
            if self.job.state is State.TRAINING and trained:
                self.tell(state=State.ENCODING)

        for number, one in self.run_all(starts, parallel, look):
            if number == len(left):
                trained = True
            else:
                found[left[number]] = one
                self._count(found)
                self._check_bad_rows()
        return [found[chunk] for chunk in sorted(found)]

    def _is_trained(self) -> bool:
        try:
            self.store.get_range(self.files.template, 0, 1)
        except NotFound:
            return False
        return True

    def _count(self, found: dict[int, Encoded]) -> None:
        every = list(found.values())
        now = monotonic()
        fields = {
            "rows_read": sum(one.read for one in every),
            "bad_rows": sum(one.bad for one in every),
            "bad": [sample for one in every for sample in one.samples][:SAMPLES],
            "ignored_columns": sorted({name for one in every for name in one.ignored}),
        }
        if now - self._told_at >= TELL_SECONDS:
            self._told_at = now
            self.tell(**fields)
        else:
            self.job = msgspec.structs.replace(self.job, **fields)

    def _resolve(
        self, work: Work, collection: Collection, encoded: list[Encoded]
    ) -> list[Resolved]:
        found: dict[int, Resolved] = {}
        for shard in range(collection.shard_count):
            if (one := self._stored(self.files.resolved(shard), Resolved)) is not None:
                found[shard] = one
        left = [shard for shard in range(collection.shard_count) if shard not in found]
        task = ray.remote(tasks.resolve).options(num_cpus=1, max_retries=TASK_RETRIES)
        starts = [
            partial(task.remote, work, shard, [one.segments[shard] for one in encoded])
            for shard in left
        ]
        for number, one in self.run_all(starts, self.parallel()):
            found[left[number]] = one
        return [found[shard] for shard in sorted(found)]

    def _is_awaited(self, manifest: Manifest) -> bool:
        return self.job.key in manifest.awaited

    def _is_taken_in(self, manifest: Manifest) -> bool:
        return self.job.key in manifest.taken_in

    def _wait_for_shards(
        self, collection: Collection, condition: Callable[[Manifest], bool]
    ) -> None:
        shards = _Shards(self.store, collection)
        while not shards.all(condition):
            self.check_cancelled()
            self.collection()
            sleep(LOOK_SECONDS)

    def _check_bad_rows(self) -> None:
        if self.job.bad_rows > self.job.max_bad_rows:
            first: BadRow | None = self.job.bad[0] if self.job.bad else None
            example = f", such as row {first.row} of {first.file}: {first.reason}" if first else ""
            self.tell(bad_rows=self.job.bad_rows, bad=self.job.bad)
            raise InvalidInput(
                f"{self.job.bad_rows} bad rows, expected at most {self.job.max_bad_rows}{example}"
            )

    def _stored(self, key: str, kind: type[T]) -> T | None:
        try:
            return decode_stored(self.store.get(key), kind, key, msgspec.msgpack.decode)
        except NotFound:
            return None

    # Afterwards

    def clean(self) -> None:
        taken_in = self.job.state is State.DONE and not self.job.same_as
        if self.job.recovery is not None and not taken_in:
            Catalog(self.store).delete(self.job.recovery.collection.name)
        try:
            collection = super().collection()
        except NotFound:
            collection = None
        while True:
            erased = self.files.clean()
            for shard in range(collection.shard_count if collection else 0):
                assert collection is not None
                imports = Imports(self.store, shard_prefix(collection, shard))
                erased += imports.erase(self.job.key, segments=not taken_in)
            if not erased or taken_in:
                break
            sleep(CLEAN_SECONDS)


class _Shards:
    """Those of a collection's shards of which something is not yet known to be true."""

    def __init__(self, store: ObjectStore, collection: Collection) -> None:
        self._left = [
            Manifests(store, f"{shard_prefix(collection, shard)}/manifest")
            for shard in range(collection.shard_count)
        ]

    def all(self, condition: Callable[[Manifest], bool]) -> bool:
        """Whether every manifest has fulfilled the ``condition`` by now."""
        self._left = [manifests for manifests in self._left if not condition(manifests.read())]
        return not self._left


def _chunks(ranges: list[Range], most: int) -> Iterator[list[Range]]:
    """Runs of ``ranges`` of at most ``most`` rows, or of one alone."""
    chunk: list[Range] = []
    rows = 0
    for part in ranges:
        if chunk and rows + part.rows > most:
            yield chunk
            chunk, rows = [], 0
        chunk.append(part)
        rows += part.rows
    if chunk:
        yield chunk


def _fingerprint(job: IngestJob, plan: Plan) -> str:
    files = [(file.name, file.bytes, file.changed) for file in plan.files]
    said = msgspec.json.encode([job.source, job.columns, files])
    return hashlib.blake2b(said, digest_size=16).hexdigest()
