"""The lock files: each requirement of each locked distribution stands there, with its extras.

pip checks hashes only of what is locked. A requirement `coverage[toml]>=7.10` is not met for an
older pip (23.2 comes with Python 3.11) by a lock that says `coverage==7.17`: it takes the newest
coverage instead, and refuses it for want of a hash on the day after the next release.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from types import FunctionType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy import packages

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = (ROOT / "Makefile").read_text().replace("\\\n", " ")
LOCKS = [f"{name}.txt" for name in re.findall(r"^LOCKED := (.+)$", MAKEFILE, re.M)[0].split()]
BY_HAND = (ROOT / "requirements/base.in").read_text()
PINNED = dict(re.findall(r"^([a-z-]+)\S*==[\d.]+(.*)$", BY_HAND, re.M))
"""What stands beside each pin that is made by hand: the names that it is made for."""
PRIVATE = set(PINNED)
OURS = ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
DOCUMENTED = {
    *("_asdict", "_replace"),  # of named tuples
    *("_meta", "_base_manager", "_default_manager", "_db"),  # of Django's models
    "_Compress",  # what the type of `zlib.compressobj` is called in typeshed
}
ELSEWHERE = {
    "benchmarks/requirements.txt",
    "deploy/clients/requirements.txt",
    "sdks/python/tests/integrations/requirements.txt",
    "examples/requirements.txt",
}
"""Locks of other environments: some of their distributions are not here to be read, and the flags
at their heads alone keep the extras (test_project.py)."""
PRIVATE_NAME = re.compile(r"_[A-Za-z]\w*(?<!_)")


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
        except PackageNotFoundError:  # of a lock of `ELSEWHERE`
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


def test_each_lock_is_read_whole_or_is_of_another_environment() -> None:
    here = {canonicalize_name(one.metadata["Name"]) for one in distributions()}

    assert {name for name in LOCKS if set(locked(name)) - here} == ELSEWHERE


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


def modules() -> dict[str, ast.Module]:
    """What we run, but for tests and what needs a lock of its own."""
    paths = (path.relative_to(ROOT) for one in OURS for path in (ROOT / one).rglob("*.py"))
    return {
        ".".join(path.with_suffix("").parts).removesuffix(".__init__"): ast.parse(
            (ROOT / path).read_text()
        )
        for path in sorted(paths)
        if not {"tests", "migrations", "training", "__main__.py"} & set(path.parts)
    }


def defined(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            if isinstance(node.value, ast.Name) and node.value.id in ("self", "cls"):
                yield node.attr
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def asked_for(tree: ast.Module) -> Iterator[str]:
    """`x._name`, and `from library import _name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] not in OURS:
            yield from (alias.name for alias in node.names)


def overridden(module: str) -> Iterator[str]:
    """Methods of its classes that one of a library has, too."""
    for made in vars(sys.modules[module]).values():
        if isinstance(made, type) and made.__module__ == module:
            theirs = [base for base in made.__mro__ if base.__module__.split(".")[0] not in OURS]
            for name, value in vars(made).items():
                if isinstance(value, FunctionType | property | cached_property):
                    yield from (name for base in theirs if name in vars(base))


def test_each_private_name_of_a_library_stands_beside_its_pin() -> None:
    trees = modules()
    own = {name for tree in trees.values() for name in defined(tree)}
    used = {name for tree in trees.values() for name in asked_for(tree)} - own
    for module in trees:
        import_module(module)
        used |= set(overridden(module))
    named = {name for names in PINNED.values() for name in re.findall(r"\b_\w+", names)}

    found = {name for name in used if PRIVATE_NAME.fullmatch(name)} - DOCUMENTED

    assert {"_get_raw_host", "_ensure_connected"} <= found
    assert not found - named, "pin their libraries in requirements/base.in, and name them there"
    assert all("  # " in names for names in PINNED.values())
