"""Requests of Qdrant's gRPC protocol as bodies of its REST dialect.

A converter is made for each type of message, from its descriptor, when the first one comes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias, cast

import numpy as np
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from router.grpc import names
from router.grpc.protocol import short_name
from shard.errors import InvalidInput

Convert: TypeAlias = Callable[[Any], Any]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_rest(message: Message) -> Any:
    """``message`` as values for orjson, with NumPy arrays (n,) float32 for lists of floats.

    Raises InvalidInput for what JSON cannot say: a ``oneof`` that must be set and is not, a value
    that the enumeration does not have, a number that is not finite.
    """
    return _converter(cast(Descriptor, message.DESCRIPTOR))(message)


class _Object:
    """Converts messages of one type to JSON objects."""

    def __init__(self) -> None:
        self._fields: dict[int, tuple[str, Convert]] = {}
        """Key and converter of fields by number."""
        self._merged: int | None = None
        self._always: dict[str, Any] = {}
        """What fields are that protobuf does not send when they have their default."""

    def learn(self, message: Descriptor) -> None:
        self._finish = _FINISH.get(short_name(message))
        for field in message.fields:
            key = names.key(message, field)
            if key is None:
                continue
            convert = _field_converter(field)
            self._fields[field.number] = key, convert
            if names.is_merged(message, field):
                self._merged = field.number
            elif field.is_repeated:
                if field.name not in names.OMITTED_WHEN_EMPTY:
                    self._always[key] = {} if _is_map(field) else []
            elif not field.has_presence and (default := convert(field.default_value)) is not None:
                self._always[key] = default

    def __call__(self, message: Message) -> Any:
        body = self._always.copy()
        for field, value in message.ListFields():
            known = self._fields.get(field.number)
            if known is None:
                continue
            key, convert = known
            converted = convert(value)
            if field.number == self._merged:
                body |= converted
            elif converted is not None:
                body[key] = converted
        return body if self._finish is None else self._finish(body)


class _Choice:
    """Converts messages of one type that are one of their fields."""

    def learn(self, message: Descriptor) -> None:
        self._name = message.name
        self._oneof = message.oneofs[0].name
        whole = names.WHOLE.get(short_name(message), frozenset())
        self._fields = {
            field.name: (
                None if field.name in whole else names.key(message, field),
                _field_converter(field),
            )
            for field in message.fields
        }

    def __call__(self, message: Message) -> Any:
        chosen = message.WhichOneof(self._oneof)
        if chosen is None:
            raise InvalidInput(f"{self._name}: expected one of {', '.join(self._fields)}")
        key, convert = self._fields[chosen]
        converted = convert(getattr(message, chosen))
        return converted if key is None else {key: converted}


def _only(field: FieldDescriptor) -> Convert:
    name, convert = field.name, _field_converter(field)
    return lambda message: convert(getattr(message, name))


_converters: dict[str, Convert] = {}


def _converter(message: Descriptor) -> Convert:
    name = short_name(message)
    found = _converters.get(name)
    if found is None:
        if name in names.ONLY:
            found = _converters[name] = _only(message.fields_by_name[names.ONLY[name]])
        else:
            converter = _Choice() if _is_choice(message) else _Object()
            # Known before it is learnt: messages hold messages of their own type.
            found = _converters[name] = converter
            converter.learn(message)
    return found


def _is_choice(message: Descriptor) -> bool:
    # That of a field that may be missing begins with an underscore.
    real = [oneof for oneof in message.oneofs if not oneof.name.startswith("_")]
    return len(real) == 1 and len(real[0].fields) == len(message.fields)


def _field_converter(field: FieldDescriptor) -> Convert:
    if field.message_type is not None:
        if _is_map(field):
            one = _field_converter(field.message_type.fields_by_name["value"])
            return lambda given: {key: one(given[key]) for key in given}
        one = _converter(field.message_type)
        return (lambda given: [one(value) for value in given]) if field.is_repeated else one
    if field.enum_type is not None:
        return _enum_converter(field.name, field.enum_type)
    if field.is_repeated:
        # Written by orjson in a third of the digits that a list of Python's floats has.
        return _floats if field.type == FieldDescriptor.TYPE_FLOAT else list
    if field.type in (FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE):
        return _finite(field.name)
    return _same


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _same(value: Any) -> Any:
    return value


def _finite(field: str) -> Convert:
    def convert(value: float) -> float:
        # Written as null, it would be as if it had not been given: a bound that bounds nothing.
        if not math.isfinite(value):
            raise InvalidInput(f"{field}: expected a finite number, got {value}")
        return value

    return convert


def _floats(values: Any) -> Any:
    return np.array(values, np.float32)


def _enum_converter(field: str, enum: EnumDescriptor) -> Convert:
    known = names.values(enum)

    def convert(number: int) -> str | None:
        try:
            return known[number]
        except KeyError:
            raise InvalidInput(f"{field}: expected a value of {enum.name}, got {number}") from None

    return convert


# Messages whose JSON is made otherwise.


def _value(value: Any) -> Any:
    """A `Value` as the JSON that it is."""
    match value.WhichOneof("kind"):
        case "string_value":
            return value.string_value
        case "integer_value":
            return value.integer_value
        case "double_value":
            if not math.isfinite(value.double_value):
                raise InvalidInput(f"a payload cannot hold the number {value.double_value}")
            return value.double_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            fields = value.struct_value.fields
            return {key: _value(fields[key]) for key in fields}
        case "list_value":
            return [_value(one) for one in value.list_value.values]
    return None


def _time(time: Any) -> str:
    try:
        return (
            _EPOCH + timedelta(seconds=time.seconds, microseconds=time.nanos // 1_000)
        ).isoformat()
    except OverflowError:
        raise InvalidInput(f"{time.seconds} seconds since 1970 are no date") from None


_converters |= {"Value": _value, "google.protobuf.Timestamp": _time}

# Messages whose JSON is made of that of their fields.


def _shard_keys(body: dict[str, Any]) -> Any:
    keys = body["shard_keys"]
    if "fallback" in body:
        return {"target": keys[0] if len(keys) == 1 else keys, "fallback": body["fallback"]}
    return keys[0] if len(keys) == 1 else keys


def _text_query(body: dict[str, Any]) -> Any:
    if "bm25" not in body:
        return body["query"]
    return {"query": body["query"], "scoring": {"bm25": body["bm25"]}}


def _vector(body: dict[str, Any]) -> Any:
    data = body.pop("data")
    for kind in ("dense", "sparse", "multi_dense", "document", "image", "object"):
        if kind in body:
            return body[kind]
    # As clients sent it before there were fields for every kind.
    if "indices" in body:
        return {"indices": body["indices"], "values": data}
    if (count := body.get("vectors_count")) is None:
        return data
    if not count or len(data) % count:
        raise InvalidInput(f"vectors_count: {len(data)} numbers are not {count} vectors")
    return list(np.split(np.asarray(data, np.float32), count))


def _nearest(body: dict[str, Any]) -> Any:
    vector, indices = body.pop("vector"), body.pop("sparse_indices", None)
    body["query"] = vector if indices is None else {"indices": indices, "values": vector}
    return body


def _recommend(body: dict[str, Any]) -> Any:
    recommend = {
        side: [*body.pop(side, ()), *body.pop(f"{side}_vectors")]
        for side in ("positive", "negative")
    }
    if "strategy" in body:
        recommend["strategy"] = body.pop("strategy")
    body["query"] = {"recommend": recommend}
    return body


def _discover(body: dict[str, Any]) -> Any:
    context = body.pop("context")
    if "target" in body:
        body["query"] = {"discover": {"target": body.pop("target"), "context": context}}
    else:
        body["query"] = {"context": context}
    return body


_FINISH: dict[str, Callable[[dict[str, Any]], Any]] = {
    "Disabled": lambda body: "Disabled",
    "DisabledStemmer": lambda body: {"type": "none"},
    "IdfParams": lambda body: body or "global",
    "KeywordPrefixParams": lambda body: True,
    "ShardKeySelector": _shard_keys,
    "SnowballParams": lambda body: {"type": "snowball", **body},
    "TextQuery": _text_query,
    "Vector": _vector,
    # Searches of their own kind, which REST has as kinds of query.
    "SearchPoints": _nearest,
    "SearchPointGroups": _nearest,
    "RecommendPoints": _recommend,
    "RecommendPointGroups": _recommend,
    "DiscoverPoints": _discover,
}


def _typed(kind: str) -> Callable[[dict[str, Any]], Any]:
    return lambda body: {"type": kind, **body}


_FINISH |= {
    f"{kind.capitalize()}IndexParams": _typed(kind)
    for kind in ("keyword", "integer", "float", "geo", "text", "bool", "datetime", "uuid")
}
