"""The JSON bodies of the API: what requests may hold, what answers hold, and their schema.

A field of type None is one that Qdrant has and Shoal does not support: null is let through, and
anything else is refused by name. A field that is not listed is refused by name as well, so that
nothing a caller asks for is silently passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType, inspect

from cluster.catalog import MAX_SHARDS
from cluster.ingest.jobs import BadRow, Columns
from router.api.bm25 import Bm25Options
from router.errors import Malformed, OutOfRange
from router.query.formula import Operand
from shard.filter import Filter
from shard.model import MAX_DIMENSION, Distance, ShardInfo
from shard.ordering import OrderBy
from shard.text import NoStemmer, Snowball, StopwordsSet

T = TypeVar("T")

MAX_HITS = 100_000
"""Most points that one search or page may ask for, offset included."""

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Limit = Annotated[int, Meta(ge=1, le=MAX_HITS)]
Offset = Annotated[int, Meta(ge=0, le=MAX_HITS)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
RecallTarget = Annotated[
    float, Meta(gt=0, le=1, description="Recall@10 that searches aim at. An extension of Shoal's.")
]
Threshold = Annotated[float, Meta(ge=-3.4e38, le=3.4e38)]
NAME_SCHEMA = {"maxLength": 255, "pattern": r'^[^<>:"/\\|?*\u0000\u001f]*$'}
"""Of a string that a collection may be named."""
_HYPHENATED = r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
ID_SCHEMAS = (
    {"minimum": 0, "maximum": 2**64 - 1},
    {"pattern": rf"^([0-9a-fA-F]{{32}}|(urn:uuid:)?{_HYPHENATED}|\{{{_HYPHENATED}\}})$"},
)
"""Of an unsigned 64-bit integer, and of a string that is a UUID."""
RawId = (
    Annotated[int, Meta(extra_json_schema=ID_SCHEMAS[0])]
    | Annotated[str, Meta(extra_json_schema=ID_SCHEMAS[1])]
)
Memory = Literal["cold", "cached", "pinned"]
Payload = dict[str, Any]
Vector = list[float | list[float]]
"""Dense, or several of them."""


def _described(**schema: Any) -> Meta:
    """Of an object that is decoded once it is known what it is."""
    return Meta(extra_json_schema=schema)


def _one_of(*names: str) -> Meta:
    return _described(anyOf=[{"$ref": f"#/components/schemas/{name}"} for name in names])


VectorInput = Vector | RawId | Annotated[dict[str, Any], _one_of("SparseVector", "Document")]
"""A vector, the id of a stored one, or an object: a sparse vector, or text to be made one."""
QueryInput = (
    Vector
    | RawId
    | Annotated[
        dict[str, Any],
        _one_of(
            "Nearest",
            "Recommend",
            "Discover",
            "Context",
            "Ordered",
            "Fusion",
            "Rrf",
            "Rescore",
            "Sample",
            "SparseVector",
            "Document",
        ),
    ]
)
"""A query, or a vector to be near to."""
_NUMBERS = {"type": "array", "items": {"type": "number"}}
PointVector = (
    Vector
    | Annotated[
        dict[str, Any],
        _described(
            additionalProperties={
                "anyOf": [
                    _NUMBERS,
                    {"type": "array", "items": _NUMBERS},
                    {"$ref": "#/components/schemas/SparseVector"},
                    {"$ref": "#/components/schemas/Document"},
                    {"type": "null"},
                ]
            }
        ),
    ]
)
"""What a point has: the vectors without a name, or an object of vectors by name."""
Empty = Annotated[list[Any], Meta(max_length=0)] | Annotated[dict[str, Any], Meta(max_length=0)]
"""What Shoal does not support, where clients also send nothing in the form of an empty value."""


class Body(Struct, forbid_unknown_fields=True, kw_only=True):
    """Base of what requests hold."""


class Settings(Body, omit_defaults=True):
    """Base of Qdrant's tuning settings: checked, kept and shown in the collection's info."""


# Collections


class HnswConfig(Settings):
    """Accepted for compatibility: Shoal's indexes are IVF-PQ and tune themselves."""

    m: Count | None = None
    ef_construct: Count | None = None
    full_scan_threshold: Count | None = None
    max_indexing_threads: Count | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    payload_m: Count | None = None
    inline_storage: bool | None = None


