"""What one customer does is done to nobody else: what strangers found by reading the code."""

from __future__ import annotations

import threading

import orjson
import pytest

from accounts import authentication, services
from accounts.services import Actor
from detection.engines import engine, go
from gateway_project.core import errors
from gateway_project.core.stores import database
from gateway_project.core.stores.bus import bus
from gateway_project.core.upstream.client import Answer
from webhooks.delivery import subscriptions

pytestmark = pytest.mark.hostile


@pytest.fixture
def words(monkeypatch):
    """What every process is told to forget of the keys that it knows."""
    found = []

    def say(channel, word):
        if channel == authentication.CHANNEL:
            found.append(word)

    monkeypatch.setattr(bus, "say", say)
    return found


class TestKnownKeys:
    def test_a_change_of_many_keys_is_one_word(self, acme, make_key, make_webhook, words):
        for _ in range(5):
            make_key()
        hook = make_webhook("/a", ["quota.80"])
        words.clear()
        hook.events = ["quota.100"]
        hook.save()

        subscriptions.tell(acme)

        assert words == [str(acme.pk)]

    def test_who_confirms_an_address_or_leaves_has_nobody_elses_keys_forgotten(
        self, acme, alice, charlie, globex, words
    ):
        services.confirm_email(charlie, actor=Actor("test"))
        services.delete_account(charlie, actor=Actor("test"))

        assert {*words} == {str(globex.pk)}


def test_what_an_engine_says_beside_the_score_is_bounded():
    body = {"is_malicious": True, "confidence": 0.9, "threat_types": ["x" * 5000] * 3}
    body["threat_types"] += [f"kind-{n}" for n in range(10_000)]
    body |= {"reason": "y" * 100_000, "endpoint": "z" * 100_000}

    score = go.GoEngine._read(Answer(200, orjson.dumps(body), 0.0), 10)

    assert 0 < len(score.threat_types) <= engine.THREAT_TYPES_MAX
    assert max(map(len, score.threat_types)) <= engine.WORD_CHARS_MAX
    assert len(score.reason) <= engine.REASON_CHARS_MAX
    assert len(score.endpoint) <= engine.WORD_CHARS_MAX


def test_a_new_key_is_known_while_all_readers_are_busy(gateway, engine, acme_key):
    """With figures of many days, which whoever may see Robin asks for as often as they like."""
    going = threading.Event()
    held = [database._readers.submit(going.wait, 10) for _ in range(database.READERS_MAX)]

    r = gateway.detect("hello", key=acme_key)
    going.set()
    for one in held:
        one.result()

    assert r.json()["decision"] == "allow"


def test_a_read_that_nobody_waits_for_any_more_is_not_begun(gateway, monkeypatch):
    monkeypatch.setattr(database, "DEADLINE_SECONDS", 0.05)
    going, begun = threading.Event(), []
    held = [database._readers.submit(going.wait, 10) for _ in range(database.READERS_MAX)]

    with pytest.raises(errors.StoreUnavailable):
        gateway.run(database.read(lambda: begun.append(1)))
    going.set()
    for one in held:
        one.result()

    gateway.run(database.read(lambda: None))
    assert begun == []
