"""Conversions between Qdrant's gRPC protocol and its REST dialect, against the client's own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from google.protobuf.descriptor import EnumDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from hypothesis import HealthCheck, given, settings
from pydantic import BaseModel
from qdrant_client import grpc, models
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.grpc import (
    collections_pb2,
    collections_service_pb2,
    json_with_int_pb2,
    points_pb2,
    points_service_pb2,
    qdrant_common_pb2,
    qdrant_pb2,
    snapshots_service_pb2,
)

import router.grpc
from router.grpc import protocol
from router.grpc.from_rest import from_rest
from router.grpc.operations import OPERATIONS
from router.grpc.to_rest import to_rest
from shard.errors import InvalidInput
from tests.any_model import any_model, vectors

FILES: list[FileDescriptor] = [
    module.DESCRIPTOR
    for module in (
        collections_pb2,
        collections_service_pb2,
        json_with_int_pb2,
        points_pb2,
        points_service_pb2,
        qdrant_common_pb2,
        qdrant_pb2,
        snapshots_service_pb2,
    )
]
MESSAGES = {name: kind for file in FILES for name, kind in file.message_types_by_name.items()}

pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")
many = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


# The protocol


@pytest.mark.parametrize("name", MESSAGES)
def test_messages_are_those_of_the_client(name: str) -> None:
    assert described(protocol.message(name).DESCRIPTOR) == described(MESSAGES[name])


def test_services_are_those_of_the_client() -> None:
    services = {
        name: {
            (method.name, method.input_type.full_name, method.output_type.full_name)
            for method in service.methods
        }
        for file in FILES
        for name, service in file.services_by_name.items()
    }
    assert set(services) == set(protocol.SERVICES)
    for name, methods in services.items():
        assert {
            (method.name, method.input_type.full_name, method.output_type.full_name)
            for method in protocol.service(name).methods
        } == methods
    assert set(OPERATIONS) == {
        f"{name}.{method}" for name, methods in services.items() for method, *_ in methods
    }


def test_descriptors_are_those_of_the_files_beside_them(tmp_path: Path) -> None:
    directory = Path(router.grpc.__file__).parent
    files = sorted(map(str, (directory / "proto").glob("*.proto")))
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{directory / 'proto'}"]
    command += ["--include_imports", f"--descriptor_set_out={tmp_path / 'made'}", *files]
    subprocess.run(command, check=True)
    made, kept = (
        FileDescriptorSet.FromString(path.read_bytes())
        for path in (tmp_path / "made", directory / "qdrant.binpb")
    )
    assert made == kept


def described(message: Any) -> Any:
    """What is told on the wire, and of presence."""
    return {
        "fields": {
            field.number: (
                field.name,
                field.type,
                field.is_repeated,
                field.has_presence,
                field.containing_oneof and field.containing_oneof.name,
                field.message_type and field.message_type.full_name,
                field.enum_type and values(field.enum_type),
            )
            for field in message.fields
        },
        "nested": {nested.name: described(nested) for nested in message.nested_types},
    }


def values(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


# Requests


def asked(name: str, message: Any) -> Any:
    """The JSON that is made of the client's ``message``, as the application reads it."""
    body = to_rest(protocol.message(name).FromString(message.SerializeToString()))
    return orjson.loads(orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))


def dumped(model: Any) -> Any:
    """The JSON that the client sends by REST."""
    if isinstance(model, BaseModel):
        return model.model_dump(mode="json", exclude_none=True, by_alias=True)
    if isinstance(model, dict):
        return {key: dumped(value) for key, value in model.items()}
    return [dumped(one) for one in model] if isinstance(model, list) else model


def normal(body: Any, key: str = "") -> Any:
    """``body`` in one of the forms that REST has for the same, and with float32 numbers."""
    if key in ("payload", "defaults", "options", "metadata", "image", "object"):
        return body
    if isinstance(body, list):
        return [normal(one) for one in body]
    if isinstance(body, float):
        return float(np.float32(body))
    if not isinstance(body, dict):
        return time(body) if key in ("gt", "gte", "lt", "lte", "start_from") else body
    kept = {}
    for name, value in body.items():
        match name, value:
            case "must" | "must_not" | "should" | "context" | "prefetch", dict():
                value = [value]
            case "query", _ if key != "text" and not is_query(value):
                value = {"nearest": value}
            case "order_by", str():
                value = {"key": value}
            case "text", {"query": query, **others} if not others:
                value = query
            case "with_payload", {"include": included}:
                value = included
            case "shard_key" | "target" | "fallback", [only]:
                value = only
            case "stopwords", str():
                value = {"languages": [value]}
            case "scoring", True:
                value = {"type": "bm25"}
            case "scoring" | "prefix", False:
                continue
        if name in OMITTED and value in ([], {}):
            continue
        kept[name] = normal(value, name)
    return kept


