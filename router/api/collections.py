"""Creating, describing, changing and deleting collections."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from cluster.catalog import Collection
from router.api import wire
from router.api.convert import encode_payloads
from router.api.exchange import Context, NewName, Timeout, answer, read_body
from router.api.indexes import payload_schema
from router.errors import OutOfRange
from shard.errors import AlreadyExists, InvalidInput, NotFound, Unavailable
from shard.model import UNNAMED, ShardConfig, ShardInfo, SparseConfig, VectorConfig

routes = APIRouter(prefix="/collections", tags=["Collections"])

CREATE_SECONDS = 60
"""How long a create waits for its shards, unless the request says."""
MAX_NAME = 255
MAX_VECTORS = 64
"""Names of vectors in a collection."""
_NOT_IN_NAMES = '<>:"/\\|?*\0\x1f'
_NEVER = 2**31 - 1
_LEAST_INDEXED_ROWS = 1_000
"""Below this many rows an exact scan is always the faster one."""

_create = wire.Decoder(wire.CreateCollection)
_update = wire.Decoder(wire.UpdateCollection)

# Qdrant's own defaults, as its clients expect every one of them in a collection's info.
_HNSW = {
    "m": 16,
    "ef_construct": 100,
    "full_scan_threshold": 10_000,
    "max_indexing_threads": 0,
    "on_disk": False,
}
_OPTIMIZERS = {
    "deleted_threshold": 0.2,
    "vacuum_min_vector_number": 1000,
    "default_segment_number": 0,
    "max_segment_size": None,
    "memmap_threshold": None,
    "flush_interval_sec": 5,
    "max_optimization_threads": None,
}
_WAL = {"wal_capacity_mb": 32, "wal_segments_ahead": 0, "wal_retain_closed": 1}


@dataclass(frozen=True)
class _Changes:
    """What a request sets, in the form that `Collection` keeps."""

    settings: dict[str, Any]
    vector_settings: dict[str, dict[str, Any]]
    """By name."""
    sparse_settings: dict[str, dict[str, Any]]
    recall_target: float | None
    indexing_threshold: int | None

    def apply(self, collection: Collection) -> Collection:
        """``collection`` with the changes laid over it, setting by setting."""
        settings = _merge(collection.settings, self.settings)
        config = collection.config
        for kind, known, given in (
            ("vectors", config.vectors, self.vector_settings),
            ("sparse_vectors", config.sparse, self.sparse_settings),
        ):
            for name in given.keys() - known.keys():
                raise InvalidInput(f"Not existing vector name error: {name}")
            old = settings.get(kind, {})
            settings[kind] = old | {
                name: _merge(old.get(name, {}), one) for name, one in given.items()
            }
        changed = {
            name: SparseConfig(idf=one["modifier"] == "idf")
            for name, one in self.sparse_settings.items()
            if "modifier" in one
        }
        if changed:
            config = msgspec.structs.replace(config, sparse=config.sparse | changed)
        if self.recall_target is not None:
            config = msgspec.structs.replace(config, recall_target=self.recall_target)
        if self.indexing_threshold is not None:
            rows = _flat_rows(self.indexing_threshold, config)
            config = msgspec.structs.replace(config, flat_threshold=rows)
        return msgspec.structs.replace(collection, settings=settings, config=config)

    @staticmethod
    def of(body: wire.CreateCollection | wire.UpdateCollection) -> _Changes:
        params: Any = body
        vectors: Mapping[str, wire.VectorParams | wire.VectorParamsDiff]
        if isinstance(body, wire.CreateCollection):
            vectors = vector_params(body)
        else:
            params = body.params or wire.CollectionParamsDiff()
            vectors = body.vectors or {}
        given = {
            "hnsw_config": body.hnsw_config,
            "optimizers_config": body.optimizers_config,
            "quantization_config": body.quantization_config,
            "wal_config": getattr(body, "wal_config", None),
            "on_disk_payload": params.on_disk_payload,
            "payload": params.payload,
            "id_tracker": params.id_tracker,
            "metadata": body.metadata,
        }
        kept = (
            "hnsw_config",
            "quantization_config",
            "on_disk",
            "memory",
            "datatype",
            "multivector_config",
        )
        encode_payloads([body.metadata], "metadata")  # Refuses what no answer can show.
        optimizers = body.optimizers_config or wire.OptimizersConfig()
        return _Changes(
            _plain(given),
            {
                name: _plain({key: getattr(one, key, None) for key in kept})
                for name, one in vectors.items()
            },
            {name: msgspec.to_builtins(one) for name, one in (body.sparse_vectors or {}).items()},
            body.recall_target,
            optimizers.indexing_threshold,
        )


def _plain(given: dict[str, Any]) -> dict[str, Any]:
    return {key: msgspec.to_builtins(value) for key, value in given.items() if value is not None}


def _merge(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    merged = dict(old)
    for key, value in new.items():
        if key == "quantization_config":
            # One kind replaces another; the two do not mix.
            merged[key] = None if value == "Disabled" else value
        elif isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merged[key] | value
        else:
            merged[key] = value
    return merged


def vector_params(body: wire.CreateCollection) -> dict[str, wire.VectorParams]:
    """By name; of the one vector that has none, by the empty one. Raises Malformed, OutOfRange."""
    given = body.vectors or {}
    if any(not isinstance(given.get(field, {}), dict) for field in ("size", "distance")):
        return {UNNAMED: wire.convert(given, wire.VectorParams, "vectors")}
    return {
        name: wire.convert(one, wire.VectorParams, f"vectors.{name}") for name, one in given.items()
    }


def _flat_rows(kilobytes: int, config: ShardConfig) -> int:
    """Rows that fit in Qdrant's ``indexing_threshold``, which is in kilobytes of vectors."""
    if kilobytes == 0:
        return _NEVER
    return min(max(kilobytes * 1024 // _row_bytes(config), _LEAST_INDEXED_ROWS), _NEVER)


def _row_bytes(config: ShardConfig) -> int:
    return 4 * max([one.dimension for one in config.vectors.values()], default=1)


def check_name(name: str, field: str = "collection_name") -> None:
    """Raises OutOfRange where no collection can have that name."""
    if len(name) > MAX_NAME:
        raise OutOfRange(f"{field}: expected at most {MAX_NAME} characters")
    for character in name:
        if character in _NOT_IN_NAMES:
            raise OutOfRange(f"{field}: cannot contain {character!r}")


@routes.get("", responses=wire.answers(wire.Collections), summary="List collections")
async def list_collections(request: Request) -> Response:
    """Names of all collections."""
    context = Context.of(request)
    collections = (await context.directory.refresh()).collections.values()
    names = sorted(
        one.name for one in collections if not one.hidden and context.access.sees(one.name)
    )
    return answer(request, {"collections": [{"name": name} for name in names]})


@routes.get("/{name}/exists", responses=wire.answers(wire.Exists), summary="Collection exists")
async def exists(request: Request, name: str) -> Response:
    """Whether there is a collection of that name or alias."""
    names = await Context.of(request).directory.refresh()
    return answer(request, {"exists": names.get(name) is not None})


@routes.put(
    "/{name}",
    openapi_extra=wire.body(_create),
    responses=wire.answers(bool),
    summary="Create a collection",
)
async def create(request: Request, name: NewName, timeout: Timeout = None) -> Response:
    """Create a collection, and wait until its shards answer."""
    context = Context.of(request)
    check_name(name)
    body = _create(await read_body(request))
    shard_count = body.shard_number or context.default_shards
    config = ShardConfig(
        vectors={
            name: VectorConfig(
                dimension=one.size, distance=one.distance, multi=one.multivector_config is not None
            )
            for name, one in vector_params(body).items()
        },
        sparse={
            name: SparseConfig(idf=one.modifier == "idf")
            for name, one in (body.sparse_vectors or {}).items()
        },
        share=1 / shard_count,
    )
    _check_names(config)
    collection = _Changes.of(body).apply(
        Collection(
            id=uuid4().hex,
            name=name,
            shard_count=shard_count,
            config=config,
        )
    )
    try:
        await asyncio.to_thread(context.directory.catalog.create, collection)
    except AlreadyExists:
        raise AlreadyExists(f"Collection `{name}` already exists!") from None
    await context.directory.refresh()
    await wait_until_answering(context, collection, timeout or CREATE_SECONDS)
    return answer(request, True)


def _check_names(config: ShardConfig) -> None:
    names = config.names
    if not names:
        raise InvalidInput("vectors: expected parameters of one at least")
    if len(names) > MAX_VECTORS:
        raise InvalidInput(f"vectors: expected at most {MAX_VECTORS} names, got {len(names)}")
    for name in names:
        if len(name) > MAX_NAME:
            raise InvalidInput(f"vectors: expected names of at most {MAX_NAME} characters")
    for name in config.vectors.keys() & config.sparse.keys():
        raise InvalidInput(f"sparse_vectors: {name!r} is the name of dense vectors too")


async def wait_until_answering(context: Context, collection: Collection, timeout: float) -> None:
    """Return once every shard answers, and none of what is deleted does. Raises TimeoutError."""
    # Another router may have cached one of these under the new one's name. It notices when no shard
    # server knows it; until then it might write to what is being deleted.
    deleted = await asyncio.to_thread(context.directory.catalog.deleted)
    deadline = monotonic() + timeout
    pause = 0.02
    while (left := deadline - monotonic()) > 0:
        try:
            await context.fanout.describe(collection, timeout=min(left, context.timeout))
            if not any(map(context.fanout.is_placed, deleted)):
                return
        except (NotFound, Unavailable, TimeoutError):
            pass
        await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - a pause
        pause = min(2 * pause, 0.5)
    raise TimeoutError(
        f"collection `{collection.name}` is created, "
        f"but its shards do not all answer after {timeout} s"
    )


@routes.patch(
    "/{name}",
    openapi_extra=wire.body(_update),
    responses=wire.answers(bool),
    summary="Change a collection",
)
async def update(request: Request, name: str, timeout: Timeout = None) -> Response:
    """Change a collection's settings, those given."""
    changes = _Changes.of(_update(await read_body(request)))
    await Context.of(request).directory.update(name, changes.apply)
    return answer(request, True)


@routes.delete("/{name}", responses=wire.answers(bool), summary="Delete a collection")
async def delete(request: Request, name: str, timeout: Timeout = None) -> Response:
    """Delete a collection with its aliases; the result is false where there was none.

    It is named by its own name: an alias cannot delete it.
    """
    directory = Context.of(request).directory
    deleted = await asyncio.to_thread(directory.catalog.delete, name)
    await directory.refresh()
    return answer(request, deleted)


@routes.get("/{name}", responses=wire.answers(wire.CollectionInfo), summary="Collection info")
async def info(request: Request, name: str) -> Response:
    """A collection's settings, and the state of each of its shards."""
    context = Context.of(request)
    await context.directory.find_fresh(name)

    async def described(collection: Collection) -> dict[str, Any]:
        shards = await context.fanout.describe(collection, timeout=context.timeout)
        schema = await payload_schema(context, collection)
        return describe(collection, shards) | {"payload_schema": schema}

    return answer(request, await context.directory.act(name, described))


def describe(collection: Collection, shards: list[ShardInfo]) -> dict[str, Any]:
    """A collection's info, of which ``shards`` tell."""
    errors = [shard.error for shard in shards if shard.error]
    building = any(shard.building for shard in shards)
    return {
        "status": "red" if errors else "yellow" if building else "green",
        "optimizer_status": {"error": errors[0]} if errors else "ok",
        "points_count": sum(shard.points for shard in shards),
        "indexed_vectors_count": sum(shard.indexed for shard in shards),
        "segments_count": sum(len(shard.segments) for shard in shards),
        "config": config_of(collection),
        "payload_schema": {},
        "shoal": {
            "recall_target": collection.config.recall_target,
            "shards": msgspec.to_builtins(shards),
        },
    }


def config_of(collection: Collection) -> dict[str, Any]:
    """A collection's settings as its info has them."""
    settings = collection.settings
    vectors = {
        name: {
            "size": one.dimension,
            "distance": one.distance,
            **settings.get("vectors", {}).get(name, {}),
        }
        for name, one in collection.config.vectors.items()
    }
    params = {
        "vectors": vectors[UNNAMED] if vectors.keys() == {UNNAMED} else vectors,
        "shard_number": collection.shard_count,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": settings.get("on_disk_payload", True),
    }
    optional: dict[str, Any] = {
        key: settings[key] for key in ("payload", "id_tracker") if key in settings
    }
    if collection.config.sparse:
        optional["sparse_vectors"] = settings.get("sparse_vectors", {})
    # Clients set it to zero for a while, and then to what it was.
    threshold = -(-collection.config.flat_threshold * _row_bytes(collection.config) // 1024)
    config = {
        "params": params | optional,
        "hnsw_config": _HNSW | settings.get("hnsw_config", {}),
        "optimizer_config": _OPTIMIZERS
        | {"indexing_threshold": threshold}
        | settings.get("optimizers_config", {}),
        "wal_config": _WAL | settings.get("wal_config", {}),
        "quantization_config": settings.get("quantization_config"),
    }
    if "metadata" in settings:
        config["metadata"] = settings["metadata"]
    return config
