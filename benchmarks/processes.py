"""Child processes of a run: start, wait until ready, measure, stop. Nothing else is touched."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOPBACK = "127.0.0.1"
_PR_SET_PDEATHSIG = 1
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class BenchError(Exception):
    """The run cannot start or must not count; the message says why in a sentence."""


class Aside(threading.Thread):
    """What is done beside a run, in a thread of its own: its error is the run's, not lost."""

    def __init__(self, name: str, do: Callable[[], object]) -> None:
        super().__init__(name=name, daemon=True)
        self._do = do
        self._error: Exception | None = None

    def run(self) -> None:
        try:
            self._do()
        except Exception as error:  # noqa: BLE001 - whatever it is, `check` raises it
            self._error = error

    def check(self) -> None:
        if self._error is not None:
            raise BenchError(f"{self.name} ended: {self._error!r}") from self._error


_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback port that nobody listens on at the moment; never the same one twice."""
    while True:
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
        if port not in _given_ports:
            _given_ports.add(port)
            return port


@dataclass(frozen=True)
class Answer:
    """An HTTP answer; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def excerpt(self) -> str:
        return f"{self.status} {self.body[:600].decode(errors='replace')}"


def request(
    port: int,
    method: str,
    path: str,
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    timeout: float = 10.0,
) -> Answer:
    """One HTTP request to a loopback port. `timeout` in seconds."""
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Answer(answer.status, found, answer.read())
    finally:
        connection.close()


def base_environment() -> dict[str, str]:
    """What a child needs of ours. Anything more could switch a feature of one side on or off."""
    kept = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
    return {name: os.environ[name] for name in kept if name in os.environ}


def _die_with_parent() -> None:
    """Ask the kernel for SIGTERM if the runner itself is killed before it can clean up."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(frozen=True)
class ProcessUsage:
    """What one process of a tree used so far."""

    pid: int
    command: str
    cpu_seconds: float
    rss_bytes: int
    pss_bytes: int


class Child:
    """A server that this run started, with its own process group and a log file."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path
    ) -> None:
        self.name = name
        self.log = log
        with log.open("wb") as sink:
            self.process = subprocess.Popen(
                list(command),
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches only the runner, which then stops us
                preexec_fn=_die_with_parent,
            )

    def wait_ready(self, port: int, path: str, seconds: float = 60.0) -> None:
        """Return when `path` answers 200, or raise with the end of the log."""
        deadline = time.monotonic() + seconds
        seen = "no answer"
        while time.monotonic() < deadline:
            if (code := self.process.poll()) is not None:
                raise BenchError(f"{self.name} ended with code {code}:\n{self.log_tail()}")
            try:
                answer = request(port, "GET", path, timeout=5)
            except (OSError, http.client.HTTPException) as error:
                seen = str(error)
            else:
                if answer.status == 200:
                    return
                seen = answer.excerpt()
            time.sleep(0.2)
        raise BenchError(
            f"{self.name} was not ready after {seconds:.0f} s ({path}: {seen}):\n{self.log_tail()}"
        )

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the log that are not access log lines of good answers."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join([line for line in text if '"status":200' not in line][-lines:])

    def pids(self) -> list[int]:
        """The child and all its descendants."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found = [self.process.pid]
        for pid in found:  # grows while it is walked
            found.extend(children.get(pid, []))
        return found

    def cpu_seconds(self) -> float:
        """CPU time of the whole tree, with children that have ended and were waited for."""
        total = 0
        for pid in self.pids():
            if fields := _stat(pid):
                total += sum(int(value) for value in fields[11:15])
        return total / _TICKS_PER_SECOND

    def usage(self) -> list[ProcessUsage]:
        """CPU time and memory of every process of the tree, the busiest first."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = _stat(pid)
                if not fields:
                    continue
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                sizes = {line.split(":")[0]: line.split() for line in rollup}
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.append(
                    ProcessUsage(
                        pid=pid,
                        command=command.decode(errors="replace").strip(),
                        cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND,
                        rss_bytes=int(sizes["Rss"][1]) * 1024,
                        pss_bytes=int(sizes["Pss"][1]) * 1024,
                    )
                )
        return sorted(found, key=lambda process: -process.cpu_seconds)

    def settle(self, seconds: float = 6.0) -> bool:
        """Wait until the tree rests, so that its leftovers do not slow whoever is next.

        Returns whether it did within `seconds`. Rest is less than 8 % of a core for 1.25 s, longer
        than the second for which a writer may hold rows back.
        """
        deadline = time.monotonic() + seconds
        before, quiet = self.cpu_seconds(), 0
        while time.monotonic() < deadline:
            time.sleep(0.25)
            now = self.cpu_seconds()
            quiet = quiet + 1 if now - before <= 0.02 else 0
            if quiet == 5:
                return True
            before = now
        return False

    def stop(self, seconds: float = 10.0) -> None:
        """SIGTERM to the child, then SIGKILL to whatever of its own tree is left."""
        started = {pid: fields[19] for pid in self.pids() if (fields := _stat(pid))}
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        for pid, start_time in started.items():
            # The start time tells our process from a later one that got the same number.
            fields = _stat(pid)
            if fields and fields[0] != "Z" and fields[19] == start_time:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on (index 0), or [] when the process has gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def run_once(command: Sequence[str], env: Mapping[str, str], cwd: Path, seconds: float) -> str:
    """Run a preparing command to its end; its standard output, or an error with its last lines."""
    try:
        done = subprocess.run(
            list(command), env=dict(env), cwd=cwd, timeout=seconds, capture_output=True, text=True
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{' '.join(command)} took more than {seconds:.0f} s.") from error
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise BenchError(f"{' '.join(command)} ended with code {done.returncode}:\n{tail}")
    return done.stdout
