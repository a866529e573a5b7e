"""These run alone as well, without Django and stores: `pytest -c sdks/python/pyproject.toml …`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Waits that the client chooses itself; those that a server asks for stay."""
    monkeypatch.setattr("gateway_guard._core.FIRST_WAIT", 0.01)
