"""Files of every kind become points, and what is wrong with a row is told."""

from __future__ import annotations

import datetime
import gzip
import io
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from cluster.ingest.jobs import Columns
from cluster.ingest.rows import NAMESPACE, Parsed, Parser
from cluster.ingest.sources import Source
from shard.errors import InvalidInput, NotFound
from shard.model import (
    UNNAMED,
    Distance,
    PointId,
    ShardConfig,
    SparseConfig,
    VectorConfig,
    decode_ids,
)
from tests import columns

D = 4
VECTORS = np.arange(40, dtype=np.float32).reshape(10, D)


FOUND = Columns()
CONFIG = ShardConfig.unnamed(D, Distance.EUCLID)


def read(path: Path, columns: Columns = FOUND, config: ShardConfig = CONFIG) -> list[Parsed]:
    source = Source(str(path))
    parsed = []
    for number, file in enumerate(source.files()):
        for part in source.ranges(number, file, 16):
            for batch in source.read(file, part):
                parser = Parser(columns, config, batch.columns.schema, file)
                parsed.append(parser.parse(batch))
    return parsed


def ids(parsed: list[Parsed]) -> list[PointId]:
    return [one for part in parsed for one in decode_ids(part.keys)]


def vectors(parsed: list[Parsed]) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return np.concatenate([part.vectors[UNNAMED].values for part in parsed])


def payloads(parsed: list[Parsed]) -> list[object]:
    return [orjson.loads(one) if one else None for part in parsed for one in part.payloads]


def bad(parsed: list[Parsed]) -> list[tuple[int, str]]:
    return [one for part in parsed for one in part.bad]


def listed(values: object, kind: pa.DataType) -> pa.Array:
    return pa.array(values, kind)


