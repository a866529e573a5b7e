"""What `make run` costs while nobody uses it: CPU and memory of each process, and what it grows by.

    python -m benchmarks.idle [--minutes 10] [--settle 600]

It starts `manage.py run` with an empty folder, lets the first ten minutes pass, in which each of
the frequent tasks comes for the first time, and then only looks. CPU is in percent of one core.
Memory is RSS, which counts what processes share once for each, and PSS, which shares it out; both
are means over the first and the last minute, and growth is what lies between, by the minutes
between their middles.
Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.processes import BenchError, Child, ProcessUsage, base_environment, free_port

ROOT = Path(__file__).resolve().parents[1]
CPU_PERCENT_MUST = 1.5
RSS_MB_MUST = 300.0
# "Flat": a tenth of what a TLS context a minute was, and five times what warm caches still take.
GROWTH_MB_MUST = 0.3
SAMPLE_SECONDS = 5.0
NAMES = {  # part of the command → what we call it
    "local_supervisor": "parent",
    "detection.engines.server": "embedded engine",
    "robin.standin": "stand-in Robin",
    "gateway_project.server": "gateway",
}
SUM = "all"


@dataclass(frozen=True)
class Sample:
    at: float
    usage: dict[str, ProcessUsage]


@dataclass(frozen=True)
class Line:
    """One process, or all. Memory is (first minute, last minute) in MB."""

    name: str
    cpu_percent: float
    cpu_percent_by_minute: tuple[float, float]
    rss_mb: tuple[float, float]
    pss_mb: tuple[float, float]
    growth_mb: float  # of the RSS, a minute


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.idle", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to look, at least 2")
    parser.add_argument("--settle", type=float, default=600.0, metavar="SECONDS")
    arguments = parser.parse_args()
    if arguments.minutes < 2:
        parser.error("--minutes must be at least 2: a first one and a last one.")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    try:
        samples = watch(arguments.minutes, arguments.settle, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    lines = summarise(samples)
    print_table(lines, console)
    minutes = (samples[-1].at - samples[0].at) / 60
    console.print(
        f"{minutes:.1f} minutes after {arguments.settle:.0f} s; load of the machine "
        f"{load:.1f} before, {os.getloadavg()[0]:.1f} after (idle is some 0.02)."
    )
    console.print(", ".join(f"{k} {v}" for k, v in machine.describe().items()), style="dim")
    missed = misses(lines[-1])
    for sentence in missed:
        console.print(sentence, style="red")
    if not missed:
        console.print(
            f"musts met: < {CPU_PERCENT_MUST:g} % of one core, < {RSS_MB_MUST:g} MB, "
            f"< {GROWTH_MB_MUST:g} MB a minute",
            style="green",
        )
    return 1 if missed else 0


def watch(minutes: float, settle_seconds: float, console: Console) -> list[Sample]:
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = free_port()
        env = base_environment() | {"VAR_DIR": str(scratch / "var"), "PORT": str(port)}
        (scratch / "var").mkdir()
        command = [sys.executable, "manage.py", "run"]
        child = Child("make run", command, env, ROOT, scratch / "run.log")
        stack.callback(child.stop, 30.0)
        child.wait_ready(port, "/health/ready", seconds=120)
        console.print(f"ready on :{port}; settling for {settle_seconds:.0f} s")
        time.sleep(settle_seconds)
        samples = [sample(child)]
        until = samples[0].at + minutes * 60
        while samples[-1].at < until:
            time.sleep(min(SAMPLE_SECONDS, max(until - time.monotonic(), 0.1)))
            samples.append(sample(child))
    return samples


def sample(child: Child) -> Sample:
    usage = {name_of(process.command): process for process in child.usage()}
    if missing := [name for name in NAMES.values() if name not in usage]:
        raise BenchError(f"{', '.join(missing)} is not running:\n{child.log_tail()}")
    return Sample(time.monotonic(), usage)


def name_of(command: str) -> str:
    return next((name for part, name in NAMES.items() if part in command), command)


def summarise(samples: Sequence[Sample]) -> list[Line]:
    """A line for each process, and one for all of them at the end."""
    began, ended = samples[0].at, samples[-1].at
    first = [one for one in samples if one.at <= began + 60]
    last = [one for one in samples if one.at >= ended - 60]
    between = (mean(one.at for one in last) - mean(one.at for one in first)) / 60
    lines = []
    for name in [*samples[0].usage, SUM]:
        rss_mb, pss_mb = (
            (mean(sizes(first, name, field)), mean(sizes(last, name, field)))
            for field in ("rss_bytes", "pss_bytes")
        )
        lines.append(
            Line(
                name,
                cpu_percent(samples, name),
                (cpu_percent(first, name), cpu_percent(last, name)),
                rss_mb,
                pss_mb,
                (rss_mb[1] - rss_mb[0]) / between,
            )
        )
    return lines


def of(one: Sample, name: str) -> list[ProcessUsage]:
    return list(one.usage.values()) if name == SUM else [one.usage[name]]


def sizes(samples: Sequence[Sample], name: str, field: str) -> list[float]:
    """In MB."""
    return [sum(getattr(process, field) for process in of(one, name)) / 1e6 for one in samples]


def cpu_percent(samples: Sequence[Sample], name: str) -> float:
    start, end = (sum(p.cpu_seconds for p in of(samples[i], name)) for i in (0, -1))
    return 100 * (end - start) / (samples[-1].at - samples[0].at)


def misses(total: Line) -> list[str]:
    """A sentence for each must that was missed."""
    figures = (
        ("CPU", total.cpu_percent, CPU_PERCENT_MUST, "% of one core"),
        ("RSS", total.rss_mb[1], RSS_MB_MUST, "MB"),
        ("growth", total.growth_mb, GROWTH_MB_MUST, "MB a minute"),
    )
    return [
        f"must missed: {what} {value:.2f} {unit}, not below {must:g}"
        for what, value, must, unit in figures
        if value >= must
    ]


def print_table(lines: Sequence[Line], console: Console) -> None:
    head = ("", "CPU %", "first/last minute", "RSS MB", "PSS MB", "RSS grows, MB/min")
    table = Table(*head, title="make run, idle", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for line in lines:
        table.add_row(
            line.name,
            f"{line.cpu_percent:.2f}",
            "/".join(f"{value:.2f}" for value in line.cpu_percent_by_minute),
            " → ".join(f"{value:.1f}" for value in line.rss_mb),
            " → ".join(f"{value:.1f}" for value in line.pss_mb),
            f"{line.growth_mb:+.2f}",
        )
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