def is_query(value: Any) -> bool:
    return isinstance(value, dict) and not value.keys() & {"indices", "model"}


OMITTED = {
    *("must", "must_not", "should", "interiors", "prefetch", "positive", "negative", "weights"),
    *("defaults", "options", "metadata", "payload", "languages", "custom", "placement"),
    *("multivector_config", "sparse_config"),
}


def time(value: Any) -> Any:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return value
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def same_request(name: str, message: Any, model: Any) -> None:
    assert normal(asked(name, message)) == normal(dumped(model))


@many
@given(any_model(models.QueryRequest))
def test_queries(request: Any) -> None:
    same_request("QueryPoints", RestToGrpc.convert_query_request(request, "c"), request)


@many
@given(any_model(models.Filter))
def test_filters(filter: Any) -> None:
    same_request("Filter", RestToGrpc.convert_filter(filter), filter)


@many
@given(any_model(models.Query))
def test_kinds_of_query(query: Any) -> None:
    same_request("Query", RestToGrpc.convert_query(query), query)


@many
@given(any_model(models.UpdateOperation, left_out=(models.PointsBatch,)))
def test_updates(operation: Any) -> None:
    same_request("PointsUpdateOperation", RestToGrpc.convert_update_operation(operation), operation)


@many
@given(any_model(models.UpdateCollection))
def test_changes_of_collections(change: Any) -> None:
    same_request("UpdateCollection", RestToGrpc.convert_update_collection(change, "c"), change)


@many
@given(any_model(models.PayloadSchemaParams))
def test_parameters_of_payload_indexes(params: Any) -> None:
    message = grpc.CreateFieldIndexCollection(
        field_name="f",
        field_type=grpc.FieldType.FieldTypeText,
        field_index_params=RestToGrpc.convert_payload_schema_params(params),
    )
    index = models.CreateFieldIndex(field_name="f", field_schema=params)
    same_request("CreateFieldIndexCollection", message, index)


@many
@given(any_model(models.VectorsConfig), any_model(dict[str, models.SparseVectorParams]))
def test_settings_of_vectors(dense: Any, sparse: Any) -> None:
    message = grpc.CreateCollection(
        vectors_config=RestToGrpc.convert_vectors_config(dense),
        sparse_vectors_config=RestToGrpc.convert_sparse_vector_config(sparse),
    )
    same_request("CreateCollection", message, {"vectors": dense, "sparse_vectors": sparse})


@many
@given(any_model(models.AliasOperations))
def test_aliases(operation: Any) -> None:
    message = grpc.ChangeAliases(actions=[RestToGrpc.convert_alias_operations(operation)])
    same_request("ChangeAliases", message, {"actions": [operation]})


def made(name: str, **fields: Any) -> Any:
    return protocol.message(name)(**fields)


def test_searches_from_before_there_were_queries() -> None:
    point = {"num": 1}
    dense, sparse = {"data": [0.5]}, {"data": [0.5], "indices": {"data": [7]}}
    context = [{"positive": {"id": point}, "negative": {"vector": dense}}]
    filter = {"must": [{"has_id": {"has_id": [point]}}]}
    shared = {"limit": 3, "filter": filter, "params": {"exact": True}}
    searches: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
        ("SearchPoints", {"vector": [0.5, 1]}, {"query": [0.5, 1]}),
        (
            "SearchPoints",
            {"vector": [0.5], "sparse_indices": {"data": [7]}, "vector_name": "s"},
            {"query": {"values": [0.5], "indices": [7]}, "using": "s"},
        ),
        (
            "SearchPointGroups",
            {"vector": [1], "group_by": "g", "group_size": 2},
            {"query": [1], "group_by": "g", "group_size": 2},
        ),
        (
            "RecommendPoints",
            {"positive": [point], "positive_vectors": [sparse], "strategy": "BestScore"},
            {
                "query": {
                    "recommend": {
                        "positive": [1, {"values": [0.5], "indices": [7]}],
                        "negative": [],
                        "strategy": "best_score",
                    }
                }
            },
        ),
        (
            "DiscoverPoints",
            {"target": {"single": {"vector": dense}}, "context": context},
            {
                "query": {
                    "discover": {"target": [0.5], "context": [{"positive": 1, "negative": [0.5]}]}
                }
            },
        ),
        (
            "DiscoverPoints",
            {"context": context},
            {"query": {"context": [{"positive": 1, "negative": [0.5]}]}},
        ),
    ]
    body = {"limit": 3, "filter": {"must": [{"has_id": [1]}]}, "params": {"exact": True}}
    for name, fields, expected in searches:
        assert asked(name, made(name, **fields, **shared)) == body | expected
    batch = made("SearchBatchPoints", search_points=[searches[0][1] | shared])
    assert asked("SearchBatchPoints", batch) == {"searches": [body | searches[0][2]]}


