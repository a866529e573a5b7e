"""From measured runs to medians, ratios, verdicts, and the tables that show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import Load
from benchmarks.rows import Row

Result = dict[str, Any]  # what --json writes; README.md names its parts
BASE, TESTED, ENGINE = "reference", "gateway", "engine"


@dataclass(frozen=True)
class Run:
    """One measured run of one contender."""

    load: Load
    cpu_us_per_request: float  # CPU time of the contender's whole process tree
    engine_calls: int
    settled: bool  # the contender rested soon after the load ended
    slowest: dict[str, float] = field(default_factory=dict)  # where they waited: ms by the log


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def summarise(row: Row, runs: dict[str, list[Run]]) -> Result:
    """The row of the result: figures of each contender, and the ratio if both ran."""
    contenders: dict[str, Result] = {}
    for name, measured in runs.items():
        loads = [run.load for run in measured]
        contenders[name] = {
            "requests_per_second": spread([load.requests_per_second for load in loads]),
            "p50_ms": spread([load.p50_ms for load in loads]),
            "p95_ms": spread([load.p95_ms for load in loads]),
            "p99_ms": spread([load.p99_ms for load in loads]),
            "cpu_us_per_request": spread([run.cpu_us_per_request for run in measured]),
            "engine_calls_per_request": sum(run.engine_calls for run in measured)
            / sum(load.requests for load in loads),
            "runs": [asdict(run) for run in measured],
        }
    summary: Result = {
        "name": row.name,
        "title": row.title,
        "must": row.must,
        "aim": row.aim,
        "is_growth": row.is_growth,
        "contenders": contenders,
        "ratio": None,
        "verdict": None,
    }
    if ENGINE in runs and TESTED in runs:
        added = spread(
            [
                tested.load.p95_ms - direct.load.p95_ms
                for direct, tested in zip(runs[ENGINE], runs[TESTED], strict=True)
            ]
        )
        summary["added_p95_ms"] = added
        # Less is better here, so the comparison is turned round.
        summary["verdict"] = verdict(-added["median"], -(row.must or 0), -(row.aim or 0))
    if BASE in runs and TESTED in runs:
        pairs = [
            tested.load.requests_per_second / base.load.requests_per_second
            for base, tested in zip(runs[BASE], runs[TESTED], strict=True)
        ]
        ratio = (
            contenders[TESTED]["requests_per_second"]["median"]
            / contenders[BASE]["requests_per_second"]["median"]
        )
        summary["ratio"] = {"of_medians": ratio, "min": min(pairs), "max": max(pairs)}
        summary["cpu_ratio"] = (
            contenders[BASE]["cpu_us_per_request"]["median"]
            / contenders[TESTED]["cpu_us_per_request"]["median"]
        )
        summary["verdict"] = verdict(ratio, row.must, row.aim)
    return summary


def verdict(ratio: float, must: float | None, aim: float | None) -> str | None:
    """``aim met``, ``must met`` or ``must missed``; None for a row without a target."""
    if must is None:
        return None
    if aim is not None and ratio >= aim:
        return "aim met"
    return "must met" if ratio >= must else "must missed"


def plan_targets(result: Result, name: str) -> list[Result]:
    """The plans' absolute figures against what `name` did on this machine."""
    summary = next((row for row in result["rows"] if name in row["contenders"]), None)
    if summary is None:
        return []
    rate = summary["contenders"][name]["requests_per_second"]["median"]
    cores = int(result["machine"]["cores"])
    connections = result["settings"]["connections"]
    rates = f"{rate:,.0f} req/s, {rate / cores:,.0f} per core"
    targets = [
        ("1,000 req/s", rates, rate >= 1_000),
        ("10,000-20,000 req/s", rates, rate >= 10_000),
    ]
    added = result["added_latency"].get(name, {})
    for limit in (100.0, 5.0):
        for key, how in (("single", "one request at a time"), ("full", "at full load")):
            if key in added:
                value = added[key]["p95_ms"]
                when = how if key == "single" else f"{how}, {connections} connections"
                targets.append(
                    (f"< {limit:g} ms added (p95), {when}", f"{value:.2f} ms", value < limit)
                )
    workers = [process["pss_bytes"] for process in result["memory"].get(name, {}).get("web", [])]
    if workers:
        most = max(workers) / 1e6
        targets.append(("at most 200 MB per web worker", f"{most:.0f} MB", most <= 200))
    return [{"target": t, "measured": m, "met": met} for t, m, met in targets]


# --- Tables --------------------------------------------------------------------------------------

_HEAD = ("", "req/s (median, min-max)", "p50 ms", "p95 ms", "p99 ms", "CPU ms/req", "MB/worker")
_GROWTH_HEAD = (*_HEAD[:-1], "engine calls/req")
_GROWTH_TITLE = "How it grows"


def _cells(result: Result, row: Result, name: str) -> tuple[str, ...]:
    web = result["memory"].get(name, {}).get("web", [])
    memory = f"{max(process['pss_bytes'] for process in web) / 1e6:.0f}" if web else "-"
    return (result["titles"][name], *_figures(row, name), memory)


def _growth_cells(row: Result, name: str) -> tuple[str, ...]:
    what = row["title"].removeprefix("POST /v1/detect, ").removeprefix("engine asked each time, ")
    calls = row["contenders"][name]["engine_calls_per_request"]
    return (f"{what}: {name}", *_figures(row, name), f"{calls:.1f}")


