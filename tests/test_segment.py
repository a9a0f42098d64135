from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import xxhash

from shard.errors import Corrupt
from shard.index.exact import scan
from shard.index.ivfpq import IvfPqIndex
from shard.model import (
    UNNAMED,
    Distance,
    Mask,
    Points,
    ShardConfig,
    SparseConfig,
    VectorColumn,
    VectorColumns,
    Vectors,
    decode_ids,
    encode_ids,
    unnamed,
)
from shard.segment import Segment, build_indexes, segment_files, verify, write_segment
from tests import columns
from tests.columns import MANY, SOME, WHOLE, WORDS

CONFIG = ShardConfig.unnamed(7, Distance.EUCLID, flat_threshold=1)


def clustered(rows: int, dimension: int, seed: int) -> Vectors:
    chance = np.random.default_rng(seed)
    centers = np.random.default_rng(1).normal(size=(30, dimension)) * 2
    vectors: Vectors = (
        centers[chance.integers(30, size=rows)] + chance.normal(size=(rows, dimension))
    ).astype(np.float32)
    return vectors


def prepared(config: ShardConfig, vectors: Vectors) -> Vectors:
    return config.vectors[UNNAMED].prepare(vectors)


def write_dense(directory: Path, vectors: Vectors, config: ShardConfig, batch: int = 1_000) -> None:
    directory.mkdir()
    write(directory, unnamed(vectors), config, batch)


def write(directory: Path, vectors: VectorColumns, config: ShardConfig, batch: int = 1_000) -> None:
    rows = next(iter(vectors.values())).rows
    keys = encode_ids(range(0, 2 * rows, 2))
    payloads = [b'{"row":%d}' % row if row % 3 else b"" for row in range(rows)]
    write_segment(
        directory,
        (
            Points(
                keys[start : start + batch],
                payloads[start : start + batch],
                {
                    name: column.slice(start, min(start + batch, rows))
                    for name, column in vectors.items()
                },
            )
            for start in range(0, rows, batch)
        ),
        rows,
        config,
    )


@pytest.mark.parametrize(("rows", "batch"), [(0, 5), (1, 5), (5, 5), (23, 5)])
def test_what_is_written_is_read(tmp_path: Path, rows: int, batch: int) -> None:
    vectors = clustered(rows, 7, 0)
    write_dense(tmp_path / "segment", vectors, CONFIG, batch)
    verify(tmp_path / "segment")
    segment = Segment.open(tmp_path / "segment", CONFIG)
    assert segment.rows == rows
    assert decode_ids(segment.keys) == [*range(0, 2 * rows, 2)]
    every = np.arange(rows)[::-1]
    np.testing.assert_array_equal(segment.vectors(UNNAMED, every).values, vectors[::-1])
    expected = [b'{"row":%d}' % row if row % 3 else b"" for row in every.tolist()]
    assert segment.payloads(every) == expected
    found = segment.find(encode_ids([0, 1, 2 * rows - 2, 2 * rows] if rows else [0]))
    assert found.tolist() == ([0, -1, rows - 1, -1] if rows else [-1])


def test_a_segment_goes_on_when_its_files_are_unlinked(tmp_path: Path) -> None:
    write_dense(tmp_path / "segment", clustered(2_000, 7, 0), CONFIG)
    segment = Segment.open(tmp_path / "segment", CONFIG)
    for name in segment_files(tmp_path / "segment"):
        (tmp_path / "segment" / name).unlink()
    assert segment.payloads(np.array([1_999])) == [b'{"row":1999}']
    assert segment.vectors(UNNAMED, np.array([1_500])).values.shape == (1, 7)


@pytest.mark.parametrize("count", [0, 1, 5, 23])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_vectors_of_all_kinds_are_read_as_written(tmp_path: Path, count: int, batch: int) -> None:
    vectors = columns.drawn(np.random.default_rng(count), count)
    write(tmp_path, vectors, columns.CONFIG, batch)
    verify(tmp_path)
    segment = Segment.open(tmp_path, columns.CONFIG)
    rows = np.random.default_rng(batch).permutation(count)
    for name, column in vectors.items():
        given = columns.plain(name, column)
        assert columns.plain(name, segment.vectors(name, rows)) == [given[row] for row in rows]
        assert segment.has(name).tolist() == [row is not None for row in given]
    assert not segment.has("other").any()


