"""Deliveries per second of one worker process, beside a bare HTTP client as the floor.

    python -m benchmarks.webhooks [--rounds 3] [--deliveries 5000] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. The receiver is nginx with one fixed answer. A round first posts as many
bodies with `httpx.AsyncClient` and 100 connections, signing nothing and writing nothing down; then
events are put into the outbox, and the worker fans out, claims, signs, sends and logs them. Two
rows, each of 20 workspaces:

* 20 webhooks;
* 1,000, a tenth of which hang: they take the connection and never answer. Deliveries to the others
  are counted, and the worst round is held to the must, since the first is the one in which the
  worker does not know them yet.

Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
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
from benchmarks.rows import Limit
from benchmarks.run import engine_calls, running_engine
from benchmarks.stores import named_stores, private_stores, versions

PATH = "/v1/detect"  # of the stub, which answers it to everybody
MUST, AIM = 2_000, 2_500
CONNECTIONS = 100
WAIT_SECONDS = 120
WORKSPACES = 20
SHAPES = ((20, 0), (1_000, 100))  # webhooks, and how many of them hang


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.webhooks", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--deliveries", type=int, default=5_000, help="of each round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway or in a process of its own.
    parser.add_argument("--act", choices=["register", "publish", "measure", "post"])
    parser.add_argument("--url", default="")
    parser.add_argument("--webhooks", type=int, default=0)
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
    return 0 if all(counted(row) >= MUST for row in result["rows"]) else 1


def counted(row: dict[str, Any]) -> float:
    """Deliveries a second that are held to the must."""
    rounds: list[float] = row["gateway"]["rounds"]
    return min(rounds) if row["hanging"] else median(rounds)


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine.require_tools()
    database_url, redis_url = named_stores()
    rows = [_run(arguments, console, webhooks, hanging) for webhooks, hanging in SHAPES]
    return {
        "machine": machine.describe() | versions(database_url, redis_url),
        "deliveries": arguments.deliveries,
        "rows": rows,
    }


def _run(
    arguments: argparse.Namespace, console: Console, webhooks: int, hanging: int
) -> dict[str, Any]:
    database_url, redis_url = named_stores()
    healthy = webhooks - hanging
    rounds, count = arguments.rounds, arguments.deliveries
    with ExitStack() as stack:
        nobody = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=4096))
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

        def act(name: str, number: int = webhooks, to: str = "") -> dict[str, Any]:
            options = (f"--deliveries={count}", f"--webhooks={number}", f"--act={name}")
            command = (sys.executable, "-m", "benchmarks.webhooks", *options, f"--url={to or url}")
            found: dict[str, Any] = json.loads(run_once(command, env, contender.cwd, WAIT_SECONDS))
            return found

        url = f"http://{LOOPBACK}:{port}{PATH}"
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        act("register", healthy)
        assert contender.worker is not None
        log = scratch / "worker.log"
        worker = Child("the worker", contender.worker, env, contender.cwd, log)
        stack.callback(worker.stop)
        floor, ours, cpu = [], [], []
        act("publish", healthy)  # warm up: imports, connections, the interpreter's specialisation
        _wait(worker, act)
        if hanging:
            act("register", hanging, f"http://{LOOPBACK}:{nobody.getsockname()[1]}{PATH}")
        for number in range(rounds):
            floor.append(act("post")["per_second"])
            asked, used = engine_calls(port), worker.cpu_seconds()
            act("publish")
            found = _wait(worker, act)
            worker.settle()
            ours.append(found["per_second"])
            delivered = found["delivered"]
            cpu.append((worker.cpu_seconds() - used) / delivered * 1000)
            if (reached := engine_calls(port) - asked - 1) < delivered:
                raise BenchError(f"{delivered} delivered, and {reached} requests at the receiver.")
            console.print(
                f"  {webhooks:,} webhooks, round {number + 1}/{rounds}: "
                f"httpx alone {floor[-1]:,.0f}/s, gateway {ours[-1]:,.0f}/s, "
                f"CPU {cpu[-1]:.2f} ms a delivery"
            )
        return {
            "webhooks": webhooks,
            "hanging": hanging,
            "httpx": {"median": median(floor), "rounds": floor},
            "gateway": {"median": median(ours), "rounds": ours, "cpu_ms": median(cpu)},
        }


def _wait(worker: Child, act: Any) -> dict[str, Any]:
    """What the log says of the deliveries to who answers, once all of them arrived."""
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
        return {"per_second": asyncio.run(_post(arguments.url, arguments.deliveries))}
    import django

    django.setup()
    acts = {"register": _register, "publish": _publish, "measure": _measure}
    return acts[arguments.act](arguments)


async def _post(url: str, count: int) -> float:
    """Requests per second of the client alone."""
    from webhooks.catalogue import VERDICT

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

    for number in range(WORKSPACES):
        Workspace.objects.get_or_create(slug=f"bench-{number}", defaults={"name": "bench"})
    ids = list(Workspace.objects.order_by("slug").values_list("pk", flat=True))
    for number in range(arguments.webhooks):
        services.register(
            ids[number % WORKSPACES], arguments.url, ["detection.flagged"], actor=Actor("bench")
        )
    return {}


def _publish(arguments: argparse.Namespace) -> dict[str, Any]:
    """All events in one transaction, so that the worker sees them at the same moment.

    As many as the workspaces' webhooks make the deliveries of.
    """
    from django.db import transaction

    from accounts.events import event, publish_all
    from accounts.models import OutboxEvent, Workspace, new_id
    from webhooks.catalogue import VERDICT

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
                for number in range(arguments.deliveries * WORKSPACES // arguments.webhooks)
            ]
        )
    return {}


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """From the first request to the last result that was written, of webhooks that answer."""
    from django.db.models import Max, Min

    from accounts.models import OutboxEvent
    from webhooks.models import WebhookAttempt, WebhookDelivery

    deliveries = WebhookDelivery.objects.filter(webhook__url=arguments.url)
    attempts = WebhookAttempt.objects.filter(delivery__webhook__url=arguments.url)
    delivered = deliveries.filter(status="delivered")
    count = delivered.count()
    pending = OutboxEvent.objects.filter(published_at=None).count()
    pending += deliveries.filter(status="pending").count()
    facts = {"pending": pending, "delivered": count, "failed": 0, "per_second": 0.0}
    if count and not pending:
        facts["failed"] = attempts.exclude(http_status=200).count()
        first = attempts.aggregate(at=Min("at"))["at"]
        last = delivered.aggregate(at=Max("finished_at"))["at"]
        facts["per_second"] = count / (last - first).total_seconds()
    return facts


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"{result['deliveries']:,} deliveries a round")
    for heading in ("what", "deliveries/s, median (min to max)", "CPU ms each", ""):
        table.add_column(heading)
    for row in result["rows"]:
        title = f"one worker process, {row['webhooks']:,} webhooks"
        if row["hanging"]:
            title += f", {row['hanging']} of which hang"
        for side, name in ((row["httpx"], "httpx.AsyncClient, alone"), (row["gateway"], title)):
            least, most = min(side["rounds"]), max(side["rounds"])
            rate = f"{side['median']:,.0f} ({least:,.0f} to {most:,.0f})"
            is_ours = "cpu_ms" in side
            cpu = f"{side['cpu_ms']:.2f}" if is_ours else ""
            table.add_row(name, rate, cpu, _verdict(counted(row)) if is_ours else "")
    console.print(table)
    console.print(f"must {MUST:,}/s, aim {AIM:,}/s; with hanging ones, of the worst round")


def _verdict(per_second: float) -> str:
    return Limit(MUST, AIM).verdict([per_second])


if __name__ == "__main__":
    sys.exit(main())