KINDS = [
    pa.list_(pa.float32()),
    pa.list_(pa.float32(), D),
    pa.large_list(pa.float64()),
    pa.list_(pa.float64(), D),
    pa.list_(pa.uint8()),
    pa.list_(pa.int8(), D),
    pa.list_(pa.float16(), D),
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_parquet_with_vectors_of_any_kind(tmp_path: Path, kind: pa.DataType) -> None:
    halves = kind.value_type == pa.float16()
    rows = [[np.float16(x) for x in row] if halves else row for row in VECTORS.astype(int).tolist()]
    table = pa.table({"id": list(range(10)), "vector": pa.array(rows, kind)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    parsed = read(tmp_path)
    assert ids(parsed) == list(range(10))
    assert np.array_equal(vectors(parsed), VECTORS)
    assert [one for part in parsed for one in part.rows.tolist()] == list(range(10))
    assert payloads(parsed) == [None] * 10 and not bad(parsed)


def test_rows_that_are_no_points(tmp_path: Path) -> None:
    rows = [
        [1, 2, 3, 4],
        None,
        [1, 2, 3],
        [1, 2, float("nan"), 4],
        [1, None, 3, 4],
        [1e39, 0, 0, 0],
    ]
    table = pa.table(
        {"id": pa.array([0, 1, 2, 3, None, -5]), "vector": pa.array(rows, pa.list_(pa.float64()))}
    )
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path)
    assert ids(parsed) == [0]
    assert bad(parsed) == [
        (1, "vector: null"),
        (2, "vector: expected dimension 4, got 3"),
        (3, "vector: a component is not a finite float32"),
        (4, "vector: a component is not a finite float32"),
        (5, "vector: a component is not a finite float32"),
    ]


def test_good_rows_among_bad_ones_keep_their_vectors(tmp_path: Path) -> None:
    rows = [[1.0] * D, None, [2.0], [3.0] * D, [4.0] * (D + 1), [5.0] * D]
    table = pa.table({"id": range(6), "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path)
    assert ids(parsed) == [0, 3, 5]
    assert vectors(parsed)[:, 0].tolist() == [1, 3, 5]
    fixed = pa.array([[1.0] * D, None, [3.0] * D], pa.list_(pa.float32(), D))
    pq.write_table(pa.table({"id": range(3), "vector": fixed}), tmp_path / "a.parquet")
    assert vectors(read(tmp_path))[:, 0].tolist() == [1, 3]


def test_ids(tmp_path: Path) -> None:
    own = "7a1d1f0e-0c2b-5d8e-9a57-6f1f4b2f7c12"
    given = ["17", own, "doc#1", None, "", "18446744073709551616"]
    table = pa.table({"id": given, "vector": pa.array([[1.0] * D] * 6), "n": range(6)})
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path)
    assert ids(parsed) == [
        17,
        UUID(own),
        uuid5(NAMESPACE, "doc#1"),
        uuid5(NAMESPACE, ""),
        uuid5(NAMESPACE, "18446744073709551616"),
    ]
    assert payloads(parsed)[:3] == [{"n": 0}, {"n": 1}, {"n": 2, "id": "doc#1"}]
    assert bad(parsed) == [(3, "id: expected an unsigned integer or a string, got None")]
    big = pa.table({"id": pa.array([2**64 - 1], pa.uint64()), "vector": [[1.0] * D]})
    pq.write_table(big, tmp_path / "a.parquet")
    assert ids(read(tmp_path)) == [2**64 - 1]
    signed = pa.table({"id": [-1, 1], "vector": [[1.0] * D] * 2})
    pq.write_table(signed, tmp_path / "a.parquet")
    assert bad(read(tmp_path)) == [(0, "id: -1 is negative")]


def test_rows_without_an_id_get_one_of_file_and_row(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    np.save(tmp_path / "x" / "a.npy", VECTORS)
    assert ids(read(tmp_path)) == [
        uuid5(NAMESPACE, f"{tmp_path}/x/a.npy#{row}") for row in range(10)
    ]


def test_payloads_of_columns_and_of_json(tmp_path: Path) -> None:
    when = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "id": [1, 2],
            "values": [[1.0] * D] * 2,
            "sparse_values": pa.nulls(2),
            "metadata": ['{"a": [1, null], "b": null}', "no JSON"],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path)
    assert payloads(parsed) == [{"a": [1, None], "b": None}]
    assert bad(parsed)[0][0] == 1 and bad(parsed)[0][1].startswith("metadata: ")
    table = pa.table(
        {
            "embedding": [[1.0] * D],
            "title": ["é"],
            "when": [when],
            "raw": [b"\x00\xff"],
            "nothing": pa.nulls(1),
            "nested": [{"x": [1, 2], "y": None}],
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert payloads(read(tmp_path)) == [
        {
            "title": "é",
            "when": "2026-01-02T03:04:05+00:00",
            "raw": "AP8=",
            "nested": {"x": [1, 2], "y": None},
        }
    ]
    assert payloads(read(tmp_path, Columns(payload=["title"]))) == [{"title": "é"}]
    assert payloads(read(tmp_path, Columns(payload="nested"))) == [{"x": [1, 2]}]
    for wrong in (Columns(vector="v"), Columns(id="v"), Columns(payload="v")):
        with pytest.raises(InvalidInput, match="no column 'v'"):
            read(tmp_path, wrong)


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_lines_of_json(tmp_path: Path, suffix: str) -> None:
    lines = [
        {"id": 1, "vector": [1, 2, 3, 4], "payload": {"a": 1}},
        {"id": 2, "vector": [1, 2, 3]},
        "no object",
        {"id": 3, "vector": [1, 2, 3, 4.5], "payload": None},
        {"id": 4},
        {"id": "x", "vector": [1, "2", 3, 4]},
        {"vector": [0, 0, 0, 1]},
    ]
    data = b"\n".join(map(orjson.dumps, lines)) + b"\n{broken"
    path = tmp_path / f"a.{suffix}"
    if suffix.endswith("gz"):
        path.write_bytes(gzip.compress(data))
    elif suffix.endswith("zst"):
        path.write_bytes(pa.compress(data, "zstd", asbytes=True))
    else:
        path.write_bytes(data)
    parsed = read(tmp_path)
    assert [row for part in parsed for row in part.rows.tolist()] == [0, 3]
    assert ids(parsed) == [1, 3]
    assert payloads(parsed) == [{"a": 1}, None]
    told = dict(bad(parsed))
    assert told[1] == "vector: expected dimension 4, got 3"
    assert told[2].startswith("unparsable") and told[7].startswith("unparsable")
    assert told[4] == "vector: null"
    assert told[5] == "vector: expected a list of numbers"
    assert told[6] == "id: expected an unsigned integer or a string, got None"
    path.write_bytes(b'{"vector": [0, 0, 0, 1], "a": 1}')
    if suffix == "jsonl":
        parsed = read(tmp_path)
        assert ids(parsed) == [uuid5(NAMESPACE, f"{path}#0")]
        assert payloads(parsed) == [{"a": 1}]


def test_feather_and_arrow(tmp_path: Path) -> None:
    table = pa.table({"id": range(10), "vector": VECTORS.tolist()})
    feather.write_feather(table, str(tmp_path / "a.feather"), chunksize=4)
    with pa.ipc.new_file(str(tmp_path / "b.arrow"), table.schema) as out:
        out.write_table(table, 3)
    parsed = read(tmp_path)
    assert ids(parsed) == [*range(10)] * 2
    assert np.array_equal(vectors(parsed), np.concatenate([VECTORS, VECTORS]))


def test_the_formats_of_the_ann_field(tmp_path: Path) -> None:
    small = VECTORS.astype(np.uint8)
    header = np.array(VECTORS.shape, np.uint32).tobytes()
    dims = np.full((10, 1), D, np.int32)
    (tmp_path / "a.fvecs").write_bytes(np.hstack([dims.view(np.float32), VECTORS]).tobytes())
    (tmp_path / "b.bvecs").write_bytes(np.hstack([dims.view(np.uint8), small]).tobytes())
    (tmp_path / "c.fbin").write_bytes(header + VECTORS.tobytes())
    (tmp_path / "d.u8bin").write_bytes(header + small.tobytes())
    (tmp_path / "e.i8bin").write_bytes(header + VECTORS.astype(np.int8).tobytes())
    np.save(tmp_path / "f.npy", VECTORS.astype(np.float64))
    parsed = read(tmp_path)
    assert np.array_equal(vectors(parsed), np.concatenate([VECTORS] * 6))
    for name, data in (("a.fvecs", b"\x04\x00\x00\x00abc"), ("c.fbin", header), ("f.npy", b"no")):
        alone = tmp_path / name.replace(".", "")
        alone.mkdir()
        (alone / name).write_bytes(data)
        with pytest.raises(InvalidInput, match=name):
            read(alone)


def test_files_are_found_by_directory_by_name_and_by_glob(tmp_path: Path) -> None:
    for name in ("b/2.npy", "b/1.npy", "a.npy", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / "x.npy", VECTORS[:1])
        (tmp_path / "x.npy").rename(tmp_path / name)

    def names(url: str) -> list[str]:
        return [file.name for file in Source(url).files()]

    assert names(str(tmp_path)) == ["a.npy", "b/1.npy", "b/2.npy"]
    assert names(f"file://{tmp_path}/b/1.npy") == ["1.npy"]
    assert names(f"{tmp_path}/b/[12].npy") == ["1.npy", "2.npy"]
    assert names(f"{tmp_path}/*/1.npy") == ["b/1.npy"]
    for missing in ("c", "b/notes.txt", "z*"):
        with pytest.raises(NotFound):
            names(f"{tmp_path}/{missing}")
    for wrong in ("gs://b/x", "s3://"):
        with pytest.raises(InvalidInput):
            names(wrong)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table([[1], [2], [[1.0] * D]], names=["id", "id", "vector"]), "same name"),
        (pa.table({"id": [1], "vector": [["1", None, "2", "3"]]}), "columns.vector"),
    ],
)
def test_columns_that_cannot_be_read_are_told(
    tmp_path: Path, table: pa.Table, message: str
) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=message):
        read(tmp_path)


def test_odd_payloads(tmp_path: Path) -> None:
    when = pa.array([1_700_000_000_000_000_001], pa.timestamp("ns"))
    table = pa.table({"id": [1], "vector": [[1.0] * D], "when": when})
    pq.write_table(table, tmp_path / "a.parquet")
    assert payloads(read(tmp_path)) == [{"when": "2023-11-14T22:13:20"}]
    (tmp_path / "a.parquet").unlink()
    lines = [
        {"id": 1, "vector": [0] * D, "title": "x"},
        {"id": 2, "vector": [0] * D, "title": "y", "metadata": {"a": 1}},
        {"id": 3, "vector": [0] * D, "metadata": [1]},
        {"id": 4, "vector": [0] * D, "metadata": ["ab", "cd"]},
    ]
    deep = b'{"id": 5, "vector": [0, 0, 0, 0], "x": ' + b"[" * 300 + b"]" * 300 + b"}"
    data = b"\n".join([*map(orjson.dumps, lines), deep])
    (tmp_path / "a.jsonl").write_bytes(data)
    parsed = read(tmp_path)
    assert payloads(parsed) == [{"title": "x"}, {"a": 1}]
    assert [row for row, _ in bad(parsed)] == [2, 3, 4]


def test_strings_that_are_not_quite_ids_keep_apart(tmp_path: Path) -> None:
    given = ["7", "007", "9" * 5_000, "0x" + "1" * 30]
    table = pa.table({"id": given, "vector": [[1.0] * D] * len(given)})
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path)
    assert ids(parsed) == [7, *(uuid5(NAMESPACE, one) for one in given[1:])]
    assert payloads(parsed)[1] == {"id": "007"}


