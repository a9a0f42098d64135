"""Makes the cluster what the catalog says: shard servers, placements, the published topology.

The supervisor is a Ray actor without a state of its own. What there should be is in the catalog,
where the shards are is in the topology, and what runs the shard servers tell: so it may be killed
at any time, and its successor goes on from there.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Container
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Thread
from time import monotonic, sleep
from typing import Any

import msgspec
import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from cluster.catalog import Catalog, Collection
from cluster.driving import Drivers
from cluster.export.driver import ExportDriving
from cluster.export.jobs import export_jobs
from cluster.ingest.driver import IngestDriving
from cluster.ingest.jobs import IngestJob, imports_of, ingest_jobs
from cluster.placement import place, with_lingering
from cluster.server_actor import Report, ShardServerActor
from cluster.settings import ClusterSettings, configure_logging
from cluster.topology import Superseded, Topology, TopologyDocument, poll_seconds
from shard.errors import Corrupt, ShoalError, Unavailable
from shard.model import ShardConfig
from shard.objects import ObjectStore, open_object_store
from shard.rpc.hosting import ShardId

logger = logging.getLogger(__name__)

SUPERVISOR = "supervisor"
LOST_SECONDS = 60.0
"""After this long without a word from a shard server its shards go to others."""
RETRY_FAILED_SECONDS = (2.0, 60.0)
"""Backoff before a shard that failed is opened again: first and longest."""
ERASE_SECONDS = 5.0
"""Between passes over a deleted collection's objects; its shards may still be closing."""
STOP_GRACE_SECONDS = 1.0
ANSWER_SECONDS = 10.0
"""How long a supervisor may take to tell what it was told."""

_SHARD_SERVER = "shard-server-"

# Restarted without end, wherever there is room. Calls must not wait for one another.
_FOREVER: dict[str, Any] = {
    "lifetime": "detached",
    "get_if_exists": True,
    "num_cpus": 0,
    "max_restarts": -1,
    "max_concurrency": 4,
}


def start_supervisor(settings: ClusterSettings, claim: Callable[[], str]) -> None:
    """Start the supervisor of this Ray cluster, unless it has one.

    ``claim`` makes the object store this cluster's, and answers the cluster's id.
    """
    if _find(SUPERVISOR) is None:
        _start(settings, claim())


def update_supervisor(settings: ClusterSettings) -> None:
    """Replace the supervisor if it was told anything but ``settings``. Its successor goes on.

    Raises Unavailable where it does not answer: it may be about to be restarted.
    """
    told: ClusterSettings
    cluster: str
    try:
        supervisor = ray.get_actor(SUPERVISOR)
        told, cluster = ray.get(supervisor.told.remote(), timeout=ANSWER_SECONDS)
    except (ValueError, RayError) as error:
        raise Unavailable(f"the supervisor does not answer: {error}") from error
    if told == settings:
        return
    logger.warning("the settings have changed: the supervisor is replaced")
    ray.kill(supervisor, no_restart=True)
    while _find(SUPERVISOR) is not None:
        sleep(0.1)
    _start(settings, cluster)


def _start(settings: ClusterSettings, cluster: str) -> None:
    actor = ray.remote(Supervisor).options(name=SUPERVISOR, **_FOREVER)
    actor.remote(settings, cluster)


def _find(name: str) -> ActorHandle[Any] | None:
    try:
        return ray.get_actor(name)
    except ValueError:
        return None


def stop_shard_servers(count: int, timeout: float) -> None:
    """End the supervisor, and then its shard servers, in order."""
    ray.kill(ray.get_actor(SUPERVISOR), no_restart=True)
    # It may be too early for some of them.
    servers = [server for number in range(count) if (server := _find(_name(number))) is not None]
    _stop_all(servers, timeout)


class Supervisor:
    """Works in a thread of its own until another cluster supersedes its own."""

    def __init__(self, settings: ClusterSettings, cluster: str) -> None:
        configure_logging(settings.log_level, settings.log_format)
        self._settings = settings
        self._cluster = cluster
        self._interval = poll_seconds(settings.data)
        self._self = ray.get_runtime_context().current_actor
        Thread(target=self._run, name="supervisor", daemon=True).start()

    def told(self) -> tuple[ClusterSettings, str]:
        """What the supervisor was started with: the settings, and the id of its cluster."""
        return self._settings, self._cluster

    def _run(self) -> None:
        servers = {
            name: _Server(name, self._settings)
            for name in map(_name, range(self._settings.shard_servers))
        }
        try:
            _stop_surplus(servers.keys())
            store = self._open_store()
            loop = _Reconciliation(store, self._settings, self._cluster, servers, self._interval)
            while True:
                try:
                    loop.step()
                except (Unavailable, Corrupt) as error:
                    logger.warning("%s", error)
                except RayError as error:
                    logger.warning("Ray: %s", error)
                sleep(self._interval)
        except Superseded as error:
            logger.warning("%s; this one stops", error)
            actors = [server.actor for server in servers.values()]
            _stop_all(actors, STOP_GRACE_SECONDS + 1)
        except Exception:
            logger.exception("the supervisor failed and is started again")
            sleep(1)
            ray.kill(self._self, no_restart=False)
            return
        ray.kill(self._self, no_restart=True)

    def _open_store(self) -> ObjectStore:
        while True:
            try:
                return open_object_store(self._settings.data)
            except ShoalError as error:
                logger.warning("%s", error)
                sleep(self._interval)


