"""A really served gateway: the process that `manage.py serve` becomes, as a child of the tests."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from django.conf import settings

from gateway_project.server.command import command

ROOT = Path(__file__).resolve().parents[2]
START_SECONDS_MAX = 40


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, seconds: float = START_SECONDS_MAX):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if result := condition():
                return result
        time.sleep(0.05)  # another process' progress cannot be awaited
    raise AssertionError("not within the time")


def database_url() -> str:
    """The tests' own, for another process; by way of the pooler where one was started."""
    pooler = urlsplit(os.environ.get("POOLER_URL", ""))
    target = {**settings.DATABASES["default"]}
    if pooler.hostname:
        target |= {"HOST": pooler.hostname, "PORT": pooler.port}
    return "postgres://{USER}:{PASSWORD}@{HOST}:{PORT}/{NAME}".format(**target)


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Served:
    """A gateway with what the test says; `stop()` ends it like an orchestrator.

    `by_command`: by way of `manage.py serve`, whose own checks take longer than the server's start.
    `code`: a checkout of another version. `stdout`: where its log goes instead of a file.
    """

    def __init__(
        self,
        folder: Path,
        *,
        by_command: bool = False,
        code: Path = ROOT,
        stdout: int | None = None,
        **environment: str,
    ) -> None:
        self.port = int(environment.get("PORT") or free_port())
        self.workers = int(environment.get("WORKERS", "2"))
        self.url = f"http://127.0.0.1:{self.port}"
        folder.mkdir(exist_ok=True)
        log = folder / "served.log"
        log.unlink(missing_ok=True)
        self.log = log.open("a+b")  # appending: the process writes while the test reads
        self.environment = {
            **os.environ,
            "PORT": str(self.port),
            "WORKERS": "2",
            "DRAIN_SECONDS": "0",  # tests about stopping say otherwise
            "SECRET_KEY": settings.SECRET_KEY,
            "STAFF_TWO_FACTORS": "false",
            "KEY_PEPPERS": ",".join(
                f"{v}:{p.decode()}" for v, p in settings.KEY_PEPPERS.by_version
            ),
            "FIELD_ENCRYPTION_KEYS": ",".join(settings.FIELD_ENCRYPTION_KEYS),
            "DATABASE_URL": database_url(),
            "DETECTION_ENGINE_URL": settings.DETECTION_ENGINE_URL,
            "DETECTION_ENGINE_SCORE_FLOOR": "0",
            "ALLOWED_HOSTS": "127.0.0.1,localhost",
            "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
            **environment,
        }
        server = command(host="127.0.0.1", port=self.port, workers=self.workers)
        self.process = subprocess.Popen(
            [sys.executable, "manage.py", "serve"] if by_command else server,
            cwd=code,
            env=self.environment,
            stdout=self.log if stdout is None else stdout,
            stderr=self.log,
            start_new_session=True,
        )

    def wait(self) -> None:
        wait_until(self._is_ready)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.output()
        # Each worker has to be up: a stop would not reach one that is still starting.
        started = sum(line.get("event") == "process_started" for line in self.lines())
        is_up = started == self.workers
        return is_up and httpx.get(f"{self.url}/health/ready").status_code == 200

    def web_workers(self) -> list[int]:
        """Process ids; only where there is more than one."""
        return [
            child
            for child in children_of(self.process.pid)
            if b"resource_tracker" not in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    def detect(self, key: str, text: str = "hello") -> httpx.Response:
        # A connection of its own, so that the kernel spreads the calls over the workers; without
        # the certificates, whose loading takes longer than the call.
        return httpx.post(
            f"{self.url}/v1/detect",
            json={"text": text},
            headers={"X-API-Key": key},
            timeout=30,
            verify=False,
        )

    def limits(self, key: str) -> httpx.Response:
        return httpx.get(
            f"{self.url}/v1/limits", headers={"X-API-Key": key}, timeout=30, verify=False
        )

    def revoke(self, key: str) -> httpx.Response:
        return httpx.delete(
            f"{self.url}/auth/revoke", headers={"X-API-Key": key}, timeout=30, verify=False
        )

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)

    def close(self) -> None:
        """What is left to do when the test is over, however it went."""
        if self.process.poll() is None:
            self.stop()
        self.log.close()

    def output(self) -> str:
        self.log.seek(0)
        return self.log.read().decode()

    def lines(self) -> list[dict]:
        return [json.loads(raw) for raw in self.output().splitlines() if raw.startswith("{")]


class Worker:
    """A real worker, as `celery -A gateway_project worker` starts it; no beat is needed."""

    def __init__(self, folder, redis_url, *options, code=ROOT, **environment):
        peppers = [f"{v}:{p.decode()}" for v, p in settings.KEY_PEPPERS.by_version]
        self._log = (folder / "worker.log").open("a+b")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "celery", "-A", "gateway_project", "worker"),
                *(options or ("--concurrency=1",)),
            ],
            cwd=code,
            env={
                **os.environ,
                "DATABASE_URL": database_url(),
                "REDIS_URL": redis_url,
                "SECRET_KEY": settings.SECRET_KEY,
                "KEY_PEPPERS": ",".join(peppers),
                "FIELD_ENCRYPTION_KEYS": ",".join(settings.FIELD_ENCRYPTION_KEYS),
                "DETECTION_ENGINE_URL": settings.DETECTION_ENGINE_URL,
                "DETECTION_ENGINE_SCORE_FLOOR": "0",
                "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
                "PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics"),
                **environment,
            },
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def kill(self):
        """All of it at once: parent, beat and the child that works."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def stop(self):
        """As an orchestrator does."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def lines(self):
        self._log.seek(0)
        lines = self._log.read().decode().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def close(self):
        self.kill()
        self._log.close()
