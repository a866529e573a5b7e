"""A Robin of our own: throw-away settings on free ports, a queue filled at will."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from benchmarks.processes import (
    Answer,
    BenchError,
    Child,
    base_environment,
    free_port,
    request,
    run_once,
)
from deploy.robin_real.build import Jdk, class_path
from robin.queue.translate import queue_page

Kind = Literal["mapdb", "pgsql"]
HEAP = "-Xmx1024m"
"""As in its own image."""
NEVER_SECONDS = 86_400
START_SECONDS = 180.0
ANSWER_SECONDS_MAX = 300.0
SEED = Path(__file__).with_name("Seed.java")
STAMP = "%Y%m%d-%H%M%S%f"
LAYOUT = "%-5p|%d{MMdd-HHmmssSSS}|%t|%c{2}|%X{aCode}|%X{bCode}|%X{cCode}|%m%n"


@dataclass(frozen=True)
class Ports:
    client: int = field(default_factory=free_port)
    service: int = field(default_factory=free_port)
    smtp: int = field(default_factory=free_port)


def settings_files(
    home: Path, ports: Ports, token: str, *, kind: Kind, database_url: str, start_seconds: int
) -> Mapping[str, str]:
    """What is written over Robin's shipped settings: file name → text.

    `token` is what both HTTP servers ask for. Nothing is delivered in the first `start_seconds`.
    """
    listener = {"dosProtectionEnabled": False, "maximumPoolSize": 10}
    server: dict[str, Any] = {
        "hostname": "robin.example",
        "bind": "127.0.0.1",
        "smtpPort": ports.smtp,
        "securePort": 0,
        "submissionPort": 0,
        "smtpConfig": listener,
        "auth": True,
        "starttls": False,
        "service": {"port": ports.service, "authType": "bearer", "authValue": token},
        "api": {"port": ports.client, "authType": "bearer", "authValue": token},
        "rbl": {"enabled": False},
    }
    queue: dict[str, Any] = {
        "startDelaySeconds": start_seconds,
        "retry": {"totalRetries": 30, "firstWaitMinutes": 1, "growthFactor": 1.2},
        "queueMapDB": {"enabled": kind == "mapdb", "queueFile": str(home / "queue.db")},
        "queueRedis": {"enabled": False},
        "queueMariaDB": {"enabled": False},
        "queuePgSQL": {"enabled": kind == "pgsql", **_jdbc(database_url)},
    }
    relay = {"enabled": False, "outboundEnabled": True, "bounce": True, "maxRetryCount": 30}
    storage = {"enabled": True, "localMailbox": True, "path": f"{home / 'store'}/", "clean": False}
    texts = {"server": server, "queue": queue, "relay": relay, "storage": storage}
    files = {f"{name}.json5": json.dumps(content, indent=2) for name, content in texts.items()}
    return {**files, "log4j2.xml": _log4j(home / "log")}


def _jdbc(database_url: str) -> dict[str, str]:
    if not database_url:
        return {}
    parts = urlsplit(database_url)
    url = f"jdbc:postgresql://{parts.hostname}:{parts.port or 5432}{parts.path}"
    return {"jdbcUrl": url, "username": parts.username or "", "password": parts.password or ""}


def _log4j(folder: Path) -> str:
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<Configuration shutdownHook="disable">
  <Appenders>
    <RollingFile name="appender" filePattern="{folder}/%d{{yyyyMMdd}}.log">
      <PatternLayout pattern="{LAYOUT}"/>
      <Policies><TimeBasedTriggeringPolicy interval="1" modulate="true"/></Policies>
    </RollingFile>
  </Appenders>
  <Loggers>
    <Logger name="com.mimecast.robin" level="debug" additivity="false">
      <AppenderRef ref="appender"/>
    </Logger>
    <Root level="error"><AppenderRef ref="appender"/></Root>
  </Loggers>
</Configuration>
"""


