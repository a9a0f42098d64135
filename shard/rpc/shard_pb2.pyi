from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Call(_message.Message):
    __slots__ = ("number", "method", "request", "timeout", "request_ids", "traceparents")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    METHOD_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENTS_FIELD_NUMBER: _ClassVar[int]
    number: int
    method: str
    request: bytes
    timeout: float
    request_ids: _containers.RepeatedScalarFieldContainer[str]
    traceparents: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, number: _Optional[int] = ..., method: _Optional[str] = ..., request: _Optional[bytes] = ..., timeout: _Optional[float] = ..., request_ids: _Optional[_Iterable[str]] = ..., traceparents: _Optional[_Iterable[str]] = ...) -> None: ...

class Answer(_message.Message):
    __slots__ = ("number", "status", "reply", "details", "cost")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REPLY_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    number: int
    status: int
    reply: bytes
    details: str
    cost: bytes
    def __init__(self, number: _Optional[int] = ..., status: _Optional[int] = ..., reply: _Optional[bytes] = ..., details: _Optional[str] = ..., cost: _Optional[bytes] = ...) -> None: ...

class Target(_message.Message):
    __slots__ = ("collection_id", "shards")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    shards: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, collection_id: _Optional[str] = ..., shards: _Optional[_Iterable[int]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("name", "dimension", "values", "lengths", "indices", "present")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIMENSION_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    PRESENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    dimension: int
    values: bytes
    lengths: bytes
    indices: bytes
    present: bytes
    def __init__(self, name: _Optional[str] = ..., dimension: _Optional[int] = ..., values: _Optional[bytes] = ..., lengths: _Optional[bytes] = ..., indices: _Optional[bytes] = ..., present: _Optional[bytes] = ...) -> None: ...

class Upsert(_message.Message):
    __slots__ = ("keys", "vectors", "payloads")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    vectors: _containers.RepeatedCompositeFieldContainer[Column]
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, keys: _Optional[bytes] = ..., vectors: _Optional[_Iterable[_Union[Column, _Mapping]]] = ..., payloads: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Delete(_message.Message):
    __slots__ = ("keys",)
    KEYS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    def __init__(self, keys: _Optional[bytes] = ...) -> None: ...

class Edit(_message.Message):
    __slots__ = ("edit", "filter", "keys", "given")
    EDIT_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    edit: bytes
    filter: bytes
    keys: bytes
    given: Upsert
    def __init__(self, edit: _Optional[bytes] = ..., filter: _Optional[bytes] = ..., keys: _Optional[bytes] = ..., given: _Optional[_Union[Upsert, _Mapping]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("upsert", "delete", "edit")
    UPSERT_FIELD_NUMBER: _ClassVar[int]
    DELETE_FIELD_NUMBER: _ClassVar[int]
    EDIT_FIELD_NUMBER: _ClassVar[int]
    upsert: Upsert
    delete: Delete
    edit: Edit
    def __init__(self, upsert: _Optional[_Union[Upsert, _Mapping]] = ..., delete: _Optional[_Union[Delete, _Mapping]] = ..., edit: _Optional[_Union[Edit, _Mapping]] = ...) -> None: ...

class ShardWrite(_message.Message):
    __slots__ = ("shard", "operations")
    SHARD_FIELD_NUMBER: _ClassVar[int]
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    shard: int
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    def __init__(self, shard: _Optional[int] = ..., operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ...) -> None: ...

class WriteRequest(_message.Message):
    __slots__ = ("collection_id", "writes", "wait")
    COLLECTION_ID_FIELD_NUMBER: _ClassVar[int]
    WRITES_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    collection_id: str
    writes: _containers.RepeatedCompositeFieldContainer[ShardWrite]
    wait: bool
    def __init__(self, collection_id: _Optional[str] = ..., writes: _Optional[_Iterable[_Union[ShardWrite, _Mapping]]] = ..., wait: _Optional[bool] = ...) -> None: ...

class WriteReply(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("target", "queries", "limit", "exact", "nprobe", "oversampling", "score_threshold", "with_payload", "with_vectors", "filters", "filter_queries", "among", "examples")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    NPROBE_FIELD_NUMBER: _ClassVar[int]
    OVERSAMPLING_FIELD_NUMBER: _ClassVar[int]
    SCORE_THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    WITH_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    FILTER_QUERIES_FIELD_NUMBER: _ClassVar[int]
    AMONG_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    target: Target
    queries: Column
    limit: int
    exact: bool
    nprobe: int
    oversampling: float
    score_threshold: float
    with_payload: bool
    with_vectors: _containers.RepeatedScalarFieldContainer[str]
    filters: _containers.RepeatedScalarFieldContainer[bytes]
    filter_queries: _containers.RepeatedScalarFieldContainer[int]
    among: bytes
    examples: bytes
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., queries: _Optional[_Union[Column, _Mapping]] = ..., limit: _Optional[int] = ..., exact: _Optional[bool] = ..., nprobe: _Optional[int] = ..., oversampling: _Optional[float] = ..., score_threshold: _Optional[float] = ..., with_payload: _Optional[bool] = ..., with_vectors: _Optional[_Iterable[str]] = ..., filters: _Optional[_Iterable[bytes]] = ..., filter_queries: _Optional[_Iterable[int]] = ..., among: _Optional[bytes] = ..., examples: _Optional[bytes] = ...) -> None: ...

class SearchReply(_message.Message):
    __slots__ = ("lengths", "scores", "points")
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    lengths: _containers.RepeatedScalarFieldContainer[int]
    scores: bytes
    points: PointsReply
    def __init__(self, lengths: _Optional[_Iterable[int]] = ..., scores: _Optional[bytes] = ..., points: _Optional[_Union[PointsReply, _Mapping]] = ...) -> None: ...

class RetrieveRequest(_message.Message):
    __slots__ = ("target", "keys", "with_payload", "with_vectors")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    WITH_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    target: Target
    keys: bytes
    with_payload: bool
    with_vectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., keys: _Optional[bytes] = ..., with_payload: _Optional[bool] = ..., with_vectors: _Optional[_Iterable[str]] = ...) -> None: ...

class ScrollRequest(_message.Message):
    __slots__ = ("target", "start", "limit", "with_payload", "with_vectors", "filter")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    WITH_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    target: Target
    start: bytes
    limit: int
    with_payload: bool
    with_vectors: _containers.RepeatedScalarFieldContainer[str]
    filter: bytes
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., start: _Optional[bytes] = ..., limit: _Optional[int] = ..., with_payload: _Optional[bool] = ..., with_vectors: _Optional[_Iterable[str]] = ..., filter: _Optional[bytes] = ...) -> None: ...

class PointsReply(_message.Message):
    __slots__ = ("keys", "payloads", "vectors")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    PAYLOADS_FIELD_NUMBER: _ClassVar[int]
    VECTORS_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    payloads: _containers.RepeatedScalarFieldContainer[bytes]
    vectors: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, keys: _Optional[bytes] = ..., payloads: _Optional[_Iterable[bytes]] = ..., vectors: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class CountRequest(_message.Message):
    __slots__ = ("target", "filter")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    target: Target
    filter: bytes
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., filter: _Optional[bytes] = ...) -> None: ...

