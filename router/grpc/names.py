"""Where the names of Qdrant's gRPC protocol are not those of its REST dialect.

What is not listed here has the same name in both: the fields of a message are those of a JSON
object, a field of a ``oneof`` is there when it is set, and values of an enumeration are in snake
case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from router.grpc.protocol import short_name

ONLY: Mapping[str, str] = {
    "ContextInput": "pairs",
    "DenseVector": "data",
    "MultiDenseVector": "vectors",
    "NamedVectors": "vectors",
    "PayloadExcludeSelector": "fields",
    "PayloadIncludeSelector": "fields",
    "PointsIdsList": "ids",
    "RepeatedIntegers": "integers",
    "RepeatedStrings": "strings",
    "SparseIndices": "data",
    "SparseVectorConfig": "map",
    "StrictModeMultivectorConfig": "multivector_config",
    "StrictModeSparseConfig": "sparse_config",
    "VectorParamsDiffMap": "map",
    "VectorParamsMap": "map",
    "VectorsSelector": "names",
    "WriteOrdering": "type",
}
"""Messages of requests that JSON has as the value of their only field."""

WHOLE: Mapping[str, frozenset[str]] = {
    message: frozenset(fields.split())
    for message, fields in {
        "BinaryQuantizationQueryEncoding": "setting",
        "Condition": "field filter has_id has_vector",
        "Expression": "constant variable condition mult sum max min",
        "MaxOptimizationThreads": "value setting",
        "PayloadIndexParams": "keyword_index_params integer_index_params float_index_params "
        "geo_index_params text_index_params bool_index_params datetime_index_params "
        "uuid_index_params",
        "PointId": "num uuid",
        "QuantizationConfigDiff": "disabled",
        "Query": "formula nearest_with_mmr",
        "ReadConsistency": "type factor",
        "ShardKey": "keyword number",
        "StartFrom": "float integer timestamp datetime",
        "StemmingAlgorithm": "snowball disabled",
        "TargetVector": "single",
        "VectorExample": "id vector",
        "VectorInput": "id dense sparse multi_dense document image object",
        "Vectors": "vector vectors",
        "VectorsConfig": "params params_map",
        "VectorsConfigDiff": "params_map",
        "WithPayloadSelector": "enable include",
        "WithVectorsSelector": "enable include",
    }.items()
}
"""Of messages of requests that are one of their fields, those that JSON has as they are: the id 7,
and not ``{"num": 7}``."""

_ELSEWHERE = {"collection_name", "wait", "ordering", "timeout", "read_consistency"}
"""Fields that are in the path or among the query parameters, and not in the body."""

_KEYS = {
    "shard_key_selector": "shard_key",
    "sparse_vectors_config": "sparse_vectors",
    "vectors": "vector",
    "vectors_config": "vectors",
    "with_vectors": "with_vector",
}

_KEYS_OF: Mapping[str, Mapping[str, str | None]] = {
    "AliasDescription": {"collection_name": "collection_name"},
    "CreateAlias": {"collection_name": "collection_name"},
    "CreateFieldIndexCollection": {
        "field_type": "field_schema",
        "field_index_params": "field_schema",
    },
    "CreateVectorNameRequest": {
        "vector_name": None,
        "dense_config": "dense",
        "sparse_config": "sparse",
    },
    "DiscoverBatchPoints": {"discover_points": "searches"},
    "FieldCondition": {"datetime_range": "range"},
    "Formula": {"expression": "formula"},
    "LookupLocation": {"collection_name": "collection", "vector_name": "vector"},
    "Match": {
        "keyword": "value",
        "integer": "value",
        "boolean": "value",
        "keywords": "any",
        "integers": "any",
        "except_keywords": "except",
        "except_integers": "except",
    },
    "OptimizersConfigDiff": {"deprecated_max_optimization_threads": "max_optimization_threads"},
    "PointsUpdateOperation": {
        "delete_points": "delete",
        "delete_deprecated": "delete",
        "clear_payload_deprecated": "clear_payload",
    },
    "QuantizationConfig": {"turboquant": "turbo"},
    "QuantizationConfigDiff": {"turboquant": "turbo"},
    "QueryBatchPoints": {"query_points": "searches"},
    "RecommendBatchPoints": {"recommend_points": "searches"},
    "SearchBatchPoints": {"search_points": "searches"},
    "SearchPointGroups": {"vector_name": "using"},
    "SearchPoints": {"vector_name": "using"},
    "UpdateCollectionClusterSetupRequest": {
        "create_shard_key": "create_sharding_key",
        "delete_shard_key": "drop_sharding_key",
    },
    "VectorsConfigDiff": {"params": ""},
    "WithLookup": {"with_vectors": "with_vectors"},
}

OMITTED_WHEN_EMPTY = {
    *("must", "must_not", "should", "interiors"),
    *("prefetch", "positive", "negative", "weights", "defaults", "options"),
    *("metadata", "languages", "custom", "placement"),
}
"""Lists and maps that protobuf cannot leave out, and JSON does."""


def key(message: Descriptor, field: FieldDescriptor) -> str | None:
    """The key in JSON of a message's field, None where it is not part of the body."""
    own = _KEYS_OF.get(short_name(message), {})
    if field.name in own:
        return own[field.name]
    return None if field.name in _ELSEWHERE else _KEYS.get(field.name, field.name)


def is_merged(message: Descriptor, field: FieldDescriptor) -> bool:
    """Whether the fields of what a field holds are those of its message in JSON."""
    if field.message_type is None:
        return False
    if field.message_type.name == "PointsSelector":
        return field.name in ("points", "points_selector")
    return message.name in ("CreateShardKeyRequest", "DeleteShardKeyRequest")


def values(enum: EnumDescriptor) -> dict[int, str | None]:
    """The values in JSON of an enumeration, by number; None is one that says nothing."""
    return {value.number: _value(enum, value.name) for value in enum.values}


def _value(enum: EnumDescriptor, name: str) -> str | None:
    name = name.removeprefix(enum.name)
    if name.startswith("Unknown") or (enum.name, name) == ("Datatype", "Default"):
        return None
    if enum.name in ("Distance", "ReplicaState"):
        return name
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
