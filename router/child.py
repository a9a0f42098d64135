"""A process of the service's own that is kept running.

The child says that it has started by a line on its standard output, stops on SIGTERM, and ends when
its standard input does: however its parent ends, nothing of it stays behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple

import msgspec

from shard.errors import Unavailable

logger = logging.getLogger(__name__)

RESTART_SECONDS = (1.0, 30.0)
"""Backoff before a child that has ended is started again: first and longest."""


class Child(NamedTuple):
    started: asyncio.Event
    running: asyncio.Task[None]
    """Ends only when the first start fails, and then raises Unavailable. On cancel the child is
    stopped, which takes up to its ``stop_seconds``."""


@asynccontextmanager
async def kept_running(
    module: str,
    settings: msgspec.Struct,
    *,
    stop_seconds: float,
    pass_fds: Sequence[int] = (),
    secrets: msgspec.Struct | None = None,
) -> AsyncIterator[Child]:
    """Runs ``python -m module SETTINGS``, and starts it again should it end.

    ``secrets`` are the first line of its standard input: everybody may read its command line. It is
    killed when it has not stopped ``stop_seconds`` after it was told to.
    """
    started = asyncio.Event()
    running = asyncio.create_task(_keep(module, settings, stop_seconds, pass_fds, secrets, started))
    try:
        yield Child(started, running)
    finally:
        # Once only: a second time would break off the stopping.
        if not running.cancelling():
            running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Unavailable):
            await running


async def _keep(
    module: str,
    settings: msgspec.Struct,
    stop_seconds: float,
    pass_fds: Sequence[int],
    secrets: msgspec.Struct | None,
    started: asyncio.Event,
) -> None:
    first, longest = RESTART_SECONDS
    pause = first
    while True:
        try:
            process = await _start(module, settings, pass_fds)
            if secrets is not None:
                assert process.stdin is not None
                process.stdin.write(msgspec.json.encode(secrets) + b"\n")
        except OSError as error:
            ended = f"cannot be started: {error}"
        else:
            came_up, status = await _run(process, module, stop_seconds, started)
            ended = f"ended with {status}"
            if came_up:
                pause = first
        if not started.is_set():
            raise Unavailable(f"{module} did not start: it {ended}")
        logger.error("%s %s; next start in %.0f s", module, ended, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest)


async def _run(
    process: Process, module: str, stop_seconds: float, started: asyncio.Event
) -> tuple[bool, int]:
    """Whether ``process`` has come up, and its status, once it has ended. Stops it on cancel."""
    came_up = False
    try:
        assert process.stdout is not None
        came_up = bool(await process.stdout.readline())
        if came_up:
            started.set()
        while await process.stdout.read(1 << 16):
            pass  # Whatever it may print: it would wait for who reads it.
        return came_up, await process.wait()
    except asyncio.CancelledError:
        await _stop(process, module, stop_seconds, in_order=came_up)
        raise


async def _start(module: str, settings: msgspec.Struct, pass_fds: Sequence[int]) -> Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        msgspec.json.encode(settings).decode(),
        stdin=PIPE,
        stdout=PIPE,
        stderr=None if sys.stderr is not None else DEVNULL,
        pass_fds=pass_fds,
        start_new_session=True,  # Ctrl-C is for this process, which then stops that one in order.
    )


async def _stop(process: Process, module: str, seconds: float, *, in_order: bool) -> None:
    if process.returncode is not None:
        return
    if in_order:
        process.terminate()
    else:
        # A child may not mind signals yet. The end of the pipe stops it at any time.
        assert process.stdin is not None
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        logger.warning("%s did not stop in time", module)
        process.kill()
        await process.wait()
