"""Which bulk loads there are and how far they are: one versioned document."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from threading import Lock
from typing import Any

import msgspec

from shard.errors import InvalidInput, NotFound
from shard.model import Import
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored

JOBS = "cluster/ingest"
KEPT = 100
"""Jobs that are over and still remembered."""
SAMPLES = 20
"""Bad rows that a job tells of; the others are in its rejects."""


class State(StrEnum):
    """How far a job is, in this order; a job ends by one of the last three."""

    QUEUED = "queued"
    PLANNING = "planning"
    TRAINING = "training"
    ENCODING = "encoding"
    CHECKING = "checking"
    COMMITTING = "committing"
    """Decided: every shard takes its part in, whatever happens."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of a source hold what; None: found by their names."""

    id: str | None = None
    vector: str | None = None
    payload: str | list[str] | None = None
    """One column of JSON objects, or the columns that become fields of the payload."""


class BadRow(msgspec.Struct, frozen=True):
    file: str
    row: int
    reason: str


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One bulk load."""

    id: str
    """32 hexadecimal digits."""
    collection_id: str
    collection: str
    """Its name when the job was made."""
    source: str
    columns: Columns = Columns()
    max_bad_rows: int = 0
    chunk_bytes: int
    """Raw vectors that a task holds in memory."""
    created: float
    """Seconds since the epoch."""
    again: bool = False
    """Whether to load what has been loaded before."""
    state: State = State.QUEUED
    fingerprint: str = ""
    """Of source, columns and the files as they were found."""
    rows_total: int = 0
    """As far as the files tell before they are read."""
    rows_read: int = 0
    rows_loaded: int = 0
    bad_rows: int = 0
    bad: list[BadRow] = []
    ignored_columns: list[str] = []
    error: str = ""
    same_as: str = ""
    """The job that has loaded the same before; this one had nothing to do."""
    cancel: bool = False
    started: float = 0.0
    finished: float = 0.0
    cleaned: bool = False
    """Whether nothing is left of it but its rejects."""


class _Contents(msgspec.Struct, frozen=True):
    jobs: list[Job] = []


class Jobs:
    """The jobs over one object store, newest last. Methods block, from any thread.

    They raise Unavailable; a change may then have been made or not.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._document = VersionedDocument(store, JOBS)
        self._lock = Lock()

    def all(self) -> list[Job]:
        with self._lock:
            return _decode(self._document.read()[1]).jobs

    def get(self, job_id: str) -> Job:
        """Raises NotFound."""
        return _find(self.all(), job_id)

    def add(self, job: Job) -> None:
        """Raises InvalidInput while another job fills the same collection."""

        def add(jobs: list[Job]) -> list[Job]:
            for other in jobs:
                if other.id == job.id:
                    return jobs
                if other.collection_id == job.collection_id and not other.state.is_over:
                    raise InvalidInput(
                        f"collection `{job.collection}`: ingest job {other.id} is under way"
                    )
            over = [one.id for one in jobs if one.state.is_over and one.cleaned]
            forgotten = set(over[: max(0, len(over) - KEPT)])
            return [*(one for one in jobs if one.id not in forgotten), job]

        self._update(add)

    def change(self, job_id: str, change: Callable[[Job], Job]) -> Job:
        """Replace the job by what ``change`` makes of it, and return that. Raises NotFound."""

        def replace(jobs: list[Job]) -> list[Job]:
            _find(jobs, job_id)
            return [change(one) if one.id == job_id else one for one in jobs]

        return _find(self._update(replace), job_id)

    def set(self, job_id: str, **fields: Any) -> Job:
        """Replace ``fields`` of the job."""
        return self.change(job_id, lambda job: msgspec.structs.replace(job, **fields))

    def _update(self, change: Callable[[list[Job]], list[Job]]) -> list[Job]:
        def apply(data: bytes) -> bytes:
            before = _decode(data).jobs
            after = change(before)
            return data if after == before else msgspec.json.encode(_Contents(after))

        with self._lock:
            return _decode(self._document.update(apply)).jobs


def imports_of(jobs: list[Job], collection_id: str) -> tuple[Import, ...]:
    """What a shard of the collection is to follow."""
    return tuple(
        Import(job.id, ready=job.state is State.COMMITTING)
        for job in jobs
        if job.collection_id == collection_id
        and not job.state.is_over
        and job.state is not State.QUEUED
    )


def _decode(data: bytes) -> _Contents:
    return decode_stored(data, _Contents, JOBS) if data else _Contents()


def _find(jobs: list[Job], job_id: str) -> Job:
    for job in jobs:
        if job.id == job_id:
            return job
    raise NotFound(f"Ingest job `{job_id}` doesn't exist!")