class Mta:
    def __init__(
        self, checkout: Path, home: Path, jdk: Jdk, *, kind: Kind, database_url: str = ""
    ) -> None:
        self.checkout, self.home, self.jdk = checkout, home, jdk
        self.kind: Kind = kind
        self.database_url = database_url
        self.token = secrets.token_urlsafe(24)
        self.ports = Ports()
        self.settings = home / "cfg"
        self.child: Child | None = None
        self._lists: list[float] = []
        self._log_read = Path(), 0
        shutil.copytree(checkout / "cfg", self.settings)
        for name in ("log", "store"):
            (home / name).mkdir()

    @property
    def client_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.client}"

    @property
    def service_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.service}"

    def log_of(self, day: datetime) -> Path:
        return self.home / "log" / f"{day:%Y%m%d}.log"

    def configure(self, *, start_seconds: int) -> None:
        files = settings_files(
            self.home,
            self.ports,
            self.token,
            kind=self.kind,
            database_url=self.database_url,
            start_seconds=start_seconds,
        )
        for name, text in files.items():
            (self.settings / name).write_text(text)

    @contextmanager
    def broken(self, name: str) -> Iterator[None]:
        """That file of its settings ends in the middle."""
        file = self.settings / name
        whole = file.read_text()
        file.write_text(whole[: len(whole) // 2])
        try:
            yield
        finally:
            file.write_text(whole)

    def seed(self, items: int, domain: str, port: int, *, later_seconds: int = 0) -> None:
        """`items` mails more, while Robin does not run; those with `later_seconds` put off all."""
        self.configure(start_seconds=NEVER_SECONDS)
        command = [self.jdk.java, "-Xmx2g", "-cp", class_path(self.checkout), str(SEED)]
        arguments = [f"{self.settings}/", items, domain, port, later_seconds]
        run_once([*command, *map(str, arguments)], base_environment(), self.home, 400)

    def start(self, *, start_seconds: int = 1) -> None:
        self.configure(start_seconds=start_seconds)
        # Its log names no zone.
        options = [
            HEAP,
            "-Duser.timezone=UTC",
            f"-Dlog4j.configurationFile={self.settings}/log4j2.xml",
        ]
        command = [self.jdk.java, *options, "-cp", class_path(self.checkout)]
        command += ["com.mimecast.robin.Main", "--server", f"{self.settings}/"]
        log, environment = self.home / "robin.out", base_environment()
        environment["LC_ALL"] = "C.UTF-8"  # names of mails that are no ASCII
        self.child = Child("Robin", command, environment, self.home, log)
        self.child.wait_ready(self.ports.service, "/health", START_SECONDS)
        self.child.wait_ready(self.ports.client, "/health")

    def stop(self, *, at_once: bool = False) -> None:
        if self.child is not None:
            if at_once:
                self.child.process.send_signal(signal.SIGKILL)
            self.child.stop(25)
            self.child = None

    def cpu_seconds(self) -> float:
        return self.child.cpu_seconds() if self.child is not None else 0.0

    def freeze(self) -> None:
        """It takes what is sent to it, and does nothing with it."""
        if self.child is not None:
            self.child.process.send_signal(signal.SIGSTOP)

    def send(self, recipient: str, port: int, *more: str) -> None:
        """A mail into its queue, by its own API."""
        # From a file: of a message without one Robin keeps none, and delivers nothing.
        file = self.home / f"{secrets.token_hex(8)}.eml"
        file.write_text("Subject: Hello\r\n\r\nHello.\r\n")
        envelope = {"mail": "ops@north.example", "rcpt": [recipient, *more], "file": str(file)}
        session = {"mx": ["127.0.0.1"], "port": port, "tls": False, "ehlo": "north.example"}
        body = json.dumps({**session, "envelopes": [envelope]}).encode()
        path = "/client/queue?protocol=ESMTP"
        answer = self._asked("POST", self.ports.client, path, body)
        if answer.status != 202:
            raise BenchError(f"Robin did not take the mail: {answer.excerpt()}")

    def retries(self, states: str) -> dict[str, int]:
        """Of the first thousand items in these: uid → how often it was tried."""
        path = f"/client/queue/list?page=1&limit=1000&state={states}"
        page = queue_page(self._asked("GET", self.ports.client, path).body)
        return {item["uid"]: item["retryCount"] for item in page.items}

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._asked("GET", self.ports.service, "/health").body)
        return found

    def wait_until_free(self) -> None:
        """Until its one thread for lists and actions answers."""
        self._asked("GET", self.ports.client, "/health")

    def lists_asked(self, since: float) -> list[float]:
        """When it was asked for one, in Unix seconds: its log says so."""
        now = datetime.now(UTC)
        path = self.log_of(now)
        if path != self._log_read[0]:
            self._log_read = path, 0
        with path.open("rb") as file:
            file.seek(self._log_read[1])
            for line in file:
                if b"|GET /client/queue/list from" in line and line.endswith(b"\n"):
                    stamp = f"{now:%Y}{line.split(b'|')[1].decode()}"
                    at = datetime.strptime(stamp, STAMP).replace(tzinfo=UTC)
                    self._lists.append(at.timestamp())
            self._log_read = path, file.tell()
        return [at for at in self._lists if at >= since]

    def list_seconds(self) -> float:
        """How long one list takes."""
        return self._seconds("/client/queue/list?page=1&limit=1000&state=READY,CLAIMED,DEAD")

    def search_seconds(self) -> float:
        """How long one search of its log takes, for what is not in it."""
        return self._seconds("/logs?query=there-is-no-such-word")

    def _seconds(self, path: str) -> float:
        began = time.monotonic()
        self._asked("GET", self.ports.client, path)
        return time.monotonic() - began

    def _asked(self, method: str, port: int, path: str, body: bytes | None = None) -> Answer:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        return request(port, method, path, headers, body, ANSWER_SECONDS_MAX)
