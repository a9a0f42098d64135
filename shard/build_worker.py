"""The process that a `Builder` has: tasks come on stdin, outcomes go to stdout, a line each.

It ends with its parent, whose end of the pipe is closed then, whatever it is doing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import BinaryIO

import faiss
import msgspec
from threadpoolctl import threadpool_limits

from shard.builder import IDLE_SECONDS, Outcome, Source, Task
from shard.compaction import merged
from shard.manifest import unpack_alive
from shard.model import Calibration, ShardConfig
from shard.scheduling import leave_cores_to_others
from shard.segment import Segment, build_indexes, write_segment
from shard.view import Layer

logger = logging.getLogger(__name__)


def main() -> None:
    logging.basicConfig()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What a library prints is not to be taken for an outcome.
    outcomes = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_work, args=(tasks, outcomes), daemon=True).start()
    for line in sys.stdin.buffer:
        tasks.put(line)
    os._exit(0)


def _work(tasks: SimpleQueue[bytes], outcomes: BinaryIO) -> None:
    try:
        while True:
            task = msgspec.json.decode(tasks.get(timeout=IDLE_SECONDS), type=Task)
            # A thread each, since who has left the cores to others does not get them back.
            with ThreadPoolExecutor(1) as thread:
                outcome = thread.submit(_outcome, task).result()
            outcomes.write(msgspec.json.encode(outcome) + b"\n")
            outcomes.flush()
    except (Empty, BrokenPipeError):
        pass
    finally:
        os._exit(0)


def _outcome(task: Task) -> Outcome:
    faiss.omp_set_num_threads(1)
    if not task.urgent:
        leave_cores_to_others()
    directory = Path(task.directory)
    try:
        with threadpool_limits(1, "blas"):
            if task.sources is None:
                return Outcome(Segment.open(directory, task.config).calibrate(task.config))
            return Outcome(_merge(task.sources, directory, task.config, task.indexed))
    except Exception as error:
        if directory.exists():  # Else nobody wants it any more.
            logger.exception("%s", directory.name)
        return Outcome(error=repr(error))


def _merge(
    sources: list[Source], directory: Path, config: ShardConfig, indexed: bool
) -> dict[str, Calibration]:
    layers = [
        Layer(Segment.open(Path(one.directory), config), unpack_alive(one.dead, one.rows))
        for one in sources
    ]
    write_segment(directory, merged(layers, config.names), sum(one.live for one in layers), config)
    return build_indexes(directory, config) if indexed else {}


if __name__ == "__main__":
    main()
