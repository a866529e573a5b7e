"""Batch items per second through worker processes, the stub engine asked for each.

    python -m benchmarks.batches [--rounds 3] [--batches 10] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. A round hands in so many batches of 1,000 texts that were never seen, as
the API does, and the workers do all that they do: take the tasks, claim, decrypt, ask, judge, write
results, the usage log and its sums. Counted from the first claim to the last result that is
committed. Two rows:

* one process (`--pool=threads`, as docs/batches.md advises) and an engine that answers at once;
* two processes against one, rounds in turn, and an engine that thinks for 20 ms. Each judges one
  chunk at a time, so that on two cores it is the engine that one process waits for, not the CPU.

Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import BenchError, Child, base_environment, run_once
from benchmarks.rows import Limit
from benchmarks.run import engine_calls, running_engine
from benchmarks.stores import named_stores, private_stores, versions

LIMIT = Limit(2_000, 3_000)  # items a second
MUST_RATIO = 1.7
ITEMS = 1_000
WAIT_SECONDS = 120
OTHER_QUEUES = "webhooks,usage,mail,maintenance"
Act = Callable[[str], dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.batches", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=10, help="of each round")
    parser.add_argument("--threads", type=int, default=4, help="of the process of the first row")
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
    one = result["items_per_second"]
    verdict = LIMIT.verdict([one["median"]])
    console.print(
        f"{one['median']:,.0f} items/s through one worker process "
        f"({min(one['rounds']):,.0f} to {max(one['rounds']):,.0f}), "
        f"CPU {result['cpu_ms']:.2f} ms an item; must {LIMIT.must:,}/s, aim {LIMIT.aim:,}/s: "
        f"{verdict}"
    )
    is_met = verdict != "must missed"
    if two := result["thinking_engine"]:
        console.print(
            f"Engine thinks for 20 ms: one process {median(two['one']):,.0f}, two "
            f"{median(two['two']):,.0f} items/s, {two['ratio']:.2f} x; must {MUST_RATIO} x: "
            f"{_word(two['ratio'] >= MUST_RATIO)}"
        )
        is_met = is_met and two["ratio"] >= MUST_RATIO
    else:
        console.print("Two processes were not compared: install libnginx-mod-http-echo.")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if is_met else 1


def _word(is_met: bool) -> str:
    return "met" if is_met else "missed"


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine.require_tools()
    database_url, redis_url = named_stores()
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

        @contextmanager
        def workers(count: int, *options: str, engine: str = "") -> Iterator[list[Child]]:
            """So many processes for the chunks, and one for all other queues."""
            lines = [[f"--queues={OTHER_QUEUES}", "--concurrency=1", "--beat"]]
            lines += [["--queues=detection", *options]] * count
            celery = (sys.executable, "-m", "celery", "-A", "gateway_project", "worker")
            url = env["DETECTION_ENGINE_URL"] + engine
            with ExitStack() as running:
                children = []
                for number, line in enumerate(lines):
                    command = (*celery, *line, "--loglevel=WARNING", f"--hostname=w{number}@%h")
                    child = Child(
                        f"worker {number}",
                        command,
                        env | {"DETECTION_ENGINE_URL": url},
                        contender.cwd,
                        scratch / f"worker-{number}.log",
                    )
                    running.callback(child.stop)
                    children.append(child)
                act("submit")  # warm up: imports, connections, the interpreter's specialisation
                _wait(children, act)
                yield children

        def measure(children: list[Child]) -> tuple[float, float]:
            """Items a second, and CPU of all workers in ms an item."""
            asked, used = engine_calls(port), sum(child.cpu_seconds() for child in children)
            act("submit")
            # Whoever asks the database starts a process, which would take half of a small machine.
            deadline = time.monotonic() + WAIT_SECONDS
            while engine_calls(port) - asked < items and time.monotonic() < deadline:
                time.sleep(0.25)
            found = _wait(children, act)
            for child in children:
                child.settle()
            if (reached := engine_calls(port) - asked - 1) < items:
                raise BenchError(f"{items} items, and only {reached} requests at the engine.")
            cpu = sum(child.cpu_seconds() for child in children) - used
            return found["per_second"], cpu / items * 1000

        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        run_once(contender.make_key, env, contender.cwd, seconds=60)
        rates, cpus = [], []
        with workers(1, "--pool=threads", f"--concurrency={arguments.threads}") as children:
            for number in range(arguments.rounds):
                rate, cpu = measure(children)
                rates.append(rate)
                cpus.append(cpu)
                console.print(
                    f"  round {number + 1}/{arguments.rounds}: {rate:,.0f} items/s, "
                    f"CPU {cpu:.2f} ms an item"
                )
        thinking: dict[str, Any] = {}
        if machine.nginx_echo_module():
            by_count: dict[int, list[float]] = {1: [], 2: []}
            for number in range(arguments.rounds):
                for count, found in by_count.items():
                    with workers(count, "--concurrency=1", engine="/thinking") as children:
                        found.append(measure(children)[0])
                one, two = (found[-1] for found in by_count.values())
                console.print(
                    f"  thinking engine, round {number + 1}/{arguments.rounds}: one process "
                    f"{one:,.0f} items/s, two {two:,.0f}"
                )
            ratio = median(two / one for one, two in zip(*by_count.values(), strict=True))
            thinking = {"one": by_count[1], "two": by_count[2], "ratio": ratio}
        return {
            "machine": machine.describe() | versions(database_url, redis_url),
            "items": items,
            "items_per_second": {"median": median(rates), "rounds": rates},
            "cpu_ms": median(cpus),
            "thinking_engine": thinking,
        }


def _wait(workers: list[Child], act: Act) -> dict[str, Any]:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found: dict[str, Any] = act("measure")
        if not found["running"]:
            if found["failed"]:
                raise BenchError(f"{found['failed']} items failed.")
            return found
        time.sleep(1)
    logs = "\n".join(worker.log_tail() for worker in workers)
    raise BenchError(f"Not done in {WAIT_SECONDS} s.\n{logs}")


def _act(arguments: argparse.Namespace) -> dict[str, Any]:
    import django

    django.setup()
    return _submit(arguments.batches) if arguments.act == "submit" else _measure()


def _submit(batches: int) -> dict[str, Any]:
    """All in one transaction, so that the worker sees them at the same moment."""
    from django.db import transaction

    from accounts.models import ApiKey, new_id
    from detection import tasks
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
        transaction.on_commit(tasks.take_turns)
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
