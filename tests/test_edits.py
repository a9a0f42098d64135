"""What an edit of many points becomes in the log."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from shard.edits import Edit, resolve
from shard.model import (
    UNNAMED,
    Distance,
    Operation,
    ShardConfig,
    Upsert,
    VectorConfig,
    decode_ids,
    encode_ids,
    unnamed,
)
from shard.state import ShardState

MEBIBYTE = 1 << 20
CONFIG = ShardConfig(vectors={UNNAMED: VectorConfig(dimension=2, distance=Distance.DOT)})


def upsert(ids: range, payload_bytes: int) -> Upsert:
    payload = orjson.dumps({"text": "x" * payload_bytes})
    vectors = unnamed(np.ones((len(ids), 2), np.float32))
    return Upsert(encode_ids(ids), vectors, [payload] * len(ids))


def rewritten(state: ShardState) -> Iterator[Upsert]:
    operation: Operation
    for operation in resolve(Edit(action="set", payload={"seen": True}), state, None, b""):
        assert isinstance(operation, Upsert)
        state.apply(state.view.sequence + 1, [operation])
        yield operation


def test_so_many_points_are_rewritten_at_a_time_as_have_few_bytes() -> None:
    state = ShardState(CONFIG, [], 0)
    state.apply(1, [upsert(range(80), MEBIBYTE), upsert(range(1_000, 11_000), 10)])
    records = list(rewritten(state))
    ids = [one for record in records for one in decode_ids(record.keys)]
    assert sorted(ids, key=int) == [*range(80), *range(1_000, 11_000)]
    assert all(orjson.loads(one)["seen"] for record in records for one in record.payloads)
    assert max(sum(map(len, record.payloads)) for record in records) < 20 * MEBIBYTE
    # Large ones, some sixteen a record; small ones, as many as there may be.
    assert len(records) < 12
    assert max(len(record.keys) for record in records) == 4_096
