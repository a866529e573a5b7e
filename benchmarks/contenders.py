"""What is compared: how each contender is prepared, started and asked."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.processes import LOOPBACK, BenchError, free_port
from benchmarks.stores import Stores

ROOT = Path(__file__).resolve().parent.parent
REFERENCE_VENV = ROOT / ".venv-bench"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
PER_MINUTE, PER_DAY = 10_000_000, 1_000_000_000  # limits are on, and never reached


@dataclass(frozen=True)
class Contender:
    """A server under test. Commands run in `cwd` with `env` on top of a minimal environment."""

    name: str
    title: str
    port: int
    cwd: Path
    make_key: tuple[str, ...]  # its last line of standard output is the API key
    make_token: tuple[str, ...]  # likewise an access token of the Robin API
    serve: tuple[str, ...]
    env: Mapping[str, str]
    ready_path: str
    usage_table: str
    switched_on: tuple[str, ...]
    packages: tuple[str, ...]  # whose versions are printed
    python: Path
    prepare: tuple[tuple[str, ...], ...] = ()
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
            "--without-gossip", "--without-mingle",
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
        },
        ready_path="/health/ready",
        usage_table="accounts_usagelog",
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
        env={**usual.env, "PROMETHEUS_MULTIPROC_DIR": str(scratch / "granian-metrics")},
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

    return replace(
        usual,
        name="before",
        title="this gateway before",
        cwd=Path(folder),
        prepare=tuple(moved(command) for command in usual.prepare),
        make_key=moved(usual.make_key),
        serve=moved(usual.serve),
        env={**usual.env, "PROMETHEUS_MULTIPROC_DIR": str(scratch / "before-metrics")},
    )


FACTORIES = {
    "reference": reference,
    "gateway": gateway,
    "granian": gateway_on_granian,
    "before": gateway_before,
}
USUAL = ("reference", "gateway")  # the others run when `--only` names them


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
