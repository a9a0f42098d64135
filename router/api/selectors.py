"""Which part of a payload to answer: all, none, or what paths such as ``a.b[].c`` select.

The paths of one selector form a tree, and a payload is walked along with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from router.api.wire import PayloadSelector, WithPayload
from shard import json_path
from shard.errors import InvalidInput

Tree: TypeAlias = "dict[str | int | None, Tree | None]"
"""From a key, an index or (None) all items of an array to what is below; None: all of it."""


def _tree(paths: list[str]) -> Tree:
    tree: Tree = {}
    for path in paths:
        *parents, last = json_path.parse(path, "with_payload")
        node: Tree | None = tree
        for step in parents:
            node = node.setdefault(step, {}) if node is not None else None
        if node is not None:
            node[last] = None
    return tree


def _include(value: Any, tree: Tree) -> Any:
    if isinstance(value, dict):
        return {
            key: item if (below := tree[key]) is None else _include(item, below)
            for key, item in value.items()
            if key in tree
        }
    if isinstance(value, list):
        if None not in tree:
            return []
        below = tree[None]
        return value if below is None else [_include(item, below) for item in value]
    return value


def _exclude(value: Any, tree: Tree) -> Any:
    if isinstance(value, dict):
        return {
            key: item if (below := tree.get(key)) is None else _exclude(item, below)
            for key, item in value.items()
            if key not in tree or tree[key] is not None
        }
    if isinstance(value, list) and None in tree:
        below = tree[None]
        return [] if below is None else [_exclude(item, below) for item in value]
    return value


@dataclass(frozen=True)
class Selector:
    """What to answer of payloads."""

    wanted: bool
    include: Tree | None = None
    exclude: Tree | None = None

    @staticmethod
    def of(asked: WithPayload | None, *, default: bool) -> Selector:
        """The selector that a request asks for. Raises InvalidInput for a malformed path."""
        match asked:
            case None:
                return Selector(default)
            case bool():
                return Selector(asked)
            case list():
                return Selector(True, include=_tree(asked))
            case PayloadSelector(include=list(paths), exclude=None):
                return Selector(True, include=_tree(paths))
            case PayloadSelector(include=None, exclude=list(paths)):
                return Selector(True, exclude=_tree(paths))
        raise InvalidInput("with_payload: expected one of `include` and `exclude`")

    def apply(self, payload: bytes) -> orjson.Fragment:
        """The selected part of a stored payload, as JSON for orjson."""
        if not payload:
            return orjson.Fragment(b"{}")
        if self.include is not None:
            return orjson.Fragment(orjson.dumps(_include(orjson.loads(payload), self.include)))
        if self.exclude is not None:
            return orjson.Fragment(orjson.dumps(_exclude(orjson.loads(payload), self.exclude)))
        return orjson.Fragment(payload)
