"""Rows of the usage log a second through one worker process, by how many keys they are of.

    python -m benchmarks.drain [--rounds 3] [--rows 40000] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`. Each round
puts so many rows into the stream as the web processes do, 100 in a batch, of 20, 1,000 or 10,000
keys in turn, and has the task of the worker empty it, over and over until nothing is left. What it
writes is read again and compared.
Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import BenchError, base_environment, run_once
from benchmarks.stores import named_stores, private_stores, versions

MUST_PER_SECOND, AIM_PER_SECOND = 8_000, 15_000
TRANSACTION_SECONDS_MAX = 1.0
KEYS = (20, 1_000, 10_000)
BATCH = 100
KEYS_OF_ONE = 5


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.drain", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="of each number of keys, in turns")
    parser.add_argument("--rows", type=int, default=40_000, help="of each round")
    parser.add_argument("--keys", type=int, action="append", help="how many in turn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["drain"])
    arguments = parser.parse_args()
    arguments.keys = arguments.keys or list(KEYS)
    if arguments.act is not None:
        print(json.dumps(_act(arguments)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        result = run(arguments)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    show(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["is_met"] else 1


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    database_url, redis_url = named_stores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        stores = stack.enter_context(private_stores(database_url, redis_url, "drain"))
        contender = gateway(stores, 9, 1, scratch)
        env = base_environment() | dict(contender.env)
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        options = [f"--rounds={arguments.rounds}", f"--rows={arguments.rows}", "--act=drain"]
        options += [f"--keys={number}" for number in arguments.keys]
        command = (sys.executable, "-m", "benchmarks.drain", *options)
        rows = json.loads(run_once(command, env, contender.cwd, seconds=780))
    return {
        "machine": machine.describe() | versions(database_url, redis_url),
        "rows": rows,
        "is_met": all(
            median(one["per_second"]) >= MUST_PER_SECOND
            and max(one["longest_seconds"]) <= TRANSACTION_SECONDS_MAX
            for one in rows
        ),
    }


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Usage rows through one worker process")
    for heading in (
        *("keys in turn", "rows/s, median (rounds)", "worker's CPU, µs a row"),
        *("longest transaction, s", f"must {MUST_PER_SECOND:,}, aim {AIM_PER_SECOND:,}"),
    ):
        table.add_column(heading)
    for one in result["rows"]:
        rate, longest = median(one["per_second"]), max(one["longest_seconds"])
        is_met = rate >= MUST_PER_SECOND and longest <= TRANSACTION_SECONDS_MAX
        rounds = ", ".join(f"{value:,.0f}" for value in one["per_second"])
        table.add_row(
            f"{one['keys']:,}",
            f"{rate:,.0f} ({rounds})",
            f"{median(one['cpu_us']):.0f}",
            f"{longest:.2f}",
            "aim met" if rate >= AIM_PER_SECOND and is_met else "met" if is_met else "missed",
        )
    console.print(table)
    console.print(", ".join(f"{k} {v}" for k, v in result["machine"].items()), style="dim")


# -- In the gateway's environment -----------------------------------------------------------------


def _act(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    import django

    django.setup()
    found = {
        number: {"keys": number, "per_second": [], "cpu_us": [], "longest_seconds": []}
        for number in arguments.keys
    }
    _round(20, 2_000)  # imports, connections, partitions
    for _ in range(arguments.rounds):
        for number, one in found.items():
            for name, value in _round(number, arguments.rows).items():
                one[name].append(value)
    return list(found.values())


def _round(keys: int, rows: int) -> dict[str, float]:
    """Of `keys` keys in turn that this round made up."""
    from django.db.models import Sum

    from accounts.models import UsageRollup
    from accounts.usage import stream
    from gateway_project.core.clock import new_id

    workspaces = [new_id() for _ in range(max(1, keys // KEYS_OF_ONE))]
    ids = [(new_id(), workspaces[n % len(workspaces)]) for n in range(keys)]
    _offer(ids, rows)
    longest = _Longest()
    cpu, began, stored = time.process_time(), time.perf_counter(), 0
    with longest:
        while stream.size()[0]:
            stored += stream.drain()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    for period in ("minute", "hour", "day"):
        counted = UsageRollup.objects.filter(period=period, subject_id__in=workspaces).aggregate(
            n=Sum("requests")
        )["n"]
        if not stored == rows == counted:
            raise SystemExit(f"{rows} rows: {stored} stored, {counted} in the sums of {period}")
    return {
        "per_second": rows / seconds,
        "cpu_us": cpu / rows * 1e6,
        "longest_seconds": longest.seconds,
    }


def _offer(ids: list[tuple[UUID, UUID]], rows: int) -> None:
    """Put rows into the stream as web processes do."""
    from accounts.usage import stream
    from accounts.usage.rows import Batch
    from gateway_project.core import clock
    from gateway_project.core.clock import new_id
    from gateway_project.core.stores import redis

    pool = redis.client().connection_pool
    connection = pool.get_connection()
    order = [ids[n % len(ids)] for n in range(rows)]
    for first in range(0, rows, BATCH):
        batch, addresses, extras = [], {}, {}
        for key_id, workspace_id in order[first : first + BATCH]:
            request_id = new_id()
            took = random.lognormvariate(1.5, 0.6)
            batch.append(
                (
                    *(request_id, key_id, workspace_id, "/v1/detect", 200, "", 231, took),
                    *(took / 2, "complete", "engine", "allow", False, _confidence(), False),
                    clock.now(),
                )
            )
            addresses[key_id] = "127.0.0.1"
            extras[request_id] = {
                "why": {"threshold": 0.5, "threshold_from": "default", "ip": "127.0.0.1"}
            }
        connection.send_packed_command([stream.addition(Batch(new_id(), batch, addresses, extras))])
        if not connection.read_response():
            raise SystemExit("The stream is full.")
    pool.release(connection)


def _confidence() -> float:
    """Mostly the floor of an engine that found nothing."""
    return 0.15 if random.random() < 0.8 else random.random()


class _Longest:
    """The longest transaction of this process' connection, by its statements' clock."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        from django.db.transaction import Atomic

        self._kind, self._enter, self._exit = Atomic, Atomic.__enter__, Atomic.__exit__
        longest, began = self, [0.0]

        def enter(atomic: Any) -> None:
            from django.db import connection

            if not connection.in_atomic_block:
                began[0] = time.perf_counter()
            longest._enter(atomic)

        def leave(atomic: Any, *error: Any) -> None:
            from django.db import connection

            longest._exit(atomic, *error)
            if not connection.in_atomic_block:
                longest.seconds = max(longest.seconds, time.perf_counter() - began[0])

        Atomic.__enter__, Atomic.__exit__ = enter, leave  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self._kind.__enter__, self._kind.__exit__ = self._enter, self._exit  # type: ignore


if __name__ == "__main__":
    sys.exit(main())
