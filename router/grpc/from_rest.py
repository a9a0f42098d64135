"""Answers of Qdrant's REST dialect as those of its gRPC protocol.

A converter is made for each type of message, from its descriptor, when the first one comes. It
makes arguments for the message's class; protobuf builds the whole tree from them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from router.grpc import names
from router.grpc.protocol import short_name

Convert: TypeAlias = Callable[[Any], Any]


def from_rest(kind: type[Message], given: dict[str, Any]) -> Message:
    """The message of that kind that says what ``given`` does, out of a JSON answer.

    Keys that the message has no field for, and nulls, are passed over.
    """
    return kind(**_converter(cast(Descriptor, kind.DESCRIPTOR))(given))


class _Converter:
    """Makes arguments for messages of one type."""

    def learn(self, message: Descriptor) -> None:
        name = short_name(message)
        self._prepare = _PREPARE.get(name)
        self._choose = _CHOOSE.get(name)
        self._fields = {
            # One that is the whole has no key; it is chosen by its name.
            field.name if self._choose else names.key(message, field): (
                field.name,
                _field_converter(field),
            )
            for field in message.fields
        }

    def __call__(self, given: Any) -> dict[str, Any] | None:
        if self._choose is not None:
            given = {self._choose(given): given}
        elif self._prepare is not None and (given := self._prepare(given)) is None:
            return None
        arguments = {}
        for key, value in given.items():
            if value is not None and (known := self._fields.get(key)) is not None:
                name, convert = known
                if (argument := convert(value)) is not None:
                    arguments[name] = argument
        return arguments


_converters: dict[str, Convert] = {}


def _converter(message: Descriptor) -> Convert:
    name = short_name(message)
    found = _converters.get(name)
    if found is None:
        # Known before it is learnt: messages hold messages of their own type.
        found = _converters[name] = converter = _Converter()
        converter.learn(message)
    return found


def _field_converter(field: FieldDescriptor) -> Convert:
    if field.message_type is not None:
        if field.message_type.GetOptions().map_entry:
            one = _field_converter(field.message_type.fields_by_name["value"])
            return lambda given: {key: one(value) for key, value in given.items()}
        one = _converter(field.message_type)
        return (lambda given: [one(value) for value in given]) if field.is_repeated else one
    if field.enum_type is not None:
        numbers = {value: number for number, value in names.values(field.enum_type).items()}
        return numbers.__getitem__
    return lambda given: given


# Messages whose arguments are made otherwise.


def _value(given: Any) -> dict[str, Any]:
    """The arguments of the `Value` that is the JSON ``given``."""
    match given:
        case str():
            return {"string_value": given}
        case bool():
            return {"bool_value": given}
        case int() if -(1 << 63) <= given < 1 << 63:
            return {"integer_value": given}
        case int() | float():
            return {"double_value": given}
        case dict():
            fields = {key: _value(value) for key, value in given.items()}
            return {"struct_value": {"fields": fields}}
        case list():
            return {"list_value": {"values": [_value(value) for value in given]}}
    return {"null_value": 0}


def _time(given: str) -> dict[str, int]:
    time = datetime.fromisoformat(given)
    if time.tzinfo is None:
        time = time.replace(tzinfo=UTC)
    return {"seconds": int(time.timestamp()), "nanos": time.microsecond * 1_000}


_converters |= {"Value": _value, "google.protobuf.Timestamp": _time}

# Messages that JSON has for one of their fields: which it is.


def _by_type(**fields: str) -> Callable[[Any], str]:
    return lambda given: fields[type(given).__name__]


_CHOOSE: dict[str, Callable[[Any], str]] = {
    "BinaryQuantizationQueryEncoding": _by_type(str="setting"),
    "DenseVector": _by_type(list="data"),
    "FacetValue": _by_type(str="string_value", int="integer_value", bool="bool_value"),
    "GroupId": lambda given: (
        "string_value"
        if isinstance(given, str)
        else "unsigned_value"
        if given >= 0
        else "integer_value"
    ),
    "MaxOptimizationThreads": _by_type(int="value", str="setting"),
    "MultiDenseVector": _by_type(list="vectors"),
    "NamedVectorsOutput": _by_type(dict="vectors"),
    "OrderValue": _by_type(int="int", float="float"),
    "PayloadIndexParams": lambda given: f"{given['type']}_index_params",
    "PointId": _by_type(int="num", str="uuid"),
    "ShardKey": _by_type(int="number", str="keyword"),
    "SparseVectorConfig": _by_type(dict="map"),
    "StemmingAlgorithm": lambda given: "disabled" if given["type"] == "none" else "snowball",
    "StrictModeMultivectorConfig": _by_type(dict="multivector_config"),
    "StrictModeSparseConfig": _by_type(dict="sparse_config"),
    "VectorOutput": lambda given: (
        "sparse"
        if isinstance(given, dict)
        else "multi_dense"
        if given and isinstance(given[0], list)
        else "dense"
    ),
    "VectorParamsMap": _by_type(dict="map"),
    "VectorsConfig": lambda given: "params" if isinstance(given.get("size"), int) else "params_map",
    "VectorsOutput": _by_type(list="vector", dict="vectors"),
}

# Messages that JSON also has in short; None is one that is not there.

_PREPARE: dict[str, Callable[[Any], dict[str, Any] | None]] = {
    "KeywordPrefixParams": lambda given: {} if given else None,
    "OptimizerStatus": lambda given: {"ok": True} if given == "ok" else given,
    "StopwordsSet": lambda given: {"languages": [given]} if isinstance(given, str) else given,
    "TextScoringParams": lambda given: {"type": "bm25"} if given is True else given or None,
}