class OptimizersConfig(Settings):
    """``indexing_threshold`` takes effect; the rest is accepted for compatibility."""

    deleted_threshold: Fraction | None = None
    vacuum_min_vector_number: Count | None = None
    default_segment_number: Count | None = None
    max_segment_size: Count | None = None
    memmap_threshold: Count | None = None
    indexing_threshold: (
        Annotated[
            Count,
            Meta(
                description="Kilobytes of vectors up to which a segment is searched by exact scan "
                "and gets no index; 0 for no index at all."
            ),
        ]
        | None
    ) = None
    flush_interval_sec: Count | None = None
    max_optimization_threads: Count | Literal["auto"] | None = None
    prevent_unoptimized: bool | None = None


class WalConfig(Settings):
    """Accepted for compatibility: Shoal's log is in the object store."""

    wal_capacity_mb: Count | None = None
    wal_segments_ahead: Count | None = None
    wal_retain_closed: Count | None = None


class ScalarQuantization(Settings):
    type: Literal["int8"]
    quantile: Fraction | None = None
    always_ram: bool | None = None
    memory: Memory | None = None


class ProductQuantization(Settings):
    compression: Literal["x4", "x8", "x16", "x32", "x64"]
    always_ram: bool | None = None
    memory: Memory | None = None


class BinaryQuantization(Settings):
    always_ram: bool | None = None
    memory: Memory | None = None
    encoding: Literal["one_bit", "two_bits", "one_and_half_bits"] | None = None
    query_encoding: Literal["default", "binary", "scalar4bits", "scalar8bits"] | None = None


class TurboQuantization(Settings):
    always_ram: bool | None = None
    memory: Memory | None = None
    bits: Literal["bits4", "bits2", "bits1_5", "bits1"] | None = None


class QuantizationConfig(Settings):
    """Accepted for compatibility: Shoal picks the codes that reach the recall target."""

    scalar: ScalarQuantization | None = None
    product: ProductQuantization | None = None
    binary: BinaryQuantization | None = None
    turbo: TurboQuantization | None = None

    def __post_init__(self) -> None:
        given = [self.scalar, self.product, self.binary, self.turbo]
        if sum(one is not None for one in given) != 1:
            raise ValueError("expected one of `scalar`, `product`, `binary` and `turbo`")


class MemoryPlacement(Settings):
    memory: Memory | None = None


class StrictMode(Settings):
    enabled: Literal[False] | None = None


class MultiVectorConfig(Settings, omit_defaults=False):
    comparator: Literal["max_sim"]


class VectorParams(Body):
    size: Annotated[int, Meta(ge=1, le=MAX_DIMENSION)]
    distance: Distance
    hnsw_config: HnswConfig | None = None
    quantization_config: QuantizationConfig | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    datatype: Literal["float32"] | None = None
    multivector_config: MultiVectorConfig | None = None


class SparseIndexParams(Settings):
    """Accepted for compatibility: Shoal's postings are on disk, and exact."""

    full_scan_threshold: Count | None = None
    on_disk: bool | None = None
    datatype: Literal["float32"] | None = None
    memory: Memory | None = None


class SparseVectorParams(Settings):
    index: SparseIndexParams | None = None
    modifier: Literal["none", "idf"] | None = None


_VECTORS = _described(
    description="Parameters of the one vector that has no name, or of vectors by name.",
    oneOf=[
        {"$ref": "#/components/schemas/VectorParams"},
        {
            "type": "object",
            "additionalProperties": {"$ref": "#/components/schemas/VectorParams"},
        },
    ],
)


class CreateCollection(Body):
    vectors: Annotated[dict[str, Any], _VECTORS] | None = None
    shard_number: Annotated[int, Meta(ge=1, le=MAX_SHARDS)] | None = None
    recall_target: RecallTarget | None = None
    sharding_method: Literal["auto"] | None = None
    replication_factor: Literal[1] | None = None
    write_consistency_factor: Literal[1] | None = None
    on_disk_payload: bool | None = None
    payload: MemoryPlacement | None = None
    id_tracker: MemoryPlacement | None = None
    hnsw_config: HnswConfig | None = None
    wal_config: WalConfig | None = None
    optimizers_config: OptimizersConfig | None = None
    quantization_config: QuantizationConfig | None = None
    sparse_vectors: dict[str, SparseVectorParams] | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None


