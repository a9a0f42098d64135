"""Slices of all points, even and always the same: by SipHash-2-4 of their ids, as in Qdrant.

Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012), with a key of zeros.
"""

from __future__ import annotations

from uuid import UUID

from shard.model import decode_id

_MASK = 2**64 - 1
_START = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)


def slice_of(key: bytes, total: int) -> int:
    """Which of ``total`` slices the point with that key is in."""
    id = decode_id(key)
    return siphash(id.bytes if isinstance(id, UUID) else id.to_bytes(8, "little")) % total


def siphash(message: bytes) -> int:
    """64 bits."""
    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    v0, v1, v2, v3 = _START
    for first in range(0, len(padded), 8):
        word = int.from_bytes(padded[first : first + 8], "little")
        v0, v1, v2, v3 = _rounds(2, v0, v1, v2, v3 ^ word)
        v0 ^= word
    v0, v1, v2, v3 = _rounds(4, v0, v1, v2 ^ 0xFF, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _rounds(count: int, v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
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


def _rotated(value: int, bits: int) -> int:
    return (value << bits | value >> (64 - bits)) & _MASK
