"""Merges segments and makes their indexes in a process of its own.

That is work of seconds to hours which no search may wait for. In the shard's own process it would:
however low the priority of the thread that does it, it holds the interpreter's lock now and then,
and holds it long when it does not get a core.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock

import msgspec

from shard.errors import Unavailable
from shard.model import Calibration, ShardConfig

IDLE_SECONDS = 2.0
"""The process ends when there has been nothing to do for so long, and gives its memory back."""


class Source(msgspec.Struct, frozen=True):
    """A segment to merge: where it is, and its dead rows as of `manifest.pack_dead`."""

    directory: str
    rows: int
    dead: bytes


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """Merge ``sources`` into a segment in ``directory``, or calibrate the one that is there."""

    directory: str
    config: ShardConfig
    sources: list[Source] | None
    indexed: bool
    urgent: bool


class Outcome(msgspec.Struct, frozen=True):
    calibrations: dict[str, Calibration] = {}
    error: str = ""


# Made before threads use it: see `shard.objects.document`.
_decoder = msgspec.json.Decoder(Outcome)


class Builder:
    """Does one thing after the other, for any number of shards. Methods are called by any thread.

    `merge` and `calibrate` block, and are for what is run by `submit`. They raise Unavailable.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "build")
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Run ``work`` when what was submitted before is done. Raises RuntimeError once closed."""
        return self._thread.submit(work)

    def merge(
        self,
        sources: Sequence[Source],
        directory: Path,
        config: ShardConfig,
        *,
        indexed: bool,
        urgent: bool,
    ) -> dict[str, Calibration]:
        """Write the live rows of ``sources`` as a segment into ``directory``, which is empty.

        With ``indexed`` it gets its indexes, and the answer is as of `segment.build_indexes`.
        ``urgent``: at the cost of searches, and not only when cores are free.
        """
        return self._ask(
            Task(
                directory=str(directory),
                config=config,
                sources=list(sources),
                indexed=indexed,
                urgent=urgent,
            )
        )

    def calibrate(self, directory: Path, config: ShardConfig) -> dict[str, Calibration]:
        """As of `Segment.calibrate`, of the segment in ``directory``."""
        return self._ask(
            Task(directory=str(directory), config=config, sources=None, indexed=True, urgent=False)
        )

    def close(self) -> None:
        """Stop: what is under way fails, what waits is cancelled."""
        with self._lock:
            self._closed = True
            if self._process is not None:
                self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._forget()

    def _ask(self, task: Task, *, again: bool = True) -> dict[str, Calibration]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(msgspec.json.encode(task) + b"\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except OSError:
            line = b""
        if not line:
            self._forget()
            if again and process.returncode == 0:
                # It has ended for want of work just as there was some.
                return self._ask(task, again=False)
            raise Unavailable(f"the process that builds indexes ended: {process.returncode}")
        outcome = _decoder.decode(line)
        if outcome.error:
            raise Unavailable(f"building: {outcome.error}")
        return outcome.calibrations

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is not None:
            self._forget()
        with self._lock:
            if self._closed:
                raise Unavailable("closing")
            if self._process is None:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "shard.build_worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            return self._process

    def _forget(self) -> None:
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.__exit__(None, None, None)  # Closes the pipes and waits.