class CollectionParamsDiff(Body):
    replication_factor: Literal[1] | None = None
    write_consistency_factor: Literal[1] | None = None
    read_fan_out_factor: None = None
    read_fan_out_delay_ms: None = None
    on_disk_payload: bool | None = None
    payload: MemoryPlacement | None = None
    id_tracker: MemoryPlacement | None = None


class VectorParamsDiff(Body):
    hnsw_config: HnswConfig | None = None
    quantization_config: QuantizationConfig | Literal["Disabled"] | None = None
    on_disk: bool | None = None
    memory: Memory | None = None


class UpdateCollection(Body):
    recall_target: RecallTarget | None = None
    vectors: dict[str, VectorParamsDiff] | None = None
    params: CollectionParamsDiff | None = None
    hnsw_config: HnswConfig | None = None
    optimizers_config: OptimizersConfig | None = None
    quantization_config: QuantizationConfig | Literal["Disabled"] | None = None
    sparse_vectors: dict[str, SparseVectorParams] | None = None
    strict_mode_config: StrictMode | None = None
    metadata: dict[str, Any] | None = None


FieldType = Literal["keyword", "integer", "float", "geo", "text", "bool", "datetime", "uuid"]


class FieldIndexParams(Settings):
    """Of an index of that type. Those of texts say how they match; the rest is for speed, kept and
    shown."""

    type: FieldType
    lookup: bool | None = None
    range: bool | None = None
    is_tenant: bool | None = None
    is_principal: bool | None = None
    on_disk: bool | None = None
    memory: Memory | None = None
    enable_hnsw: bool | None = None
    prefix: bool | None = None
    tokenizer: Literal["prefix", "whitespace", "word", "multilingual", "code"] | None = None
    min_token_len: Count | None = None
    max_token_len: Count | None = None
    lowercase: bool | None = None
    ascii_folding: bool | None = None
    phrase_matching: bool | None = None
    stopwords: str | StopwordsSet | None = None
    stemmer: Snowball | NoStemmer | None = None
    scoring: Literal[False] | None = None
    nested: None = None


class CreateFieldIndex(Body):
    field_name: Annotated[str, Meta(min_length=1, max_length=1_024)]
    field_schema: FieldType | FieldIndexParams | None = None


# Aliases


class CreateAlias(Body):
    collection_name: str
    alias_name: Annotated[str, Meta(min_length=1, extra_json_schema=NAME_SCHEMA)]


class DeleteAlias(Body):
    alias_name: str


class RenameAlias(Body):
    old_alias_name: str
    new_alias_name: Annotated[str, Meta(min_length=1, extra_json_schema=NAME_SCHEMA)]


class AliasAction(Body):
    """One of these."""

    create_alias: CreateAlias | None = None
    delete_alias: DeleteAlias | None = None
    rename_alias: RenameAlias | None = None

    def __post_init__(self) -> None:
        given = [self.create_alias, self.delete_alias, self.rename_alias]
        if sum(one is not None for one in given) != 1:
            raise ValueError("expected one of `create_alias`, `delete_alias` and `rename_alias`")


class ChangeAliases(Body):
    actions: list[AliasAction]


class Alias(Struct, forbid_unknown_fields=True):
    alias_name: str
    collection_name: str


class Aliases(Struct, forbid_unknown_fields=True):
    aliases: list[Alias]


# Ingest


class StartIngest(Body):
    source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4_096,
            description="`s3://BUCKET/PREFIX`, or a path that every shard server sees; "
            "the last parts may have `*`, `?` and `[...]`.",
        ),
    ]
    columns: Columns = msgspec.field(default_factory=Columns)
    max_bad_rows: Count = 0
    chunk_mb: Annotated[
        int, Meta(ge=1, le=16_384, description="Vectors that one task holds in memory.")
    ] = 256
    again: Annotated[
        bool, Meta(description="Load even what was loaded before from the same files.")
    ] = False


