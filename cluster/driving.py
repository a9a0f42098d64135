"""Takes jobs from their first step to their last, in a process that may die at any time.

Where a job is, its document tells; what its tasks have done lies in the object store. So a
successor goes on from there, and a second driver of the same job does no harm.
"""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Thread
from time import sleep, time
from typing import Any, Generic, TypeVar

import msgspec
import ray
from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from cluster.catalog import Catalog, Collection
from cluster.jobs import Job, Jobs, State
from cluster.settings import ClusterSettings
from shard.errors import Corrupt, InvalidInput, NotFound, ShoalError, Unavailable
from shard.objects import ObjectStore, open_object_store

logger = logging.getLogger(__name__)

J = TypeVar("J", bound=Job)

TASK_RETRIES = 8
"""How often Ray starts a task again whose worker dies; some input kills every worker."""
CLEAN_SECONDS = 5.0
"""Between passes over what a job has left; a task of it may still be at work."""
LOOK_SECONDS = 0.25
"""Between looks at tasks, shards, and whether the job is cancelled."""
BACKOFF_SECONDS = (0.5, 30.0)
ATTEMPTS = 10
"""After so many that failed a job is given up, unless it is decided."""


class Cancelled(Exception):
    """The job's user has called it off."""


class Driving(ABC, Generic[J]):
    """One attempt at a job."""

    def __init__(
        self, store: ObjectStore, settings: ClusterSettings, jobs: Jobs[J], job_id: str
    ) -> None:
        self.store = store
        self.settings = settings
        self.jobs = jobs
        self.job_id = job_id
        self.job = jobs.get(job_id)

    def run(self) -> None:
        """Until the job is over and nothing is left to be done. What it raises may pass."""
        while not self.job.state.is_over:
            self._attempt()
        if not self.job.cleaned:
            self.clean()
            self.jobs.set(self.job_id, cleaned=True)

    def note(self, error: str, *, last: bool) -> None:
        """Tell why an attempt has failed; the ``last`` ends a job that is not decided."""
        if last and self.job.state is not State.COMMITTING:
            self.end(State.FAILED, error)
        else:
            self.tell(error=error)

    @abstractmethod
    def work(self, collection: Collection) -> None:
        """Bring the job to its end. InvalidInput and NotFound make it fail."""

    @abstractmethod
    def clean(self) -> None:
        """Delete what is not wanted once the job is over."""

    def _attempt(self) -> None:
        try:
            self.work(self.collection())
        except Cancelled:
            self.end(State.CANCELLED)
        except (InvalidInput, NotFound) as error:
            self.end(State.FAILED, str(error))
        except (WorkerCrashedError, OutOfMemoryError) as error:
            self.end(State.FAILED, f"a worker died {TASK_RETRIES} times at the same task: {error}")
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, Unavailable):
                raise cause from None
            expected = isinstance(cause, (InvalidInput, NotFound))
            self.end(State.FAILED, str(cause if expected else error))

    # For `work`

    def enter(self, state: State, **fields: Any) -> None:
        """Raises Cancelled."""
        self.check_cancelled()
        self.tell(state=state, **fields)

    def tell(self, **fields: Any) -> None:
        """Change the job's document. What another driver has decided stays."""

        def change(job: J) -> J:
            if job.state.is_over:
                return job
            if job.state is State.COMMITTING and self.job.state is not State.COMMITTING:
                return job
            return msgspec.structs.replace(job, **fields)

        self.job = self.jobs.change(self.job_id, change)

    def end(self, state: State, error: str = "", **fields: Any) -> None:
        """Tell that the job is over, and ``fields``."""
        self.tell(state=state, error=error, finished=time(), **fields)
        logger.info("job %s: %s %s", self.job_id, state, error)

    def commit(self) -> bool:
        """Decide that the job is brought to its end; False if it is over. Raises Cancelled."""

        def decide(job: J) -> J:
            if job.cancel:
                raise Cancelled
            if job.state.is_over:
                return job
            return msgspec.structs.replace(job, state=State.COMMITTING)

        self.job = self.jobs.change(self.job_id, decide)
        return self.job.state is State.COMMITTING

    def check_cancelled(self) -> None:
        """Raises Cancelled, unless it is too late for that."""
        if self.job.state is not State.COMMITTING and self.jobs.get(self.job_id).cancel:
            raise Cancelled

    def collection(self) -> Collection:
        """Raises NotFound when it is deleted."""
        for collection in Catalog(self.store).collections().values():
            if collection.id == self.job.collection_id:
                return collection
        raise NotFound(f"collection `{self.job.collection}` is deleted")

    def parallel(self) -> int:
        """As many tasks as there are cores."""
        resources = ray.cluster_resources()  # type: ignore[no-untyped-call]
        return max(1, int(resources.get("CPU", 1)))

    def gpu_share(self) -> float:
        """Of a GPU what each of `parallel` tasks gets, so that all of them run; 0 without one."""
        gpus = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
        return min(1.0, float(gpus) / self.parallel())

    def run_all(
        self,
        starts: Sequence[Callable[[], Any]],
        parallel: int,
        look: Callable[[], None] = lambda: None,
    ) -> Iterator[tuple[int, Any]]:
        """Numbers and answers of tasks as they end, at most ``parallel`` at a time.

        They are started from the last to the first. ``look`` is called every now and then. Raises
        Cancelled and what a task raises; then the others are killed.
        """
        waiting = list(enumerate(starts))
        running: dict[Any, int] = {}
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    number, start = waiting.pop()
                    running[start()] = number
                done, _ = ray.wait(list(running), timeout=LOOK_SECONDS)
                for one in done:
                    number = running.pop(one)
                    yield number, ray.get(one)
                self.check_cancelled()
                look()
        finally:
            for one in running:
                ray.cancel(one, force=True)


class Drivers:
    """The jobs under way, each with a thread in a process that has Ray."""

    def __init__(self, settings: ClusterSettings) -> None:
        self._settings = settings
        self._threads: dict[str, Thread] = {}

    def see_to(
        self, jobs: Mapping[str, Callable[[ObjectStore, ClusterSettings, str], Driving[Any]]]
    ) -> None:
        """Drive ``jobs``, by id what begins an attempt at one. Returns at once."""
        self._threads = {job: thread for job, thread in self._threads.items() if thread.is_alive()}
        for job, begin in jobs.items():
            if job not in self._threads:
                thread = Thread(target=_drive, args=(self._settings, job, begin), daemon=True)
                self._threads[job] = thread
                thread.start()


def _drive(
    settings: ClusterSettings,
    job_id: str,
    begin: Callable[[ObjectStore, ClusterSettings, str], Driving[Any]],
) -> None:
    first, longest = BACKOFF_SECONDS
    attempt, seen = 0, None
    while True:
        try:
            begin(open_object_store(settings.data), settings, job_id).run()
            return
        except (Unavailable, Corrupt, RayError) as error:
            logger.warning("job %s: %s", job_id, error)
            reason = str(error)
        except Exception as error:
            logger.exception("job %s", job_id)
            reason = repr(error)
        attempt += 1
        sleep(min(longest, first * 2 ** min(attempt, 16)))
        with contextlib.suppress(ShoalError):
            driving = begin(open_object_store(settings.data), settings, job_id)
            reached = msgspec.structs.replace(driving.job, error="")
            if reached != seen:  # It has come on since the last time.
                attempt, seen = 1, reached
            driving.note(reason, last=attempt >= ATTEMPTS)
