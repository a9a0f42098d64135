"""The model of what large collections need."""

from __future__ import annotations

import numpy as np
import pytest

from scripts.bench.scaling_model import (
    FLUSH_BYTES,
    LOG_GROUP_BYTES,
    MEASURED_SHARDS,
    Model,
    put_requests,
)
from shard import engine, write_queue


def test_a_fit_finds_what_the_measurements_were_made_of() -> None:
    made = Model(fixed_ms=0.3, scan_ms=2e-6, code_bytes=50.0, process_bytes=1e7, dimension=128)
    rows = np.array([1e5, 1e6, 5e6])
    cpu = np.array([made.cpu_ms(n, MEASURED_SHARDS, 128) for n in rows])
    fitted = Model.fit(rows, cpu, made.code_bytes + made.process_bytes / rows, 128)
    for name in ("fixed_ms", "scan_ms", "code_bytes", "process_bytes"):
        assert getattr(fitted, name) == pytest.approx(getattr(made, name))


def test_larger_shards_take_less_of_a_query() -> None:
    model = Model(fixed_ms=0.3, scan_ms=2e-6, code_bytes=50.0, process_bytes=1e7, dimension=128)
    assert model.cpu_ms(1e8, 5, 768) < model.cpu_ms(1e8, 20, 768)
    assert model.memory(1e8, 256) == pytest.approx(1e8 * (8 + 2 * 42))
    assert model.memory(1e8, 768) == pytest.approx(1e8 * (8 + 3 * 42))


def test_requests_are_counted_with_the_sizes_that_the_write_path_has() -> None:
    assert LOG_GROUP_BYTES == write_queue.MAX_GROUP_BYTES
    assert FLUSH_BYTES == engine.MEMTABLE_BYTES
    assert put_requests(2e6, 768) == pytest.approx(2 * put_requests(1e6, 768))
