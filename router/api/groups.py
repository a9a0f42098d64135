"""Queries whose answer is grouped by a field of the payload."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import parse_id, render_points
from router.api.exchange import Context, Timeout, answer, read_body
from router.api.points import DEFAULT_LIMIT, Consistency, check_vector_bytes, wanted_vectors
from router.api.selectors import Selector
from router.errors import Malformed
from router.query.tree import Answering, Found, Node
from router.security.access import Level
from shard import json_path
from shard.errors import InvalidInput
from shard.model import KEY_DTYPE, Keys, encode_id

routes = APIRouter(prefix="/collections/{name}/points", tags=["Search"])

DEFAULT_GROUP_SIZE = 3
_LEAST = 64
_FACTOR = 4
"""By how much more points are looked at where those found do not make enough groups."""

_query_groups = wire.Decoder(wire.QueryGroups)


@dataclass(frozen=True)
class _Group:
    id: int | str
    keys: list[bytes] = field(default_factory=list)
    scores: list[np.float32] = field(default_factory=list)


@routes.post(
    "/query/groups",
    openapi_extra=wire.body(_query_groups),
    responses=wire.answers(wire.Groups),
    summary="Query points, grouped by a field of the payload",
)
async def query_groups(
    request: Request, name: str, consistency: Consistency = None, timeout: Timeout = None
) -> Response:
    """The groups whose best points are the best, each with its best points."""
    context = Context.of(request)
    body = _query_groups(await read_body(request))
    steps = json_path.parse(body.group_by, "group_by")
    selector = Selector.of(body.with_payload, default=False)
    size = DEFAULT_GROUP_SIZE if body.group_size is None else body.group_size
    limit = DEFAULT_LIMIT if body.limit is None else body.limit
    if limit * size > wire.MAX_HITS:
        raise InvalidInput(f"limit: expected `limit` * `group_size` <= {wire.MAX_HITS}")
    node = _with_wider_prefetches(Node.of(body, "", limit), size)
    seconds = timeout or context.timeout
    lookup = body.with_lookup
    if isinstance(lookup, str):
        lookup = wire.WithLookup(collection=lookup)
    if lookup is not None:
        context.access.check(lookup.collection, Level.READ)

    async def act(collection: Collection) -> list[dict[str, Any]]:
        config = collection.config
        names = wanted_vectors(body.with_vector, config)
        check_vector_bytes(limit * size, names, config)
        groups = await _find(Answering(context, collection, seconds), node, steps, limit, size)
        points = await context.fanout.retrieve(
            collection,
            _distinct(one.keys for one in groups),
            with_payload=selector.wanted,
            with_vectors=names,
            timeout=seconds,
        )
        records = dict(
            zip(points.keys.tolist(), render_points(points, config, selector), strict=True)
        )
        # A point may have been deleted meanwhile.
        return [
            {
                "id": one.id,
                "hits": [
                    records[key] | {"version": 0, "score": score}
                    for key, score in zip(one.keys, one.scores, strict=True)
                    if key in records
                ],
            }
            for one in groups
        ]

    rendered = await context.directory.act(name, act)
    if lookup is not None:
        await _look_up(context, lookup, rendered, seconds)
    return answer(request, {"groups": rendered})


async def _find(
    answering: Answering, node: Node, steps: json_path.Steps, limit: int, size: int
) -> list[_Group]:
    """Looks at more and more points, until they make whole groups or there are no more."""
    wanted = max(_LEAST, limit * size)
    while True:
        wanted = min(wanted, wire.MAX_HITS)
        found = await answering.find(
            replace(node, limit=wanted), with_payload=True, with_vectors=()
        )
        groups = _grouped(found, steps, size)[:limit]
        whole = len(groups) == limit and all(len(one.keys) == size for one in groups)
        if whole or len(found.scores) < wanted or wanted == wire.MAX_HITS:
            return groups
        wanted *= _FACTOR


def _grouped(found: Found, steps: json_path.Steps, size: int) -> list[_Group]:
    """All groups, in the order of their best points."""
    groups: dict[tuple[type, int | str], _Group] = {}
    assert found.points.payloads is not None
    for key, score, payload in zip(
        found.points.keys.tolist(), found.scores, found.points.payloads, strict=True
    ):
        for value in _group_ids(orjson.loads(payload) if payload else {}, steps):
            group = groups.setdefault((type(value), value), _Group(value))
            if len(group.keys) < size:
                group.keys.append(key)
                group.scores.append(score)
    return list(groups.values())


def _group_ids(payload: Any, steps: json_path.Steps) -> list[int | str]:
    """Each once. As in Qdrant, a point with a value that is no id of a group is in none."""
    values: list[Any] = []
    for selected in json_path.values(payload, steps):
        values += selected if isinstance(selected, list) else [selected]
    if not all(type(value) in (int, str) for value in values):
        return []
    return list(dict.fromkeys(values))


def _with_wider_prefetches(node: Node, size: int) -> Node:
    """As in Qdrant, prefetches find so many times as much."""
    prefetch = tuple(
        replace(_with_wider_prefetches(one, size), limit=min(one.limit * size, wire.MAX_HITS))
        for one in node.prefetch
    )
    return replace(node, prefetch=prefetch)


def _distinct(groups: Iterator[list[bytes]]) -> Keys:
    return np.array(sorted({key for keys in groups for key in keys}), KEY_DTYPE)


async def _look_up(
    context: Context,
    asked: wire.WithLookup,
    groups: Sequence[dict[str, Any]],
    seconds: float,
) -> None:
    """Give each group the point of another collection whose id is the group's."""
    selector = Selector.of(asked.with_payload, default=True)
    keys = {}
    for group in groups:
        try:
            keys[group["id"]] = encode_id(parse_id(group["id"], "group"))
        except (InvalidInput, Malformed):
            continue  # No id of a point.

    async def act(collection: Collection) -> dict[bytes, dict[str, Any]]:
        points = await context.fanout.retrieve(
            collection,
            np.array(sorted(set(keys.values())), KEY_DTYPE),
            with_payload=selector.wanted,
            with_vectors=wanted_vectors(asked.with_vectors, collection.config),
            timeout=seconds,
        )
        rendered = render_points(points, collection.config, selector)
        return dict(zip(points.keys.tolist(), rendered, strict=True))

    records = await context.directory.act(asked.collection, act)
    for group in groups:
        key = keys.get(group["id"])
        if key in records:
            group["lookup"] = records[key]
