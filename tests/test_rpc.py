"""The shard server and its client, over real connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from pathlib import Path
from typing import Any, cast

import grpc
import msgspec
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from shard.engine import ShardEngine
from shard.errors import (
    AlreadyExists,
    Corrupt,
    Fenced,
    InvalidInput,
    NotFound,
    Overloaded,
    ShoalError,
    Unavailable,
)
from shard.filter import Filter
from shard.model import (
    UNNAMED,
    Delete,
    Distance,
    Hits,
    Keys,
    Operation,
    Points,
    SearchParams,
    ShardConfig,
    ShardInfo,
    Upsert,
    VectorColumn,
    VectorColumns,
    Vectors,
    decode_ids,
    encode_ids,
    unnamed,
)
from shard.objects import ObjectStore
from shard.objects.local import LocalObjectStore
from shard.rpc import codec, hosting, merge
from shard.rpc import server as server_module
from shard.rpc import shard_pb2 as pb
from shard.rpc.channel import MAX_MESSAGE_BYTES, SERVICE
from shard.rpc.client import ShardClient
from shard.rpc.hosting import ShardId
from shard.rpc.origin import Origin, callers
from shard.rpc.server import ShardServer
from tests import columns

DIMENSION = 8
CONFIG = ShardConfig.unnamed(DIMENSION, Distance.EUCLID)
PARAMS = SearchParams(limit=5)
COLLECTION = "c0ffee"


async def until(condition: Callable[[], object], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the server has a loop of its own
            await asyncio.sleep(0.005)


def random_vectors(rows: int, seed: int = 0, dimension: int = DIMENSION) -> Vectors:
    return np.random.default_rng(seed).standard_normal((rows, dimension), np.float32)


def random_queries(rows: int, seed: int = 0) -> VectorColumn:
    return VectorColumn(random_vectors(rows, seed))


def upsert(first_id: int, vectors: Vectors) -> Upsert:
    ids = range(first_id, first_id + len(vectors))
    return Upsert(encode_ids(ids), unnamed(vectors), [b'{"id": %d}' % number for number in ids])


def below(bound: int) -> bytes:
    given = {"must": {"key": "id", "range": {"lt": bound}}}
    return msgspec.convert(given, Filter).check("filter")


class Engine:
    """Stands in for `ShardEngine` where a test must decide what the engine does, and when."""

    def __init__(self, prefix: str, config: ShardConfig) -> None:
        self.prefix = prefix
        self.config = config
        self.searched = 0
        self.closed = threading.Event()
        self.failure: Exception | None = None
        self.raises: Exception | None = None
        self.unblocked = threading.Event()
        self.unblocked.set()

    def write(self, operations: list[Operation], *, applied: bool) -> Future[int]:
        written: Future[int] = Future()
        if self.raises is not None:
            written.set_exception(self.raises)
        else:
            written.set_result(len(operations))
        return written

    def search(self, queries: VectorColumn, params: SearchParams, filters: Sequence[bytes]) -> Hits:
        self.searched += 1
        assert self.unblocked.wait(30)
        if self.raises is not None:
            raise self.raises
        none = np.empty(0, np.float32)
        return Hits(np.zeros(queries.rows, np.int64), none, Points(encode_ids([])))

    def retrieve(
        self, keys: Keys, *, with_payload: bool, with_vectors: Sequence[str] = ()
    ) -> Points:
        return Points(keys, [b'"' + b"x" * (1 << 20) + b'"'] * len(keys))

    def info(self) -> ShardInfo:
        return ShardInfo(
            points=7, indexed=0, building=False, sequence=9, snapshot_sequence=0, error="é" * 9
        )

    def reconfigure(self, config: ShardConfig) -> None:
        self.config = config

    def close(self) -> None:
        self.closed.set()


class Engines:
    """Opens stand-ins, and fails with what ``failures`` holds before that."""

    def __init__(self) -> None:
        self.opened: list[Engine] = []
        self.failures: list[Exception] = []
        self.unblocked = threading.Event()
        self.unblocked.set()

    def open(
        self, store: object, prefix: str, config: ShardConfig, scratch: Path, builder: object
    ) -> Engine:
        assert self.unblocked.wait(30)
        scratch.mkdir(parents=True, exist_ok=True)
        if self.failures:
            raise self.failures.pop(0)
        engine = Engine(prefix, config)
        self.opened.append(engine)
        return engine


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalObjectStore(tmp_path / "store")


@pytest.fixture
def server(store: ObjectStore, tmp_path: Path) -> Iterator[ShardServer]:
    server = ShardServer(store, tmp_path / "scratch", host="127.0.0.1", search_threads=2)
    yield server
    server.stop(0)


@pytest.fixture
async def client(server: ShardServer) -> AsyncIterator[ShardClient]:
    client = ShardClient(f"127.0.0.1:{server.start()}")
    yield client
    await client.close()


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    engines = Engines()
    monkeypatch.setattr(hosting, "ShardEngine", engines)
    monkeypatch.setattr(hosting, "REOPEN_SECONDS", (0.01, 0.1))
    return engines


async def serve(server: ShardServer, *numbers: int, config: ShardConfig = CONFIG) -> None:
    """Assign shards and wait until all of them serve."""
    desired: dict[ShardId, ShardConfig] = {(COLLECTION, number): config for number in numbers}
    server.assign(desired)
    await until(lambda: server.status() == dict.fromkeys(desired, "serving"))


async def search_under_way(
    server: ShardServer, client: ShardClient, engines: Engines
) -> asyncio.Task[Hits]:
    """A search that the first engine is at until it is unblocked."""
    await serve(server, 0)
    engines.opened[0].unblocked.clear()
    call = asyncio.create_task(
        client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=30)
    )
    await until(lambda: engines.opened[0].searched)
    return call


# Codec


def test_operations_survive_the_wire() -> None:
    upserted, deleted = upsert(3, random_vectors(4)), Delete(encode_ids([2**64 - 1, 0]))
    sent = [codec.encode_operation(operation) for operation in (upserted, deleted)]
    request = pb.ShardWrite(shard=1, operations=sent)
    received = pb.ShardWrite.FromString(request.SerializeToString())
    first, second = codec.decode_operations(received.operations)
    assert isinstance(first, Upsert) and isinstance(second, Delete)
    assert first.keys.tolist() == upserted.keys.tolist()
    assert np.array_equal(first.vectors[UNNAMED].values, random_vectors(4))
    assert first.payloads == [b'{"id": 3}', b'{"id": 4}', b'{"id": 5}', b'{"id": 6}']
    assert second.keys.tolist() == deleted.keys.tolist()


@pytest.mark.parametrize(
    "params",
    [
        SearchParams(limit=1),
        SearchParams(limit=7, exact=True, nprobe=3, oversampling=2.5, with_payload=True),
        SearchParams(limit=7, score_threshold=0.0, with_vectors=("a", UNNAMED)),
        SearchParams(limit=7, using="a", among=encode_ids([1, 2]).tobytes(), examples=b"e"),
    ],
)
def test_search_parameters_survive_the_wire(params: SearchParams) -> None:
    request = codec.encode_search(COLLECTION, [2, 0], random_queries(2), params)
    received = pb.SearchRequest.FromString(request.SerializeToString())
    assert codec.decode_params(received) == params
    assert list(received.target.shards) == [2, 0]


@pytest.mark.parametrize(
    ("given", "parts"),
    [([], 0), ([b""] * 3, 0), ([b"a"] * 3, 1), ([b"a", b"a", b""], 2), ([b"a", b"b", b"a"], 3)],
)
def test_filters_survive_the_wire_those_that_are_alike_as_one(
    given: list[bytes], parts: int
) -> None:
    request = codec.encode_search(COLLECTION, [0], random_queries(3), PARAMS, given)
    received = pb.SearchRequest.FromString(request.SerializeToString())
    assert len(received.filters) == parts
    assert codec.decode_filters(received, 3) == (given if any(given) else [])


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pb.SearchRequest(filters=[b"a"]), "one for each of 3 queries"),
        (pb.SearchRequest(filters=[b"a"], filter_queries=[2**32 - 1]), "one for each of 3"),
        (pb.SearchRequest(filters=[b"a", b"b"], filter_queries=[1, 1]), "one for each of 3"),
        (pb.SearchRequest(filters=[b"a"], filter_queries=[1, 2]), "one for each of 3"),
        (
            pb.SearchRequest(filters=[b"a", b"b"], filter_queries=[1, 2], examples=b"e"),
            "expected one for all examples",
        ),
    ],
)
def test_filters_that_do_not_fit_are_refused(request_: pb.SearchRequest, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        codec.decode_filters(request_, 3)


@pytest.mark.parametrize("with_payload", [False, True])
@pytest.mark.parametrize("with_vectors", [False, True])
@pytest.mark.parametrize("lengths", [[2, 0, 1], [0], []])
def test_hits_survive_the_wire(lengths: list[int], with_payload: bool, with_vectors: bool) -> None:
    rows = sum(lengths)
    points = Points(
        encode_ids(range(rows)),
        [b""] * rows if with_payload else None,
        unnamed(random_vectors(rows)) if with_vectors else {},
    )
    sent = Hits(np.array(lengths, np.int64), np.arange(rows, dtype=np.float32), points)
    received = codec.decode_hits(
        pb.SearchReply.FromString(codec.encode_hits(sent).SerializeToString()),
        with_payload=with_payload,
    )
    assert received.lengths.tolist() == lengths
    assert np.array_equal(received.scores, sent.scores)
    assert received.points.keys.tolist() == points.keys.tolist()
    assert received.points.payloads == points.payloads
    assert received.points.vectors.keys() == points.vectors.keys()
    for name, column in points.vectors.items():
        assert np.array_equal(received.points.vectors[name].values, column.values)


def sent(columns: VectorColumns) -> Iterator[pb.Column]:
    return (pb.Column.FromString(one.SerializeToString()) for one in codec.encode_columns(columns))


@given(data=st.data(), count=st.integers(0, 5))
def test_columns_of_all_kinds_survive_the_wire(data: st.DataObject, count: int) -> None:
    rows = {
        name: data.draw(st.lists(one, min_size=count, max_size=count), label=name)
        for name, one in columns.rows.items()
    }
    given = {name: columns.column(name, own) for name, own in rows.items()}
    received = codec.decode_columns(sent(given), count)
    assert {name: columns.plain(name, one) for name, one in received.items()} == rows
    # Of queries nobody says how many there are.
    for one in sent(given):
        assert columns.plain(one.name, codec.decode_column(one)) == rows[one.name]


def test_operations_and_hits_have_vectors_of_all_kinds() -> None:
    vectors = columns.drawn(np.random.default_rng(0), 6)
    upserted = Upsert(encode_ids(range(6)), vectors, [b""] * 6)
    encoded = codec.encode_operation(upserted).SerializeToString()
    (received,) = codec.decode_operations([pb.Operation.FromString(encoded)])
    assert isinstance(received, Upsert)
    hits = Hits(np.array([2, 4]), np.zeros(6, np.float32), Points(upserted.keys, None, vectors))
    reply = pb.SearchReply.FromString(codec.encode_hits(hits).SerializeToString())
    found = codec.decode_hits(reply, with_payload=False)
    for name, column in vectors.items():
        rows = columns.plain(name, column)
        assert columns.plain(name, received.vectors[name]) == rows
        assert columns.plain(name, found.points.vectors[name]) == rows


# Merge


@given(
    # For each of three parts and two queries; with so few scores, ties abound.
    scores=st.lists(st.lists(st.integers(0, 6), max_size=8), min_size=6, max_size=6),
    limit=st.integers(1, 10),
    higher_is_nearer=st.booleans(),
)
def test_merge_is_the_sort_of_everything(
    scores: list[list[int]], limit: int, higher_is_nearer: bool
) -> None:
    sign = -1 if higher_is_nearer else 1
    ids = iter(number * 7 % 101 for number in range(101))
    # Hits are (badness, id), the best first.
    found = [sorted((score, next(ids)) for score in some)[:limit] for some in scores]
    parts = []
    for first, second in zip(found[0::2], found[1::2], strict=True):
        chosen = [point_id for _, point_id in first + second]
        points = Points(
            encode_ids(chosen),
            [b"%d" % point_id for point_id in chosen],
            unnamed(np.array(chosen, np.float32).reshape(-1, 1)),
        )
        similarities = np.array([sign * score for score, _ in first + second], np.float32)
        parts.append(Hits(np.array([len(first), len(second)]), similarities, points))

    merged = merge.merge_hits(parts, limit, higher_is_nearer=higher_is_nearer)

    expected = [sorted(chain(*found[query::2]))[:limit] for query in range(2)]
    assert merged.lengths.tolist() == list(map(len, expected))
    assert merged.scores.tolist() == [sign * score for hits in expected for score, _ in hits]
    best = [point_id for hits in expected for _, point_id in hits]
    assert merged.points.keys.tolist() == encode_ids(best).tolist()
    assert merged.points.payloads == [b"%d" % point_id for point_id in best]
    assert merged.points.vectors[UNNAMED].values.ravel().tolist() == best


def test_points_follow_the_order_of_keys_asked() -> None:
    points = Points(encode_ids([5, 1, 9]), [b"5", b"1", b"9"])
    ordered = merge.in_order_of(points, encode_ids([9, 2, 5, 9]))
    assert ordered.payloads == [b"9", b"5", b"9"]
    ascending = merge.merge_ascending([points, Points(encode_ids([2]), [b"2"])], 3)
    assert ascending.payloads == [b"1", b"2", b"5"]


def test_vectors_go_with_their_points_whatever_the_order() -> None:
    chance = np.random.default_rng(3)
    parts, rows = [], dict[bytes, dict[str, columns.Row]]()
    for count in (4, 0, 7, 1):
        keys = encode_ids(sorted(chance.choice(10**6, count, replace=False).tolist()))
        parts.append(Points(keys, None, columns.drawn(chance, count)))
        for name, column in parts[-1].vectors.items():
            for key, row in zip(keys.tolist(), columns.plain(name, column), strict=True):
                rows.setdefault(key, {})[name] = row

    def check(points: Points, keys: list[bytes]) -> None:
        assert points.keys.tolist() == keys
        assert points.vectors.keys() == set(columns.CONFIG.names)
        for name, column in points.vectors.items():
            assert columns.plain(name, column) == [rows[key][name] for key in keys]

    check(merge.concatenate_points(parts), list(rows))
    check(merge.merge_ascending(parts, 8), sorted(rows)[:8])
    shuffled = chance.permutation(list(rows))
    check(merge.in_order_of(merge.concatenate_points(parts), shuffled), shuffled.tolist())
    scores = {key: np.float32(score) for key, score in zip(rows, chance.random(12), strict=True)}
    hits = [
        Hits(
            np.array([len(part.keys) // 2, len(part.keys) - len(part.keys) // 2]),
            np.array([scores[key] for key in part.keys.tolist()], np.float32),
            part,
        )
        for part in parts
    ]
    merged = merge.merge_hits(hits, 5, higher_is_nearer=True)
    first, second = merge.split_hits(merged, [1, 1])
    for number, found in enumerate((first, second)):
        own = [
            key
            for part in parts
            for key in np.array_split(part.keys, [len(part.keys) // 2])[number].tolist()
        ]
        best = sorted(own, key=scores.__getitem__, reverse=True)[:5]
        check(found.points, best)
    stacked = merge.stack_hits([first, second])
    check(stacked.points, merged.points.keys.tolist())


# What a server refuses


def search_request(**changes: Any) -> pb.SearchRequest:
    request = codec.encode_search(COLLECTION, [0], random_queries(1), PARAMS)
    for field in changes:
        request.ClearField(field)
    request.MergeFrom(pb.SearchRequest(**changes))
    return request


def write_request(operation: pb.Operation | None = None) -> pb.WriteRequest:
    operations = [codec.encode_operation(upsert(0, random_vectors(1)))]
    if operation is not None:
        operations.append(operation)
    write = pb.ShardWrite(shard=0, operations=operations)
    return pb.WriteRequest(collection_id=COLLECTION, writes=[write], wait=True)


TARGET = pb.Target(collection_id=COLLECTION, shards=[0])
KEYS = encode_ids([1, 2]).tobytes()
ROWS = random_vectors(2).tobytes()
LENGTHS = np.array([0, 2, 0], "<u4").tobytes()


def column(values: bytes = ROWS, dimension: int = DIMENSION, **others: Any) -> pb.Column:
    return pb.Column(values=values, dimension=dimension, **others)


def bad_upsert(**fields: Any) -> tuple[str, pb.WriteRequest]:
    good: dict[str, Any] = {"keys": KEYS, "vectors": [column()], "payloads": [b"", b""]}
    return "Write", write_request(pb.Operation(upsert=pb.Upsert(**good | fields)))


@pytest.mark.parametrize(
    ("request_of", "message"),
    [
        (("Search", search_request(queries=column(b"123"))), "vectors '': expected whole ones"),
        (("Search", search_request(queries=column(b"1234"))), "vectors '': expected whole ones"),
        (
            ("Search", search_request(queries=column(dimension=4))),
            "vectors '': expected 8, got (4,)",
        ),
        (("Search", search_request(queries=pb.Column())), "queries: expected at least one"),
        (("Search", search_request(limit=0)), "limit: expected 1 or more"),
        (
            ("Search", pb.SearchRequest(target=pb.Target(collection_id=COLLECTION), limit=1)),
            "target.shards: expected at least one",
        ),
        (("Retrieve", pb.RetrieveRequest(target=TARGET, keys=b"x" * 19)), "keys: expected a mult"),
        (("Retrieve", pb.RetrieveRequest(target=TARGET, keys=b"x" * 18)), "keys: expected ids"),
        (("Scroll", pb.ScrollRequest(target=TARGET, limit=0)), "limit: expected 1 or more"),
        (("Scroll", pb.ScrollRequest(target=TARGET, limit=1, start=KEYS)), "start: expected a key"),
        (("Scroll", pb.ScrollRequest(target=TARGET, limit=1, start=b"a")), "start: expected a mul"),
        (("Write", pb.WriteRequest(collection_id=COLLECTION)), "writes: expected at least one"),
        (("Write", write_request(pb.Operation())), "operations: expected an upsert or a delete"),
        (
            ("Write", write_request(pb.Operation(delete=pb.Delete(keys=KEYS[1:])))),
            "delete.keys: expected a multiple of 18 bytes, got 35",
        ),
        (bad_upsert(keys=KEYS[:-1]), "upsert.keys: expected a multiple"),
        (bad_upsert(keys=KEYS[:18] * 2), "upsert.keys: expected distinct"),
        (bad_upsert(vectors=[column(ROWS[:-1])]), "vectors '': buffer size must be"),
        (bad_upsert(vectors=[column(ROWS[:32])]), "vectors '': expected those of 2 points, got 1"),
        (bad_upsert(vectors=[column(lengths=LENGTHS[:4])]), "vectors '': lengths add up to 0"),
        (
            bad_upsert(vectors=[column(lengths=LENGTHS)]),
            "'': expected those of 2 points, got 3",
        ),
        (bad_upsert(vectors=[column(name="text")]), "Not existing vector name error: text"),
        (
            bad_upsert(vectors=[column(dimension=4)]),
            "vectors '': expected those of 2 points, got 4",
        ),
        (bad_upsert(vectors=[column(dimension=0)]), "vectors '': lengths add up to 0, not to 16"),
        (
            bad_upsert(vectors=[column(b"", 0, lengths=b"\0" * 8)]),
            f"vectors '': expected {DIMENSION}, got ()",
        ),
        (bad_upsert(payloads=[b""]), "upsert.payloads: expected one a key, 2 in all, got 1"),
        (
            ("Frequencies", pb.FrequenciesRequest(target=TARGET, indices=b"12345")),
            "indices: expected a multiple of 4 bytes, got 5",
        ),
        (
            ("Frequencies", pb.FrequenciesRequest(target=TARGET, name="text")),
            "Not existing vector name error: text",
        ),
        (
            ("Search", search_request(queries=column(lengths=LENGTHS))),
            "vectors '': expected one a point",
        ),
        (
            ("Search", search_request(queries=column(ROWS[:32], lengths=b"\0\0\0\0\1\0\0\0"))),
            "queries: expected a vector each",
        ),
        (("Search", search_request(with_vectors=["text"])), "Not existing vector name error: text"),
    ],
)
async def test_malformed_request_is_refused_whole(
    server: ShardServer, request_of: tuple[str, Any], message: str
) -> None:
    method, request = request_of
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        await serve(server, 0)
        call = channel.unary_unary(f"/{SERVICE}/{method}", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(request.SerializeToString(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert message in (caught.value.details() or "")
        count = channel.unary_unary(f"/{SERVICE}/Count", None, pb.CountReply.FromString)
        reply = await count(pb.CountRequest(target=TARGET).SerializeToString(), timeout=10)
        assert reply.count == 0


async def test_bytes_that_are_no_message_are_refused(server: ShardServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        call = channel.unary_unary(f"/{SERVICE}/Search", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\xff\xff\xff", timeout=10)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_large_a_request_is_refused_by_either_end(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    await serve(server, 0)
    # More by a little than the limit with what a shared stream adds to it.
    queries = np.zeros((MAX_MESSAGE_BYTES // (4 * DIMENSION) + 1_000, DIMENSION), np.float32)
    with pytest.raises(InvalidInput, match=f"expected at most {MAX_MESSAGE_BYTES}"):
        await client.search(COLLECTION, [0], VectorColumn(queries), PARAMS, timeout=10)
    unlimited = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(client.address, options=unlimited) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Search", None, None)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(
                search_request(queries=column(queries.tobytes())).SerializeToString(), timeout=10
            )
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    hits = await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)
    assert hits.lengths.tolist() == [0]


async def test_too_large_an_answer_is_refused(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    await serve(server, 0)
    few = await client.retrieve(
        COLLECTION, [0], encode_ids(range(2)), with_payload=True, timeout=10
    )
    assert len(few.payloads or ()) == 2
    with pytest.raises(InvalidInput, match="ask for fewer points"):
        await client.retrieve(COLLECTION, [0], encode_ids(range(70)), with_payload=True, timeout=30)


# Errors


@pytest.mark.parametrize(
    ("raised", "received"),
    [
        (InvalidInput("nprobe: expected 1 or more"), InvalidInput),
        (NotFound("x"), NotFound),
        (AlreadyExists("x"), AlreadyExists),
        (Overloaded("x"), Overloaded),
        (Unavailable("x"), Unavailable),
        (Corrupt("x"), Corrupt),
        (TimeoutError("x"), TimeoutError),
    ],
)
async def test_an_error_is_the_same_on_both_sides(
    server: ShardServer,
    client: ShardClient,
    engines: Engines,
    raised: Exception,
    received: type[Exception],
) -> None:
    await serve(server, 0)
    engines.opened[0].raises = raised
    with pytest.raises(received) as caught:
        await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)
    assert type(caught.value) is received
    assert str(raised) in str(caught.value)
    with pytest.raises(received):
        await client.write(COLLECTION, {0: []}, wait=True, timeout=10)


async def test_an_unexpected_error_is_logged_and_survived(
    server: ShardServer,
    client: ShardClient,
    engines: Engines,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await serve(server, 0)
    engines.opened[0].raises = ZeroDivisionError("ü" * 100_000)
    with pytest.raises(ShoalError, match="INTERNAL: ZeroDivisionError: ü"):
        await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)
    (record,) = (record for record in caplog.records if record.name == "shard.rpc.status")
    assert record.exc_info is not None and record.exc_info[0] is ZeroDivisionError
    engines.opened[0].raises = None
    await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)


async def test_no_server_is_unavailable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = ShardClient(f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(Unavailable, match="shard server"):
            await client.count(COLLECTION, [0], timeout=10)
        with pytest.raises(Unavailable, match="shard server"):
            await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)
        await client.close()
        with pytest.raises(Unavailable):
            await client.count(COLLECTION, [0], timeout=10)
        with pytest.raises(Unavailable):
            await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=10)


async def test_closing_a_client_does_not_look_like_cancelling_its_callers(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    call = await search_under_way(server, client, engines)
    await client.close()
    with pytest.raises(Unavailable):
        await call
    engines.opened[0].unblocked.set()


# Searches share one stream


async def test_searches_under_way_together_get_their_own_answers(
    server: ShardServer, client: ShardClient
) -> None:
    await serve(server, 0)
    vectors = random_vectors(200)
    await client.write(COLLECTION, {0: [upsert(0, vectors)]}, wait=True, timeout=30)

    async def find(row: int) -> None:
        params = SearchParams(limit=1 + row % 3)
        query = VectorColumn(vectors[row : row + 1])
        hits = await client.search(COLLECTION, [0], query, params, timeout=30)
        assert hits.lengths.tolist() == [1 + row % 3]
        assert decode_ids(hits.points.keys)[0] == row

    async def fail() -> None:
        with pytest.raises(NotFound, match="shard 9"):
            await client.search(COLLECTION, [9], random_queries(1), PARAMS, timeout=30)

    await asyncio.gather(*(find(row) for row in range(200)), *(fail() for _ in range(20)))


async def test_a_search_that_is_taken_back_at_any_moment_takes_no_other_with_it(
    server: ShardServer, client: ShardClient
) -> None:
    await serve(server, 0)
    vectors = random_vectors(50)
    await client.write(COLLECTION, {0: [upsert(0, vectors)]}, wait=True, timeout=30)

    def search() -> asyncio.Task[Hits]:
        query = VectorColumn(vectors[:1])
        return asyncio.create_task(client.search(COLLECTION, [0], query, PARAMS, timeout=30))

    for turns in range(40):
        searches = [search() for _ in range(6)]
        for _ in range(turns):
            await asyncio.sleep(0)
        for doomed in searches[::2]:
            doomed.cancel()
        for hits in await asyncio.gather(*searches[1::2]):
            assert decode_ids(hits.points.keys)[0] == 0
    await until(lambda: server._waiting == 0)
    assert not client._stream._open or not client._stream._open.waiting


async def test_a_new_stream_is_opened_when_the_server_is_back(
    server: ShardServer, client: ShardClient, store: ObjectStore, tmp_path: Path
) -> None:
    await serve(server, 0)
    await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=30)
    await asyncio.to_thread(server.stop, 0)
    with pytest.raises(Unavailable):
        await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=5)
    port = int(client.address.rpartition(":")[2])
    again = ShardServer(store, tmp_path / "again", host="127.0.0.1", port=port)
    again.start()
    try:
        await serve(again, 0)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(Unavailable):
                    await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=5)
                    break
                await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(again.stop, 0)


async def test_an_answer_under_way_is_waited_for_when_a_client_closes_with_grace(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    call = await search_under_way(server, client, engines)
    closing = asyncio.create_task(client.close(20))
    await asyncio.sleep(0.05)
    engines.opened[0].unblocked.set()
    assert (await call).lengths.tolist() == [0]
    await closing


async def test_what_is_no_call_breaks_the_stream_and_not_the_server(
    server: ShardServer, client: ShardClient
) -> None:
    await serve(server, 0)
    async with grpc.aio.insecure_channel(client.address) as channel:
        stream = channel.stream_stream(f"/{SERVICE}/Calls", None, None)(None)
        await stream.write(b"\xff\xff")
        assert await stream.code() is grpc.StatusCode.INVALID_ARGUMENT
        other = channel.stream_stream(f"/{SERVICE}/Calls", None, None)(None)
        await other.write(pb.Call(number=4, method="Nonsense", timeout=5).SerializeToString())
        answer = pb.Answer.FromString(cast(bytes, await other.read()))
        assert (answer.number, answer.status) == (4, grpc.StatusCode.UNIMPLEMENTED.value[0])
    await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=30)


def test_a_port_that_is_taken(server: ShardServer, store: ObjectStore, tmp_path: Path) -> None:
    port = server.start()
    second = ShardServer(store, tmp_path / "other", host="127.0.0.1", port=port)
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        second.start()
    second.stop(0)


async def test_health(server: ShardServer) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.start()}") as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", SERVICE):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING


# Time and load


async def test_cancelled_calls_are_dropped_before_they_start(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    await serve(server, 0)
    engine = engines.opened[0]
    engine.unblocked.clear()

    def search(timeout: float) -> asyncio.Task[Hits]:
        return asyncio.create_task(
            client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=timeout)
        )

    running = [search(30), search(30)]
    await until(lambda: engine.searched == 2)
    cancelled, late = search(30), search(0.2)
    await until(lambda: server._waiting == 4)
    cancelled.cancel()
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    with pytest.raises(TimeoutError):
        await late
    await until(lambda: server._waiting == 2)
    engine.unblocked.set()
    await asyncio.gather(*running)
    await search(30)
    assert engine.searched == 3


async def test_a_full_queue_refuses(
    server: ShardServer,
    client: ShardClient,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "MAX_WAITING_READS", 3)
    await serve(server, 0)
    engines.opened[0].unblocked.clear()
    calls = [
        asyncio.create_task(client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=30))
        for _ in range(4)
    ]
    done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
    with pytest.raises(Overloaded, match="3 reads are waiting already"):
        await done.pop()
    engines.opened[0].unblocked.set()
    assert len(await asyncio.gather(*waiting)) == 3


async def test_a_write_goes_on_when_its_caller_has_gone(
    server: ShardServer,
    client: ShardClient,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await serve(server, 0)
    written: Future[int] = Future()
    monkeypatch.setattr(engines.opened[0], "write", lambda operations, *, applied: written)
    with pytest.raises(TimeoutError):
        await client.write(COLLECTION, {0: []}, wait=True, timeout=0.2)
    await asyncio.sleep(0.1)
    assert not written.cancelled()
    written.set_result(1)


async def test_each_batch_is_answered_query_by_query(
    server: ShardServer, client: ShardClient
) -> None:
    """However it is spread over threads, and with 64 batches in flight."""
    await serve(server, 0, 1, 2)
    stored = random_vectors(90)
    for number in range(3):
        some = upsert(30 * number, stored[30 * number : 30 * number + 30])
        await client.write(COLLECTION, {number: [some]}, wait=True, timeout=10)
    params = SearchParams(limit=4, exact=True, with_payload=True, with_vectors=(UNNAMED,))

    async def search(seed: int) -> None:
        queries = random_vectors([1, 2, 33, 70][seed % 4], seed)
        shards = [0] if seed % 3 == 0 else [2, 0, 1]
        hits = await client.search(COLLECTION, shards, VectorColumn(queries), params, timeout=60)
        rows = 30 if shards == [0] else 90
        distances = np.linalg.norm(queries[:, None] - stored[None, :rows], axis=2)
        assert hits.lengths.tolist() == [4] * len(queries)
        ids = np.array(decode_ids(hits.points.keys))
        assert hits.points.payloads == [b'{"id": %d}' % point_id for point_id in ids]
        vectors = hits.points.vectors[UNNAMED].values
        np.testing.assert_allclose(vectors, stored[ids], rtol=1e-6)
        scores = hits.scores.reshape(-1, 4)
        np.testing.assert_allclose(scores, np.sort(distances, axis=1)[:, :4], rtol=1e-4)
        found = np.take_along_axis(distances, ids.reshape(-1, 4), axis=1)
        np.testing.assert_allclose(scores, found, rtol=1e-4)

    await asyncio.gather(*map(search, range(64)))


@pytest.mark.parametrize("with_payload", [False, True])
async def test_queries_with_filters_of_their_own_are_answered_as_each_alone(
    server: ShardServer, client: ShardClient, with_payload: bool
) -> None:
    """However they are spread over threads."""
    await serve(server, 0, 1, 2)
    for number in range(3):
        some = upsert(60 * number, random_vectors(60, number))
        gone = Delete(encode_ids(range(60 * number, 60 * number + 60, 7)))
        await client.write(COLLECTION, {number: [some, gone]}, wait=True, timeout=10)
    params = SearchParams(limit=6, with_payload=with_payload)
    for queries, different in ((1, 1), (9, 9), (40, 4), (70, 35), (70, 3)):
        filters = [below(5 * (row * different // queries)) for row in range(queries)]
        filters[-1] = b""
        asked = random_queries(queries, seed=different)
        hits = await client.search(COLLECTION, [2, 0, 1], asked, params, filters, timeout=30)
        for row, part in enumerate(merge.split_hits(hits, [1] * queries)):
            alone = await client.search(
                COLLECTION,
                [2, 0, 1],
                asked.slice(row, row + 1),
                params,
                filters[row : row + 1],
                timeout=30,
            )
            assert part.points.keys.tolist() == alone.points.keys.tolist()
            assert part.lengths.tolist() == alone.lengths.tolist()
            np.testing.assert_allclose(part.scores, alone.scores, rtol=1e-5)
            assert part.points.payloads == alone.points.payloads


@pytest.mark.parametrize(("least", "threads"), [(30, 1), (0, 2)])
async def test_one_thread_searches_small_shards_by_many_filters(
    server: ShardServer,
    client: ShardClient,
    monkeypatch: pytest.MonkeyPatch,
    least: int,
    threads: int,
) -> None:
    await serve(server, 0, 1, 2, 3)
    for number in range(4):
        some = upsert(20 * number, random_vectors(20))
        await client.write(COLLECTION, {number: [some]}, wait=True, timeout=10)
    monkeypatch.setattr(server_module, "_LEAST_ROWS", least)
    searched = ShardEngine.search
    asked: dict[int, list[int]] = {}
    together = threading.Barrier(threads)

    def search(engine: ShardEngine, *rest: Any) -> Hits:
        asked.setdefault(threading.get_ident(), []).append(rest[0].rows)
        together.wait(20)
        return searched(engine, *rest)

    monkeypatch.setattr(ShardEngine, "search", search)
    filters = [below(row) for row in range(20)]
    await client.search(COLLECTION, [0, 1, 2, 3], random_queries(20), PARAMS, filters, timeout=60)
    assert list(asked.values()) == [[20] * (4 // threads)] * threads


async def test_what_is_no_filter_is_told(server: ShardServer, client: ShardClient) -> None:
    await serve(server, 0)
    await client.write(COLLECTION, {0: [upsert(0, random_vectors(3))]}, wait=True, timeout=10)
    for filters in ([b"{", below(2)], [below(2), b'{"must":{"key":"n"}}']):
        with pytest.raises(InvalidInput, match="filter"):
            await client.search(COLLECTION, [0], random_queries(2), PARAMS, filters, timeout=10)


async def test_reading_points_back(server: ShardServer, client: ShardClient) -> None:
    await serve(server, 0, 1)
    vectors = random_vectors(6)
    even = Upsert(encode_ids([0, 2, 4]), unnamed(vectors[:3]), [b'{"a": 1}', b"", b"{}"])
    odd = Upsert(encode_ids([1, 3, 5]), unnamed(vectors[3:]), [b""] * 3)
    gone = Delete(encode_ids([3]))
    await client.write(COLLECTION, {0: [even], 1: [odd, gone]}, wait=True, timeout=10)
    assert await client.count(COLLECTION, [0, 1], timeout=10) == 5
    assert await client.count(COLLECTION, [1], timeout=10) == 2
    first, second = await client.describe(COLLECTION, [1, 0], timeout=10)
    assert (first.points, second.points) == (2, 3)
    page = await client.scroll(
        COLLECTION,
        [0, 1],
        encode_ids([1]).tolist()[0],
        3,
        with_payload=True,
        timeout=10,
    )
    assert page.keys.tolist() == encode_ids([1, 2, 4]).tolist()
    assert page.payloads == [b"", b"", b"{}"]
    assert page.vectors == {}
    found = await client.retrieve(
        COLLECTION,
        [0, 1],
        encode_ids([3, 5, 0]),
        with_payload=True,
        with_vectors=[UNNAMED],
        timeout=10,
    )
    assert sorted(found.keys.tolist()) == encode_ids([0, 5]).tolist()
    ordered = merge.in_order_of(found, encode_ids([5, 0]))
    assert ordered.payloads == [b"", b'{"a": 1}']
    assert np.array_equal(ordered.vectors[UNNAMED].values, vectors[[5, 0]])


async def test_vectors_of_all_kinds_are_searched_and_read(
    server: ShardServer, client: ShardClient
) -> None:
    config = columns.config_of(Distance.DOT)
    await serve(server, 0, 1, config=config)
    vectors = columns.drawn(np.random.default_rng(1), 60, config)
    rows = {name: columns.plain(name, column, config) for name, column in vectors.items()}
    for number in range(2):
        own = np.arange(number, 60, 2)
        taken = {name: column.take(own) for name, column in vectors.items()}
        some = Upsert(encode_ids(own.tolist()), taken, [b'{"n":%d}' % row for row in own])
        await client.write(COLLECTION, {number: [some]}, wait=True, timeout=10)

    filter = msgspec.convert({"must": {"key": "n", "range": {"lt": 40}}}, Filter).check("filter")
    for name in config.names:
        # More than one block of the server's.
        column = columns.drawn(np.random.default_rng(2), 90, config)[name]
        queries = [row for row in columns.plain(name, column, config) if row]
        params = SearchParams(limit=6, using=name, with_vectors=(name,))
        hits = await client.search(
            COLLECTION,
            [0, 1],
            columns.column(name, queries, config),
            params,
            [filter] * len(queries),
            timeout=30,
        )
        found = decode_ids(hits.points.keys)
        read = columns.plain(name, hits.points.vectors[name], config)
        assert read == [rows[name][int(point_id)] for point_id in found]
        ends = np.cumsum(hits.lengths).tolist()
        stored = dict(enumerate(rows[name][:40]))
        for query, first, end in zip(queries, [0, *ends], ends, strict=False):
            columns.check_nearest(
                config, name, query, stored, 6, found[first:end], hits.scores[first:end]
            )

    indices = np.arange(14, dtype=np.uint32)
    for counted, most in ((b"", 60), (filter, 40)):
        told = await client.frequencies(
            COLLECTION, [0, 1], columns.WORDS, indices, counted, timeout=10
        )
        words = [row for row in rows[columns.WORDS][:most] if row is not None]
        assert told.points == len(words)
        assert told.counts.tolist() == [sum(index in row for row in words) for index in indices]

    page = await client.scroll(
        COLLECTION, [0, 1], b"", 50, with_payload=False, with_vectors=config.names, timeout=10
    )
    chosen = await client.retrieve(
        COLLECTION,
        [0, 1],
        encode_ids([50, 3, 4]),
        with_payload=False,
        with_vectors=[columns.WORDS, columns.SOME],
        timeout=10,
    )
    assert chosen.vectors.keys() == {columns.WORDS, columns.SOME}
    for points in (page, chosen):
        for name, column in points.vectors.items():
            ids = decode_ids(points.keys)
            expected = [rows[name][int(point_id)] for point_id in ids]
            assert columns.plain(name, column, config) == expected


# Hosting


async def count(client: ShardClient, number: int = 0) -> int:
    return await client.count(COLLECTION, [number], timeout=10)


async def test_a_shard_is_refused_until_it_is_open(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    engines.unblocked.clear()
    server.assign({(COLLECTION, 0): CONFIG})
    assert server.status() == {(COLLECTION, 0): "recovering"}
    with pytest.raises(Unavailable, match="is recovering"):
        await count(client)
    with pytest.raises(NotFound, match="shard 1 of collection"):
        await count(client, 1)
    engines.unblocked.set()
    await until(lambda: server.status() == {(COLLECTION, 0): "serving"})
    server.assign({(COLLECTION, 0): CONFIG})
    server.assign({})
    assert server.status() == {}
    with pytest.raises(NotFound):
        await count(client)
    await until(engines.opened[0].closed.is_set)
    assert len(engines.opened) == 1


async def test_local_copies_go_when_their_shard_leaves(
    server: ShardServer, client: ShardClient, engines: Engines, tmp_path: Path
) -> None:
    await serve(server, 0, 1)
    assert len(list((tmp_path / "scratch").iterdir())) == 2
    await serve(server, 1)
    await until(lambda: len(list((tmp_path / "scratch").iterdir())) == 1)


async def test_opening_is_tried_again_while_the_store_is_out_of_reach(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    engines.failures = [Unavailable("no store")] * 3
    await serve(server, 0)
    assert not engines.failures


async def test_a_damaged_shard_fails_until_it_is_assigned_anew(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    engines.failures = [Corrupt("manifest 7")]
    desired = {(COLLECTION, 0): CONFIG}
    server.assign(desired)
    await until(lambda: server.status() == {(COLLECTION, 0): "failed: Corrupt: manifest 7"})
    with pytest.raises(Corrupt, match="manifest 7"):
        await count(client)
    server.assign(desired)
    assert "failed" in server.status()[COLLECTION, 0]
    server.assign({})
    await serve(server, 0)


async def test_a_fenced_shard_is_closed_and_reported(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    await serve(server, 0, 1)
    engine = engines.opened[0]
    number = int(engine.prefix.removeprefix(f"collections/{COLLECTION}/shard-"))
    engine.failure = Fenced("epoch 4 has begun")
    with pytest.raises(Unavailable, match="failed: Fenced"):
        await client.write(COLLECTION, {number: []}, wait=True, timeout=10)
    await until(engine.closed.is_set)
    assert server.status() == {
        (COLLECTION, number): "failed: Fenced: epoch 4 has begun",
        (COLLECTION, 1 - number): "serving",
    }
    with pytest.raises(Unavailable, match="failed: Fenced"):
        await count(client, number)


async def test_a_shard_that_comes_back_waits_until_its_last_stay_is_over(
    server: ShardServer,
    client: ShardClient,
    engines: Engines,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await serve(server, 0)
    closing = threading.Event()
    monkeypatch.setattr(engines.opened[0], "close", lambda: closing.wait(30))
    server.assign({})
    server.assign({(COLLECTION, 0): CONFIG})
    server.assign({})
    server.assign({(COLLECTION, 0): CONFIG})
    await asyncio.sleep(0.1)
    assert server.status() == {(COLLECTION, 0): "recovering"}
    assert len(engines.opened) == 1
    closing.set()
    await until(lambda: server.status() == {(COLLECTION, 0): "serving"})
    assert len(engines.opened) == 2


@pytest.mark.parametrize("while_opening", [False, True])
async def test_a_new_configuration_reaches_the_shard(
    server: ShardServer, client: ShardClient, engines: Engines, while_opening: bool
) -> None:
    changed = ShardConfig.unnamed(DIMENSION, Distance.EUCLID, recall_target=0.5)
    if while_opening:
        engines.unblocked.clear()
        server.assign({(COLLECTION, 0): CONFIG})
        await asyncio.sleep(0.05)
    else:
        await serve(server, 0)
    server.assign({(COLLECTION, 0): changed})
    engines.unblocked.set()
    await until(lambda: engines.opened and engines.opened[0].config == changed)
    assert len(engines.opened) == 1


async def test_stopping_closes_every_shard(
    server: ShardServer, client: ShardClient, engines: Engines
) -> None:
    await serve(server, 0, 1)
    await asyncio.to_thread(server.stop, 1)
    assert all(engine.closed.is_set() for engine in engines.opened)
    with pytest.raises(Unavailable):
        await count(client)


async def test_a_profile_that_nobody_waits_for_ends(client: ShardClient) -> None:
    with pytest.raises(TimeoutError):
        await client.profile(60, 10, timeout=0.3)
    async with asyncio.timeout(20):
        while True:
            try:
                assert await client.profile(0.05, 100, timeout=10)
                break
            except Overloaded:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(("seconds", "hertz"), [(0, 1), (61, 1), (float("nan"), 1), (1, 0)])
async def test_a_profile_is_bounded(client: ShardClient, seconds: float, hertz: int) -> None:
    with pytest.raises(InvalidInput, match=r"seconds|hertz"):
        await client.profile(seconds, hertz, timeout=10)


@pytest.mark.parametrize("by_stream", [True, False])
async def test_what_a_call_that_fails_has_taken_is_charged(
    server: ShardServer, client: ShardClient, monkeypatch: pytest.MonkeyPatch, by_stream: bool
) -> None:
    await serve(server, 0)
    vectors = random_vectors(10)
    await client.write(COLLECTION, {0: [upsert(0, vectors)]}, wait=True, timeout=30)
    monkeypatch.setattr("shard.rpc.server.MAX_MESSAGE_BYTES", 10)
    origin = Origin("mine")
    token = callers.set(origin)
    try:
        with pytest.raises(InvalidInput, match="ask for fewer"):
            if by_stream:
                await client.search(COLLECTION, [0], random_queries(1), PARAMS, timeout=30)
            else:
                await client.scroll(COLLECTION, [0], b"", 10, with_payload=True, timeout=30)
    finally:
        callers.reset(token)
    ((charge, share),) = origin.charges()
    assert share == 1
    assert charge.cost.stages["queue"] > 0
    assert (origin.usage().vectors >= 10) == by_stream
