"""What `manage.py run` becomes once all is prepared: it starts the children, waits, and stops them.

A script of the standard library, run by its path (`command` says how): whoever only waits should
not hold all of Django, 130 MB, to do it. What to start comes as JSON through a pipe.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, TypedDict

START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20
# How each is called, and what is without it. The gateway has to be there.
OPTIONAL = {
    "engine": ("stand-in engine", "verdicts are degraded"),
    "robin": ("stand-in Robin", "/api/v1 says 503"),
}
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Plan(TypedDict):
    folder: str
    environment: dict[str, str]
    """Beside what this process has."""
    commands: dict[str, list[str]]
    """By name: gateway, engine, robin; in the order of starting."""
    host: str
    port: int
    welcome: str
    goodbye: str
    remove: list[str]
    """Folders that go when all has stopped."""


def become(plan: Plan) -> None:
    """Replace this process, and never return. A signal meanwhile waits for its handler there."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:  # a few KB: a pipe takes 64 without a reader
        json.dump(plan, pipe)
    os.set_inheritable(reading, True)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # Without the environment's packages, and without this folder as a place of modules.
    command = [sys.executable, "-I", "-S", __file__, str(reading)]
    os.execv(command[0], command)


class Failed(Exception):
    pass


class LocalSupervisor:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.children: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def run(self) -> int:
        for number in SIGNALS:
            signal.signal(number, self._interrupt)
        code = 0
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            self._start()
            say(self.plan["welcome"])
            self._watch()
        except KeyboardInterrupt:
            say("\nStopping (once more: at once)")
        except Failed as exc:
            print(exc, file=sys.stderr, flush=True)
            code = 1
        finally:
            self._stop()
            for folder in self.plan["remove"]:
                shutil.rmtree(folder, ignore_errors=True)
        if code == 0:
            say(self.plan["goodbye"])
        return code

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            raise KeyboardInterrupt
        # Not another exception: it would end the stopping and leave the children behind.
        for child in self.children.values():
            child.kill()

    def _start(self) -> None:
        environment = {**os.environ, **self.plan["environment"]}
        for name, command in self.plan["commands"].items():
            # A session of its own: Ctrl-C reaches us alone, and we stop the children in order.
            self.children[name] = subprocess.Popen(
                command, cwd=self.plan["folder"], env=environment, start_new_session=True
            )
        host, port = self.plan["host"], self.plan["port"]
        deadline = time.monotonic() + START_SECONDS_MAX
        while time.monotonic() < deadline:
            if is_ready(host, port):
                return
            self._raise_if_dead()
            time.sleep(0.1)
        raise Failed(
            f"The gateway was not ready within {START_SECONDS_MAX} s: "
            f"http://{host}:{port}/health/ready says why, or its lines above."
        )

    def _raise_if_dead(self) -> None:
        for name, child in self.children.items():
            if child.poll() is not None:
                raise Failed(f"The {name} stopped by itself (exit code {child.returncode}).")

    def _watch(self) -> None:
        while True:
            for name, (title, without) in OPTIONAL.items():
                child = self.children.get(name)
                if child is not None and child.poll() is not None:
                    # Just what the gateway is built for: it goes on, and says what is missing.
                    say(
                        f"The {title} stopped (exit code {child.returncode}): {without} from now "
                        "on. Start again to have it back."
                    )
                    del self.children[name]
            self._raise_if_dead()
            time.sleep(0.5)

    def _stop(self) -> None:
        self._stopping = True
        # The gateway first: requests in flight still need the others.
        for name in ("gateway", *OPTIONAL):
            child = self.children.get(name)
            if child is None or child.poll() is not None:
                continue
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def is_ready(host: str, port: int) -> bool:
    """Whether `/health/ready` is a 200; without the 10 MB of an HTTP client."""
    with suppress(OSError), socket.create_connection((host, port), timeout=2) as connection:
        connection.settimeout(2)
        connection.sendall(f"GET /health/ready HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
        return connection.recv(12).endswith(b" 200")
    return False


def say(text: str) -> None:
    with suppress(OSError):  # nobody reads it any more
        print(text, flush=True)


def main() -> int:
    with os.fdopen(int(sys.argv[1])) as pipe:
        plan: Any = json.load(pipe)
    return LocalSupervisor(plan).run()


if __name__ == "__main__":
    sys.exit(main())
