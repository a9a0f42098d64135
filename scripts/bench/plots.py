"""Draws what the benchmarks have written: SVG files beside their JSON.

    .venv-peers/bin/python scripts/bench/plots.py DIRECTORY

Runs in the peers' environment, without Shoal. Of ``DIRECTORY`` it takes each JSON file of
``python -m scripts.bench`` and of ``python -m scripts.bench.scale``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
# The same figures make the same file, and text stays text.
matplotlib.rcParams |= {"svg.hashsalt": "shoal", "svg.fonttype": "none", "font.size": 9}
from matplotlib import pyplot  # noqa: E402 - the backend is chosen before

SIZE = (6.4, 3.8)
_COUNTED = ("rows", "shards", "routers")
"""What a file of ``scripts.bench.scale`` counts up, the first key of its rows."""


def main() -> None:
    for path in sorted(Path(sys.argv[1]).glob("*.json")):
        measured = json.loads(path.read_text())
        if "curves" in measured:
            title = f"{measured['data']}, {measured['rows']:,} rows, {measured['cores']} cores"
            for name, lines in measured["curves"].items():
                stem = f"{path.stem}-{name.replace(' ', '-')}"
                DRAWN[name](lines, title, path.with_name(f"{stem}.svg"))
            continue
        rows = measured.get("rows")
        if "data" in measured and len(rows) > 1 and next(iter(rows[0])) in _COUNTED:
            draw_scale(rows, measured["data"], path.with_suffix(".svg"))


def draw_recall(lines: dict[str, Any], title: str, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for name, points in lines.items():
        recalls, rates = zip(*sorted(points), strict=True)
        axes.plot(recalls, rates, marker="o", markersize=4, label=name)
    axes.axvline(0.95, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xlabel="recall@10", ylabel="queries a second", yscale="log", title=title)
    _finish(figure, axes, path)


def draw_latency(lines: dict[str, Any], title: str, path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=SIZE, layout="constrained")
    for colour, (name, points) in zip(("C0", "C1"), lines.items(), strict=False):
        rates, p50, p99, _ = zip(*sorted(points), strict=True)
        axes.plot(rates, p50, marker="o", markersize=4, color=colour, label=f"{name}, p50")
        axes.plot(rates, p99, "--", marker="^", markersize=4, color=colour, label=f"{name}, p99")
    axes.set(xlabel="queries a second", ylabel="milliseconds", title=title, xlim=0, ylim=0)
    _finish(figure, axes, path)


def draw_scale(rows: list[dict[str, float]], title: str, path: Path) -> None:
    counted, *names = (name for name in rows[0] if name != "dimension")
    figure, every = pyplot.subplots(
        -(-len(names) // 3), 3, figsize=(9, 2.3 * -(-len(names) // 3)), layout="constrained"
    )
    for axes, name in zip(every.flat, names, strict=False):
        axes.plot([row[counted] for row in rows], [row[name] for row in rows], marker="o")
        axes.set(xlabel=counted, title=name, xscale="log", ylim=0)
        axes.grid(alpha=0.3)
    for axes in every.flat[len(names) :]:
        axes.remove()
    figure.suptitle(title)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _finish(figure: Any, axes: Any, path: Path) -> None:
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


DRAWN = {"recall and rate": draw_recall, "latency against load": draw_latency}


if __name__ == "__main__":
    main()