def test_files_are_only_those_that_are_wanted(tmp_path: Path) -> None:
    vectors = columns.drawn(np.random.default_rng(0), 50)
    whole = dict.fromkeys(columns.CONFIG.vectors, vectors[WHOLE])
    written = {}
    for number, given in enumerate((vectors, vectors | whole)):
        directory = tmp_path / str(number)
        directory.mkdir()
        write(directory, given, columns.CONFIG, 7)
        written[number] = set(segment_files(directory))
        assert written[number] == {path.name for path in directory.iterdir()}
    assert written[0] - written[1] == {"starts-1.npy", "starts-2.npy"}
    assert written[1] == {
        *("segment.json", "keys.npy", "payloads.arrow"),
        *(f"vectors-{number}.npy" for number in range(4)),
        *(f"{part}-3.npy" for part in ("starts", "indices", "present")),
        *(f"postings-{part}-3.npy" for part in ("terms", "starts", "rows", "values")),
    }


def test_names_with_enough_vectors_get_an_index_each(tmp_path: Path) -> None:
    config = columns.config_of(flat_threshold=1_000, recall_target=0.5)
    rows = 1_200  # Of which two thirds have some, and as many have two on average.
    vectors = columns.drawn(np.random.default_rng(0), rows, config)
    assert len(vectors[SOME].values) < 1_000 < len(vectors[MANY].values)
    write(tmp_path, vectors, config)
    calibrations = build_indexes(tmp_path, config)
    assert calibrations.keys() == {WHOLE, MANY}
    verify(tmp_path)
    segment = Segment.open(tmp_path, config)
    assert segment.indexed and segment.calibrate(config) == calibrations
    kinds = {name: segment.column(name).name.partition("8")[0] for name in config.names}
    assert kinds[SOME] == "flat" and kinds[WORDS] == "postings"
    assert kinds[WHOLE].startswith("IVF") and kinds[MANY].startswith("IVF")


@pytest.mark.parametrize("part", ["starts", "present", "indices"])
def test_vectors_that_are_not_of_these_rows_are_refused(tmp_path: Path, part: str) -> None:
    """Files that are as they were written, but not the ones that belong together."""
    own, other = tmp_path / "own", tmp_path / "other"
    for directory, rows in ((own, 50), (other, 51)):
        directory.mkdir()
        write(directory, columns.drawn(np.random.default_rng(rows), rows), columns.CONFIG)
    name = f"{part}-3.npy"
    (own / name).write_bytes((other / name).read_bytes())
    header = msgspec.json.decode((own / "segment.json").read_bytes().splitlines()[0])
    header["files"][name] = msgspec.json.decode(
        (other / "segment.json").read_bytes().splitlines()[0]
    )["files"][name]
    line = msgspec.json.encode(header)
    (own / "segment.json").write_bytes(line + b"\n" + xxhash.xxh3_64_hexdigest(line).encode())
    verify(own)
    with pytest.raises(Corrupt):
        Segment.open(own, columns.CONFIG)


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.999])
@pytest.mark.parametrize("kinds", ["one", "all"])
def test_every_flipped_bit_is_found(tmp_path: Path, place: float, kinds: str) -> None:
    directory = tmp_path / "segment"
    config = CONFIG if kinds == "one" else columns.config_of(flat_threshold=1)
    directory.mkdir()
    write(directory, columns.drawn(np.random.default_rng(0), 3_000, config), config)
    assert build_indexes(directory, config).keys() == config.vectors.keys()
    verify(directory)
    assert len(segment_files(directory)) == (5 if kinds == "one" else 19)
    for name in segment_files(directory):
        path = directory / name
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[int(place * len(whole))] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(Corrupt):
            verify(directory)
        path.write_bytes(whole[: int(place * len(whole))])
        with pytest.raises(Corrupt):
            Segment.open(directory, CONFIG)
        path.unlink()
        with pytest.raises(Corrupt):
            Segment.open(directory, CONFIG)
        path.write_bytes(whole)
    verify(directory)


