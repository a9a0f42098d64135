"""What may be the key of an object."""

from __future__ import annotations

import re

from shard.errors import InvalidInput

MAX_KEY_BYTES = 900
"""S3 allows 1024; the rest is for the store's own prefix."""

_SEGMENT = r"(?!\.{1,2}(?:/|\Z))[A-Za-z0-9._=-]{1,255}"
_KEY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*")


def is_key(key: str) -> bool:
    """Whether ``key`` is ``/``-separated segments of ``[A-Za-z0-9._=-]``, none ``.`` or ``..``."""
    return len(key) <= MAX_KEY_BYTES and _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """``key`` itself. Raises InvalidInput when it is not one."""
    if not is_key(key):
        raise InvalidInput(
            f"object key {key[:80]!r}: expected '/'-separated segments of [A-Za-z0-9._=-], at most "
            f"{MAX_KEY_BYTES} bytes, none of them '.' or '..'"
        )
    return key
