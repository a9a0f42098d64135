"""Any of the client's REST models, as hypothesis makes them."""

from __future__ import annotations

import typing
from datetime import UTC, date, datetime
from enum import Enum
from functools import cache
from itertools import count
from types import NoneType, UnionType
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from pydantic import BaseModel
from qdrant_client import models

texts = st.text("ab é", max_size=3)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = st.lists(floats, min_size=1, max_size=3)
multivectors = st.lists(vectors, min_size=1, max_size=2)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | floats | texts,
    lambda below: st.lists(below, max_size=2) | st.dictionaries(texts, below, max_size=2),
    max_leaves=4,
)
payloads = st.dictionaries(texts, values, max_size=2)
times = st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))

_SIMPLE: dict[Any, st.SearchStrategy[Any]] = {
    NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(0, 2**31 - 1),
    float: floats,
    str: texts,
    UUID: st.uuids(),
    datetime: times,
    date: st.dates(date(1970, 1, 1), date(2100, 1, 1)),
    Any: values,
}
_ONE_OF: dict[type[BaseModel], tuple[str, ...]] = {
    models.FieldCondition: (
        *("match", "range", "geo_bounding_box", "geo_radius", "geo_polygon", "values_count"),
        *("is_empty", "is_null"),
    ),
    models.SetPayload: ("points", "filter"),
    models.DeletePayload: ("points", "filter"),
    models.DeleteVectors: ("points", "filter"),
}
"""Optional fields of which a model has one."""
_FIELDS: dict[tuple[type[BaseModel], str], st.SearchStrategy[Any]] = {
    (models.Document, "options"): st.none() | payloads,
    (models.Record, "payload"): payloads,
    (models.SnapshotDescription, "creation_time"): times.map(datetime.isoformat),
}
_NEVER_NONE = {(models.CollectionConfig, "wal_config"), (models.CollectionInfo, "config")}
_DEEPER = 4


def any_model(model: Any, *, left_out: tuple[type[BaseModel], ...] = ()) -> st.SearchStrategy[Any]:
    """Instances of a model, or of a union of them, without any of ``left_out``."""
    return _strategy(model, _DEEPER, left_out)


@cache
def _strategy(kind: Any, depth: int, left_out: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _strategy(arguments[0], depth, left_out)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in (typing.Union, UnionType):
        members = [member for member in arguments if member not in left_out]
        if depth <= 0:
            lowest = min(map(_height, members))
            members = [member for member in members if _height(member) == lowest]
        return st.one_of([_strategy(member, depth, left_out) for member in members])
    if origin is list:
        (item,) = arguments
        if typing.get_origin(item) is list:
            return multivectors
        if float in (item, *typing.get_args(item)):
            return vectors
        return st.lists(_strategy(item, depth, left_out), max_size=2) if depth > 0 else st.just([])
    if origin is dict:
        if depth <= 0:
            return st.just({})
        return st.dictionaries(texts, _strategy(arguments[1], depth, left_out), max_size=2)
    if issubclass(kind, Enum):
        return st.sampled_from(list(kind))
    return _instances(kind, depth, left_out)


def _instances(
    model: type[BaseModel], depth: int, left_out: tuple[Any, ...]
) -> st.SearchStrategy[BaseModel]:
    fields = {}
    for name, field in model.model_fields.items():
        chosen = _FIELDS.get((model, name))
        if chosen is None:
            annotation: Any = field.annotation
            chosen = _strategy(annotation, depth - 1, left_out)
        if (model, name) in _NEVER_NONE:
            chosen = chosen.filter(lambda value: value is not None)
        fields[field.alias or name] = chosen
    if model not in _ONE_OF:
        return st.fixed_dictionaries(fields).map(lambda given: model(**given))
    alternatives = _ONE_OF[model]
    required = {name: chosen for name, chosen in fields.items() if name not in alternatives}
    return st.one_of(
        [
            st.fixed_dictionaries(
                {**required, name: fields[name].filter(lambda value: value is not None)}
            ).map(lambda given: model(**given))
            for name in alternatives
            if depth > 0 or _height(model.model_fields[name].annotation) == 0
        ]
    )


def _height(kind: Any) -> int:
    """How many models an instance has within one another, at the least."""
    return next(height for height in count() if _fits(kind, height))


@cache
def _fits(kind: Any, height: int) -> bool:
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (typing.Union, UnionType):
        return any(_fits(argument, height) for argument in arguments)
    if arguments or not (isinstance(kind, type) and issubclass(kind, BaseModel)):
        return True
    required: list[Any] = [
        field.annotation for field in kind.model_fields.values() if field.is_required()
    ]
    return height > 0 and all(_fits(one, height - 1) for one in required)
