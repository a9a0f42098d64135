"""Paths into payloads, in Qdrant's notation: ``a.b[].c``.

A path is keys joined by dots; a key may be put in double quotes, and ``[]`` after it stands for the
items of an array, ``[2]`` for one of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, TypeAlias

from shard.errors import InvalidInput

MAX_STEPS = 64
_PART = re.compile(r'(?:"(?P<quoted>[^"]*)"|(?P<bare>[\w-]+))(?P<items>(?:\[\d*\])*)(?:\.(?!$)|$)')

Steps: TypeAlias = Sequence[str | int | None]
"""A key, the number of an item, or None for all items of an array."""


def parse(path: str, field: str) -> Steps:
    """Raises InvalidInput for what is no path, naming ``field``."""
    steps: list[str | int | None] = []
    end = 0
    try:
        while part := _PART.match(path, end):
            items = re.findall(r"\[(\d*)\]", part["items"])
            steps.append(part["bare"] if part["quoted"] is None else part["quoted"])
            steps += [int(item) if item else None for item in items]
            if len(steps) > MAX_STEPS:
                raise InvalidInput(
                    f"{field}: {path[:80]!r}… is too long, expected at most {MAX_STEPS} steps"
                )
            if (end := part.end()) == len(path):
                return steps
    except ValueError as error:  # More digits than Python reads.
        raise InvalidInput(f"{field}: {error}") from None
    raise InvalidInput(f"{field}: {path!r} is not a path, expected one such as `a.b[].c`")


def values(payload: Any, steps: Steps) -> list[Any]:
    """What the path selects; none where it leads nowhere."""
    selected = [payload]
    for step in steps:
        below: list[Any] = []
        for value in selected:
            if isinstance(step, str):
                if isinstance(value, dict) and step in value:
                    below.append(value[step])
            elif isinstance(value, list):
                if step is None:
                    below += value
                elif step < len(value):
                    below.append(value[step])
        if not below:
            return below
        selected = below
    return selected
