"""Run a command with PostgreSQL and Redis at hand: `python3 deploy/services.py run -- CMD…`.

A store that the environment names (`DATABASE_URL`, `REDIS_URL`) is used as it is, or the run ends
with a sentence if it does not answer. Any other is private: started from the installed binaries
on a free loopback port in a temporary folder, gone when CMD ends. Servers that merely happen to
listen on the default ports are never touched: they may hold somebody's data. Binaries that are
missing are installed when that takes no guessing (root on a machine with apt-get). What CMD merely
wants (`--want nginx`) is installed in the same way, or CMD runs without it.

`doctor` prints what a run would use. Only the standard library is needed: no environment yet.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import os
import pwd
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
VARIABLES = {"postgres": "DATABASE_URL", "redis": "REDIS_URL", "pgbouncer": "POOLER_URL"}
PACKAGES = {
    "postgres": "postgresql",
    "redis": "redis-server",
    "pgbouncer": "pgbouncer",
    "chromium": "chromium",
    "nginx": "nginx",
    "faketime": "faketime",
    "prometheus": "prometheus",
    "alertmanager": "prometheus-alertmanager",
    "haproxy": "haproxy",
}
POSTGRES_ROOT = Path("/usr/lib/postgresql")  # Debian keeps a folder there for each major version
Ready = Callable[[int, int], bool]  # process id and port: is it this very process that answers?
POLICY_FILE = Path("/usr/sbin/policy-rc.d")
# Everything is thrown away at the end, so nothing has to survive a crash.
POSTGRES_OPTIONS = f"""fsync=off synchronous_commit=off full_page_writes=off max_connections=200
    logging_collector=off wal_level=minimal max_wal_senders=0 listen_addresses={LOOPBACK}""".split()


class StopError(Exception):
    """Ends the run: a sentence for the person in front of it, and the exit code."""

    def __init__(self, sentence: str, code: int = 2) -> None:
        super().__init__(sentence)
        self.code = code


def say(line: str) -> None:
    """One line about ourselves; standard output belongs to CMD."""
    print(f"services: {line}", file=sys.stderr, flush=True)


def find(need: str) -> Path | None:
    """The program for a need, PostgreSQL in its newest version; None when it is not installed."""
    if need != "postgres":
        # Debian's nginx, haproxy and pgbouncer lie where only root's PATH leads.
        places = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
        return Path(path) if (path := shutil.which(PACKAGES[need], path=places)) else None
    versions = [path for path in POSTGRES_ROOT.glob("*/bin") if path.parent.name.isdecimal()]
    folders = sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    if on_path := shutil.which("postgres"):
        folders.append(Path(on_path).resolve().parent)
    return next((path / "postgres" for path in folders if (path / "initdb").exists()), None)


def trouble(need: str, url: str) -> str | None:
    """Why the store behind a URL cannot be used; None when it answers. Never shows a password."""
    parts = urlsplit(url)
    sql = need != "redis"
    known = ("postgres", "pgsql", "psql", "sqlite") if sql else ("redis", "unix")
    if not parts.scheme.startswith(known):
        return f"is no address of {need}"
    if not parts.hostname or parts.hostname.startswith("%2f"):
        return None  # a file or a socket file, which CMD finds or does not find by itself
    try:
        target = parts.hostname, parts.port or (5432 if sql else 6379)
        with socket.create_connection(target, timeout=3) as connection:
            if parts.scheme == "rediss":  # TLS comes first there; that somebody listens is enough
                return None
            # Both are answered before any sign-in: PostgreSQL's SSLRequest and Redis' PING.
            connection.sendall(struct.pack("!ii", 8, 80877103) if sql else b"PING\r\n")
            answer = connection.recv(64)
    except ValueError:
        return "has a port that is not a number"
    except OSError as error:
        return f"{target[0]}:{target[1]} does not answer ({error.strerror or error})"
    expected = (b"S", b"N") if sql else (b"+PONG", b"-NOAUTH", b"-LOADING")
    return None if answer.startswith(expected) else f"{target[0]}:{target[1]} is not {need}"


def can_install() -> bool:
    """Root on a machine with apt-get: the one case in which the right command is known."""
    return os.geteuid() == 0 and shutil.which("apt-get") is not None


def install(needs: list[str]) -> None:
    """Install what is missing, or say in a sentence what a person has to install."""
    packages = " ".join(PACKAGES[need] for need in needs)
    if not can_install():
        raise StopError(f"please install {packages} first (on Debian, as root, with apt-get).")
    command = f"apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {packages}"
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with ExitStack() as stack:
        # One at a time: a second run must not take the policy file away too early.
        fcntl.flock(stack.enter_context(open("/etc/debian_version", "rb")), fcntl.LOCK_EX)
        if not POLICY_FILE.exists():  # it keeps packages from starting servers of their own
            stack.callback(POLICY_FILE.unlink, missing_ok=True)
            POLICY_FILE.write_text("#!/bin/sh\nexit 101\n", encoding="utf-8")
            POLICY_FILE.chmod(0o755)
        for step in ("apt-get update", command):
            say(f"{step} (only once; it can take a minute)")
            must_succeed(step.split(), env=environment, stdin=subprocess.DEVNULL)


def must_succeed(command: list[str], **options: Any) -> None:
    """Run a program to its end; if it fails, show its last lines and end the run."""
    done = subprocess.run(command, capture_output=True, text=True, **options)
    if done.returncode:
        raise StopError(f"{Path(command[0]).name}: {(done.stdout + done.stderr)[-2000:].strip()}")


def own_options(home: Path) -> dict[str, Any]:
    """How our servers run: as the owner of `home`, in a session that Ctrl-C does not reach."""
    # PGHOST, PGSSLMODE and the like are for CMD; PostgreSQL's own programs would obey them.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    owner = pwd.getpwuid(home.stat().st_uid)
    options: dict[str, Any] = {"cwd": home, "env": environment, "start_new_session": True}
    if owner.pw_uid != os.geteuid():
        options |= {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    if sys.platform == "linux":  # 1, PR_SET_PDEATHSIG, ends them even if we are killed (kill -9)
        options["preexec_fn"] = partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM)
    return options | {"stdin": subprocess.DEVNULL}


def stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Stop a server and wait until it is gone."""
    process.send_signal(how)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()  # does nothing to a process that has ended
    process.wait()