class _Server:
    """One shard server as the supervisor knows it."""

    def __init__(self, name: str, settings: ClusterSettings) -> None:
        self.name = name
        self.report: Report | None = None
        self._settings = settings
        self._heard_at = monotonic()
        self._assigning: ray.ObjectRef[Report] | None = None
        self._actor: ActorHandle[Any] | None = None

    @property
    def actor(self) -> ActorHandle[Any]:
        """The actor; it is made anew after Ray has given it up."""
        if self._actor is None:
            resource = self._settings.node_resource
            actor: Any = ray.remote(ShardServerActor).options(
                name=self.name,
                scheduling_strategy="SPREAD",
                resources={resource: 1} if resource else None,
                **_FOREVER,
            )
            self._actor = actor.remote(self.name, self._settings)
        return self._actor

    @property
    def lost(self) -> bool:
        """Whether it has said nothing for long."""
        return monotonic() - self._heard_at > LOST_SECONDS

    def assign(self, desired: dict[ShardId, ShardConfig]) -> ray.ObjectRef[Report]:
        """The call under way; while an earlier one is, ``desired`` waits for the next."""
        if self._assigning is None:
            self._assigning = self.actor.assign.remote(desired)
        return self._assigning

    def collect(self) -> None:
        """Take in the answer of the call, which has ended."""
        assert self._assigning is not None
        assigning, self._assigning = self._assigning, None
        try:
            self.report = ray.get(assigning)
        except RayActorError as error:
            # While Ray restarts it, calls fail; once it is given up, there must be a new one.
            logger.warning("%s: %s", self.name, str(error).partition("\n")[0])
            self.report = None
            self._actor = None
        except RayError as error:
            logger.warning("%s: %s", self.name, error)
        else:
            self._heard_at = monotonic()

    def restart(self) -> None:
        """End the process, whatever it is at. Ray starts it again."""
        self._assigning = None
        self.report = None
        ray.kill(self.actor, no_restart=False)


class _Reconciliation:
    """Compares what is with what should be, and does what is missing, step by step."""

    def __init__(
        self,
        store: ObjectStore,
        settings: ClusterSettings,
        cluster: str,
        servers: dict[str, _Server],
        timeout: float,
    ) -> None:
        self._catalog = Catalog(store)
        self._document = TopologyDocument(store)
        self._ingest_jobs = ingest_jobs(store)
        self._export_jobs = export_jobs(store)
        self._drivers = Drivers(settings)
        self._cluster = cluster
        self._servers = servers
        self._timeout = timeout
        self._collections: dict[str, Collection] | None = None
        self._ingests: list[IngestJob] = []
        self._placements: dict[str, list[str]] = {}
        self._failures = _Failures()
        self._eraser = _Eraser(store)
        self._lost: set[str] = set()

    def step(self) -> None:
        """Raises Superseded. Unavailable and RayError pass: the next step does what is left."""
        try:
            published = self._document.read()
            if published.cluster != self._cluster:
                raise Superseded(f"cluster {published.cluster or '?'} has taken over")
            if self._collections is None:
                self._placements = published.placements
            collections = self._catalog.collections()
            self._ingests = self._ingest_jobs.all()
            self._collections = collections
        except Unavailable:
            # A shard server that was restarted gets its shards back even now.
            if self._collections is not None:
                self._assign()
            raise
        self._placements = place(
            self._collections.values(), self._placements, self._servers.keys() - self._find_lost()
        )
        self._assign()
        hosted = {
            shard_id[0]
            for server in self._servers.values()
            if server.report is not None
            for shard_id in server.report.status
        }
        self._publish(published, hosted)
        self._eraser.erase(self._catalog, hosted)
        self._drivers.see_to(
            {job.id: IngestDriving for job in self._ingests if not job.cleaned}
            | {job.id: ExportDriving for job in self._export_jobs.all() if not job.cleaned}
        )

    def _find_lost(self) -> set[str]:
        lost = {name for name, server in self._servers.items() if server.lost}
        for name in lost - self._lost:
            logger.error("%s does not answer: its shards move, and it is restarted", name)
            self._servers[name].restart()
        self._lost = lost
        return lost

    def _assign(self) -> None:
        assert self._collections is not None
        desired: dict[str, dict[ShardId, ShardConfig]] = defaultdict(dict)
        for collection in self._collections.values():
            config = msgspec.structs.replace(
                collection.config,
                imports=imports_of(self._ingests, collection.id),
                imports_known=self._ingests[-1].number if self._ingests else 0,
            )
            for number, name in enumerate(self._placements.get(collection.id, [])):
                shard_id = (collection.id, number)
                if not self._failures.rests(shard_id):
                    desired[name][shard_id] = config
        calls = {server.assign(desired[name]): server for name, server in self._servers.items()}
        done, _ = ray.wait(list(calls), num_returns=len(calls), timeout=self._timeout)
        for call in done:
            server = calls[call]
            server.collect()
            if server.report is not None:
                self._failures.note(server.name, server.report.status)

    def _publish(self, published: Topology, hosted: set[str]) -> None:
        addresses = {
            name: server.report.address
            for name, server in self._servers.items()
            if server.report is not None
        }
        # Until a restarted server tells its new address, routers try the old one.
        known = {name: at for name, at in published.servers.items() if name in self._servers}
        placements = with_lingering(self._placements, published.placements, hosted)
        topology = Topology(known | addresses, placements, self._cluster)
        if topology != published:
            self._document.publish(topology)


