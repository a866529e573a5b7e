"""A benchmark that tried nothing says so, and what it holds to its musts is the worst run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos, report, run, soak
from benchmarks.chaos import Step
from benchmarks.load import Load
from benchmarks.processes import Aside, BenchError
from benchmarks.rows import ROWS, Limit, Row, below
from benchmarks.soak import Series

CHAOS: dict[str, Any] = {
    "rate": 40, "answered": 480, "events": 490, "jobs": 8, "usage_lost": 0, "usage_bound": 80,
    "webhooks_lost": 0, "jobs_lost": 0, "jobs_double": 0,
    "steps": [Step("nothing", 12.0, 481), Step(chaos.GATEWAY_KILLED, 23.0, 917)],
}  # fmt: skip
CALM = Series([0.0, 5.0, 10.0], [99.0, 99.0, 99.0], [Counter({"pipe": 9})] * 3, [2, 2, 2])
SOAK: dict[str, Any] = {
    "calls": 900, "pages": 40, "webhooks": 900,
    "times": [{"name": "under load", "processes": {"web 0": CALM}, "tables": {}}],
}  # fmt: skip


def test_each_starts_in_an_environment_without_settings() -> None:
    """What needs Django is imported where it is used: `make bench-…` names no settings."""
    names = sorted(path.stem for path in Path(chaos.__file__).parent.glob("[a-z]*.py"))
    script = "\n".join(f"import benchmarks.{name}" for name in names)
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    folder = Path(chaos.__file__).parents[1]

    done = subprocess.run(
        [sys.executable, "-c", script], env=kept, cwd=folder, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr


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
    for processes in ({}, {"web 0": Series([0.0, 5.0], [1.0, 99.0], CALM.files[:2], [2, 2])}):
        times = [{"name": "under load", "processes": processes, "tables": {}}]
        assert soak.missed_musts({**SOAK, "times": times})


def test_soak_names_the_files_that_stay_open() -> None:
    looks = [60.0 * number for number in range(30)]

    def missed(kind: str, every: int) -> list[str]:
        files = [Counter({"pipe": 9, kind: 1 + number // every}) for number in range(30)]
        series = Series(looks, [99.0] * 30, files, [2] * 30)
        times = [{"name": "under load", "processes": {"web 0": series}, "tables": {}}]
        return soak.missed_musts({**SOAK, "times": times})

    assert missed("connected to PostgreSQL", 15) == []  # its pool
    [sentence] = missed("connected to PostgreSQL", 2)
    assert "{'connected to PostgreSQL': 10}" in sentence
    [sentence] = missed("/var/log/x", 15)
    assert sentence == "web 0 under load has more files open: {'/var/log/x': 1}"


def test_soak_says_what_open_files_are(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peers = {listener.getsockname()[1]: "Redis"}
        before = soak.open_files(os.getpid(), peers)
        with socket.create_connection(listener.getsockname()), (tmp_path / "x").open("w"):
            more = soak.open_files(os.getpid(), peers) - before

    assert more == {"connected to Redis": 1, str(tmp_path / "x"): 1}


def test_an_error_beside_a_run_is_the_runs() -> None:
    def fails() -> None:
        raise KeyError("request_id")

    beside = Aside("the load", fails)
    beside.start()
    beside.join(10)

    with pytest.raises(BenchError, match="the load ended: KeyError"):
        beside.check()


# -- The rows of `make bench` ----------------------------------------------------------------------


def round_(rate: float = 1_000.0, **more: Any) -> report.Run:
    p95, calls = more.pop("p95", 3.0), more.pop("calls", 1_000)
    load = Load(1_000, rate, 1.0, p95, 2 * p95, 4 * p95)
    return report.Run(load, more.pop("cpu", 500.0), calls, settled=True, **more)


def figures(row: Row, *runs: report.Rounds, base: report.Result | None = None) -> dict[str, Any]:
    return {one["name"]: one for one in report.summarise(row, runs, base)["figures"]}


def row_of(**limits: Limit) -> Row:
    return Row(name="detect", title="a row", limits=limits, base="other")


@pytest.mark.parametrize(
    ("limit", "by_run", "verdict"),
    [
        (Limit(5.0, 8.0), (9.0, 8.0, 9.0), "aim met"),
        (Limit(5.0, 8.0), (9.0, 7.9, 9.0), "must met"),
        (Limit(5.0), (9.0, 4.9, 9.0), "must missed"),
        (below(5.0, 2.0), (1.0, 1.9), "aim met"),
        (below(5.0, 2.0), (1.0, 2.0), "must met"),
        (below(5.0), (1.0, 5.0, 1.0), "must missed"),
    ],
    ids=["aim", "must", "one run too slow", "aim below", "must below", "one run too much"],
)
def test_the_worst_run_is_held_to_a_limit(limit, by_run, verdict) -> None:
    found = report.judged("ratio", [[value] for value in by_run], limit)

    assert found["verdict"] == verdict
    result = {"figures": [], "rows": [{"figures": [found]}]}
    assert report.missed(result) is (verdict == "must missed")


def test_a_run_is_the_median_of_its_rounds() -> None:
    quick, slow = round_(p95=4.0), round_(p95=30.0)
    bare = [round_(p95=1.0)] * 3
    calm = {"gateway": [quick, slow, quick], "engine": bare}
    busy = {"gateway": [slow, slow, quick], "engine": bare}

    for runs, verdict in (((calm,), "must met"), ((calm, busy, calm), "must missed")):
        found = figures(row_of(added_p95_ms=below(5.0)), *runs)["added_p95_ms"]
        assert (found["verdict"], found["min"], found["max"]) == (verdict, 3.0, 29.0)


def test_it_is_held_against_what_ran_beside_it() -> None:
    rounds = {
        "reference": [round_(250.0, cpu=1_000.0)],
        "gateway": [round_(1_000.0, cpu=300.0, empty_seconds=0.5, busiest_share=0.7)],
        "before": [round_(800.0, cpu=600.0)],
        "nginx": [round_(10_000.0)],
        "filled": [round_(900.0)],
    }
    base = report.summarise(row_of(), [{"gateway": [round_(2_000.0, cpu=600.0, calls=2_000)]}])
    limits = ("rate_to_base", "window_cpu_to_base", "empty_seconds", "busiest_share")

    found = figures(row_of(**dict.fromkeys(limits, Limit(1.0))), rounds, base=base)

    assert {name: round(one["by_run"][0], 3) for name, one in found.items()} == {
        "ratio": 4.0, "cpu_ratio": 3.333, "nginx": 0.1, "rate_to_before": 1.25,
        "cpu_to_before": 0.5, "filled": 0.9, "rate_to_base": 0.5, "window_cpu_to_base": 1.0,
        "empty_seconds": 0.5, "busiest_share": 0.7,
    }  # fmt: skip


def test_a_load_that_was_not_answered_is_reported() -> None:
    row = Row("offered", "a rate", limits={"answered_share": Limit(0.98)}, offered_per_second=1_000)

    assert figures(row, {"gateway": [round_(970.0)]})["answered_share"]["verdict"] == "must missed"


def test_every_limit_is_of_a_figure_and_every_base_stands_before_its_rows() -> None:
    names = [row.name for row in ROWS]
    assert len(names) == len(set(names))
    for number, row in enumerate(ROWS):
        assert set(row.limits) <= set(report.FIGURES), row.name
        assert not row.base or row.base in names[:number], row.name
        assert row.base or not {"rate_to_base", "window_cpu_to_base"} & set(row.limits), row.name


def test_what_is_chosen_comes_with_what_it_is_held_against() -> None:
    names, rows = run._selection(["before", "keys-1000000", "offered-80"])

    assert names == ["gateway", "before"]
    assert [row.name for row in rows] == [
        *("detect", "offered-80", "keys-10", "keys-10000", "keys-1000000"),
    ]
    assert run._selection([])[0] == ["reference", "gateway"]
    with pytest.raises(BenchError, match="Unknown: nobody"):
        run._selection(["nobody"])


def test_the_rate_of_the_plans_is_that_of_detections() -> None:
    cached = report.summarise(Row("cached", "cached"), [{"gateway": [round_(9_000.0)]}])
    detect = report.summarise(Row("detect", "detect"), [{"gateway": [round_(900.0, cpu=600.0)]}])
    result = {"settings": {"connections": 32}, "added_latency": {}}

    assert report.plan_targets({**result, "rows": [cached]}, "gateway") == []
    assert report.plan_targets({**result, "rows": [cached, detect]}, "gateway")[2] == {
        "target": "10,000 req/s by its CPU", "measured": "6.0 cores, none idle", "met": None,
    }  # fmt: skip


def test_the_busier_of_two_workers() -> None:
    assert run.busiest_share({"a": 10.0, "b": 10.0}, {"a": 40.0, "b": 80.0, "old": 0.0}) == 0.7
    assert run.busiest_share({}, {"a": 40.0}) is None
