"""Locks of the installation: each name its own, and none outlives its transaction.

Nor does a setting.
"""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from django.db import connection, connections, transaction

from gateway_project.core.stores import advisory

pytestmark = pytest.mark.hostile
ROOT = Path(__file__).resolve().parents[2]
ONLY = "gateway_project/core/stores/advisory.py"


@pytest.fixture
def elsewhere(transactional_db):
    """`elsewhere("name")`: whether another connection could hold it now."""
    if connection.vendor != "postgresql":
        pytest.skip("SQLite's transactions exclude each other")

    def try_there(name: str) -> bool:
        try:
            with transaction.atomic():
                return advisory.try_to_hold(name)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(1) as other:
        yield lambda name: other.submit(try_there, name).result()


def test_one_holds_it_until_its_transaction_ends(elsewhere):
    with transaction.atomic():
        advisory.hold("a")
        assert not elsewhere("a")
        assert elsewhere("b"), "another name is another lock"

    assert elsewhere("a")


def test_nobody_takes_one_by_a_number_of_its_own():
    """Two that chose one number would wait for each other; a session's lock ends with no pool."""
    assert files_with(r"pg_(try_)?advisory") == {ONLY}


def test_nobody_sets_anything_beyond_its_transaction():
    """Behind a pooler it would be set for whoever is given that connection next."""
    assert (
        files_with(r"""["'](SET (?!LOCAL|\(|DEFAULT )|RESET \w)|set_config\([^)]*false\)""")
        == set()
    )


def files_with(pattern: str) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for app in ("accounts", "detection", "gateway_project", "portal", "robin", "webhooks")
        for path in (ROOT / app).rglob("*.py")
        if "tests" not in path.parts and re.search(pattern, path.read_text())
    }
