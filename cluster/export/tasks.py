"""What an export does in parallel: a shard's points into Parquet files, as ingest reads them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.catalog import Collection
from cluster.export.jobs import ExportedFile
from cluster.ingest.rows import EXPORTED, VECTOR
from shard.model import Points, ShardConfig, VectorColumn, VectorConfig, decode_ids
from shard.objects import open_object_store
from shard.recovery import read_points
from shard.scheduling import leave_cores_to_others

FILE_BYTES = 256 << 20
"""Raw vectors in a file, about."""
ROW_GROUP_BYTES = 16 << 20


class ExportWork(msgspec.Struct, frozen=True, kw_only=True):
    """What every task is told."""

    data: str
    scratch: str
    collection: Collection
    destination: str
    prefix: str


def export(work: ExportWork, shard: int) -> list[ExportedFile]:
    """Write the files of one shard. Those of an earlier attempt are replaced or deleted."""
    leave_cores_to_others()
    Path(work.scratch).mkdir(parents=True, exist_ok=True)
    destination = open_object_store(work.destination)
    config = work.collection.config
    exported: list[ExportedFile] = []
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        segments = Path(folder) / "segments"
        segments.mkdir()
        points = read_points(
            open_object_store(work.data),
            f"{work.collection.prefix}/shard-{shard:04d}",
            config,
            segments,
        )
        for part, (path, rows) in enumerate(_files(points, config, Path(folder))):
            name = f"shard-{shard:04d}-{part:06d}.parquet"
            destination.put_file(f"{work.prefix}{name}", path)
            exported.append(ExportedFile(name, path.stat().st_size, rows))
            path.unlink()
    named = {f"{work.prefix}{file.name}" for file in exported}
    for key in destination.list(f"{work.prefix}shard-{shard:04d}-"):
        if key not in named:
            destination.delete(key)
    return exported


def _files(
    points: Iterator[Points], config: ShardConfig, folder: Path
) -> Iterator[tuple[Path, int]]:
    """Parquet files in ``folder`` and how many rows each has; the next is made after it is used."""
    vectors = [
        pa.field(f"{VECTOR}.{name}" if name else VECTOR, _type_of(config.vectors.get(name)))
        for name in config.names
    ]
    schema = pa.schema(
        [
            pa.field("id", pa.string(), nullable=False),
            *vectors,
            pa.field("payload", pa.string()),
        ],
        {EXPORTED: b"1"},
    )
    per_group = max(1, ROW_GROUP_BYTES // max(1, config.row_bytes))
    most = max(per_group, FILE_BYTES // max(1, config.row_bytes))
    groups = _groups((_table(some, schema) for some in points), per_group)
    group = next(groups, None)
    while group is not None:
        path, rows = folder / "part.parquet", 0
        # Vectors do not compress, and a dictionary of them is of no use.
        with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
            while group is not None and (not rows or rows + group.num_rows <= most):
                writer.write_table(group)
                rows += group.num_rows
                group = next(groups, None)
        yield path, rows


def _groups(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``rows``, and a last one."""
    gathered: list[pa.Table] = []
    count = 0
    for table in tables:
        while table.num_rows:
            some = table.slice(0, rows - count)
            table = table.slice(some.num_rows)
            gathered.append(some)
            count += some.num_rows
            if count == rows:
                yield pa.concat_tables(gathered)
                gathered, count = [], 0
    if gathered:
        yield pa.concat_tables(gathered)


def _type_of(config: VectorConfig | None) -> pa.DataType:
    if config is None:
        return pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))])
    one = pa.list_(pa.float32(), config.dimension)
    return pa.list_(one) if config.multi else one


def _table(points: Points, schema: pa.Schema) -> pa.Table:
    assert points.payloads is not None
    vectors = [
        _array(column, field.type)
        for column, field in zip(points.vectors.values(), list(schema)[1:-1], strict=True)
    ]
    return pa.table(
        [
            pa.array([str(one) for one in decode_ids(points.keys)]),
            *vectors,
            pa.array([one.decode() or None for one in points.payloads], pa.string()),
        ],
        schema=schema,
    )


def _array(column: VectorColumn, kind: pa.DataType) -> pa.Array:
    """A null for a point without a vector."""
    missing = pa.array(~column.has())
    if column.indices is not None:
        offsets = pa.array(column.starts, pa.int32())
        parts = [
            pa.ListArray.from_arrays(offsets, pa.array(part))
            for part in (column.indices, column.values)
        ]
        return pa.StructArray.from_arrays(parts, fields=list(kind), mask=missing)
    dimension = column.values.shape[1]
    if pa.types.is_list(kind):
        flat = pa.FixedSizeListArray.from_arrays(pa.array(column.values.reshape(-1)), dimension)
        starts = np.arange(column.rows + 1) if column.starts is None else column.starts
        return pa.ListArray.from_arrays(pa.array(starts, pa.int32()), flat, mask=missing)
    values = column.values
    if column.starts is not None:
        values = np.zeros((column.rows, dimension), np.float32)
        values[column.has()] = column.values
    flat = pa.array(values.reshape(-1))
    return pa.FixedSizeListArray.from_arrays(
        flat, dimension, mask=None if column.starts is None else missing
    )