def test_damaged_and_changed_files_are_named(tmp_path: Path) -> None:
    vectors = np.ones((20, D), np.float32)
    np.save(tmp_path / "a.npy", vectors)
    source = Source(str(tmp_path))
    (file,) = source.files()
    (part,) = source.ranges(0, file, 16)
    np.save(tmp_path / "a.npy", np.ones((30, D), np.float32))
    with pytest.raises(InvalidInput, match=r"a\.npy: it has changed"):
        list(source.read(file, part))
    (tmp_path / "a.npy").unlink()
    with pytest.raises(InvalidInput, match=r"a\.npy"):
        list(source.read(file, part))

    def header(shape: tuple[int, ...]) -> bytes:
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            buffer, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
        return buffer.getvalue()

    damaged = {
        "a.npy": header((10**15, 0)),
        "b.npy": header((-5, 4)),
        "c.jsonl.gz": b"no gzip",
        "d.parquet": b"PAR1 nothing PAR1",
        "e.arrow": b"ARROW1\0\0 nothing",
        "f.fbin": np.array([1_000, 0], "<u4").tobytes(),
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InvalidInput, match=name):
            read(tmp_path)
        (tmp_path / name).unlink()
    rows = np.hstack([np.full((4, 1), 4, "<i4").view("<f4"), np.ones((4, 4), "<f4")])
    rows[2, 0] = np.array(9, "<i4").view("<f4")
    (tmp_path / "g.fvecs").write_bytes(rows.astype("<f4").tobytes())
    with pytest.raises(InvalidInput, match=r"g\.fvecs: expected rows of dimension 4"):
        read(tmp_path)
    # The end of a name says what it is, in capitals too; and brackets may be a name.
    (tmp_path / "g.fvecs").unlink()
    odd = tmp_path / "data[1]"
    odd.mkdir()
    line = orjson.dumps({"id": 1, "vector": [1] * D})
    (odd / "A.JSONL.GZ").write_bytes(gzip.compress(line))
    assert ids(read(odd)) == [1]


