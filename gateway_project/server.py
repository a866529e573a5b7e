"""How a web server process is started: by `serve`, by `run`, and by tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from gateway_project.core import multiprocess

BACKLOG = 2048
GRACEFUL_SECONDS = 15


def command(*, host: str, port: int, workers: int) -> list[str]:
    """The command line that serves the application (docs/decisions/0002 says why uvicorn)."""
    return [
        sys.executable,
        "-m",
        "uvicorn",
        "gateway_project.asgi:application",
        "--loop=uvloop",
        "--http=gateway_project.protocol:BoundedHTTPProtocol",
        "--lifespan=on",
        "--ws=none",  # none are served yet: an upgrade is answered like any other request
        f"--host={host}",
        f"--port={port}",
        f"--workers={workers}",
        f"--backlog={BACKLOG}",
        f"--timeout-graceful-shutdown={GRACEFUL_SECONDS}",
        # Which proxies to believe is our own setting, and the access log is our own event.
        "--no-proxy-headers",
        "--no-access-log",
        "--no-server-header",
        "--log-level=warning",
    ]


def metrics_folder() -> Path:
    """The folder of Prometheus' multiprocess files: as configured, else a fresh one.

    A configured one may be shared with a Celery worker of the same machine, so it is swept, not
    emptied: counters of an earlier run go on.
    """
    configured = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if configured is None:
        return Path(tempfile.mkdtemp(prefix="gateway-metrics-"))
    folder = Path(configured)
    folder.mkdir(parents=True, exist_ok=True)
    multiprocess.sweep(folder)
    return folder


def drop_metrics_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