class StartExport(Body):
    destination: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=4_096,
            description="`s3://BUCKET/PREFIX`, or a directory that every shard server sees; empty.",
        ),
    ]


class RecoverSnapshot(Body):
    location: Annotated[str, Meta(min_length=1, max_length=4_096)]
    priority: Literal["no_sync", "snapshot", "replica"] | None = None
    checksum: str | None = None
    api_key: str | None = None


# Points


class SparseVector(Body):
    indices: list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]
    values: list[float]


class Document(Body):
    """A text to be made a sparse vector."""

    text: Annotated[str, Meta(max_length=1_000_000)]
    model: str
    options: Bm25Options | None = None


class PointStruct(Body):
    id: RawId
    vector: PointVector
    payload: Payload | None = None


class Batch(Body):
    ids: Annotated[list[RawId], _described(minItems=1)]
    vectors: list[Vector] | dict[str, list[Any]]
    payloads: list[Payload | None] | None = None


class Upsert(Body):
    """Either ``points`` or ``batch``."""

    points: Annotated[list[PointStruct], _described(minItems=1)] | None = None
    batch: Batch | None = None
    shard_key: None = None
    update_filter: Filter | None = None
    update_mode: Literal["upsert", "insert_only", "update_only"] | None = None


class PointsSelector(Body):
    """Either ``points`` or ``filter``."""

    points: list[RawId] | None = None
    filter: Filter | None = None
    shard_key: None = None


class SetPayload(PointsSelector, kw_only=True):
    payload: Payload
    key: str | None = None


class DeletePayload(PointsSelector, kw_only=True):
    keys: list[str]


class PointVectors(Body):
    id: RawId
    vector: PointVector


class UpdateVectors(Body):
    points: Annotated[list[PointVectors], _described(minItems=1)]
    shard_key: None = None
    update_filter: Filter | None = None


class DeleteVectors(PointsSelector, kw_only=True):
    vector: Annotated[list[str], _described(minItems=1)]


class UpdateOperation(Body):
    """One of these."""

    upsert: Upsert | UnsetType = UNSET
    delete: PointsSelector | UnsetType = UNSET
    set_payload: SetPayload | UnsetType = UNSET
    overwrite_payload: SetPayload | UnsetType = UNSET
    delete_payload: DeletePayload | UnsetType = UNSET
    clear_payload: PointsSelector | UnsetType = UNSET
    update_vectors: UpdateVectors | UnsetType = UNSET
    delete_vectors: DeleteVectors | UnsetType = UNSET


class UpdateBatch(Body):
    operations: Annotated[list[UpdateOperation], Meta(max_length=10_000)]


class PayloadSelector(Body):
    """Either ``include`` or ``exclude``: paths such as ``a.b`` or ``a[].b``."""

    include: list[str] | None = None
    exclude: list[str] | None = None


WithPayload = bool | list[str] | PayloadSelector
WithVector = bool | list[str]


class RetrievePoints(Body):
    ids: list[RawId]
    with_payload: WithPayload | None = None
    with_vector: WithVector | None = None
    shard_key: None = None


class Scroll(Body):
    offset: RawId | None = None
    limit: Limit | None = None
    with_payload: WithPayload | None = None
    with_vector: WithVector | None = None
    filter: Filter | None = None
    order_by: OrderBy | str | None = None
    shard_key: None = None


class Facet(Body):
    key: Annotated[str, Meta(min_length=1, max_length=1_024)]
    limit: Limit | None = None
    filter: Filter | None = None
    exact: bool | None = None
    shard_key: None = None


class SearchMatrix(Body):
    filter: Filter | None = None
    sample: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    limit: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    using: str | None = None
    shard_key: None = None


class CountPoints(Body):
    exact: bool | None = None
    filter: Filter | None = None
    shard_key: None = None


# Search


class QuantizationSearchParams(Body):
    ignore: (
        Annotated[bool, Meta(description="Search by exact scan, which needs no quantized vectors.")]
        | None
    ) = None
    rescore: (
        Annotated[
            bool, Meta(description="Accepted for compatibility: Shoal always scores full vectors.")
        ]
        | None
    ) = None
    oversampling: Annotated[float, Meta(ge=1, le=1000)] | None = None


