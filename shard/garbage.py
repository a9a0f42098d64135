"""The garbage collector looks for cycles less often than it would."""

from __future__ import annotations

import gc

YOUNG_OBJECTS = 10_000
"""How many more objects there may be before the young ones are looked through. Python's 700 are
reached by the requests of a few dozen clients that are under way together, which hold hardly any
cycles: in a router that took a twentieth of its time."""


def spare_garbage_collector() -> None:
    """Leave what was imported until now out of every look, and look more rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
