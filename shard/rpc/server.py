"""Serves the shards that this process hosts over gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from itertools import pairwise
from pathlib import Path
from threading import Thread
from time import perf_counter
from typing import Any, TypeVar

import faiss
import grpc
import msgspec
import numpy as np
import orjson
import uvloop
from google.protobuf.message import DecodeError, Message
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from shard import facets, tracing, usage
from shard.builder import Builder
from shard.engine import ShardEngine
from shard.errors import InvalidInput, Overloaded
from shard.metrics import pack
from shard.model import KEY_BYTES, Hits, Operation, SearchParams, ShardConfig, Upsert, VectorColumn
from shard.objects import ObjectStore
from shard.profiling import Profiler
from shard.rpc import codec, merge
from shard.rpc import shard_pb2 as pb
from shard.rpc.accounts import Account, Accounts, account
from shard.rpc.channel import (
    COST,
    KEEPALIVE,
    MAX_MESSAGE_BYTES,
    MESSAGE_LIMITS,
    REQUEST_ID,
    SERVICE,
    TRACEPARENT,
)
from shard.rpc.hosting import HostedShard, Hosting, ShardId
from shard.rpc.origin import served
from shard.rpc.pacing import CoreTimes, WritePacer, cores
from shard.rpc.status import status_of
from shard.rpc.stream import serve_calls
from shard.rpc.tls import server_credentials
from shard.scheduling import ask_for_short_slices
from shard.usage import Measured

T = TypeVar("T")

MAX_CONCURRENT_CALLS = 4_096
MAX_WAITING_READS = 2_048
"""Reads that may wait for a thread or run in one; more are refused."""
_LEAST_BLOCK = 16
"""Fewest queries that a thread is given of a batch that is split over threads."""
_LEAST_ALIKE, _LEAST_ROWS = 4, 1 << 18
"""With fewer queries a filter, on average, in shards of fewer rows, one thread does all: NumPy's
loops are then so short that threads spend as much on waiting for the interpreter's lock as on what
they do (twice the CPU time with two threads and 75,000 rows, a sixth more with 400,000)."""

_OPTIONS = (
    *KEEPALIVE,
    *MESSAGE_LIMITS,
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    # A port that is taken is an error, and not shared with whoever holds it.
    ("grpc.so_reuseport", 0),
)


class ShardServer:
    """Hosts the shards it is assigned and answers ``shoal.v1.ShardService`` for them.

    It runs an event loop in a thread of its own. Reads run in ``search_threads`` threads (default:
    one a core), each of which keeps to one core, so that queries do not compete for the cores of
    one another. Indexes are built in a process of their own.

    ``tls`` is a directory of `shard.rpc.tls`: only who has such a certificate is answered.
    ``scratch`` is a directory for local copies of what is in ``store``. Methods may be called from
    any thread; `start` comes first, and once.
    """

    def __init__(
        self,
        store: ObjectStore,
        scratch: Path,
        *,
        host: str,
        port: int = 0,
        search_threads: int | None = None,
        tls: str | None = None,
    ) -> None:
        self._address = f"{host}:{port}"
        self._credentials = None if tls is None else server_credentials(tls)
        self._threads = search_threads or cores()
        self._readers = ThreadPoolExecutor(self._threads, "search", _answer_searches)
        self._builder = Builder()
        self._hosting = Hosting(store, scratch, self._builder)
        self._pacer = WritePacer(CoreTimes().busy)
        self._waiting = 0
        self._accounts = Accounts(self._hosting)
        self._profiler = Profiler()
        for name, help, look in (
            ("waiting_reads", "Reads that wait for a thread or run.", lambda: self._waiting),
            ("waiting_write_bytes", "Writes held back.", lambda: self._pacer.waiting),
            (
                "write_limit_bytes_per_second",
                "What writes are held to while searches come; infinite without a limit.",
                lambda: self._pacer.rate,
            ),
        ):
            self._accounts.watch(name, help, look)
        self._thread: Thread | None = None

    def start(self) -> int:
        """Listen, and answer the port bound. Raises OSError where it cannot be."""
        started: Future[int] = Future()
        self._thread = Thread(target=self._run, args=(started,), name="shard-server", daemon=True)
        self._thread.start()
        return started.result()

    def stop(self, grace: float) -> None:
        """Refuse new calls, give those under way ``grace`` seconds, and close every shard."""
        if self._thread is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stopping.set_result, grace)
            self._thread.join()
        self._readers.shutdown(cancel_futures=True)
        self._builder.close()

    def assign(self, desired: Mapping[ShardId, ShardConfig]) -> None:
        """Host ``desired`` and nothing else; shards are opened and closed in the background.

        A shard that failed stays failed, until it is left out of one assignment and named in a
        later one.
        """

        async def assign() -> None:
            self._hosting.assign(desired)

        asyncio.run_coroutine_threadsafe(assign(), self._loop).result()

    def status(self) -> dict[ShardId, str]:
        """Every assigned shard as ``"recovering"``, ``"serving"`` or ``"failed: REASON"``."""
        return self._hosting.status()

    def _run(self, started: Future[int]) -> None:
        ask_for_short_slices()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._serve(started))

    async def _serve(self, started: Future[int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping: asyncio.Future[float] = self._loop.create_future()
        server = aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CONCURRENT_CALLS)
        server.add_generic_rpc_handlers([self._service()])
        wellness = health.aio.HealthServicer()  # type: ignore[attr-defined]  # not in the stubs
        health_pb2_grpc.add_HealthServicer_to_server(wellness, server)
        await wellness.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        try:
            if self._credentials is None:
                port = server.add_insecure_port(self._address)
            else:
                port = server.add_secure_port(self._address, self._credentials)
            await server.start()
        except RuntimeError as error:
            started.set_exception(OSError(f"cannot listen on {self._address}: {error}"))
            return
        started.set_result(port)
        grace = await self._stopping
        await wellness.enter_graceful_shutdown()
        await server.stop(grace)
        await self._hosting.close()

    def _service(self) -> grpc.GenericRpcHandler[Any, Any]:
        self._methods: dict[str, tuple[type[Message], Callable[[Any], Awaitable[Message]]]] = {
            "Write": (pb.WriteRequest, self._write),
            "Search": (pb.SearchRequest, self._search),
            "Retrieve": (pb.RetrieveRequest, self._retrieve),
            "Scroll": (pb.ScrollRequest, self._scroll),
            "Count": (pb.CountRequest, self._count),
            "Rank": (pb.RankRequest, self._rank),
            "Facet": (pb.FacetRequest, self._facet),
            "Frequencies": (pb.FrequenciesRequest, self._frequencies),
            "Describe": (pb.DescribeRequest, self._describe),
            "Metrics": (pb.MetricsRequest, self._metrics),
            "Profile": (pb.ProfileRequest, self._profile),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(partial(self._answer_call, name))
            for name in self._methods
        }
        calls = partial(serve_calls, self._answer_on_stream)
        handlers["Calls"] = grpc.stream_stream_rpc_method_handler(calls)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _answer_call(
        self, name: str, data: bytes, context: aio.ServicerContext[bytes, bytes]
    ) -> bytes:
        metadata = context.invocation_metadata() or ()
        ids = [str(value) for key, value in metadata if key == REQUEST_ID]
        traceparents = [str(value) for key, value in metadata if key == TRACEPARENT]
        status, reply, details, cost = await self._answer(name, data, ids, traceparents)
        context.set_trailing_metadata(((COST, cost),))
        if status is not grpc.StatusCode.OK:
            await context.abort(status, details)
        return reply

    async def _answer_on_stream(self, call: pb.Call) -> pb.Answer:
        try:
            async with asyncio.timeout(call.timeout):
                status, reply, details, cost = await self._answer(
                    call.method, call.request, call.request_ids, call.traceparents
                )
        except TimeoutError:
            status, reply, details = grpc.StatusCode.DEADLINE_EXCEEDED, b"", "deadline exceeded"
            cost = b""
        return pb.Answer(
            number=call.number, status=status.value[0], reply=reply, details=details, cost=cost
        )

    async def _answer(
        self, name: str, data: bytes, request_ids: Sequence[str], traceparents: Sequence[str]
    ) -> tuple[grpc.StatusCode, bytes, str, bytes]:
        """Status, reply, details and cost. The size of the reply is checked."""
        if name not in self._methods:
            return grpc.StatusCode.UNIMPLEMENTED, b"", f"no method {name}", b""
        served.set(request_ids)
        request_type, method = self._methods[name]
        began = perf_counter()
        own = Account(traced=bool(traceparents))
        account.set(own)
        spans = [tracing.begin(name, one, kind="server") for one in traceparents]
        collection_id, status, reply, details = "", grpc.StatusCode.CANCELLED, b"", ""
        try:
            request = request_type.FromString(data)
            collection_id = getattr(getattr(request, "target", request), "collection_id", "")
            reply = (await method(request)).SerializeToString()
            if len(reply) > MAX_MESSAGE_BYTES:
                raise InvalidInput(
                    f"answer of {len(reply)} bytes: expected at most {MAX_MESSAGE_BYTES}, "
                    "ask for fewer points, or leave out vectors or payloads"
                )
            status = grpc.StatusCode.OK
        except DecodeError as error:
            status, details = grpc.StatusCode.INVALID_ARGUMENT, f"request: {error}"
        except Exception as error:
            status, details = status_of(error, request_type.DESCRIPTOR.name)
        finally:
            seconds = perf_counter() - began
            # The turn after next, when the answer has gone.
            settle = partial(
                self._accounts.settle, own.cost, collection_id, name, status.name, seconds
            )
            self._loop.call_soon(self._loop.call_soon, settle)
            for span in spans:
                if span is not None:
                    own.trace(span.traceparent)
                    span.end(
                        error="" if status is grpc.StatusCode.OK else status.name,
                        attributes={"shoal.collection_id": collection_id},
                    )
        if status is not grpc.StatusCode.OK:
            reply = b""
        return status, reply, details, own.cost.encode()

    async def _write(self, request: pb.WriteRequest) -> pb.WriteReply:
        if not request.writes:
            raise InvalidInput("writes: expected at least one")
        for write in request.writes:
            self._hosting.find((request.collection_id, write.shard))
        await self._pacer.turn(request.ByteSize())
        # Everything is decoded before anything is written.
        writes = []
        written = account.get().cost.usage
        for write in request.writes:
            shard = self._hosting.find((request.collection_id, write.shard))
            if len(write.operations) == 1 and write.operations[0].HasField("edit"):
                edit, chosen, filter = codec.decode_edit(write.operations[0].edit)
                begin = partial(shard.engine.edit, edit, chosen, filter)
                operations: list[Operation] = [chosen] if isinstance(chosen, Upsert) else []
            else:
                operations = codec.decode_operations(write.operations)
                begin = partial(shard.engine.write, operations)
            writes.append((shard, begin))
            for one in operations:
                if isinstance(one, Upsert):
                    written.written_vector_bytes += sum(c.nbytes for c in one.vectors.values())
                    written.written_payload_bytes += sum(map(len, one.payloads))
        sequences = await asyncio.gather(
            *(_write_one(shard, begin, request.wait) for shard, begin in writes)
        )
        return pb.WriteReply(sequence=max(sequences))

    async def _search(self, request: pb.SearchRequest) -> pb.SearchReply:
        shards = self._find(request.target)
        config = shards[0].config
        params = codec.decode_params(request)
        queries = codec.decode_column(request.queries)
        if not queries.rows:
            raise InvalidInput("queries: expected at least one")
        filters = codec.decode_filters(request, queries.rows)
        threads = self._threads
        if queries.rows < _LEAST_ALIKE * len(set(filters)):
            rows = sum(shard.engine.rows for shard in shards)
            threads = 1 if rows < _LEAST_ROWS * len(shards) else threads
        # What the shards alone would leave idle of the threads, the blocks of a batch occupy.
        count = min(-(-threads // len(shards)), max(1, queries.rows // _LEAST_BLOCK))
        if params.examples:
            count = 1
        bounds = [queries.rows * block // count for block in range(count + 1)]
        blocks = [
            partial(
                _search_block,
                queries=queries.slice(first, end),
                params=params,
                filters=filters[first:end],
            )
            for first, end in pairwise(bounds)
        ]
        with self._pacer.search():
            found = await self._read(shards, *blocks, threads=threads)
        hits = merge.merge_hits(
            [merge.stack_hits(found[n : n + count]) for n in range(0, len(found), count)],
            params.limit,
            higher_is_nearer=config.higher_is_nearer(params),
        )
        return codec.encode_hits(hits)

    async def _retrieve(self, request: pb.RetrieveRequest) -> pb.PointsReply:
        shards = self._find(request.target)
        keys = codec.decode_keys(request.keys)
        names = tuple(request.with_vectors)
        found = await self._read(
            shards,
            lambda engine: engine.retrieve(
                keys, with_payload=request.with_payload, with_vectors=names
            ),
        )
        return codec.encode_points(merge.concatenate_points(found))

    async def _scroll(self, request: pb.ScrollRequest) -> pb.PointsReply:
        shards = self._find(request.target)
        if request.limit < 1:
            raise InvalidInput("limit: expected 1 or more, got 0")
        if len(codec.decode_keys(request.start, "start")) > 1:
            raise InvalidInput(f"start: expected a key of {KEY_BYTES} bytes, or none")
        names = tuple(request.with_vectors)
        found = await self._read(
            shards,
            lambda engine: engine.scroll(
                request.start,
                request.limit,
                filter=request.filter,
                with_payload=request.with_payload,
                with_vectors=names,
            ),
        )
        return codec.encode_points(merge.merge_ascending(found, request.limit))

    async def _count(self, request: pb.CountRequest) -> pb.CountReply:
        shards = self._find(request.target)
        counts = await self._read(shards, lambda engine: engine.count(request.filter))
        return pb.CountReply(count=sum(counts))

    async def _rank(self, request: pb.RankRequest) -> pb.RankReply:
        shards = self._find(request.target)
        params = codec.decode_rank(request)
        found = await self._read(shards, lambda engine: engine.rank(params))
        return codec.encode_ranked(merge.merge_ranked(found, params))

    async def _facet(self, request: pb.FacetRequest) -> pb.FacetReply:
        shards = self._find(request.target)
        found = await self._read(shards, lambda engine: engine.facet(request.key, request.filter))
        return pb.FacetReply(counts=orjson.dumps(facets.total(found)))

    async def _frequencies(self, request: pb.FrequenciesRequest) -> pb.FrequenciesReply:
        shards = self._find(request.target)
        indices = codec.decode_indices(request.indices)
        found = await self._read(
            shards, lambda engine: engine.frequencies(request.name, indices, request.filter)
        )
        counts = np.sum(np.array([one.counts for one in found]), axis=0)
        return pb.FrequenciesReply(points=sum(one.points for one in found), counts=counts.tolist())

    async def _describe(self, request: pb.DescribeRequest) -> pb.DescribeReply:
        infos = await self._read(self._find(request.target), lambda engine: engine.info())
        return pb.DescribeReply(shards=map(msgspec.json.encode, infos))

    async def _metrics(self, request: pb.MetricsRequest) -> pb.MetricsReply:
        # Not by the threads for reads, which may be busy for long.
        return pb.MetricsReply(metrics=await asyncio.to_thread(pack, self._accounts))

    async def _profile(self, request: pb.ProfileRequest) -> pb.ProfileReply:
        stacks = await self._profiler.take(request.seconds, request.hertz)
        return pb.ProfileReply(stacks=stacks)

    def _find(self, target: pb.Target) -> list[HostedShard]:
        if not target.shards:
            raise InvalidInput("target.shards: expected at least one")
        return [self._hosting.find((target.collection_id, number)) for number in target.shards]

    async def _read(
        self,
        shards: Sequence[HostedShard],
        *reads: Callable[[ShardEngine], T],
        threads: int | None = None,
    ) -> list[T]:
        """What each of ``reads`` answers of each of ``shards``, shard by shard.

        They are dealt out to so many threads, None: to all; on cancel, those not begun are dropped.
        A thread takes its whole share at once: handing over costs as much as a small search.
        """
        jobs = [(one.id[1], partial(read, one.engine)) for one in shards for read in reads]
        if self._waiting + len(jobs) > MAX_WAITING_READS:
            raise Overloaded(f"{self._waiting} reads are waiting already")
        hands = min(threads or self._threads, len(jobs))
        abandoned = threading.Event()
        own = account.get()
        own.asked = perf_counter()
        begun: list[float] = []
        measured: list[tuple[list[int], Measured]] = []

        def work(share: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
            return [read() for _, read in share if not abandoned.is_set()]

        def run(share: Sequence[tuple[int, Callable[[], T]]]) -> list[T]:
            begun.append(perf_counter())
            answers: list[T] = []
            for part in [[job] for job in share] if own.traced else [share]:
                some, taken = usage.measure(partial(work, part))
                answers += some
                measured.append(([shard for shard, _ in part], taken))
            return answers

        self._waiting += len(jobs)
        running = [
            # In a copy of the context, for log lines to name the requests.
            self._loop.run_in_executor(self._readers, copy_context().run, run, jobs[hand::hands])
            for hand in range(hands)
        ]
        try:
            shares = await asyncio.gather(*running)
        finally:
            self._waiting -= len(jobs)
            abandoned.set()
            for one in running:
                one.cancel()
        own.cost.stages["queue"] = max(begun) - own.asked
        for numbers, taken in measured:
            own.add(numbers, taken)
        return [shares[number % hands][number // hands] for number in range(len(jobs))]


def _search_block(
    engine: ShardEngine, queries: VectorColumn, params: SearchParams, filters: Sequence[bytes]
) -> Hits:
    return engine.search(queries, params, filters)


def _answer_searches() -> None:
    faiss.omp_set_num_threads(1)
    ask_for_short_slices()


async def _write_one(shard: HostedShard, begin: Callable[..., Future[int]], wait: bool) -> int:
    written = begin(applied=wait)
    # The engine goes on with a write whose caller has gone.
    return await asyncio.shield(asyncio.wrap_future(written))
