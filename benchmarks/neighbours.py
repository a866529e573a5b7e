"""What ten tenants at full speed cost an eleventh: its p95 and errors with and without them.

    python -m benchmarks.neighbours [--rounds 3] [--seconds 12] [--tenants 10] [--json FILE]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. The quiet tenant asks `POST /v1/detect` twenty times a second and hands
in a text to be judged later once a second. Each noisy one does all that its limits let it do, the
whole time: `PLAN`'s workspace minute, spread evenly, over five keys, as detections of short and of
long texts that are to be stored, batches, jobs of 1,000, callbacks to a receiver, reads of the log
and of results, large policies, bodies that are refused; and beside it, as fast as it is answered,
calls of a key whose minute is used up and calls with keys that nobody has. They call from a process
of their own, so that nobody waits for what another client of the benchmark does.

Rounds without and with them take turns in one run. The must: the quiet tenant's p95 at most
`MUST` times what it is without them (median of the rounds), and no error of its own.
Exit codes: 0 fine, 1 the must was missed, 2 the run does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.processes import LOOPBACK, BenchError, Child, base_environment, run_once
from benchmarks.run import running_engine
from benchmarks.stores import named_stores, private_stores, versions

MUST = 2.0
PLAN = {"minute": 60, "day": 10_000}  # of the plan that everybody begins with
KEYS = 5  # at full speed: as many as the workspace's minute lets
QUIET_PER_SECOND = 20
JOBS_PER_SECOND = 1
WORKERS = 2
WAIT_SECONDS = 60
SENTENCE = "Please summarise the attached report for the team and name its three main findings. "


@dataclass
class Results:
    """What one round of the quiet tenant was answered. Times in milliseconds."""

    detect_ms: list[float] = field(default_factory=list)
    job_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def p95(self, name: str) -> float:
        found = sorted(getattr(self, name))
        return found[int(len(found) * 0.95)] if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="benchmarks.neighbours", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each kind, in turns")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each round")
    parser.add_argument("--tenants", type=int, default=10, help="the noisy ones")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["register", "noise"])
    parser.add_argument("--url", default="")
    arguments = parser.parse_args()
    if arguments.act == "register":
        print(json.dumps(_register(arguments)))
        return 0
    if arguments.act == "noise":
        print(json.dumps(asyncio.run(_noise())))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    before = os.getloadavg()[0]
    try:
        result = run(arguments, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    result["load_average"] = (before, os.getloadavg()[0])
    show(result, console)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    is_met = result["ratio"] <= MUST and not result["errors"]
    console.print(
        f"must {'met' if is_met else 'missed'}: p95 with ten neighbours {result['ratio']:.2f} x "
        f"(at most {MUST:g} x), errors {sum(result['errors'].values())} (none); load of the "
        f"machine {before:.1f} before (idle is some 0.02)",
        style="green" if is_met else "red",
    )
    return 0 if is_met else 1


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    machine.require_tools()
    database_url, redis_url = named_stores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        engine = stack.enter_context(running_engine(scratch))
        stores = stack.enter_context(private_stores(database_url, redis_url, "neighbours"))
        contender = gateway(stores, engine, WORKERS, scratch)
        env = (
            base_environment()
            | dict(contender.env)
            | {
                "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
                "RATE_LIMIT_PER_MINUTE": "100",  # of an address, as it is by default
                "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
            }
        )
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        receiver = f"http://{LOOPBACK}:{engine}/v1/detect"
        options = (f"--tenants={arguments.tenants}", "--act=register", f"--url={receiver}")
        made = json.loads(
            run_once(
                (sys.executable, "-m", "benchmarks.neighbours", *options), env, contender.cwd, 60
            )
        )
        serve = Child("the gateway", contender.serve, env, contender.cwd, scratch / "serve.log")
        stack.callback(serve.stop, 30.0)
        worker = Child("the worker", contender.worker, env, contender.cwd, scratch / "worker.log")
        stack.callback(worker.stop)
        serve.wait_ready(contender.port, contender.ready_path)
        base = f"http://{LOOPBACK}:{contender.port}"
        found = asyncio.run(_rounds(base, made, receiver, arguments, console))
        if b"Traceback" in (log := serve.log.read_bytes()):
            at = log.index(b"Traceback")
            raise BenchError(f"The gateway logged: {log[at : at + 2000].decode(errors='replace')}")
    alone, beside = found["alone"], found["beside"]
    p95 = {
        name: [round_.p95("detect_ms") for round_ in found[name]] for name in ("alone", "beside")
    }
    jobs = {name: [round_.p95("job_ms") for round_ in found[name]] for name in ("alone", "beside")}
    errors = sum((round_.errors for round_ in (*alone, *beside)), Counter())
    return {
        "machine": machine.describe() | versions(database_url, redis_url),
        "tenants": arguments.tenants,
        "p95_ms": p95,
        "jobs_p95_ms": jobs,
        "ratio": median(p95["beside"]) / median(p95["alone"]),
        "jobs_ratio": median(jobs["beside"]) / median(jobs["alone"]),
        "errors": dict(errors),
        "noise": dict(found["noise"]),
    }


async def _rounds(
    base: str,
    made: dict[str, Any],
    receiver: str,
    arguments: argparse.Namespace,
    console: Console,
) -> dict[str, Any]:
    found: dict[str, Any] = {"alone": [], "beside": [], "noise": Counter()}
    _be_a_machine_of_its_own()
    async with _at_an_address_of_its_own(base, 0) as http:
        await _quiet(http, made["quiet"], 3.0)  # warm up
        for number in range(arguments.rounds):
            found["alone"].append(await _quiet(http, made["quiet"], arguments.seconds))
            noise = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.neighbours", "--act=noise"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
            )
            assert noise.stdin is not None
            noise.stdin.write(json.dumps([base, receiver, made["noisy"]]).encode() + b"\n")
            await asyncio.sleep(3)  # into their stride
            found["beside"].append(await _quiet(http, made["quiet"], arguments.seconds))
            noise.stdin.close()  # which ends it
            output, _ = await noise.communicate()
            found["noise"].update(json.loads(output))
            await asyncio.sleep(5)  # what they left is worked off
            alone, beside = found["alone"][-1], found["beside"][-1]
            console.print(
                f"  round {number + 1}/{arguments.rounds}: p95 {alone.p95('detect_ms'):.1f} ms "
                f"alone, {beside.p95('detect_ms'):.1f} ms beside; later {alone.p95('job_ms'):.0f} "
                f"and {beside.p95('job_ms'):.0f} ms; errors {sum(beside.errors.values())}"
            )
    return found


def _be_a_machine_of_its_own() -> None:
    """So far as one machine lets: the quiet tenant's clock is read when an answer is there."""
    with suppress(PermissionError):  # then it waits for a core behind what it measures
        os.setpriority(os.PRIO_PROCESS, 0, -10)


