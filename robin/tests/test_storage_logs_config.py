"""`/api/v1/{storage,logs,config,health}` on the stand-in: shapes, hostile questions, secrets."""

from __future__ import annotations

import errno
import json
import tempfile
from datetime import UTC, datetime

import pytest
import time_machine

from accounts.models import AuditEvent
from accounts.tests.shapes import refusal
from robin.config import settings_page
from robin.standin.seed_data import SECRETS
from robin.tests import contracts
from robin.tests.contracts import holds


@pytest.fixture
def ada(member, robin):
    return member("ROLE_ADMIN", by_hand=True)


def midnight(day):
    return 1000 * int(day.replace(hour=0, minute=0, second=0).timestamp())


def files(robin, ending):
    return next(path for path in robin.seed.mails if path.endswith(ending))


class TestStorage:
    @pytest.mark.parametrize("path", ["storage", "storage/", "storage/?path=/", "storage/?path="])
    def test_the_root(self, ada, path):
        found = ada.get(f"/api/v1/{path}").json()

        holds(contracts.STORE, found)
        assert [item["path"] for item in found["items"]] == [
            "/north.example", "/south.example", "/west.example",
        ]  # fmt: skip
        assert found["path"] == "/"

    def test_every_path_it_gives_leads_on(self, ada, robin):
        seen, waiting = [], ["/"]
        while waiting:
            path = waiting.pop()
            found = ada.get("/api/v1/storage/", params={"path": path})
            assert found.status_code == 200, path
            holds(contracts.STORE, found.json())
            for item in found.json()["items"]:
                is_file = item["type"] == "file"
                (seen if is_file else waiting).append(item["path"])
            if len(seen) > 20:
                break

        for path in seen:
            mail = ada.get("/api/v1/storage/file", params={"path": path})
            holds(contracts.FILE, mail.json())
            assert mail.json()["size"] == len(robin.seed.mails[path.strip("/")])

    def test_nothing_is_of_1970(self, ada, robin):
        """Robin tells no days of folders, and Robin UI shows one of each, come what may."""
        robin.seed.put("south.example/old/new/20250101.1.eml", b"From: x\r\n")
        robin.seed.put("south.example/old/new/undated.eml", b"From: x\r\n")
        now = datetime.now(UTC).replace(microsecond=0)
        today, long_ago = midnight(now), midnight(datetime(2025, 1, 1, tzinfo=UTC))

        def shown(path):
            items = ada.get("/api/v1/storage", params={"path": path}).json()["items"]
            return {one["name"]: (one["modified"], one["modifiedKnown"]) for one in items}

        with time_machine.travel(now, tick=False) as host:
            first = (1000 * int(now.timestamp()), False)
            assert shown("/") == {f"{name}.example": first for name in ("north", "south", "west")}
            host.shift(60)
            assert shown("/")["south.example"] == first
            assert {*shown("/south.example/old/new").values()} == {(long_ago, True)}
            assert shown("/")["south.example"] == (long_ago, True)
            assert shown("/south.example")["old"] == (long_ago, True)
            assert shown("/south.example")["cy"] == (first[0] + 60_000, False)
            shown("/south.example/ann/new")
            shown("/south.example/old/new")
            assert shown("/")["south.example"] == (today, True)
            assert shown("/south.example")["old"] == (long_ago, True)
            assert shown("/")["north.example"] == first

    @pytest.mark.parametrize("ending", ["plus.eml", "latin1.eml", "100% done.eml", "big.eml"])
    def test_mails_with_hard_names_and_bytes(self, ada, robin, ending):
        path = files(robin, ending)

        shown = ada.get("/api/v1/storage/file", params={"path": path}).json()
        raw = ada.get("/api/v1/storage/raw", params={"path": path})

        assert raw.content == robin.seed.mails[path]
        assert raw.headers["content-type"] == "message/rfc822"
        assert raw.headers["content-disposition"].startswith("attachment")
        assert raw.headers["x-content-type-options"] == "nosniff"
        assert shown["size"] == len(raw.content)
        assert shown["content"].startswith("From: ")
        if "latin1" in ending:
            assert "Schöne Grüße" in shown["content"]

    @pytest.mark.parametrize(
        "path", ["../etc/passwd", "/a/../../b", "..", "a/..b", "x\x00y", "a\\..\\b", "a\ufffd"]
    )
    @pytest.mark.parametrize("what", ["", "/file", "/raw"])
    def test_a_path_that_could_lead_out_is_not_sent(self, ada, robin, what, path):
        r = ada.get(f"/api/v1/storage{what}", params={"path": path})

        assert r.status_code == 422
        holds(contracts.PROBLEM, r.json())
        assert robin.client.asked == []

    @pytest.mark.parametrize(
        "path",
        [
            "%2e%2e/%2e%2e/etc",
            "%252e%252e",
            "/etc/passwd",
            "//etc//passwd",
            "nowhere",
            "a" * 2000,
            "a\r\nX: y",
            "a\t\u202eb",
        ],
    )
    def test_one_that_leads_nowhere_is_404(self, ada, robin, path):
        r = ada.get("/api/v1/storage", params={"path": path})

        assert r.status_code == 404
        holds(contracts.PROBLEM, r.json())
        assert robin.ports.client.breaker.state == "closed"

    @pytest.mark.parametrize("path", ["north.example/ann", "north.example/ann/notes.txt", "x.eml"])
    def test_what_is_no_mail_is_404(self, ada, robin, path):
        for what in ("file", "raw"):
            assert ada.get(f"/api/v1/storage/{what}", params={"path": path}).status_code == 404
        assert robin.ports.client.breaker.report()["failures"] == 0

    def test_a_mail_is_no_directory(self, ada, robin):
        r = ada.get("/api/v1/storage", params={"path": files(robin, "latin1.eml")})
        assert refusal(r) == (422, "validation_error")
        assert "storage/file" in r.text

    def test_a_directory_may_be_called_as_a_mail(self, ada, robin):
        robin.seed.put("south.example/dir.eml/new/20261123.in.eml", b"From: x\r\n")
        found = ada.get("/api/v1/storage?path=/south.example/dir.eml").json()
        assert [item["name"] for item in found["items"]] == ["new"]
        for what in ("file", "raw"):
            r = ada.get(f"/api/v1/storage/{what}?path=/south.example/dir.eml")
            assert refusal(r) == (404, "not_found")
        inside = ada.get("/api/v1/storage/file?path=/south.example/dir.eml/new/20261123.in.eml")
        assert inside.json()["content"] == "From: x\r\n"
        assert robin.ports.client.breaker.report()["failures"] == 0

    def test_capitals(self, ada, robin):
        robin.seed.put("south.example/UPPER.EML", b"From: x\r\n")
        found = ada.get("/api/v1/storage?path=/south.example").json()["items"]
        assert "UPPER.EML" in {item["name"] for item in found}
        for what in ("file", "raw"):
            assert ada.get(f"/api/v1/storage/{what}?path=/south.example/UPPER.EML").is_success

    @pytest.mark.parametrize(
        "name",
        ["a..b.eml", "..x.eml", "x\\y.eml", "l\ufffd.eml", "tab\there.eml", "two\nlines.eml",
         "\u202elme.eml", " .eml", "a+b%41 é 日本 ;#?&'.eml"],
    )  # fmt: skip
    def test_what_is_listed_opens_or_says_that_it_does_not(self, ada, robin, name):
        robin.seed.put(f"south.example/{name}", b"From: x\r\n")
        found = ada.get("/api/v1/storage?path=/south.example").json()["items"]
        item = next(one for one in found if one["path"].endswith(name))

        assert item["name"].isprintable()
        r = ada.get("/api/v1/storage/file", params={"path": item["path"]})
        if item["openable"]:
            assert r.json()["content"] == "From: x\r\n"
        else:
            assert refusal(r) == (422, "validation_error")

    def test_a_folder_that_nobody_can_ask_for_says_so(self, ada, robin):
        robin.seed.put("south.example/lat\udce9/new/x.eml", b"From: x\r\n")
        found = ada.get("/api/v1/storage?path=/south.example").json()["items"]
        (item,) = [one for one in found if one["name"].startswith("lat")]
        assert (item["type"], item["openable"]) == ("directory", False)
        r = ada.get("/api/v1/storage", params={"path": item["path"]})
        assert refusal(r) == (422, "validation_error")

    def test_a_large_mail_is_shown_in_part_and_given_whole(self, ada, robin, settings):
        settings.ROBIN_MAIL_TEXT_BYTES_MAX = 1001
        robin.ports.client.http.answer_bytes_max = 1000
        content = "Subject: é\r\n".encode() + b"x" * 987 + "é".encode() * 1_000_000
        robin.seed.put("south.example/large.eml", content)
        shown = ada.get("/api/v1/storage/file?path=/south.example/large.eml").json()

        assert (shown["size"], shown["truncated"]) == (len(content), True)
        assert shown["content"] == "Subject: é\r\n" + "x" * 987
        raw = ada.get("/api/v1/storage/raw?path=/south.example/large.eml")
        assert raw.content == content
        assert int(raw.headers["content-length"]) == len(content)

    @pytest.mark.parametrize("what", ["file", "raw"])
    def test_a_mail_may_wait_for_others(self, ada, robin, settings, what):
        path = files(robin, "latin1.eml")
        settings.ROBIN_TIMEOUT_SECONDS = 0.3
        robin.client.faults.latency_seconds = 0.6
        assert refusal(ada.get("/api/v1/storage")) == (504, "upstream_timeout")
        assert ada.get(f"/api/v1/storage/{what}", params={"path": path}).status_code == 200

    @pytest.mark.parametrize("fault", ["half", "reset", "500"])
    def test_a_download_that_fails_is_no_mail(self, ada, robin, fault):
        robin.client.faults.answer = fault
        r = ada.get("/api/v1/storage/raw", params={"path": files(robin, "latin1.eml")})
        assert refusal(r)[1] in ("upstream_unexpected", "upstream_unavailable")

    def test_a_folder_that_is_full_is_no_fault_of_the_mail(self, ada, robin, monkeypatch):
        def full():
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(tempfile, "TemporaryFile", full)
        r = ada.get("/api/v1/storage/raw", params={"path": files(robin, "latin1.eml")})

        assert refusal(r) == (503, "store_unavailable")
        assert "temporary folder" in r.json()["message"]

    def test_how_large_a_download_may_be_is_a_setting(self, ada, robin, settings):
        settings.ROBIN_MAIL_BYTES_MAX = 100
        r = ada.get("/api/v1/storage/raw", params={"path": files(robin, "big.eml")})
        assert refusal(r) == (403, "permission_denied")
        assert "ROBIN_MAIL_BYTES_MAX" in r.json()["message"]


