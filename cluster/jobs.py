"""Work that goes on in the background, however often whoever does it dies: one versioned document
for each sort of it says which jobs there are and how far they are."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from threading import Lock
from typing import Any, Generic, TypeVar

import msgspec

from shard.errors import NotFound
from shard.objects import ObjectStore
from shard.objects.document import VersionedDocument, decode_stored

KEPT = 100
"""Jobs that are over and still remembered."""


class State(StrEnum):
    """How far a job is, in this order; a job ends by one of the last three."""

    QUEUED = "queued"
    PLANNING = "planning"
    TRAINING = "training"
    ENCODING = "encoding"
    CHECKING = "checking"
    EXPORTING = "exporting"
    COMMITTING = "committing"
    """Decided: it is brought to its end, whatever happens."""
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_over(self) -> bool:
        return self in (State.DONE, State.FAILED, State.CANCELLED)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What every job has."""

    id: str
    """32 hexadecimal digits."""
    number: int = 0
    """Above that of every job of this sort before it; given by `Jobs.add`."""
    collection_id: str
    collection: str
    """Its name when the job was made."""
    created: float
    """Seconds since the epoch."""
    state: State = State.QUEUED
    error: str = ""
    cancel: bool = False
    started: float = 0.0
    finished: float = 0.0
    cleaned: bool = False
    """Whether nothing is left to be done for it."""

    @property
    def named(self) -> str:
        """The collection that it is for, as users know it."""
        return self.collection


J = TypeVar("J", bound=Job)


class Jobs(Generic[J]):
    """The jobs of one sort, newest last. Methods block, from any thread.

    They raise Unavailable; a change may then have been made or not.
    """

    def __init__(self, store: ObjectStore, key: str, kind: type[J]) -> None:
        self._document = VersionedDocument(store, key)
        self._key = key
        self._kind = kind
        self._lock = Lock()

    def all(self) -> list[J]:
        with self._lock:
            return self._decode(self._document.read()[1])

    def get(self, job_id: str) -> J:
        """Raises NotFound."""
        return _find(self.all(), job_id)

    def add(self, job: J, check: Callable[[list[J]], None] = lambda jobs: None) -> J:
        """The job with its number. May be called again for a job.

        Raises what ``check`` raises at the jobs there are.
        """

        def add(jobs: list[J]) -> list[J]:
            if any(other.id == job.id for other in jobs):
                return jobs
            check(jobs)
            # The last one stays: the next one's number follows from it.
            over = [one.id for one in jobs[:-1] if one.state.is_over and one.cleaned]
            forgotten = set(over[: max(0, len(over) - KEPT)])
            number = jobs[-1].number + 1 if jobs else 1
            numbered = msgspec.structs.replace(job, number=number)
            return [*(one for one in jobs if one.id not in forgotten), numbered]

        return _find(self._update(add), job.id)

    def change(self, job_id: str, change: Callable[[J], J]) -> J:
        """Replace the job by what ``change`` makes of it, and return that. Raises NotFound."""

        def replace(jobs: list[J]) -> list[J]:
            _find(jobs, job_id)
            return [change(one) if one.id == job_id else one for one in jobs]

        return _find(self._update(replace), job_id)

    def set(self, job_id: str, **fields: Any) -> J:
        """Replace ``fields`` of the job."""
        return self.change(job_id, lambda job: msgspec.structs.replace(job, **fields))

    def _update(self, change: Callable[[list[J]], list[J]]) -> list[J]:
        def apply(data: bytes) -> bytes:
            before = self._decode(data)
            after = change(before)
            return data if after == before else msgspec.json.encode(after)

        with self._lock:
            return self._decode(self._document.update(apply))

    def _decode(self, data: bytes) -> list[J]:
        # A type that is known only here.
        kind: Any = self._kind
        return decode_stored(data, list[kind], self._key) if data else []


def _find(jobs: list[J], job_id: str) -> J:
    for job in jobs:
        if job.id == job_id:
            return job
    raise NotFound(f"Job `{job_id}` doesn't exist!")