class AcornParams(Body):
    enable: bool | None = None
    max_selectivity: Fraction | None = None


class IdfCorpus(Body):
    corpus: Filter


class SearchParams(Body):
    exact: bool | None = None
    hnsw_ef: (
        Annotated[
            Count,
            Meta(description="Accepted for compatibility: Shoal searches to the recall target."),
        ]
        | None
    ) = None
    nprobe: (
        Annotated[
            int,
            Meta(ge=1, le=65_536, description="Inverted lists to scan. An extension of Shoal's."),
        ]
        | None
    ) = None
    quantization: QuantizationSearchParams | None = None
    indexed_only: Literal[False] | None = None
    acorn: AcornParams | None = None
    idf: Literal["global"] | IdfCorpus | None = None


class Mmr(Body):
    diversity: Annotated[float, Meta(ge=0, le=1)] = 0.5
    candidates_limit: Annotated[int, Meta(ge=1, le=16_384)] | None = None


class Nearest(Body):
    nearest: VectorInput
    mmr: Mmr | None = None


class Recommendation(Body):
    positive: list[VectorInput] | None = None
    negative: list[VectorInput] | None = None
    strategy: Literal["average_vector", "best_score", "sum_scores"] | None = None


class Recommend(Body):
    recommend: Recommendation


class Pair(Body):
    positive: VectorInput
    negative: VectorInput


class Discovery(Body):
    target: VectorInput
    context: Pair | list[Pair] | None = None


class Discover(Body):
    discover: Discovery


class Context(Body):
    context: Pair | list[Pair]


class Ordered(Body):
    order_by: OrderBy | str


class Fusion(Body):
    fusion: Literal["rrf", "dbsf"]


class RrfParams(Body):
    k: Annotated[int, Meta(ge=1, le=2**31)] | None = None
    weights: Annotated[list[float], Meta(max_length=1_024)] | None = None


class Rrf(Body):
    rrf: RrfParams


class Sample(Body):
    sample: Literal["random"]


class Rescore(Body):
    formula: Operand
    defaults: dict[str, Any] | None = None


class LookupLocation(Body):
    collection: str
    vector: str | None = None
    shard_key: None = None


class Prefetch(Body):
    """A query whose answer another one works on."""

    prefetch: Prefetch | list[Prefetch] | None = None
    query: QueryInput | None = None
    using: str | None = None
    filter: Filter | None = None
    params: SearchParams | None = None
    score_threshold: Threshold | None = None
    limit: Limit | None = None
    lookup_from: LookupLocation | None = None


class QueryGroups(Prefetch, kw_only=True):
    with_payload: WithPayload | None = None
    with_vector: WithVector | None = None
    shard_key: None = None
    group_by: Annotated[str, Meta(min_length=1, max_length=1_024)]
    group_size: Annotated[int, Meta(ge=1, le=MAX_HITS)] | None = None
    with_lookup: WithLookup | str | None = None


class WithLookup(Body):
    collection: str
    with_payload: WithPayload | None = None
    with_vectors: WithVector | None = None


class Query(Prefetch, kw_only=True):
    offset: Offset | None = None
    with_payload: WithPayload | None = None
    with_vector: WithVector | None = None
    shard_key: None = None


class QueryBatch(Body):
    searches: Annotated[list[Query], Meta(max_length=MAX_HITS)]


class NamedVector(Body):
    name: str
    vector: VectorInput


class Search(Body):
    vector: Vector | Annotated[dict[str, Any], _one_of("NamedVector")]
    limit: Limit
    offset: Offset | None = None
    score_threshold: Threshold | None = None
    params: SearchParams | None = None
    with_payload: WithPayload | None = None
    with_vector: WithVector | None = None
    filter: Filter | None = None
    shard_key: None = None


class SearchBatch(Body):
    searches: Annotated[list[Search], Meta(max_length=MAX_HITS)]


# Answers: rendered by orjson from plain values, described by these.


class ErrorStatus(Struct, forbid_unknown_fields=True):
    error: str


