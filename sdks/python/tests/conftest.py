"""These run alone as well, without Django and stores: `pytest -c sdks/python/pyproject.toml …`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from gateway_guard import AsyncClient, AsyncGuard, Client, Guard

from .fakes import Gateway, Model

KEY = "gw_live_x"


@pytest.fixture
def gateway():
    with Gateway() as server:
        yield server


@pytest.fixture
def model():
    with Model() as server:
        yield server


@pytest.fixture
def guard(gateway):
    with Client(KEY, base_url=gateway.url, max_retries=0, timeout=5) as client:
        yield Guard(client)


@pytest.fixture
def make_aguard(gateway):
    """Each on the loop that asks for it."""

    def make(**options):
        client = AsyncClient(KEY, base_url=gateway.url, max_retries=0, timeout=5)
        return AsyncGuard(client, **options)

    return make


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    """Waits that the client chooses itself; those that a server asks for stay."""
    monkeypatch.setattr("gateway_guard._core.FIRST_WAIT", 0.01)
