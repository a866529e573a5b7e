"""Stopping, as an orchestrator and a proxy see it: not ready first, nothing refused or lost."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import uvicorn

from accounts.models import UsageLog
from accounts.usage import stream
from deploy import services
from gateway_project.server.handshakes import allow_handshakes
from gateway_project.server.web_process import Server
from gateway_project.tests.served import Served, free_port, wait_until

CLIENTS = 8
THINK_SECONDS = 0.05  # a saturated machine would only start the gateways more slowly
PER_MINUTE = 1_000_000
# Without `max_fails=0` a gateway that was refused once is left out for ten seconds, and then
# nobody is there when the other one stops.
NGINX = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream gateway {{
        {servers}
        keepalive 16;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://gateway;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
        }}
    }}
}}
"""

pytestmark = pytest.mark.served


@contextmanager
def nginx(folder: Path, *ports: int):
    """A real nginx in front of the gateways on these ports; gives its URL."""
    program = services.find("nginx")
    if program is None:
        pytest.skip("needs nginx: `make test` installs it on Debian as root")
    port = free_port()
    folder.mkdir()
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in ports)
    conf = folder / "nginx.conf"
    conf.write_text(NGINX.format(folder=folder, servers=servers, port=port))
    command = [program, "-p", folder, "-c", conf, "-e", folder / "error.log"]
    with subprocess.Popen(command) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: httpx.get(f"{url}/health/live").status_code == 200)
            yield url
        finally:
            process.terminate()


