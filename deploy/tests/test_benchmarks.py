"""A benchmark that tried nothing says so, instead of that its musts are met."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks import chaos, soak
from benchmarks.chaos import Step
from benchmarks.processes import Aside, BenchError
from benchmarks.soak import Series

CHAOS: dict[str, Any] = {
    "rate": 40, "answered": 480, "events": 490, "jobs": 8, "usage_lost": 0, "usage_bound": 80,
    "webhooks_lost": 0, "jobs_lost": 0, "jobs_double": 0,
    "steps": [Step("nothing", 12.0, 481), Step(chaos.GATEWAY_KILLED, 23.0, 917)],
}  # fmt: skip
CALM = Series([0.0, 5.0, 10.0], [99.0, 99.0, 99.0], [9, 9, 9], [2, 2, 2])
SOAK: dict[str, Any] = {
    "calls": 900, "pages": 40, "webhooks": 900,
    "times": [{"name": "under load", "processes": {"web 0": CALM}, "tables": {}}],
}  # fmt: skip


def test_chaos_misses_its_musts_when_nothing_was_tried() -> None:
    assert chaos.missed_musts(CHAOS) == []
    for name in ("answered", "events", "jobs"):
        assert chaos.missed_musts({**CHAOS, name: 0}), name
    idle = [*CHAOS["steps"], Step("PostgreSQL restarted", 12.0, 3)]
    assert chaos.missed_musts({**CHAOS, "steps": idle})


def test_soak_misses_its_musts_when_nothing_was_tried() -> None:
    assert soak.missed_musts(SOAK) == []
    for name in ("calls", "pages", "webhooks"):
        assert soak.missed_musts({**SOAK, name: 0}), name
    for processes in ({}, {"web 0": Series([0.0, 5.0], [1.0, 99.0], [9, 9], [2, 2])}):
        times = [{"name": "under load", "processes": processes, "tables": {}}]
        assert soak.missed_musts({**SOAK, "times": times})


def test_an_error_beside_a_run_is_the_runs() -> None:
    def fails() -> None:
        raise KeyError("request_id")

    beside = Aside("the load", fails)
    beside.start()
    beside.join(10)

    with pytest.raises(BenchError, match="the load ended: KeyError"):
        beside.check()