def test_a_segment_of_another_shape_is_refused(tmp_path: Path) -> None:
    write_dense(tmp_path / "segment", clustered(10, 7, 0), CONFIG)
    for other in (
        ShardConfig.unnamed(8, Distance.EUCLID),
        ShardConfig.unnamed(7, Distance.DOT),
        ShardConfig(vectors={"named": CONFIG.vectors[UNNAMED]}),
        msgspec.structs.replace(CONFIG, sparse={"words": SparseConfig()}),
    ):
        with pytest.raises(Corrupt):
            Segment.open(tmp_path / "segment", other)


@pytest.mark.parametrize("dimension", [15, 24])
@pytest.mark.parametrize("distance", list(Distance))
def test_an_index_reaches_its_target_on_queries_it_has_not_seen(
    tmp_path: Path, distance: Distance, dimension: int
) -> None:
    config = ShardConfig.unnamed(dimension, distance, recall_target=0.9, flat_threshold=1)
    vectors = prepared(config, clustered(6_000, dimension, 0))
    write_dense(tmp_path / "segment", vectors, config)
    calibration = build_indexes(tmp_path / "segment", config)[UNNAMED]
    assert calibration.recall >= calibration.target == 0.9
    segment = Segment.open(tmp_path / "segment", config)
    column = segment.column(UNNAMED)
    assert segment.indexed and column.name.startswith("IVF")
    queries = VectorColumn(prepared(config, clustered(300, dimension, 1)))

    nprobe, oversampling = calibration.nprobe, calibration.oversampling

    def recall(alive: Mask | None) -> float:
        near, scores = column.search(
            queries, 10, exact=False, nprobe=nprobe, oversampling=oversampling, alive=alive
        )
        truth, _ = column.search(
            queries, 10, exact=True, nprobe=None, oversampling=None, alive=alive
        )
        assert (near >= 0).all()
        rank = -1 if distance.higher_is_nearer else 1
        assert (np.diff(rank * scores, axis=1) >= 0).all()
        hits = sum(len(set(a) & set(b)) for a, b in zip(near.tolist(), truth.tolist(), strict=True))
        return hits / near.size

    assert recall(None) >= 0.87
    assert recall(np.random.default_rng(2).random(len(vectors)) < 0.5) >= 0.85
    easier = msgspec.structs.replace(config, recall_target=0.5)
    assert segment.calibrate(easier)


def test_shards_reach_the_target_together_with_less_than_each_would_alone(tmp_path: Path) -> None:
    shards = 6
    alone = ShardConfig.unnamed(24, Distance.EUCLID, recall_target=0.9, flat_threshold=1)
    config = msgspec.structs.replace(alone, share=1 / shards)
    vectors, queries = clustered(60_000, 24, 0), clustered(300, 24, 1)
    truth, _ = scan(vectors, queries, 10, Distance.EUCLID, None)
    found, scores = [], []
    for shard in range(shards):
        directory = tmp_path / str(shard)
        write_dense(directory, vectors[shard::shards], config)
        calibration = build_indexes(directory, config)[UNNAMED]
        segment = Segment.open(directory, config)
        by_itself = segment.calibrate(alone)[UNNAMED]
        effort, more = (one.nprobe * one.oversampling for one in (calibration, by_itself))
        assert effort < more
        rows, own = segment.column(UNNAMED).search(
            VectorColumn(queries),
            10,
            exact=False,
            nprobe=calibration.nprobe,
            oversampling=calibration.oversampling,
            alive=None,
        )
        found.append(rows * shards + shard)
        scores.append(own)
    nearest = np.argsort(np.concatenate(scores, axis=1), axis=1)[:, :10]
    merged = np.take_along_axis(np.concatenate(found, axis=1), nearest, axis=1)
    hits = [len(set(a) & set(b)) for a, b in zip(merged.tolist(), truth.tolist(), strict=True)]
    assert np.mean(hits) / 10 >= 0.88