def _at_an_address_of_its_own(base: str, number: int) -> aiohttp.ClientSession:
    """Who guesses keys is stopped by the address, which here nobody else has."""
    address = f"127.0.1.{number + 1}"
    connector = aiohttp.TCPConnector(limit=0, local_addr=(address, 0))
    return aiohttp.ClientSession(base, connector=connector)


# -- The quiet tenant -----------------------------------------------------------------------------


async def _quiet(http: aiohttp.ClientSession, key: str, seconds: float) -> Results:
    results = Results()
    detections = _paced(QUIET_PER_SECOND, seconds, lambda: _detect(http, key, results))
    jobs = _paced(JOBS_PER_SECOND, seconds, lambda: _later(http, key, results))
    await asyncio.gather(detections, jobs)
    return results


async def _paced(rate: float, seconds: float, call: Callable[[], Any]) -> None:
    """Begin so many a second, whatever becomes of those before: an open loop.

    After random times (a Poisson process): tenants know nothing of each other, and ten that begin
    in step would be one with ten times the burst.
    """
    loop, calls = asyncio.get_running_loop(), []
    began = due = loop.time()
    while (due := due + random.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - loop.time()))
        calls.append(asyncio.create_task(call()))
    await asyncio.gather(*calls)


async def _detect(http: aiohttp.ClientSession, key: str, results: Results) -> None:
    started = time.perf_counter()
    body = {"text": f"{SENTENCE}{random.random()}"}
    await _ask(http, key, "POST", "/v1/detect", results.errors, body)
    results.detect_ms.append((time.perf_counter() - started) * 1000)


