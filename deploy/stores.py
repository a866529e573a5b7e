"""PostgreSQL and Redis as they run in earnest: restarted, failed over, in several parts.

`services.py` has the ones that come and go with a command. These survive being killed: they really
write. Each is on loopback addresses of its own, and gone when its stack closes.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

from deploy import services

LOOPBACK = "127.0.0.1"
PAIR = ("127.0.0.21", "127.0.0.22")
SENTINELS = ("127.0.0.31", "127.0.0.32", "127.0.0.33")
NAME = "gateway"  # of the primary, as sentinels know it
START_SECONDS = 60.0


def wait_for(what: str, condition: Callable[[], Any], seconds: float = START_SECONDS) -> Any:
    """What the condition gives, once it gives something. Raises `StopError` when it is too late."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, redis.RedisError, psycopg.Error, OSError):
            if found := condition():
                return found
        time.sleep(0.1)
    raise services.StopError(f"{what}: not within {seconds:.0f} s")


def program(name: str) -> Path:
    found = services.find(name)
    if found is None:
        raise services.StopError(f"please install {services.PACKAGES[name]} first")
    return found


def free_port(host: str = LOOPBACK) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def folder(stack: ExitStack) -> Path:
    # Root's own TMPDIR may be closed to the account that PostgreSQL runs as.
    path = Path(tempfile.mkdtemp(prefix="stores-", dir="/tmp" if os.geteuid() == 0 else None))
    stack.callback(shutil.rmtree, path, ignore_errors=True)
    return path


class Postgres:
    """One that survives being restarted, and a kill: it really writes."""

    OPTIONS = ("max_connections=100", "listen_addresses=127.0.0.1", "shared_buffers=64MB")

    def __init__(self, stack: ExitStack, home: Path | None = None) -> None:
        """`home`: a folder that stays, with what was in it."""
        self.home = home or folder(stack)
        self._program = program("postgres")
        if os.geteuid() == 0:
            shutil.chown(self.home, "postgres")
        self._options = services.own_options(self.home)
        self.port = free_port()
        self.url = f"postgresql://postgres@127.0.0.1:{self.port}/gateway"
        is_new = not (self.home / "data").exists()
        if is_new:
            data = ("-D", str(self.home / "data"))
            self._tool("initdb", *data, "-U", "postgres", "-A", "trust", "-E", "UTF8")
        self.start()
        stack.callback(self.stop)
        if is_new:
            self.create("gateway")

    def create(self, database: str) -> None:
        self._tool("createdb", "-h", LOOPBACK, "-p", str(self.port), "-U", "postgres", database)

    def _tool(self, name: str, *arguments: str) -> None:
        services.must_succeed([str(self._program.parent / name), *arguments], **self._options)

    def start(self) -> None:
        options = [f"--{one}" for one in (*self.OPTIONS, f"unix_socket_directories={self.home}")]
        command = [str(self._program), "-D", f"{self.home}/data", "-p", str(self.port), *options]
        with (self.home / "log").open("ab") as log:
            self.process: subprocess.Popen[bytes] = subprocess.Popen(
                command, stdout=log, stderr=log, **self._options
            )
        wait_for("PostgreSQL", self._answers)

    def _answers(self) -> bool:
        maintenance = self.url.removesuffix("gateway") + "postgres"
        with psycopg.connect(maintenance, connect_timeout=2) as connection:
            return connection.execute("SELECT 1").fetchone() is not None

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """By `SIGINT` as `systemctl restart` does: transactions are cut, nothing is lost."""
        services.stop(self.process, how)


