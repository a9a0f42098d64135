"""Payload indexes, as Qdrant's clients declare them.

Filters need none (`shard.matching`): what is declared is checked, kept, and told in the
collection's info. Only how texts match follows from it (`router.payload_schema`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.exchange import Context, Writing, answer, read_body
from router.errors import Malformed
from router.payload_schema import SCHEMA, text_index
from shard import json_path
from shard.errors import InvalidInput
from shard.filter import Condition, Filter, PayloadField, TextIndex
from shard.text import StopwordsSet

routes = APIRouter(prefix="/collections/{name}/index", tags=["Indexes"])

MAX_INDEXES = 256
MAX_STOPWORDS = 16_384
"""Characters of those that are not a language's: they travel with filters."""

_create = wire.Decoder(wire.CreateFieldIndex)
_UPDATED = {"operation_id": 0, "status": "completed"}


@routes.put(
    "",
    openapi_extra=wire.body(_create),
    responses=wire.answers(wire.UpdateResult),
    summary="Create a payload index",
)
async def create(request: Request, name: str, options: Writing) -> Response:
    """Declare what a field of the payload holds."""
    body = _create(await read_body(request))
    json_path.parse(body.field_name, "field_name")
    schema = body.field_schema
    if schema is None:
        raise Malformed("field_schema: expected a type, such as `keyword`")
    params = None if isinstance(schema, str) else msgspec.to_builtins(schema)
    if isinstance(params, dict):
        _check_text(params)
    declared = {"data_type": schema if isinstance(schema, str) else schema.type, "params": params}

    def add(collection: Collection) -> Collection:
        fields = collection.settings.get(SCHEMA, {}) | {body.field_name: declared}
        if len(fields) > MAX_INDEXES:
            raise InvalidInput(f"field_name: expected at most {MAX_INDEXES} payload indexes")
        return _with_schema(collection, fields)

    await Context.of(request).directory.update(name, add)
    return answer(request, _UPDATED)


@routes.delete(
    "/{field}", responses=wire.answers(wire.UpdateResult), summary="Delete a payload index"
)
async def delete(request: Request, name: str, field: str, options: Writing) -> Response:
    """Forget what a field holds; one that is not declared is passed over."""

    def remove(collection: Collection) -> Collection:
        fields = collection.settings.get(SCHEMA, {})
        return _with_schema(collection, {one: fields[one] for one in fields if one != field})

    await Context.of(request).directory.update(name, remove)
    return answer(request, _UPDATED)


async def payload_schema(context: Context, collection: Collection) -> dict[str, Any]:
    """What is declared, with the number of points that have each field."""

    async def points(field: str) -> int:
        empty = Condition(is_empty=PayloadField(key=field))
        encoded = Filter(must_not=empty).check("filter")
        return await context.fanout.count(collection, filter=encoded, timeout=context.timeout)

    fields: dict[str, Any] = collection.settings.get(SCHEMA, {})
    counts = await asyncio.gather(*map(points, fields))
    return {
        field: {key: value for key, value in declared.items() if value is not None}
        | {"points": count}
        for (field, declared), count in zip(fields.items(), counts, strict=True)
    }


def _with_schema(collection: Collection, fields: dict[str, Any]) -> Collection:
    return msgspec.structs.replace(collection, settings=collection.settings | {SCHEMA: fields})


def _check_text(params: dict[str, Any]) -> None:
    """Raises InvalidInput for what an index of texts cannot have, and what no other one can."""
    if params["type"] != "text":
        for name in TextIndex.__struct_fields__:
            if name in params:
                raise InvalidInput(f"field_schema.{name}: expected only with the type `text`")
        return
    index = text_index(params)
    index.check("field_schema")
    custom = index.stopwords.custom if isinstance(index.stopwords, StopwordsSet) else None
    if sum(map(len, custom or ())) > MAX_STOPWORDS:
        raise InvalidInput(
            f"field_schema.stopwords.custom: expected at most {MAX_STOPWORDS} characters"
        )
