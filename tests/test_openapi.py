"""The service against its own OpenAPI page: what it says of requests and answers is so.

Requests are generated from the page. Those that it allows are never refused for their form, those
that it does not allow are never taken; no answer is a 5xx, has a status or a form that the page
does not name, or is long in coming.

Nothing here reaches beyond the service. There is no supervisor, so that jobs are told and listed,
but never begun.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TypeAlias

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from qdrant_client import models
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.checks import CheckContext
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import positive_data_acceptance

from shard.profiling import sample
from tests import filters
from tests.shoal_in_process import ShoalInProcess
from tests.test_query_differential import points, prefetches

Operation: TypeAlias = APIOperation[Any, Any, Any, Any]
AnyCase: TypeAlias = "Case[Any]"
EXAMPLES = {GenerationMode.POSITIVE: 60, GenerationMode.NEGATIVE: 25}
"""Requests to an operation. Those that are not allowed take far longer to generate."""
SECONDS = 10
"""The longest that an answer may take."""
NAME = "shapes"
PARAMS = {
    "vectors": {
        "": {"size": 1, "distance": "Dot"},
        "many": {
            "size": 1,
            "distance": "Cosine",
            "multivector_config": {"comparator": "max_sim"},
        },
    },
    "sparse_vectors": {"words": {"modifier": "idf"}},
}
POINTS = [
    {
        "id": number,
        "vector": {
            "": [number],
            "many": [[1], [number]],
            "words": {"indices": [number, 9], "values": [1, 2]},
        },
        "payload": {"n": number, "text": "one two"},
    }
    for number in range(4)
]
NEVER_DONE = {
    "GET /collections/{name}/snapshots/{snapshot}",
    "DELETE /collections/{name}/snapshots/{snapshot}",
    "PUT /collections/{name}/snapshots/recover",
}
"""There are no snapshots."""
SAID_ELSEWHERE = re.compile(r"exceeds 64-bit|`limit` \+ `offset`")
"""Of what is refused for its form, what a schema cannot say."""


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("shoal")
    with (
        pytest.MonkeyPatch.context() as patch,
        ShoalInProcess(directory, default_shards=2, timeout=SECONDS / 2) as shoal,
        httpx.Client(base_url=shoal.url, timeout=SECONDS) as client,
    ):
        # How long a request waits for a job.
        patch.setattr("router.api.snapshots._WAIT_SECONDS", 0)
        patch.setattr("router.api.snapshots._LOOK_SECONDS", 0)
        # How long a profile takes.
        patch.setattr("shard.profiling.sample", lambda _, *rest: sample(0.01, *rest))
        yield client


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_page_allows_is_well_formed(http: httpx.Client) -> None:
    page = narrowed(http.get("/openapi.json").json())
    failures = []
    for operation in operations(page):
        try:
            statuses = ask(http, operation, GenerationMode.POSITIVE)
            done = any(200 <= status < 300 for status in statuses)
            assert done or operation.label in NEVER_DONE, statuses
        except Exception as failure:
            failure.add_note(operation.label)
            failures.append(failure)
    if failures:
        raise ExceptionGroup("operations", failures)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_page_does_not_allow_is_refused(http: httpx.Client) -> None:
    failures = []
    for operation in operations(http.get("/openapi.json").json()):
        if not operation.body and not operation.query:
            continue  # It takes any string.
        try:
            ask(http, operation, GenerationMode.NEGATIVE)
        except Exception as failure:
            failure.add_note(operation.label)
            failures.append(failure)
    if failures:
        raise ExceptionGroup("operations", failures)


def operations(page: Any) -> Iterator[Operation]:
    for result in schemathesis.openapi.from_dict(page).get_all_operations():
        assert isinstance(result, Ok), result
        yield result.ok()


def ask(http: httpx.Client, operation: Operation, mode: GenerationMode) -> Counter[int]:
    """Checks the answers to generated requests; how many had which status."""
    statuses: Counter[int] = Counter()
    is_allowed = mode is GenerationMode.POSITIVE
    put_points(http)

    @settings(
        max_examples=EXAMPLES[mode],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy(mode), st.integers(0, 3))
    def check(case: AnyCase, lot: int) -> None:
        if lot < 3:
            lead_somewhere(case, http)
        if is_allowed:
            case.body = with_integers(case.body)
        response = case.call(base_url=str(http.base_url), timeout=SECONDS)
        statuses[response.status_code] += 1
        if operation.label == "PUT /collections/{name}" and response.status_code == 200:
            http.delete(response.request.path_url.partition("?")[0])
        case.validate_response(
            response,
            additional_checks=[form_is_right] if is_allowed else [],
            # It wants nothing of what is well-formed to be refused, whatever the collection is.
            excluded_checks=[positive_data_acceptance],
        )

    check()
    return statuses


def form_is_right(context: CheckContext, response: Response, case: AnyCase) -> None:
    """A check: a request is not refused for its form."""
    if response.status_code in (400, 422):
        message = response.json()["status"]["error"]
        assert message.startswith("Wrong input: ") or SAID_ELSEWHERE.search(message), message


def put_points(http: httpx.Client) -> None:
    """The collection, with all that it had at first."""
    if http.get(f"/collections/{NAME}").status_code == 404:
        http.put(f"/collections/{NAME}", json=PARAMS).raise_for_status()
    points = f"/collections/{NAME}/points?wait=true"
    http.put(points, json={"points": POINTS}).raise_for_status()


def lead_somewhere(case: AnyCase, http: httpx.Client) -> None:
    """Let the path be that of something that is there."""
    parameters, path = case.path_parameters, case.operation.path
    if case.operation.label != "PUT /collections/{name}" and "name" in parameters:
        parameters["name"] = NAME
    if "id" in parameters:
        parameters["id"] = "1"
    if "job_id" in parameters:
        jobs = http.get(path.replace("{name}", NAME).removesuffix("/{job_id}")).json()
        for job in jobs["result"]["jobs"]:
            parameters["job_id"] = job["id"]


def with_integers(value: Any) -> Any:
    """To JSON Schema 1.0 is an integer as well; to Shoal, and to Qdrant, it is not."""
    match value:
        case float() if value.is_integer() and abs(value) < 2**63:
            return int(value)
        case dict():
            return {name: with_integers(one) for name, one in value.items()}
        case list():
            return [with_integers(one) for one in value]
    return value


# What clients send


@pytest.fixture(scope="module")
def page(http: httpx.Client) -> Any:
    return http.get("/openapi.json").json()


def assert_allowed(page: Any, name: str, model: BaseModel) -> None:
    """By the schema of that name, with nulls for what is not given and without."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": page["components"]}
    validator = jsonschema_rs.validator_for(schema)
    for is_without in (True, False):
        sent = model.model_dump(mode="json", by_alias=True, exclude_none=is_without)
        assert validator.is_valid(sent), sent