def start(
    stack: ExitStack, command: list[str], home: Path, ready: Ready, how: signal.Signals
) -> int:
    """Start a server with a free port for `{port}` in its command, and return that port."""
    for _ in range(5):  # somebody may take the free port before the server does
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            port: int = probe.getsockname()[1]
        argv = [part.replace("{port}", str(port)) for part in command]
        with (log := home / "log").open("ab") as output:
            process = subprocess.Popen(argv, stdout=output, stderr=output, **own_options(home))
        give_up = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < give_up:
            if ready(process.pid, port):
                stack.callback(stop, process, how)
                return port
            time.sleep(0.02)
        stop(process, signal.SIGKILL)
    raise StopError(f"{Path(command[0]).name} did not start: {log.read_text()[-2000:].strip()}")


def start_redis(stack: ExitStack, program: Path, home: Path) -> str:
    """A private Redis that keeps nothing on disk."""

    def ready(pid: int, port: int) -> bool:
        with suppress(OSError), socket.create_connection((LOOPBACK, port), 3) as connection:
            connection.sendall(b"INFO server\r\n")
            return b"process_id:%d\r" % pid in connection.recv(8192)
        return False

    command = [
        str(program),
        *f"--bind {LOOPBACK} --port {{port}} --appendonly no --save".split(),
        "",
    ]
    port = start(stack, command, home, ready, signal.SIGTERM)
    return f"redis://{LOOPBACK}:{port}/0"


def start_postgres(stack: ExitStack, program: Path, home: Path) -> str:
    """A private PostgreSQL with the database `gateway`."""
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")  # it refuses root, and its packages make this account
    data, tools, options = home / "data", program.parent, own_options(home)
    locale = "C.UTF-8" if sys.platform == "linux" else "en_US.UTF-8"
    flags = f"-U postgres -A trust -E UTF8 --locale={locale} --no-sync --no-instructions".split()
    must_succeed([str(tools / "initdb"), "-D", str(data), *flags], **options)

    def ready(pid: int, port: int) -> bool:
        # The server's own note in its own folder: process id first, state in the eighth line.
        with suppress(OSError):
            note = (data / "postmaster.pid").read_text(encoding="utf-8").split("\n")
            return len(note) > 7 and note[0] == str(pid) and note[7].strip() == "ready"
        return False

    settings = [*POSTGRES_OPTIONS, f"unix_socket_directories={home}"]
    command = [str(program), "-D", str(data), "-p", "{port}", *(f"--{item}" for item in settings)]
    # SIGQUIT is its immediate shutdown: no checkpoint for data that goes away anyway.
    port = start(stack, command, home, ready, signal.SIGQUIT)
    flags = f"-h {LOOPBACK} -p {port} -U postgres -w gateway".split()
    must_succeed([str(tools / "createdb"), *flags], **options)
    return f"postgresql://postgres@{LOOPBACK}:{port}/gateway"


def start_pgbouncer(
    stack: ExitStack,
    program: Path,
    home: Path,
    database_url: str,
    *,
    mode: str = "transaction",
    ignored: str = "extra_float_digits,options",
) -> str:
    """A private pgbouncer before the server of `database_url`, for any database."""
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")  # it refuses root
    parts = urlsplit(database_url)
    server = {
        "host": parts.hostname,
        "port": parts.port or 5432,
        "user": parts.username,
        "password": parts.password,
    }
    target = " ".join(f"{name}={value}" for name, value in server.items() if value)
    # Its port is in its file alone, so it is chosen here; nobody else is about to take it.
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
    settings = home / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n* = {target}\n[pgbouncer]\nlisten_addr = {LOOPBACK}\n"
        f"listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = {mode}\n"
        "max_client_conn = 500\ndefault_pool_size = 20\nserver_idle_timeout = 5\n"
        "server_login_retry = 1\n"  # its own 15 s keep clients waiting for a server that is back
        f"ignore_startup_parameters = {ignored}\n",
        encoding="utf-8",
    )

    def ready(pid: int, _: int) -> bool:
        with suppress(OSError), socket.create_connection((LOOPBACK, port), 3):
            return True
        return False

    start(stack, [str(program), str(settings)], home, ready, signal.SIGTERM)
    return f"postgresql://{LOOPBACK}:{port}"