def test_deprecated_vectors() -> None:
    multi = made("Vector", data=[1, 2, 3, 4], vectors_count=2)
    assert asked("Vector", multi) == [[1, 2], [3, 4]]
    for count in (0, 3):
        with pytest.raises(InvalidInput, match=f"4 numbers are not {count} vectors"):
            asked("Vector", made("Vector", data=[1, 2, 3, 4], vectors_count=count))


def test_what_json_cannot_say_is_refused() -> None:
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("PointId", {}, "PointId: expected one of num, uuid"),
        ("Condition", {}, "Condition: expected one of field, is_empty"),
        ("Query", {}, "Query: expected one of nearest, recommend"),
        ("Query", {"fusion": 17}, "fusion: expected a value of Fusion, got 17"),
        ("Value", {"double_value": float("inf")}, "a payload cannot hold the number inf"),
        ("Range", {"gt": float("inf")}, "gt: expected a finite number, got inf"),
        ("SearchPoints", {"score_threshold": float("nan")}, "score_threshold: expected a finite"),
        ("StartFrom", {"float": float("nan")}, "float: expected a finite number, got nan"),
        ("StartFrom", {"timestamp": {"seconds": 10**15}}, "are no date"),
    ]
    for name, fields, expected in cases:
        with pytest.raises(InvalidInput, match=expected):
            asked(name, made(name, **fields))


def test_paths_lead_where_they_should() -> None:
    operation = OPERATIONS["Collections.Delete"]
    named = made("DeleteCollection", collection_name="{a} b?c")
    assert operation.path(named) == "/collections/{a} b?c"
    with pytest.raises(InvalidInput, match="collection_name: expected at least one character"):
        operation.path(made("DeleteCollection"))
    with pytest.raises(InvalidInput, match="cannot contain '/'"):
        operation.path(made("DeleteCollection", collection_name="a/snapshots/b"))


@given(vectors)
def test_numbers_of_vectors_stay_as_they_are(numbers: list[float]) -> None:
    found = asked("DenseVector", made("DenseVector", data=numbers))
    assert np.array_equal(np.array(found, np.float32), np.array(numbers, np.float32))


# Answers


ANSWERS: list[tuple[Any, Callable[[Any], Any], str]] = [
    (models.AliasDescription, RestToGrpc.convert_alias_description, "AliasDescription"),
    (
        models.CollectionClusterInfo,
        RestToGrpc.convert_collection_cluster_info,
        "CollectionClusterInfoResponse",
    ),
    (models.CollectionInfo, RestToGrpc.convert_collection_info, "CollectionInfo"),
    (models.CountResult, RestToGrpc.convert_count_result, "CountResult"),
    (models.FacetValueHit, RestToGrpc.convert_facet_value_hit, "FacetHit"),
    (models.GroupsResult, RestToGrpc.convert_groups_result, "GroupsResult"),
    (models.Record, RestToGrpc.convert_record, "RetrievedPoint"),
    (models.ScoredPoint, RestToGrpc.convert_scored_point, "ScoredPoint"),
    (
        models.SearchMatrixOffsetsResponse,
        RestToGrpc.convert_search_matrix_offsets,
        "SearchMatrixOffsets",
    ),
    (models.SearchMatrixPairsResponse, RestToGrpc.convert_search_matrix_pairs, "SearchMatrixPairs"),
    (models.SnapshotDescription, RestToGrpc.convert_snapshot_description, "SnapshotDescription"),
    (models.UpdateResult, RestToGrpc.convert_update_result, "UpdateResult"),
    (models.VersionInfo, RestToGrpc.convert_health_check_reply, "HealthCheckReply"),
]


@pytest.mark.parametrize(("model", "convert", "name"), ANSWERS, ids=lambda one: str(one)[-30:])
def test_answers(model: Any, convert: Callable[[Any], Any], name: str) -> None:
    @settings(many, max_examples=150)
    @given(any_model(model))
    def check(result: Any) -> None:
        expected = convert(result)
        body = orjson.loads(orjson.dumps(dumped(result)))
        answer = from_rest(protocol.message(name), body).SerializeToString()
        found = type(expected).FromString(answer)
        if isinstance(result, models.CollectionInfo):
            # The client says this twice, and leaves empty settings out.
            expected.config.optimizer_config.ClearField("deprecated_max_optimization_threads")
            for setting in ("multivector_config", "sparse_config"):
                if not getattr(getattr(found.config.strict_mode_config, setting), setting):
                    found.config.strict_mode_config.ClearField(setting)
            if not body["config"].get("strict_mode_config"):
                found.config.ClearField("strict_mode_config")
                expected.config.ClearField("strict_mode_config")
        assert found == expected

    check()
