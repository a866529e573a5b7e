"""What `make robin-real` is made of, as far as it can be tried without a Robin."""

from __future__ import annotations

import json
import smtplib
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from benchmarks.processes import free_port
from deploy import services
from deploy.robin_real import build, checks, deliveries, mta, sink, stack
from deploy.robin_real.build import Missing
from deploy.robin_real.table import Table
from gateway_project.tests.loop_thread import LoopThread
from robin.logs import parsing


@pytest.fixture
def taken(tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """The port of a sink, and the file of what it took."""
    port, file = free_port(), tmp_path / "taken.txt"
    thread, ours = LoopThread("sink"), sink.Sink(file)
    server = thread.run(ours.start(port))
    yield port, file
    thread.loop.call_soon_threadsafe(server.close)
    thread.close()
    ours.close()


def test_the_sink_does_what_a_domain_says(taken: tuple[int, Path]) -> None:
    port, file = taken
    with smtplib.SMTP("127.0.0.1", port) as server:
        refused = server.sendmail(
            "a@north.example",
            [f"a@{sink.TAKEN}", f"b@{sink.LATER}", f"c@{sink.NEVER}"],
            "Subject: x\r\n\r\n.\r\n..\r\nhello",
        )
        assert {who: code for who, (code, _) in refused.items()} == {
            f"b@{sink.LATER}": 451,
            f"c@{sink.NEVER}": 550,
        }
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            server.sendmail("a@north.example", [f"c@{sink.NEVER}"], "x")
        assert server.docmd("BOGUS")[0] == 502
        assert server.docmd("DATA")[0] == 503
    [(at, recipient)] = sink.taken(file)
    assert recipient == f"a@{sink.TAKEN}"
    assert time.time() - at < 60
    assert deliveries.span(sink.taken(file), at - 1, at + 1).rate == 0.5


def test_the_sink_takes_nothing_of_who_hangs_up(taken: tuple[int, Path]) -> None:
    port, file = taken
    server = smtplib.SMTP("127.0.0.1", port)
    server.ehlo()
    server.mail("a@north.example")
    server.rcpt(f"a@{sink.TAKEN}")
    server.docmd("DATA")
    server.sock.sendall(b"half a mail\r\n")
    server.close()
    with smtplib.SMTP("127.0.0.1", port) as again:
        again.noop()  # it goes on
    assert sink.taken(file) == []


def test_a_watched_round_is_counted_from_list_to_list(tmp_path: Path) -> None:
    """A round that begins with a list, and ends anywhere, would count too many of them."""

    class Asked:
        def lists_asked(self, since: float) -> list[float]:
            return [10.0, 10.3, 40.0, 70.0]  # two of the first turn

    file = tmp_path / "taken.txt"
    resting = [n / 10 for n in range(1000) if n / 10 % 30 >= 10 + 3 or n / 10 % 30 < 10]
    file.write_text("".join(f"{at:.3f} a@{sink.TAKEN}\n" for at in resting))
    found = deliveries.Rounds(
        [deliveries.Span(30.0, 300)],
        [deliveries._watched(Asked(), file, 9.0)],  # type: ignore[arg-type]
        [200 << 20, 214 << 20, 203 << 20],
    )
    assert found.grown_bytes == 14 << 20
    [one] = found.watched
    assert (one.seconds, one.mails, one.lists) == (60.0, 540, 2)
    assert one.still_seconds == pytest.approx(6.2, abs=0.2)
    assert found.share == pytest.approx(0.9)
    assert found.between == pytest.approx(1.0, abs=0.01)
    assert "90 %, 2 lists in 60 s" in found.text()


@pytest.mark.parametrize("kind", ["mapdb", "pgsql"])
def test_settings_are_of_this_run_alone(kind: mta.Kind, tmp_path: Path) -> None:
    ports = mta.Ports()
    files = mta.settings_files(
        tmp_path,
        ports,
        "s3cret",
        kind=kind,
        database_url="postgresql://ada:pw@127.0.0.1:5433/robin",
        start_seconds=7,
    )
    read = {name: json.loads(text) for name, text in files.items() if name.endswith(".json5")}
    server, queue = read["server.json5"], read["queue.json5"]
    assert len({*vars(ports).values()}) == 3
    assert server["smtpPort"] == ports.smtp
    assert {server["securePort"], server["submissionPort"]} == {0}
    for name, port in (("api", ports.client), ("service", ports.service)):
        assert server[name] == {"port": port, "authType": "bearer", "authValue": "s3cret"}
    assert queue["startDelaySeconds"] == 7
    on = [name for name, one in queue.items() if isinstance(one, dict) and one.get("enabled")]
    assert on == [{"mapdb": "queueMapDB", "pgsql": "queuePgSQL"}[kind]]
    assert queue["queuePgSQL"]["jdbcUrl"] == "jdbc:postgresql://127.0.0.1:5433/robin"
    assert queue["queuePgSQL"]["username"] == "ada"
    paths = (queue["queueMapDB"]["queueFile"], read["storage.json5"]["path"])
    assert all(path.startswith(str(tmp_path)) for path in paths)
    assert f'filePattern="{tmp_path}/log/%d{{yyyyMMdd}}.log"' in files["log4j2.xml"]


def test_a_check_that_breaks_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table()
    assert not table.is_ok  # nothing was seen
    with table.check("3", "good | better") as row:
        row.found("two\nlines", True)
    with table.check("3", "a figure") as row:
        row.found("5 s", None)
    assert table.is_ok
    with table.check("4", "breaks") as row:
        row.found("fine so far", True)
        raise ValueError("and then not")
    with table.check("4", "forgot to say"):
        pass
    assert not table.is_ok
    assert table.text().splitlines()[2:] == [
        "| 3 | good \\| better | two lines | ok |",
        "| 3 | a figure | 5 s | - |",
        "| 4 | breaks | ValueError: and then not | NO |",
        "| 4 | forgot to say | not run to its end | NO |",
    ]
    assert capsys.readouterr().out.count("NO") == 2


def jdk(folder: Path, version: str) -> Path:
    program = folder / "bin/javac"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho javac {version}\n")
    program.chmod(0o755)
    return folder


def test_what_is_missing_is_said_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "JAVA_FOLDERS", tmp_path / "jvm")
    nothing = {"PATH": str(tmp_path)}
    with pytest.raises(Missing, match=r"JDK, 21 or newer, and no JDK was found.*apt-get install"):
        build.find_jdk(nothing)
    jdk(tmp_path / "jvm/old", "17.0.1")
    with pytest.raises(Missing, match=r"old is 17.*JAVA_HOME="):
        build.find_jdk(nothing)
    jdk(tmp_path / "jvm/new", "25.0.3")
    assert build.find_jdk(nothing).version == 25
    named = {**nothing, "JAVA_HOME": str(tmp_path / "jvm/old")}
    with pytest.raises(Missing, match="is 17"):  # what somebody names is taken, or refused
        build.find_jdk(named)
    with pytest.raises(Missing, match=r"no mvn here.*Install it"):
        build.check_maven(nothing)
    with pytest.raises(Missing, match=r"Node 20 or newer with npm, and none was found"):
        build.check_node(nothing)
    node = tmp_path / "node"
    for name in ("node", "npm"):
        (tmp_path / name).write_text("#!/bin/sh\necho v18.1.0\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(Missing, match="here is v18"):
        build.check_node(nothing)
    node.write_text("#!/bin/sh\necho v22.1.0\n")
    build.check_node(nothing)
    with pytest.raises(Missing, match=r"has no pom\.xml.*git clone \S+/transilvlad/robin"):
        build.check_checkout(tmp_path, "pom.xml", "transilvlad/robin")


def test_a_font_that_cannot_be_fetched_leaves_the_page() -> None:
    page = (
        '<head>\n  <link rel="icon" href="a.svg">\n'
        '  <link rel="preconnect" href="https://fonts.gstatic.com" crossorigin>\n'
        '  <link href="https://fonts.googleapis.com/css2?family=Inter" rel="stylesheet">\n</head>'
    )
    assert build.FONT_LINK.sub("", page) == '<head>\n  <link rel="icon" href="a.svg">\n</head>'


def test_the_long_log_is_as_robin_writes_it(tmp_path: Path) -> None:
    class Somewhere:
        def log_of(self, day: datetime) -> Path:
            return tmp_path / f"{day:%Y%m%d}.log"

    now = datetime(2026, 3, 1, 1, tzinfo=UTC)
    lines = checks.write_log(Somewhere(), 4 << 20, now, hours=2)  # type: ignore[arg-type]
    content = b"".join(path.read_bytes() for path in sorted(tmp_path.iterdir()))
    assert {path.name for path in tmp_path.iterdir()} == {"20260228.log", "20260301.log"}
    assert 3 << 20 < len(content) < 5 << 20
    found = [*parsing.entries(content, now=now, zone=UTC)]
    assert len(found) == lines == content.count(b"\n")
    assert {entry.level for entry in found} == {"ERROR", "WARN", "INFO"}
    assert 1 <= sum(checks.NEEDLE in entry.message for entry in found) < 10


class Echo(BaseHTTPRequestHandler):
    """Says what reached it."""

    def do_GET(self) -> None:
        seen = {"path": self.path, **{k.lower(): v for k, v in self.headers.items()}}
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, args=[0.01])
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("is_tls", [False, True])
def test_nginx_serves_robin_ui_and_the_gateway(is_tls: bool, echo: int, tmp_path: Path) -> None:
    if services.find("nginx") is None:
        pytest.skip("needs nginx: `make test` installs it on Debian as root")
    ui = tmp_path / "ui"
    ui.mkdir()
    (ui / "index.html").write_text("<app-root>")
    (ui / "main.0123456789abcdef.js").write_text("1")
    front = stack.Front(ui, echo, tmp_path / "nginx", is_tls=is_tls)
    try:
        with httpx.Client(base_url=front.url, verify=False, trust_env=False) as client:
            # Its pages are one page, whatever their address.
            for path in ("/", "/dashboard", "/email/queue", "/monitoring/logs", "/settings/users"):
                answer = client.get(path)
                assert answer.text == "<app-root>", path
                assert answer.headers["cache-control"] == "no-cache"
            assert client.get("/main.0123456789abcdef.js").text == "1"
            # What its production build asks for without /api/v1, and what it asks for with it.
            asked = {
                "/queue/json?page=0&size=50": "/api/v1/queue/json?page=0&size=50",
                "/storage/?path=%2Fa%252Fb%2B": "/api/v1/storage/?path=%2Fa%252Fb%2B",
                "/logs": "/api/v1/logs",
                "/config/clamav": "/api/v1/config/clamav",
                "/health/aggregate": "/api/v1/health/aggregate",
                "/blocklist?page=0": "/api/v1/blocklist?page=0",
                "/scanners/rspamd/status": "/api/v1/scanners/rspamd/status",
                "/metrics/queue": "/api/v1/metrics/queue",
                "/api/v1/auth/me": "/api/v1/auth/me",
                "/ws/queue": "/ws/queue",
            }
            for path, wanted in asked.items():
                seen = client.get(path).json()
                assert seen["path"] == wanted
                assert seen["host"] == urlsplit(front.url).netloc  # with its port
                assert seen["x-forwarded-for"] == "127.0.0.1"
                assert seen["x-forwarded-proto"] == ("https" if is_tls else "http")
            upgrade = {"Upgrade": "websocket", "Connection": "upgrade"}
            seen = client.get("/ws/queue", headers=upgrade).json()
            assert (seen["upgrade"], seen["connection"]) == ("websocket", "upgrade")
    finally:
        front.stop()