class TestLog:
    def test_newest_first_with_the_rest_to_come(self, ada):
        first = ada.get("/api/v1/logs?limit=100&offset=0").json()
        second = ada.get("/api/v1/logs?limit=100&offset=100").json()

        holds(contracts.LOGS, first)
        assert (first["total"], first["hasMore"]) == (180, True)
        assert (len(second["entries"]), second["hasMore"]) == (80, False)
        times = [e["timestamp"] for e in first["entries"] + second["entries"]]
        assert times == sorted(times, reverse=True)

    @pytest.mark.parametrize("level", ["ERROR", "warn", "INFO,DEBUG", "TRACE"])
    def test_by_level(self, ada, robin, level):
        found = ada.get(f"/api/v1/logs?level={level}&limit=1000").json()

        levels = {entry["level"] for entry in found["entries"]}
        assert levels == set(level.upper().split(","))
        if level == "ERROR":
            assert any("Keystore" in e["message"] for e in found["entries"])  # it was FATAL

    def test_other_filters(self, ada, robin):
        session = robin.seed.queue.select()[0].session_uid
        found = ada.get("/api/v1/logs", params={"search": session}).json()
        assert found["total"] >= 1
        assert all(session in entry["message"] for entry in found["entries"])
        found = ada.get("/api/v1/logs?logger=receipt&lines=5").json()
        assert len(found["entries"]) == 5
        assert {e["logger"] for e in found["entries"]} == {"smtp.EmailReceipt"}
        at = found["entries"][2]["timestamp"]
        found = ada.get("/api/v1/logs", params={"startTime": at, "endTime": at}).json()
        assert {e["timestamp"] for e in found["entries"]} == {at}
        nothing = ada.get("/api/v1/logs?search=nothing-says-this").json()
        assert (nothing["entries"], nothing["total"]) == ([], 0)
        assert (nothing["hasMore"], nothing["complete"]) == (False, True)

    @pytest.mark.parametrize("search", ["50%", "a+b", "x&q=|", "{y}", "é", "#"])
    def test_signs_reach_robin_as_they_are(self, ada, robin, search):
        day = max(robin.seed.log)
        robin.seed.log[day].append(f"INFO |{day[4:]}-000000001|t|l||||says {search} here")
        found = ada.get("/api/v1/logs", params={"search": f"says {search} here"}).json()
        assert [entry["message"] for entry in found["entries"]] == [f"says {search} here"]

    @pytest.mark.parametrize(
        "query", ["level=LOUD", "limit=0", "offset=-1", "startTime=noon", "search=%0a"]
    )
    def test_a_question_that_makes_no_sense(self, ada, robin, query):
        r = ada.get(f"/api/v1/logs?{query}")
        assert r.status_code == 422
        holds(contracts.PROBLEM, r.json())
        assert robin.client.asked == []

    def test_loggers_and_exports(self, ada):
        loggers = ada.get("/api/v1/logs/loggers").json()
        holds(contracts.LOGGERS, loggers)
        assert "smtp.EmailDelivery" in loggers
        text = ada.get("/api/v1/logs/export?format=txt&level=ERROR")
        assert text.headers["content-type"].startswith("text/plain")
        assert all(" ERROR " in line for line in text.text.splitlines())
        rows = ada.get("/api/v1/logs/export?format=json").json()
        assert len(rows) == 180
        holds(contracts.ENTRY, rows[0])

    def test_equal_searches_share_an_answer(self, ada, robin):
        ada.get("/api/v1/logs")
        asked = len(robin.client.asked)
        for _ in range(3):
            ada.get("/api/v1/logs")
        assert len(robin.client.asked) == asked <= 5

    def test_megabytes_of_one_moment(self, ada, robin):
        day = max(robin.seed.log)
        line = f"INFO |{day[4:]}-000000000|thread-1|smtp.Connection||||" + "x" * 200
        robin.seed.log[day] += [line] * 10_000
        found = ada.get("/api/v1/logs?limit=10").json()
        assert found["total"] >= 10_090
        assert found["complete"] is (found["total"] == 10_180)

    def test_it_cannot_be_deleted(self, ada):
        r = ada.request("DELETE", "/api/v1/logs?before=2026-01-01T00:00:00Z")
        assert refusal(r) == (501, "not_possible")
        holds(contracts.PROBLEM, r.json())


