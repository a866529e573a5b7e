"""Celery's worker as threads of the one web process: for `make run`, without services.

The broker is `memory://`, so the worker must live where tasks are sent. A bare WorkController
would receive tasks and never run them; `celery.apps.worker.Worker` with the thread pool does.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

from celery.apps.worker import Worker
from celery.exceptions import SecurityWarning

from gateway_project.celery import app

CONCURRENCY = 12
"""A chunk of a job takes a thread while the engine is asked, and beat's tasks want some too."""


class EmbeddedWorker:
    """Made, started and stopped outside the event loop: Celery touches the database at once."""

    def __init__(self) -> None:
        # Running as root is the container's business; the tasks are our own.
        warnings.filterwarnings("ignore", category=SecurityWarning)
        self._worker: Any = Worker(
            app=app,
            pool="threads",
            concurrency=CONCURRENCY,
            loglevel="WARNING",
            quiet=True,
        )
        # Signals belong to the web server of this process.
        self._worker.install_platform_tweaks = lambda worker: None  # type: ignore[method-assign]
        self._thread = threading.Thread(target=self._worker.start, name="celery", daemon=True)

    @classmethod
    def started(cls) -> EmbeddedWorker:
        worker = cls()
        worker._thread.start()
        return worker

    def stop(self) -> None:
        self._worker.should_stop = True
        self._worker.stop()
        self._thread.join(timeout=5)
