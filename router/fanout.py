"""Takes each request to the servers that host its shards, and makes one answer of theirs.

A server gets one call with all of its shards. What fails because a shard has moved, recovers or
cannot be reached is tried again, with the newest topology and only for the shards in question,
until the request's time is over. An answer is always that of every shard.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from time import monotonic
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
import msgspec
import numpy as np
from numpy.typing import NDArray
from prometheus_client import Counter

from cluster.catalog import Collection
from cluster.topology import Topology, TopologyWatcher
from router.batching import SearchBatcher
from router.payload_schema import indexed
from shard import facets
from shard.errors import NotFound, ShoalError, Unavailable
from shard.model import (
    Delete,
    Frequencies,
    Hits,
    Keys,
    Operation,
    Points,
    Ranked,
    RankParams,
    SearchParams,
    ShardInfo,
    Upsert,
    VectorColumn,
    shards_of,
)
from shard.rpc.client import ShardClient
from shard.rpc.codec import encode_edit
from shard.rpc.merge import (
    concatenate_points,
    in_order_of,
    merge_ascending,
    merge_hits,
    merge_ranked,
)

T = TypeVar("T")
Answer: TypeAlias = tuple[list[int], T]
"""Shard numbers, and what a server answers for them."""

RETRY_SECONDS = (0.05, 1.0)
"""Backoff between attempts: first and longest. A new topology ends it early."""
UNKNOWN_SECONDS = 3.0
"""How long a collection that no topology names may be one too new to be placed."""
CLOSE_SECONDS = 30.0
"""Time for calls under way to a server that has left the topology."""


class Fanout:
    """Answers for whole collections. Use from one event loop.

    ``timeout`` is the seconds a request may take, retries included. A ``filter``, as `Filter.check`
    has encoded it, takes texts apart as the collection's text indexes say. Every request raises:

        InvalidInput: the shards refused it.
        NotFound: the topology does not know the collection; it is deleted, or too new.
        Overloaded: a server's queue is full.
        Unavailable: some shard could not be reached or could not answer in all that time.
        TimeoutError: some shard was at it when the time was over.
        Corrupt, ShoalError: a shard is damaged, or failed unexpectedly.

    A write that raises anything may have been committed in part or whole. It is safe to repeat:
    operations replace and delete by key. Retries repeat it as well, so that a write that overlaps
    with another one of the same key may take effect both before and after it.
    """

    def __init__(
        self,
        topology: TopologyWatcher,
        credentials: Callable[[], grpc.ChannelCredentials] | None = None,
    ) -> None:
        """``credentials`` answers those for shard servers; others mean other connections."""
        self._topology = topology
        self._credentials = credentials
        self._clients_with: grpc.ChannelCredentials | None = None
        self._clients: dict[str, ShardClient] = {}
        self._clients_of: Topology | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._batcher = SearchBatcher(self._search)
        self._retries = Counter(
            "shoal_shard_call_retries",
            "Calls to shard servers that are made again.",
            ["error"],
            registry=None,
        )
        self.metrics = (self._batcher.sizes, self._retries)
        """What is counted here."""

    def check_servers(self) -> None:
        """Raises Unavailable while the topology knows no shard server."""
        if not self._topology.current.servers:
            raise Unavailable("no shard server has started yet")

    def is_placed(self, collection_id: str) -> bool:
        """Whether shard servers may take requests for that collection, as is known here."""
        return collection_id in self._topology.current.placements

    async def write(
        self,
        collection: Collection,
        operations: Sequence[Operation],
        *,
        wait: bool,
        timeout: float,
    ) -> int:
        """Apply ``operations``, those of each point in order. The highest log sequence they took.

        ``wait``: until they can be searched, and not just committed.
        """
        writes = _split(operations, collection.shard_count)
        if not writes:
            return 0
        sequences = await self._ask(
            collection,
            list(writes),
            lambda client, shards, left: client.write(
                collection.id, {shard: writes[shard] for shard in shards}, wait=wait, timeout=left
            ),
            timeout,
        )
        return max(sequence for _, sequence in sequences)

    async def edit(
        self,
        collection: Collection,
        edit: bytes,
        chosen: Keys | Upsert | None,
        filter: bytes,
        *,
        wait: bool,
        timeout: float,
    ) -> int:
        """Carry out an edit, encoded, of points with these keys, or as they are given, or, None, of
        what ``filter`` lets through. Given points that exist are changed only if it does so too. As
        `write` otherwise.
        """
        filter = indexed(filter, collection)
        parts: dict[int, Keys | Upsert | None]
        if chosen is None:
            parts = dict.fromkeys(range(collection.shard_count))
        elif isinstance(chosen, Upsert):
            split = _split([chosen], collection.shard_count)
            parts = {shard: one for shard, (one,) in split.items() if isinstance(one, Upsert)}
        else:
            shard_of = shards_of(chosen, collection.shard_count)
            parts = {shard: chosen[shard_of == shard] for shard in np.unique(shard_of).tolist()}
        edits = {shard: encode_edit(edit, part, filter) for shard, part in parts.items()}
        answers = await self._ask(
            collection,
            list(edits),
            lambda client, shards, left: client.edit(
                collection.id, {shard: edits[shard] for shard in shards}, wait=wait, timeout=left
            ),
            timeout,
        )
        return max(sequence for _, sequence in answers)

    async def search(
        self,
        collection: Collection,
        queries: VectorColumn,
        params: SearchParams,
        *,
        filter: bytes = b"",
        timeout: float,
    ) -> Hits:
        """The nearest ``params.limit`` points to each of ``queries``, one at least, that ``filter``
        lets through; ``b""``: all.

        Nearest first, ties in order of their keys.
        """
        filter = indexed(filter, collection)
        if params.examples:
            filters = [filter] * queries.rows
            return await self._search(collection, queries, params, filters, timeout, monotonic())
        return await self._batcher.search(collection, queries, params, filter, timeout)

    async def _search(
        self,
        collection: Collection,
        queries: VectorColumn,
        params: SearchParams,
        filters: Sequence[bytes],
        timeout: float,
        since: float,
    ) -> Hits:
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.search(
                collection.id, shards, queries, params, filters, timeout=left
            ),
            timeout,
            since,
        )
        if len(answers) == 1:
            return answers[0][1]
        return merge_hits(
            [hits for _, hits in answers],
            params.limit,
            higher_is_nearer=collection.config.higher_is_nearer(params),
        )

    async def retrieve(
        self,
        collection: Collection,
        keys: Keys,
        *,
        with_payload: bool,
        with_vectors: Sequence[str] = (),
        timeout: float,
    ) -> Points:
        """Those of ``keys`` (n,) that exist, in that order."""
        wanted = np.unique(keys)
        shard_of = shards_of(wanted, collection.shard_count)
        answers = await self._ask(
            collection,
            # Without a key there is still an answer: its columns, empty.
            np.unique(shard_of).tolist() or [0],
            lambda client, shards, left: client.retrieve(
                collection.id,
                shards,
                wanted[np.isin(shard_of, shards)],
                with_payload=with_payload,
                with_vectors=with_vectors,
                timeout=left,
            ),
            timeout,
        )
        return in_order_of(concatenate_points([points for _, points in answers]), keys)

    async def scroll(
        self,
        collection: Collection,
        start: bytes,
        limit: int,
        *,
        with_payload: bool,
        with_vectors: Sequence[str] = (),
        filter: bytes = b"",
        timeout: float,
    ) -> Points:
        """The first ``limit`` points from key ``start`` on, ascending; ``b""`` is the beginning.

        Of those that ``filter`` lets through; ``b""``: all.
        """
        filter = indexed(filter, collection)
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.scroll(
                collection.id,
                shards,
                start,
                limit,
                with_payload=with_payload,
                with_vectors=with_vectors,
                filter=filter,
                timeout=left,
            ),
            timeout,
        )
        return merge_ascending([points for _, points in answers], limit)

    async def count(self, collection: Collection, *, filter: bytes = b"", timeout: float) -> int:
        """How many points ``filter`` lets through; ``b""``: all."""
        filter = indexed(filter, collection)
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.count(
                collection.id, shards, filter=filter, timeout=left
            ),
            timeout,
        )
        return sum(count for _, count in answers)

    async def rank(self, collection: Collection, params: RankParams, *, timeout: float) -> Ranked:
        """The first points in the order that is asked for."""
        params = msgspec.structs.replace(params, filter=indexed(params.filter, collection))
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.rank(collection.id, shards, params, timeout=left),
            timeout,
        )
        return merge_ranked([ranked for _, ranked in answers], params)

    async def facet(
        self, collection: Collection, key: str, filter: bytes, *, timeout: float
    ) -> facets.Counts:
        """As `facets.count`, of the points that ``filter`` lets through; ``b""``: all."""
        filter = indexed(filter, collection)
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.facet(
                collection.id, shards, key, filter, timeout=left
            ),
            timeout,
        )
        return facets.total(counts for _, counts in answers)

    async def frequencies(
        self,
        collection: Collection,
        name: str,
        indices: NDArray[np.uint32],
        filter: bytes,
        *,
        timeout: float,
    ) -> Frequencies:
        """Of ``indices`` (t,) in the sparse vectors of that name of points that ``filter`` lets
        through; ``b""``: all."""
        filter = indexed(filter, collection)
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.frequencies(
                collection.id, shards, name, indices, filter, timeout=left
            ),
            timeout,
        )
        found = [part for _, part in answers]
        counts = np.array([part.counts for part in found]).sum(axis=0)
        return Frequencies(sum(part.points for part in found), counts)

    async def describe(self, collection: Collection, *, timeout: float) -> list[ShardInfo]:
        """What there is to know of each shard, in order of their numbers."""
        answers = await self._ask(
            collection,
            range(collection.shard_count),
            lambda client, shards, left: client.describe(collection.id, shards, timeout=left),
            timeout,
        )
        infos = {
            shard: info
            for shards, some in answers
            for shard, info in zip(shards, some, strict=True)
        }
        return [infos[shard] for shard in range(collection.shard_count)]

    async def collect(self, *, timeout: float) -> dict[str, bytes | None]:
        """What `ShardClient.metrics` answers for every shard server, by its name; None for one that
        has not answered in time."""
        topology = self._topology.current

        async def ask(address: str) -> bytes | None:
            try:
                return await self._client(topology, address).metrics(timeout=timeout)
            except (ShoalError, TimeoutError):
                return None

        answers = await asyncio.gather(*map(ask, topology.servers.values()))
        return dict(zip(topology.servers, answers, strict=True))

    async def profile(self, server: str, seconds: float, hertz: int, *, timeout: float) -> str:
        """What `Profiler.take` answers in the shard server of that name.

        Raises NotFound where there is none.
        """
        topology = self._topology.current
        address = topology.servers.get(server)
        if address is None:
            known = ", ".join(sorted(topology.servers)) or "none"
            raise NotFound(f"server: no shard server {server[:100]!r}; there is {known}")
        return await self._client(topology, address).profile(seconds, hertz, timeout=timeout)

    async def close(self) -> None:
        """Close every connection; calls under way are cut off."""
        for task in self._closing:
            task.cancel()
        clients, self._clients = self._clients, {}
        await asyncio.gather(*(client.close() for client in clients.values()))

    async def _ask(
        self,
        collection: Collection,
        shards: Sequence[int],
        call: Callable[[ShardClient, list[int], float], Awaitable[T]],
        timeout: float,
        since: float | None = None,
    ) -> list[Answer[T]]:
        """What the servers answer, each with those of ``shards`` that it answers for.

        ``timeout`` counts from ``since`` on, by `monotonic`; None: from now.
        """
        began = monotonic() if since is None else since
        request = _Request(
            self._topology, self._client, self._retries, collection, call, timeout, began
        )
        return await request.ask(shards)

    def _client(self, topology: Topology, address: str) -> ShardClient:
        credentials = None if self._credentials is None else self._credentials()
        if credentials is not self._clients_with:
            self._clients_with = credentials
            self._leave(self._clients.keys())
        if topology is not self._clients_of:
            self._clients_of = topology
            self._leave(self._clients.keys() - topology.servers.values())
        if address not in self._clients:
            self._clients[address] = ShardClient(address, credentials)
        return self._clients[address]

    def _leave(self, addresses: Iterable[str]) -> None:
        for gone in list(addresses):
            closing = asyncio.create_task(self._clients.pop(gone).close(CLOSE_SECONDS))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)


class _Request(Generic[T]):
    """One request under way."""

    def __init__(
        self,
        topology: TopologyWatcher,
        connect: Callable[[Topology, str], ShardClient],
        retries: Counter,
        collection: Collection,
        call: Callable[[ShardClient, list[int], float], Awaitable[T]],
        timeout: float,
        began: float,
    ) -> None:
        self._topology = topology
        self._connect = connect
        self._retries = retries
        self._collection = collection
        self._call = call
        self._timeout = timeout
        self._began = began
        self._known = False

    async def ask(self, shards: Sequence[int], attempt: int = 0) -> list[Answer[T]]:
        while True:
            topology = self._topology.current
            servers = self._servers(topology, shards)
            if len(servers) > 1:
                parts = [self.ask(some, attempt) for some in servers.values()]
                return [answer for part in await _together(parts) for answer in part]
            ((server, asked),) = servers.items()
            try:
                address = topology.servers.get(server)
                if address is None:
                    raise Unavailable(f"shards {asked} are placed on no server")
                client = self._connect(topology, address)
                return [(asked, await self._call(client, asked, self._left))]
            except (Unavailable, NotFound) as error:
                await self._pause(topology, attempt, error)
                self._retries.labels(type(error).__name__).inc()
            except TimeoutError:
                raise TimeoutError(
                    f"collection `{self._collection.name}`: "
                    f"shards {asked} did not answer within {self._timeout:.3g} s"
                ) from None
            attempt += 1

    @property
    def _left(self) -> float:
        return self._began + self._timeout - monotonic()

    def _servers(self, topology: Topology, shards: Sequence[int]) -> dict[str, list[int]]:
        """Server ids, each with its part of ``shards``; ``""`` with what is unplaced.

        Raises NotFound for a collection that was deleted.
        """
        placements = topology.placements.get(self._collection.id)
        if placements is None:
            if self._known or monotonic() - self._began > UNKNOWN_SECONDS:
                raise NotFound(f"collection `{self._collection.name}` has no shards")
            return {"": list(shards)}
        self._known = True
        servers: dict[str, list[int]] = defaultdict(list)
        for shard in shards:
            servers[placements[shard] if shard < len(placements) else ""].append(shard)
        return servers

    async def _pause(self, topology: Topology, attempt: int, error: Exception) -> None:
        """Wait for a new topology, or a while. Raises Unavailable where no time is left for it."""
        first, longest = RETRY_SECONDS
        delay = random.uniform(0.5, 1) * min(longest, first * 2 ** min(attempt, 16))  # noqa: S311 - a pause
        if delay >= self._left:
            raise Unavailable(
                f"collection `{self._collection.name}` could not answer "
                f"within {self._timeout:.3g} s: {error}"
            ) from error
        if self._topology.current is topology:
            with contextlib.suppress(TimeoutError):
                await self._topology.changed(delay)


async def _together(parts: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """What all ``parts`` answer; once one fails, the others are cancelled."""
    tasks = [asyncio.create_task(part) for part in parts]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


def _split(operations: Sequence[Operation], shard_count: int) -> dict[int, list[Operation]]:
    """Each shard's part of ``operations``, in their order."""
    if shard_count == 1:
        return {0: list(operations)} if operations else {}
    split: dict[int, list[Operation]] = defaultdict(list)
    for operation in operations:
        shard_of = shards_of(operation.keys, shard_count)
        for shard in np.unique(shard_of).tolist():
            rows = np.flatnonzero(shard_of == shard)
            keys = operation.keys[rows]
            match operation:
                case Upsert(_, vectors, payloads):
                    chosen = [payloads[row] for row in rows.tolist()]
                    taken = {name: column.take(rows) for name, column in vectors.items()}
                    split[shard].append(Upsert(keys, taken, chosen))
                case Delete():
                    split[shard].append(Delete(keys))
    return split
