"""Services under test: started, measured from outside, and stopped with all they started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

SHARD_SERVERS = ("ShardServerActor", "shard.build_worker")
"""What the processes that hold shards, and build for them, are called."""
START_SECONDS = 120.0
STOP_SECONDS = 30.0


@dataclass(frozen=True)
class Service:
    """A running service; all figures are over its process tree."""

    url: str
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """CPU time up to now of every process that is still there."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def anonymous_bytes(self, *named: str) -> int:
        """Memory that is no file's, of the processes with one of ``named`` in the command line.

        ``""``: of all.
        """
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                if any(name in " ".join(process.cmdline()) for name in named):
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    total += 1_024 * int(status.partition("RssAnon:")[2].split()[0])
        return total

    def tree(self) -> list[psutil.Process]:
        """Its processes."""
        return [self.process, *self.process.children(recursive=True)]


@contextmanager
def shoal(
    data: Path | str, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[Service]:
    """``shoal serve`` over ``data``, ready; stopped in order at the end.

    ``env``: variables besides.
    """
    command = [sys.executable, "-m", "router.cli", "serve", "--data", str(data)]
    command += ["--port", "0", "--grpc-port", "0", *options]
    environment = {**os.environ, **(env or {})}
    with _running(command, subprocess.PIPE, environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        if not line:
            raise OSError("shoal serve did not start; its reason is above")
        yield Service(line.split()[-1], psutil.Process(process.pid))


@contextmanager
def chroma(executable: Path, data: Path, port: int) -> Iterator[Service]:
    """``chroma run`` over ``data``, ready."""
    command = [str(executable), "run", "--path", str(data), "--port", str(port)]
    with _running([*command, "--host", "127.0.0.1"], subprocess.DEVNULL) as process:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/api/v2/heartbeat").status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise OSError("chroma run did not start")
            time.sleep(0.2)
        yield Service(url, psutil.Process(process.pid))


@contextmanager
def _running(
    command: Sequence[str], stdout: int, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=stdout, env=env)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