checked = settings(max_examples=100, derandomize=True, database=None, deadline=None)


@checked
@given(filters.filters)
def test_filters_are_allowed(page: Any, given: models.Filter) -> None:
    assert_allowed(page, "Filter", given)


@checked
@given(prefetches(), points)
def test_queries_and_points_are_allowed(
    page: Any, query: models.Prefetch, point: models.PointStruct
) -> None:
    assert_allowed(page, "Prefetch", query)
    assert_allowed(page, "PointStruct", point)


# Requests that are about what the collection has, and not only well-formed

STRINGS = {
    **{key: ["n", "text"] for key in ("key", "keys", "field_name", "group_by", "order_by")},
    **{key: ["n", "a.b[].c"] for key in ("include", "exclude", "with_payload")},
    **{key: ["", "many", "words"] for key in ("with_vector", "with_vectors", "vector")},
    **{key: ["", "many", "words"] for key in ("using", "has_vector", "name")},
    **{key: [NAME] for key in ("collection", "collection_name")},
    **{key: ["2020-01-01T00:00:00Z"] for key in ("gt", "gte", "lt", "lte", "start_from")},
    **{key: ["/nonexistent/x", "s3://no-bucket/x"] for key in ("source", "destination")},
    "location": ["file:///nonexistent/file"],
    "model": ["Qdrant/bm25"],
}
"""What a string may be in a field of that name, and in a list there."""
MOST = {"limit": 50, "offset": 50, "sample": 50, "group_size": 5, "shard_number": 2, "size": 4}
"""The largest integer in a field of that name."""
ANSWERS = ("Alias", "AppTelemetry", "CollectionName", "ExportJob", "IngestJob")

_NUMBER = {"type": "number"}
_VECTOR = {"type": "array", "items": {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]}}
_ONE_NUMBER = {
    "type": "array",
    "items": {"type": "number", "minimum": -9, "maximum": 9},
    "minItems": 1,
    "maxItems": 1,
}
_BY_NAME = {
    "type": "object",
    "properties": {
        "": _ONE_NUMBER,
        "many": {"type": "array", "items": _ONE_NUMBER, "minItems": 1},
        "words": {"$ref": "#/components/schemas/SparseVector"},
    },
    "additionalProperties": False,
    "minProperties": 1,
}
_CORNERS = [{"lat": lat, "lon": lon} for lat, lon in ((0, 0), (0, 9), (9, 9), (0, 0))]


def narrowed(page: Any) -> Any:
    """A page that allows less: what it does, ``page`` does too."""
    page = copy.deepcopy(page)
    schemas = page["components"]["schemas"]
    for name in schemas.keys() - ANSWERS:
        _narrow(schemas[name])
    schemas["GeoLine"] = {"const": {"points": _CORNERS}}
    schemas["SparseVector"] = {"const": {"indices": [0, 9], "values": [1, 2.5]}}
    for name in ("PointStruct", "PointVectors"):
        schemas[name]["properties"]["vector"] = {"anyOf": [_ONE_NUMBER, _BY_NAME]}
    schemas["Batch"]["properties"] |= {
        "ids": {"const": [1, 2]},
        "vectors": {"const": [[1], [2]]},
        "payloads": {"type": "null"},
    }
    create = schemas["CreateCollection"]
    create["required"] = ["vectors"]
    create["properties"]["vectors"] = {"$ref": "#/components/schemas/VectorParams"}
    return page


def _narrow(node: Any) -> None:
    if isinstance(node, list):
        for one in node:
            _narrow(one)
    if not isinstance(node, dict):
        return
    if node == _VECTOR:
        node |= _ONE_NUMBER
    if node.get("maximum") == 2**64 - 1:  # An id.
        node["maximum"] = len(POINTS) - 1
    for name, field in node.get("properties", {}).items():
        for one in field.get("anyOf", [field]):
            strings = one["items"] if one.get("type") == "array" else one
            if name in STRINGS and strings.get("type") == "string":
                strings["enum"] = STRINGS[name]
            if name in MOST and one.get("type") == "integer":
                one["maximum"] = min(MOST[name], one.get("maximum", MOST[name]))
    for one in node.values():
        _narrow(one)
