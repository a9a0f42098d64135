"""The process that merges segments and makes indexes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import psutil
import pytest

from shard import builder as builder_module
from shard.builder import Builder, Source
from shard.errors import Unavailable
from shard.manifest import pack_dead
from shard.model import UNNAMED, Distance, Points, ShardConfig, decode_ids, encode_ids, unnamed
from shard.segment import Segment, write_segment

CONFIG = ShardConfig.unnamed(16, Distance.EUCLID, flat_threshold=2_000)


@pytest.fixture
def builder() -> Iterator[Builder]:
    builder = Builder()
    yield builder
    builder.close()


def segment(directory: Path, first_id: int, rows: int) -> Source:
    directory.mkdir()
    rng = np.random.default_rng(first_id)
    vectors = rng.normal(size=(rows, 16)).astype(np.float32)
    points = Points(
        encode_ids(list(range(first_id, first_id + rows))), [b"{}"] * rows, unnamed(vectors)
    )
    write_segment(directory, [points], rows, CONFIG)
    return Source(str(directory), rows, b"")


def target(tmp_path: Path) -> Path:
    directory = tmp_path / "target"
    directory.mkdir()
    return directory


def children() -> list[psutil.Process]:
    return [
        one
        for one in psutil.Process().children()
        if one.status() != psutil.STATUS_ZOMBIE and "shard.build_worker" in one.cmdline()
    ]


def test_what_is_merged_is_without_the_dead_and_has_an_index(
    builder: Builder, tmp_path: Path
) -> None:
    alive = np.ones(3_000, np.bool_)
    alive[:1_000] = False
    sources = [
        segment(tmp_path / "a", 0, 2_000),
        Source(segment(tmp_path / "b", 2_000, 3_000).directory, 3_000, pack_dead(alive)),
    ]
    directory = target(tmp_path)
    calibrations = builder.merge(sources, directory, CONFIG, indexed=True, urgent=False)
    assert calibrations[UNNAMED].target == CONFIG.recall_target
    merged = Segment.open(directory, CONFIG)
    assert merged.indexed
    assert decode_ids(merged.keys) == [*range(2_000), *range(3_000, 5_000)]
    aimed = ShardConfig.unnamed(16, Distance.EUCLID, recall_target=0.8)
    recalibrated = builder.calibrate(directory, aimed)
    assert recalibrated[UNNAMED].target == 0.8


def test_an_error_is_told_and_the_next_task_done(builder: Builder, tmp_path: Path) -> None:
    source = segment(tmp_path / "a", 0, 10)
    directory = target(tmp_path)
    missing = Source(str(tmp_path / "missing"), 10, b"")
    with pytest.raises(Unavailable, match=r"Corrupt.*missing/segment.json"):
        builder.merge([missing], directory, CONFIG, indexed=False, urgent=False)
    builder.merge([source], directory, CONFIG, indexed=False, urgent=True)
    assert Segment.open(directory, CONFIG).rows == 10


def test_a_process_that_is_killed_is_replaced(builder: Builder, tmp_path: Path) -> None:
    source = segment(tmp_path / "a", 0, 200_000)
    directory = target(tmp_path)

    def kill() -> None:
        while not children():
            time.sleep(0.01)
        time.sleep(0.5)
        children()[0].kill()

    killer = Thread(target=kill)
    killer.start()
    with pytest.raises(Unavailable, match="ended: -9"):
        builder.merge([source], directory, CONFIG, indexed=True, urgent=True)
    killer.join()
    small = segment(tmp_path / "small", 0, 10)
    (tmp_path / "again").mkdir()
    builder.merge([small], tmp_path / "again", CONFIG, indexed=False, urgent=False)
    assert Segment.open(tmp_path / "again", CONFIG).rows == 10


def test_the_process_ends_when_there_is_nothing_to_do(builder: Builder, tmp_path: Path) -> None:
    source = segment(tmp_path / "a", 0, 10)
    builder.merge([source], target(tmp_path), CONFIG, indexed=False, urgent=False)
    (process,) = children()
    process.wait(builder_module.IDLE_SECONDS + 10)
    assert builder.calibrate(tmp_path / "a", CONFIG) == {}


def test_close_ends_what_is_under_way(tmp_path: Path) -> None:
    builder = Builder()
    source = segment(tmp_path / "a", 0, 200_000)
    directory = target(tmp_path)
    work = builder.submit(
        lambda: (builder.merge([source], directory, CONFIG, indexed=True, urgent=True), None)[1]
    )
    while not children():
        time.sleep(0.01)
    builder.close()
    assert isinstance(work.exception(10), Unavailable)
    assert not children()
    with pytest.raises(RuntimeError):
        builder.submit(lambda: None)


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    segment(tmp_path / "a", 0, 200_000)
    target(tmp_path)
    program = """if True:
        import sys
        from pathlib import Path
        from shard.builder import Builder, Source
        from shard.model import Distance, ShardConfig
        config = ShardConfig.unnamed(16, Distance.EUCLID)
        here = Path(sys.argv[1])
        source = Source(str(here / "a"), 200_000, b"")
        print("begins", flush=True)
        Builder().merge([source], here / "target", config, indexed=True, urgent=True)
    """
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        deadline = time.monotonic() + 30
        while not (children := psutil.Process(parent.pid).children()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(parent.pid, 9)
    psutil.wait_procs(children, timeout=10)
    assert not children[0].is_running()
