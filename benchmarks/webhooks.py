"""Deliveries per second of one worker process, beside a bare HTTP client as the floor.

    python -m benchmarks.webhooks [--rounds 3] [--events 5000] [--webhooks 20] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. The receiver is nginx with one fixed answer. A round first posts as many
bodies with `httpx.AsyncClient` and 100 connections, signing nothing and writing nothing down; then
as many events are put into the outbox, and the worker fans out, claims, signs, sends and logs them.
Exit codes: 0 fine, 1 the must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import LOOPBACK, BenchError, Child, base_environment, run_once
from benchmarks.run import engine_calls, running_engine
from benchmarks.stores import named_stores, private_stores, versions
from webhooks.catalogue import VERDICT

PATH = "/v1/detect"  # of the stub, which answers it to everybody
MUST, AIM = 500, 2_000
CONNECTIONS = 100
WAIT_SECONDS = 120


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.webhooks", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--events", type=int, default=5_000, help="of each round")
    parser.add_argument("--webhooks", type=int, default=20, help="that share them")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway or in a process of its own.
    parser.add_argument("--act", choices=["register", "publish", "measure", "post"])
    parser.add_argument("--url", default="")
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
    show(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["gateway"]["median"] >= MUST else 1


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine.require_tools()
    database_url, redis_url = named_stores()
    count, rounds = arguments.events, arguments.rounds
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        port = stack.enter_context(running_engine(scratch))
        stores = stack.enter_context(private_stores(database_url, redis_url, "webhooks"))
        contender = gateway(stores, port, 1, scratch)
        env = (
            base_environment()
            | dict(contender.env)
            | {
                "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
                "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
            }
        )

        def act(name: str) -> dict[str, Any]:
            options = (f"--events={count}", f"--webhooks={arguments.webhooks}", f"--act={name}")
            command = (sys.executable, "-m", "benchmarks.webhooks", *options, f"--url={url}")
            found: dict[str, Any] = json.loads(run_once(command, env, contender.cwd, WAIT_SECONDS))
            return found

        url = f"http://{LOOPBACK}:{port}{PATH}"
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        act("register")
        assert contender.worker is not None
        log = scratch / "worker.log"
        worker = Child("the worker", contender.worker, env, contender.cwd, log)
        stack.callback(worker.stop)
        floor, ours, cpu = [], [], []
        act("publish")  # warm up: imports, connections, the interpreter's specialisation
        _wait(worker, act, count)
        for number in range(rounds):
            floor.append(act("post")["per_second"])
            asked, used = engine_calls(port), worker.cpu_seconds()
            act("publish")
            found = _wait(worker, act, count)
            worker.settle()
            ours.append(found["per_second"])
            cpu.append((worker.cpu_seconds() - used) / count * 1000)
            if (reached := engine_calls(port) - asked - 1) < count:
                raise BenchError(f"{count} events, and only {reached} requests at the receiver.")
            console.print(
                f"  round {number + 1}/{rounds}: httpx alone {floor[-1]:,.0f}/s, "
                f"gateway {ours[-1]:,.0f}/s, CPU {cpu[-1]:.2f} ms a delivery"
            )
        return {
            "machine": machine.describe() | versions(database_url, redis_url),
            "events": count,
            "webhooks": arguments.webhooks,
            "httpx": {"median": median(floor), "rounds": floor},
            "gateway": {"median": median(ours), "rounds": ours, "cpu_ms": median(cpu)},
        }


def _wait(worker: Child, act: Any, count: int) -> dict[str, Any]:
    """What the log of the last `count` deliveries says, once all of them arrived."""
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        found: dict[str, Any] = act("measure")
        if found["pending"] == 0 and found["delivered"]:
            if found["failed"]:
                raise BenchError(f"{found['failed']} attempts failed.")
            return found
        time.sleep(1)
    raise BenchError(f"Not delivered in {WAIT_SECONDS} s.\n{worker.log_tail()}")


def _act(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.act == "post":
        return {"per_second": asyncio.run(_post(arguments.url, arguments.events))}
    import django

    django.setup()
    acts = {"register": _register, "publish": _publish, "measure": _measure}
    return acts[arguments.act](arguments)


async def _post(url: str, count: int) -> float:
    """Requests per second of the client alone."""
    body = json.dumps({"id": "x" * 36, "data": {"result": VERDICT, "metadata": {}}}).encode()
    limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    left = iter(range(count))
    async with httpx.AsyncClient(limits=limits, trust_env=False) as client:

        async def post() -> None:
            for _ in left:
                answer = await client.post(
                    url, content=body, headers={"Content-Type": "application/json"}
                )
                answer.raise_for_status()

        started = time.perf_counter()
        await asyncio.gather(*(post() for _ in range(CONNECTIONS)))
        return count / (time.perf_counter() - started)


def _register(arguments: argparse.Namespace) -> dict[str, Any]:
    from accounts.models import Workspace
    from accounts.services import Actor
    from webhooks import services

    for number in range(arguments.webhooks):
        workspace = Workspace.objects.create(slug=f"bench-{number}", name="bench")
        services.register(workspace.pk, arguments.url, ["detection.flagged"], actor=Actor("bench"))
    return {}


def _publish(arguments: argparse.Namespace) -> dict[str, Any]:
    """All events in one transaction, so that the worker sees them at the same moment."""
    from django.db import transaction

    from accounts.events import event, publish_all
    from accounts.models import OutboxEvent, Workspace, new_id

    ids = list(Workspace.objects.values_list("pk", flat=True))
    with transaction.atomic():
        OutboxEvent.objects.all().delete()  # with the deliveries of the round before
        publish_all(
            [
                event(
                    ids[number % len(ids)],
                    "detection.flagged",
                    result=VERDICT,
                    request_id=str(new_id()),
                    api_key_id=new_id(),
                )
                for number in range(arguments.events)
            ]
        )
    return {}


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the first request to the last result that was written."""
    from django.db.models import Max, Min

    from accounts.models import OutboxEvent
    from webhooks.models import WebhookAttempt, WebhookDelivery

    delivered = WebhookDelivery.objects.filter(status="delivered")
    count = delivered.count()
    pending = OutboxEvent.objects.filter(published_at=None).count()
    pending += WebhookDelivery.objects.filter(status="pending").count()
    facts = {"pending": pending, "delivered": count, "failed": 0, "per_second": 0.0}
    if count and not pending:
        facts["failed"] = WebhookAttempt.objects.exclude(http_status=200).count()
        first = WebhookAttempt.objects.aggregate(at=Min("at"))["at"]
        last = delivered.aggregate(at=Max("finished_at"))["at"]
        facts["per_second"] = count / (last - first).total_seconds()
    return facts


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{result['events']:,} events to {result['webhooks']} webhooks")
    for heading in ("what", "deliveries/s, median (min to max)", "CPU ms each"):
        table.add_column(heading)
    ours, floor = result["gateway"], result["httpx"]
    titles = ((floor, "httpx.AsyncClient, 100 connections, alone"), (ours, "one worker process"))
    for side, title in titles:
        least, most = min(side["rounds"]), max(side["rounds"])
        cpu = f"{side['cpu_ms']:.2f}" if "cpu_ms" in side else ""
        table.add_row(title, f"{side['median']:,.0f} ({least:,.0f} to {most:,.0f})", cpu)
    console.print(table)
    verdict = "reached" if ours["median"] >= AIM else "missed"
    met = "met" if ours["median"] >= MUST else "missed"
    console.print(f"must {MUST:,}/s: {met}; aim {AIM:,}/s: {verdict}")


if __name__ == "__main__":
    sys.exit(main())
