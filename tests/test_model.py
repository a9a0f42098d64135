from __future__ import annotations

from uuid import UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.errors import InvalidInput
from shard.model import (
    Distance,
    PointId,
    VectorConfig,
    decode_ids,
    encode_id,
    encode_ids,
    shards_of,
)

ids = st.integers(0, 2**64 - 1) | st.uuids()


@given(st.lists(ids))
def test_ids_and_keys_are_one_to_one(points: list[PointId]) -> None:
    assert decode_ids(encode_ids(points)) == points


@given(st.lists(ids, min_size=2, unique=True))
def test_keys_sort_as_ids_do(points: list[PointId]) -> None:
    def order(point: PointId) -> tuple[bool, int]:
        return isinstance(point, UUID), point.int if isinstance(point, UUID) else point

    in_order = sorted(points, key=order)
    assert sorted(map(encode_id, points)) == [encode_id(point) for point in in_order]
    assert decode_ids(np.sort(encode_ids(points))) == in_order


@pytest.mark.parametrize("outside", [-1, 2**64])
def test_an_id_outside_of_64_bits_is_refused(outside: int) -> None:
    with pytest.raises(InvalidInput, match="expected an unsigned 64-bit integer or a UUID"):
        encode_id(outside)


@pytest.mark.parametrize("count", [1, 3, 16])
def test_shards_are_about_equal(count: int) -> None:
    shards = shards_of(encode_ids(range(20_000)), count)
    sizes = np.bincount(shards, minlength=count)
    assert len(sizes) == count
    assert sizes.min() > 0.8 * 20_000 / count


def test_a_split_into_twice_as_many_shards_moves_whole_halves() -> None:
    keys = encode_ids(range(5_000))
    assert (shards_of(keys, 8) // 2 == shards_of(keys, 4)).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e20, 3e38])
def test_cosine_vectors_become_unit_vectors_of_any_length(scale: float) -> None:
    config = VectorConfig(dimension=3, distance=Distance.COSINE)
    vectors = (np.array([[1, -1, 0.5], [0, 0, 0]]) * scale).astype(np.float32)
    before = vectors.copy()
    prepared = config.prepare(vectors)
    assert prepared.dtype == np.float32 and prepared.flags.c_contiguous
    np.testing.assert_allclose(np.linalg.norm(prepared, axis=1), [1, 0], rtol=1e-3)
    np.testing.assert_array_equal(vectors, before)


@pytest.mark.parametrize("distance", [Distance.DOT, Distance.EUCLID, Distance.MANHATTAN])
def test_other_vectors_are_kept_as_they_are(distance: Distance) -> None:
    vectors = np.array([[3, 4]], np.float32)
    assert VectorConfig(dimension=2, distance=distance).prepare(vectors) is vectors
