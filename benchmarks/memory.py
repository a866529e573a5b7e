"""What the processes of a served gateway grow by: while nobody calls, and under load.

    python -m benchmarks.memory [--rounds 4] [--seconds 60] [--idle-minutes 10] [--keys 10000]

`DATABASE_URL` and `REDIS_URL` name a PostgreSQL and a Redis, as for `benchmarks.run`; the run makes
databases of its own there. After a warm-up nobody calls for `--idle-minutes`; then each round calls
`POST /v1/detect` with `--keys` keys in turn, for `--seconds`, and opens every page that has an
address without parts three times: those of the portal and the admin as somebody who is signed in,
the API's documents, `/metrics`. After each round and its settling the RSS of every process is read.

The musts: less than `MUST_MB` more in the idle time, and in the last round, of any process.
Exit codes: 0 fine, 1 a must was missed, 2 the run does not count.
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
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.contenders import gateway
from benchmarks.load import run_wrk
from benchmarks.processes import LOOPBACK, BenchError, Child, base_environment, run_once
from benchmarks.rows import Row
from benchmarks.run import running_engine
from benchmarks.stores import named_stores, private_stores, versions

MUST_MB = 1.0
WORKERS = 2
CONNECTIONS = 32
TIMES = 3
SETTLE_SECONDS = 10.0
ROW = Row(name="memory", title="POST /v1/detect, many keys", gateway_only=True)
LEFT_OUT = ("/accounts/logout/", "/admin/logout/")  # they would end the session


def main() -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.memory", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=4, help="of load; the last one counts")
    parser.add_argument("--seconds", type=int, default=60, help="of calls in each round")
    parser.add_argument("--idle-minutes", type=float, default=10.0)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole result")
    # How the run calls itself, in the environment of the gateway.
    parser.add_argument("--act", choices=["pages"])
    arguments = parser.parse_args()
    if arguments.act is not None:
        print(json.dumps(_pages()))
        return 0
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    load = os.getloadavg()[0]
    try:
        steps = run(arguments, console)
    except BenchError as error:
        console.print(f"The run does not count: {error}", style="red", markup=False)
        return 2
    show(steps, console)
    console.print(f"load of the machine {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.json:
        arguments.json.write_text(json.dumps(steps, indent=2) + "\n")
    missed = [
        f"must missed: {name} grew by {mb:.2f} MB {when}, not below {MUST_MB:g}"
        for when, before, after in (("at rest", 0, 1), ("in the last round", -2, -1))
        for name, mb in growth(steps[before]["mb"], steps[after]["mb"]).items()
        if mb >= MUST_MB
    ]
    for sentence in missed:
        console.print(sentence, style="red")
    if not missed:
        console.print(f"musts met: < {MUST_MB:g} MB at rest and in the last round", style="green")
    return 1 if missed else 0


def run(arguments: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    machine.require_tools()
    database_url, redis_url = named_stores()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        engine = stack.enter_context(running_engine(scratch))
        stores = stack.enter_context(private_stores(database_url, redis_url, "memory"))
        contender = gateway(stores, engine, WORKERS, scratch)
        limits = {"PAGES_PER_MINUTE": "1000000", "HTTPS_ONLY": "false"}
        metrics = {"PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics")}
        env = base_environment() | dict(contender.env) | limits | metrics
        for command in contender.prepare:
            run_once(command, env, contender.cwd, seconds=120)
        run_once(contender.make_key, env, contender.cwd, seconds=60)
        keys = scratch / "keys"
        fill = (*contender.fill_keys, str(arguments.keys), str(arguments.keys), str(keys))
        run_once(fill, env, contender.cwd, seconds=300)
        pages = (sys.executable, "-m", "benchmarks.memory", "--act=pages")
        known = json.loads(run_once(pages, env, contender.cwd, seconds=60))
        serve = Child("the gateway", contender.serve, env, contender.cwd, scratch / "serve.log")
        stack.callback(serve.stop, 30.0)
        worker = Child("the worker", contender.worker, env, contender.cwd, scratch / "worker.log")
        stack.callback(worker.stop)
        serve.wait_ready(contender.port, contender.ready_path)
        children = {"gateway": serve, "Celery": worker}
        console.print(
            f"{len(known['paths'])} pages; {json.dumps(versions(database_url, redis_url))}"
        )

        def round_(name: str, seconds: int) -> dict[str, Any]:
            answered = run_wrk(
                ROW, contender.port, {}, connections=CONNECTIONS, seconds=seconds, keys=keys
            ).requests
            opened = open_pages(f"http://{LOOPBACK}:{contender.port}", known)
            return step(name, children, console, answered=answered, opened=opened)

        steps = [round_("warm", 10)]
        time.sleep(arguments.idle_minutes * 60)
        steps.append(step(f"{arguments.idle_minutes:g} idle minutes", children, console))
        for number in range(arguments.rounds):
            steps.append(round_(f"round {number + 1}", arguments.seconds))
        return steps


def open_pages(base: str, known: dict[str, Any], times: int = TIMES) -> int:
    """How many were answered with less than 400; a 5xx does not count."""
    opened = 0
    with httpx.Client(base_url=base, trust_env=False, timeout=30) as signed_in:
        signed_in.cookies.set("sessionid", known["session"])
        with httpx.Client(base_url=base, trust_env=False, timeout=30) as anonymous:
            for _ in range(times):
                for path in known["paths"]:
                    for client in (signed_in, anonymous):
                        answer = client.get(path, headers={"Accept": "text/html"})
                        if answer.status_code >= 500:
                            raise BenchError(f"{path}: {answer.status_code} {answer.text[:300]}")
                        opened += answer.status_code < 400
    return opened


def step(name: str, children: dict[str, Child], console: Console, **facts: int) -> dict[str, Any]:
    """The memory of each process, by a name that it keeps."""
    for child in children.values():
        child.settle(SETTLE_SECONDS)
    found = {
        f"{title} {number}": process.rss_bytes / 1e6
        for title, child in children.items()
        for number, process in enumerate(sorted(child.usage(), key=lambda one: one.pid))
    }
    shown = ", ".join(f"{process} {mb:.1f}" for process, mb in found.items())
    console.print(f"  {name}: {shown} MB {facts or ''}")
    return {"name": name, "mb": found, **facts}


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after if name in before}


def show(steps: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="RSS of each process, MB")
    table.add_column("after")
    for name in steps[-1]["mb"]:
        table.add_column(name)
    for one in steps:
        table.add_row(one["name"], *(f"{one['mb'].get(name, 0):.1f}" for name in steps[-1]["mb"]))
    console.print(table)


# -- In the gateway's environment -----------------------------------------------------------------


def _pages() -> dict[str, Any]:
    """`{paths, session}`: addresses without parts, and the session of somebody who may see all."""
    import django

    django.setup()
    from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
    from django.contrib.sessions.backends.db import SessionStore
    from django.urls import URLPattern, URLResolver, get_resolver

    from accounts.models import Membership, User, Workspace

    user = User.objects.create_superuser("pages@bench.example", "a good long password")
    Membership.objects.create(
        user=user, workspace=Workspace.objects.get(slug="bench"), role=Membership.Role.OWNER
    )
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()

    paths: set[str] = set()

    def walk(patterns: list[Any], prefix: str) -> None:
        for pattern in patterns:
            path = prefix + str(pattern.pattern).removeprefix("^").removesuffix("$")
            if isinstance(pattern, URLResolver):
                walk(pattern.url_patterns, path)
            elif isinstance(pattern, URLPattern) and not set(path) & set("<(?\\*"):
                paths.add(path.removesuffix("\\Z"))

    walk(get_resolver().url_patterns, "/")
    api = ("/v1/", "/auth/", "/api/", "/webhooks/", "/beta/")
    wanted = [path for path in sorted(paths) if not path.startswith((*api, *LEFT_OUT))]
    return {"paths": wanted, "session": session.session_key}


if __name__ == "__main__":
    sys.exit(main())
