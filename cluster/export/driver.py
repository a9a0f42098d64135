"""Takes exports from their first step to their last."""

from __future__ import annotations

from functools import partial
from itertools import chain
from time import time

import msgspec
import ray

from cluster.catalog import Collection
from cluster.driving import Driving
from cluster.export import tasks
from cluster.export.jobs import SUMMARY, ExportedFile, ExportJob, Summary, export_jobs
from cluster.export.tasks import ExportWork
from cluster.jobs import State
from cluster.settings import ClusterSettings
from shard.errors import InvalidInput
from shard.objects import ObjectStore, open_object_store


class ExportDriving(Driving[ExportJob]):
    """One attempt at an export."""

    def __init__(self, store: ObjectStore, settings: ClusterSettings, job_id: str) -> None:
        super().__init__(store, settings, export_jobs(store), job_id)

    def work(self, collection: Collection) -> None:
        destination = open_object_store(self.job.destination)
        if self.job.state is State.QUEUED:
            if next(destination.list(self.job.prefix), None) is not None:
                raise InvalidInput(f"destination {self.job.destination}: expected an empty place")
            self.enter(State.EXPORTING, started=time())
        work = ExportWork(
            data=self.settings.data,
            scratch=f"{self.settings.scratch}/export",
            collection=collection,
            destination=self.job.destination,
            prefix=self.job.prefix,
        )
        task = ray.remote(tasks.export).options(num_cpus=1, max_retries=-1)
        starts = [partial(task.remote, work, shard) for shard in range(collection.shard_count)]
        found: dict[int, list[ExportedFile]] = {}
        for shard, files in self.run_all(starts, self.parallel()):
            found[shard] = files
            self.tell(rows=sum(file.rows for file in chain(*found.values())))
        summary = Summary(
            name=self.job.prefix.rstrip("/").rpartition("/")[2] or collection.name,
            created=self.job.created,
            collection=collection,
            files=list(chain(*(found[shard] for shard in sorted(found)))),
        )
        self.check_cancelled()
        destination.put(f"{self.job.prefix}{SUMMARY}", msgspec.json.encode(summary))
        self.end(State.DONE)

    def clean(self) -> None:
        if self.job.state is State.DONE or not self.job.started:
            return
        destination = open_object_store(self.job.destination)
        for key in destination.list(f"{self.job.prefix}shard-"):
            if key.endswith(".parquet"):
                destination.delete(key)
