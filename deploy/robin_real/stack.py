"""The gateway as it is served, with a worker, and nginx with Robin UI before it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psycopg
import redis

from benchmarks.contenders import gateway
from benchmarks.processes import LOOPBACK, BenchError, Child, base_environment, free_port, run_once
from benchmarks.stores import Stores
from deploy import services
from deploy.robin_real.mta import Mta

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "deploy/robin-ui.conf"
PASSWORD = "correct horse battery staple"
WORKERS = 2
START_SECONDS = 180.0


class Gateway:
    """Web processes and a worker, on stores of their own."""

    def __init__(self, stores: Stores, mta: Mta, scratch: Path) -> None:
        contender = gateway(stores, mta.ports.client, WORKERS, scratch)
        self.port, self._contender, self._scratch = contender.port, contender, scratch
        self._stores = stores
        self.url = f"http://{LOOPBACK}:{self.port}"
        (scratch / "metrics").mkdir(exist_ok=True)
        self.env = base_environment() | {
            **contender.env,
            "ROBIN_CLIENT_API_URL": mta.client_url,
            "ROBIN_SERVICE_API_URL": mta.service_url,
            "ROBIN_CLIENT_API_TOKEN": mta.token,
            "ROBIN_SERVICE_API_TOKEN": mta.token,
            "PROMETHEUS_MULTIPROC_DIR": str(scratch / "metrics"),
            "TRUSTED_PROXY_HOPS": "1",
            "HTTPS_ONLY": "false",
            "LOGIN_RATE_LIMIT_PER_MINUTE": "60",  # one person here signs in for each check
            "LOG_LEVEL": "WARNING",
            "TMPDIR": str(scratch),
        }
        self.children: list[Child] = []

    def prepare(self) -> None:
        """Its tables, and who signs in to Robin UI."""
        for command in self._contender.prepare:
            run_once(command, self.env, self._contender.cwd, 240)
        people = [sys.executable, "-m", "deploy.robin_real.people", PASSWORD]
        run_once(people, self.env, ROOT, 120)

    def start(self, *, nicer: int = 0, **environment: str) -> None:
        """`nicer` lets it step back behind Robin, as where the two do not share their cores."""
        env = self.env | environment
        for name, command in (("web", self._contender.serve), ("worker", self._contender.worker)):
            log = self._scratch / f"gateway-{name}.log"
            nice = ["nice", "-n", str(nicer), *command]
            self.children.append(Child(f"the gateway's {name}", nice, env, ROOT, log))
        self.children[0].wait_ready(self.port, "/health/live", START_SECONDS)

    def stop(self) -> None:
        for child in self.children:
            child.stop(20)
        self.children.clear()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """All its processes stand still: nobody watches."""
        pids = [pid for child in self.children for pid in child.pids()]
        self._signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(pids, signal.SIGCONT)

    def _signal(self, pids: list[int], number: signal.Signals) -> None:
        for pid in pids:
            os.kill(pid, number)

    def forget_rest(self) -> None:
        """As if Robin had rested since its last list."""
        with redis.from_url(self._stores.redis_url) as store:
            for key in store.scan_iter("gw:queue:*:turn:rest"):
                store.delete(key)

    def cpu_seconds(self) -> float:
        return sum(child.cpu_seconds() for child in self.children)

    def rss_bytes(self) -> int:
        """Of the largest of its web processes."""
        return max(process.rss_bytes for process in self.children[0].usage())

    def audited(self, action: str) -> int:
        """Lines of the audit trail."""
        with psycopg.connect(self._stores.database_url) as connection:
            query = "SELECT count(*) FROM accounts_auditevent WHERE action = %s"
            row = connection.execute(query, [action]).fetchone()
        return int(row[0]) if row else 0

    def signed_in(self, email: str) -> httpx.Client:
        client = httpx.Client(base_url=self.url, timeout=60, trust_env=False)
        body = {"username": email, "password": PASSWORD}
        answer: Any = client.post("/api/v1/auth/login", json=body).raise_for_status().json()
        client.headers["Authorization"] = f"Bearer {answer['tokens']['accessToken']}"
        return client


def certificate(folder: Path, host: str) -> tuple[Path, Path]:
    """A self-signed one for a day: the certificate's file and its key's."""
    key, cert = folder / "tls.key", folder / "tls.crt"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", f"/CN={host}"]
    command += ["-addext", f"subjectAltName=DNS:{host},IP:127.0.0.1"]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def nginx_file(scratch: Path, *, listen: str, gateway: str, ui: Path) -> str:
    """A whole configuration around the file that the guide hands out, with its places changed."""
    text = OURS.read_text()
    places = {"listen 8080": f"listen {listen}", "gateway:8000": gateway}
    for theirs, here in {**places, "/usr/share/nginx/html": str(ui)}.items():
        text = text.replace(theirs, here)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temp = "\n".join(f"  {kind}_temp_path {scratch}/{kind};" for kind in kinds)
    return f"""daemon off;
