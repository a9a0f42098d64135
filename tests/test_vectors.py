"""Columns of vectors against lists of plain rows, and their bytes."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shard.errors import InvalidInput
from shard.growing import GrowingColumn
from shard.model import Distance, ShardConfig, VectorColumn, unnamed
from shard.packing import Packed, pack, unpack
from tests import columns
from tests.columns import CONFIG, DIMENSION, MANY, SOME, WHOLE, WORDS, Row, column, plain

names = pytest.mark.parametrize("name", CONFIG.names)


def some_rows(data: st.DataObject, name: str, least: int = 0) -> list[Row]:
    return data.draw(st.lists(columns.rows[name], min_size=least, max_size=8), label="rows")


@names
@given(data=st.data())
def test_which_points_have_vectors_and_how_many(name: str, data: st.DataObject) -> None:
    rows = some_rows(data, name)
    own = column(name, rows)
    assert plain(name, own) == rows
    assert own.rows == len(rows)
    assert own.has().tolist() == [row is not None for row in rows]
    counts = [0 if row is None else 1 if name in (WHOLE, SOME) else len(row) for row in rows]
    assert own.lengths.tolist() == counts
    assert own.row_of().tolist() == [row for row, count in enumerate(counts) for _ in range(count)]
    assert own.nbytes >= own.values.nbytes == 4 * own.values.size


@names
@given(data=st.data())
def test_rows_are_taken_in_any_order(name: str, data: st.DataObject) -> None:
    rows = some_rows(data, name, 1)
    places = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12), label="places")
    own = column(name, rows)
    taken = own.take(np.array(places, np.int64))
    assert plain(name, taken) == [rows[place] for place in places]
    assert not np.shares_memory(taken.values, own.values)


@names
@given(data=st.data())
def test_a_slice_is_that_of_the_list(name: str, data: st.DataObject) -> None:
    rows = some_rows(data, name)
    first = data.draw(st.integers(0, len(rows)), label="first")
    end = data.draw(st.integers(first, len(rows)), label="end")
    some = column(name, rows).slice(first, end)
    assert plain(name, some) == rows[first:end]
    # And is as good a column as any.
    order = np.arange(end - first)[::-1]
    assert plain(name, some.take(order)) == rows[first:end][::-1]
    assert plain(name, VectorColumn.concatenate([some, some])) == rows[first:end] * 2


@names
@given(data=st.data())
def test_columns_one_after_the_other(name: str, data: st.DataObject) -> None:
    parts = [some_rows(data, name) for _ in range(data.draw(st.integers(1, 4), label="parts"))]
    joined = VectorColumn.concatenate([column(name, rows) for rows in parts])
    assert plain(name, joined) == [row for rows in parts for row in rows]


@names
@given(data=st.data())
def test_what_has_grown_is_all_that_was_appended(name: str, data: st.DataObject) -> None:
    parts = [some_rows(data, name) for _ in range(data.draw(st.integers(0, 4), label="parts"))]
    grown = GrowingColumn(CONFIG.empty(name), data.draw(st.integers(1, 5), label="capacity"))
    seen = [(grown.used, list[Row]())]
    for rows in parts:
        grown.append(column(name, rows))
        seen.append((grown.used, seen[-1][1] + rows))
    # What was used before stays as it was.
    for used, rows in seen:
        assert plain(name, used) == rows


@names
@pytest.mark.parametrize("count", [0, 1, 3])
def test_points_without_vectors(name: str, count: int) -> None:
    empty = CONFIG.empty(name, count)
    assert empty.rows == count
    assert plain(name, empty) == [None] * count
    assert plain(name, empty.take(np.arange(count))) == [None] * count


# As they are stored


def test_names_left_out_are_empty_and_vectors_of_cosine_at_unit_length() -> None:
    config = columns.config_of(Distance.COSINE)
    given: dict[str, list[Row]] = {
        SOME: [None, (3.0, 0.0, 4.0)],
        MANY: [((0.0, 2.0, 0.0), (0.0, 0.0, 0.0)), None],
    }
    prepared = config.prepare({name: column(name, rows) for name, rows in given.items()}, 2)
    assert prepared.keys() == set(config.names)
    assert {name: plain(name, own) for name, own in prepared.items()} == {
        WHOLE: [None, None],
        SOME: [None, pytest.approx((0.6, 0.0, 0.8))],
        MANY: [((0.0, 1.0, 0.0), (0.0, 0.0, 0.0)), None],
        WORDS: [None, None],
    }


def test_where_all_have_one_vector_there_are_no_starts() -> None:
    values = np.ones((2, DIMENSION), np.float32)
    of_one_each = VectorColumn(values, np.array([0, 1, 2]))
    prepared = CONFIG.prepare({WHOLE: of_one_each, MANY: of_one_each}, 2)
    assert prepared[WHOLE].starts is None
    assert plain(MANY, prepared[MANY]) == [((1.0,) * DIMENSION,)] * 2


DENSE = VectorColumn(np.ones((2, DIMENSION), np.float32))
SPARSE = column(WORDS, [{1: 1.0}, None])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other": DENSE}, "Not existing vector name error: other"),
        (unnamed(DENSE.values), "Not existing vector name error: "),
        ({WHOLE: DENSE.slice(0, 1)}, "vectors 'whole': 1 for 2 points"),
        ({WORDS: SPARSE.slice(0, 1)}, "vectors 'words': 1 for 2 points"),
        ({WORDS: DENSE}, "vectors 'words': expected sparse ones"),
        ({WHOLE: SPARSE}, "vectors 'whole': expected 3, got ()"),
        ({MANY: SPARSE}, "vectors 'many': expected 3, got ()"),
        ({SOME: VectorColumn(DENSE.values[:, :2])}, "vectors 'some': expected 3, got (2,)"),
        ({SOME: VectorColumn(DENSE.values, np.array([0, 2, 2]))}, "vectors 'some': expected one a"),
    ],
)
def test_columns_of_another_form_are_refused(given: dict[str, VectorColumn], message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        CONFIG.prepare(given, 2)
    assert message in str(raised.value)


# As bytes


def as_sent(packed: Packed) -> Packed:
    """As it comes back from the log or the wire, where nothing begins at a whole word."""
    encoded = b"\0" + msgspec.msgpack.encode(packed)
    return msgspec.msgpack.decode(memoryview(encoded)[1:], type=Packed)


@names
@given(data=st.data())
def test_packed_vectors_come_back(name: str, data: st.DataObject) -> None:
    rows = some_rows(data, name)
    own = column(name, rows)
    back = unpack(as_sent(pack(own)), len(rows), name)
    assert plain(name, back) == rows
    assert back.values.shape == own.values.shape
    assert back.values.dtype == np.float32 and back.values.flags.aligned
    assert (back.starts is None) == (own.starts is None)


@names
@given(data=st.data())
def test_parts_of_columns_are_packed_alone(name: str, data: st.DataObject) -> None:
    rows = some_rows(data, name, 3)
    some = column(name, rows).slice(1, len(rows) - 1)
    assert plain(name, unpack(pack(some), some.rows, name)) == rows[1:-1]


def packed(dimension: int, **arrays: list[Any]) -> Packed:
    types = {"values": "<f4", "lengths": "<u4", "indices": "<u4", "present": "?"}
    parts = {name: np.array(arrays.get(name, []), form).data for name, form in types.items()}
    return Packed(dimension, **{name: part.cast("B") for name, part in parts.items()})


def cut(packed: Packed, part: str) -> Packed:
    return msgspec.structs.replace(packed, **{part: getattr(packed, part)[:-1]})


TWO_DENSE = packed(2, values=[1, 2, 3, 4])
TWO_OF_THREE = packed(2, values=[1, 2, 3, 4], lengths=[0, 2, 0])
TWO_SPARSE = packed(0, values=[1, 2, 3], lengths=[2, 1], indices=[5, 7, 5], present=[True, True])


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        (TWO_DENSE, 3, "expected those of 3 points, got 2"),
        (TWO_OF_THREE, 2, "expected those of 2 points, got 3"),
        (TWO_SPARSE, 3, "expected those of 3 points, got 2"),
        (packed(0, lengths=[0, 0]), 3, "expected those of 3 points, got 2"),
        (packed(0), 1, "expected those of 1 points, got 0"),
        (packed(3, values=[1, 2, 3, 4]), 1, "cannot reshape"),
        (cut(TWO_DENSE, "values"), 2, "buffer size must be a multiple"),
        (cut(TWO_OF_THREE, "lengths"), 3, "buffer size must be a multiple"),
        (cut(TWO_SPARSE, "indices"), 2, "buffer size must be a multiple"),
        (cut(TWO_SPARSE, "present"), 2, "1 marks for 2 points"),
        (packed(2, values=[1, 2, 3, 4], lengths=[1, 2]), 2, "lengths add up to 3, not to 2"),
        (packed(2, values=[1, 2, 3, 4], lengths=[0, 1]), 2, "lengths add up to 1, not to 2"),
        (
            packed(0, values=[1, 2], lengths=[2**32 - 1] * 2, indices=[1, 2]),
            2,
            "add up to 85899345",
        ),
        (packed(0, values=[1], indices=[1]), 1, "lengths add up to 0, not to 1"),
        (packed(0, values=[1, 2], lengths=[2], indices=[5]), 1, "1 indices for 2 values"),
        (packed(0, values=[1], lengths=[1], indices=[5, 6]), 1, "2 indices for 1 values"),
        (packed(0, values=[1, 2], lengths=[2], indices=[5, 5]), 1, "indices are not ascending"),
        (packed(0, values=[1, 2], lengths=[0, 2], indices=[7, 5]), 2, "indices are not ascending"),
        (
            packed(0, values=[1, 2, 3], lengths=[1, 2], indices=[1, 9, 2]),
            2,
            "indices are not ascending",
        ),
        (
            packed(0, values=[1], lengths=[0, 1], indices=[5], present=[True, False]),
            2,
            "components of points that have no vector",
        ),
    ],
)
def test_bytes_that_are_no_column_are_refused(given: Packed, rows: int, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        unpack(given, rows, "text")
    assert "vectors 'text': " in str(raised.value)
    assert message in str(raised.value)


@settings(max_examples=300)
@given(
    dimension=st.integers(0, 3),
    parts=st.tuples(*[st.binary(max_size=16)] * 4),
    rows=st.integers(0, 4),
)
def test_any_bytes_are_a_column_or_refused(
    dimension: int, parts: tuple[bytes, ...], rows: int
) -> None:
    try:
        found = unpack(Packed(dimension, *[memoryview(part) for part in parts]), rows, "text")
    except InvalidInput:
        return
    assert found.rows == len(found.has()) == rows
    assert found.lengths.sum() == len(found.values)
    assert found.take(np.arange(rows)[::-1]).rows == rows
    if found.indices is not None:
        config = ShardConfig(sparse=CONFIG.sparse)
        assert len(plain(WORDS, found, config)) == rows