class TestSettings:
    def test_without_a_secret_and_asked_once(self, ada, robin):
        answers = [ada.get("/api/v1/config") for _ in range(3)]

        for r in answers:
            assert r.status_code == 200
            assert not [secret for secret in SECRETS if secret in r.text]
        found = answers[0].json()
        assert found["sections"]["relay"]["maxRetryCount"] == 30
        assert found["fetchedAt"].endswith("Z")
        assert robin.service.asked == [("GET", "/config")]

    def test_many_at_once_ask_once(self, ada, robin, gateway):
        call = {"method": "GET", "url": "/api/v1/config", "headers": ada.bearer}
        answers = gateway.at_once([call] * 20)
        assert {r.status_code for r in answers} == {200}
        assert len(robin.service.asked) == 1

    def test_a_reload_drops_it(self, ada, robin):
        ada.get("/api/v1/config")
        robin.seed.config["Relay Configuration"]["maxRetryCount"] = 5

        assert ada.get("/api/v1/config").json()["sections"]["relay"]["maxRetryCount"] == 30
        assert ada.post("/api/v1/config/reload").json()["status"] == "OK"
        assert ada.get("/api/v1/config").json()["sections"]["relay"]["maxRetryCount"] == 5
        assert AuditEvent.objects.filter(action="robin.config.reload").count() == 1
        # The divisor of the queue follows.
        item = ada.get("/api/v1/queue").json()["items"][0]
        assert item["maxRetryCount"] == 5

    def test_a_reload_says_what_is_gone_and_what_robin_complained_of(self, ada, robin):
        ada.get("/api/v1/config")
        robin.seed.broken = {"Server", "Relay Configuration"}

        r = ada.post("/api/v1/config/reload").json()

        assert r["missing"] == ["relay"]
        assert "relay" in r["message"]
        assert any("JsonSyntaxException" in line for line in r["logged"])
        event = AuditEvent.objects.get(action="robin.config.reload.result")
        assert event.details["missing"] == ["relay"]

    def test_a_reload_after_which_the_settings_cannot_be_read_says_why(self, ada, robin):
        before = ada.get("/api/v1/config").json()["sections"]
        ada.get("/api/v1/logs?level=ERROR,WARN")  # remembered for two seconds
        robin.seed.broken = {"Relay Configuration"}

        r = ada.post("/api/v1/config/reload").json()

        assert "does not show its settings" in r["message"]
        assert r["missing"] == sorted(before)
        assert any("Failed to generate config viewer" in line for line in r["logged"])
        assert ada.get("/api/v1/config").json()["sections"] == before

    def test_a_reload_that_robin_dies_over_is_noted(self, ada, robin):
        ada.get("/api/v1/config")
        robin.service.faults.answer = "reset"

        assert refusal(ada.post("/api/v1/config/reload")) == (503, "upstream_unavailable")
        noted = AuditEvent.objects.filter(action__startswith="robin.config.reload")
        assert [event.action for event in noted] == ["robin.config.reload"]

    def test_what_is_known_goes_on_when_robin_does_not_answer(self, ada, robin):
        before = ada.get("/api/v1/config").json()
        settings_page._memory.is_dropped = True
        robin.service.faults.answer = "html"

        assert ada.get("/api/v1/config").json() == before
        settings_page.forget()
        assert ada.get("/api/v1/config").status_code == 502


