"""Processes of the service's own, and their restarts."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from router import child
from router.child import kept_running
from shard.errors import Unavailable
from tests.chatty_child import ChattySettings


async def line(path: Path, number: int) -> str:
    """The line of that number, once it is there."""
    async with asyncio.timeout(30):
        while True:
            lines = await asyncio.to_thread(_lines, path)
            if len(lines) > number:
                return lines[number]
            await asyncio.sleep(0.01)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def test_a_child_that_says_much_is_stopped_in_order(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    settings = ChattySettings(str(path))
    async with kept_running("tests.chatty_child", settings, stop_seconds=30) as running:
        await running.started.wait()
        assert await line(path, 1) == "said"
    assert await line(path, 2) == "stopped"


async def test_a_child_is_started_again_even_if_that_fails_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "RESTART_SECONDS", (0.05, 0.1))
    path = tmp_path / "pids"
    settings = ChattySettings(str(path))
    async with kept_running("tests.chatty_child", settings, stop_seconds=30) as running:
        await line(path, 1)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "executable", str(tmp_path / "missing"))
            os.kill(int(await line(path, 0)), 9)
            await asyncio.sleep(0.5)
            assert not running.running.done()
        assert await line(path, 3) == "said"
    assert await line(path, 4) == "stopped"


async def test_children_stop_side_by_side_when_they_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    settings = ChattySettings(str(path))
    async with kept_running("tests.chatty_child", settings, stop_seconds=30) as running:
        await line(path, 1)
        running.running.cancel()
        await asyncio.sleep(0)
    # Told twice, it is stopped in order all the same.
    assert await line(path, 2) == "stopped"


async def test_a_child_that_cannot_be_started_at_first_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    settings = ChattySettings(str(tmp_path / "pids"))
    async with kept_running("tests.chatty_child", settings, stop_seconds=1) as running:
        with pytest.raises(Unavailable, match="cannot be started"):
            await running.running
