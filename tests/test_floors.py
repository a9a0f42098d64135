"""No import goes up a floor, and only ``cluster`` knows Ray."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HTTP = {"fastapi", "starlette", "uvicorn", "httpx", "click", "rich"}
FORBIDDEN = {
    "shard": {"cluster", "router", "ray"} | HTTP,
    "cluster": {"router"} | HTTP,
    "router": {"ray"},
}


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            assert node.module is not None
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("floor", FORBIDDEN)
def test_no_import_goes_up_a_floor(floor: str) -> None:
    files = list((ROOT / floor).rglob("*.py"))
    assert files
    for path in files:
        wrong = FORBIDDEN[floor] & set(imports(path))
        assert not wrong, f"{path} imports {wrong}"


def test_a_router_runs_without_ray() -> None:
    code = "import sys, router.cli, router.serve, router.app; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
