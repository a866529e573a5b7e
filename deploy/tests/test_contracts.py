"""The contracts on imports find what they are for."""

from __future__ import annotations

from grimp import ImportGraph

from deploy.contracts import NoCircles


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
