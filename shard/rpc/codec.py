"""Between messages of `shard.proto` and the words of `shard.model`.

Decoding checks what the bytes alone can tell - lengths, the form of keys - and raises InvalidInput
naming the field. Decoded arrays are read-only views of the message's bytes; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, repeat
from typing import assert_never

import msgspec
import numpy as np
import orjson
from numpy.typing import NDArray

from shard.edits import Edit
from shard.errors import InvalidInput
from shard.filter import matcher, runs
from shard.model import (
    KEY_BYTES,
    KEY_DTYPE,
    Delete,
    Hits,
    Keys,
    Operation,
    Points,
    Ranked,
    RankParams,
    SearchParams,
    Upsert,
    VectorColumn,
    VectorColumns,
)
from shard.packing import Packed, pack, unpack
from shard.rpc import shard_pb2 as pb

_FLOAT = np.dtype("<f4")


def encode_keys(keys: Keys) -> bytes:
    return np.ascontiguousarray(keys, KEY_DTYPE).tobytes()


def decode_keys(data: bytes, field: str = "keys") -> Keys:
    """Keys, shape (n,), dtype S18. Raises InvalidInput where one has not the form of a key."""
    if len(data) % KEY_BYTES:
        raise InvalidInput(f"{field}: expected a multiple of {KEY_BYTES} bytes, got {len(data)}")
    form = np.frombuffer(data, np.uint8).reshape(-1, KEY_BYTES)
    kind = form[:, 0]
    if not (((kind == 1) | (kind == 2)) & (form[:, -1] == 1)).all():
        raise InvalidInput(f"{field}: expected ids encoded as shard.model.encode_id does")
    return np.frombuffer(data, KEY_DTYPE)


def encode_columns(vectors: VectorColumns) -> list[pb.Column]:
    return [encode_column(name, column) for name, column in vectors.items()]


def encode_column(name: str, column: VectorColumn) -> pb.Column:
    if column.starts is None:  # A query, most of the time: a third of the other way's time.
        values = np.ascontiguousarray(column.values, _FLOAT).tobytes()
        return pb.Column(name=name, dimension=column.values.shape[1], values=values)
    packed = pack(column)
    return pb.Column(
        name=name,
        dimension=packed.dimension,
        values=bytes(packed.values),
        lengths=bytes(packed.lengths),
        indices=bytes(packed.indices),
        present=bytes(packed.present),
    )


def decode_columns(columns: Iterable[pb.Column], rows: int) -> VectorColumns:
    """Vectors of so many points, by name. Raises InvalidInput."""
    return {one.name: decode_column(one, rows) for one in columns}


def decode_column(column: pb.Column, rows: int | None = None) -> VectorColumn:
    """The vectors of ``rows`` points; None: of as many as there are. Raises InvalidInput."""
    if rows is None and column.dimension and not column.lengths:
        row_bytes = column.dimension * _FLOAT.itemsize
        if len(column.values) % row_bytes:
            raise InvalidInput(
                f"vectors {column.name!r}: expected whole ones of {column.dimension} float32, "
                f"got {len(column.values)} bytes"
            )
        return VectorColumn(np.frombuffer(column.values, _FLOAT).reshape(-1, column.dimension))
    packed = Packed(
        column.dimension,
        memoryview(column.values),
        memoryview(column.lengths),
        memoryview(column.indices),
        memoryview(column.present),
    )
    if rows is None:
        row_bytes = _FLOAT.itemsize * max(1, column.dimension)
        rows = len(column.lengths) // 4 or len(column.values) // row_bytes
    return unpack(packed, rows, column.name)


def decode_indices(data: bytes) -> NDArray[np.uint32]:
    """Of sparse vectors, (t,). Raises InvalidInput."""
    if len(data) % 4:
        raise InvalidInput(f"indices: expected a multiple of 4 bytes, got {len(data)}")
    return np.frombuffer(data, "<u4")


def encode_operation(operation: Operation) -> pb.Operation:
    match operation:
        case Upsert():
            return pb.Operation(upsert=_encode_upsert(operation))
        case Delete(keys):
            return pb.Operation(delete=pb.Delete(keys=encode_keys(keys)))
        case _:
            assert_never(operation)


def decode_operations(operations: Iterable[pb.Operation]) -> list[Operation]:
    """Operations of a write to a shard. Raises InvalidInput."""
    decoded: list[Operation] = []
    for operation in operations:
        match operation.WhichOneof("kind"):
            case "upsert":
                decoded.append(_decode_upsert(operation.upsert))
            case "delete":
                decoded.append(Delete(decode_keys(operation.delete.keys, "delete.keys")))
            case _:
                raise InvalidInput("operations: expected an upsert or a delete")
    return decoded


def encode_edit(edit: bytes, chosen: Keys | Upsert | None, filter: bytes) -> pb.Operation:
    """For points with these keys, or as they are given; None: for those that ``filter`` lets
    through. Of given points that exist, it is for these only as well."""
    encoded = pb.Edit(edit=edit, filter=filter)
    if isinstance(chosen, Upsert):
        encoded.given.CopyFrom(_encode_upsert(chosen))
    elif chosen is not None:
        encoded.keys = encode_keys(chosen)
    return pb.Operation(edit=encoded)


def decode_edit(edit: pb.Edit) -> tuple[Edit, Keys | Upsert | None, bytes]:
    """The edit and which points it is for, as `encode_edit` has them. Raises InvalidInput."""
    decoded = Edit.decode(edit.edit)
    which = edit.WhichOneof("points")
    given = decoded.action in ("upsert", "update_vectors")
    if given != (which == "given"):
        raise InvalidInput(f"edit: {decoded.action} is not for {which}")
    if edit.filter:
        matcher(edit.filter)  # What is no filter is told now.
    chosen: Keys | Upsert | None = None
    if which == "given":
        chosen = _decode_upsert(edit.given)
    elif which == "keys":
        chosen = decode_keys(edit.keys, "edit.keys")
    return decoded, chosen, edit.filter


def _encode_upsert(upsert: Upsert) -> pb.Upsert:
    return pb.Upsert(
        keys=encode_keys(upsert.keys),
        vectors=encode_columns(upsert.vectors),
        payloads=upsert.payloads,
    )


def _decode_upsert(upsert: pb.Upsert) -> Upsert:
    keys = decode_keys(upsert.keys, "upsert.keys")
    if len(set(keys.tolist())) != len(keys):
        raise InvalidInput("upsert.keys: expected distinct keys")
    vectors = decode_columns(upsert.vectors, len(keys))
    payloads = list(upsert.payloads)
    if len(payloads) != len(keys):
        raise InvalidInput(
            f"upsert.payloads: expected one a key, {len(keys)} in all, got {len(payloads)}"
        )
    return Upsert(keys, vectors, payloads)


def encode_search(
    collection_id: str,
    shards: Sequence[int],
    queries: VectorColumn,
    params: SearchParams,
    filters: Sequence[bytes] = (),
) -> pb.SearchRequest:
    """``filters``: one a query; none: every point."""
    alike = list(runs(filters, queries.rows)) if any(filters) else []
    return pb.SearchRequest(
        target=pb.Target(collection_id=collection_id, shards=shards),
        queries=encode_column(params.using, queries),
        limit=params.limit,
        exact=params.exact,
        nprobe=params.nprobe,
        oversampling=params.oversampling,
        score_threshold=params.score_threshold,
        with_payload=params.with_payload,
        with_vectors=params.with_vectors,
        filters=[filter for filter, _, _ in alike],
        filter_queries=[end - start for _, start, end in alike],
        among=params.among,
        examples=params.examples,
    )


def decode_params(request: pb.SearchRequest) -> SearchParams:
    """The parameters of a search. Raises InvalidInput."""
    decode_keys(request.among, "among")
    if request.limit < 1:
        raise InvalidInput("limit: expected 1 or more, got 0")
    return SearchParams(
        limit=request.limit,
        exact=request.exact,
        nprobe=request.nprobe if request.HasField("nprobe") else None,
        oversampling=request.oversampling if request.HasField("oversampling") else None,
        score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
        with_payload=request.with_payload,
        with_vectors=tuple(request.with_vectors),
        among=request.among,
        examples=request.examples,
        using=request.queries.name,
    )


def decode_filters(request: pb.SearchRequest, queries: int) -> list[bytes]:
    """Those of a search for so many queries, as `encode_search` has them. Raises InvalidInput."""
    counts = request.filter_queries
    if len(counts) != len(request.filters) or (counts and sum(counts) != queries):
        raise InvalidInput(f"filters: expected one for each of {queries} queries")
    if request.examples and len(counts) > 1:
        raise InvalidInput("filters: expected one for all examples")
    return list(chain.from_iterable(map(repeat, request.filters, counts)))


def encode_points(points: Points) -> pb.PointsReply:
    return pb.PointsReply(
        keys=encode_keys(points.keys),
        payloads=points.payloads,
        vectors=encode_columns(points.vectors),
    )


def decode_points(reply: pb.PointsReply, *, with_payload: bool) -> Points:
    """Points as they were asked for. Raises InvalidInput where the columns differ in length."""
    keys = decode_keys(reply.keys)
    payloads = None
    if with_payload:
        payloads = list(reply.payloads)
        if len(payloads) != len(keys):
            raise InvalidInput(f"payloads: expected {len(keys)}, got {len(payloads)}")
    return Points(keys, payloads, decode_columns(reply.vectors, len(keys)))


def encode_hits(hits: Hits) -> pb.SearchReply:
    return pb.SearchReply(
        lengths=hits.lengths.tolist(),
        scores=np.ascontiguousarray(hits.scores, _FLOAT).tobytes(),
        points=encode_points(hits.points),
    )


def decode_hits(reply: pb.SearchReply, *, with_payload: bool) -> Hits:
    """Hits as they were asked for. Raises InvalidInput where the columns differ in length."""
    points = decode_points(reply.points, with_payload=with_payload)
    lengths: NDArray[np.int64] = np.array(reply.lengths, np.int64)
    if len(reply.scores) != len(points.keys) * _FLOAT.itemsize:
        raise InvalidInput(f"scores: expected {len(points.keys)}, got {len(reply.scores)} bytes")
    scores = np.frombuffer(reply.scores, _FLOAT)
    if lengths.sum() != len(scores):
        raise InvalidInput(f"lengths: expected {len(scores)} hits in all, got {lengths.sum()}")
    return Hits(lengths, scores, points)


def decode_rank(request: pb.RankRequest) -> RankParams:
    """Raises InvalidInput."""
    if request.limit < 1:
        raise InvalidInput("limit: expected 1 or more, got 0")
    decode_keys(request.among, "among")
    return RankParams(
        limit=request.limit,
        order_by=request.order_by,
        filter=request.filter,
        among=request.among,
        with_payload=request.with_payload,
        with_vectors=tuple(request.with_vectors),
    )


def encode_ranked(ranked: Ranked) -> pb.RankReply:
    return pb.RankReply(values=orjson.dumps(ranked.values), points=encode_points(ranked.points))


def decode_ranked(reply: pb.RankReply, *, with_payload: bool) -> Ranked:
    """Raises InvalidInput."""
    points = decode_points(reply.points, with_payload=with_payload)
    try:
        values = msgspec.json.decode(reply.values, type=list[int | float])
    except msgspec.DecodeError as error:
        raise InvalidInput(f"values: {error}") from error
    if len(values) != len(points.keys):
        raise InvalidInput(f"values: expected {len(points.keys)}, got {len(values)}")
    return Ranked(values, points)