def test_a_damaged_batch_is_not_looked_into(tmp_path: Path) -> None:
    flat = pa.array(np.ones(4 * D, np.float32))
    offsets = pa.array([0, D, 10_000_000, 3 * D, 4 * D], pa.int32())
    lists = pa.Array.from_buffers(
        pa.list_(pa.float32()), 4, [None, offsets.buffers()[1]], children=[flat]
    )
    batch = pa.record_batch([pa.array([1, 2, 3, 4]), lists], names=["id", "vector"])
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out,
        pa.ipc.new_file(out, batch.schema) as to,
    ):
        to.write_batch(batch)
    with pytest.raises(InvalidInput, match=r"a\.arrow"):
        read(tmp_path)


# Vectors by name

HYBRID = ShardConfig(
    vectors={UNNAMED: VectorConfig(dimension=D, distance=Distance.DOT)},
    sparse={"text": SparseConfig()},
)
NAMED = ShardConfig(
    vectors={
        "image": VectorConfig(dimension=D, distance=Distance.DOT),
        "tokens": VectorConfig(dimension=2, distance=Distance.DOT, multi=True),
    },
    sparse={"text": SparseConfig()},
)


def plain_rows(parsed: list[Parsed], name: str, config: ShardConfig) -> list[columns.Row]:
    return [row for part in parsed for row in columns.plain(name, part.vectors[name], config)]


