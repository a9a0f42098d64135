"""Takes exports from their first step to their last."""

from __future__ import annotations

from functools import partial
from itertools import chain
from time import sleep, time

import msgspec
import ray

from cluster.catalog import Collection
from cluster.driving import CLEAN_SECONDS, TASK_RETRIES, Driving
from cluster.export import tasks
from cluster.export.jobs import CLAIM, SUMMARY, ExportedFile, ExportJob, Summary, export_jobs
from cluster.export.tasks import ExportWork
from cluster.jobs import State
from cluster.settings import ClusterSettings
from shard.errors import InvalidInput, NotFound
from shard.objects import ObjectStore, open_object_store


class ExportDriving(Driving[ExportJob]):
    """One attempt at an export."""

    def __init__(self, store: ObjectStore, settings: ClusterSettings, job_id: str) -> None:
        super().__init__(store, settings, export_jobs(store), job_id)

    def work(self, collection: Collection) -> None:
        destination = open_object_store(self.job.destination)
        claim = f"{self.job.prefix}{CLAIM}"
        destination.put_if_absent(claim, self.job_id.encode())
        others = (key for key in destination.list(self.job.prefix) if key != claim)
        if not self._is_mine(destination) or (
            self.job.state is State.QUEUED and next(others, None) is not None
        ):
            raise InvalidInput(f"destination {self.job.destination}: expected an empty place")
        self.enter(State.EXPORTING, started=self.job.started or time())
        work = ExportWork(
            data=self.settings.data,
            scratch=f"{self.settings.scratch}/export",
            collection=collection,
            destination=self.job.destination,
            prefix=self.job.prefix,
        )
        task = ray.remote(tasks.export).options(num_cpus=1, max_retries=TASK_RETRIES)
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
        destination = open_object_store(self.job.destination)
        if not self._is_mine(destination):
            return
        # A place that was not empty is left as it was.
        if self.job.state is not State.DONE and self.job.started:
            destination.delete(f"{self.job.prefix}{SUMMARY}")
            quiet = 0
            while quiet < 2:  # A task that is being killed may still put a file.
                files = list(destination.list(f"{self.job.prefix}shard-"))
                for key in files:
                    destination.delete(key)
                quiet = 0 if files else quiet + 1
                sleep(CLEAN_SECONDS)
        destination.delete(f"{self.job.prefix}{CLAIM}")

    def _is_mine(self, destination: ObjectStore) -> bool:
        try:
            return destination.get(f"{self.job.prefix}{CLAIM}") == self.job_id.encode()
        except NotFound:
            return False