class RedisPair:
    """Two, of which the sentinels make one the primary; `url` names the sentinels."""

    def __init__(self, stack: ExitStack) -> None:
        self.ports = {host: free_port(host) for host in PAIR}
        self._home = folder(stack)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        stack.callback(self._stop_all)
        first, second = PAIR
        self.start(first)
        self.start(second, "--replicaof", first, str(self.ports[first]))
        sentinels = [(host, free_port(host)) for host in SENTINELS]
        for host, port in sentinels:
            self._start_sentinel(host, port)
        places = ",".join(f"{host}:{port}" for host, port in sentinels)
        self.url = f"redis+sentinel://{places}/{NAME}/0"
        self._sentinels = [
            redis.Redis(host, port, socket_timeout=2, decode_responses=True)
            for host, port in sentinels
        ]
        wait_for("the sentinels", lambda: all(self._knows_all(one) for one in self._sentinels))

    def start(self, host: str, *more: str) -> None:
        home = self._home / host
        home.mkdir(exist_ok=True)
        port = str(self.ports[host])
        self._run(
            host,
            "redis-server",
            *("--bind", host, "--port", port, "--dir", str(home)),
            *("--replica-announce-ip", host, "--appendonly", "yes", "--save", ""),
            *("--maxmemory-policy", "noeviction", "--repl-diskless-sync-delay", "0", *more),
        )
        wait_for(f"Redis at {host}", lambda: self.client(host).ping())

    def kill(self, host: str) -> None:
        process = self._running[host]
        process.kill()
        process.wait()

    def client(self, host: str) -> redis.Redis:
        return redis.Redis(host, self.ports[host], socket_timeout=2)

    def primary(self) -> str:
        """Where the sentinels say that it is; the first of them speaks for all."""
        sentinel: Any = self._sentinels[0]
        host, _ = sentinel.sentinel_get_master_addr_by_name(NAME)
        return str(host)

    def has_replica(self) -> bool:
        """Whether the other one follows the primary, with all that it has."""
        facts: Any = self.client(self.primary()).info("replication")
        return bool(facts["connected_slaves"] == 1 and facts["slave0"]["state"] == "online")

    @staticmethod
    def _knows_all(sentinel: Any) -> bool:
        facts = sentinel.sentinel_master(NAME)
        return bool(facts["num-slaves"] == 1 and facts["num-other-sentinels"] == 2)

    def _start_sentinel(self, host: str, port: int) -> None:
        home = self._home / host
        home.mkdir()
        first = PAIR[0]
        (home / "sentinel.conf").write_text(
            f"port {port}\nbind {host}\ndir {home}\nsentinel announce-ip {host}\n"
            f"sentinel monitor {NAME} {first} {self.ports[first]} 2\n"
            f"sentinel down-after-milliseconds {NAME} 1000\n"
            f"sentinel failover-timeout {NAME} 5000\n"
        )
        self._run(host, "redis-server", str(home / "sentinel.conf"), "--sentinel")

    def _run(self, host: str, *command: str) -> None:
        options = services.own_options(self._home)
        with (self._home / f"{host}.log").open("ab") as log:
            self._running[host] = subprocess.Popen(command, stdout=log, stderr=log, **options)

    def _stop_all(self) -> None:
        for process in self._running.values():
            services.stop(process, signal.SIGKILL)


class RedisCluster:
    """Three primaries without replicas, which share the slots."""

    HOSTS = ("127.0.0.51", "127.0.0.52", "127.0.0.53")

    def __init__(self, stack: ExitStack) -> None:
        self.nodes = [(host, free_port(host)) for host in self.HOSTS]
        home = folder(stack)
        for host, port in self.nodes:
            own = home / host
            own.mkdir()
            command = (
                *("redis-server", "--bind", host, "--port", str(port), "--dir", str(own)),
                *("--cluster-enabled", "yes", "--cluster-announce-ip", host, "--save", ""),
                *("--cluster-port", str(free_port(host)), "--cluster-node-timeout", "2000"),
            )
            with (home / f"{host}.log").open("ab") as log:
                options = services.own_options(home)
                process = subprocess.Popen(command, stdout=log, stderr=log, **options)
            stack.callback(services.stop, process, signal.SIGKILL)
            wait_for(f"Redis at {host}", redis.Redis(host, port).ping)
        places = [f"{host}:{port}" for host, port in self.nodes]
        make = ["redis-cli", "--cluster", "create", *places, "--cluster-yes"]
        wait_for("the cluster", lambda: not subprocess.run(make, capture_output=True).returncode)
        wait_for("its slots", self._is_whole)

    def _is_whole(self) -> bool:
        nodes: list[Any] = [redis.Redis(*node) for node in self.nodes]
        return all(node.cluster("info")["cluster_state"] == "ok" for node in nodes)
