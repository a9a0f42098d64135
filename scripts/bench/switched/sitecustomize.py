"""Lets a benchmark switch off what watches a service, in all of its processes, while they run.

Python imports this at its start where the directory is in ``PYTHONPATH``. ``SHOAL_BENCH_WATCHED``
names the file of a `scripts.bench.watching.Schedule`, which is followed from when it is there.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

on: frozenset[str] = frozenset()
"""``requests``: each has an id, which its answer and calls to shard servers carry. ``metrics``: it
is counted, and what it takes is measured. ``traces``: some are traced."""
SEND_SECONDS = 5.0
"""Of phases in which there are traces, until their spans are sent. OpenTelemetry's default."""


def _follow(path: Path) -> None:
    global on
    unsent = random.random() * SEND_SECONDS
    while not path.exists():
        time.sleep(0.02)
    began, seconds, phases = json.loads(path.read_text())
    for number, names in enumerate(phases):
        time.sleep(max(0.0, began + number * seconds - time.perf_counter()))
        tracing = getattr(sys.modules.get("shard.tracing"), "_tracing", None)
        if "traces" in names and tracing is not None:
            # One a second, of those in which there are traces.
            tracing.next_at = time.perf_counter() + random.random()
            unsent += seconds
            if unsent >= SEND_SECONDS:
                unsent -= SEND_SECONDS
                threading.Timer(random.random() * seconds, tracing.provider.force_flush).start()
        on = frozenset(names.split())
    time.sleep(max(0.0, began + len(phases) * seconds - time.perf_counter()))
    on = frozenset()


def _observing(module: Any) -> None:
    watch = module.Observer.__call__

    async def plain(self: Any, scope: Any, receive: Any, send: Any) -> None:
        scope["started"] = time.perf_counter()
        scope["reports_usage"] = False
        await self._app(scope, receive, send)

    class Ignored(list[Any]):
        """Requests that nobody counts."""

        def __bool__(self) -> bool:
            return True

        def append(self, request: Any) -> None:
            pass

    ignored = Ignored()

    async def call(self: Any, scope: Any, receive: Any, send: Any) -> None:
        if "requests" not in on:
            await plain(self, scope, receive, send)
            return
        counted = "metrics" in on
        if counted is (self._over is ignored):
            self._over = [] if counted else ignored
        await watch(self, scope, receive, send)

    module.Observer.__call__ = call


def _if_metrics(function: Callable[..., Any], otherwise: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given, **named: (function if "metrics" in on else otherwise)(*given, **named)


def _nothing(*given: Any, **named: Any) -> None:
    pass


def _usage(module: Any) -> None:
    class Nowhere:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *raised: object) -> None:
            pass

    nowhere, measured = Nowhere(), module.Measured(0.0, None, 0.0)
    module.measure = _if_metrics(module.measure, lambda work: (work(), measured))
    module.stage = _if_metrics(module.stage, lambda name: nowhere)
    module.Cost.encode = _if_metrics(module.Cost.encode, lambda cost: b"")


def _accounts(module: Any) -> None:
    module.Accounts.settle = _if_metrics(module.Accounts.settle, _nothing)


def _origin(module: Any) -> None:
    for payer in (module.Origin, module.Together):
        payer.pay = _if_metrics(payer.pay, _nothing)
    module.Origin.take_part = _if_metrics(module.Origin.take_part, _nothing)


def _batches(module: Any) -> None:
    module.Histogram.observe = _if_metrics(module.Histogram.observe, _nothing)


def _tracing(module: Any) -> None:
    begin, may_begin = module.begin, module.may_begin
    module.begin = lambda *given, **named: begin(*given, **named) if "traces" in on else None
    module.may_begin = lambda now: "traces" in on and may_begin(now)


_CHANGES: dict[str, Callable[[Any], None]] = {
    "router.batching": _batches,
    "router.observing": _observing,
    "shard.usage": _usage,
    "shard.rpc.accounts": _accounts,
    "shard.rpc.origin": _origin,
    "shard.tracing": _tracing,
}


class _Changed(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _CHANGES[module.__name__](module)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            spec.loader = _Changed(spec.loader)
        return spec


if _path := os.environ.get("SHOAL_BENCH_WATCHED"):
    sys.meta_path.insert(0, _Finder())
    threading.Thread(target=_follow, args=(Path(_path),), daemon=True).start()
