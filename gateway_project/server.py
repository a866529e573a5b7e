"""How a web server process is started: by `serve`, by `run`, and by tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

KEEP_ALIVE_BACKLOG = 1024


def command(*, host: str, port: int, workers: int) -> list[str]:
    """The command line that serves the application (docs/decisions/0002 says why granian)."""
    return [
        sys.executable,
        "-m",
        "granian",
        "gateway_project.asgi:application",
        "--interface=asgi",
        "--loop=uvloop",
        "--http=1",
        "--ws",
        f"--host={host}",
        f"--port={port}",
        f"--workers={workers}",
        f"--backlog={KEEP_ALIVE_BACKLOG}",
        "--respawn-failed-workers",
        "--workers-kill-timeout=15",
        "--no-access-log",
        "--log-level=warning",
    ]


def metrics_folder() -> Path:
    """A fresh folder for Prometheus' multiprocess files.

    The files of an earlier run would be added to this run's counters for ever.
    """
    configured = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if configured is None:
        return Path(tempfile.mkdtemp(prefix="gateway-metrics-"))
    folder = Path(configured)
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.glob("*.db"):
        entry.unlink()
    return folder


def drop_metrics_folder(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
