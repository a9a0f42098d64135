"""The image: what can be told of it without building it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.settings import ENVIRONMENT
from tests.kubernetes import render

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "deploy" / "image"
BIN = Path(sys.executable).parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def lines_of(instruction: str) -> list[str]:
    joined = DOCKERFILE.replace("\\\n", " ")
    return re.findall(rf"^{instruction} +(.*)$", joined, re.MULTILINE)


def requirements(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, IMAGE / "requirements", ROOT / "requirements.lock", *arguments],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def names_in(lock: str) -> set[str]:
    return set(re.findall("^([a-z0-9-]+)==", lock, re.MULTILINE))


def needed_by(package: str) -> set[str]:
    """What is installed here because of ``package``, by what the packages say of themselves."""
    found: set[str] = set()
    open_ = [Requirement(package)]
    while open_:
        one = open_.pop()
        for text in distribution(one.name).requires or []:
            needed = Requirement(text)
            extras = one.extras or {""}
            if needed.marker and not any(needed.marker.evaluate({"extra": e}) for e in extras):
                continue
            name = canonicalize_name(needed.name)
            if name not in found:
                found.add(name)
                open_.append(needed)
    return found


def test_hadolint_has_nothing_to_say() -> None:
    checked = subprocess.run(
        [BIN / "hadolint", ROOT / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout) == (0, "")


def test_the_compose_file_is_one() -> None:
    schema = ("--builtin-schema", "vendor.compose-spec")
    subprocess.run(
        [BIN / "check-jsonschema", *schema, ROOT / "deploy" / "compose.yaml"], check=True
    )


def test_the_image_has_what_shoal_needs_and_nothing_to_build_or_test_with() -> None:
    (traces,) = re.findall(r"^ENV TRACES=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert DOCKERFILE.count("./requirements requirements.lock --with=${TRACES}") == 2
    lock = requirements(f"--with={traces}")
    there = names_in(lock)
    assert needed_by("shoal[otel]") | {"opentelemetry-sdk", traces} <= there
    assert not there & {"pytest", "moto", "mypy", "qdrant-client", "hatchling", "pip", "setuptools"}
    blocks = re.split("^(?=[a-z0-9])", lock, flags=re.MULTILINE)[1:]
    assert all("==" in block and "--hash=sha256:" in block for block in blocks)


LOCKS = (ROOT / "requirements.lock", IMAGE / "requirements-gpu.lock")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_everything_is_pinned_and_hashed(lock: Path) -> None:
    wanted = re.compile(
        r"[a-z0-9][a-z0-9-]*(\[[a-z0-9,-]+\])?==\S+( ; .+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n"
    )
    lines = lock.read_text().splitlines(keepends=True)
    text = "".join(line for line in lines if not re.match(" *#|$", line))
    blocks = re.split("^(?=[^ ])", text, flags=re.MULTILINE)[1:]
    assert blocks
    assert [block for block in blocks if not wanted.fullmatch(block)] == []


def test_all_that_is_asked_for_is_locked_at_a_version_that_will_do() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = [*project["project"]["dependencies"], *project["dependency-groups"]["dev"]]
    for extra in project["project"]["optional-dependencies"].values():
        asked += extra
    versions: dict[str, set[str]] = {}
    for lock in LOCKS:
        for name, locked in re.findall(
            r"^([a-z0-9-]+)[^=\n]*==(\S+)", lock.read_text(), re.MULTILINE
        ):
            versions.setdefault(name, set()).add(locked)
    for one in map(Requirement, asked):
        found = versions.get(canonicalize_name(one.name), set())
        assert found, one
        assert all(one.specifier.contains(each) for each in found), one


def test_what_is_installed_from_elsewhere_is_checked_by_its_hash() -> None:
    joined = DOCKERFILE.replace("\\\n", " ")
    installs = re.findall(r"\bpip [^&\n]*\binstall [^&\n]*", joined)
    bootstrap = (ROOT / "scripts" / "bootstrap").read_text()
    installs += re.findall("^install .*", bootstrap, re.MULTILINE)
    assert len(installs) == 7
    for one in installs:
        # The latter is of what has been built of this repository.
        assert "--require-hashes" in one or "--no-deps" in one, one


def test_where_pythons_differ_all_their_versions_are_there() -> None:
    assert re.findall("^numpy==.*; (python_full_version [<>]=?)", requirements(), re.MULTILINE) == [
        "python_full_version <",
        "python_full_version >=",
    ]


def test_one_faiss_is_replaced_by_the_other() -> None:
    there = names_in(requirements("--without=faiss-cpu"))
    gpu = (IMAGE / "requirements-gpu.lock").read_text()
    assert "faiss-cpu" in names_in(requirements())
    assert "faiss-cpu" not in there
    assert "faiss-gpu" in names_in(gpu)
    # Twice, pip would refuse it.
    assert not there & names_in(gpu)


def test_what_builds_it_is_locked_too() -> None:
    assert needed_by("hatchling") | {"hatchling"} <= names_in(requirements("hatchling"))


def test_a_name_that_is_not_locked_is_told() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        requirements("--without=fais-cpu")
    assert "requirements.lock has no fais-cpu" in failed.value.stderr


def test_it_runs_as_the_chart_has_it() -> None:
    variables = dict(re.findall(r"(\w+)=(\S+)", " ".join(lines_of("ENV"))))
    assert variables.items() >= ENVIRONMENT.items()
    (user,) = lines_of("USER")
    for pod in render({}).pods():
        context = pod.spec["securityContext"]
        assert user == f"{context['runAsUser']}:{context['runAsGroup']}"
    assert json.loads(lines_of("CMD")[-1])[0] == "shoal"


def test_what_it_copies_is_there_and_sent_to_the_builder() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    assert sent[0] == "*"
    for line in lines_of("COPY"):
        if line.startswith("--from"):
            continue
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(f"!{one}" in sent for one in (source, *map(str, Path(source).parents)))


def test_the_last_stages_have_no_tools() -> None:
    stages = {
        name: base for base, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)
    }
    assert list(stages)[-1] == "cpu"
    for target in ("cpu", "gpu"):
        assert stages[target] == "run"
    assert stages["run"] == stages["build"] == "python:${PYTHON}"
    run = DOCKERFILE[DOCKERFILE.index("AS run") :]
    assert "pip uninstall --yes" in run
    assert "pip install" not in run
    assert "apt-get" not in run
