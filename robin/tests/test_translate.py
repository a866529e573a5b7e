"""Robin's words in the UI's: on what the stand-in really answers."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import unquote, unquote_plus
from zoneinfo import ZoneInfo

import pytest

from robin import redaction
from robin.config import translate
from robin.health import translate as health_translate
from robin.logs import parsing
from robin.queue import translate as queue_translate
from robin.standin import client_api, service_api
from robin.standin.queue import Envelope, page
from robin.standin.seed_data import SECRETS, SeedData
from robin.standin.server import Call
from robin.storage import translate as storage_translate

NOW = 1_795_424_700.0  # Mon, 23 Nov 2026 09:05:00 UTC


@pytest.fixture(scope="module")
def seed():
    return SeedData(clock=lambda: NOW)


def answer(contexts, path, **query):
    call = Call("GET", path, query, "application/json", "", b"", True)
    content = contexts[path].handle(call).content
    return content.encode() if isinstance(content, str) else content


class TestQueue:
    def test_a_page(self, seed):
        found = queue_translate.queue_page(
            answer(client_api.contexts(seed), "/client/queue/list", limit="50"),
            {"": 30, "DOVECOT-LDA": 10},
        )

        assert (found.total, len(found.items)) == (112, 50)
        items = seed.queue.select()[:50]
        assert [i["uid"] for i in found.items] == [i.uid for i in items]
        first, real = found.items[0], items[0]
        assert first["protocol"] == "ESMTP"
        assert "createTime" not in first  # the date of the page is that of the listing
        assert first["sessionUid"] == real.session_uid
        assert first["recipients"] == real.envelopes[0].rcpts[:5]
        assert first["files"] == ["qeml-000.eml"]
        assert {i["maxRetryCount"] for i in found.items} == {10, 30}
        assert any(i["mailbox"] == "ann's@south.example" for i in found.items)
        seven = next(i for i in found.items if i["recipientsTotal"] == 7)
        assert len(seven["recipients"]) == 5

    def test_what_is_hostile_in_a_name_stays_text(self, seed):
        fresh = SeedData(clock=lambda: NOW).queue
        fresh.items.clear()
        rcpt = '"</td></tr><tr>\'&amp;"@x.example'
        fresh.enqueue("ESMTP", [Envelope("", [rcpt], "/a/<b>'&.eml")])
        fresh.enqueue("SMTP", [])

        found = queue_translate.queue_page(page(fresh.select(), 1, 50, now=NOW).encode())

        assert found.items[0]["mailbox"] == rcpt
        assert found.items[0]["files"] == ["<b>'&.eml"]
        assert found.items[1]["mailbox"] == ""
        assert found.items[1]["lastRetryTime"] == 0

    @pytest.mark.parametrize(
        ("rcpts", "shown"),
        [
            (['"a, b"@x.example', "c@y.example"], ['"a, b"@x.example', "c@y.example"]),
            (['"a\\", b"@x.example'], ['"a\\", b"@x.example']),
            (['a"@x.example', "c@y.example"], ['a"@x.example', "c@y.example"]),
            (["{{FILES}}@x.example"], ["q.eml@x.example"]),
            (["… (+9)@x.example"], ["… (+9)@x.example"]),
        ],
    )
    def test_recipients_are_told_apart(self, rcpts, shown):
        fresh = SeedData(clock=lambda: NOW).queue
        fresh.items.clear()
        fresh.enqueue("ESMTP", [Envelope("", rcpts, "/a/q.eml")])
        [item] = queue_translate.queue_page(page(fresh.select(), 1, 50, now=NOW).encode()).items
        assert item["recipients"] == shown
        assert item["recipientsTotal"] == len(rcpts)
        assert item["files"] == ["q.eml"]

    @pytest.mark.parametrize("text", ["", client_api.LANDING, "<tbody></tbody>"])
    def test_another_page_is_refused(self, text):
        with pytest.raises(ValueError, match="queue"):
            queue_translate.queue_page(text.encode())

    def test_a_row_of_another_form_is_refused(self, seed):
        text = page(seed.queue.select(), 1, 5, now=NOW).replace("<td>ESMTP</td>", "")
        with pytest.raises(ValueError, match="row"):
            queue_translate.queue_page(text.encode())

    @pytest.mark.parametrize("text", ["-", "", "Mo, 23 Dez 2026", "x" * 500])
    def test_a_date_in_another_language_is_none(self, text):
        assert queue_translate.java_ms(text) == 0


class TestStorage:
    @pytest.mark.parametrize(
        "name", ["a b", "1+1", "100%", "%2e", "ü", "?x=1&y", "#", "a;b", "{|}", '"', "%252b"]
    )
    def test_robin_s_two_decodings_give_the_name_back(self, name):
        url = storage_translate.store_url(["north.example", name])

        assert unquote_plus(unquote(url)) == f"/store/north.example/{name}"

    @pytest.mark.parametrize("path", ["..", "/a/../b", "a..b", "a/./b", "a\\b", "a\x00b", "....//"])
    def test_what_could_lead_out_is_refused(self, path):
        with pytest.raises(ValueError, match="does not open"):
            storage_translate.store_parts(path)

    def test_a_directory(self, seed):
        contexts = client_api.contexts(seed)
        call = Call("GET", "/store/north.example/ann/new", {}, "application/json", "", b"", True)
        raw = json.loads(contexts["/store"].handle(call).content)

        found = storage_translate.store_listing(raw, ["north.example", "ann", "new"])

        assert found["path"] == "/north.example/ann/new"
        assert found["breadcrumbs"][-2:] == [
            {"name": "ann", "path": "/north.example/ann"},
            {"name": "new", "path": "/north.example/ann/new"},
        ]
        (mail,) = found["items"]
        assert mail["path"].startswith("/north.example/ann/new/20261123.")
        assert mail["type"] == "file"
        assert mail["modified"] == 1_795_392_000_000

    @pytest.mark.parametrize("raw", [None, [], {}, {"items": 5}, {"items": [{}]}, {"items": [5]}])
    def test_anything_else_is_refused(self, raw):
        with pytest.raises(ValueError, match="not a directory"):
            storage_translate.store_listing(raw, [])

    def test_every_mail_is_text(self):
        assert storage_translate.mail_text("é".encode()) == "é"
        assert storage_translate.mail_text("é".encode("latin-1")) == "é"


class TestSettings:
    def test_no_secret_passes(self, seed):
        raw = answer(service_api.contexts(seed), "/config")
        assert all(secret in raw.decode() for secret in SECRETS)

        found = translate.config_page(raw)

        assert not [secret for secret in SECRETS if secret in json.dumps(found)]
        assert found["server"]["api"]["port"] == 8090
        assert found["server"]["auth"] is True
        # A group of settings, though its name tells of secrets.
        hook = found["webhooks"]["auth"]
        assert (hook["url"], hook["timeout"]) == ("http://localhost:8000/webhooks/auth", 5000)
        assert found["queue"]["growthFactor"] == 1.2
        assert set(found) == {
            "properties", "server", "storage", "queue", "relay", "dovecot", "prometheus", "vault",
            "clamav", "rspamd", "webhooks", "users",
        }  # fmt: skip
        assert translate.retries_max(found) == {
            "": 30, "dovecot-lda": 10, "stalwart-direct": 10,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "value",
        [
            {"db": {"PassWord": "s3cret"}},
            {"apiKey": 12345},
            {"tokens": ["s3cret", {"x": "s3cret"}]},
            {"url": "https://user:s3cret@host/x"},
            {"dsn": "host=x password=s3cret user=y"},
            {"privateKeyPem": "s3cret"},
            {"requestHeaders": {"X-Any": "s3cret"}},
            {"vault.token": "s3cret"},
            {"url": "https://hook.example/x?api_key=s3cret&sig=s3cret&n=1"},
            {"callback": "https://hook.example/?access-token=s3cret"},
            {"basicAuthUser": "s3cret"},
            {"hmac": "s3cret", "signature": "s3cret", "jwt": "s3cret", "pwd": "s3cret"},
            {"adminPin": 12345, "otpSeed": "s3cret", "deployKey": "s3cret"},
            {"relayAuth": "s3cret", "auth": {"value": {"password": "s3cret"}}},
            {"dsn": "robin:s3cret@db/robin"},
            {"note": "the password is: s3cret"},
            {"note": "Bearer s3cret-and-more"},
            {"login": "robin:s3cret9"},
            {"list": ["{PLAIN}s3cret", "$2b$12$s3cret", "{SSHA}s3cret"]},
            {"pem": "-----BEGIN PRIVATE KEY-----\ns3cret\n-----END PRIVATE KEY-----"},
            {"whatever": "eyJhbGciOiJI.s3creteyJzdWIi.abc"},
            {"whatever": "AKIAs3cret".upper() + "0123456789ABCDEF", "x": {"pass": "s3cret"}},
            {"whatever": "ghp_s3cret0123456789abcdef", "y": "hvs.s3cret0123"},
            {"passphrase": "s3cret", "credentials": {"left": "s3cret"}},
            {"extraHeaders": [{"name": "s3cret"}]},
            {"jdbc": "jdbc:mariadb://db/robin?user=robin&password=s3cret&ssl=true"},
            {"odbc": "Server=db;Uid=robin;Pwd=s3cret;"},
            {"odbc": "Server=db;Password=with a blank, s3cret ;Uid=robin"},
            {"odbc": "Pwd={with a ; and s3cret};Server=db", "other": "Password=x s3cret"},
            {"url": "https://hooks.slack.com/services/T0001/B0002/abcDEF123ghiJKL4s3cretOPQ"},
            {"url": "https://discord.com/api/webhooks/1234567890/AbCdEfG-_ijklmno5-s3cretVwxyz"},
            {"url": "https://api.telegram.org/bot123456:AAE-abcDEF1234567s3cret/sendMessage"},
            {"dsn": f"https://{b's3cret0123456789'.hex()}@sentry.example/1", "pw": "s3cret"},
            {"bindPw": "s3cret", "psk": "s3cret", "auth_code": "s3cret", "mnemonic": "s3cret it"},
        ],
    )
    def test_a_secret_is_found_under_many_names(self, value):
        text = json.dumps(redaction.redacted(value))

        assert "s3cret" not in text
        assert b"s3cret".hex() not in text
        assert "12345" not in text.replace("1234567890", "")
        assert redaction.REDACTED in text

    def test_what_is_no_secret_stays(self):
        value = {
            "auth": {"url": "http://host/x", "method": "POST", "timeout": 5, "direction": "both"},
            "password": "",
            "token": None,
            "url": "https://host/x?a=1&ssl=true",
            "n": 5,
            "passwordQuery": "SELECT password FROM users WHERE email = ?",
            "authType": "bearer",
            "keystore": "/usr/local/robin/keystore.jks",
            "queueKey": "robin:robin_queue",
            "host": "clamav:3310",
            "listen": "[::1]:25",
            "uidPattern": "\\s\\[([a-z0-9\\-_]+)]",
            "pemKey": "",
            "ipPools": [{"name": "default", "addresses": ["10.0.0.1/24"]}],
            "providers": ["zen.spamhaus.org"],
            "queueFile": "/usr/local/robin/relayQueue.db",
            "whitelistBypass": "10.0.0.0/8",
            "id": "6f0c1a52-7c7e-4b1b-9a55-2d4b8b7f1e10",
            "reply": "550 5.1.1 Unknown destination mailbox address [%s]",
            "ciphers": ["TLS_AES_256_GCM_SHA384", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"],
            "openssl": "ECDHE-RSA-AES128-GCM-SHA256",
            "heloName": "mx1-eu-west-2b-robin-prod7",
            "tokenizer": "standard",
            "hotkey": "ctrl+k",
            "rateLimitByKey": "address",
            "domainKey": "s1",
            "statusCode": 250,
            "hook": "https://ann@host/services/mail-archive-2026-in/x?format=json",
            "options": "Server=db;Application Name=robin mail;Timeout=5",
        }
        assert redaction.redacted(value) == value

    def test_another_page_is_refused(self):
        with pytest.raises(ValueError, match="settings"):
            translate.config_page(service_api.LANDING.encode())


class TestHealth:
    @pytest.mark.parametrize("profile", ["stock", "legacy"])
    def test_both_shapes_give_what_the_ui_reads(self, seed, profile):
        raw = json.loads(answer(service_api.contexts(seed, profile=profile), "/health"))

        found = health_translate.health(raw, is_up=True)

        assert found["status"] == "UP"
        assert found["queue"]["size"] == 112
        assert isinstance(found["queue"]["retryHistogram"], dict)
        assert found["scheduler"]["cron"]["periodSeconds"] == 30
        assert found["scheduler"]["config"]["growthFactor"] == 1.2
        assert found["listeners"][0]["threadPool"]["active"] == 2

    @pytest.mark.parametrize(
        "raw", [None, [], "UP", {"status": "UP", "uptime": "1d"}, {"scheduler": {"config": {}}}]
    )
    def test_what_is_missing_is_left_out(self, raw):
        found = health_translate.health(raw, is_up=False)

        assert found["status"] == "DOWN"
        assert found["listeners"] == []
        assert "scheduler" not in found
        assert None not in found.values()


class TestLog:
    def entries(self, text, now="2026-11-23T09:15:00+00:00", zone="UTC"):
        found = parsing.entries(text.encode(), now=datetime.fromisoformat(now), zone=ZoneInfo(zone))
        return [*found]

    def test_a_line(self):
        (entry,) = self.entries(
            "ERROR|1123-091502417|pool-3|smtp.EmailDelivery||||Delivery | failed",
            "2026-11-23T10:00:00+00:00",
        )
        assert entry.shown() == {
            "id": "1123-091502417-1",
            "timestamp": "2026-11-23T09:15:02.417Z",
            "level": "ERROR",
            "logger": "smtp.EmailDelivery",
            "message": "Delivery | failed",
            "thread": "pool-3",
        }

    def test_the_stand_in_s_log(self, seed):
        raw = answer(client_api.contexts(seed), "/logs", q="|").decode()

        found = self.entries(raw)

        assert len(found) == raw.count("\n")
        assert len({e.id for e in found}) == len(found)
        assert {e.level for e in found} == set(parsing.LEVELS)

    @pytest.mark.parametrize(
        ("day", "now", "year"),
        [
            ("1231", "2027-01-01T00:05:00+00:00", 2026),
            ("0101", "2027-01-01T00:05:00+00:00", 2027),
            ("0229", "2028-03-01T00:00:00+00:00", 2028),
        ],
    )
    def test_the_year_that_no_line_names(self, day, now, year):
        (entry,) = self.entries(f"INFO |{day}-000000001|t|l||||m", now)
        assert entry.at.year == year

    def test_its_time_zone(self):
        (entry,) = self.entries("INFO |1123-100000000|t|l||||m", zone="Europe/Berlin")
        assert entry.at == datetime(2026, 11, 23, 9, 0, tzinfo=UTC)

    @pytest.mark.parametrize(
        "line", ["", "\tat java.lang.Thread", "INFO |1399-000000000|t|l||||m", "Usage: GET /logs"]
    )
    def test_what_is_no_entry_is_left_out(self, line):
        assert self.entries(line) == []

    def test_fatal_is_an_error(self):
        (entry,) = self.entries("FATAL|1123-000000000|t|l||||one")
        assert entry.level == "ERROR"
