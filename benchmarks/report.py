"""From measured rounds to medians, figures, verdicts, and the tables that show them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.load import Load
from benchmarks.rows import Limit, Row, below

Result = dict[str, Any]  # what --json writes; README.md names its parts
BASE, TESTED, ENGINE, BEFORE = "reference", "gateway", "engine", "before"
WORKER_MB = below(120.0)  # PSS of the fattest web worker, after everything


@dataclass(frozen=True)
class Run:
    """One measured run of one contender."""

    load: Load
    cpu_us_per_request: float  # CPU time of the contender's whole process tree
    engine_calls: int
    settled: bool  # the contender rested soon after the load ended
    worker_cpu_us_per_request: float = 0.0  # of it the Celery worker's
    empty_seconds: float | None = None  # after the load, until its usage waited nowhere
    busiest_share: float | None = None  # of the answers, by one of several web processes
    slowest: dict[str, float] = field(default_factory=dict)  # where they waited: ms by the log


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


Rounds = dict[str, list[Run]]  # those of one run, by contender; `ENGINE` was asked directly


def summarise(row: Row, runs: Sequence[Rounds], base: Result | None = None) -> Result:
    """The row of the result: figures of each contender, and what they come to together.

    `base` is the result of the row's base.
    """
    contenders: dict[str, Result] = {}
    for name in runs[0]:
        measured = [one for rounds in runs for one in rounds[name]]
        loads = [one.load for one in measured]
        contenders[name] = {
            "requests_per_second": spread([load.requests_per_second for load in loads]),
            "p50_ms": spread([load.p50_ms for load in loads]),
            "p95_ms": spread([load.p95_ms for load in loads]),
            "p99_ms": spread([load.p99_ms for load in loads]),
            "cpu_us_per_request": spread([one.cpu_us_per_request for one in measured]),
            "worker_cpu_us_per_request": median(one.worker_cpu_us_per_request for one in measured),
            "engine_calls_per_request": sum(one.engine_calls for one in measured)
            / sum(load.requests for load in loads),
            "rounds": [asdict(one) for one in measured],
        }
    by_run = [_figures_of(row, rounds, base) for rounds in runs]
    return {
        "name": row.name,
        "title": row.title,
        "base": row.base,
        "is_growth": row.is_growth,
        "contenders": contenders,
        "figures": [
            judged(name, [found[name] for found in by_run], row.limits.get(name))
            for name in FIGURES
            if all(name in found for found in by_run)
        ],
    }


def judged(name: str, runs: Sequence[Sequence[float]], limit: Limit | None) -> Result:
    """A figure of each run, which is the median of its rounds; the worst is held to the limit."""
    by_run = [median(rounds) for rounds in runs]
    values = [value for rounds in runs for value in rounds]
    return {
        "name": name,
        "by_run": by_run,
        "min": min(values),
        "max": max(values),
        "limit": None if limit is None else asdict(limit),
        "verdict": None if limit is None else limit.verdict(by_run),
    }


def _figures_of(row: Row, rounds: Rounds, base: Result | None) -> dict[str, list[float]]:
    """Every figure that these rounds of one run have, round by round."""
    if TESTED not in rounds:
        return {}
    tested = rounds[TESTED]

    def beside(name: str, figure: Callable[[Run, Run], float]) -> list[float]:
        return [figure(one, other) for one, other in zip(tested, rounds[name], strict=True)]

    found: dict[str, list[float]] = {}
    for name, other in (("ratio", BASE), ("nginx", "nginx"), ("rate_to_before", BEFORE)):
        if other in rounds:
            found[name] = beside(other, _rates)
    if BASE in rounds:
        found["cpu_ratio"] = [1 / value for value in beside(BASE, _cpus)]
    if BEFORE in rounds:
        found["cpu_to_before"] = beside(BEFORE, _cpus)
    if "filled" in rounds:
        found["filled"] = [1 / value for value in beside("filled", _rates)]
    if ENGINE in rounds:
        found["added_p95_ms"] = beside(ENGINE, lambda one, bare: one.load.p95_ms - bare.load.p95_ms)
        found["added_p99_ms"] = beside(ENGINE, lambda one, bare: one.load.p99_ms - bare.load.p99_ms)
    if offered := row.offered_per_second:
        found["answered_share"] = [one.load.requests_per_second / offered for one in tested]
    if base is not None:
        other = base["contenders"][TESTED]
        rate = other["requests_per_second"]["median"]
        window = other["cpu_us_per_request"]["median"] / (other["engine_calls_per_request"] or 1)
        found["rate_to_base"] = [one.load.requests_per_second / rate for one in tested]
        found["window_cpu_to_base"] = [
            one.cpu_us_per_request * one.load.requests / (one.engine_calls or 1) / window
            for one in tested
        ]
    for name in ("empty_seconds", "busiest_share"):
        values = [getattr(one, name) for one in tested]
        if None not in values:
            found[name] = values
    # What has no limit is shown where something was compared, and else only in the rounds.
    return {name: values for name, values in found.items() if name in row.limits or name in ALWAYS}


def _rates(one: Run, other: Run) -> float:
    return one.load.requests_per_second / other.load.requests_per_second


def _cpus(one: Run, other: Run) -> float:
    return one.cpu_us_per_request / other.cpu_us_per_request


FIGURES = {
    "ratio": ("gateway / reference", "x"),
    "cpu_ratio": ("reference / gateway, CPU a request", "x"),
    "nginx": ("gateway / nginx that passes on within a limit", "x"),
    "rate_to_before": ("gateway / before", "x"),
    "cpu_to_before": ("gateway / before, CPU a request", "x"),
    "filled": ("beside ten million usage rows / with none", "x"),
    "added_p95_ms": ("added to the engine's own p95", "ms"),
    "added_p99_ms": ("added to the engine's own p99", "ms"),
    "answered_share": ("answered / offered", "x"),
    "rate_to_base": ("rate / that of {base}", "x"),
    "window_cpu_to_base": ("CPU a call of the engine / that of {base}", "x"),
    "empty_seconds": ("until no usage waited any more", "s"),
    "busiest_share": ("share of the busier worker", "of all"),
    "worker_mb": ("PSS of the fattest web worker at the end", "MB"),
}
"""What it is, with the name of its row's base, and its unit; by the name that limits have."""
ALWAYS = ("ratio", "cpu_ratio", "nginx", "rate_to_before", "cpu_to_before", "filled")