class Error(Struct, forbid_unknown_fields=True):
    status: ErrorStatus
    time: float


class ShoalVersion(Struct, forbid_unknown_fields=True):
    version: str


class VersionInfo(Struct, forbid_unknown_fields=True):
    title: str
    version: Annotated[str, Meta(description="Version of Qdrant's REST API that this speaks.")]
    shoal: ShoalVersion


class HardwareUsage(Struct, forbid_unknown_fields=True, kw_only=True):
    """In bytes, and microseconds of CPU time."""

    cpu: int
    payload_io_read: int
    payload_io_write: int
    payload_index_io_read: int
    payload_index_io_write: int
    vector_io_read: int
    vector_io_write: int


class ShoalUsage(Struct, forbid_unknown_fields=True):
    vectors: Annotated[int, Meta(description="Compared with a query, whole or by their codes.")]
    cpu_seconds: Annotated[float, Meta(description="Of threads that read.")]


class ReportedUsage(Struct, forbid_unknown_fields=True):
    """What the request has taken; told where the header `shoal-usage: true` asks for it."""

    hardware: HardwareUsage
    inference: None
    shoal: ShoalUsage


class Operations(Struct, forbid_unknown_fields=True, kw_only=True):
    count: int
    avg_duration_micros: float
    total_duration_micros: int


class Responses(Struct, forbid_unknown_fields=True):
    """By operation and status."""

    responses: dict[str, dict[str, Operations]]
    per_collection_responses: dict[str, dict[str, dict[str, Operations]]] | None = None


class RequestsTelemetry(Struct, forbid_unknown_fields=True):
    rest: Responses
    grpc: Annotated[Responses, Meta(description="Empty: these count as the same by REST.")]


class AppTelemetry(Struct, forbid_unknown_fields=True):
    name: str
    version: str
    startup: str


class CollectionTelemetry(Struct, forbid_unknown_fields=True):
    id: str
    config: CollectionConfig


class CollectionsTelemetry(Struct, forbid_unknown_fields=True):
    number_of_collections: int
    collections: list[CollectionTelemetry] | None = None


class HardwareTelemetry(Struct, forbid_unknown_fields=True):
    collection_data: dict[str, HardwareUsage]


class Telemetry(Struct, forbid_unknown_fields=True, kw_only=True):
    id: str
    app: AppTelemetry
    collections: CollectionsTelemetry
    requests: RequestsTelemetry
    hardware: HardwareTelemetry | None = None


class CollectionName(Struct, forbid_unknown_fields=True):
    name: str


class Collections(Struct, forbid_unknown_fields=True):
    collections: list[CollectionName]


class Exists(Struct, forbid_unknown_fields=True):
    exists: bool


class CollectionDetail(Struct, forbid_unknown_fields=True):
    """Shoal's own part of a collection's info."""

    recall_target: float
    shards: list[ShardInfo]


class OptimizerError(Struct, forbid_unknown_fields=True):
    error: str


class CollectionParams(Struct, forbid_unknown_fields=True, kw_only=True):
    vectors: dict[str, Any]
    sparse_vectors: dict[str, Any] | None = None
    shard_number: int
    replication_factor: int
    write_consistency_factor: int
    on_disk_payload: bool
    payload: dict[str, Any] | None = None
    id_tracker: dict[str, Any] | None = None


class CollectionConfig(Struct, forbid_unknown_fields=True):
    params: CollectionParams
    hnsw_config: dict[str, Any]
    optimizer_config: dict[str, Any]
    wal_config: dict[str, Any]
    quantization_config: dict[str, Any] | None
    metadata: dict[str, Any] | None = None


class CollectionInfo(Struct, forbid_unknown_fields=True):
    status: Literal["green", "yellow", "red"]
    optimizer_status: Literal["ok"] | OptimizerError
    points_count: int
    indexed_vectors_count: int
    segments_count: int
    config: CollectionConfig
    payload_schema: dict[str, Any]
    shoal: CollectionDetail


