"""Import contracts of our own, beside those that import-linter brings (pyproject.toml)."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import Any

from importlinter import Contract, ContractCheck, output


class NoCircles(Contract):
    """No file imports itself by way of others: not inside a function, not for the types alone."""

    def check(self, graph: Any, verbose: bool) -> ContractCheck:
        imported_by = graph.find_modules_directly_imported_by
        try:
            TopologicalSorter({module: imported_by(module) for module in graph.modules}).prepare()
        except CycleError as error:
            return ContractCheck(kept=False, metadata={"circle": error.args[1]})
        return ContractCheck(kept=True)

    def render_broken_contract(self, check: ContractCheck) -> None:
        output.print_error(" imported by ".join(check.metadata["circle"]))