class Load:
    """Clients that ask for verdicts all the time, each on a connection that it keeps."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url
        self.key = key
        self.request_ids: list[str] = []
        self.failures: list[str] = []
        self._is_over = threading.Event()

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()
        self.goes_on()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        headers = {"X-API-Key": self.key}
        with httpx.Client(headers=headers, timeout=30, trust_env=False) as http:
            while not self._is_over.is_set():
                try:
                    r = http.post(f"{self.url}/v1/detect", json={"text": "hello"})
                except httpx.HTTPError as exc:
                    self.failures.append(repr(exc))
                    continue
                if r.status_code == 200:
                    self.request_ids.append(r.json()["request_id"])
                else:
                    self.failures.append(f"{r.status_code} {r.text}")
                time.sleep(THINK_SECONDS)

    def goes_on(self) -> None:
        """Wait until every client has been answered a few times more."""
        enough = len(self.request_ids) + 10 * CLIENTS
        wait_until(lambda: self.failures or len(self.request_ids) >= enough)


def written() -> list[str]:
    stream.drain()
    rows = UsageLog.objects.filter(endpoint="/v1/detect")
    return sorted(str(request_id) for request_id in rows.values_list("request_id", flat=True))


def events(served: Served) -> list[str]:
    return [line.get("event", "") for line in served.lines()]


def ready(url: str) -> httpx.Response:
    return httpx.get(f"{url}/health/ready", trust_env=False)


@pytest.fixture
def key(make_key, acme):
    acme.rate_limit_per_day = 10_000_000
    acme.save()
    return make_key(rate_limit_per_minute=PER_MINUTE, rate_limit_per_day=10_000_000)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_not_ready_first_then_what_is_in_flight_finishes_and_is_counted(
    serve, engine, key, workers
):
    # So long that only the second signal can end it.
    served = serve(WORKERS=workers, DRAIN_SECONDS="600")
    engine.is_slow(1.0)

    def is_counted(times: int) -> bool:
        limits = httpx.get(f"{served.url}/v1/limits", headers={"X-API-Key": key}).json()
        return limits["policies"][0]["remaining"] == PER_MINUTE - times

    with ThreadPoolExecutor(2) as pool, httpx.Client(base_url=served.url) as kept_alive:
        before = kept_alive.get("/health/live")
        first = pool.submit(served.detect, key)
        wait_until(lambda: is_counted(1))  # so it is in flight

        served.process.send_signal(signal.SIGTERM)
        wait_until(lambda: ready(served.url).status_code == 503)
        draining = ready(served.url)
        late = pool.submit(served.detect, key)
        wait_until(lambda: is_counted(2))
        after = kept_alive.get("/health/live")
        served.process.send_signal(signal.SIGTERM)

        code = served.process.wait(30)
        answers = [first.result(), late.result()]

    assert draining.status_code == 503
    assert draining.json()["checks"] == {"process": "down", "database": "up", "redis": "up"}
    assert (before.status_code, before.headers.get("connection")) == (200, None)
    assert (after.status_code, after.headers["connection"]) == (200, "close")
    assert [(r.status_code, r.json()["source"]) for r in answers] == [(200, "engine")] * 2
    assert [r.headers["connection"] for r in answers] == ["close", "close"]
    assert code == 0
    assert written() == sorted(r.json()["request_id"] for r in answers)


@pytest.mark.slow
def test_gateways_restarted_one_after_the_other_behind_nginx_fail_no_request(serve, key, tmp_path):
    """One of them with a supervisor, for there the last worker closes the port."""
    ports = {"1": str(free_port()), "2": str(free_port())}

    def start(workers: str) -> Served:
        # nginx does not look at /health/ready: without the filter a request could meet the closing.
        return serve(
            workers,
            WORKERS=workers,
            PORT=ports[workers],
            DRAIN_SECONDS="0.5",
            SERVER_CLOSE_FILTER="true",
        )

    with ThreadPoolExecutor() as pool:
        gateways = list(pool.map(start, ports))
    with nginx(tmp_path / "nginx", *ports.values()) as url, Load(url, key) as load:
        for workers in ports:
            gateways[int(workers) - 1].stop()
            gateways.append(start(workers))
            load.goes_on()
    with ThreadPoolExecutor() as pool:
        pool.map(Served.stop, gateways[2:])

    assert load.failures == []
    assert [gateway.process.returncode for gateway in gateways] == [0] * 4
    assert written() == sorted(load.request_ids)


@pytest.mark.slow
def test_sighup_replaces_the_workers_and_fails_no_request(serve, key):
    served = serve(WORKERS="2", DRAIN_SECONDS="600")  # which a worker that retires does without
    not_ready = []

    def are_replaced() -> bool:
        with suppress(httpx.HTTPError):
            not_ready.extend(r.text for r in [ready(served.url)] if r.status_code != 200)
        return events(served).count("process_stopped") == 2

    with Load(served.url, key) as load:
        served.process.send_signal(signal.SIGHUP)
        wait_until(are_replaced)
        load.goes_on()
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: events(served).count("process_started") == 5)
    served.process.send_signal(signal.SIGINT)
    code = served.process.wait(30)

    assert load.failures == []
    assert "Settings are not read again" in served.output()
    assert not_ready == []
    assert events(served).count("process_started") == 5, "a stop waits for no restart under way"
    assert code == 0
    assert written() == sorted(load.request_ids)


@pytest.mark.slow
def test_sighup_reads_the_files_of_secrets_again(serve, tmp_path):
    token = tmp_path / "token"
    token.write_text("old")
    served = serve(WORKERS="2", METRICS_TOKEN_FILE=str(token))

    def scrape(bearer: str) -> int:
        headers = {"Authorization": f"Bearer {bearer}"}
        return httpx.get(f"{served.url}/metrics", headers=headers).status_code

    token.write_text("new")
    before = scrape("old"), scrape("new")
    served.process.send_signal(signal.SIGHUP)
    wait_until(lambda: events(served).count("process_stopped") == 2)

    assert before == (200, 404)
    assert (scrape("old"), scrape("new")) == (404, 200)


@pytest.mark.slow
def test_sigterm_to_one_worker_leaves_the_port_to_the_others(serve, key):
    served = serve(WORKERS="2")
    worker = served.web_workers()[0]

    os.kill(worker, signal.SIGTERM)
    wait_until(lambda: sum(x.get("event") == "process_started" for x in served.lines()) == 3)

    assert {served.detect(key).json()["decision"] for _ in range(10)} == {"allow"}


class TestCloseFilter:
    """A stop of the last process; a second handle keeps the port, to ask it afterwards."""

    def stop(self, listener: socket.socket, *, is_last: bool) -> None:
        async def scenario() -> None:
            server = Server(uvicorn.Config(asgi_app, lifespan="off", log_config=None))
            server.config.load()
            server.lifespan = server.config.lifespan_class(server.config)
            await server.startup(sockets=[listener])
            server._is_last = is_last
            await server.shutdown([listener])

        asyncio.run(scenario())

    @pytest.mark.parametrize(
        ("is_on", "is_last", "begins"),
        [(False, True, True), (True, False, True), (True, True, False)],
        ids=["off", "on, but others go on listening", "on"],
    )
    def test_it_is_attached_only_where_asked_for_and_by_who_goes_for_good(
        self, settings, is_on, is_last, begins
    ):
        settings.SERVER_CLOSE_FILTER = is_on
        with socket.create_server(("127.0.0.1", 0)) as listener, listener.dup() as kept:
            self.stop(listener, is_last=is_last)

            assert can_connect(kept) is begins or sys.platform != "linux"
            allow_handshakes(kept)
            assert can_connect(kept)

    @pytest.mark.parametrize("is_on", [False, True])
    def test_what_the_kernel_has_accepted_is_served_either_way(self, settings, is_on):
        settings.SERVER_CLOSE_FILTER = is_on
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(listener.getsockname()) as client,
        ):
            client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

            self.stop(listener, is_last=True)

            client.settimeout(5)
            assert client.recv(100).startswith(b"HTTP/1.1 204")


async def asgi_app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def can_connect(listener: socket.socket) -> bool:
    """Whether a handshake is answered: the kernel's doing, nobody has to accept."""
    try:
        socket.create_connection(listener.getsockname(), timeout=0.3).close()
    except TimeoutError:
        return False
    return True