pid {scratch}/nginx.pid;
error_log {scratch}/error.log;
worker_processes 1;
events {{}}
http {{
  include /etc/nginx/mime.types;
  access_log {scratch}/access.log;
{temp}
{text}}}
"""


class Front:
    """nginx: Robin UI and, on the same origin, the gateway; on http or, `is_tls`, on https."""

    def __init__(self, ui: Path, gateway_port: int, scratch: Path, *, is_tls: bool) -> None:
        self.port = free_port()
        self.url = f"{'https' if is_tls else 'http'}://{LOOPBACK}:{self.port}"
        program = services.find("nginx")
        if program is None:
            raise BenchError("nginx is not installed (Debian: apt-get install nginx).")
        scratch.mkdir()
        listen = f"{LOOPBACK}:{self.port}"
        if is_tls:
            cert, key = certificate(scratch, "mail.example.com")
            listen += f" ssl; ssl_certificate {cert}; ssl_certificate_key {key}"
        file, gateway = scratch / "nginx.conf", f"{LOOPBACK}:{gateway_port}"
        file.write_text(nginx_file(scratch, listen=listen, gateway=gateway, ui=ui))
        # Its workers are nobody's, and the folder of a run is its owner's alone.
        command = [str(program), "-p", str(scratch), "-c", str(file)]
        if os.geteuid() == 0:
            command += ["-g", "user root;"]
        self.child = Child("nginx", command, base_environment(), scratch, scratch / "nginx.out")
        wait_for_page(self.child, self.url, 10)

    def stop(self) -> None:
        self.child.stop()


class Development:
    """Robin UI's own development server, `ng serve`, with the proxy that the guide names."""

    def __init__(self, checkout: Path, gateway_port: int, scratch: Path) -> None:
        port = free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        target = f"http://{LOOPBACK}:{gateway_port}"
        proxy = {"/api": {"target": target, "secure": False, "changeOrigin": False}}
        file = scratch / "proxy.conf.json"
        file.write_text(json.dumps(proxy))
        command = ["npx", "ng", "serve", "--host", LOOPBACK, "--port", str(port)]
        command += ["--proxy-config", str(file), "--live-reload=false", "--watch=false"]
        env = {**base_environment(), "NG_CLI_ANALYTICS": "false"}
        self.child = Child("ng serve", command, env, checkout, scratch / "ng-serve.log")
        wait_for_page(self.child, self.url, 240)

    def stop(self) -> None:
        self.child.stop()


def wait_for_page(child: Child, url: str, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and child.process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(url, verify=False, trust_env=False).status_code == 200:
                return
        time.sleep(0.2)
    raise BenchError(f"{child.name} does not serve Robin UI:\n{child.log_tail()}")


@contextmanager
def sink(scratch: Path, port: int, seconds: float) -> Iterator[Path]:
    """A mail server that takes what it gets at that port; the file that says what it took."""
    file = scratch / "taken.txt"
    command = [sys.executable, "-m", "deploy.robin_real.sink", str(port), str(file), str(seconds)]
    child = Child("the sink", command, base_environment(), ROOT, scratch / "sink.log")
    try:
        yield file
    finally:
        child.stop()
