"""Between messages of `shard.proto` and the words of `shard.model`.

Decoding checks what the bytes alone can tell - lengths, the form of keys - and raises InvalidInput
naming the field. Decoded arrays are read-only views of the message's bytes; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from shard.edits import Edit
from shard.errors import InvalidInput
from shard.filter import matcher
from shard.model import (
    KEY_BYTES,
    KEY_DTYPE,
    Delete,
    Hits,
    Keys,
    Operation,
    Points,
    SearchParams,
    Upsert,
    Vectors,
)
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


def encode_vectors(vectors: Vectors) -> bytes:
    return np.ascontiguousarray(vectors, _FLOAT).tobytes()


def decode_vectors(data: bytes, dimension: int, field: str, rows: int | None = None) -> Vectors:
    """Vectors, shape (n, dimension), float32; n is ``rows`` where that is given.

    Raises InvalidInput where the length does not fit.
    """
    row_bytes = dimension * _FLOAT.itemsize
    if len(data) % row_bytes or (rows is not None and len(data) != rows * row_bytes):
        expected = "whole vectors" if rows is None else f"{rows} vectors"
        raise InvalidInput(
            f"{field}: expected {expected} of {dimension} float32, got {len(data)} bytes"
        )
    return np.frombuffer(data, _FLOAT).reshape(-1, dimension)


def encode_operation(operation: Operation) -> pb.Operation:
    match operation:
        case Upsert(keys, vectors, payloads):
            upsert = pb.Upsert(
                keys=encode_keys(keys), vectors=encode_vectors(vectors), payloads=payloads
            )
            return pb.Operation(upsert=upsert)
        case Delete(keys):
            return pb.Operation(delete=pb.Delete(keys=encode_keys(keys)))
        case _:
            assert_never(operation)


def decode_operations(operations: Iterable[pb.Operation], dimension: int) -> list[Operation]:
    """Operations of a write to a shard of that dimension. Raises InvalidInput."""
    decoded: list[Operation] = []
    for operation in operations:
        match operation.WhichOneof("kind"):
            case "upsert":
                decoded.append(_decode_upsert(operation.upsert, dimension))
            case "delete":
                decoded.append(Delete(decode_keys(operation.delete.keys, "delete.keys")))
            case _:
                raise InvalidInput("operations: expected an upsert or a delete")
    return decoded


def encode_edit(edit: bytes, keys: Keys | None, filter: bytes) -> pb.Operation:
    """For points with ``keys``; None: for those that ``filter`` lets through."""
    if keys is None:
        return pb.Operation(edit=pb.Edit(edit=edit, filter=filter))
    return pb.Operation(edit=pb.Edit(edit=edit, keys=encode_keys(keys)))


def decode_edit(edit: pb.Edit) -> tuple[Edit, Keys | None, bytes]:
    """The edit and which points it is for, as `encode_edit` has them. Raises InvalidInput."""
    decoded = Edit.decode(edit.edit)
    if edit.WhichOneof("points") == "keys":
        return decoded, decode_keys(edit.keys, "edit.keys"), b""
    if edit.filter:
        matcher(edit.filter)  # What is no filter is told now.
    return decoded, None, edit.filter


def _decode_upsert(upsert: pb.Upsert, dimension: int) -> Upsert:
    keys = decode_keys(upsert.keys, "upsert.keys")
    if len(set(keys.tolist())) != len(keys):
        raise InvalidInput("upsert.keys: expected distinct keys")
    vectors = decode_vectors(upsert.vectors, dimension, "upsert.vectors", len(keys))
    payloads = list(upsert.payloads)
    if len(payloads) != len(keys):
        raise InvalidInput(
            f"upsert.payloads: expected one a key, {len(keys)} in all, got {len(payloads)}"
        )
    return Upsert(keys, vectors, payloads)


def encode_search(
    collection_id: str, shards: Sequence[int], queries: Vectors, params: SearchParams
) -> pb.SearchRequest:
    return pb.SearchRequest(
        target=pb.Target(collection_id=collection_id, shards=shards),
        queries=encode_vectors(queries),
        limit=params.limit,
        exact=params.exact,
        nprobe=params.nprobe,
        oversampling=params.oversampling,
        score_threshold=params.score_threshold,
        with_payload=params.with_payload,
        with_vector=params.with_vector,
        filter=params.filter,
    )


def decode_params(request: pb.SearchRequest) -> SearchParams:
    """The parameters of a search. Raises InvalidInput for a limit of zero."""
    if request.limit < 1:
        raise InvalidInput("limit: expected 1 or more, got 0")
    return SearchParams(
        limit=request.limit,
        exact=request.exact,
        nprobe=request.nprobe if request.HasField("nprobe") else None,
        oversampling=request.oversampling if request.HasField("oversampling") else None,
        score_threshold=request.score_threshold if request.HasField("score_threshold") else None,
        with_payload=request.with_payload,
        with_vector=request.with_vector,
        filter=request.filter,
    )


def encode_points(points: Points) -> pb.PointsReply:
    return pb.PointsReply(
        keys=encode_keys(points.keys),
        payloads=points.payloads,
        vectors=b"" if points.vectors is None else encode_vectors(points.vectors),
    )


def decode_points(
    reply: pb.PointsReply, *, with_payload: bool, with_vector: bool, dimension: int
) -> Points:
    """Points as they were asked for. Raises InvalidInput where the columns differ in length."""
    keys = decode_keys(reply.keys)
    payloads = vectors = None
    if with_payload:
        payloads = list(reply.payloads)
        if len(payloads) != len(keys):
            raise InvalidInput(f"payloads: expected {len(keys)}, got {len(payloads)}")
    if with_vector:
        vectors = decode_vectors(reply.vectors, dimension, "vectors", len(keys))
    return Points(keys, payloads, vectors)


def encode_hits(hits: Hits) -> pb.SearchReply:
    return pb.SearchReply(
        lengths=hits.lengths.tolist(),
        scores=np.ascontiguousarray(hits.scores, _FLOAT).tobytes(),
        points=encode_points(hits.points),
    )


def decode_hits(
    reply: pb.SearchReply, *, with_payload: bool, with_vector: bool, dimension: int
) -> Hits:
    """Hits as they were asked for. Raises InvalidInput where the columns differ in length."""
    points = decode_points(
        reply.points, with_payload=with_payload, with_vector=with_vector, dimension=dimension
    )
    lengths: NDArray[np.int64] = np.array(reply.lengths, np.int64)
    scores = decode_vectors(reply.scores, 1, "scores", len(points.keys)).ravel()
    if lengths.sum() != len(scores):
        raise InvalidInput(f"lengths: expected {len(scores)} hits in all, got {lengths.sum()}")
    return Hits(lengths, scores, points)
