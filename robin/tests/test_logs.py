"""`/api/v1/logs` of a long log, and of one that strangers write in: forgeries, passwords."""

from __future__ import annotations

from base64 import b64encode
from datetime import UTC, datetime, timedelta
from time import process_time

import pytest

from accounts.tests.shapes import refusal
from gateway_project.core.clock import utc_text
from robin.logs import parsing, search
from robin.logs.parsing import entries, escaped, redacted
from robin.redaction import REDACTED
from robin.standin.seed_data import LOGGED_SECRET

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

    @pytest.mark.hostile
    @pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
    def test_what_another_server_answered_is_no_line_of_robin_s(self, ada, robin, end):
        """Of an answer of several lines Robin logs each line, and then all of it as one."""
        at = now()
        forged = line(at, "root logged in", level="ERROR", logger="auth.Forged")
        write(
            robin,
            line(at, "<< 550-mark"),
            line(at, f"<< {forged}"),
            line(at, f"Error: 550-mark{end}{forged}{end}", level="WARN"),
            line(at, "mark afterwards"),
        )
        for query in ("search=mark", "search=root", "level=ERROR", "logger=auth", ""):
            found = ada.get(f"/api/v1/logs?limit=1000&{query}").json()["entries"]
            assert "auth.Forged" not in {entry["logger"] for entry in found}
            lines = ada.get(f"/api/v1/logs/export?{query}").text.splitlines()
            assert not [one for one in lines if "auth.Forged" in one.split("<<")[0]]
        messages = [e["message"] for e in ada.get("/api/v1/logs?search=mark").json()["entries"]]
        assert messages == ["mark afterwards", "Error: 550-mark", "<< 550-mark"]

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
OTHERS = (
    b"user=bob\x01auth=Bearer hunter2-is-secret\x01\x01",  # XOAUTH2
    b"n,a=bob,\x01host=h\x01auth=Bearer hunter2-is-secret\x01\x01",  # OAUTHBEARER
    b"bob:hunter2-is-secret",  # HTTP's Basic
    b"ann\0bob\0hunter2-is-secret",
    b'username="bob",nonce="x",response=hunter2-is-secret',
)
ENCODED = [b64encode(text).decode() for text in OTHERS]
USER, PASSWORD = b64encode(b"bob").decode(), b64encode(b"hunter2-is-secret").decode()
LOGGED = [
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
    f"<< AUTH PLAIN\t{SASL}=",
    f"<< AUTHENTICATE PLAIN {SASL}",
    "<< PASS hunter2-is-secret",
    f">> {PASSWORD}",
    f"Adding transaction: Command: AUTH, Payload: {PASSWORD}, Response: 235 2.7.0 OK",
    r"body {\"username\":\"bob\",\"password\":\"hunter2-is-secret\"}",
    r'body {"password":"a\"hunter2-is-secret"}',
    'body {"passwords": ["hunter2-is-secret"], "secrets": {"a": "hunter2-is-secret"}}',
    "<user><password>hunter2-is-secret</password></user>",
    "form user=bob&password%3Dhunter2-is-secret",
    "query %22password%22%3A%22hunter2-is-secret%22",
    "{username=bob, password2=hunter2-is-secret}",
    "db_password_value = hunter2-is-secret",
    "password 'hunter2-is-secret' was refused",
    "secret => hunter2-is-secret",
    "clientSecretText: hunter2-is-secret",
    "Pwd={a;hunter2-is-secret};",
    "Cookie: sid=a; other=hunter2-is-secret",
    "Set-Cookie: sid=hunter2-is-secret; HttpOnly",
    "X-Api-Key: hunter2-is-secret",
    "Proxy-Authorization: Basic aHVudGVyMjpodW50ZXIyLWlzLXNlY3JldA==",
    "Authorization: Token hunter2-is-secret",
    'Authorization: Digest username="bob", response="hunter2-is-secret"',
    "Authorization: AWS4-HMAC-SHA256 Credential=A/b, Signature=hunter2-is-secret",
    "connecting to postgres://bob:p@ss/hunter2-is-secret@db/robin",
    "connecting to redis://:hunter2-is-secret@cache:6379/0",
    "connecting to jdbc:oracle:thin:bob/hunter2-is-secret@db:1521:x",
    "curl -u bob:hunter2-is-secret https://host/",
    "robin --password hunter2-is-secret --verbose",
    "mysql --db-password=hunter2-is-secret",
    "https://host/cb?code=hunter2-is-secret#access_token=hunter2-is-secret",
    *(f"Client said {text}" for text in ENCODED),
]
"""What Robin logs of a password, and what it might."""
SECRETS = (SASL, PASSWORD, "hunter2", *ENCODED)


