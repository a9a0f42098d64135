"""What 100 million and a billion vectors need, by a model fitted to measured curves.

    .venv/bin/python -m scripts.bench.scaling_model ROWS.json

``ROWS.json`` is what ``python -m scripts.bench.scale rows`` has written. CPU time a query is
``fixed + scan * shards * sqrt(rows of a shard) * dimensions``: an index has in proportion to
sqrt(n) lists, so that the lists compared and the rows of the probed ones both grow with sqrt(n), as
long as nprobe need not. Memory a vector is its code, id and padding, and a part for each process.
Both are fitted by least squares to relative errors. Money is for orientation: the constants say
what was assumed.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from shard.index.ivfpq import code_width

MEASURED_SHARDS = 4
LEAST_INDEXED_ROWS = 100_000
"""Collections of fewer rows are scanned, and no measure of an index."""

DIMENSION = 768
ROWS = (100_000_000, 1_000_000_000)
SHARD_ROWS = (5_000_000, 20_000_000)
UTILISATION = 0.5
"""Of the cores, at the rate that is told; docs/scaling.md has the tail at this and others."""

# A node of a size that every cloud has, and its price on demand, rounded.
NODE_CORES, NODE_BYTES, NODE_DISK_BYTES, NODE_DOLLARS_AN_HOUR = 16, 128 * 2**30, 3.8e12, 1.0
MEMORY_SHARE = 0.6
"""Of a node's memory for indexes; the rest is builds, memtables and the page cache."""
DISK_SHARE = 0.6
"""Of a node's disk for segments; the rest is for merges, which need both their ends."""
# S3 in us-east-1, as listed in 2025: dollars a thousand PUTs, and a GB and month.
PUT_DOLLARS, STORED_DOLLARS = 0.005 / 1_000, 0.023
# What the write path does: `shard/write_queue.py`, `shard/engine.py`, `shard/merge_policy.py`.
LOG_GROUP_BYTES, FLUSH_BYTES, FILES_A_SEGMENT, MERGE_FACTOR = 4 << 20, 8 << 20, 5, 2


@dataclass(frozen=True)
class Model:
    fixed_ms: float
    scan_ms: float
    """For a shard, a square root of its rows, and a dimension."""
    code_bytes: float
    """Of memory, a vector of the measured ``dimension``."""
    process_bytes: float
    """Of memory beside that, of all shard servers measured together."""
    dimension: int

    @staticmethod
    def fit(
        rows: NDArray[np.float64],
        cpu_ms: NDArray[np.float64],
        memory: NDArray[np.float64],
        dimension: int,
    ) -> Model:
        """From CPU time a query and bytes of memory a vector, at those numbers of ``rows`` (n,)."""
        scanned = MEASURED_SHARDS * np.sqrt(rows / MEASURED_SHARDS) * dimension
        fixed, scan = _relative_fit(np.stack([np.ones(len(rows)), scanned], 1), cpu_ms)
        code, process = _relative_fit(np.stack([rows, np.ones(len(rows))], 1), memory * rows)
        return Model(fixed, scan, code, process, dimension)

    def cpu_ms(self, rows: float, shards: int, dimension: int) -> float:
        return self.fixed_ms + self.scan_ms * shards * sqrt(rows / shards) * dimension

    def memory(self, rows: float, dimension: int) -> float:
        """Bytes of all codes; all but the 8 of an id are in proportion to the codes' number."""
        codes = dimension / code_width(dimension)
        return rows * (
            8 + (self.code_bytes - 8) * codes * code_width(self.dimension) / self.dimension
        )


def _relative_fit(terms: NDArray[np.float64], measured: NDArray[np.float64]) -> tuple[float, float]:
    factors = np.linalg.lstsq(terms / measured[:, None], np.ones(len(measured)), rcond=None)[0]
    return float(factors[0]), float(factors[1])


def put_requests(rows: float, dimension: int) -> float:
    """PUTs to write ``rows`` once: the log, flushed segments, and each level of merges."""
    size = rows * 4 * dimension
    segments = size / FLUSH_BYTES
    # Merges halve the number of segments from level to level, so that there are as many again.
    return size / LOG_GROUP_BYTES + (FILES_A_SEGMENT + 2) * segments * MERGE_FACTOR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("measured", type=Path)
    measured = json.loads(parser.parse_args().measured.read_text())["rows"]
    measured = [row for row in measured if row["rows"] >= LEAST_INDEXED_ROWS]
    rows, cpu, memory = (
        np.array([row[name] for row in measured])
        for name in ("rows", "CPU ms/query", "anonymous memory, bytes/vector")
    )
    model = Model.fit(rows, cpu, memory, measured[0]["dimension"])
    console = Console(highlight=False)
    console.print(model)
    for count, took, used in zip(rows, cpu, memory, strict=True):
        fitted = model.cpu_ms(count, MEASURED_SHARDS, model.dimension)
        bytes_a_vector = model.code_bytes + model.process_bytes / count
        console.print(
            f"{count:,.0f} rows: CPU {took:.3f} ms/query measured, {fitted:.3f} fitted; "
            f"memory {used:.0f} bytes/vector measured, {bytes_a_vector:.0f} fitted",
            soft_wrap=True,
        )
    table = Table(
        "", *(f"{n / 1e6:,.0f}M in shards of {m / 1e6:.0f}M" for n in ROWS for m in SHARD_ROWS)
    )
    columns = [_needs(model, n, n // m) for n in ROWS for m in SHARD_ROWS]
    for name in columns[0]:
        table.add_row(name, *(column[name] for column in columns))
    console.print(table)


def _needs(model: Model, rows: int, shards: int) -> dict[str, str]:
    memory = model.memory(rows, DIMENSION)
    disk = rows * (4 * DIMENSION + memory / rows + 18)
    nodes = int(
        np.ceil(max(memory / (MEMORY_SHARE * NODE_BYTES), disk / (DISK_SHARE * NODE_DISK_BYTES)))
    )
    cpu = model.cpu_ms(rows, shards, DIMENSION)
    rate = UTILISATION * nodes * NODE_CORES * 1_000 / cpu
    puts = put_requests(rows, DIMENSION)
    return {
        "memory for codes, GB": f"{memory / 1e9:,.0f}",
        "disk, TB": f"{disk / 1e12:.2f}",
        "shards": f"{shards:,}",
        f"nodes of {NODE_CORES} cores, {NODE_BYTES / 2**30:.0f} GiB": f"{nodes}",
        "CPU ms a query": f"{cpu:,.0f}",
        f"queries/s of these nodes at {UTILISATION:.0%}": f"{rate:,.0f}",
        "dollars a million queries": f"{nodes * NODE_DOLLARS_AN_HOUR / 3_600 / rate * 1e6:,.1f}",
        "dollars a month, nodes": f"{nodes * NODE_DOLLARS_AN_HOUR * 730:,.0f}",
        "dollars a month, stored in S3": f"{disk / 1e9 * STORED_DOLLARS:,.0f}",
        "PUTs to write it once, at least, millions": f"{puts / 1e6:,.1f}",
        "dollars for these": f"{puts * PUT_DOLLARS:,.0f}",
    }


if __name__ == "__main__":
    main()
