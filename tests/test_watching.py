"""The benchmark of what watching costs: its switches work in a process that they are put into."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SWITCHED = Path("scripts/bench/switched").absolute()
PHASES = ["", "requests metrics traces", "requests", "requests metrics"]
LOOK = """
import importlib, json, pathlib, sitecustomize, sys, time

for name in sitecustomize._CHANGES:
    importlib.import_module(name)

from scripts.bench.watching import Schedule
from shard import usage
from shard.rpc.origin import Charge, Origin


def work():
    with usage.stage("scan"):
        pass


schedule = Schedule(time.perf_counter() + 1, 0.5, json.loads(sys.argv[2]))
schedule.write(pathlib.Path(sys.argv[1]))
seen = []
for phase in range(len(schedule.phases) + 1):
    time.sleep(max(0.0, schedule.begin(phase) + schedule.seconds / 2 - time.perf_counter()))
    _, measured = usage.measure(work)
    origin = Origin("one")
    origin.pay(Charge("server", "Search", 1.0, usage.Cost(measured.usage)))
    seen.append([*measured.stages, len(list(origin.charges()))])
print(json.dumps(seen))
"""


def test_parts_are_on_as_the_schedule_says(tmp_path: Path) -> None:
    told = tmp_path / "schedule"
    env = {
        **os.environ,
        "PYTHONPATH": f"{SWITCHED}:{Path.cwd()}",
        "SHOAL_BENCH_WATCHED": str(told),
    }
    command = [sys.executable, "-c", LOOK, str(told), json.dumps(PHASES)]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    nothing, everything = [0], ["scan", 1]
    assert json.loads(found.stdout) == [nothing, everything, nothing, everything, nothing]
