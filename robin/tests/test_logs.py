"""`/api/v1/logs` of a long log, and of one that strangers write in: forgeries, passwords."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest

from accounts.tests.shapes import refusal
from robin.logs import search
from robin.logs.parsing import entries, escaped, redacted

SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\t\x00\x1b\x7f\u202e\u200b"
"""Whatever Python, a browser or a terminal may take for the end of a line, or turn around."""


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


def stamp(at):
    return f"{at:%m%d-%H%M%S}{at.microsecond // 1000:03}"


def line(at, message, *, level="INFO", logger="smtp.Connection"):
    return f"{level:5}|{stamp(at)}|thread-1|{logger}||||{message}"


def write(robin, *lines):
    """Into the files of the days that stand in them."""
    for one in lines:
        day = one.split("|")[1][:4]
        file = next(name for name in robin.seed.log if name.endswith(day))
        robin.seed.log[file].append(one)


def now():
    return datetime.now(UTC)


def asked(robin):
    return [path.partition("=")[2] for _, path in robin.client.asked if path.startswith("/logs")]


class TestForgeries:
    @pytest.mark.hostile
    @pytest.mark.parametrize("sign", SEPARATORS, ids=lambda sign: f"U+{ord(sign):04X}")
    def test_one_line_of_robin_is_one_entry(self, ada, robin, sign):
        at = now()
        forged = line(at, "root logged in", level="ERROR", logger="auth.Forged")
        write(robin, line(at, f"<< MAIL FROM:<mark{sign}{forged}> SIZE=9"))

        for query in ("search=mark", "level=ERROR", ""):
            found = ada.get(f"/api/v1/logs?limit=1000&{query}").json()["entries"]
            assert "auth.Forged" not in {entry["logger"] for entry in found}
            text = ada.get(f"/api/v1/logs/export?{query}").text
            assert all(part[:4].isdigit() for part in text.splitlines())
        (entry,) = ada.get("/api/v1/logs?search=mark").json()["entries"]
        assert entry["message"] == f"<< MAIL FROM:<mark{escaped(sign)}{forged}> SIZE=9"
        assert entry["message"].isprintable()

    def test_every_sign_that_ends_a_line_somewhere(self):
        # Not a list of those that are known: all there are.
        ends = [chr(n) for n in range(0x110000) if len(f"a{chr(n)}b".splitlines()) > 1]
        for sign in ends:
            if sign == "\n":
                continue
            text = line(datetime(2026, 11, 23, 9, tzinfo=UTC), f"a{sign}b")
            (entry,) = entries(text.encode(), now=datetime(2026, 11, 23, 10, tzinfo=UTC), zone=UTC)
            assert entry.message == f"a{escaped(sign)}b"
            assert len(entry.line().splitlines()) == 1


SASL = b64encode(b"\0bob\0hunter2-is-secret").decode()
USER, PASSWORD = b64encode(b"bob").decode(), b64encode(b"hunter2-is-secret").decode()


class TestCredentials:
    @pytest.mark.hostile
    @pytest.mark.parametrize(
        "message",
        [
            f"<< AUTH PLAIN {SASL}",
            f"<< auth plain {SASL}",
            f"<< AUTH  PLAIN\t{SASL}",
            f"<< AUTH\x0bPLAIN {SASL}",
            f"<< AUTH LOGIN {USER}",
            f"<< AUTH XOAUTH2 {SASL}",
            f"<< AUTH {SASL} PLAIN",
            f">> AUTH PLAIN {SASL}",
            f"<< {SASL}",
            f"<< {USER}",
            f"<< {PASSWORD}",
            "<< hunter2-is-secret",
            "<< my hunter2-is-secret",
            f"Received AUTH CRAM-MD5 {SASL}",
            f"Client said {SASL}",
            "login with password=hunter2-is-secret failed",
            'body {"username":"bob","password":"hunter2-is-secret"}',
            "config passwd: hunter2-is-secret",
            "Authorization: Bearer hunter2-is-secret",
            "connecting to postgres://bob:hunter2-is-secret@db/robin",
            "calling https://hook.example/x?api_key=hunter2-is-secret&n=1",
            f"AUTH\t1\tPLAIN\tservice=smtp\tresp={SASL}",
        ],
    )
    def test_what_robin_logs_of_them_is_not_shown(self, ada, robin, message):
        secrets = (SASL, PASSWORD, "hunter2")
        write(robin, line(now(), message))

        for path in ("logs?limit=1000", "logs/export", "logs/export?format=json"):
            text = ada.get(f"/api/v1/{path}").text
            assert not [secret for secret in secrets if secret in text]
        # Nor can it be guessed letter by letter.
        for secret in (*secrets, "hunter"):
            found = ada.get("/api/v1/logs", params={"search": secret}).json()
            assert (found["entries"], found["total"]) == ([], 0)

    @pytest.mark.parametrize(
        "message",
        [
            "<< EHLO mx.example",
            "<< MAIL FROM:<ann@north.example> SIZE=9",
            "<< QUIT",
            "<< STARTTLS",
            "<< 250-AUTH PLAIN LOGIN",
            "<< 250 2.1.5 OK",
            ">> 334 UGFzc3dvcmQ6",
            "<< BYTES 1834",
            "Session processed: uid=6f0c1a52-7c7e-4b1b-9a55-2d4b8b7f1e10, removedEnvelopes=1",
            "Delivery to mx.north.example:25 failed: 421 4.3.2 try later",
            "com.mimecast.robin.smtp.connection.SmtpFoundation says 12345678901234567890",
        ],
    )
    def test_what_is_none_is_shown(self, message):
        assert redacted(message, "smtp.Connection") == message

    def test_the_answer_to_a_challenge(self):
        logger = "auth.DigestMD5Client"
        assert redacted("Response built: 8f3d", logger) == "Response built: [redacted]"


class TestOwnLines:
    @pytest.mark.parametrize(
        ("level", "logger", "message"),
        [
            ("INFO", "endpoints.LogsHandler", "Searching logs for query: '|1129-04'"),
            ("DEBUG", "endpoints.LogsHandler", "Searched log file: ./log/x, found 7 matches"),
            ("DEBUG", "endpoints.QueueOperationsHandler", "GET /client/queue/list from /127.0.0.1"),
            ("DEBUG", "endpoints.ApiEndpointUtils", "Parsed query params: {page=1}"),
            ("TRACE", "endpoints.HttpEndpoint", "Sent HTML response: status=200, bytes=5"),
        ],
    )
    def test_they_are_left_out(self, ada, robin, level, logger, message):
        write(robin, line(now(), message, level=level, logger=logger))
        assert logger not in ada.get("/api/v1/logs/loggers").json()
        assert message not in ada.get("/api/v1/logs/export").text

    @pytest.mark.parametrize(
        ("level", "logger", "message"),
        [
            ("INFO", "endpoints.QueueOperationsHandler", "Deleted 5 queue items"),
            ("ERROR", "endpoints.LogsHandler", "Error reading log file"),
            ("DEBUG", "endpoints.HttpAuth", "Authentication failed: invalid Bearer token from /x"),
            ("INFO", "smtp.Connection", "<< MAIL FROM:<Searching logs for query>"),
        ],
    )
    def test_what_was_done_stays(self, ada, robin, level, logger, message):
        write(robin, line(now(), message, level=level, logger=logger))
        assert message in ada.get("/api/v1/logs/export").text


class TestSlices:
    @pytest.fixture
    def long_log(self, robin, monkeypatch):
        """Two megabytes over two days; a slice is to hold 64 KiB, and Robin is slow."""
        monkeypatch.setattr(search, "SMALL_SECONDS", 0.0)
        monkeypatch.setattr(search, "SLICE_BYTES", 64 << 10)
        monkeypatch.setattr(search, "SLICE_BYTES_MAX", 512 << 10)
        monkeypatch.setattr(search, "RARE_BYTES", 32 << 10)
        monkeypatch.setattr(search, "SAMPLE", "7|thread")
        monkeypatch.setattr(search, "ONE_IN", 10)
        end = now()
        begin = (end - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        step = (end - begin) / 10_000
        for name in robin.seed.log:
            robin.seed.log[name].clear()
        write(robin, *(line(begin + n * step, f"number {n:06} {'x' * 150}") for n in range(10_000)))
        return [f"number {n:06}" for n in reversed(range(10_000))]

    def test_a_page_takes_a_little_of_it(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "FILLED_SECONDS", 0.0)
        found = ada.get("/api/v1/logs?limit=50").json()

        shown = [entry["message"][:13] for entry in found["entries"]]
        assert shown == long_log[:50]
        assert found["hasMore"]
        assert not found["complete"]
        assert "%7C" not in asked(robin)
        assert len(robin.client.asked) <= 4

    def test_by_and_by_all_of_it_once(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "FILLED_SECONDS", 0.0)
        seen, end = [], ""
        while len(seen) < 3000:
            found = ada.get(f"/api/v1/logs?limit=1000{end}").json()
            new = [entry["message"][:13] for entry in found["entries"]]
            seen += [one for one in new if one not in seen[-10:]]
            end = f"&endTime={found['entries'][-1]['timestamp']}"
        assert seen == long_log[: len(seen)]

    def test_the_export_has_all(self, ada, robin, long_log):
        rows = ada.get("/api/v1/logs/export").text.splitlines()
        assert [row.split()[5] for row in rows] == [text.split()[1] for text in long_log]

    def test_what_is_rare_is_asked_for(self, ada, robin, long_log):
        found = ada.get("/api/v1/logs?search=number%20000077").json()
        assert [e["message"][:13] for e in found["entries"]] == ["number 000077"]
        assert found["complete"]
        assert len(robin.client.asked) <= 5

    def test_what_is_everywhere_is_not(self, ada, robin, long_log):
        found = ada.get("/api/v1/logs?search=number&limit=20").json()
        assert [e["message"][:13] for e in found["entries"]] == long_log[:20]
        assert "number" not in asked(robin)

    def test_a_page_ends_in_time_and_says_how_far_it_came(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
        found = ada.get("/api/v1/logs?logger=nobody").json()
        assert (found["total"], found["complete"], found["hasMore"]) == (0, False, True)
        assert found["searchedSince"] < f"{now():%Y-%m-%dT%H:%M:%SZ}"


def test_what_was_dropped_is_not_asked_again(ada, robin):
    robin.client.faults.answer = "reset"
    assert refusal(ada.get("/api/v1/logs")) == (503, "upstream_unavailable")
    assert len(robin.client.asked) == 1


def test_an_export_that_breaks_off_has_no_end(ada, robin, monkeypatch):
    monkeypatch.setattr(search, "SMALL_SECONDS", 0.0)
    write(robin, line(now(), "there"))
    first = robin.client.handle

    def handle(request, path, query, body):
        if len(asked(robin)) > 3:
            raise OSError
        return first(request, path, query, body)

    monkeypatch.setattr(robin.client, "handle", handle)
    with pytest.raises(AssertionError):  # the transport: its end never came
        ada.get("/api/v1/logs/export")
