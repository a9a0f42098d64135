"""A conditional put whose outcome is known."""

from __future__ import annotations

import random
import time

from shard.errors import NotFound, Unavailable
from shard.objects import ObjectStore

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0


def put_once(store: ObjectStore, key: str, data: bytes, timeout: float) -> bool:
    """Create the object, unless another writer has: True when it is there with this ``data``.

    No other writer may ever write the same bytes: put something random in. A try whose outcome is
    unknown is repeated, with pauses, and an object found in the way is then read to tell whose it
    is. Raises Unavailable when that is still unknown after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    pause = _FIRST_PAUSE
    unknown = False
    while True:
        try:
            if store.put_if_absent(key, data):
                return True
            return unknown and store.get(key) == data
        except Unavailable:
            unknown = True
            if time.monotonic() > deadline:
                raise
        except NotFound as error:
            raise Unavailable(f"object {key!r} came and went; it may have been ours") from error
        time.sleep(random.uniform(0, pause))  # noqa: S311 - a pause
        pause = min(2 * pause, _LONGEST_PAUSE)