STARTERS = ("postgres", "redis", "pgbouncer")  # the last stands before the first


def run_command(command: list[str], environment: dict[str, str], received: list[int]) -> int:
    """Run CMD, hand on our signals (those of `received` came early), return its exit code."""
    try:
        child = subprocess.Popen(command, env=environment)
    except OSError as error:
        raise StopError(f"cannot run {command[0]} ({error.strerror}).", 127) from None

    def hand_on(number: int, frame: object) -> None:
        with suppress(OSError), open("/dev/tty", "rb") as terminal:
            if number == signal.SIGINT and os.tcgetpgrp(terminal.fileno()) == os.getpgrp():
                return  # Ctrl-C in our terminal has reached CMD already; twice would abort it
        child.send_signal(number)

    listen(hand_on)
    for number in received:
        child.send_signal(number)
    code = child.wait()
    return code if code >= 0 else 128 - code


def listen(handler: Callable[[int, object], None]) -> None:
    """Handle the signals that end a run, but not those that our caller ignores (nohup)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def run(needs: list[str], wants: list[str], command: list[str]) -> int:
    """Make the needs available, the wants if possible, run CMD; CMD's exit code."""
    received: list[int] = []  # only noted, so that no server is forgotten while it starts
    listen(lambda number, frame: received.append(number))
    environment = dict(os.environ)
    given = {name for name in VARIABLES.values() if os.environ.get(name)}
    wanted = [need for need in needs if VARIABLES.get(need) not in given]
    for need in set(needs) - set(wanted):
        name = VARIABLES[need]
        if reason := trouble(need, os.environ[name]):
            raise StopError(f"{name} is set, but {reason}: start it, correct or unset {name}.")
    if missing := [need for need in wanted if find(need) is None]:
        install(missing)
    if missing := [want for want in wants if find(want) is None]:
        try:
            install(missing)
        except StopError as reason:
            say(f"going on without {', '.join(missing)}: {reason}")
    with ExitStack() as stack:
        for need in [name for name in STARTERS if name in wanted]:
            if received:
                raise StopError("stopped before the command ran.", 128 + received[0])
            if (program := find(need)) is None:
                raise StopError(f"{PACKAGES[need]} is installed, but its program is not found.")
            # Root's own TMPDIR may be closed to the account that PostgreSQL runs as.
            base = "/tmp" if os.geteuid() == 0 else None
            home = Path(tempfile.mkdtemp(prefix="gateway-services-", dir=base))
            stack.callback(shutil.rmtree, home, ignore_errors=True)
            if need == "postgres":
                url = start_postgres(stack, program, home)
            elif need == "redis":
                url = start_redis(stack, program, home)
            else:
                url = start_pgbouncer(stack, program, home, environment[VARIABLES["postgres"]])
            environment[VARIABLES[need]] = url
        return run_command(command, environment, received)


def doctor() -> int:
    """Print what a run would use."""
    for need, package in PACKAGES.items():
        found = find(need) or f"missing; package {package}{' (run installs it)' * can_install()}"
        if url := os.environ.get(VARIABLES.get(need, "")):
            found = f"{VARIABLES[need]} is set: {trouble(need, url) or 'answers'}"
        print(f"{need:<9} {found}")
    return 0


def main(arguments: list[str]) -> int:
    """The command line."""
    at = arguments.index("--") if "--" in arguments else len(arguments)
    command = arguments[at + 1 :]
    parser = argparse.ArgumentParser(usage="services.py doctor | run [--need LIST] -- CMD…")
    parser.add_argument("action", choices=["doctor", "run"])
    parser.add_argument("--need", default="postgres,redis", help=f"of {', '.join(PACKAGES)}")
    parser.add_argument("--want", default="", help="the same, but CMD runs without it too")
    options = parser.parse_args(arguments[:at])
    needs, wants = options.need.split(","), options.want.split(",") if options.want else []
    if unknown := {*needs, *wants} - PACKAGES.keys():
        parser.error(f"only {', '.join(PACKAGES)} are known, not {', '.join(unknown)}")
    if options.action == "run" and not command:
        parser.error("the command to run is missing after --")
    try:
        return doctor() if options.action == "doctor" else run(needs, wants, command)
    except (StopError, OSError, LookupError) as end:
        say(str(end))
        return end.code if isinstance(end, StopError) else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
