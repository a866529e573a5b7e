"""What is written as a test is one: it runs, and is not content with the number of an answer."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# Helpers that fail by themselves when what they look at is not as it should be.
CHECKS = {"problem", "refused_everywhere", "wait_until"}
# A status alone is enough here, because …
ENOUGH = {
    **dict.fromkeys(
        (
            "gateway_project/tests/test_generated.py::test_no_page_of_the_installation_fails",
            "gateway_project/tests/test_generated.py::test_no_page_of_the_sign_in_fails",
            "gateway_project/tests/test_generated.py"
            "::test_no_action_of_the_admin_fails_over_what_was_chosen",
        ),
        "whatever is no failure",
    ),
    **dict.fromkeys(
        (
            "gateway_project/tests/test_openapi.py::test_keys",
            "gateway_project/tests/test_openapi.py::test_refusals_of_a_detection",
            "gateway_project/tests/test_openapi.py::test_registrations",
            "gateway_project/tests/test_openapi.py::test_the_account",
        ),
        "the document describes the body",
    ),
    "gateway_project/tests/test_permissions.py::test_options_is_never_an_error_of_ours": "or any",
    "portal/tests/test_request_log.py::test_a_wrong_moment_is_no_error": "it may be found or not",
}


def all_tests() -> Iterator[tuple[str, ast.FunctionDef]]:
    for path in sorted(ROOT.glob("*/tests/test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield f"{path.relative_to(ROOT)}::{node.name}", node


def compares_only_statuses(test: ast.FunctionDef) -> bool:
    """Every assert compares statuses with numbers; a helper that checks more makes up for 200."""
    asserts = [node.test for node in ast.walk(test) if isinstance(node, ast.Assert)]
    names = set(names_of_statuses(test))
    if not asserts or not all(compares_statuses(condition, names) for condition in asserts):
        return False
    numbers = {
        node.value
        for condition in asserts
        for node in ast.walk(condition)
        if isinstance(node, ast.Constant) and isinstance(node.value, int)
    }
    is_of_errors = any(400 <= number < 600 for number in numbers)
    is_of_success = any(200 <= number < 400 for number in numbers)
    return is_of_errors or (is_of_success and not CHECKS & set(names_of_steps(test)))


def names_of_steps(test: ast.FunctionDef) -> Iterator[str]:
    """`check` of a line `check(r)`, whose value nobody uses."""
    for node in ast.walk(test):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            yield ast.unparse(node.value.func).rpartition(".")[2]


def names_of_statuses(test: ast.FunctionDef) -> Iterator[str]:
    """`codes` of `codes = [r.status_code for r in answers]`."""
    for node in ast.walk(test):
        if isinstance(node, ast.Assign) and is_of_statuses(node.value, set()):
            yield from (to.id for to in node.targets if isinstance(to, ast.Name))


def compares_statuses(condition: ast.expr, names: set[str]) -> bool:
    if isinstance(condition, ast.BoolOp):
        return all(compares_statuses(part, names) for part in condition.values)
    return isinstance(condition, ast.Compare) and is_of_statuses(condition, names)


def is_of_statuses(expression: ast.expr, names: set[str]) -> bool:
    nodes = [*ast.walk(expression)]
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    is_named = any(isinstance(node, ast.Name) and node.id in names for node in nodes)
    # What is read of an answer; the words of the call that asks are no part of it.
    is_more = attributes & {"text", "content", "headers", "json"}
    return (is_named or "status_code" in attributes) and not is_more


def test_an_answer_is_asserted_by_more_than_its_number():
    bare = {name for name, test in all_tests() if compares_only_statuses(test)}

    assert bare <= set(ENOUGH), f"say what the body holds: {sorted(bare - set(ENOUGH))}"
    assert set(ENOUGH) <= bare, f"take from the list: {sorted(set(ENOUGH) - bare)}"


def lost_tests(path: Path) -> Iterator[str]:
    """Tests that pytest does not find: in a function, or in a class that is no test's."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(path.read_text())):
        is_class = isinstance(node, ast.ClassDef) and not node.name.startswith("Test")
        if is_class or isinstance(node, functions):
            for one in node.body:
                if isinstance(one, functions) and one.name.startswith("test_"):
                    yield f"{path.name}::{node.name}::{one.name}"


def test_every_test_is_found():
    paths = [*ROOT.glob("*/tests/**/test_*.py"), *ROOT.glob("sdks/*/tests/**/test_*.py")]

    assert [name for path in sorted(paths) for name in lost_tests(path)] == []


def test_it_finds_one_that_is_lost(tmp_path):
    path = tmp_path / "test_x.py"
    path.write_text("def test_a():\n    def test_b(): ...\nclass X:\n    def test_c(self): ...\n")

    assert [*lost_tests(path)] == ["test_x.py::test_a::test_b", "test_x.py::X::test_c"]


@pytest.mark.parametrize(
    ("lines", "is_bare"),
    [
        ("assert r.status_code == 404", True),
        ("codes = [ask().status_code, 1]; assert codes == [200, 404]", True),
        ("assert (r.status_code, r.json()) == (404, {})", False),
        ("assert r.status_code == 200", True),
        ("assert r.status_code == 200; ask()", True),
        ("assert r.status_code == 200; problem(ask(), 403, 'denied')", False),
        ("assert r.status_code == 302; assert r.headers['location'] == '/'", False),
    ],
)
def test_it_finds_one(lines, is_bare):
    [test] = ast.parse(f"def test_x(): {lines}").body

    assert compares_only_statuses(test) is is_bare