class TestCredentials:
    def test_neither_is_shown_of_the_stand_in_s_own_log(self, ada, robin):
        """So that whoever tries the pages sees it, too."""
        written = "".join(one for lines in robin.seed.log.values() for one in lines)
        assert LOGGED_SECRET in written
        assert "|auth.Forged|" in written
        assert LOGGED_SECRET not in ada.get("/api/v1/logs/export").text
        assert "auth.Forged" not in ada.get("/api/v1/logs/loggers").json()

    @pytest.mark.hostile
    @pytest.mark.parametrize("message", LOGGED)
    def test_a_line_keeps_none(self, message):
        kept = redacted(message, "smtp.Connection")

        assert not [secret for secret in SECRETS if secret in kept]

    @pytest.mark.hostile
    def test_what_robin_logs_of_them_is_not_shown(self, ada, robin):
        write(robin, *(line(now(), message) for message in LOGGED))

        for path in ("logs?limit=1000", "logs/export", "logs/export?format=json"):
            text = ada.get(f"/api/v1/{path}").text
            assert text.count(REDACTED) >= len(LOGGED)
            assert not [secret for secret in SECRETS if secret in text]
        # Nor can it be guessed letter by letter.
        for secret in (*SECRETS, "hunter"):
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
            "http://north.example:8080/logs?query=bob@north.example",
            '{"type":"password","direction":"both"}',
            "passwordQuery=SELECT password_hash FROM users, secretPath=/run/secrets",
            "PLAIN auth failed for user bob@north.example",
            "Password mismatch, 3 tokens left",
            "Delivery to [192.0.2.1]:25 for ann@north.example via mx1:25",
            "Scan result: {action=no action, score=0.5, required_score=15.0}",
            "keyPath not configured; skipping signing",
        ],
    )
    def test_what_is_none_is_shown(self, message):
        assert redacted(message, "smtp.Connection") == message

    def test_the_answer_to_a_challenge(self):
        logger = "auth.DigestMD5Client"
        assert redacted("Response built: 8f3d", logger) == "Response built: [redacted]"

    @pytest.mark.hostile
    @pytest.mark.parametrize(
        "seed",
        [
            *("1", "a1", "-", "_", "a.", "a:", "a=", "a@", "a-", "é1", "key", "pass ", "pass is "),
            *("key : ", "'key'", "x-amz-", "eyJ-", "eyJa.", "://a:", "//", "$5$", "{SHA}", "sk_"),
            *("-----BEGIN A", "Bearer ", "AUTH ", "AUTH PLAIN ", "is ", "resp=", "AAAAAAAA="),
            *(
                "key={",
                "key=[",
                'key="',
                r"key=\"",
                r'key="\"',
                "//a:b",
                "//a:@",
                "secret",
                "passw-",
            ),
            *("cookie:", "-u a:", "thin:a/", "Digest ", r"\"key", "password>"),
            *("://", "://aB3", "://aB3/", "://a-1"),
        ],
    )
    def test_looking_for_them_takes_a_stranger_no_longer_than_his_line(self, seed):
        def seconds(chars):
            text = f"<< MAIL FROM:<{(seed * chars)[:chars]}>"
            began = process_time()
            redacted(text, "smtp.Connection")
            return process_time() - began

        seconds(100)
        # Some were 50 s; a search goes through thousands of lines.
        assert seconds(16_000) < 1


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
        monkeypatch.setattr(search, "ENOUGH_BYTES", 16 << 10)
        monkeypatch.setattr(search, "SAMPLE", "7|")
        monkeypatch.setattr(search, "ONE_IN", 10)
        end = now()
        begin = (end - timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
        # A sample takes the milliseconds that end in a seven: with a step of nearly a multiple of
        # ten, or of a simple part of it, it would find bursts, or none of every hundredth line.
        tens = (end - begin) / 10_000 // timedelta(milliseconds=10)
        step = timedelta(milliseconds=10 * tens - 10, microseconds=6_183)
        begin = end - 10_000 * step
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

    def test_robin_is_asked_for_no_more_than_it_has_memory_for(
        self, ada, robin, long_log, monkeypatch
    ):
        """It hangs up over what it cannot answer, and its process stays as large."""
        monkeypatch.setattr(search, "FILLED_SECONDS", 0.0)
        monkeypatch.setattr(search, "SEARCH_SECONDS", 0.2)
        robin.seed.log_answer_bytes_max = 512 << 10
        for query in ("", "search=number", "level=INFO", "search=nowhere"):
            found = ada.get(f"/api/v1/logs?{query}").json()["entries"]
            assert bool(found) is (query != "search=nowhere")

    def test_by_and_by_all_of_it_once(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "FILLED_SECONDS", 0.0)
        seen, end = [], ""
        while len(seen) < 3000:
            found = ada.get(f"/api/v1/logs?limit=1000{end}").json()
            new = [entry["message"][:13] for entry in found["entries"]]
            seen += [one for one in new if one not in seen[-10:]]
            end = f"&endTime={found['entries'][-1]['timestamp']}"
        assert seen == long_log[: len(seen)]

    def test_a_sample_tells_how_much_was_written_when(self, ada, robin, long_log):
        ada.get("/api/v1/logs?limit=50")
        profile = search._profile
        written = sum(len(one) + 1 for lines in robin.seed.log.values() for one in lines)
        assert profile.bytes_total == profile.bytes_in.total() == pytest.approx(written, rel=0.3)
        assert len(profile.bytes_in) > 100  # of ten minutes each, in a day and more
        assert profile.share(["INFO |"]) == pytest.approx(1, abs=0.01)  # Robin notes our asking
        assert not profile.is_small

    def test_a_sample_that_found_nothing_is_no_short_log(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "SAMPLE", "nothing|")
        found = ada.get("/api/v1/logs?limit=50").json()
        assert [entry["message"][:13] for entry in found["entries"]] == long_log[:50]
        days = {f"{day:%7C%m%d-}" for day in (now(), now() - timedelta(days=1))}
        assert not days & set(asked(robin))  # Robin makes one text of all that it finds

    @pytest.mark.parametrize("level", ["ERROR", "FATAL", "WARN"])
    def test_a_level_that_is_rare_takes_longer_slices(
        self, ada, robin, long_log, monkeypatch, level
    ):
        monkeypatch.setattr(search, "FILLED_SECONDS", 0.0)
        for name, lines in robin.seed.log.items():
            robin.seed.log[name] = [
                one.replace("INFO ", f"{level:5}", 1) if "00 x" in one else one for one in lines
            ]
        wanted = [text for text in long_log if text.endswith("00")]

        found = ada.get(f"/api/v1/logs?limit=50&level={level.replace('FATAL', 'ERROR')}").json()
        assert [e["message"][:13] for e in found["entries"]] == wanted[:50]
        assert len(asked(robin)) <= 5  # the sample, and two days of one level or two

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

    def test_a_few_other_lines_at_the_end_do_not_make_it_rare(self, ada, robin, long_log):
        write(robin, *(line(now(), f"another {n}") for n in range(5)))
        found = ada.get("/api/v1/logs?search=number&limit=20").json()
        assert [e["message"][:13] for e in found["entries"]] == long_log[:20]
        assert "number" not in asked(robin)

    @pytest.fixture
    def burst(self, robin, monkeypatch):
        """A second with six times what may be asked for, most of it in one millisecond."""
        monkeypatch.setattr(search, "SMALL_SECONDS", 0.0)
        monkeypatch.setattr(search, "SLICE_BYTES", 4 << 10)
        monkeypatch.setattr(search, "SLICE_BYTES_MAX", 8 << 10)
        second = (now() - timedelta(minutes=5)).replace(microsecond=0)
        for name in robin.seed.log:
            robin.seed.log[name].clear()
        for n in range(-1000, 2000, 20):
            at = second + timedelta(milliseconds=n)
            write(robin, line(at, f"number {n:05} {'x' * (300 if 0 <= n < 1000 else 0)}"))
        write(robin, *[line(second + timedelta(milliseconds=500), f"flood {'x' * 1000}")] * 30)
        return second

    @pytest.mark.parametrize("sample", ["7|", "0|", "nothing|"])
    def test_a_second_that_is_too_long_is_read_in_parts(
        self, ada, robin, burst, monkeypatch, sample
    ):
        monkeypatch.setattr(search, "SAMPLE", sample)
        monkeypatch.setattr(search, "ONE_IN", 1)
        found = ada.get("/api/v1/logs/export?format=json").json()

        wanted = [f"number {n:05}" for n in range(1980, -1001, -20)]
        wanted[wanted.index("number 00500")] = parsing.GAP
        assert [entry["message"].rstrip(" x") for entry in found] == wanted
        assert len(asked(robin)) < 100

    @pytest.mark.parametrize("query", ["search=nothing", "logger=nobody", "level=INFO"])
    def test_what_is_left_out_is_said_whatever_is_looked_for(self, ada, robin, burst, query):
        at = f"{burst:%Y-%m-%dT%H:%M:%S}"
        span = f"startTime={at}.495Z&endTime={at}.505Z"
        (entry,) = ada.get(f"/api/v1/logs?{span}&{query}").json()["entries"]
        assert (entry["level"], entry["timestamp"]) == ("WARN", f"{at}.500Z")
        assert entry["message"] == parsing.GAP

    def test_a_page_ends_in_time_and_says_how_far_it_came(self, ada, robin, long_log, monkeypatch):
        monkeypatch.setattr(search, "SEARCH_SECONDS", 0.0)
        found = ada.get("/api/v1/logs?logger=nobody").json()
        assert (found["total"], found["complete"], found["hasMore"]) == (0, False, True)
        assert found["searchedSince"] < f"{now():%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.parametrize("query", ["", "level=ERROR", "search=nothing"])
def test_a_log_that_robin_cannot_read_to_its_end_says_so(ada, robin, monkeypatch, query):
    """A byte that is no UTF-8 ends Robin's search of a file, and it answers 200."""
    monkeypatch.setattr(search, "PAST_SECONDS", 0.0)
    monkeypatch.setattr(search, "SHARED_SECONDS", 0.0)

    def said():
        found = ada.get(f"/api/v1/logs?limit=1000&{query}").json()["entries"]
        return [entry["timestamp"] for entry in found if entry["message"] == parsing.CUT]

    assert said() == said() == []
    asked_at = search._profile.asked_at
    write(robin, line(now(), "two \udce9"), line(now(), "three", level="ERROR"))

    assert said() == said() == [utc_text(asked_at)]
    until = f"{asked_at - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}"
    before = ada.get(f"/api/v1/logs?{query}&endTime={until}").json()["entries"]
    assert parsing.CUT not in {entry["message"] for entry in before}


def test_what_was_dropped_is_not_asked_again(ada, robin):
    robin.client.faults.answer = "reset"
    assert refusal(ada.get("/api/v1/logs")) == (503, "upstream_unavailable")
    assert len(robin.client.asked) == 1


def test_an_export_that_breaks_off_has_no_end(ada, robin, monkeypatch):
    monkeypatch.setattr(search, "SMALL_SECONDS", 0.0)
    write(robin, line(now(), "there"))
    first = robin.client.handle

    def handle(request, path, query, body):
        if len(asked(robin)) > 2:
            raise OSError
        return first(request, path, query, body)

    monkeypatch.setattr(robin.client, "handle", handle)
    with pytest.raises(AssertionError):  # the transport: its end never came
        ada.get("/api/v1/logs/export")
