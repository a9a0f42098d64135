"""Slices of all points, even and always the same: by SipHash-2-4 of their ids, as in Qdrant.

Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with a key of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from shard.model import KEY_BYTES, Keys, decode_id, encode_id

_MASK = 2**64 - 1
_NUMBER = encode_id(0)[0]
_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def slice_of(key: bytes, total: int) -> int:
    """Which of ``total`` slices the point with that key is in."""
    id = decode_id(key)
    return siphash(id.bytes if isinstance(id, UUID) else id.to_bytes(8, "little")) % total


def slices_of(keys: Keys, total: int) -> NDArray[np.uint64]:
    """The same of many points at once, (n,)."""
    # A key is a byte that says what it is, and the id in 16 bytes, before its last one.
    bytes = np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)
    hashes = np.empty(len(keys), np.uint64)
    numbers = bytes[:, 0] == _NUMBER
    low = np.ascontiguousarray(bytes[numbers, 9:17]).view(">u8").astype(np.uint64)
    hashes[numbers] = _siphash([low[:, 0]], 8)
    words = np.ascontiguousarray(bytes[~numbers, 1:17]).view("<u8").astype(np.uint64)
    hashes[~numbers] = _siphash([words[:, 0], words[:, 1]], 16)
    return hashes % np.uint64(total)


def siphash(message: bytes) -> int:
    """64 bits."""
    whole = len(message) // 8 * 8
    words = [int.from_bytes(message[at : at + 8], "little") for at in range(0, whole, 8)]
    rest = int.from_bytes(message[whole:], "little")
    hashed: int = _siphash(words, len(message), rest)
    return hashed


def _siphash(words: Sequence[Any], length: int, rest: Any = 0) -> Any:
    """Of a message of ``length`` bytes: ``words`` of eight, and those that remain. Numbers, or
    arrays of them."""
    v0, v1, v2, v3 = _START
    for word in (*words, rest | length % 256 << 56):
        v0, v1, v2, v3 = _rounds(2, v0, v1, v2, v3 ^ word)
        v0 = v0 ^ word
    v0, v1, v2, v3 = _rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(count: int, v0: Any, v1: Any, v2: Any, v3: Any) -> tuple[Any, Any, Any, Any]:
    for _ in range(count):
        v0 = (v0 + v1) & _MASK
        v2 = (v2 + v3) & _MASK
        v1 = _rotated(v1, 13) ^ v0
        v3 = _rotated(v3, 16) ^ v2
        v0 = (_rotated(v0, 32) + v3) & _MASK
        v2 = (v2 + v1) & _MASK
        v1 = _rotated(v1, 17) ^ v2
        v3 = _rotated(v3, 21) ^ v0
        v2 = _rotated(v2, 32)
    return v0, v1, v2, v3


def _rotated(value: Any, bits: int) -> Any:
    return (value << bits | value >> (64 - bits)) & _MASK
