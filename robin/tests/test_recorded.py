"""The stand-in, and what we make of Robin's answers, against those of a real one, recorded.

`data/exchanges.json` has calls to both ports (`robin/standin/recorded.py`), and what is compared of
their answers; `data/answers.json` whole answers, of a queue with items in each state. Both are of
Robin 2.0.0-SNAPSHOT (`6186d413f`); names and addresses are invented. `make robin-real` asks a real
one, and its part `record` makes the second anew.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from robin.config import translate as settings_translate
from robin.config.views import ABOUT
from robin.health import translate as health_translate
from robin.logs import parsing
from robin.metrics import sampling
from robin.queue.translate import queue_page
from robin.redaction import REDACTED
from robin.standin import recorded
from robin.standin.robin import Robin
from robin.standin.seed_data import SeedData
from robin.standin.server import Auth
from robin.storage import translate as storage_translate
from robin.tests import contracts

DATA = Path(__file__).parent / "data"
EXCHANGES = json.loads((DATA / "exchanges.json").read_text())
ANSWERS = json.loads((DATA / "answers.json").read_text())


def answer_of(path, status=200, *, broken=False):
    key = (path, status, broken)
    (body,) = [
        a["body"] for a in ANSWERS if (a["path"], a["status"], a.get("broken", False)) == key
    ]
    return body.encode()


SCHEDULER = json.loads(answer_of("/health"))["scheduler"]["service"]
AT = datetime.fromtimestamp(SCHEDULER["nextHousekeepingEpochSeconds"], UTC)
"""Within a minute of when they were recorded: the log names no year."""


def asked_of_the_stand_in(ask, **facts):
    async def run():
        robin = Robin(SeedData(), **facts)
        robin.seed.queue.cost = 0.0
        robin.seed.broken = {"Relay Configuration"}
        for name, content in recorded.MAILS.items():
            robin.seed.put(f"north.example/{name}", content)
        await robin.start()
        ports = {"client": robin.client.port, "service": robin.service.port}
        try:
            return await asyncio.to_thread(ask, ports)
        finally:
            await robin.stop()

    return asyncio.run(run())


def test_it_answers_as_the_real_one_did():
    assert asked_of_the_stand_in(lambda ports: recorded.differences(EXCHANGES, ports)) == []


def test_its_answers_are_shaped_as_those_of_the_real_one():
    """Headers, tags and names at every depth; of metrics it has the ones that are read."""
    headers = {"Authorization": "Bearer recorded-token"}

    def ask(ports):
        return [recorded.answer(ports[call["server"]], call, headers) for call in recorded.CALLS]

    found = asked_of_the_stand_in(ask, auth=Auth("bearer", "recorded-token"))
    assert len(found) == len(ANSWERS)
    for answer, real in zip(found, ANSWERS, strict=True):
        assert answer["path"] == real["path"]
        compared = ("status", "answer_headers")
        assert {n: answer[n] for n in compared} == {n: real[n] for n in compared}, real["path"]
        has, wanted = recorded.outline(answer), recorded.outline(real)
        is_part = "prometheus" in real["path"]
        assert has <= wanted if is_part else has == wanted, real["path"]


class TestTranslation:
    """Of what the real one said: the stand-in says only what we took that for."""

    @pytest.mark.parametrize(("state", "count"), [("READY", 3), ("CLAIMED", 1), ("DEAD", 1)])
    def test_the_queue(self, state, count):
        page = queue_page(answer_of(recorded.LIST + state))

        assert page.total == len(page.items) == count
        for item in page.items:
            assert len(item["uid"]) == len(item["sessionUid"]) == 36
            assert item["protocol"].upper() == "ESMTP"
            assert item["envelopes"] == len(item["files"]) == 1
            assert (item["lastRetryTime"] > 1_700_000_000_000) is (item["retryCount"] > 0)
        if state == "READY":
            many = next(item for item in page.items if item["recipientsCut"])
            assert many["recipients"] == [f"n{n}@north.example" for n in range(5)]
            assert many["recipientsTotal"] == 7
            assert "o'hara@<b>&.example" in {item["mailbox"] for item in page.items}

    def test_settings(self):
        found = settings_translate.config_page(answer_of("/config"))

        assert set(found) == {
            *("properties", "server", "storage", "queue", "relay", "dovecot", "prometheus"),
            *("vault", "clamav", "rspamd", "webhooks", "users", "scenarios"),
        }  # fmt: skip
        text = json.dumps(found)
        # Passwords and tokens of its own, of its shipped settings and of this run.
        shipped = ("avengers", "stark", "potts", "YOUR_API_KEY", "your-api-token-here")
        assert not [word for word in (*shipped, "recorded-token", ":password") if word in text]
        assert found["server"]["api"] == {
            "port": 8090, "authType": "bearer", "authValue": REDACTED,
        }  # fmt: skip
        assert found["webhooks"]["auth"]["url"] == "http://localhost:8000/webhooks/auth"
        assert found["dovecot"]["authSql"]["passwordQuery"].startswith("SELECT password")
        assert settings_translate.retries_max(found)[""] == 30
        assert settings_translate.waits(found) == settings_translate.Waits(1, 1.2)

    def test_health(self):
        found = health_translate.health(json.loads(answer_of("/health")), is_up=True)

        assert (found["status"], found["queue"]["ready"], found["queue"]["claimed"]) == ("UP", 3, 1)
        assert found["scheduler"]["cron"]["periodSeconds"] == 30
        assert found["listeners"][0]["threadPool"]["max"] == 10
        assert sampling.uptime_ms(found["uptime"]) > 0

    def test_metrics(self):
        values = sampling.prometheus(answer_of("/metrics/prometheus"))
        health = json.loads(answer_of("/health"))

        contracts.holds(contracts.SYSTEM, sampling.system_stats(values, health, now=AT))
        figures = sampling.figures(values, health)
        assert figures["queue_size"] == 4
        assert {"accepted", "opened", "died", "cpu_percent", "memory_percent"} <= set(figures)
        totals = {"ready": 3, "claimed": 1, "dead": 1}
        stats = sampling.queue_stats(values, totals, now=AT)
        contracts.holds(contracts.QUEUE_STATS, stats)
        assert {"accepted", "connections"} <= set(stats)

    def test_the_log(self):
        text = answer_of("/logs?query=smtp.")
        found = list(parsing.entries(text, now=AT, zone=UTC))

        assert len(found) == text.count(b"\n")
        assert {entry.at.date() for entry in found} == {AT.date()}
        assert {entry.logger.partition(".")[0] for entry in found} == {"smtp", "endpoints"}
        assert "Error: 550 5.1.1 No such user" in {entry.message for entry in found}

    def test_a_reload_over_a_broken_file(self):
        """It says that all is well; then the page of settings fails, and the log has why."""
        assert json.loads(answer_of("/config/reload", broken=True))["status"] == "OK"
        assert answer_of("/config", 500, broken=True) == b"Internal Server Error"
        text = answer_of("/logs?query=onfig", broken=True)
        (why,) = [e for e in parsing.entries(text, now=AT, zone=UTC) if e.level == "ERROR"]
        assert why.message.startswith("Failed to generate config viewer: ")
        assert not why.is_ours()
        assert ABOUT.search(why.searched())

    def test_the_store(self):
        listing = storage_translate.store_listing(
            json.loads(answer_of("/store/north.example")), ["north.example"]
        )
        assert [(one["path"], one["type"]) for one in listing["items"]] == [
            ("/north.example/a+b.eml", "file"),
            ("/north.example/ann", "directory"),
            ("/north.example/dir.eml", "directory"),
            ("/north.example/latin.eml", "file"),
            ("/north.example/UPPER.EML", "file"),
        ]


@pytest.mark.parametrize("server", ["client", "service"])
def test_every_address_of_both_ports_is_among_them(server):
    robin = Robin(SeedData())
    asked = {call["path"].partition("?")[0] for call in EXCHANGES if call["server"] == server}
    dangerous = ("/system/", "/favicon.ico")
    for prefix in getattr(robin, server).contexts:
        if not prefix.startswith(dangerous):
            assert any(path.startswith(prefix) for path in asked), prefix
