"""``shoal serve`` as its users run it: a process, with all that it starts."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import psutil

START_SECONDS = 120
STOP_SECONDS = 60


class ShoalProcess:
    """One service over ``data``. A context manager that leaves nothing of it running."""

    def __init__(
        self,
        data: str | Path,
        *options: str,
        env: dict[str, str] | None = None,
        stderr: IO[str] | None = None,
    ) -> None:
        self._arguments = ["--data", str(data), "--port", "0", "--grpc-port", "0", *options]
        self._env = os.environ | (env or {})
        self._stderr = stderr
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    def start(self) -> Self:
        """Return once it says that it is ready."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "router.cli", "serve", *self._arguments],
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=self._env,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line.startswith("Shoal is ready at http"), line
        self.url = line.split()[-1]
        return self

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def processes(self) -> dict[int, str]:
        """Every process of the service, by id, with its command line."""
        commands = {}
        service = psutil.Process(self.pid)
        for process in (service, *service.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                commands[process.pid] = " ".join(process.cmdline())
        return commands

    def find(self, name: str) -> list[int]:
        """Ids of the processes whose command line has ``name``."""
        return [pid for pid, command in self.processes().items() if name in command]

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to stop, and answer its exit status."""
        assert self._process is not None
        self._process.send_signal(number)
        return self._process.wait(STOP_SECONDS)

    def kill_all(self) -> None:
        """``kill -9`` every process at once."""
        pids = self.processes()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert self._process is not None
        self._process.wait(STOP_SECONDS)
        wait_until_gone(list(pids))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None and self._process.poll() is None:
            self.kill_all()


def wait_until_gone(pids: list[int], seconds: float = STOP_SECONDS) -> None:
    """Return when none of the processes runs any more."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
