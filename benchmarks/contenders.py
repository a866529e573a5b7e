"""What is compared: how each contender is prepared, started and asked."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import machine
from benchmarks.processes import LOOPBACK, BenchError, free_port
from benchmarks.stores import Stores

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_VENV = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PER_MINUTE, PER_DAY = 10_000_000, 1_000_000_000  # limits are on, and never reached

_VERSIONS = """
import json, platform, sys
from importlib.metadata import PackageNotFoundError, version
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Contender:
    """A server under test. Commands run in `cwd` with `env` on top of a minimal environment."""

    name: str
    title: str
    port: int
    cwd: Path
    make_key: tuple[str, ...]  # its last line of standard output is the API key
    make_token: tuple[str, ...]  # likewise an access token of the Robin API; none: it has no such
    serve: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str
    usage_table: str
    switched_on: tuple[str, ...]
    packages: tuple[str, ...]  # whose versions are printed
    python: Path
    prepare: tuple[tuple[str, ...], ...] = ()
    prepare_seconds: int = 120  # that each of them may take
    metrics: str = ""  # where its processes count, in files of the client library
    usage_stream: str = ""  # in Redis, where usage waits
    is_peer: bool = False  # it only passes on: no headers, usage or metrics are asked of it
    worker: tuple[str, ...] = ()  # runs beside the web processes, and its CPU counts with theirs
    fill_keys: tuple[str, ...] = ()  # with STORED ACTIVE FILE: see fill_keys.py
    missing: tuple[str, ...] = field(default=())  # named in the report: not on (yet)

    def headers(self, key: str) -> dict[str, str]:
        return {"X-API-Key": key}