async def _later(http: aiohttp.ClientSession, key: str, results: Results) -> None:
    started = time.perf_counter()
    body = {"requests": [{"id": "1", "text": f"{SENTENCE}{random.random()}"}]}
    job = await _ask(
        http, key, "POST", "/v1/detect/batch", results.errors, body, {"Prefer": "respond-async"}
    )
    while job and time.perf_counter() - started < WAIT_SECONDS:
        await asyncio.sleep(0.1)
        job = await _ask(http, key, "GET", job["status_url"], results.errors)
        if job and job["status"] not in ("queued", "processing"):
            results.job_ms.append((time.perf_counter() - started) * 1000)
            return
    results.errors["job not finished"] += 1


async def _ask(
    http: aiohttp.ClientSession,
    key: str,
    method: str,
    path: str,
    errors: Counter[str],
    body: Any = None,
    headers: dict[str, str] | None = None,
) -> Any:
    """The answer; what is none is counted."""
    try:
        async with http.request(
            method, path, json=body, headers={"X-API-Key": key, **(headers or {})}
        ) as answer:
            found = await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError) as exc:
        errors[type(exc).__name__] += 1
        return None
    if answer.status >= 400:
        errors[f"{answer.status} {found.get('code', '')}"] += 1
        return None
    return found


# -- The noisy ones -------------------------------------------------------------------------------


async def _noise() -> Counter[str]:
    """All of them, in a process of their own, until its input ends."""
    base, receiver, tenants = json.loads(sys.stdin.readline())
    results: Counter[str] = Counter()
    async with AsyncExitStack() as stack:
        calling = []
        for number, keys in enumerate(tenants, start=1):
            http = await stack.enter_async_context(_at_an_address_of_its_own(base, number))
            calling.append(asyncio.create_task(_noisy(http, keys, receiver, results)))
        await asyncio.to_thread(sys.stdin.read)
        for task in calling:
            task.cancel()
        await asyncio.gather(*calling, return_exceptions=True)
    return results


async def _noisy(
    http: aiohttp.ClientSession, keys: list[str], receiver: str, results: Counter[str]
) -> None:
    """Everything at once, until it is cancelled."""
    jobs: list[str] = []
    rate = KEYS * PLAN["minute"] / 60

    async def call() -> None:
        kind, key = random.choice(KINDS), random.choice(keys)
        results[kind] += 1
        await _one(http, key, kind, receiver, jobs, results)

    async def beyond(made_up: bool) -> None:
        """As fast as it is answered; one connection, so that what is offered is what is served."""
        spent = keys[0] if not made_up else "gw_live_" + "a" * 32 + "_000000"
        while True:
            found: Counter[str] = Counter()
            await _ask(http, spent, "POST", "/v1/detect", found, {"text": "x"})
            results.update({f"beyond: {word}": count for word, count in found.items()})
            await asyncio.sleep(random.uniform(0.0, 0.1))

    await asyncio.gather(_paced(rate, 3600, call), beyond(made_up=False), beyond(made_up=True))


KINDS = (
    *["short"] * 8,
    *["long"] * 3,
    *["batch"] * 2,
    *["job", "callback", "log", "results", "refused", "policy"],
)


