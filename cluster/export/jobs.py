"""What an export is told, and what it tells."""

from __future__ import annotations

import msgspec

from cluster.catalog import Collection
from cluster.jobs import Job, Jobs
from shard.objects import ObjectStore

SUMMARY = "export.json"
"""The object that is put last, and makes an export whole: a `Summary`."""


CLAIM = "export.job"
"""The object that says, while an export runs, which job's the place is."""


class ExportJob(Job, frozen=True, kw_only=True):
    """One export of a collection, as it is while the export runs."""

    destination: str
    """A directory or ``s3://BUCKET/PREFIX``."""
    prefix: str = ""
    """Of the objects there."""
    rows: int = 0


class ExportedFile(msgspec.Struct, frozen=True):
    name: str
    bytes: int
    rows: int


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What an export consists of."""

    name: str
    created: float
    """Seconds since the epoch."""
    collection: Collection
    files: list[ExportedFile]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)


def export_jobs(store: ObjectStore) -> Jobs[ExportJob]:
    return Jobs(store, "cluster/export", ExportJob)
