"""Whether a gateway stays as it is for as long as it runs: memory, files and tables over minutes.

    python -m benchmarks.soak [--minutes 30] [--idle-minutes 10] [--warm-minutes 16] [--rate 60]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. Two web processes, a worker and a beat: under a mixed load (detections,
batches, their webhooks, every page that has an address without parts), then with nobody there. Each
`EVERY_SECONDS` the memory of each process (RssAnon), its open files and its threads are read, and a
line is fitted through what comes after the warm-up. That takes a quarter of an hour: for so long
(CELERY_TASK_TIME_LIMIT) a worker's parent remembers when the time of each task would have ended,
which is 2 to 3 MB in ten minutes until then.

The musts, of every process and in both times: memory grows by less than `MUST_MB`, and connections
by less than `MUST_CONNECTIONS`, in ten minutes, or less than can be told from their ups and downs;
no other file stays open; no table grows but those of the log and of the work that was given, and
none of all at rest. Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import psycopg
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import machine, memory
from benchmarks.chaos import Load, Receiver, prepare
from benchmarks.contenders import gateway
from benchmarks.processes import LOOPBACK, Aside, BenchError, Child, base_environment, run_once
from benchmarks.run import running_engine
from benchmarks.stores import named_stores, private_stores, versions

MUST_MB = 1.0
# Pools open another when they need it; what each page, job or minute lost would be ten and more.
MUST_CONNECTIONS = 3.0
CONNECTED = "connected "
EVERY_SECONDS = 5.0
PAGES_SECONDS = 20.0
COOL_SECONDS = 30.0  # what was under way ends, and is written
WORKERS = 2
# What is kept of each call, each piece of work and each page's session, for as long as the
# settings say (gateway_project/tests/test_growth.py); all else has one row for what there is.
GROW = (
    *("accounts_usagelog", "accounts_usagerollup", "accounts_usagebatch", "accounts_scorerollup"),
    *("accounts_outboxevent", "accounts_idempotencyrecord", "webhooks_webhookdelivery"),
    *("webhooks_webhookattempt", "detection_job", "detection_jobchunk", "django_session"),
    "robin_metricsample",
)


@dataclass
class Series:
    """One process, over one of the two times."""

    seconds: list[float] = field(default_factory=list)
    mb: list[float] = field(default_factory=list)
    files: list[Counter[str]] = field(default_factory=list)
    """By what they are."""
    threads: list[int] = field(default_factory=list)

    @property
    def file_counts(self) -> list[int]:
        return [one.total() for one in self.files]

    @property
    def connections(self) -> list[int]:
        return [
            sum(count for kind, count in one.items() if kind.startswith(CONNECTED))
            for one in self.files
        ]

    def in_ten_minutes(self, values: Sequence[float]) -> tuple[float, float]:
        """What they grow by, and its two standard errors: a shorter run knows less."""
        rise, error = slope(self.seconds, values)
        return rise * 600, error * 2 * 600

    @property
    def more_files(self) -> dict[str, int]:
        """The least of the last third beyond the least of the first, by what they are."""
        third = max(1, len(self.files) // 3)
        kinds = {kind for one in self.files for kind in one}
        least = {
            kind: min(one[kind] for one in self.files[-third:])
            - min(one[kind] for one in self.files[:third])
            for kind in kinds
        }
        return {kind: count for kind, count in sorted(least.items()) if count > 0}


LOOKS_MIN = 3
"""At a process: a line through fewer says nothing."""


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Of the line of least squares, and its standard error."""
    if len(x) < LOOKS_MIN:
        return 0.0, float("inf")
    middle_x, middle_y = mean(x), mean(y)
    spread = sum((one - middle_x) ** 2 for one in x)
    rise = sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / spread
    left = sum((b - middle_y - rise * (a - middle_x)) ** 2 for a, b in zip(x, y, strict=True))
    return rise, (left / (len(x) - 2) / spread) ** 0.5


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0, help="under load")
    parser.add_argument("--idle-minutes", type=float, default=10.0)
    parser.add_argument("--warm-minutes", type=float, default=16.0, help="of load, not counted")
    parser.add_argument("--rate", type=float, default=60.0, help="detections a second")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["prepare"])
    parser.add_argument("--url", default="")
    arguments = parser.parse_args()
    if arguments.act is not None:
        import django

        django.setup()
        print(json.dumps(prepare(arguments.url)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    try:
        result = run(arguments, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    console.print(
        f"{result['calls']:,} calls, {result['pages']:,} pages, {result['webhooks']:,} webhooks"
    )
    console.print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, default=vars) + "\n")
    missed = missed_musts(result)
    for sentence in missed:
        console.print(f"must missed: {sentence}", style="red", markup=False)
    if not missed:
        console.print("musts met", style="green")
    return 1 if missed else 0


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    database_url, redis_url = named_stores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        engine = stack.enter_context(running_engine(scratch))
        stores = stack.enter_context(private_stores(database_url, redis_url, "soak"))
        known = gateway(stores, engine, WORKERS, scratch)
        env = base_environment() | dict(known.env)
        env |= {
            "HTTPS_ONLY": "false",
            "PAGES_PER_MINUTE": "1000000",
            "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        for command in known.prepare:
            run_once(command, env, known.cwd, seconds=600)
        receiver = Receiver()
        act = (sys.executable, "-m", "benchmarks.soak", "--act=prepare", f"--url={receiver.url}")
        key = json.loads(run_once(act, env, known.cwd, 60))["key"]
        run_once(known.make_key, env, known.cwd, 60)  # and its workspace, for the pages
        pages = (sys.executable, "-m", "benchmarks.memory", "--act=pages")
        addresses = json.loads(run_once(pages, env, known.cwd, seconds=60))
        celery = (sys.executable, "-m", "celery", "-A", "gateway_project")
        commands = {
            "web": known.serve,
            "worker": (*celery, "worker", "--concurrency=1"),
            "beat": (*celery, "beat", "--schedule", str(scratch / "beat")),
        }
        children: dict[str, Child] = {}
        for name, command in commands.items():
            children[name] = Child(name, command, env, known.cwd, scratch / f"{name}.log")
            stack.callback(children[name].stop, 30.0)
        children["web"].wait_ready(known.port, known.ready_path)
        base = f"http://{LOOPBACK}:{known.port}"
        urls = {"PostgreSQL": database_url, "Redis": redis_url, "the receiver": receiver.url}
        peers = {urlsplit(url).port or 0: name for name, url in urls.items()}
        peers |= {engine: "the engine", known.port: "callers"}
        watch = Watch(children, stores.database_url, peers, console)
        with Load(base, key, arguments.rate) as load, Pages(base, addresses) as opened:
            under_load = watch("under load", arguments.minutes * 60, arguments.warm_minutes * 60)
        show_time(under_load, console)
        if any(one.failures for one in load.steps):
            raise BenchError(f"calls failed: {[dict(one.failures) for one in load.steps]}")
        idle = watch("at rest", arguments.idle_minutes * 60, COOL_SECONDS)
        show_time(idle, console)
        return {
            "machine": machine.describe() | versions(database_url, redis_url),
            "calls": sum(one.calls for one in load.steps),
            "pages": opened.count,
            "webhooks": len(receiver.ids),
            "times": [under_load, idle],
        }


class Pages:
    """Every page, again and again, in a thread of its own."""

    def __init__(self, base: str, known: dict[str, Any]) -> None:
        self.count = 0
        self._base, self._known = base, known
        self._over = threading.Event()
        self._thread = Aside("the pages", self._run)

    def __enter__(self) -> Pages:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(120)
        self._thread.check()

    def _run(self) -> None:
        while not self._over.is_set():
            self.count += memory.open_pages(self._base, self._known, times=1)
            self._over.wait(PAGES_SECONDS)


class Watch:
    def __init__(
        self,
        children: dict[str, Child],
        database_url: str,
        peers: dict[int, str],
        console: Console,
    ) -> None:
        self._children, self._database_url, self._console = children, database_url, console
        self._peers = peers

    def __call__(self, name: str, seconds: float, warm: float) -> dict[str, Any]:
        """`{name, processes, tables}`: what is read each `EVERY_SECONDS`, after so many seconds."""
        began = time.monotonic()
        found: dict[str, Series] = {}
        before: dict[str, int] | None = None
        with Progress(console=self._console, transient=True) as progress:
            task = progress.add_task(name, total=warm + seconds)
            while (now := time.monotonic() - began) < warm + seconds:
                if now >= warm:
                    if before is None:
                        before = rows(self._database_url)
                    self._read(found, now)
                progress.update(task, completed=now)
                time.sleep(EVERY_SECONDS)
        after = rows(self._database_url)
        grown = {one: after[one] - (before or {}).get(one, 0) for one in after}
        return {
            "name": name,
            "seconds": seconds,
            "processes": found,
            "tables": {one: count for one, count in grown.items() if count},
        }

    def _read(self, found: dict[str, Series], now: float) -> None:
        for title, child in self._children.items():
            if child.process.poll() is not None:
                raise BenchError(f"the {title} has ended:\n{child.log_tail()}")
            for number, pid in enumerate(sorted(child.pids())):
                series = found.setdefault(f"{title} {number}", Series())
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                    files = open_files(pid, self._peers)
                except OSError:
                    continue  # it has ended since
                facts = dict(line.split(":", 1) for line in status.splitlines())
                series.seconds.append(now)
                series.mb.append(int(facts["RssAnon"].split()[0]) * 1024 / 1e6)
                series.files.append(files)
                series.threads.append(int(facts["Threads"]))


def open_files(pid: int, peers: dict[int, str]) -> Counter[str]:
    """How many, by what they are: of connections, by whose port there is at one of their ends."""
    connections = {}
    for table in Path(f"/proc/{pid}/net").glob("tcp*"):
        for line in table.read_text().splitlines()[1:]:
            _, here, there, _, _, _, _, _, _, inode, *_ = line.split()
            ports = [int(end.rpartition(":")[2], 16) for end in (there, here)]
            name = next((peers[port] for port in ports if port in peers), "others")
            connections[f"socket:[{inode}]"] = f"{CONNECTED}to {name}"
    found = Counter[str]()
    for one in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(one.readlink())
        except FileNotFoundError:
            continue  # closed meanwhile
        found[connections.get(target) or target.partition("[")[0].removesuffix(":")] += 1
    return found


def rows(database_url: str) -> dict[str, int]:
    """How many each table has; of one in partitions, all together."""
    query = """
        SELECT coalesce(parent.relname, c.relname), quote_ident(c.relname)
        FROM pg_class c
        LEFT JOIN pg_inherits ON inhrelid = c.oid
        LEFT JOIN pg_class parent ON parent.oid = inhparent
        WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace"""
    found: dict[str, int] = {}
    with psycopg.connect(database_url) as connection:
        for table, part in connection.execute(query).fetchall():
            counted = connection.execute(f"SELECT count(*) FROM {part}").fetchone()  # type: ignore[arg-type]
            found[table] = found.get(table, 0) + (int(counted[0]) if counted else 0)
    return found


def missed_musts(result: dict[str, Any]) -> list[str]:
    missed = []
    for name in ("calls", "pages", "webhooks"):
        if not result[name]:
            missed.append(f"{name}: none, so that nothing was tried")
    for time_ in result["times"]:
        looks = [len(series.seconds) for series in time_["processes"].values()]
        if max(looks, default=0) < LOOKS_MIN:
            missed.append(f"no process was looked at {LOOKS_MIN} times {time_['name']}: run longer")
        for name, series in time_["processes"].items():
            when = f"{name} {time_['name']}"
            # A sleeping process has no ups and downs: any growth of it is one.
            megabytes, doubt = series.in_ten_minutes(series.mb)
            if megabytes - doubt >= MUST_MB:
                missed.append(f"{when} grew by {megabytes:.2f} MB in ten minutes")
            more = series.more_files
            connections, doubt = series.in_ten_minutes(series.connections)
            if connections - doubt >= MUST_CONNECTIONS:
                missed.append(f"{when}: {connections:.1f} connections in ten minutes more, {more}")
            if lost := {kind: n for kind, n in more.items() if not kind.startswith(CONNECTED)}:
                missed.append(f"{when} has more files open: {lost}")
        grows: Callable[[str], bool] = lambda table: table.startswith(GROW)  # noqa: E731
        for table, count in time_["tables"].items():
            if count > 0 and not grows(table):
                missed.append(f"{table} has {count} more rows {time_['name']}")
    return missed


def show_time(time_: dict[str, Any], console: Console) -> None:
    title = f"{time_['name']}, {time_['seconds'] / 60:.1f} minutes"
    table = Table(title=title)
    headings = (
        *("process", "MB first", "MB last", "MB in 10 minutes"),
        *("open files", "more at the end", "threads"),
    )
    for heading in headings:
        table.add_column(heading)
    for name, series in time_["processes"].items():
        table.add_row(
            name,
            f"{series.mb[0]:.1f}",
            f"{series.mb[-1]:.1f}",
            "{:+.2f} ± {:.2f}".format(*series.in_ten_minutes(series.mb)),
            f"{min(series.file_counts)} to {max(series.file_counts)}",
            ", ".join(f"{count} {kind}" for kind, count in series.more_files.items()),
            f"{min(series.threads)} to {max(series.threads)}",
        )
    console.print(table)
    console.print(f"tables: {time_['tables'] or 'none has other rows'}")


if __name__ == "__main__":
    sys.exit(main())
