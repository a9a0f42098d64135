"""A shard read from the object store, beside the engine that has it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from shard.errors import Corrupt
from shard.model import UNNAMED, Delete, decode_ids, encode_ids
from shard.recovery import read_points
from tests.test_imports import CONFIG, PREFIX, Model, Shard, upsert, wait_until


@pytest.fixture
def shard(tmp_path: Path) -> Iterator[Shard]:
    shard = Shard(tmp_path)
    yield shard
    shard.close()
    shard.builder.close()


def read(shard: Shard, scratch: Path) -> Model:
    scratch.mkdir()
    found: Model = {}
    for points in read_points(shard.store, PREFIX, CONFIG, scratch):
        assert points.payloads is not None
        ids = [one for one in decode_ids(points.keys) if isinstance(one, int)]
        assert points.vectors[UNNAMED].rows == len(ids) and sorted(ids) == ids
        found.update(zip(ids, points.payloads, strict=True))
    return found


def test_log_and_segments_are_read_together(shard: Shard, tmp_path: Path) -> None:
    assert read(shard, tmp_path / "empty") == {}
    rng = np.random.default_rng(0)
    for number in range(12):
        shard.write(upsert(sorted(rng.choice(20_000, 2_000, False).tolist()), f"w{number}"))
        shard.write(Delete(encode_ids(sorted(rng.choice(20_000, 300, False).tolist()))))
    assert read(shard, tmp_path / "beside") == shard.model
    wait_until(lambda: bool(shard.manifest().segments))
    shard.close()
    assert read(shard, tmp_path / "alone") == shard.model


def test_what_was_acknowledged_before_is_there(shard: Shard, tmp_path: Path) -> None:
    """While it is read, rows are written, flushed, merged and deleted."""
    shard.write(upsert(list(range(3_000)), "first"))
    over = Event()

    def keep_writing() -> None:
        number = 0
        while not over.is_set():
            number += 1
            first = 10_000 + 2_000 * (number % 20)
            shard.write(upsert(list(range(first, first + 2_000)), f"n{number}"))

    writer = Thread(target=keep_writing)
    writer.start()
    try:
        for attempt in range(8):
            before = dict(shard.model)
            found = read(shard, tmp_path / str(attempt))
            assert before.keys() <= found.keys()
            assert all(found[one] == b'{"of":"first"}' for one in range(3_000))
    finally:
        over.set()
        writer.join()


def test_a_missing_segment_is_told(shard: Shard, tmp_path: Path) -> None:
    shard.write(upsert(list(range(9_000)), "x"))
    wait_until(lambda: bool(shard.manifest().segments))
    shard.close()
    (entry, *_) = shard.manifest().segments
    shard.store.delete(f"{PREFIX}/segment/{entry.id}/keys.npy")
    with pytest.raises(Corrupt):
        read(shard, tmp_path / "copies")