def reference(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """The plans' FastAPI stack, in its own environment."""
    python = _reference_python()
    metrics = scratch / "reference-metrics"
    metrics.mkdir()
    port = free_port()
    return Contender(
        name="reference",
        title="FastAPI reference",
        port=port,
        cwd=Path(__file__).parent / "reference",
        make_key=(str(python), "app.py", str(PER_MINUTE), str(PER_DAY)),
        make_token=(str(python), "app.py", "token"),
        serve=(
            str(python), "-m", "uvicorn", "app:app", "--host", LOOPBACK, "--port", str(port),
            "--workers", str(workers), "--loop", "uvloop", "--http", "httptools",
            "--no-access-log", "--log-level", "warning",
        ),
        env={
            "DATABASE_URL": stores.database_url,
            "REDIS_URL": stores.redis_url,
            "ENGINE_URL": f"http://{LOOPBACK}:{engine_port}",
            "JWT_SECRET": secrets.token_urlsafe(48),
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        ready_path="/health",
        metrics=str(metrics),
        usage_table="usage_logs",
        switched_on=(
            "API key: SHA-256 against PostgreSQL, cached 60 s in Redis",
            "limits per minute and day in Redis, with headers",
            "verdict cache in Redis (asked and filled)",
            "circuit breaker, httpx pool 100/20",
            "a usage row in PostgreSQL for each request",
            "Prometheus metrics, multiprocess",
            "JSON access log line with request id",
            "security headers, CORS, GZip",
        ),
        packages=("fastapi", "uvicorn", "httpx", "redis", "sqlalchemy", "asyncpg", "pydantic"),
        python=python,
    )  # fmt: skip


def gateway(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """This project, started as `make serve` does."""
    manage = ROOT / "manage.py"
    if not manage.exists():
        raise BenchError("There is no manage.py yet; run with `--only reference`.")
    port = free_port()
    command = (sys.executable, str(manage))
    metrics = str(scratch / "gateway-metrics")
    return Contender(
        name="gateway",
        title="this gateway (Django)",
        port=port,
        cwd=ROOT,
        prepare=((*command, "migrate", "--verbosity", "0"),),
        make_key=(
            *command, "create_key", "--workspace", "bench",
            "--per-minute", str(PER_MINUTE), "--per-day", str(PER_DAY),
        ),
        make_token=(sys.executable, "-m", "benchmarks.robin_token"),
        serve=(*command, "serve"),
        fill_keys=(sys.executable, "-m", "benchmarks.fill_keys"),
        worker=(
            sys.executable, "-m", "celery", "-A", "gateway_project", "worker", "--beat",
            "--schedule", str(scratch / "beat"), "--concurrency", "1", "--loglevel", "WARNING",
        ),
        env={
            "DJANGO_SETTINGS_MODULE": "gateway_project.settings",
            "HOST": LOOPBACK,
            "PORT": str(port),
            "WORKERS": str(workers),
            "DATABASE_URL": stores.database_url,
            "REDIS_URL": stores.redis_url,
            "DETECTION_ENGINE_URL": f"http://{LOOPBACK}:{engine_port}",
            "ROBIN_CLIENT_API_URL": f"http://{LOOPBACK}:{engine_port}",
            "ROBIN_SERVICE_API_URL": f"http://{LOOPBACK}:{engine_port}",
            "RATE_LIMIT_PER_MINUTE": str(PER_MINUTE),
            "ACCESS_TOKEN_EXPIRE_MINUTES": "600",
            # Set though most are defaults: a .env file of the checkout must not change them.
            "RATE_LIMIT_ENABLED": "true",
            "EMBEDDED_WORKER": "false",
            "LOG_LEVEL": "INFO",
            "LOG_FORMAT": "json",
            "ALLOWED_HOSTS": LOOPBACK,
            "SECRET_KEY": secrets.token_urlsafe(48),
            "JWT_SECRET": secrets.token_urlsafe(48),
            "KEY_PEPPERS": f"1:{secrets.token_hex(32)}",
            "FIELD_ENCRYPTION_KEYS": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "PROMETHEUS_MULTIPROC_DIR": metrics,
        },
        ready_path="/health/ready",
        metrics=metrics,
        usage_table="accounts_usagelog",
        usage_stream="gw:usage",
        switched_on=(
            "API key: keyed hash against PostgreSQL, verified keys remembered in the worker",
            "limits per minute and day in Redis, with headers",
            "score cache in Redis (asked and filled), equal texts at once joined",
            "circuit breaker shown to all processes, connection pool",
            "a usage row in PostgreSQL for each request (stream, worker), and roll-ups",
            "Prometheus metrics, multiprocess",
            "JSON access log line with request id",
            "security headers, GZip (CORS is the Robin API's)",
        ),
        packages=("django", "djangorestframework", "uvicorn", "httptools", "redis", "pydantic"),
        python=Path(sys.executable),
    )  # fmt: skip


def gateway_on_granian(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """The same application behind the other server: what docs/decisions/0002 rests on."""
    usual = gateway(stores, engine_port, workers, scratch)
    metrics = str(scratch / "granian-metrics")
    return replace(
        usual,
        name="granian",
        title="this gateway on granian",
        serve=(
            sys.executable, "-m", "granian", "gateway_project.asgi:application",
            "--interface", "asgi", "--host", LOOPBACK, "--port", str(usual.port),
            "--workers", str(workers), "--loop", "uvloop", "--http", "1", "--no-ws",
            "--no-access-log", "--log-level", "warning",
        ),
        env={**usual.env, "PROMETHEUS_MULTIPROC_DIR": metrics},
        metrics=metrics,
        packages=("granian", *usual.packages),
    )  # fmt: skip


def gateway_before(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """Another checkout, with the same packages: what a change is measured against."""
    folder = os.environ.get("BENCH_BEFORE", "")
    if not folder:
        raise BenchError("BENCH_BEFORE is not set: `git worktree add FOLDER COMMIT` makes one.")
    usual = gateway(stores, engine_port, workers, scratch)

    manage = str(ROOT / "manage.py")

    def moved(command: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{folder}/manage.py" if part == manage else part for part in command)

    metrics = str(scratch / "before-metrics")
    return replace(
        usual,
        name="before",
        title="this gateway before",
        cwd=Path(folder),
        prepare=tuple(moved(command) for command in usual.prepare),
        make_key=moved(usual.make_key),
        serve=moved(usual.serve),
        env={**usual.env, "PROMETHEUS_MULTIPROC_DIR": metrics},
        metrics=metrics,
    )


def gateway_filled(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """This project beside ten million usage rows and a million keys, which takes minutes."""
    usual = gateway(stores, engine_port, workers, scratch)
    fill = ("fill_usage", "--rows", "10000000", "--days", "7", "--only-usage")
    metrics = str(scratch / "filled-metrics")
    return replace(
        usual,
        name="filled",
        title="this gateway, ten million usage rows",
        prepare=(*usual.prepare, (sys.executable, str(ROOT / "manage.py"), *fill)),
        prepare_seconds=1_800,
        env={**usual.env, "PROMETHEUS_MULTIPROC_DIR": metrics},
        metrics=metrics,
    )


def nginx(stores: Stores, engine_port: int, workers: int, scratch: Path) -> Contender:
    """What passing on costs at least: a proxy with a limit for each key, and nothing else."""
    folder, port = scratch / "nginx", free_port()
    folder.mkdir()
    text = (Path(__file__).parent / "nginx_peer.conf").read_text()
    for mark, value in {
        "@USER@": "user root;" if os.geteuid() == 0 else "",  # else its workers cannot enter
        "@WORKERS@": str(workers),
        "@DIR@": str(folder),
        "@PORT@": str(port),
        "@ENGINE@": str(engine_port),
    }.items():
        text = text.replace(mark, value)
    config = folder / "nginx.conf"
    config.write_text(text)
    return Contender(
        name="nginx",
        title="nginx, limit_req alone",
        port=port,
        cwd=folder,
        make_key=("echo", "any"),
        make_token=(),
        serve=(machine.nginx_path(), "-p", str(folder), "-c", str(config), "-e", "stderr"),
        env={},
        ready_path="/health",
        usage_table="",
        switched_on=("a limit for each key, in its own memory", "a line in a log"),
        packages=(),
        python=Path(sys.executable),
        missing=(
            "keys that are known or not",
            "verdicts: caches, policies, breaker, fallback",
            "usage, metrics, request id, headers",
        ),
        is_peer=True,
    )


FACTORIES = {
    "reference": reference,
    "gateway": gateway,
    "granian": gateway_on_granian,
    "before": gateway_before,
    "filled": gateway_filled,
    "nginx": nginx,
}
BESIDE = {"granian", "before", "filled", "nginx"}  # held against this gateway, which comes along
USUAL = ("reference", "gateway")  # the others run when `--only` names them


def package_versions(contenders: Iterable[Contender]) -> dict[str, dict[str, str]]:
    """Python and main packages of every contender, read in its own environment."""
    found = {}
    for contender in contenders:
        if not contender.packages:
            continue
        done = subprocess.run(
            [str(contender.python), "-c", _VERSIONS, *contender.packages],
            capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        found[contender.name] = json.loads(done.stdout)
    return found


def _reference_python() -> Path:
    """The interpreter of `.venv-bench`, which is made or renewed when the pins changed."""
    python = REFERENCE_VENV / "bin" / "python"
    stamp = REFERENCE_VENV / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text().strip() == wanted:
        return python
    print("Installing the reference's packages into .venv-bench ...", flush=True)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(REFERENCE_VENV)], check=True)
        (REFERENCE_VENV / ".gitignore").write_text("*\n")
        subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--require-hashes", "-r", str(REQUIREMENTS)],
            check=True, timeout=300,
        )  # fmt: skip
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise BenchError(f"Could not install {REQUIREMENTS.name}: {error}") from error
    stamp.write_text(wanted + "\n")
    return python
