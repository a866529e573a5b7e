"""`/api/v1/scanners`: ClamAV and Rspamd, as far as they answer, and only where we may ask."""

from __future__ import annotations

import json
import socketserver
import threading

import pytest

from accounts.tests.shapes import refusal
from robin.models import Document
from robin.redaction import REDACTED
from robin.tests.contracts import SCANNER_STATUS, SCANNER_TEST, holds

STAT = {"version": "3.8.1", "uptime": 7, "scanned": 40, "spam_count": 3, "ham_count": 37}


class Listener(socketserver.ThreadingTCPServer):
    """Hands what came, and a file to answer into, to `answer`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, answer):
        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                answer(self.request, self.wfile)

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    @property
    def port(self):
        return self.server_address[1]


def clamd(request, answer):
    assert request.recv(100) == b"zVERSION\0"
    answer.write(b"ClamAV 1.4.2/27500/Mon Nov 23\0")


def web(pages):
    def answer(request, out):
        while head := request.recv(4000).decode():
            path, password = head.split(" ")[1], "Password: letmein" in head
            body = pages.get(path, "")
            body = body if path != "/stat" or password else '{"error": "Unauthorized"}'
            out.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())

    return answer


@pytest.fixture
def listen(settings):
    started = []

    def start(answer, *, is_allowed=True):
        listener = Listener(answer)
        started.append(listener)
        if is_allowed:
            settings.ROBIN_SCANNERS = [f"127.0.0.1:{listener.port}"]
        return listener.port

    yield start
    for listener in started:
        listener.shutdown()
        listener.server_close()


@pytest.fixture
def ada(member, gateway):
    return member("ROLE_ADMIN", by_hand=True)


def keep(name, port, **more):
    content = {"enabled": True, "host": "127.0.0.1", "port": port, "timeout": 1000, **more}
    Document.objects.create(pk=name, content=content, updated_by="ada")


def test_clamav_that_answers(ada, listen):
    keep("clamav", listen(clamd))
    status = ada.get("/api/v1/scanners/clamav/status").json()

    holds(SCANNER_STATUS, status)
    assert (status["status"], status["version"]) == ("UP", "ClamAV 1.4.2/27500/Mon Nov 23")


def test_rspamd_tells_its_counters_to_who_knows_the_password(ada, listen):
    port = listen(web({"/ping": "pong\r\n", "/stat": json.dumps(STAT)}))
    keep("rspamd", port, apiKey="letmein")
    status = ada.get("/api/v1/scanners/rspamd/status").json()
    test = {"config": {"host": "127.0.0.1", "port": port}}
    stranger = ada.post("/api/v1/scanners/rspamd/test", test).json()
    shown = ada.post(
        "/api/v1/scanners/rspamd/test", {"config": {**test["config"], "apiKey": REDACTED}}
    ).json()

    holds(SCANNER_STATUS, status)
    assert (status["scannedTotal"], status["spamCount"], status["hamCount"]) == (40, 3, 37)
    holds(SCANNER_TEST, stranger)
    assert (stranger["success"], "details" in stranger) == (True, False)
    assert shown["details"]["version"] == "3.8.1"


def hangs(request, answer):
    request.recv(100)
    threading.Event().wait(3)


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (hangs, "TIMEOUT"),
        (lambda request, answer: request.recv(100), "ERROR"),
        (web({}), "ERROR"),
        (lambda request, answer: answer.write(b"x" * 100_000), "ERROR"),
        (None, "DOWN"),
    ],
)
@pytest.mark.parametrize("scanner", ["clamav", "rspamd"])
def test_what_can_go_wrong_is_reported(ada, listen, settings, scanner, answer, state):
    port = listen(answer or clamd)
    if answer is None:
        settings.ROBIN_SCANNERS = ["127.0.0.1:1"]
        port = 1
    body = {"config": {"host": "127.0.0.1", "port": port, "timeout": 1000}}
    r = ada.post(f"/api/v1/scanners/{scanner}/test", body)

    holds(SCANNER_TEST, r.json())
    assert r.status_code == 200
    assert not r.json()["success"]
    if (scanner, state) != ("rspamd", "ERROR"):  # over HTTP nothing at all is no connection
        assert r.json()["status"] == state


def test_nowhere_but_where_the_operator_allows(ada, listen):
    came = []
    keep("clamav", listen(lambda *_: came.append(1), is_allowed=False))
    status = ada.get("/api/v1/scanners/clamav/status").json()

    holds(SCANNER_STATUS, status)
    assert status["status"] == "UNKNOWN"
    assert "ROBIN_SCANNERS" in status["error"]
    assert not came


@pytest.mark.parametrize("config", [{"port": 0}, {"host": ""}, {"nothing": 1}, {"timeout": 10**9}])
def test_wrong_settings_are_named(ada, config):
    r = ada.post("/api/v1/scanners/clamav/test", {"config": config})

    assert r.status_code == 422
    assert r.json()["errors"][0]["field"] == next(iter(config))


def test_there_are_two(ada):
    assert refusal(ada.get("/api/v1/scanners/sophos/status")) == (404, "not_found")
    assert refusal(ada.post("/api/v1/scanners/sophos/test", {"config": {}})) == (404, "not_found")
