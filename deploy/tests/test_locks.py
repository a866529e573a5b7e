"""The lock files: each requirement of each locked distribution stands there, with its extras.

pip checks hashes only of what is locked. A requirement `coverage[toml]>=7.10` is not met for an
older pip (23.2 comes with Python 3.11) by a lock that says `coverage==7.17`: it takes the newest
coverage instead, and refuses it for want of a hash on the day after the next release.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import packages

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
LOCKS = [f"{name}.txt" for name in re.findall(r"^LOCKED := (.+)$", MAKEFILE, re.M)[0].split()]
# We use private names of theirs.
PRIVATE = {"uvicorn", "httptools", "redis", "prometheus-client", "django-celery-beat"}


def requirements(path: Path) -> list[Requirement]:
    lines = (re.sub(r"\s+#.*|\s*\\$", "", line) for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and line[0].isalnum()]


def locked(name: str) -> dict[str, set[str]]:
    """The extras of each distribution that this Python installs from a lock file."""
    found: dict[str, set[str]] = {}
    for requirement in requirements(ROOT / name):
        if requirement.marker is None or requirement.marker.evaluate():
            found.setdefault(canonicalize_name(requirement.name), set()).update(requirement.extras)
    return found


def missing(lock: dict[str, set[str]]) -> list[str]:
    """What the locked distributions' own metadata asks for and the lock does not hold."""
    found = []
    for name, extras in lock.items():
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:  # benchmarks/: its environment is not this one
            continue
        for wanted in map(Requirement, lines):
            applies = wanted.marker is None or any(
                wanted.marker.evaluate({"extra": extra}) for extra in extras or {""}
            )
            have = lock.get(canonicalize_name(wanted.name))
            if applies and (have is None or not wanted.extras <= have):
                found.append(f"{name} wants {wanted}")
    return found


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_with_its_extras(name: str) -> None:
    lock = locked(name)
    assert missing(lock) == []
    for wanted in requirements((ROOT / name).with_suffix(".in")):
        assert wanted.extras <= lock[canonicalize_name(wanted.name)], f"{name}: {wanted}"


def test_an_extra_that_the_lock_lost_is_found() -> None:
    lock = locked("requirements/dev.txt")
    assert lock["coverage"] == {"toml"}
    lock["coverage"] = set()
    assert [line.split()[0] for line in missing(lock)] == ["pytest-cov"]


@pytest.mark.parametrize("name", ["requirements/base.txt", "requirements/dev.txt"])
def test_a_checking_environment_has_all_that_the_lock_names(name: str) -> None:
    for distribution_name in locked(name):
        assert distribution(distribution_name)


def test_a_checking_environment_has_nothing_that_the_lock_does_not_name() -> None:
    """What an older lock left behind hides from this machine that something else is missing."""
    found = packages.leftovers(ROOT / "requirements/dev.txt")

    assert not found, f"remove them: .venv/bin/python -m pip uninstall {' '.join(found)}"


def test_libraries_whose_private_names_we_use_are_pinned_by_hand() -> None:
    text = (ROOT / "requirements/base.in").read_text()
    for name in PRIVATE:
        line = next(line for line in text.splitlines() if re.match(rf"{name}\b", line))
        assert re.search(r"==[\d.]+  # \S", line), f"pin {name} with == and list the names"