def missed(result: Result) -> bool:
    return any(
        figure["verdict"] == "must missed"
        for one in (result, *result["rows"])
        for figure in one["figures"]
    )


def plan_targets(result: Result, name: str) -> list[Result]:
    """The plans' absolute figures against what `name` did on this machine."""
    targets = []
    summary = next((row for row in result["rows"] if row["name"] == "detect"), None)
    if summary is not None and name in summary["contenders"]:
        figures = summary["contenders"][name]
        rate = figures["requests_per_second"]["median"]
        cpu_seconds = figures["cpu_us_per_request"]["median"] / 1e6
        rates = f"{rate:,.0f} req/s; {1 / cpu_seconds:,.0f} for each core of CPU that it takes"
        targets = [
            ("1,000 req/s", rates, rate >= 1_000),
            ("10,000-20,000 req/s", rates, rate >= 10_000),
            ("10,000 req/s by its CPU", f"{10_000 * cpu_seconds:.1f} cores, none idle", None),
        ]
    connections = result["settings"]["connections"]
    added = result["added_latency"].get(name, {})
    for limit in (100.0, 5.0):
        for key, how in (("single", "one request at a time"), ("full", "at full load")):
            if key in added:
                value = added[key]["p95_ms"]
                when = how if key == "single" else f"{how}, {connections} connections"
                targets.append(
                    (f"< {limit:g} ms added (p95), {when}", f"{value:.2f} ms", value < limit)
                )
    return [{"target": t, "measured": m, "met": met} for t, m, met in targets]


# --- Tables --------------------------------------------------------------------------------------

_HEAD = (
    *("", "req/s (median, min-max)", "p50 ms", "p95 ms", "p99 ms", "CPU ms/req", "of it worker"),
    "MB/worker",
)
_GROWTH_HEAD = (*_HEAD[:-2], "engine calls/req")
_GROWTH_TITLE = "How it grows"


def _cells(result: Result, row: Result, name: str) -> tuple[str, ...]:
    workers = row["worker_bytes"].get(name)
    memory = f"{workers / 1e6:.0f}" if workers else "-"
    return (result["titles"][name], *_figures(row, name), memory)


def _growth_cells(row: Result, name: str) -> tuple[str, ...]:
    what = row["title"].removeprefix("POST /v1/detect, ").removeprefix("engine asked each time, ")
    calls = row["contenders"][name]["engine_calls_per_request"]
    return (f"{what}: {name}", *_figures(row, name)[:-1], f"{calls:.1f}")


