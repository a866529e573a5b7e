"""What one detection costs a web process, counted and not timed: for comparing two checkouts.

    python -m benchmarks.hot_path [--beside FOLDER] [--rounds 40] [--requests 200] [--at-once 8]
                                  [--keys 1] [--kind detect|cached] [--profile FILE]

A web process of this checkout, and one of another (`git worktree add FOLDER COMMIT`), each with
stores of its own, answer the same requests by turns. Nothing is sent over a socket to them
(`hot_path_driver.py`), so neither a client nor the share of the machine that others take is in the
figures: functions called and coroutines begun, instructions where the processor lets them be
counted, CPU time of the process, pieces written to a connection, trips to Redis. Ratios are medians
of the rounds' ratios; rounds are short, so that what disturbs the machine disturbs both.

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import ROOT, gateway
from benchmarks.processes import BenchError, base_environment, run_once
from benchmarks.run import running_engine
from benchmarks.stores import named_stores, private_stores

DRIVER = Path(__file__).with_name("hot_path_driver.py")
KINDS = ("detect", "cached")


class Side:
    """A checkout's web process, which carries out orders."""

    def __init__(
        self, folder: Path, name: str, keys: int, engine: int, scratch: Path, stack: ExitStack
    ) -> None:
        database_url, redis_url = named_stores()
        stores = stack.enter_context(private_stores(database_url, redis_url, name))
        contender = gateway(stores, engine, 1, scratch)
        here, there = str(ROOT), str(folder)
        env = base_environment() | dict(contender.env)
        env |= {"PYTHONPATH": there, "PROMETHEUS_MULTIPROC_DIR": str(scratch / f"{name}-metrics")}

        def run(command: tuple[str, ...]) -> str:
            moved = [part.replace(here, there) if "manage.py" in part else part for part in command]
            return run_once(moved, env, folder, seconds=300)

        for command in contender.prepare:
            run(command)
        file = scratch / f"{name}-keys"
        file.write_text(run(contender.make_key).split()[-1])
        if keys > 1:
            run((*contender.fill_keys, str(keys), str(keys), str(file)))
        log = scratch / f"{name}.log"
        with log.with_suffix(".err").open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(DRIVER), str(file), str(log)],
                env=env,
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        stack.callback(self._stop)
        self.errors = log.with_suffix(".err")

    def run(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BenchError(f"The process ended:\n{self.errors.read_text()[-3000:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.hot_path", description=__doc__.split("\n")[0])
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="another checkout")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=200, help="of each round")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--keys", type=int, default=1, help="in turn")
    parser.add_argument("--kind", choices=KINDS, action="append")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="of this checkout (cProfile)")
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    machine.require_tools()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        engine = stack.enter_context(running_engine(scratch))
        folders = {"this": ROOT}
        if arguments.beside is not None:
            folders["beside"] = arguments.beside.resolve()
        sides = {
            name: Side(folder, name, arguments.keys, engine, scratch, stack)
            for name, folder in folders.items()
        }
        for kind in arguments.kind or KINDS:
            order = {
                "kind": kind, "requests": arguments.requests, "at_once": arguments.at_once
            }  # fmt: skip
            counted = {}
            for name, side in sides.items():
                side.run(**order | {"requests": max(2_000, 2 * arguments.keys)})  # warm up
                counted[name] = side.run(**order, calls=True)
            if arguments.profile is not None:
                sides["this"].run(**order, profile=str(arguments.profile.resolve()))
                continue
            rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
            for number in range(arguments.rounds):
                for name in sorted(sides, reverse=bool(number % 2)):
                    rounds[name].append(sides[name].run(**order))
            console.print(_table(kind, rounds, counted, arguments.requests))
    return 0


def _table(
    kind: str,
    rounds: dict[str, list[dict[str, Any]]],
    counted: dict[str, dict[str, Any]],
    requests: int,
) -> Table:
    table = Table(title=f"{kind}: one request")
    for heading in ("", *rounds, "this / beside"):
        table.add_column(heading)
    for title, name in (
        ("functions of Python called", "python"),
        ("functions of C called", "c"),
        ("coroutines begun", "coroutines"),
    ):
        of_each = [one[name] / requests for one in counted.values()]
        ratio = [f"{of_each[0] / of_each[1]:.3f}"] if len(of_each) > 1 else []
        table.add_row(title, *(f"{value:,.1f}" for value in of_each), *ratio)
    for title, name, unit in (
        ("instructions, thousands", "instructions", 1e3),
        ("CPU, µs", "cpu_seconds", 1e-6),
        ("pieces written", "writes", 1.0),
        ("trips to Redis", "trips", 1.0),
    ):
        found = {
            side: [one[name] / requests / unit for one in runs if one[name] is not None]
            for side, runs in rounds.items()
        }
        if not all(found.values()):
            continue
        cells = [f"{median(values):,.2f}" for values in found.values()]
        if "beside" in found and all(found["beside"]):
            ratios = [
                one / other for one, other in zip(found["this"], found["beside"], strict=True)
            ]
            low, _, high = quantiles(ratios, n=4)
            cells.append(f"{median(ratios):.3f} (half of them {low:.3f} to {high:.3f})")
        table.add_row(title, *cells)
    return table


if __name__ == "__main__":
    sys.exit(main())
