"""An installation on several hosts, as `make chaos` breaks it: each host a loopback address.

Two gateways behind haproxy, two workers, PostgreSQL behind pgbouncer in transaction mode, two Redis
watched by three sentinels. Everything is started here, and nothing else is touched.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack

import httpx

from benchmarks.contenders import ROOT, gateway
from benchmarks.processes import BenchError, Child, base_environment
from benchmarks.stores import Stores
from deploy import services
from deploy.stores import Postgres, RedisPair, folder, free_port, program, wait_for

PROXY = "127.0.0.2"
GATEWAYS = ("127.0.0.11", "127.0.0.12")
RECEIVER = "127.0.0.41"
DRAIN_SECONDS = 2
HAPROXY = """
global
    maxconn 1000
defaults
    mode http
    option forwardfor
    option redispatch 1
    retries 3
    retry-on conn-failure
    timeout connect 1s
    timeout client 75s
    timeout server 75s
frontend gateway
    bind {proxy}:{port}
    default_backend gateways
backend gateways
    balance leastconn
    option httpchk GET /health/ready
    http-check expect status 200
    default-server check inter 500ms fall 2 rise 1
"""


class Installation:
    """`url` is the proxy's. Processes are started and ended one by one."""

    def __init__(self, stack: ExitStack, engine_port: int, **settings: str) -> None:
        self.scratch = folder(stack)
        self.postgres = Postgres(stack)
        home = folder(stack)
        pooler = services.start_pgbouncer(stack, program("pgbouncer"), home, self.postgres.url)
        self.redis = RedisPair(stack)
        stores = Stores(f"{pooler}/gateway", self.redis.url)
        known = gateway(stores, engine_port, 1, self.scratch)
        self.known = known
        self.env = base_environment() | dict(known.env) | settings
        self.env |= {
            "ALLOWED_HOSTS": "127.0.0.1," + ",".join((PROXY, *GATEWAYS)),
            "DRAIN_SECONDS": str(DRAIN_SECONDS),
            "HTTPS_ONLY": "false",
            "TRUSTED_PROXY_HOPS": "1",
            "WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
        }
        for command in known.prepare:
            done = subprocess.run(command, env=self.env, cwd=ROOT, capture_output=True, text=True)
            if done.returncode:
                raise BenchError(done.stdout + done.stderr)
        self.ports = {host: free_port(host) for host in GATEWAYS}
        self.running: dict[str, Child] = {}
        stack.callback(self._stop_all)
        for host in GATEWAYS:
            self.start_gateway(host, wait=False)
        for number in (1, 2):
            self.start_worker(number)
        for host in GATEWAYS:
            self.wait_ready(host)
        self.url = self._start_proxy(stack)

    def start_gateway(self, host: str, *, wait: bool = True) -> None:
        env = {"HOST": host, "PORT": str(self.ports[host])}
        self._start(host, self.known.serve, env)
        if wait:
            self.wait_ready(host)

    def wait_ready(self, host: str) -> None:
        url = f"http://{host}:{self.ports[host]}/health/ready"
        wait_for(f"the gateway at {host}", lambda: httpx.get(url).status_code == 200)

    def start_worker(self, number: int) -> None:
        name = f"worker{number}"
        celery = (sys.executable, "-m", "celery", "-A", "gateway_project", "worker")
        options = ("--pool=threads", "--concurrency=4")
        self._start(name, (*celery, *options, f"--hostname={name}@chaos"), {})

    def kill(self, name: str) -> None:
        """All of its processes at once."""
        process = self.running[name].process
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def stop(self, name: str) -> int:
        """As an orchestrator does; its exit code."""
        process = self.running[name].process
        process.terminate()
        return process.wait(60)

    def log_of(self, name: str) -> str:
        return self.running[name].log_tail()

    def _start(self, name: str, command: tuple[str, ...], env: Mapping[str, str]) -> None:
        metrics = {"PROMETHEUS_MULTIPROC_DIR": str(self.scratch / f"metrics-{name}")}
        number = sum(1 for _ in self.scratch.glob(f"{name}.*.log"))
        log = self.scratch / f"{name}.{number}.log"
        self.running[name] = Child(name, command, self.env | metrics | env, ROOT, log)

    def _start_proxy(self, stack: ExitStack) -> str:
        port = free_port(PROXY)
        text = HAPROXY.format(proxy=PROXY, port=port)
        for number, host in enumerate(GATEWAYS):
            text += f"    server gateway{number} {host}:{self.ports[host]}\n"
        config = self.scratch / "haproxy.cfg"
        config.write_text(text)
        command = [str(program("haproxy")), "-db", "-f", str(config)]
        log = self.scratch / "haproxy.log"
        proxy = Child("haproxy", command, base_environment(), self.scratch, log)
        stack.callback(proxy.stop)
        url = f"http://{PROXY}:{port}"
        wait_for("haproxy", lambda: httpx.get(f"{url}/health/ready").status_code == 200)
        return url

    def _stop_all(self) -> None:
        for child in self.running.values():
            child.stop(20)