def _figures(row: Result, name: str) -> tuple[str, ...]:
    figures = row["contenders"][name]
    rate, cpu = figures["requests_per_second"], figures["cpu_us_per_request"]["median"]
    return (
        f"{rate['median']:,.0f} ({rate['min']:,.0f}-{rate['max']:,.0f})",
        *(f"{figures[key]['median']:.1f}" for key in ("p50_ms", "p95_ms", "p99_ms")),
        f"{cpu / 1000:.2f}" if cpu else "-",
        f"{figures['worker_cpu_us_per_request'] / 1000:.2f}" if cpu else "-",
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
        grown = [
            {**figure, "of": row["name"], "base": row["base"]}
            for row in result["rows"]
            if row["is_growth"]
            for figure in row["figures"]
        ]
        yield {"title": _GROWTH_TITLE, "base": "", "figures": grown}, _GROWTH_HEAD, lines


def _sentences(row: Result, disturbed: bool) -> Iterator[tuple[str, str | None]]:
    """What the row's figures say, and each one's verdict."""
    for figure in row["figures"]:
        title, unit = FIGURES[figure["name"]]
        of = f"{figure['of']}: " if "of" in figure else ""
        title = title.format(base=figure.get("base", row.get("base", "")))
        by_run = ", ".join(f"{value:.2f}" for value in figure["by_run"])
        sentence = (
            f"{of}{title}: {by_run} {unit} ({figure['min']:.2f}-{figure['max']:.2f} by round)"
        )
        if limit := figure["limit"]:
            sign = "<" if limit["is_most"] else "at least"
            aim = "" if limit["aim"] is None else f", aim {sign} {limit['aim']:g} {unit}"
            sentence += f"; must {sign} {limit['must']:g} {unit}{aim}: {figure['verdict']}"
            if (runs := len(figure["by_run"])) > 1:
                sentence += f" by the worst of {runs} runs"
        yield sentence + (" (disturbed run)" if disturbed else ""), figure["verdict"]


def _footer(result: Result) -> list[str]:
    """Everything below the tables, as plain lines."""
    machine, settings = result["machine"], result["settings"]
    lines = [
        f"Machine: {machine['processor']}, {machine['cores']} cores, {machine['memory']}, kernel "
        f"{machine['kernel']}; PostgreSQL {machine['PostgreSQL']}, Redis {machine['Redis']}, "
        f"nginx {machine['nginx']}, wrk {machine['wrk']}; "
        f"load of others {machine.get('foreign_load_percent', '?')} % of all cores.",
        f"{result['started_at']}: {settings['runs']} runs of {settings['rounds']} rounds of "
        f"{settings['seconds']} s, "
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
        _print_sentences(row, result["disturbed"], console)
    _print_sentences(result, result["disturbed"], console)
    if result["targets"]:
        table = Table("Figure of the plans", "measured here", "", title_justify="left")
        for target in result["targets"]:
            table.add_row(target["target"], target["measured"], _met(target))
        console.print(table)
    for line in _footer(result):
        console.print(line, markup=False, soft_wrap=True)


def _print_sentences(row: Result, disturbed: bool, console: Console) -> None:
    for sentence, verdict in _sentences(row, disturbed):
        console.print(
            sentence, style="red" if verdict == "must missed" else "green", soft_wrap=True
        )


def _met(target: Result) -> str:
    return {True: "met", False: "missed", None: ""}[target["met"]]


def markdown(result: Result) -> str:
    """The report for the documentation."""
    lines = []
    for row, head, cells in _tables(result):
        lines += [f"**{row['title']}**", "", "| " + " | ".join(head) + " |"]
        lines.append("|---" + "|---:" * (len(head) - 1) + "|")
        lines += ["| " + " | ".join(line) + " |" for line in cells]
        lines.append("")
        lines += [f"* {sentence}" for sentence, _ in _sentences(row, result["disturbed"])]
        lines.append("")
    if result["targets"]:
        lines += ["| Figure of the plans | measured here | |", "|---|---|---|"]
        lines += [f"| {t['target']} | {t['measured']} | {_met(t)} |" for t in result["targets"]]
        lines.append("")
    lines += [f"* {sentence}" for sentence, _ in _sentences(result, result["disturbed"])]
    lines += [f"* {line}" for line in _footer(result)]
    return "\n".join(lines) + "\n"