class IngestJob(Struct, kw_only=True):
    id: str
    collection_id: str
    collection: str
    source: str
    columns: Columns
    max_bad_rows: int
    created: float
    again: bool
    state: Literal[
        "queued",
        "planning",
        "training",
        "encoding",
        "checking",
        "committing",
        "done",
        "failed",
        "cancelled",
    ]
    rows_total: int
    rows_read: int
    rows_loaded: int
    bad_rows: int
    bad: list[BadRow]
    ignored_columns: list[str]
    error: str
    same_as: str
    started: float
    finished: float


class IngestJobs(Struct):
    jobs: list[IngestJob]


class ExportJob(Struct, kw_only=True):
    id: str
    collection_id: str
    collection: str
    destination: str
    created: float
    state: Literal["queued", "exporting", "done", "failed", "cancelled"]
    rows: int
    error: str
    started: float
    finished: float


class ExportJobs(Struct):
    jobs: list[ExportJob]


class SnapshotDescription(Struct, forbid_unknown_fields=True):
    name: str
    creation_time: str | None
    size: int
    checksum: str | None


class UpdateResult(Struct, forbid_unknown_fields=True):
    operation_id: int
    status: Literal["acknowledged", "completed"]


class Record(Struct, forbid_unknown_fields=True):
    id: int | UUID
    payload: Payload | None = None
    vector: Vector | dict[str, Any] | None = None
    order_value: int | float | None = None


class ScoredPoint(Struct, forbid_unknown_fields=True):
    id: int | UUID
    version: int
    score: float
    payload: Payload | None = None
    vector: Vector | dict[str, Any] | None = None
    order_value: int | float | None = None


class Page(Struct, forbid_unknown_fields=True):
    points: list[Record]
    next_page_offset: int | UUID | None


class CountResult(Struct, forbid_unknown_fields=True):
    count: int


class ScoredPoints(Struct, forbid_unknown_fields=True):
    points: list[ScoredPoint]


class FacetHit(Struct, forbid_unknown_fields=True):
    value: bool | int | str
    count: int


class Facets(Struct, forbid_unknown_fields=True):
    hits: list[FacetHit]


class MatrixPair(Struct, forbid_unknown_fields=True):
    a: int | UUID
    b: int | UUID
    score: float


class MatrixPairs(Struct, forbid_unknown_fields=True):
    pairs: list[MatrixPair]


class MatrixOffsets(Struct, forbid_unknown_fields=True):
    offsets_row: list[int]
    offsets_col: list[int]
    scores: list[float]
    ids: list[int | UUID]


class PointGroup(Struct, forbid_unknown_fields=True):
    id: int | str
    hits: list[ScoredPoint]
    lookup: Record | None = None


class Groups(Struct, forbid_unknown_fields=True):
    groups: list[PointGroup]


_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_UNKNOWN = re.compile(r"^Object contains unknown field `(.*)`$")
_RANGE = re.compile(r"^Expected `(\w+)` (?:of length )?([<>]=?) (.*)$")
_STEP = re.compile(r"\w+|\[(?:\d+|\.\.\.)\]")