def _figures(row: Result, name: str) -> tuple[str, ...]:
    figures = row["contenders"][name]
    rate, cpu = figures["requests_per_second"], figures["cpu_us_per_request"]["median"]
    return (
        f"{rate['median']:,.0f} ({rate['min']:,.0f}-{rate['max']:,.0f})",
        *(f"{figures[key]['median']:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
        f"{cpu / 1000:.2f}" if cpu else "-",
    )


def _tables(result: Result) -> Iterator[tuple[Result, tuple[str, ...], list[tuple[str, ...]]]]:
    """(row, heads, lines of cells): one for each row, and one for all rows of growth."""
    for row in result["rows"]:
        if not row["is_growth"]:
            yield row, _HEAD, [_cells(result, row, name) for name in row["contenders"]]
    lines = [
        _growth_cells(row, name)
        for row in result["rows"]
        if row["is_growth"]
        for name in row["contenders"]
    ]
    if lines:
        yield {"title": _GROWTH_TITLE, "ratio": None, "verdict": None}, _GROWTH_HEAD, lines


def _sentence(row: Result, disturbed: bool) -> str | None:
    if added := row.get("added_p95_ms"):
        return (
            f"added to the engine's own p95: {added['median']:.2f} ms "
            f"({added['min']:.2f}-{added['max']:.2f} by round); must < {row['must']:g} ms, "
            f"aim < {row['aim']:g} ms: {row['verdict']}" + (" (disturbed run)" * disturbed)
        )
    if row["ratio"] is None:
        return None
    ratio = row["ratio"]
    sentence = (
        f"gateway / reference: {ratio['of_medians']:.2f} x of the medians "
        f"({ratio['min']:.2f}-{ratio['max']:.2f} by round); "
        f"{row['cpu_ratio']:.2f} x less CPU time a request"
    )
    if row["verdict"]:
        sentence += f"; must {row['must']:g} x, aim {row['aim']:g} x: {row['verdict']}"
    return sentence + (" (disturbed run)" if disturbed else "")


def _footer(result: Result) -> list[str]:
    """Everything below the tables, as plain lines."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory']}, kernel "
        f"{machine['kernel']}; PostgreSQL {machine['PostgreSQL']}, Redis {machine['Redis']}, "
        f"nginx {machine['nginx']}, wrk {machine['wrk']}; "
        f"load of others {machine.get('foreign_load_percent', '?')} % of all cores.",
        f"Run: {settings['rounds']} rounds of {settings['seconds']} s, "
        f"{settings['connections']} connections, {settings['workers']} workers each.",
    ]
    for name, versions in result["packages"].items():
        found = ", ".join(f"{package} {version}" for package, version in versions.items())
        lines.append(f"{result['titles'][name]}: {found}.")
    for name, features in result["switched_on"].items():
        lines.append(f"On in {result['titles'][name]}: {'; '.join(features)}.")
    for name, features in result["missing"].items():
        if features:
            lines.append(f"Missing in {result['titles'][name]}: {'; '.join(features)}.")
    for name, found in result["evidence"].items():
        counts = ", ".join(f"{count:,} {what}" for what, count in found["counts"].items())
        lines.append(
            f"Seen of {result['titles'][name]}: {counts} for {found['answered']:,} answers and up "
            f"to {found['cut_off']:,} that wrk hung up on: "
            f"{'complete' if found['complete'] else 'NOT COMPLETE'}."
        )
    return [*lines, *result["notes"]]


def print_tables(result: Result, console: Console) -> None:
    """The report for a terminal."""
    for row, head, cells in _tables(result):
        table = Table(*head, title=row["title"], title_justify="left")
        for column in table.columns:
            column.no_wrap = True
        for column in table.columns[1:]:
            column.justify = "right"
        for line in cells:
            table.add_row(*line)
        console.print(table)
        if sentence := _sentence(row, result["disturbed"]):
            colour = "red" if row["verdict"] == "must missed" else "green"
            console.print(sentence, style=colour, soft_wrap=True)
    if result["targets"]:
        table = Table("Figure of the plans", "measured here", "", title_justify="left")
        for target in result["targets"]:
            met = "[green]met[/green]" if target["met"] else "[red]missed[/red]"
            table.add_row(target["target"], target["measured"], met)
        console.print(table)
    for line in _footer(result):
        console.print(line, markup=False, soft_wrap=True)


def markdown(result: Result) -> str:
    """The report for the documentation."""
    lines = []
    for row, head, cells in _tables(result):
        lines += [f"**{row['title']}**", "", "| " + " | ".join(head) + " |"]
        lines.append("|---" + "|---:" * (len(head) - 1) + "|")
        lines += ["| " + " | ".join(line) + " |" for line in cells]
        if sentence := _sentence(row, result["disturbed"]):
            lines += ["", sentence + "."]
        lines.append("")
    if result["targets"]:
        lines += ["| Figure of the plans | measured here | |", "|---|---|---|"]
        lines += [
            f"| {t['target']} | {t['measured']} | {'met' if t['met'] else 'missed'} |"
            for t in result["targets"]
        ]
        lines.append("")
    lines += [f"* {line}" for line in _footer(result)]
    return "\n".join(lines) + "\n"