class _Failures:
    """Shards that failed, and when each of them may be opened again.

    A shard server opens a failed shard again only after an assignment without it.
    """

    def __init__(self) -> None:
        self._retries: dict[ShardId, tuple[int, float]] = {}

    def rests(self, shard_id: ShardId) -> bool:
        """Whether the shard should be left out for now."""
        return shard_id in self._retries and monotonic() < self._retries[shard_id][1]

    def note(self, server: str, status: dict[ShardId, str]) -> None:
        """Take in a shard server's report."""
        for shard_id, state in status.items():
            if state == "serving":
                self._retries.pop(shard_id, None)
            elif state.startswith("failed") and not self.rests(shard_id):
                first, longest = RETRY_FAILED_SECONDS
                count = self._retries.get(shard_id, (0, 0.0))[0]
                delay = min(longest, first * 2**count)
                self._retries[shard_id] = (count + 1, monotonic() + delay)
                logger.error(
                    "shard %d of collection %s on %s %s; next try in %.0f s",
                    shard_id[1],
                    shard_id[0],
                    server,
                    state,
                    delay,
                )


class _Eraser:
    """Deletes the objects of deleted collections, in a thread of its own.

    A pass that finds nothing is the last: what a closing shard writes late is found as well.
    """

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(1, "erase")
        self._passes: dict[str, tuple[Future[int], float]] = {}

    def erase(self, catalog: Catalog, hosted: set[str]) -> None:
        """Go on with every deleted collection that is not ``hosted`` any more."""
        for collection_id in catalog.deleted():
            if collection_id in hosted:
                continue
            under_way, due = self._passes.get(collection_id, (None, 0.0))
            if under_way is not None and (not under_way.done() or monotonic() < due):
                continue
            if under_way is not None and under_way.exception() is None and not under_way.result():
                catalog.forget(collection_id)
                del self._passes[collection_id]
                logger.info("collection %s is erased", collection_id)
                continue
            erasing = self._threads.submit(self._pass, collection_id)
            self._passes[collection_id] = (erasing, monotonic() + ERASE_SECONDS)

    def _pass(self, collection_id: str) -> int:
        count = 0
        for key in self._store.list(f"collections/{collection_id}/"):
            self._store.delete(key)
            count += 1
        return count


def _name(number: int) -> str:
    return f"{_SHARD_SERVER}{number}"


def _stop_surplus(names: Container[str]) -> None:
    """Stop the shard servers that an earlier supervisor had beyond ``names``."""
    surplus = [
        name
        for name in ray.util.list_named_actors()
        if name.startswith(_SHARD_SERVER) and name not in names
    ]
    for name in surplus:
        logger.warning("%s is one too many: its shards move", name)
    servers = [server for name in surplus if (server := _find(name)) is not None]
    _stop_all(servers, STOP_GRACE_SECONDS + 1)


def _stop_all(servers: list[ActorHandle[Any]], timeout: float) -> None:
    """Stop shard servers for good."""
    stopping = [server.stop.remote(STOP_GRACE_SECONDS) for server in servers]
    try:
        ray.get(stopping, timeout=timeout)
    except (GetTimeoutError, RayError) as error:
        logger.warning("not every shard server stopped in time: %s", error)
    for server in servers:
        ray.kill(server, no_restart=True)