def _members(type: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(type, inspect.Metadata):
        yield from _members(type.type)
    elif isinstance(type, inspect.UnionType):
        for member in type.types:
            yield from _members(member)
    else:
        yield type


def _allowed(type: inspect.Type, path: str) -> str:
    """The values that an enumeration at ``path`` may take, in words."""
    types = list(_members(type))
    for step in _STEP.findall(path):
        inner: list[inspect.Type] = []
        for one in types:
            if isinstance(one, inspect.StructType):
                inner += [field.type for field in one.fields if field.encode_name == step]
            elif isinstance(one, inspect.ListType):
                inner.append(one.item_type)
            elif isinstance(one, inspect.DictType):
                inner.append(one.value_type)
        types = [member for one in inner for member in _members(one)]
    values: list[Any] = []
    for one in types:
        if isinstance(one, inspect.LiteralType):
            values += one.values
        elif isinstance(one, inspect.EnumType):
            values += [member.value for member in one.cls]
    return " or ".join(f"`{msgspec.json.encode(value).decode()}`" for value in values)


def _explain(error: msgspec.ValidationError, type: inspect.Type) -> Malformed | OutOfRange:
    message = str(error)
    found = _PATH.search(message)
    path = found[1] if found else ""
    where = path or "body"
    message = message[: found.start()] if found else message
    if unknown := _UNKNOWN.match(message):
        field = f"{path}.{unknown[1]}" if path else unknown[1]
        return Malformed(f"{field}: unknown or unsupported field")
    if message.startswith("Expected `null`, got"):
        return Malformed(f"{where}: not supported")
    if message.startswith("Invalid enum value"):
        given = message.removeprefix("Invalid enum value ")
        return Malformed(f"{where}: {given} is not supported, expected {_allowed(type, path)}")
    expected = message[0].lower() + message[1:]
    if outside := _RANGE.match(message):
        kind, comparison, bound = outside.groups()
        if kind in ("array", "object") and (comparison, bound) == ("<=", "0"):
            return Malformed(f"{where}: not supported")
        return OutOfRange(f"{where}: {expected}")
    return Malformed(f"{where}: {expected}")


class Decoder(Generic[T]):
    """Decodes and checks one kind of body."""

    def __init__(self, type: type[T]) -> None:
        self.type = type
        self._decode = msgspec.json.Decoder(type).decode
        self._info = inspect.type_info(type)

    def __call__(self, body: bytes) -> T:
        """The body as a ``T``. Raises Malformed or OutOfRange, naming the field."""
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            raise _explain(error, self._info) from None
        except UnicodeDecodeError:
            raise Malformed("body: expected UTF-8") from None
        except RecursionError:
            raise Malformed("body: nested too deeply") from None
        except msgspec.DecodeError as error:
            raise Malformed(str(error)) from None


def convert(value: Any, type: type[T], field: str) -> T:
    """``value``, which JSON has been decoded to, as a ``type``. Raises Malformed or OutOfRange."""
    try:
        return msgspec.convert(value, type)
    except msgspec.ValidationError as error:
        explained = _explain(error, inspect.type_info(type))
        text = str(explained)
        where = f"{field}: " if text.startswith("body: ") else f"{field}."
        raise explained.__class__(where + text.removeprefix("body: ")) from None


_documented: list[Any] = [
    *(Nearest, Recommend, Discover, Context, Ordered, Fusion, Rrf, Rescore, Sample),
    *(SparseVector, Document, NamedVector, VectorParams),
]
"""What has a schema of its own; at first what is referred to by name alone."""


def _schema(type: Any) -> dict[str, Any]:
    _documented.append(type)
    (schema,), _ = msgspec.json.schema_components([type], ref_template=_REF)
    return schema


_REF = "#/components/schemas/{name}"


def body(decoder: Decoder[Any]) -> dict[str, Any]:
    """``openapi_extra`` of a route that takes what ``decoder`` decodes."""
    content = {"application/json": {"schema": _schema(decoder.type)}}
    return {"requestBody": {"required": True, "content": content}}


def answers(result: Any) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route whose answer's ``result`` is of that type."""
    properties = {"result": _schema(result), "status": {"const": "ok"}, "time": {"type": "number"}}
    required = list(properties)
    properties["usage"] = _schema(ReportedUsage)
    return _responses({"type": "object", "properties": properties, "required": required})


ACCEPTED: dict[int | str, dict[str, Any]] = {
    202: {
        "description": "It goes on without the request.",
        "content": {
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"status": {"const": "accepted"}, "time": {"type": "number"}},
                    "required": ["status", "time"],
                }
            }
        },
    }
}
"""``responses`` of a route that need not wait."""


def raw_answers(whole: Any) -> dict[int | str, dict[str, Any]]:
    """``responses`` of a route whose whole answer is of that type."""
    return _responses(_schema(whole))


def _responses(schema: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"schema": schema}}}, **failures()}


def failures() -> dict[int | str, dict[str, Any]]:
    """``responses`` for the errors that any route may answer."""
    content = {"application/json": {"schema": _schema(Error)}}
    return {
        "4XX": {"description": "The request is at fault.", "content": content},
        "5XX": {"description": "The request may be tried again.", "content": content},
    }


def components() -> dict[str, Any]:
    """Schemas that the routes' bodies and answers refer to, by name."""
    return msgspec.json.schema_components(_documented, ref_template=_REF)[1]
