"""Which request of the REST dialect each call of the gRPC protocol is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from typing import Any
from urllib.parse import urlencode

from google.protobuf.message import Message

from router.grpc.to_rest import to_rest
from shard.errors import InvalidInput


def _result(result: Any) -> dict[str, Any]:
    return {"result": result}


def _same(result: Any) -> dict[str, Any]:
    return result  # type: ignore[no-any-return]


def _as(field: str) -> Callable[[Any], dict[str, Any]]:
    return lambda result: {field: result}


def _page(result: Any) -> dict[str, Any]:
    return {"result": result["points"], "next_page_offset": result["next_page_offset"]}


def _points(result: Any) -> dict[str, Any]:
    return {"result": result["points"]}


def _batches(result: Any) -> dict[str, Any]:
    return {"result": [_points(one) for one in result]}


@dataclass(frozen=True)
class Operation:
    """One of the REST dialect, with the call's fields in ``{}`` in its path."""

    method: str
    _path: str
    answer: Callable[[Any], dict[str, Any]] = _result
    """The call's answer, as JSON, out of the operation's result."""

    def path(self, call: Message) -> str:
        """The path, decoded. Raises InvalidInput for a field that would lead elsewhere."""
        fields = [field for _, field, _, _ in Formatter().parse(self._path) if field is not None]
        given = {field: getattr(call, field) for field in fields}
        for field, value in given.items():
            if not value:
                raise InvalidInput(f"{field}: expected at least one character")
            if "/" in value:
                raise InvalidInput(f"{field}: {value!r:.200} cannot contain '/'")
        return self._path.format(**given)


_COLLECTION = "/collections/{collection_name}"
_POINTS = f"{_COLLECTION}/points"
_QUERY = Operation("POST", f"{_POINTS}/query", _points)
_QUERY_BATCH = Operation("POST", f"{_POINTS}/query/batch", _batches)
_QUERY_GROUPS = Operation("POST", f"{_POINTS}/query/groups")

OPERATIONS: Mapping[str, Operation] = {
    "Qdrant.HealthCheck": Operation("GET", "/", _same),
    "Collections.Get": Operation("GET", _COLLECTION),
    "Collections.List": Operation("GET", "/collections", _same),
    "Collections.Create": Operation("PUT", _COLLECTION),
    "Collections.Update": Operation("PATCH", _COLLECTION),
    "Collections.Delete": Operation("DELETE", _COLLECTION),
    "Collections.UpdateAliases": Operation("POST", "/collections/aliases"),
    "Collections.ListCollectionAliases": Operation("GET", f"{_COLLECTION}/aliases", _same),
    "Collections.ListAliases": Operation("GET", "/aliases", _same),
    "Collections.CollectionClusterInfo": Operation("GET", f"{_COLLECTION}/cluster", _same),
    "Collections.CollectionExists": Operation("GET", f"{_COLLECTION}/exists"),
    "Collections.UpdateCollectionClusterSetup": Operation("POST", f"{_COLLECTION}/cluster"),
    "Collections.CreateShardKey": Operation("PUT", f"{_COLLECTION}/shards"),
    "Collections.DeleteShardKey": Operation("POST", f"{_COLLECTION}/shards/delete"),
    "Collections.ListShardKeys": Operation("GET", f"{_COLLECTION}/shards", _same),
    "Points.Upsert": Operation("PUT", _POINTS),
    "Points.Delete": Operation("POST", f"{_POINTS}/delete"),
    "Points.Get": Operation("POST", _POINTS),
    "Points.UpdateVectors": Operation("PUT", f"{_POINTS}/vectors"),
    "Points.DeleteVectors": Operation("POST", f"{_POINTS}/vectors/delete"),
    "Points.SetPayload": Operation("POST", f"{_POINTS}/payload"),
    "Points.OverwritePayload": Operation("PUT", f"{_POINTS}/payload"),
    "Points.DeletePayload": Operation("POST", f"{_POINTS}/payload/delete"),
    "Points.ClearPayload": Operation("POST", f"{_POINTS}/payload/clear"),
    "Points.CreateFieldIndex": Operation("PUT", f"{_COLLECTION}/index"),
    "Points.DeleteFieldIndex": Operation("DELETE", f"{_COLLECTION}/index/{{field_name}}"),
    "Points.CreateVectorName": Operation("PUT", f"{_COLLECTION}/vectors/{{vector_name}}"),
    "Points.DeleteVectorName": Operation("DELETE", f"{_COLLECTION}/vectors/{{vector_name}}"),
    "Points.Search": _QUERY,
    "Points.SearchBatch": _QUERY_BATCH,
    "Points.SearchGroups": _QUERY_GROUPS,
    "Points.Scroll": Operation("POST", f"{_POINTS}/scroll", _page),
    "Points.Recommend": _QUERY,
    "Points.RecommendBatch": _QUERY_BATCH,
    "Points.RecommendGroups": _QUERY_GROUPS,
    "Points.Discover": _QUERY,
    "Points.DiscoverBatch": _QUERY_BATCH,
    "Points.Count": Operation("POST", f"{_POINTS}/count"),
    "Points.UpdateBatch": Operation("POST", f"{_POINTS}/batch"),
    "Points.Query": _QUERY,
    "Points.QueryBatch": _QUERY_BATCH,
    "Points.QueryGroups": _QUERY_GROUPS,
    "Points.Facet": Operation("POST", f"{_COLLECTION}/facet", _same),
    "Points.SearchMatrixPairs": Operation("POST", f"{_POINTS}/search/matrix/pairs"),
    "Points.SearchMatrixOffsets": Operation("POST", f"{_POINTS}/search/matrix/offsets"),
    "Snapshots.Create": Operation("POST", f"{_COLLECTION}/snapshots", _as("snapshot_description")),
    "Snapshots.List": Operation("GET", f"{_COLLECTION}/snapshots", _as("snapshot_descriptions")),
    "Snapshots.Delete": Operation("DELETE", f"{_COLLECTION}/snapshots/{{snapshot_name}}"),
    "Snapshots.CreateFull": Operation("POST", "/snapshots", _as("snapshot_description")),
    "Snapshots.ListFull": Operation("GET", "/snapshots", _as("snapshot_descriptions")),
    "Snapshots.DeleteFull": Operation("DELETE", "/snapshots/{snapshot_name}"),
}
"""By service and method."""


def query_string(call: Message) -> bytes:
    """What ``call`` says that REST has as query parameters. Raises InvalidInput."""
    given = {}
    for field, value in call.ListFields():
        match field.name:
            case "wait":
                given["wait"] = "true" if value else "false"
            case "timeout":
                given["timeout"] = value
            case "ordering":
                given["ordering"] = to_rest(value)
            case "read_consistency":
                given["consistency"] = to_rest(value)
    return urlencode(given).encode()
