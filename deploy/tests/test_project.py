"""What a stranger relies on: one version, checks on each Python promised, hooks that run."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.utils.module_loading import import_string
from packaging.specifiers import SpecifierSet

from deploy.tests.test_locks import LOCKS, PRIVATE, ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
DEBIANS = {"bookworm": "15", "trixie": "17"}  # the PostgreSQL of each
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def load(path: str | Path) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in load(workflow)["jobs"].values() for step in job["steps"]]


def commands(workflow: Path) -> str:
    return "\n".join(step.get("run", "") for step in steps(workflow))


# -- The version and the licence ------------------------------------------------------------------


def test_the_version_stands_once() -> None:
    project = PYPROJECT["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    version = import_string(PYPROJECT["tool"]["setuptools"]["dynamic"]["version"]["attr"])
    assert version == settings.VERSION
    assert json.loads((ROOT / "docs/openapi.json").read_text())["info"]["version"] == version
    releases = re.findall(r"^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == ("Unreleased", "")
    assert releases[1][0] == version, "the changelog's newest release is another version"
    assert all(re.fullmatch(r" - \d{4}-\d\d-\d\d", date) for _, date in releases[1:])


def test_the_licence_lies_where_the_metadata_says() -> None:
    project = PYPROJECT["project"]
    assert project["license"] == "Apache-2.0"
    texts = [(ROOT / name).read_text() for name in project["license-files"]]
    assert "Apache License\n" in texts[0]
    assert "END OF TERMS AND CONDITIONS" in texts[0]
    for path in re.findall(r"^\* ([\w/-]+):", texts[1], re.MULTILINE):
        assert (ROOT / path / "LICENSE").is_file(), f"NOTICE names {path}, without a licence there"


# -- Workflows ------------------------------------------------------------------------------------


def test_every_python_that_is_promised_is_tested() -> None:
    project = PYPROJECT["project"]
    matrix = load(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert matrix["python"] == named
    minors = [int(version.split(".")[1]) for version in named]
    assert minors == list(range(minors[0], minors[-1] + 1)), "one in between is missing"
    promised = SpecifierSet(project["requires-python"])
    assert all(version in promised for version in named)
    assert f"3.{minors[0] - 1}" not in promised, "an older one is promised and not tested"
    assert PYPROJECT["tool"]["mypy"]["python_version"] == named[0]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == named[0].replace("3.", "py3")
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"python{version}" in makefile for version in named)
    assert f"--python-version {named[0]}" in makefile


def test_each_postgresql_comes_from_the_debian_that_has_it() -> None:
    job = load(".github/workflows/ci.yml")["jobs"]["test"]
    matrix = job["strategy"]["matrix"]
    assert matrix["postgres"] == list(DEBIANS.values())
    # Entries of `include` add to the cells that they agree with, and make none of their own.
    assert {entry["debian"]: entry["postgres"] for entry in matrix["include"]} == DEBIANS
    assert all(entry.keys() == {"debian", "postgres"} for entry in matrix["include"])
    assert job["container"]["image"] == "python:${{ matrix.python }}-${{ matrix.debian }}"
    image = re.findall(
        r"^FROM \S+/python:(3\.\d+)-", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert image
    assert set(image) <= set(matrix["python"]), "the image's Python is not tested"


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_what_the_makefile_has(workflow: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = [
        word
        for line in re.findall(r"^make (.+)$", commands(workflow), re.MULTILINE)
        for word in line.split()
    ]
    assert called
    assert set(called) <= set(targets), f"{workflow.name}: no such target"
    for script in re.findall(r"[\w/]+\.py\b", commands(workflow)):
        assert (ROOT / script).is_file(), f"{workflow.name}: no {script}"


PUBLISH = {("sdks", "packages"): {"contents": "write", "id-token": "write"}}
"""Jobs that write: only by a tag, in an environment that asks somebody."""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_only_read_and_knows_what_it_runs(workflow: Path) -> None:
    content = load(workflow)
    assert content["permissions"] == {}
    assert content["concurrency"]["cancel-in-progress"]
    for name, job in content["jobs"].items():
        writes = PUBLISH.get((workflow.stem, name))
        assert job["permissions"] == (writes or {"contents": "read"}), name
        assert not writes or ("refs/tags/" in job["if"] and job["environment"]), name
        assert job["timeout-minutes"] <= 90, name
    used = re.findall(r"uses: (.+)", workflow.read_text())
    assert used
    for action in used:
        assert re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action


def test_whatever_is_locked_is_audited_and_kept_fresh() -> None:
    triggers = load(".github/workflows/audit.yml")[True]  # YAML reads the word `on` as true
    for event in ("push", "pull_request"):
        watched = triggers[event]["paths"]
        assert {path for lock in LOCKS for path in watched if Path(lock).match(path)} == {
            "requirements/*.txt",
            "benchmarks/requirements.txt",
            "deploy/clients/requirements.txt",
            "sdks/python/tests/integrations/requirements.txt",
            "examples/requirements.txt",
        }
    updates = load(".github/dependabot.yml")["updates"]
    python = next(update for update in updates if update["package-ecosystem"] == "uv")
    assert {f"/{Path(lock).parent}" for lock in LOCKS} == set(python["directories"])
    assert set(python["groups"]["read-first"]["patterns"]) == PRIVATE
    assert all(update["cooldown"]["default-days"] >= 7 for update in updates)
    # Dependabot locks anew with the flags that it finds in the file: without them, for one Python.
    for lock in LOCKS:
        head = (ROOT / lock).read_text()[:500]
        for flag in ("--universal", "--no-strip-extras", "--python-version 3.11"):
            assert flag in head, f"{lock}: run `make lock`"


# -- Who and what is asked on a change ------------------------------------------------------------


def test_every_path_that_has_an_owner_exists() -> None:
    lines = (ROOT / ".github/CODEOWNERS").read_text().splitlines()
    rules = [line.split() for line in lines if line and not line.startswith("#")]
    assert rules[0][0] == "*", "somebody has to own what no line names"
    for path, *owners in rules:
        assert owners, path
        assert all(re.fullmatch(r"@[\w-]+/[\w-]+", owner) for owner in owners), path
        assert path == "*" or (ROOT / path.strip("/")).exists(), f"CODEOWNERS: no {path}"
        assert not path.endswith("/") or (ROOT / path.strip("/")).is_dir(), path


def test_hooks_run_tools_of_the_environment() -> None:
    repositories = load(".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {"ruff-check", "ruff-format", "mypy", "import-linter"} <= {hook["id"] for hook in hooks}
    for hook in hooks:
        folder, _, tool = hook["entry"].split()[0].rpartition("/")
        assert folder == ".venv/bin", hook["id"]
        assert Path(sys.executable).with_name(tool).is_file(), f"{hook['id']}: no {tool}"
        assert hook["language"] == "unsupported", "a version of its own would be installed"


def test_a_python_that_is_named_is_taken_or_refused(tmp_path):
    """Not another in its place: whoever names one wants to know of that one."""
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "requirements/base.txt", "requirements/dev.txt"):
        shutil.copy(ROOT / name, tmp_path / name)

    done = subprocess.run(
        ["make", "setup"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": "/nowhere/python3"},
        capture_output=True,
        text=True,
    )

    assert done.returncode != 0
    assert "PYTHON names /nowhere/python3, which is no Python 3.11 or newer here" in done.stderr
    assert not (tmp_path / ".venv").exists()
