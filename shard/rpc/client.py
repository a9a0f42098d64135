"""Calls to one shard server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
import msgspec
import numpy as np
from google.protobuf.message import DecodeError, Message
from numpy.typing import NDArray

from shard import facets
from shard.errors import Corrupt, InvalidInput, Unavailable
from shard.model import (
    Frequencies,
    Hits,
    Keys,
    Operation,
    Points,
    Ranked,
    RankParams,
    SearchParams,
    ShardInfo,
    VectorColumn,
)
from shard.rpc import codec, tls
from shard.rpc import shard_pb2 as pb
from shard.rpc.channel import (
    COST,
    KEEPALIVE,
    MAX_MESSAGE_BYTES,
    MESSAGE_LIMITS,
    REQUEST_ID,
    SERVICE,
    TRACEPARENT,
)
from shard.rpc.origin import Calling
from shard.rpc.status import code_of, error_of
from shard.rpc.stream import CallStream
from shard.usage import Cost

R = TypeVar("R", bound=Message)
T = TypeVar("T")

_OPTIONS = (
    *KEEPALIVE,
    *MESSAGE_LIMITS,
    # A server that comes back on its address is reached again within a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
    # Retries are the caller's: it knows whether the shards have moved.
    ("grpc.enable_retries", 0),
)


_METHODS = (
    "Write",
    "Retrieve",
    "Scroll",
    "Count",
    "Rank",
    "Facet",
    "Frequencies",
    "Describe",
    "Metrics",
    "Profile",
)


def _metadata(calling: Calling) -> list[tuple[str, str]]:
    ids = [(REQUEST_ID, one) for one in calling.request_ids]
    return ids + [(TRACEPARENT, one) for one in calling.traceparents]


class ShardClient:
    """One connection to the shard server at ``address`` (``host:port``), for one event loop.
    ``credentials`` are those of `tls.channel_credentials`, if it wants any.

    A call names the collection and those of its shards it is for, all of which the server must
    host. ``timeout`` is in seconds; a call that is cancelled is cancelled at the server too.

    Every call raises:
        InvalidInput: the server refused the request, or it exceeds the message limit.
        NotFound: the server does not host one of the shards.
        Overloaded: a queue of the server is full.
        Unavailable: the server cannot be reached, or a shard cannot answer now. A write may have
            been committed all the same.
        TimeoutError: no answer came in time. A write may have been committed all the same.
        Corrupt: a shard's stored bytes, or the answer's, are not what they should be.
        ShoalError: the server failed in a way it did not expect.
    """

    def __init__(self, address: str, credentials: grpc.ChannelCredentials | None = None) -> None:
        self.address = address
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(address, options=_OPTIONS)
        else:
            options = (*_OPTIONS, *tls.OPTIONS)
            self._channel = grpc.aio.secure_channel(address, credentials, options=options)
        # Messages are encoded here, so that their size can be checked with a clear error.
        self._methods = {
            name: self._channel.unary_unary(f"/{SERVICE}/{name}", None, None) for name in _METHODS
        }
        calls = self._channel.stream_stream(f"/{SERVICE}/Calls", None, None)
        self._stream = CallStream(lambda: calls(None), address)

    async def write(
        self,
        collection_id: str,
        writes: Mapping[int, Sequence[Operation]],
        *,
        wait: bool,
        timeout: float,
    ) -> int:
        """Write each shard its operations, in order. The highest log sequence they took.

        ``wait``: until they are applied, and not just committed.
        """
        request = pb.WriteRequest(
            collection_id=collection_id,
            writes=[
                pb.ShardWrite(shard=shard, operations=map(codec.encode_operation, operations))
                for shard, operations in writes.items()
            ],
            wait=wait,
        )
        reply = await self._call("Write", request, pb.WriteReply, timeout)
        return reply.sequence

    async def edit(
        self,
        collection_id: str,
        edits: Mapping[int, pb.Operation],
        *,
        wait: bool,
        timeout: float,
    ) -> int:
        """Carry out in each shard its edit, of `codec.encode_edit`. The highest log sequence."""
        writes = [pb.ShardWrite(shard=shard, operations=[one]) for shard, one in edits.items()]
        request = pb.WriteRequest(collection_id=collection_id, writes=writes, wait=wait)
        return (await self._call("Write", request, pb.WriteReply, timeout)).sequence

    async def search(
        self,
        collection_id: str,
        shards: Sequence[int],
        queries: VectorColumn,
        params: SearchParams,
        filters: Sequence[bytes] = (),
        *,
        timeout: float,
    ) -> Hits:
        """The nearest points in all of ``shards`` to each of ``queries``, of those that the filter
        of each lets through; without ``filters``: of all."""
        request = codec.encode_search(collection_id, shards, queries, params, filters)
        reply = await self._call("Search", request, pb.SearchReply, timeout)
        return self._decode(lambda: codec.decode_hits(reply, with_payload=params.with_payload))

    async def retrieve(
        self,
        collection_id: str,
        shards: Sequence[int],
        keys: Keys,
        *,
        with_payload: bool,
        with_vectors: Sequence[str] = (),
        timeout: float,
    ) -> Points:
        """Those points of ``keys`` (n,) that exist in ``shards``, in any order."""
        request = pb.RetrieveRequest(
            target=pb.Target(collection_id=collection_id, shards=shards),
            keys=codec.encode_keys(keys),
            with_payload=with_payload,
            with_vectors=with_vectors,
        )
        reply = await self._call("Retrieve", request, pb.PointsReply, timeout)
        return self._decode(lambda: codec.decode_points(reply, with_payload=with_payload))

    async def scroll(
        self,
        collection_id: str,
        shards: Sequence[int],
        start: bytes,
        limit: int,
        *,
        with_payload: bool,
        with_vectors: Sequence[str] = (),
        filter: bytes = b"",
        timeout: float,
    ) -> Points:
        """The first ``limit`` points in ``shards`` from key ``start`` on, ascending.

        An empty ``start`` is the beginning.
        """
        request = pb.ScrollRequest(
            target=pb.Target(collection_id=collection_id, shards=shards),
            start=start,
            limit=limit,
            with_payload=with_payload,
            with_vectors=with_vectors,
            filter=filter,
        )
        reply = await self._call("Scroll", request, pb.PointsReply, timeout)
        return self._decode(lambda: codec.decode_points(reply, with_payload=with_payload))

    async def count(
        self, collection_id: str, shards: Sequence[int], *, filter: bytes = b"", timeout: float
    ) -> int:
        """How many points there are in ``shards`` that ``filter`` lets through; ``b""``: all."""
        target = pb.Target(collection_id=collection_id, shards=shards)
        request = pb.CountRequest(target=target, filter=filter)
        return (await self._call("Count", request, pb.CountReply, timeout)).count

    async def rank(
        self, collection_id: str, shards: Sequence[int], params: RankParams, *, timeout: float
    ) -> Ranked:
        """The first points in ``shards`` in the order that is asked for."""
        request = pb.RankRequest(
            target=pb.Target(collection_id=collection_id, shards=shards),
            limit=params.limit,
            order_by=params.order_by,
            filter=params.filter,
            among=params.among,
            with_payload=params.with_payload,
            with_vectors=params.with_vectors,
        )
        reply = await self._call("Rank", request, pb.RankReply, timeout)
        return self._decode(lambda: codec.decode_ranked(reply, with_payload=params.with_payload))

    async def facet(
        self, collection_id: str, shards: Sequence[int], key: str, filter: bytes, *, timeout: float
    ) -> facets.Counts:
        """As `facets.count`, of the points in ``shards`` that ``filter`` lets through."""
        target = pb.Target(collection_id=collection_id, shards=shards)
        request = pb.FacetRequest(target=target, key=key, filter=filter)
        reply = await self._call("Facet", request, pb.FacetReply, timeout)
        return self._decode(lambda: msgspec.json.decode(reply.counts, type=facets.Counts))

    async def frequencies(
        self,
        collection_id: str,
        shards: Sequence[int],
        name: str,
        indices: NDArray[np.uint32],
        filter: bytes,
        *,
        timeout: float,
    ) -> Frequencies:
        """Of ``indices`` (t,) in the sparse vectors of that name in ``shards``."""
        request = pb.FrequenciesRequest(
            target=pb.Target(collection_id=collection_id, shards=shards),
            name=name,
            indices=np.ascontiguousarray(indices, "<u4").tobytes(),
            filter=filter,
        )
        reply = await self._call("Frequencies", request, pb.FrequenciesReply, timeout)
        return Frequencies(reply.points, np.array(reply.counts, np.int64))

    async def describe(
        self, collection_id: str, shards: Sequence[int], *, timeout: float
    ) -> list[ShardInfo]:
        """What there is to know of each of ``shards``, in that order."""
        request = pb.DescribeRequest(target=pb.Target(collection_id=collection_id, shards=shards))
        reply = await self._call("Describe", request, pb.DescribeReply, timeout)
        return self._decode(
            lambda: [msgspec.json.decode(shard, type=ShardInfo) for shard in reply.shards]
        )

    async def metrics(self, *, timeout: float) -> bytes:
        """What the process has done so far, and all that it holds: Prometheus metrics, as
        `shard.metrics` packs them, in which collections are named by their ids."""
        reply = await self._call("Metrics", pb.MetricsRequest(), pb.MetricsReply, timeout)
        return reply.metrics

    async def profile(self, seconds: float, hertz: int, *, timeout: float) -> str:
        """What `Profiler.take` answers there."""
        request = pb.ProfileRequest(seconds=seconds, hertz=hertz)
        reply = await self._call("Profile", request, pb.ProfileReply, timeout)
        return reply.stacks

    async def close(self, grace: float | None = None) -> None:
        """Close the connection; calls under way have ``grace`` seconds to end."""
        await self._stream.close(grace)
        await self._channel.close(grace)

    async def _call(self, method: str, request: Message, reply: type[R], timeout: float) -> R:
        data = request.SerializeToString()
        if len(data) > MAX_MESSAGE_BYTES:
            raise InvalidInput(
                f"request of {len(data)} bytes: expected at most {MAX_MESSAGE_BYTES}, "
                "send fewer points or queries at once"
            )
        shards = getattr(getattr(request, "target", None), "shards", ())
        with Calling(self.address, method, shards) as calling:
            answer = await self._send(method, data, timeout, calling)
        return self._decode(lambda: reply.FromString(answer))

    async def _send(self, method: str, data: bytes, timeout: float, calling: Calling) -> bytes:
        """The reply, encoded. What a call that fails has taken is told as well."""
        try:
            if method not in self._methods:
                found = await self._stream.call(method, data, timeout, calling)
                self._take_cost(calling, found.cost)
                if found.status:
                    raise error_of(code_of(found.status), found.details, self.address)
                return found.reply
            call = self._methods[method](data, timeout=timeout, metadata=_metadata(calling))
            answer: bytes = await call
            told: Any = await call.trailing_metadata()
            self._take_cost(calling, dict(told).get(COST, b""))
            return answer
        except grpc.aio.AioRpcError as error:
            ended: Any = error.trailing_metadata() or ()
            self._take_cost(calling, dict(ended).get(COST, b""))
            raise error_of(error.code(), error.details() or "", self.address) from None
        except grpc.aio.UsageError as error:
            raise Unavailable(f"shard server {self.address}: {error}") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The call was cancelled and not the caller: `close` ran out of patience.
            raise Unavailable(f"shard server {self.address}: connection closed") from None

    def _take_cost(self, calling: Calling, cost: Any) -> None:
        if calling.charged:
            calling.cost = self._decode(lambda: Cost.decode(cost))

    def _decode(self, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except (DecodeError, InvalidInput, msgspec.DecodeError) as error:
            raise Corrupt(f"shard server {self.address}: malformed answer: {error}") from error