class CountReply(_message.Message):
    __slots__ = ("count",)
    COUNT_FIELD_NUMBER: _ClassVar[int]
    count: int
    def __init__(self, count: _Optional[int] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("target", "limit", "order_by", "filter", "among", "with_payload", "with_vectors")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    AMONG_FIELD_NUMBER: _ClassVar[int]
    WITH_PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    WITH_VECTORS_FIELD_NUMBER: _ClassVar[int]
    target: Target
    limit: int
    order_by: bytes
    filter: bytes
    among: bytes
    with_payload: bool
    with_vectors: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., limit: _Optional[int] = ..., order_by: _Optional[bytes] = ..., filter: _Optional[bytes] = ..., among: _Optional[bytes] = ..., with_payload: _Optional[bool] = ..., with_vectors: _Optional[_Iterable[str]] = ...) -> None: ...

class RankReply(_message.Message):
    __slots__ = ("values", "points")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    values: bytes
    points: PointsReply
    def __init__(self, values: _Optional[bytes] = ..., points: _Optional[_Union[PointsReply, _Mapping]] = ...) -> None: ...

class FacetRequest(_message.Message):
    __slots__ = ("target", "key", "filter")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    target: Target
    key: str
    filter: bytes
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., key: _Optional[str] = ..., filter: _Optional[bytes] = ...) -> None: ...

class FacetReply(_message.Message):
    __slots__ = ("counts",)
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    counts: bytes
    def __init__(self, counts: _Optional[bytes] = ...) -> None: ...

class FrequenciesRequest(_message.Message):
    __slots__ = ("target", "name", "indices", "filter")
    TARGET_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    INDICES_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    target: Target
    name: str
    indices: bytes
    filter: bytes
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ..., name: _Optional[str] = ..., indices: _Optional[bytes] = ..., filter: _Optional[bytes] = ...) -> None: ...

class FrequenciesReply(_message.Message):
    __slots__ = ("points", "counts")
    POINTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    points: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, points: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("target",)
    TARGET_FIELD_NUMBER: _ClassVar[int]
    target: Target
    def __init__(self, target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsReply(_message.Message):
    __slots__ = ("metrics",)
    METRICS_FIELD_NUMBER: _ClassVar[int]
    metrics: bytes
    def __init__(self, metrics: _Optional[bytes] = ...) -> None: ...

class ProfileRequest(_message.Message):
    __slots__ = ("seconds", "hertz")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    HERTZ_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    hertz: int
    def __init__(self, seconds: _Optional[float] = ..., hertz: _Optional[int] = ...) -> None: ...

class ProfileReply(_message.Message):
    __slots__ = ("stacks",)
    STACKS_FIELD_NUMBER: _ClassVar[int]
    stacks: str
    def __init__(self, stacks: _Optional[str] = ...) -> None: ...

class DescribeReply(_message.Message):
    __slots__ = ("shards",)
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    shards: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, shards: _Optional[_Iterable[bytes]] = ...) -> None: ...
