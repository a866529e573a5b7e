"""Batch items per second through one worker process, the stub engine asked for each.

    python -m benchmarks.batches [--rounds 3] [--batches 10] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. A round stores so many batches of 1,000 texts that were never seen, as
the API does, and the worker does all that it does: claims, decrypts, asks, judges, writes results,
the usage log and its sums. Counted from the first claim to the last result that is committed.
Exit codes: 0 fine, 1 the must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import BenchError, Child, base_environment, run_once
from benchmarks.run import engine_calls, running_engine
from benchmarks.stores import private_stores, versions

MUST = 2_000
ITEMS = 1_000
WAIT_SECONDS = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.batches", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=10, help="of each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["submit", "measure"])
    arguments = parser.parse_args()
    if arguments.act is not None:
        print(json.dumps(_act(arguments)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    try:
        result = run(arguments, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    found = result["items_per_second"]
    console.print(
        f"{found['median']:,.0f} items/s through one worker process "
        f"({min(found['rounds']):,.0f} to {max(found['rounds']):,.0f}), "
        f"CPU {result['cpu_ms']:.2f} ms an item"
    )
    is_met = found["median"] >= MUST
    console.print(f"must {MUST:,}/s: {'met' if is_met else 'missed'}")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if is_met else 1


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine.require_tools()
    try:
        database_url, redis_url = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]
    except KeyError as error:
        raise BenchError(f"{error.args[0]} is not set; deploy/services.py gives one.") from error
    items = arguments.batches * ITEMS
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = stack.enter_context(running_engine(scratch))
        stores = stack.enter_context(private_stores(database_url, redis_url, "batches"))
        contender = gateway(stores, port, 1, scratch)
        metrics = {"PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics")}
        env = base_environment() | dict(contender.env) | metrics

        def act(name: str) -> dict[str, Any]:
            options = (f"--batches={arguments.batches}", f"--act={name}")
            command = (sys.executable, "-m", "benchmarks.batches", *options)
            found: dict[str, Any] = json.loads(run_once(command, env, contender.cwd, WAIT_SECONDS))
            return found

        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        run_once(contender.make_key, env, contender.cwd, seconds=60)
        log = scratch / "worker.log"
        worker = Child("the worker", contender.worker, env, contender.cwd, log)
        stack.callback(worker.stop)
        rates, cpu = [], []
        act("submit")  # warm up: imports, connections, the interpreter's specialisation
        _wait(worker, act)
        for number in range(arguments.rounds):
            asked, used = engine_calls(port), worker.cpu_seconds()
            act("submit")
            found = _wait(worker, act)
            worker.settle()
            rates.append(found["per_second"])
            cpu.append((worker.cpu_seconds() - used) / items * 1000)
            if (reached := engine_calls(port) - asked - 1) < items:
                raise BenchError(f"{items} items, and only {reached} requests at the engine.")
            console.print(
                f"  round {number + 1}/{arguments.rounds}: {rates[-1]:,.0f} items/s, "
                f"CPU {cpu[-1]:.2f} ms an item"
            )
        return {
            "machine": machine.describe() | versions(database_url, redis_url),
            "items": items,
            "items_per_second": {"median": median(rates), "rounds": rates},
            "cpu_ms": median(cpu),
        }


def _wait(worker: Child, act: Any) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found: dict[str, Any] = act("measure")
        if not found["running"]:
            if found["failed"]:
                raise BenchError(f"{found['failed']} items failed.")
            return found
        time.sleep(1)
    raise BenchError(f"Not done in {WAIT_SECONDS} s.\n{worker.log_tail()}")


def _act(arguments: argparse.Namespace) -> dict[str, Any]:
    import django

    django.setup()
    return _submit(arguments.batches) if arguments.act == "submit" else _measure()


def _submit(batches: int) -> dict[str, Any]:
    """All in one transaction, so that the worker sees them at the same moment."""
    from django.db import transaction

    from accounts.models import ApiKey, new_id
    from detection.jobs import store
    from detection.jobs.judging import Item
    from detection.models import Job
    from detection.schemas import DetectConfig

    key = ApiKey.objects.get()
    config = DetectConfig()
    with transaction.atomic():
        Job.objects.all().delete()
        for _ in range(batches):
            run = new_id()
            items = [
                Item.of(
                    str(number),
                    f"Please summarise the quarterly report number {number} of {run}.",
                    config,
                )
                for number in range(ITEMS)
            ]
            order = store.Order(Job.Kind.BATCH, key.workspace_id, key.pk, str(new_id()))
            store.create(order, items)
    return {}


def _measure() -> dict[str, Any]:
    from django.db.models import Max, Min, Sum

    from detection.models import Job

    if running := Job.objects.filter(finished_at=None).count():
        return {"running": running}
    found = Job.objects.aggregate(
        first=Min("started_at"), last=Max("finished_at"), total=Sum("total"), failed=Sum("failed")
    )
    seconds = (found["last"] - found["first"]).total_seconds()
    return {"running": 0, "failed": found["failed"], "per_second": found["total"] / seconds}


if __name__ == "__main__":
    sys.exit(main())
