"""The contracts on imports find what they are for."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from grimp import ImportGraph

from deploy.contracts import NoCircles

ROOT = Path(__file__).resolve().parents[2]
LINTER = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["id"]: contract for contract in LINTER["contracts"]}


@pytest.mark.parametrize("name", ["core", "outer-ring"])
def test_the_outer_ring_is_all_that_is_not_core(name: str) -> None:
    folder = ROOT / "gateway_project"
    found = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    found |= {path.parent.name for path in folder.glob("*/__init__.py")} - {"core", "tests"}

    ring = {f"gateway_project.{one}" for one in found}
    apps = {"accounts", "webhooks", "detection", "robin", "portal"}

    assert set(CONTRACTS[name]["forbidden_modules"]) - apps == ring


def test_circles_are_looked_for_in_each_of_our_packages() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}

    assert set(LINTER["root_packages"]) == packages


def check(*imports: tuple[str, str]) -> bool:
    graph = ImportGraph()
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported)
    contract = NoCircles("circles", session_options={}, contract_options={})
    return contract.check(graph, verbose=False).kept


def test_a_circle_by_way_of_another_file_is_found() -> None:
    chain = [("a.views", "a.services"), ("a.services", "a.client")]
    assert check(*chain)
    assert not check(*chain, ("a.client", "a.views"))
