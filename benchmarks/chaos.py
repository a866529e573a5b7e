"""What clients notice, and what is lost, while hosts of an installation die and are replaced.

    python -m benchmarks.chaos [--rate 40] [--seconds 15] [--json FILE] [--markdown]

`benchmarks/installation.py` says what is started. Under a steady load of detections, batches and
their webhooks by way of haproxy: `kill -9` of a gateway, of Redis' primary (a failover by its
sentinels) and of a worker, a restart of PostgreSQL, and a roll of all gateways and workers. Every
call counts by the step in which it began.

The musts: only calls that the killed gateway had in hand fail, and none in any other step; no
webhook and no job is lost; usage of at most the last half second of what was killed is.
Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import ROOT
from benchmarks.installation import GATEWAYS, RECEIVER, Installation
from benchmarks.processes import Aside, BenchError, run_once
from benchmarks.run import running_engine
from deploy.services import StopError
from deploy.stores import wait_for

CLIENTS = 8
BATCH_SECONDS = 1.5
BATCH_ITEMS = 10
QUIET_SECONDS = 120.0
FLUSH_SECONDS = 0.5  # the documented bound: accounts/usage/buffer.py
KILLS = 2  # the gateway, and Redis, which answers before its replica has it
GATEWAY_KILLED = "`kill -9` of a gateway"


@dataclass
class Step:
    """Calls by the step in which they began. Times in seconds."""

    name: str
    seconds: float = 0.0
    calls: int = 0
    longest: float = 0.0
    batches: int = 0
    again: int = 0
    """Answers of 503 with `Retry-After`: nothing has happened, and the client came again."""
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def failed(self) -> int:
        return self.failures.total()


class Load:
    """Clients in a thread of their own; `step()` says under which name they count from now on."""

    def __init__(self, url: str, key: str, rate: float) -> None:
        self._url, self._rate = url, rate
        self._headers = {"X-API-Key": key}
        self.steps: list[Step] = [Step("warming up")]
        self.answered: set[str] = set()
        """Ids of detections that were answered with 200."""
        self.jobs: set[str] = set()
        self._is_over = False
        self._thread = Aside("the load", lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        self._thread.join(60)
        self._thread.check()

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        began, one = time.monotonic(), Step(name)
        self.steps.append(one)
        yield one
        one.seconds = time.monotonic() - began
        self._thread.check()

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=100)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, limits=limits, timeout=30, trust_env=False
        ) as client:
            detecting = (self._detect(client, number) for number in range(CLIENTS))
            await asyncio.gather(self._batches(client), *detecting)

    async def _detect(self, client: httpx.AsyncClient, number: int) -> None:
        pause = CLIENTS / self._rate
        await asyncio.sleep(pause * number / CLIENTS)
        count = 0
        while not self._is_over:
            count += 1
            body = {"text": f"What is the {count}th prime, asks client {number}?"}
            began = time.monotonic()
            answer = await self._call(client, "/v1/detect", body, {})
            if answer is not None and answer.status_code == 200:
                self.answered.add(answer.json()["request_id"])
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def _batches(self, client: httpx.AsyncClient) -> None:
        """Each is asked for until it is accepted, under one `Idempotency-Key`."""
        while not self._is_over:
            texts = [{"id": str(n), "text": f"Text {uuid4()}"} for n in range(BATCH_ITEMS)]
            headers = {"Prefer": "respond-async", "Idempotency-Key": str(uuid4())}
            while True:
                answer = await self._call(client, "/v1/detect/batch", {"requests": texts}, headers)
                if answer is not None and answer.status_code == 202:
                    self.steps[-1].batches += 1
                    self.jobs.add(answer.json()["batch_id"])
                    break
                if self._is_over:
                    return
                await asyncio.sleep(0.5)
            await asyncio.sleep(BATCH_SECONDS)

    async def _call(
        self, client: httpx.AsyncClient, path: str, body: dict[str, Any], headers: dict[str, str]
    ) -> httpx.Response | None:
        step, began = self.steps[-1], time.monotonic()
        step.calls += 1
        try:
            answer = await client.post(path, json=body, headers=headers)
        except httpx.HTTPError as error:
            step.failures[f"{path}: {type(error).__name__}"] += 1
            return None
        finally:
            step.longest = max(step.longest, time.monotonic() - began)
        if answer.status_code == 503 and "retry-after" in answer.headers:
            step.again += 1
            step.failures.update([f"{path}: 503"] if path == "/v1/detect" else [])
        elif answer.status_code not in (200, 202):
            step.failures[f"{path}: {answer.status_code} {answer.text[:120]}"] += 1
        return answer


class Receiver:
    """Of webhooks: notes their ids and answers 200."""

    def __init__(self) -> None:
        self.ids: Counter[str] = Counter()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(
            target=self._loop.run_until_complete, args=[self._serve()], daemon=True
        ).start()
        self._ready.wait(10)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._take, RECEIVER, 0)
        self.url = f"http://{RECEIVER}:{server.sockets[0].getsockname()[1]}/"
        self._ready.set()
        await server.serve_forever()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode("latin-1"):
                lines = (line.partition(":") for line in head.splitlines()[1:])
                headers = {name.lower(): value.strip() for name, _, value in lines}
                await reader.readexactly(int(headers.get("content-length", 0)))
                self.ids[headers["webhook-id"]] += 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        except (asyncio.IncompleteReadError, OSError):
            pass  # who sent it has hung up, or was killed
        finally:
            writer.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--rate", type=float, default=40, help="detections a second")
    parser.add_argument("--seconds", type=float, default=15, help="of each step, at least")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    parser.add_argument("--markdown", action="store_true", help="also as docs/operations.md has it")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["prepare", "look"])
    parser.add_argument("--url", default="")
    arguments = parser.parse_args()
    if arguments.act is not None:
        print(json.dumps(_act(arguments)))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    try:
        result = run(arguments, console)
    except (BenchError, StopError) as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    show(result, console)
    console.print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.markdown:
        print(markdown(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2, default=vars) + "\n")
    missed = missed_musts(result)
    for sentence in missed:
        console.print(f"must missed: {sentence}", style="red", markup=False)
    return 1 if missed else 0


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    with ExitStack() as stack:
        receiver = Receiver()
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-")))
        engine = stack.enter_context(running_engine(scratch))
        console.print("starting the installation …")
        here = Installation(stack, engine)
        key = act(here, "prepare", f"--url={receiver.url}")["key"]
        try:
            with Load(here.url, key, arguments.rate) as load:
                time.sleep(5)  # warm: imports, connections, the key in both gateways
                break_it(here, load, arguments.seconds, console)
            console.print("waiting until everything has arrived …")
            found = wait_for("what waits", lambda: _quiet(here, receiver), QUIET_SECONDS)
        except (BenchError, StopError) as error:
            logs = "\n".join(f"{name}: {here.log_of(name)}" for name in here.running)
            raise BenchError(f"{error}\n{logs}") from None
        events = set(found["events"])
        return {
            "machine": machine.describe(),
            "rate": arguments.rate,
            "steps": load.steps[1:],
            "answered": len(load.answered),
            "usage_lost": len(load.answered - set(found["usage"])),
            "usage_bound": round(arguments.rate * FLUSH_SECONDS) * KILLS,
            "events": len(events),
            "webhooks_lost": len(events - set(receiver.ids)),
            "webhooks_repeated": sum(n > 1 for n in receiver.ids.values()),
            "jobs": len(load.jobs),
            "jobs_lost": len(load.jobs - set(found["whole"])),
            "jobs_double": len(set(found["jobs"]) - load.jobs),
        }


def break_it(here: Installation, load: Load, seconds: float, console: Console) -> None:
    """One step after the other, each with what puts it right again; `seconds` each, at least."""
    first, second = GATEWAYS

    def steady() -> None:
        pass

    def gateway_killed() -> None:
        here.kill(first)
        time.sleep(seconds / 3)
        here.start_gateway(first)

    def redis_killed() -> None:
        primary = here.redis.primary()
        here.redis.kill(primary)
        wait_for("a failover", lambda: here.redis.primary() != primary)
        time.sleep(seconds / 3)
        here.redis.start(primary)
        wait_for("the old primary as a replica", here.redis.has_replica)

    def postgres_restarted() -> None:
        here.postgres.stop()
        here.postgres.start()

    def worker_killed() -> None:
        here.kill("worker1")
        time.sleep(seconds / 3)
        here.start_worker(1)

    def rolled() -> None:
        for host in (first, second):
            here.stop(host)
            here.start_gateway(host)
            time.sleep(2)  # the proxy looks twice a second
        for number in (1, 2):
            here.stop(f"worker{number}")
            here.start_worker(number)

    for name, do in {
        "nothing": steady,
        GATEWAY_KILLED: gateway_killed,
        "`kill -9` of Redis' primary": redis_killed,
        "PostgreSQL restarted": postgres_restarted,
        "`kill -9` of a worker": worker_killed,
        "gateways and workers rolled": rolled,
    }.items():
        with load.step(name) as step:
            began = time.monotonic()
            do()
            time.sleep(max(3.0, seconds - (time.monotonic() - began)))
        console.print(f"  {name}: {step.calls} calls, {step.failed} failed {dict(step.failures)}")
    with load.step("nothing, once more"):
        time.sleep(3)


def missed_musts(result: dict[str, Any]) -> list[str]:
    missed = []
    for name in ("answered", "events", "jobs"):
        if not result[name]:
            missed.append(f"{name}: none, so that nothing was tried")
    for step in result["steps"]:
        least = step.seconds * result["rate"] / 2
        if step.calls < least:
            missed.append(f"{step.name}: {step.calls} calls, not {least:.0f}: it was not tried")
        most = CLIENTS + 1 if step.name == GATEWAY_KILLED else 0
        if step.failed > most:
            missed.append(f"{step.name}: {step.failed} calls failed: {dict(step.failures)}")
    for name in ("webhooks_lost", "jobs_lost", "jobs_double"):
        if result[name]:
            missed.append(f"{name}: {result[name]}")
    if result["usage_lost"] > result["usage_bound"]:
        missed.append(f"{result['usage_lost']} rows of usage are lost")
    return missed


def act(here: Installation, name: str, *more: str) -> dict[str, Any]:
    command = (sys.executable, "-m", "benchmarks.chaos", f"--act={name}", *more)
    found: dict[str, Any] = json.loads(run_once(command, here.env, ROOT, 60))
    return found


def _quiet(here: Installation, receiver: Receiver) -> dict[str, Any] | None:
    """What is in the database, once nothing is on its way any more."""
    time.sleep(2)
    found = act(here, "look")
    return None if found["waiting"] else found


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title="Calls by the step in which they began")
    for heading in HEADINGS:
        table.add_column(heading)
    for row in _rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(_summary(result))


HEADINGS = ("while", "seconds", "calls", "failed", "asked to come again", "longest")


def _rows(result: dict[str, Any]) -> list[tuple[str, ...]]:
    return [
        (
            step.name,
            f"{step.seconds:.0f}",
            f"{step.calls:,}",
            f"{step.failed}",
            f"{step.again}",
            f"{step.longest:.2f} s",
        )
        for step in result["steps"]
    ]


def _summary(result: dict[str, Any]) -> str:
    return (
        f"{result['answered']:,} detections answered, {result['usage_lost']} of them not in the "
        f"log (bound: {result['usage_bound']}); {result['events']:,} events, "
        f"{result['webhooks_lost']} never delivered, {result['webhooks_repeated']} more than once; "
        f"{result['jobs']} jobs, {result['jobs_lost']} not complete, {result['jobs_double']} double"
    )


def markdown(result: dict[str, Any]) -> str:
    rows = [HEADINGS, ["---"] * len(HEADINGS), *_rows(result)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join((*lines, "", _summary(result) + "."))


# -- In the gateway's environment -----------------------------------------------------------------


def _act(arguments: argparse.Namespace) -> dict[str, Any]:
    import django

    django.setup()
    return prepare(arguments.url) if arguments.act == "prepare" else _look()


def prepare(url: str) -> dict[str, Any]:
    """A key without limits to speak of, and a webhook for all that happens to it."""
    from accounts.models import Workspace
    from accounts.services import Actor
    from webhooks import services

    options = ("--workspace=chaos", "--per-minute=1000000", "--per-day=100000000")
    key = run_once((sys.executable, "manage.py", "create_key", *options), os.environ, ROOT, 60)
    workspace = Workspace.objects.get(slug="chaos")
    events = ["detection.completed", "batch.completed"]
    services.register(workspace.pk, url, events, actor=Actor("chaos"))
    return {"key": key.split()[-1]}


def _look() -> dict[str, Any]:
    """All ids, and how much is still on its way."""
    from accounts.models import OutboxEvent, UsageLog
    from accounts.usage import stream
    from detection.models import Job
    from webhooks.models import WebhookDelivery

    waiting = OutboxEvent.objects.filter(published_at=None).count()
    waiting += WebhookDelivery.objects.filter(status="pending").count()
    waiting += Job.objects.filter(finished_at=None).count()
    waiting += stream.size()[0]

    def ids(rows: Any, name: str = "pk") -> list[str]:
        return [str(found) for found in rows.values_list(name, flat=True)]

    whole = Job.objects.filter(status="complete", succeeded=BATCH_ITEMS)
    return {
        "waiting": waiting,
        "usage": ids(UsageLog.objects.all(), "request_id"),
        "events": ids(OutboxEvent.objects.all()),
        "jobs": ids(Job.objects.all()),
        "whole": ids(whole),
    }


if __name__ == "__main__":
    sys.exit(main())