def sparse(*given: tuple[list[Any], list[Any]] | None) -> list[Any]:
    return [one and dict(zip(("indices", "values"), one, strict=True)) for one in given]


SPARSE_TYPES = [
    pa.struct([("indices", pa.list_(pa.uint32())), ("values", pa.list_(pa.float32()))]),
    pa.struct([("values", pa.large_list(pa.float64())), ("indices", pa.list_(pa.int64()))]),
]


@pytest.mark.parametrize("kind", [*SPARSE_TYPES, "jsonl"], ids=str)
def test_files_as_pinecone_has_them(tmp_path: Path, kind: pa.DataType | str) -> None:
    values = VECTORS[:4].tolist()
    sparse_values = sparse(([7, 2], [0.5, -1.0]), None, ([], []), ([2**32 - 1], [2.0]))
    metadata = [{"n": 0}, None, {"n": 2}, {"n": 3}]
    if isinstance(kind, str):
        rows = zip("abcd", values, sparse_values, metadata, strict=True)
        names = ("id", "values", "sparse_values", "metadata")
        lines = [orjson.dumps(dict(zip(names, row, strict=True))) for row in rows]
        (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    else:
        table = pa.table(
            {
                "id": list("abcd"),
                "values": values,
                "sparse_values": pa.array(sparse_values, kind),
                "metadata": [None if one is None else orjson.dumps(one) for one in metadata],
            }
        )
        pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path, config=HYBRID)
    assert not bad(parsed)
    assert ids(parsed) == [uuid5(NAMESPACE, one) for one in "abcd"]
    assert np.array_equal(vectors(parsed), VECTORS[:4])
    found = plain_rows(parsed, "text", HYBRID)
    assert found == [{2: -1.0, 7: 0.5}, None, {}, {2**32 - 1: 2.0}]
    assert payloads(parsed) == [
        {"n": 0, "id": "a"}, {"id": "b"}, {"n": 2, "id": "c"}, {"n": 3, "id": "d"},
    ]  # fmt: skip
    # A collection without sparse vectors lets them be.
    assert payloads(read(tmp_path)) == payloads(parsed)