async def _one(
    http: aiohttp.ClientSession,
    key: str,
    kind: str,
    receiver: str,
    jobs: list[str],
    results: Counter[str],
) -> None:
    mark, errors = f"{random.random()}", results
    text = f"{SENTENCE}{mark}"
    if kind in ("short", "long"):
        body: dict[str, Any] = {"text": (text * 100)[:10_000] if kind == "long" else text}
        body |= {"metadata": {"note": "x" * 900}}
        await _ask(http, key, "POST", "/v1/detect", errors, body)
    elif kind == "callback":
        body = {"text": text, "webhook_url": receiver}
        await _ask(http, key, "POST", "/v1/detect", errors, body)
    elif kind in ("batch", "job"):
        count = 50 if kind == "batch" else 500
        body = {"requests": [{"id": str(n), "text": f"{text} {n}"} for n in range(count)]}
        later = {"Prefer": "respond-async"} if kind == "job" else {}
        made = await _ask(http, key, "POST", "/v1/detect/batch", errors, body, later)
        if made and "status_url" in made:
            jobs.append(made["status_url"])
    elif kind == "log":
        await _ask(http, key, "GET", "/v1/requests?limit=200", errors)
    elif kind == "results" and jobs:
        await _ask(http, key, "GET", f"{jobs[-1]}?limit=200", errors)
    elif kind == "refused":
        await _ask(http, key, "POST", "/v1/detect/batch", errors, {"requests": [{}] * 500})
    elif kind == "policy":
        deny = [{"digest": f"{n:064x}", "note": "x" * 60} for n in range(500)]
        body = {"store_text": True, "deny": deny}
        await _ask(http, key, "PUT", "/v1/policy", errors, body)


# -- In the gateway's environment -----------------------------------------------------------------


def _register(arguments: argparse.Namespace) -> dict[str, Any]:
    """`{quiet: key, noisy: [[key, …], …]}`."""
    import django

    django.setup()
    from accounts import services
    from accounts.models import Plan, Workspace
    from accounts.services import Actor
    from webhooks import services as webhooks

    actor = Actor("bench")
    Plan.objects.filter(name="free").update(
        rate_limit_per_minute=PLAN["minute"], rate_limit_per_day=PLAN["day"]
    )

    def workspace(slug: str) -> Workspace:
        return Workspace.objects.create(slug=slug, name=slug, is_confirmed=True)

    quiet = workspace("quiet")
    quiet.rate_limit_per_day = 1_000_000
    quiet.save()
    _, key = services.issue_key(
        quiet, actor=actor, rate_limit_per_minute=1_000_000, rate_limit_per_day=1_000_000
    )
    noisy = []
    for number in range(arguments.tenants):
        own = workspace(f"noisy-{number}")
        webhooks.register(
            own.pk, arguments.url, ["detection.completed", "batch.completed"], actor=actor
        )
        scopes = ("detect", "batch", "webhooks", "usage:read", "keys:write")
        noisy.append([services.issue_key(own, actor=actor, scopes=scopes)[1] for _ in range(KEYS)])
    return {"quiet": key, "noisy": noisy}


def show(result: dict[str, Any], console: Console) -> None:
    table = Table(title=f"One quiet tenant beside {result['tenants']} at full speed")
    for heading in ("p95 of", "alone, ms (rounds)", "beside them, ms (rounds)", "ratio"):
        table.add_column(heading)
    for title, name, ratio in (
        ("POST /v1/detect, 20 a second", "p95_ms", "ratio"),
        ("a text judged later", "jobs_p95_ms", "jobs_ratio"),
    ):
        cells = [
            f"{median(values):.1f} ({', '.join(f'{value:.1f}' for value in values)})"
            for values in (result[name]["alone"], result[name]["beside"])
        ]
        table.add_row(title, *cells, f"{result[ratio]:.2f} x")
    console.print(table)
    console.print(f"errors of the quiet tenant: {result['errors'] or 'none'}")
    noise = ", ".join(f"{kind} {count:,}" for kind, count in sorted(result["noise"].items()))
    console.print(f"what the others did and were told: {noise}", style="dim", markup=False)
    console.print(", ".join(f"{k} {v}" for k, v in result["machine"].items()), style="dim")


if __name__ == "__main__":
    sys.exit(main())
