"""What a bulk load is told, and what it tells."""

from __future__ import annotations

import msgspec

from cluster.catalog import Collection
from cluster.jobs import Job, Jobs, State
from shard.errors import InvalidInput
from shard.model import Import
from shard.objects import ObjectStore

SAMPLES = 20
"""Bad rows that a job tells of; the others are in its rejects."""


class Columns(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which columns of a source hold what; None: found by their names."""

    id: str | None = None
    vector: str | None = None
    """Of the vectors without a name."""
    vectors: dict[str, str] = {}
    """By the vectors' names."""
    payload: str | list[str] | None = None
    """One column of JSON objects, or the columns that become fields of the payload."""


class BadRow(msgspec.Struct, frozen=True):
    file: str
    row: int
    reason: str


class Recovery(msgspec.Struct, frozen=True):
    """A load that makes its collection, and puts it into the place of another once it is whole."""

    collection: Collection
    """Hidden."""
    name: str
    """That it takes then."""
    rows: int
    """How many have to be loaded."""


class IngestJob(Job, frozen=True, kw_only=True):
    """One bulk load. Once it is over, its rejects are all that may be left of it."""

    source: str
    columns: Columns = Columns()
    max_bad_rows: int = 0
    chunk_bytes: int
    """Raw vectors that a task holds in memory."""
    again: bool = False
    """Whether to load what has been loaded before."""
    within: list[str] | None = None
    """Local directories that no link in the source may lead out of; None: anywhere."""
    recovery: Recovery | None = None
    fingerprint: str = ""
    """Of source, columns and the files as they were found."""
    rows_total: int = 0
    """As far as the files tell before they are read."""
    rows_read: int = 0
    rows_loaded: int = 0
    bad_rows: int = 0
    bad: list[BadRow] = msgspec.field(default_factory=list)
    ignored_columns: list[str] = msgspec.field(default_factory=list)
    same_as: str = ""
    """The job that has loaded the same before; this one had nothing to do."""

    @property
    def named(self) -> str:
        return self.recovery.name if self.recovery else self.collection

    @property
    def key(self) -> str:
        """How shards call it: see `shard.model.Import`."""
        return f"{self.number:010d}-{self.id}"


def ingest_jobs(store: ObjectStore) -> Jobs[IngestJob]:
    return Jobs(store, "cluster/ingest", IngestJob)


def check_free(jobs: list[IngestJob], collection_id: str) -> None:
    """Raises InvalidInput while one of ``jobs`` fills the collection."""
    for job in jobs:
        if job.collection_id == collection_id and not job.state.is_over:
            raise InvalidInput(f"collection `{job.collection}`: ingest job {job.id} is under way")


def imports_of(jobs: list[IngestJob], collection_id: str) -> tuple[Import, ...]:
    """What a shard of the collection is to follow."""
    return tuple(
        Import(job.key, ready=job.state is State.COMMITTING)
        for job in jobs
        if job.collection_id == collection_id and not job.state.is_over
    )
