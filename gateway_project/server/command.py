"""The command line that serves the application."""

from __future__ import annotations

import sys


def command(*, host: str, port: int, workers: int) -> list[str]:
    """The command line that serves the application (docs/decisions/0002 says why uvicorn)."""
    return [
        sys.executable,
        "-m",
        "gateway_project.server",
        f"--host={host}",
        f"--port={port}",
        f"--workers={workers}",
    ]