class TestHealth:
    @pytest.mark.parametrize("path", ["/api/v1/health", "/api/v1/health/aggregate"])
    def test_it_is_public_and_as_the_ui_reads_it(self, gateway, robin, path):
        r = gateway.get(path)

        assert r.status_code == 200
        found = r.json()
        holds(contracts.HEALTH, found)
        assert found["status"] == "UP"
        assert found["queue"]["size"] == 112
        assert found["robinClientApi"] == {"status": "UP", "breaker": "closed"}
        assert "127.0.0.1" not in r.text

    def test_the_old_robin(self, gateway, robin):
        robin.turn_into("legacy")
        found = gateway.get("/api/v1/health").json()
        holds(contracts.HEALTH, found)
        assert sum(found["queue"]["retryHistogram"].values()) == 112

    @pytest.mark.parametrize("port", ["client", "service"])
    def test_one_port_down_leaves_the_other(self, gateway, robin, port):
        robin.run(getattr(robin, port).stop())

        r = gateway.get("/api/v1/health")

        if port == "client":  # the other says how long the queue is
            assert (r.status_code, r.json()["status"]) == (200, "DOWN")
            holds(contracts.HEALTH, r.json())
        else:  # nobody does, and none is never said to be empty
            assert refusal(r) == (503, "upstream_unavailable")
            assert "queue" not in r.json()
            assert r.json()["message"]
        states = [r.json()[f"robin{name}Api"]["status"] for name in ("Client", "Service")]
        assert states == (["DOWN", "UP"] if port == "client" else ["UP", "DOWN"])

    @pytest.mark.parametrize("port", ["client", "service"])
    def test_who_refuses_us_is_not_up(self, gateway, robin, port):
        auth = getattr(robin, port).auth
        auth.kind, auth.value = "bearer", "secret-of-robin"

        found = gateway.get("/api/v1/health").json()

        assert found["status"] in ("DOWN", 503)
        mine = found[f"robin{port.title()}Api"]
        assert (mine["status"], mine["reason"]) == ("DOWN", "refused")

    def test_the_dead_are_counted_by_their_list(self, gateway, robin, member):
        member("ROLE_ADMIN", by_hand=True).get("/api/v1/queue/json")
        found = gateway.get("/api/v1/health").json()["queue"]
        assert found["dead"] == 8
        assert sum(found["retryHistogram"].values()) == 112

    def test_it_is_asked_once_for_everybody(self, gateway, robin):
        gateway.at_once([{"method": "GET", "url": "/api/v1/health"}] * 10)
        assert len([path for _, path in robin.service.asked if path == "/health"]) <= 2


def test_no_robin_configured(member, gateway):
    ada = member("ROLE_ADMIN", by_hand=True)
    r = ada.get("/api/v1/queue")
    assert r.status_code == 503
    assert "ROBIN_CLIENT_API_URL" in r.json()["message"]
    assert refusal(gateway.get("/api/v1/health")) == (503, "upstream_unavailable")


def test_the_document_describes_what_is_answered(ada, gateway):
    document = json.dumps(gateway.get("/openapi.json").json()["paths"])
    for path in ("/api/v1/queue/json", "/api/v1/storage/raw", "/api/v1/logs/export"):
        assert path in document