def test_few_live_rows_are_all_found(tmp_path: Path) -> None:
    config = ShardConfig.unnamed(16, Distance.COSINE, flat_threshold=1)
    vectors = prepared(config, clustered(8_000, 16, 0))
    write_dense(tmp_path / "segment", vectors, config)
    assert build_indexes(tmp_path / "segment", config)
    column = Segment.open(tmp_path / "segment", config).column(UNNAMED)
    queries = VectorColumn(vectors[:5])
    alive = np.zeros(len(vectors), np.bool_)
    live = np.random.default_rng(4).choice(len(vectors), 30, False)
    alive[live] = True
    rows, _ = column.search(queries, 30, exact=False, nprobe=1, oversampling=1.0, alive=alive)
    assert all(sorted(row) == sorted(live.tolist()) for row in rows.tolist())
    rows, _ = column.search(queries, 50, exact=False, nprobe=1, oversampling=1.0, alive=alive)
    assert ((rows >= 0).sum(axis=1) == 30).all()


def test_zero_vectors_do_not_crowd_out_the_others(tmp_path: Path) -> None:
    config = ShardConfig.unnamed(16, Distance.COSINE, flat_threshold=1)
    vectors = prepared(config, clustered(6_000, 16, 0))
    vectors[::2] = 0
    write_dense(tmp_path / "segment", vectors, config)
    calibration = build_indexes(tmp_path / "segment", config).get(UNNAMED)
    column = Segment.open(tmp_path / "segment", config).column(UNNAMED)
    queries = VectorColumn(prepared(config, clustered(50, 16, 1)))
    rows, scores = column.search(
        queries,
        10,
        exact=calibration is None,
        nprobe=calibration.nprobe if calibration else None,
        oversampling=calibration.oversampling if calibration else None,
        alive=None,
    )
    assert (rows % 2 == 1).all()
    assert (scores > 0.3).all()


def test_a_target_out_of_reach_leaves_the_segment_flat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Candidates at random: no nprobe makes anything of them.
    def random(self: IvfPqIndex, queries: Vectors, count: int, *rest: object) -> object:
        return np.random.default_rng(0).integers(0, self.rows, (len(queries), count))

    monkeypatch.setattr(IvfPqIndex, "candidates", random)
    write_dense(tmp_path / "segment", clustered(20_000, 7, 0), CONFIG)
    assert build_indexes(tmp_path / "segment", CONFIG) == {}
    segment = Segment.open(tmp_path / "segment", CONFIG)
    assert not segment.indexed and segment.column(UNNAMED).name == "flat"
    assert segment.calibrate(CONFIG) == {}


@pytest.mark.parametrize(
    ("dimension", "codes", "distance"),
    [(7, 4, Distance.EUCLID), (511, 256, Distance.COSINE), (513, 129, Distance.EUCLID)],
)
def test_dimensions_that_codes_do_not_divide(
    tmp_path: Path, dimension: int, codes: int, distance: Distance
) -> None:
    config = ShardConfig.unnamed(dimension, distance, flat_threshold=1)
    vectors = prepared(config, clustered(2_050, dimension, 0))
    stored, queries = vectors[50:], VectorColumn(vectors[:50])
    write_dense(tmp_path / "segment", stored, config)
    assert build_indexes(tmp_path / "segment", config)
    column = Segment.open(tmp_path / "segment", config).column(UNNAMED)
    assert column.name.endswith(f",PQ{codes}x4fs")
    found, _ = column.search(queries, 10, exact=False, nprobe=None, oversampling=None, alive=None)
    truth, _ = column.search(queries, 10, exact=True, nprobe=None, oversampling=None, alive=None)
    hits = [len(np.intersect1d(one, true)) for one, true in zip(found, truth, strict=True)]
    assert np.mean(hits) > 9


@pytest.mark.parametrize("rows", [1, 2, 11, 40])
def test_an_index_over_few_rows(tmp_path: Path, rows: int) -> None:
    write_dense(tmp_path / "segment", clustered(rows, 7, 0), CONFIG)
    build_indexes(tmp_path / "segment", CONFIG)
    column = Segment.open(tmp_path / "segment", CONFIG).column(UNNAMED)
    queries = VectorColumn(clustered(3, 7, 1))
    found, _ = column.search(queries, 50, exact=False, nprobe=None, oversampling=None, alive=None)
    assert ((found >= 0).sum(axis=1) == rows).all()