def test_columns_are_found_by_the_vectors_names(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": [1, 2, 3, 4],
            "vector.image": pa.array([VECTORS[0], None, VECTORS[2], None]),
            "tokens": [[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0]], None, None],
            "text": pa.array(sparse(([1], [1.0]), None, ([2], [2.0]), None), SPARSE_TYPES[0]),
            "n": range(4),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    parsed = read(tmp_path, config=NAMED)
    assert ids(parsed) == [1, 2, 3]
    assert bad(parsed) == [(3, "no vector")]
    image = [tuple(row) for row in VECTORS.tolist()]
    assert plain_rows(parsed, "image", NAMED) == [image[0], None, image[2]]
    assert plain_rows(parsed, "tokens", NAMED) == [((1, 2), (3, 4)), ((5, 6),), None]
    assert plain_rows(parsed, "text", NAMED) == [{1: 1}, None, {2: 2}]
    assert payloads(parsed) == [{"n": 0}, {"n": 1}, {"n": 2}]
    pq.write_table(table.select(["id", "n"]), tmp_path / "a.parquet")
    with pytest.raises(InvalidInput, match=r"columns.vector: none of .* has vectors; name it"):
        read(tmp_path, config=NAMED)


def test_columns_are_told_by_the_vectors_names(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image": pa.array(VECTORS[:2].tolist()),  # Not what is asked for.
            "picture": pa.array(VECTORS[2:4].tolist()),
            "bag": pa.array(sparse(([1], [1.0]), None), SPARSE_TYPES[0]),
            "sparse_values": pa.nulls(2),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    told = Columns(vectors={"image": "picture", "text": "bag"})
    parsed = read(tmp_path, told, NAMED)
    picture = [tuple(row) for row in VECTORS[2:4].tolist()]
    assert plain_rows(parsed, "image", NAMED) == picture
    assert plain_rows(parsed, "text", NAMED) == [{1: 1}, None]
    assert plain_rows(parsed, "tokens", NAMED) == [None, None]
    assert payloads(parsed) == [{"image": row} for row in VECTORS[:2].tolist()]
    for wrong, message in (
        ({"other": "picture"}, "columns.vectors: the collection has no vectors 'other'"),
        ({"image": "x"}, r"columns.vectors: no column 'x' in a\.parquet"),
    ):
        with pytest.raises(InvalidInput, match=message):
            read(tmp_path, Columns(vectors=wrong), NAMED)
    lines = [{"id": 1, "bag": {"indices": [3], "values": [4]}}, {"id": 2, "picture": [1, 2, 3, 4]}]
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    parsed = read(tmp_path, told, NAMED)
    assert plain_rows(parsed, "image", NAMED) == [None, (1, 2, 3, 4)]
    assert plain_rows(parsed, "text", NAMED) == [{3: 4}, None]


BAD_SPARSE: list[tuple[Any, str]] = [
    ({"indices": [1, 1], "values": [1, 2]}, "indices: must be unique"),
    ({"indices": [1, 2], "values": [1]}, "values: expected as many as indices, 2"),
    ({"indices": [1], "values": [1, 2]}, "values: expected as many as indices, 1"),
    ({"indices": [-1], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [2**32], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [None], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [1], "values": [None]}, "values: expected numbers"),
    ({"indices": [1], "values": [1e39]}, "values: a number is out of range for float32"),
    ({"indices": None, "values": [1]}, "indices, values: expected lists"),
]
BAD_JSON_SPARSE: list[tuple[Any, str]] = [
    ({"indices": [1.5], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [True], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": ["1"], "values": [1]}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [1], "values": ["1"]}, "values: expected numbers"),
    ({"indices": "1", "values": "1"}, "indices: expected unsigned 32-bit integers"),
    ({"indices": [1]}, "expected `indices` and `values`"),
    ({"indices": [1], "values": [1], "more": 1}, "expected `indices` and `values`"),
    ([1, 2, 3, 4], "expected `indices` and `values`"),
    (7, "expected `indices` and `values`"),
]


def test_bad_sparse_vectors_are_bad_rows(tmp_path: Path) -> None:
    good = {"indices": [5, 3], "values": [1.0, 2.0]}
    given = [
        good,
        *(one for one, _ in BAD_SPARSE),
        {"indices": [1], "values": [float("nan")]},
        good,
    ]
    kind = pa.struct([("indices", pa.list_(pa.int64())), ("values", pa.list_(pa.float64()))])
    table = pa.table(
        {"id": range(len(given)), "vector": [[1.0] * D] * len(given), "text": pa.array(given, kind)}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    messages = [*(message for _, message in BAD_SPARSE), "values: a number is out of range for"]
    parsed = read(tmp_path, config=HYBRID)
    check_bad(parsed, "text", messages)
    assert ids(parsed) == [0, len(given) - 1]
    assert plain_rows(parsed, "text", HYBRID) == [{3: 2, 5: 1}] * 2

    both = BAD_SPARSE + BAD_JSON_SPARSE
    lines = [
        orjson.dumps({"id": number, "vector": [1] * D, "text": one})
        for number, one in enumerate([good, *(one for one, _ in both), good])
    ]
    (tmp_path / "a.parquet").unlink()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    parsed = read(tmp_path, config=HYBRID)
    check_bad(parsed, "text", [message for _, message in both])
    assert plain_rows(parsed, "text", HYBRID) == [{3: 2, 5: 1}] * 2


def check_bad(parsed: list[Parsed], name: str, messages: list[str]) -> None:
    """The rows from the second on are bad, and told so."""
    told = bad(parsed)
    assert [row for row, _ in told] == list(range(1, len(messages) + 1))
    for (_, own), message in zip(told, messages, strict=True):
        assert own.startswith(f"vector {name!r}: {message}")


def test_bad_ones_of_several_vectors_are_bad_rows(tmp_path: Path) -> None:
    given: list[tuple[Any, str]] = [
        ([], "expected a list of one or more vectors"),
        ([1, 2], "expected a list of one or more vectors"),
        ([[1, 2], [1]], "Vector dimension error: expected dim: 2, got 1"),
        ([[1, 2, 3]], "Vector dimension error: expected dim: 2, got 3"),
        ([[1, None]], "vectors: expected numbers"),
        ([[1, 1e39]], "vectors: a number is out of range for float32"),
        ("x", "expected a list of one or more vectors"),
    ]
    rows = [[[1, 2]], *(one for one, _ in given), [[3, 4], [5, 6]]]
    lines = [orjson.dumps({"id": number, "tokens": one}) for number, one in enumerate(rows)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    parsed = read(tmp_path, config=NAMED)
    check_bad(parsed, "tokens", [message for _, message in given])
    assert plain_rows(parsed, "tokens", NAMED) == [((1, 2),), ((3, 4), (5, 6))]


def test_nulls_among_lines_are_vectors_that_are_not_there(tmp_path: Path) -> None:
    lines = [
        {"id": 1, "vector": None},
        {"id": 2},
        {"id": 3, "vector": [1, 2, 3, 4]},
        {"id": 4, "vector": None, "text": {"indices": [1], "values": [2]}},
        {"id": 5, "text": None},
    ]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(map(orjson.dumps, lines)))
    parsed = read(tmp_path)
    assert ids(parsed) == [3]
    # The last one is read apart from the others, with columns of its own.
    assert bad(parsed) == [*((row, "vector: null") for row in (0, 1, 3)), (4, "no 'vector'")]
    parsed = read(tmp_path, config=HYBRID)
    assert ids(parsed) == [3, 4]
    assert bad(parsed) == [(row, "no vector") for row in (0, 1, 4)]
    assert plain_rows(parsed, UNNAMED, HYBRID) == [(1, 2, 3, 4), None]
    assert plain_rows(parsed, "text", HYBRID) == [None, {1: 2}]
