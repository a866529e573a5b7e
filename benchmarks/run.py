"""Measure the gateway against the frozen reference in one interleaved run.

    python -m benchmarks.run [--rounds 5] [--seconds 8] [--connections 32] [--workers 2]
                             [--runs 1] [--only NAME]... [--tail MS] [--json FILE]
                             [--markdown FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis; `make bench` provides private ones.
NAME is a row or a contender. Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import monotonic, sleep
from types import FrameType

import redis
from prometheus_client.mmap_dict import MmapedDict
from rich.console import Console

from benchmarks import machine, report, robin_pages
from benchmarks.contenders import BESIDE, FACTORIES, USUAL, Contender, package_versions
from benchmarks.load import Load, run_wrk
from benchmarks.processes import (
    Aside,
    BenchError,
    Child,
    base_environment,
    free_port,
    request,
    run_once,
)
from benchmarks.rows import ROWS, TURNS, Engine, Row
from benchmarks.stores import Stores, named_stores, private_stores, versions

PROBE_SECONDS = 2  # each run of the latency probes
GROWTH_ROUNDS, GROWTH_SECONDS = 3, 5  # at most: there are many such rows
OFFERED_SHARE = 0.98  # of a rate that wrk is to offer, or the run does not count
STREAM_SECONDS = 0.05  # between two looks at it
STUB_ENDPOINT = "huggingface"  # tells the stub's answer from one of a fallback
CHECKED_PATH = "/v1/detect"
REQUIRED_HEADERS = ("x-ratelimit-limit", "x-request-id", "x-content-type-options")


@dataclass
class Side:
    """A contender while it runs, and what it answered so far."""

    contender: Contender
    child: Child
    stores: Stores
    headers: dict[str, str]
    token_headers: dict[str, str]
    worker: Child | None = None
    answered: int = 0  # requests that wrk saw answered: each must leave a usage row
    cut_off: int = 0  # at most so many more were under way when a run of wrk ended
    stored: int = 0  # usage rows that were there before

    @property
    def children(self) -> list[Child]:
        return [self.child] if self.worker is None else [self.child, self.worker]

    def cpu_seconds(self) -> tuple[float, float]:
        """Of all, and of the Celery worker among them."""
        worker = 0.0 if self.worker is None else self.worker.cpu_seconds()
        return self.child.cpu_seconds() + worker, worker

    def settle(self) -> tuple[bool, float | None]:
        """Whether it rested soon, and after how many seconds no usage waited any more."""
        if not self.contender.usage_stream:
            return self._rests(), None
        began, last, is_over = monotonic(), 0.0, False

        def watch() -> None:
            nonlocal last
            with redis.Redis.from_url(self.stores.redis_url) as client:
                while not is_over:
                    if client.xlen(self.contender.usage_stream):
                        last = monotonic() - began
                    sleep(STREAM_SECONDS)

        watcher = Aside("the look at the stream", watch)
        watcher.start()
        try:
            rested = self._rests()
        finally:
            is_over = True
            watcher.join()
        watcher.check()
        return rested, last

    def _rests(self) -> bool:
        rested = [child.settle() for child in self.children]
        return all(rested)

    def answered_by_process(self) -> dict[str, float]:
        """Requests that each process counted, by its file of metrics."""
        if not self.contender.metrics:
            return {}
        return {
            file.name: sum(
                value
                for key, value, *_ in MmapedDict.read_all_values_from_file(str(file))
                if json.loads(key)[1] == "gateway_requests_total"
            )
            for file in Path(self.contender.metrics).glob("counter_*.db")
            if file.stat().st_size  # none, for the moment between its making and its first value
        }


@dataclass
class Bench:
    """One whole run: the stub engine, the contenders, and the measurements."""

    rounds: int
    seconds: int
    connections: int
    workers: int
    scratch: Path
    console: Console
    engine_port: int = 0
    sides: dict[str, Side] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    foreign: list[float] = field(default_factory=list)  # busy share of the machine between runs
    tail_ms: float | None = None

    def measure(
        self,
        row: Row,
        side: Side,
        *,
        seconds: int,
        connections: int,
        keys: Path | None = None,
    ) -> report.Run:
        """One run of wrk against one contender, checked and with its CPU time."""
        calls, before = engine_calls(self.engine_port), side.cpu_seconds()
        answered = side.answered_by_process()
        logged = side.child.log.stat().st_size
        load = run_wrk(
            row,
            side.contender.port,
            side.token_headers if row.takes_token else side.headers,
            connections=connections,
            seconds=seconds,
            keys=keys,
        )
        # Work put off until after the answer belongs to the request, so CPU counts to rest.
        settled, empty_seconds = side.settle()
        calls = engine_calls(self.engine_port) - calls - 1
        cpu, worker_cpu = (
            (now - then) / load.requests * 1e6
            for now, then in zip(side.cpu_seconds(), before, strict=True)
        )
        if settled:
            self.foreign.append(machine.busy_share(0.3))
        if row.counts_usage:
            side.answered += load.requests
            side.cut_off += connections
        self._check_engine(row, side, load, calls)
        return report.Run(
            load=load,
            cpu_us_per_request=cpu,
            engine_calls=calls,
            settled=settled,
            worker_cpu_us_per_request=worker_cpu,
            empty_seconds=empty_seconds,
            busiest_share=busiest_share(answered, side.answered_by_process()),
            slowest=_slowest(side.child.log, logged, load.requests) if self.tail_ms else {},
        )

    def run_row(self, row: Row) -> report.Rounds:
        """Warm up, then rounds in alternating order."""
        connections = row.connections or self.connections
        rounds, seconds = self.rounds, self.seconds
        if row.is_growth:
            rounds, seconds = min(rounds, GROWTH_ROUNDS), min(seconds, GROWTH_SECONDS)
        sides = {name: side for name, side in self.sides.items() if can_run(row, side.contender)}
        keys = {name: self._fill_keys(row, side) for name, side in sides.items()}
        for name, side in sides.items():
            wanted = side.answered + (TURNS * row.keys.active if row.keys else 1)
            while side.answered < wanted:
                self.measure(
                    row,
                    side,
                    seconds=row.warm_up_seconds,
                    connections=connections,
                    keys=keys[name],
                )
                if not row.counts_usage:
                    break
        runs: report.Rounds = {name: [] for name in sides}
        if row.offered_per_second:
            runs[report.ENGINE] = []
        for number in range(rounds):
            if row.offered_per_second:
                direct = run_wrk(
                    row, self.engine_port, {}, connections=connections, seconds=seconds
                )
                if direct.requests_per_second < OFFERED_SHARE * row.offered_per_second:
                    raise BenchError(
                        f"{row.title}: wrk offered {direct.requests_per_second:,.0f} a second."
                    )
                runs[report.ENGINE].append(report.Run(direct, 0.0, direct.requests, True))
            for name in sides if number % 2 == 0 else reversed(sides):
                run = self.measure(
                    row,
                    sides[name],
                    seconds=seconds,
                    connections=connections,
                    keys=keys[name],
                )
                runs[name].append(run)
                cores = run.load.requests_per_second * run.cpu_us_per_request / 1e6
                self.console.print(
                    f"  {row.name}, round {number + 1}/{rounds}, {name}: "
                    f"{run.load.requests_per_second:,.0f} req/s, p95 {run.load.p95_ms:.1f} ms, "
                    f"CPU {run.cpu_us_per_request / 1000:.2f} ms/req, {cores:.1f} cores"
                    + "".join(f", {name} {ms:.1f}" for name, ms in run.slowest.items())
                    + ("" if run.settled else " (still busy 6 s later)"),
                )
        for name, measured in runs.items():
            if unsettled := sum(not run.settled for run in measured):
                self.notes.append(
                    f"{name} was still busy 6 s after {unsettled} of its runs of {row.name}."
                )
        return runs

    def run_rows(self, rows: list[Row], runs: int) -> list[report.Result]:
        """All rows, one run of them after the other; results in the order of the rows."""
        measured: dict[str, list[report.Rounds]] = {row.name: [] for row in rows}
        workers: dict[str, dict[str, int]] = {}
        asked = {row.name: row for row in rows}
        for _ in range(runs):
            for row in rows:
                if row.offered_share is not None:
                    base = measured[row.base][-1][report.TESTED]
                    rate = median(one.load.requests_per_second for one in base)
                    asked[row.name] = replace(
                        row, offered_per_second=round(rate * row.offered_share)
                    )
                measured[row.name].append(self.run_row(asked[row.name]))
                workers[row.name] = {
                    name: max(process["pss_bytes"] for process in found["web"])
                    for name, found in self.memory().items()
                    if name in measured[row.name][-1]
                }
        found: dict[str, report.Result] = {}
        for name, row in asked.items():
            found[name] = report.summarise(row, measured[name], found.get(row.base))
            found[name]["worker_bytes"] = workers[name]
        return list(found.values())

    def _fill_keys(self, row: Row, side: Side) -> Path | None:
        """The file of keys that the row's requests take turns with."""
        if row.keys is None:
            return None
        contender, file = side.contender, self.scratch / f"{side.contender.name}-keys"
        command = [*contender.fill_keys, str(row.keys.stored), str(row.keys.active), str(file)]
        self.console.print(f"  {row.name}: storing keys ...")
        run_once(command, base_environment() | dict(contender.env), contender.cwd, seconds=600)
        return file

    def added_latency(self, row: Row) -> report.Result:
        """p50 and p95 in ms above the bare engine, one at a time and with all connections."""
        found: report.Result = {}
        for key, connections in (("single", 1), ("full", self.connections)):
            direct = run_wrk(
                row, self.engine_port, {}, connections=connections, seconds=PROBE_SECONDS
            )
            found.setdefault("engine", {})[key] = asdict(direct)
            for name, side in self.sides.items():
                run = self.measure(row, side, seconds=PROBE_SECONDS, connections=connections)
                found.setdefault(name, {})[key] = {
                    "p50_ms": run.load.p50_ms - direct.p50_ms,
                    "p95_ms": run.load.p95_ms - direct.p95_ms,
                }
        return found

    def memory(self) -> report.Result:
        """Memory of every process in bytes; the web workers are the busiest ones."""
        found = {}
        for name, side in self.sides.items():
            processes = [asdict(process) for child in side.children for process in child.usage()]
            found[name] = {"web": processes[: self.workers], "others": processes[self.workers :]}
        return found

    def describe_foreign_load(self, description: dict[str, str]) -> bool:
        """Whether others disturbed the run: what was busy while both sides rested is theirs."""
        if not self.foreign:
            return True
        typical, most = median(self.foreign), max(self.foreign)
        description["foreign_load_percent"] = f"{typical * 100:.0f} (at most {most * 100:.0f})"
        disturbed = most > 0.15
        if disturbed:
            self.notes.append(
                "Disturbed: other work ran on the machine. Repeat the run before quoting a figure."
            )
        return disturbed

    def evidence(self, rows: list[Row]) -> report.Result:
        """What really was on: usage rows, log lines and counted requests, one for each answer."""
        paths = {CHECKED_PATH} | {row.path for row in rows if row.counts_usage}
        found = {}
        for name, side in self.sides.items():
            contender = side.contender
            if not contender.usage_table:
                continue
            rows_stored = side.stores.wait_for_rows(
                contender.usage_table, side.stored + side.answered
            )
            counts = {
                "usage rows": rows_stored - side.stored,
                "log lines": _log_lines(side.child.log, paths),
                "counted by metrics": self._counted(side, paths),
            }
            # wrk hangs up on the requests under way when its time is over: they may be in both,
            # in one or in none of these.
            low, high = side.answered, side.answered + side.cut_off
            found[name] = {
                "answered": side.answered,
                "cut_off": side.cut_off,
                "counts": counts,
                "complete": all(low <= count <= high for count in counts.values()),
            }
        return found

    def check_answer(self, side: Side) -> None:
        """One request by hand: the engine's own verdict, with all the headers that cost time."""
        body = json.dumps({"text": f"A first message, {os.urandom(8).hex()}."}).encode()
        headers = {**side.headers, "Content-Type": "application/json"}
        answer = request(side.contender.port, "POST", CHECKED_PATH, headers, body)
        side.answered += 1
        if answer.status != 200 or json.loads(answer.body).get("endpoint") != STUB_ENDPOINT:
            raise BenchError(
                f"{side.contender.title} did not pass on the engine's answer: {answer.excerpt()}\n"
                f"{side.child.log_tail()}"
            )
        missing = [name for name in REQUIRED_HEADERS if name not in answer.headers]
        if missing and not side.contender.is_peer:
            raise BenchError(f"{side.contender.title} sent no {', '.join(missing)}.")

    @staticmethod
    def _counted(side: Side, paths: set[str]) -> int:
        """Answers 200 on `paths` that the contender's own metrics show."""
        text = request(side.contender.port, "GET", "/metrics").body.decode()
        total = 0.0
        for line in text.splitlines():
            name, _, labels = line.partition("{")
            if (
                name == "gateway_requests_total"
                and 'status="200"' in labels
                and any(f'{path.lstrip("/")}"' in labels for path in paths)
            ):
                total += float(line.rpartition(" ")[2])
        return round(total)

    @staticmethod
    def _check_engine(row: Row, side: Side, load: Load, calls: int) -> None:
        asked = f"the engine was asked {calls:,} times for {load.requests:,} answers"
        if row.engine is Engine.EACH and calls < load.requests:
            raise BenchError(f"{row.title}, {side.contender.title}: {asked}; it must be each time.")
        if row.engine is Engine.NEVER and calls > max(100, load.requests // 100):
            raise BenchError(f"{row.title}, {side.contender.title}: {asked}; it must be never.")


def busiest_share(before: dict[str, float], after: dict[str, float]) -> float | None:
    """Of what was answered between the two, that of the process which answered most."""
    answered = [count - before.get(name, 0.0) for name, count in after.items()]
    return max(answered) / sum(answered) if sum(answer > 0 for answer in answered) > 1 else None


def _slowest(log: Path, begin: int, requests: int) -> dict[str, float]:
    """Where the slowest hundredth of the requests waited: means in ms, of what the log has from
    `begin` on."""
    with log.open("rb") as lines:
        lines.seek(begin)
        found = [json.loads(line) for line in lines if b'"slow_request"' in line]
    slowest = sorted(found, key=lambda line: -line["duration_ms"])[: max(1, requests // 100)]
    names = [name for name in (slowest[0] if slowest else {}) if name.endswith("_ms")]
    return {name: sum(line[name] for line in slowest) / len(slowest) for name in names}


def _log_lines(log: Path, paths: set[str]) -> int:
    """Access log lines of answers 200 on `paths`."""
    marks = [path.encode() for path in paths]
    with log.open("rb") as lines:
        return sum(
            b'"request"' in line and b"200" in line and any(mark in line for mark in marks)
            for line in lines
        )


def engine_calls(port: int) -> int:
    """Requests that the stub has had since it started, this question included."""
    text = request(port, "GET", "/stub_status").body.decode()
    return int(text.splitlines()[2].split()[2])


VERDICT = re.compile(r"return 200 ('.*?');")
THINKING = "location = /thinking/v1/detect { echo_sleep 0.02; echo -n %s; }"


@contextmanager
def running_engine(scratch: Path) -> Iterator[int]:
    """The stub engine on a free port."""
    port = free_port()
    folder = scratch / "engine"
    folder.mkdir()
    text = (Path(__file__).parent / "stub_engine.conf").read_text()
    # nginx started by root would give its worker to a user who cannot enter the folder.
    user = "user root;" if os.geteuid() == 0 else ""
    module = machine.nginx_echo_module()
    marks = {
        "@USER@": user,
        "@DIR@": str(folder),
        "@PORT@": str(port),
        "@MODULES@": f"load_module {module};" if module else "",
        "@ECHO@": THINKING % VERDICT.search(text)[1] if module else "",  # type: ignore[index]
    }
    for mark, value in marks.items():
        text = text.replace(mark, value)
    robin_pages.write(folder)
    config = folder / "nginx.conf"
    config.write_text(text)
    command = [machine.nginx_path(), "-p", str(folder), "-c", str(config), "-e", "stderr"]
    child = Child("stub engine", command, base_environment(), folder, scratch / "engine.log")
    try:
        child.wait_ready(port, "/health", seconds=10)
        yield port
    finally:
        child.stop()


@contextmanager
def running_side(name: str, bench: Bench, database_url: str, redis_url: str) -> Iterator[Side]:
    """A contender with stores and a key of its own."""
    with private_stores(database_url, redis_url, name) as stores:
        contender = FACTORIES[name](stores, bench.engine_port, bench.workers, bench.scratch)
        env = base_environment() | dict(contender.env)
        if bench.tail_ms:
            env["SLOW_REQUEST_MS"] = str(bench.tail_ms)
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=contender.prepare_seconds)
        lines = run_once(contender.make_key, env, contender.cwd, seconds=60).split()
        if not lines:
            raise BenchError(f"{contender.title}: no key came from {contender.make_key}.")
        token = ""
        if contender.make_token:
            token = run_once(contender.make_token, env, contender.cwd, seconds=60).split()[-1]
        log = bench.scratch / f"{name}.log"
        child = Child(contender.title, contender.serve, env, contender.cwd, log)
        side: Side | None = None
        try:
            child.wait_ready(contender.port, contender.ready_path)
            bearer = {"Authorization": f"Bearer {token}"}
            side = Side(contender, child, stores, contender.headers(lines[-1]), bearer)
            # Now: some make their tables when they start.
            side.stored = stores.count(contender.usage_table) if contender.usage_table else 0
            if contender.worker:
                log = bench.scratch / f"{name}-worker.log"
                title = f"{contender.title}, worker"
                side.worker = Child(title, contender.worker, env, contender.cwd, log)
            yield side
        finally:
            if side is not None and side.worker is not None:
                side.worker.stop()
            child.stop()


def run(arguments: argparse.Namespace, console: Console) -> report.Result:
    """Everything between the command line and the report."""
    names, rows = _selection(arguments.only)
    machine.require_tools()
    database_url, redis_url = named_stores()
    description = machine.describe() | versions(database_url, redis_url)
    started_at = datetime.now(UTC)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        bench = Bench(
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            connections=arguments.connections,
            workers=arguments.workers,
            scratch=scratch,
            console=console,
            tail_ms=arguments.tail,
        )
        bench.engine_port = stack.enter_context(running_engine(scratch))
        for name in names:
            console.print(f"Starting {name} ...")
            side = stack.enter_context(running_side(name, bench, database_url, redis_url))
            bench.sides[name] = side
            bench.check_answer(side)
        contenders = [side.contender for side in bench.sides.values()]
        rows = [row for row in rows if any(can_run(row, one) for one in contenders)]
        if not rows:
            raise BenchError("None of these contenders can be asked one of these rows.")
        result: report.Result = {
            "started_at": started_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "settings": {
                key: getattr(bench, key) for key in ("rounds", "seconds", "connections", "workers")
            }
            | {"runs": arguments.runs},
            "machine": description,
            "packages": package_versions(contenders),
            "titles": {contender.name: contender.title for contender in contenders}
            | {report.ENGINE: "the stub engine itself"},
            "switched_on": {contender.name: contender.switched_on for contender in contenders},
            "missing": {contender.name: contender.missing for contender in contenders},
            "rows": bench.run_rows(rows, arguments.runs),
            "memory": bench.memory(),
            "added_latency": bench.added_latency(ROWS[0]),
            "figures": [],
        }
        if tested := result["memory"].get(report.TESTED):
            most = max(process["pss_bytes"] for process in tested["web"]) / 1e6
            result["figures"] = [report.judged("worker_mb", [[most]], report.WORKER_MB)]
        result["disturbed"] = bench.describe_foreign_load(description)
        for side in bench.sides.values():
            bench.check_answer(side)
        result["evidence"] = bench.evidence(rows)
        result["notes"] = bench.notes
        result["targets"] = report.plan_targets(result, report.TESTED)
        result["took_seconds"] = round((datetime.now(UTC) - started_at).total_seconds())
    return result


def can_run(row: Row, contender: Contender) -> bool:
    if contender.is_peer:
        return row.has_peers
    return not row.gateway_only or contender.name != report.BASE


def _selection(only: list[str]) -> tuple[list[str], list[Row]]:
    """Contenders and rows to run; a name of `only` is either, none means all.

    With them come what they are held against: a row's base, and this gateway for its likes.
    """
    known = {row.name for row in ROWS} | set(FACTORIES)
    if unknown := set(only) - known:
        raise BenchError(
            f"Unknown: {', '.join(sorted(unknown))}; known are {', '.join(sorted(known))}."
        )
    wanted = set(only)
    if wanted & BESIDE:
        wanted.add(report.TESTED)
    for row in reversed(ROWS):  # a base stands before its rows
        if row.name in wanted and row.base:
            wanted.add(row.base)
    return (
        [name for name in FACTORIES if name in wanted] or list(USUAL),
        [row for row in ROWS if row.name in wanted] or list(ROWS),
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument(
        "--runs", type=_positive, default=1, help="of all rows; the worst is held to the musts"
    )
    parser.add_argument("--seconds", type=_positive, default=8, help="of each run")
    parser.add_argument("--connections", type=_positive, default=32)
    parser.add_argument("--workers", type=_positive, default=2, help="of each contender")
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help="a row or a contender"
    )
    parser.add_argument(
        "--tail", type=float, metavar="MS", help="say where the slowest of those beyond it waited"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write a table for documents")
    return parser.parse_args()


def _stop(_: int, __: FrameType | None) -> None:
    """First signal: leave by way of the clean-up, which takes seconds and must not be cut off."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    arguments = _arguments()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        result = run(arguments, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped.")
        return 130
    report.print_tables(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    if arguments.markdown:
        arguments.markdown.write_text(report.markdown(result))
    if not all(found["complete"] for found in result["evidence"].values()):
        console.print(
            "The run does not count: usage rows, log lines or metrics differ from the answers.",
            style="red",
        )
        return 2
    return 1 if report.missed(result) else 0


if __name__ == "__main__":
    sys.exit(main())
