"""The OpenAPI page: schemas of bodies, which msgspec decodes, and what their types cannot say."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec
from fastapi import FastAPI

from router.api import wire

Schema: TypeAlias = dict[str, Any]

_ONE_OF_ALL = ("AliasAction", "Match", "PayloadSelector", "QuantizationConfig", "UpdateOperation")
"""Objects that have one of their fields, and no more."""
_ONE_OF = {
    "CreateFieldIndex": ("field_schema",),
    "DeletePayload": ("points", "filter"),
    "DeleteVectors": ("points", "filter"),
    "PointsSelector": ("points", "filter"),
    "SetPayload": ("points", "filter"),
    "Upsert": ("points", "batch"),
}
"""Objects that have one of these fields, beside others."""
_GROUPS = ("must", "should", "must_not", "min_should")
_OF_A_KEY = ("match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count")
_PRESENCE = ("is_empty", "is_null")


def install(app: FastAPI) -> None:
    """Let the page of ``app`` have the schemas that its routes refer to."""
    generate = app.openapi

    def openapi() -> Schema:
        page = generate()
        page.setdefault("components", {}).setdefault("schemas", {}).update(_components())
        return page

    app.openapi = openapi  # type: ignore[method-assign]


def _components() -> dict[str, Schema]:
    schemas = wire.components()
    for name in _ONE_OF_ALL:
        schemas[name] = _with_one_of(schemas[name], schemas[name]["properties"])
    for name, fields in _ONE_OF.items():
        schemas[name] = _with_one_of(schemas[name], fields)
    condition, expression = schemas["Condition"], schemas["Expression"]
    operations = sorted(expression["properties"].keys() - condition["properties"])
    schemas["Condition"] = _condition(condition)
    schemas["Expression"] = _either(
        expression, [_ref("Condition"), *(_closed(expression, [name]) for name in operations)]
    )
    return schemas


def _with_one_of(schema: Schema, fields: Iterable[str]) -> Schema:
    fields = list(fields)
    others = schema["properties"].keys() - fields
    return _either(schema, [_closed(schema, [name], others) for name in fields])


def _condition(schema: Schema) -> Schema:
    fields = schema["properties"]
    fields["has_id"] = msgspec.json.schema(list[wire.RawId])
    with_key = {name: {"type": "boolean"} for name in _PRESENCE}
    alone = dict.fromkeys(_PRESENCE, _ref("PayloadField"))
    return _either(
        schema,
        [
            *(_closed(schema, ["key", name]) for name in _OF_A_KEY),
            *(_closed(schema, ["key", name], changed=with_key) for name in _PRESENCE),
            *(_closed(schema, [name], changed=alone) for name in _PRESENCE),
            *(_closed(schema, [name]) for name in ("has_id", "has_vector", "nested")),
            _closed(schema, [], _GROUPS),
        ],
    )


def _either(schema: Schema, alternatives: list[Schema]) -> Schema:
    told = {name: schema[name] for name in ("title", "description") if name in schema}
    return told | {"anyOf": alternatives}


def _closed(
    schema: Schema, wanted: list[str], free: Iterable[str] = (), changed: Schema | None = None
) -> Schema:
    """The object with the ``wanted`` fields, and the ``free`` ones as they are; no others, which
    may be null if they may be so at all."""
    fields = schema["properties"] | (changed or {})
    properties = {}
    for name, field in fields.items():
        parts = field.get("anyOf", [field])
        if name in free:
            properties[name] = field
        elif name in wanted:
            parts = [one for one in parts if one != _NULL]
            properties[name] = parts[0] if len(parts) == 1 else {"anyOf": parts}
        elif _NULL in parts:
            properties[name] = _NULL
    return {
        "type": "object",
        "properties": properties,
        "required": [*schema["required"], *wanted],
        "additionalProperties": False,
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_NULL: Schema = {"type": "null"}
