"""Scores remembered, windows, equal texts at once, and what is done without the engine."""

from __future__ import annotations

import asyncio
import io
import random
import time
from datetime import timedelta
from unittest.mock import patch
from uuid import uuid4

import orjson
import pytest
from django.core.management import call_command
from django.utils import timezone

from accounts.models import ApiKey, AuditEvent
from detection import embedded, services
from detection.engines import engine as engine_module
from detection.engines import registry, scores
from detection.policies import policy as policies
from detection.tests.test_detect import ATTACK, HARMLESS, problem
from gateway_project.core import ratelimit
from gateway_project.core.stores import redis
from gateway_project.core.telemetry.metrics import cache_requests
from gateway_project.core.upstream import breaker as breaker_module
from gateway_project.tests.private_redis import PrivateRedis


async def started(pipe):
    pipe.start()


def burst(gateway, calls):
    """Send `calls` (bodies, with a key) at once; the answers in order."""
    return gateway.at_once(
        {"method": "POST", "url": "/v1/detect", "json": body, "headers": {"X-API-Key": key}}
        for key, body in calls
    )


def has_policy(key, **policy):
    ApiKey.objects.filter(pk=key.row.pk).update(detection_policy=policy)


class TestCache:
    def test_the_second_answer_is_the_firsts(self, gateway, engine, acme_key):
        first = gateway.detect(ATTACK, key=acme_key).json()
        second = gateway.detect(ATTACK, key=acme_key).json()

        assert len(engine.asked) == 1
        assert (first["cached"], second["cached"]) == (False, True)
        assert second["cache_age_seconds"] >= 0
        assert second["endpoint"] == "embedded"
        its_own = ("request_id", "processing_time_ms", "cached", "cache_age_seconds")
        for field in its_own:
            first.pop(field), second.pop(field)
        assert first == second

    def test_the_threshold_is_applied_afterwards(self, gateway, engine, acme_key):
        score = gateway.detect(ATTACK, key=acme_key).json()["confidence"]

        low = gateway.detect(ATTACK, key=acme_key, confidence_threshold=0.01).json()
        high = gateway.detect(ATTACK, key=acme_key, confidence_threshold=1.0).json()

        assert 0.01 < score < 1
        assert (low["is_malicious"], high["is_malicious"]) == (True, False)
        assert low["cached"] is high["cached"] is True

    @pytest.mark.parametrize(
        "other",
        [
            {"text": ATTACK.lower()},
            {"text": ATTACK + " "},
            {"text": ATTACK, "config": {"content_type": "document"}},
        ],
        ids=["lower case", "a space more", "another content type"],
    )
    def test_only_the_very_same_text_hits(self, gateway, engine, acme_key, other):
        gateway.detect(ATTACK, key=acme_key)

        assert gateway.post("/v1/detect", other, key=acme_key).json()["cached"] is False
        assert len(engine.asked) == 2

    def test_another_engine_or_version_starts_afresh(
        self, gateway, engine, acme_key, settings, monkeypatch
    ):
        gateway.detect(ATTACK, key=acme_key)
        monkeypatch.setattr(registry.default(), "version", "3.0.0")
        by_version = gateway.detect(ATTACK, key=acme_key).json()["cached"]
        settings.DETECTION_ENGINE_WINDOW_BYTES = 400
        by_window = gateway.detect(ATTACK, key=acme_key).json()["cached"]

        assert (by_version, by_window) == (False, False)

    def test_it_is_not_used_when_unwanted_but_made_for_others(self, gateway, engine, acme_key):
        gateway.detect(ATTACK, key=acme_key, use_cache=False)
        again = gateway.detect(ATTACK, key=acme_key, use_cache=False).json()
        others = gateway.detect(ATTACK, key=acme_key).json()

        assert (again["cached"], others["cached"]) == (False, True)
        assert len(engine.asked) == 2

    def test_it_ends_after_its_seconds(self, gateway, engine, acme_key, settings):
        gateway.detect(ATTACK, key=acme_key)
        settings.SCORE_CACHE_SECONDS = 0

        assert gateway.detect(ATTACK, key=acme_key).json()["cached"] is False

    @pytest.mark.hostile
    def test_no_tenant_learns_that_another_asked_the_same(
        self, gateway, engine, acme_key, make_key, globex_key
    ):
        gateway.detect(ATTACK, key=acme_key)

        stranger = gateway.detect(ATTACK, key=globex_key).json()
        colleague = gateway.detect(ATTACK, key=make_key()).json()

        assert (stranger["cached"], stranger["cache_age_seconds"]) == (False, 0)
        assert colleague["cached"] is True
        assert len(engine.asked) == 2

    @pytest.mark.hostile
    def test_nor_by_joining_anothers_call(self, gateway, engine, acme_key, globex_key):
        engine.is_slow(0.2)
        answers = burst(gateway, [(k, {"text": ATTACK}) for k in (acme_key, globex_key) * 3])

        assert len(engine.asked) == 2
        assert sorted(r.json()["cached"] for r in answers) == [False] * 2 + [True] * 4

    @pytest.mark.hostile
    def test_nor_by_what_the_embedded_detector_works_on(
        self, gateway, engine, acme_key, globex_key, monkeypatch
    ):
        engine.is_down()
        asked, real = [], embedded.analyse

        def analyse(text, content_type):
            asked.append(text)
            time.sleep(0.1)  # so that all of them come meanwhile
            return real(text, content_type)

        monkeypatch.setattr(services.embedded, "analyse", analyse)
        burst(gateway, [(k, {"text": ATTACK}) for k in (acme_key, globex_key) * 3])

        assert len(asked) == 2

    def test_an_answer_of_any_length_does_not_fill_redis(
        self, gateway, engine, acme_key, monkeypatch
    ):
        monkeypatch.setattr(scores, "BYTES_MAX", 20)

        answers = [gateway.detect(ATTACK, key=acme_key).json() for _ in range(2)]

        assert [one["cached"] for one in answers] == [False, False]

    @pytest.mark.needs_redis
    def test_they_lie_in_a_redis_of_their_own_where_one_is_named(
        self, gateway, engine, acme_key, tmp_path
    ):
        with PrivateRedis(tmp_path) as other:
            pipe = redis.PipelinedConnection(other.url)
            gateway.run(started(pipe))
            redis._cache = pipe
            try:
                gateway.detect(ATTACK, key=acme_key)
                assert gateway.detect(ATTACK, key=acme_key).json()["cached"] is True
                with other.client as client:
                    assert len(client.keys("gw:score:*")) == 1
                assert not redis.client().keys("gw:score:*")
                other.stop()
                gateway.run(asyncio.sleep(0.05))
                r = gateway.detect(ATTACK, key=acme_key)
            finally:
                redis._cache = None
                gateway.run(pipe.close())

        assert (r.status_code, r.json()["cached"]) == (200, False)
        assert ratelimit.get_limiter().degraded_since is None  # limits do not notice

    def test_redis_holds_neither_text_nor_a_digest_anybody_can_make(self, gateway, engine):
        from hashlib import sha256

        key = scores.key_of(ATTACK, "user_input", registry.default().id, uuid4())

        assert sha256(ATTACK.encode()).hexdigest() not in key
        assert ATTACK not in key

    def test_a_degraded_answer_is_not_kept(self, gateway, engine, acme_key):
        engine.fails(500)
        gateway.detect(ATTACK, key=acme_key)
        engine.is_well()

        assert gateway.detect(ATTACK, key=acme_key).json()["source"] == "engine"

    @pytest.mark.parametrize("value", [b"{", b"[1,2]", b"null", b'["a",[],null,null,1,1,"x"]'])
    def test_what_cannot_be_read_is_a_miss(self, value):
        assert scores._read(value) is None

    @pytest.mark.parametrize(
        ("ago", "known"), [(-3600, False), (0, True), (3599, True), (3700, False)]
    )
    def test_a_clock_that_jumps_makes_no_score_eternal(self, ago, known):
        at = int(timezone.now().timestamp()) - ago
        value = orjson.dumps([0.5, [], None, None, 1, 1, at])

        assert (scores._read(value) is not None) == known


class TestAtOnce:
    @pytest.mark.slow
    def test_a_thousand_equal_requests_ask_the_engine_once(self, gateway, engine, make_key):
        key = make_key(rate_limit_per_minute=10_000)
        engine.is_slow(2)  # all have to be there before it answers
        before = cache_requests.labels("score", "joined")._value.get()

        answers = burst(gateway, [(key, {"text": ATTACK})] * 1000)

        assert {r.status_code for r in answers} == {200}
        assert {r.json()["confidence"] for r in answers} == {answers[0].json()["confidence"]}
        assert len(engine.asked) == 1
        joined = sum(r.json()["cached"] for r in answers)
        assert joined == 999
        assert cache_requests.labels("score", "joined")._value.get() >= before
        assert {r.json()["cache_age_seconds"] for r in answers} == {0}

    def test_who_looked_before_the_score_was_stored_joins_after(
        self, gateway, engine, make_key, monkeypatch
    ):
        key = make_key(rate_limit_per_minute=10_000)

        async def found_nothing(look_up):
            # Answers before, while and after it is stored.
            await asyncio.sleep(random.random() * 0.2)

        # Beside other tests, half a second is soon over.
        monkeypatch.setattr(registry.engines().asking, "_grace_seconds", 30)
        monkeypatch.setattr(scores.LookUp, "found", found_nothing)
        engine.is_slow(0.1)

        answers = burst(gateway, [(key, {"text": ATTACK})] * 50)

        assert {r.status_code for r in answers} == {200}
        assert len(engine.asked) == 1

    def test_one_in_a_hurry_takes_nothing_from_the_others(self, gateway, engine, acme_key):
        engine.is_slow(0.6)

        hasty, patient = burst(
            gateway,
            [
                (acme_key, {"text": ATTACK, "config": {"timeout_seconds": 0.1}}),
                (acme_key, {"text": ATTACK}),
            ],
        )

        assert hasty.json()["degraded_reason"] == "timeout"
        assert patient.json()["source"] == "engine"
        assert len(engine.asked) == 1

    def test_haste_of_callers_does_not_open_the_breaker(self, gateway, engine, acme_key):
        engine.is_slow(0.3)
        hasty = [
            (acme_key, {"text": f"{HARMLESS} {n}", "config": {"timeout_seconds": 0.1}})
            for n in range(8)
        ]

        reasons = {r.json()["degraded_reason"] for r in burst(gateway, hasty)}
        gateway.run(asyncio.sleep(0.5))

        assert reasons == {"timeout"}
        assert registry.default().breaker.report() == {"state": "closed", "failures": 0}


class TestWindows:
    FILLER = "The library opens at nine and closes at five on weekdays. "

    def text(self, at, chars=5000):
        filler = self.FILLER * (chars // len(self.FILLER))
        return filler[:at] + ATTACK + filler[at:]

    @pytest.mark.parametrize("at", [0, 700, 2500, 4999])
    def test_an_attack_is_found_wherever_it_stands(self, gateway, engine, acme_key, at):
        engine.has(cut_bytes=500)

        body = gateway.detect(self.text(at), key=acme_key, detailed_response=True).json()

        assert body["is_malicious"] is True
        assert body["source"] == "engine"
        assert body["threat_types"]
        assert all(len(asked["text"].encode()) <= 500 for asked in engine.asked)

    def test_a_harmless_text_is_read_whole(self, gateway, engine, acme_key):
        text = self.text(0).replace(ATTACK, "")

        body = gateway.detect(text, key=acme_key, detailed_response=True).json()

        assert (body["status"], body["decision"]) == ("complete", "allow")
        assert body["details"]["coverage"] == {
            "scanned_chars": len(text),
            "total_chars": len(text),
        }
        assert len(engine.asked) == 13

    def test_beyond_32_windows_the_verdict_is_partial_and_asks_for_review(
        self, gateway, engine, acme_key
    ):
        body = gateway.detect("é😀" * 5000, key=acme_key, detailed_response=True).json()

        coverage = body["details"]["coverage"]
        assert (body["status"], body["decision"]) == ("partial", "review")
        assert 0 < coverage["scanned_chars"] < coverage["total_chars"] == 10_000
        assert len(engine.asked) == 32
        again = gateway.detect("é😀" * 5000, key=acme_key).json()
        assert again["cached"] is False

    def test_one_that_is_sure_ends_the_asking(self, gateway, engine, acme_key):
        engine.has(score_floor=0.97)

        gateway.detect(self.text(0, 9000), key=acme_key)

        assert len(engine.asked) <= engine_module.WINDOWS_AT_ONCE + 8 < 24

    def test_at_most_eight_are_in_flight(self, gateway, engine, acme_key):
        engine.is_slow(0.05)
        asked, most, now = engine_module.Engine._ask_one, 0, 0

        async def counted(self, *args):
            nonlocal most, now
            now += 1
            most = max(most, now)
            try:
                return await asked(self, *args)
            finally:
                now -= 1

        with patch.object(engine_module.Engine, "_ask_one", counted):
            gateway.detect(self.text(0, 9000).replace(ATTACK, ""), key=acme_key)

        assert most == 8

    def test_it_costs_one_of_the_day(self, gateway, engine, acme_key):
        r = gateway.detect(self.text(0), key=acme_key)

        assert '"day";r=9999' in r.headers["ratelimit"]


class TestStale:
    @pytest.fixture
    def old(self, gateway, engine, acme_key, time_machine):
        gateway.detect(ATTACK, key=acme_key)
        time_machine.move_to(timezone.now() + timedelta(minutes=20), tick=False)
        engine.fails(503)

    def test_an_old_score_answers_in_trouble_and_says_so(self, gateway, old, acme_key):
        body = gateway.detect(ATTACK, key=acme_key).json()

        assert (body["source"], body["status"], body["cached"]) == ("engine", "degraded", True)
        assert body["degraded_reason"] == "engine_error"
        assert 1195 <= body["cache_age_seconds"] <= 1205

    def test_not_for_who_wants_no_cache(self, gateway, old, acme_key):
        body = gateway.detect(ATTACK, key=acme_key, use_cache=False).json()

        assert body["source"] == "fallback"

    def test_not_for_who_fails_closed(self, gateway, old, acme_key):
        r = gateway.detect(ATTACK, key=acme_key, on_unavailable="fail_closed")

        problem(r, 503, "detection_unavailable")

    def test_a_well_engine_is_asked_anew(self, gateway, engine, old, acme_key):
        engine.is_well()

        assert gateway.detect(ATTACK, key=acme_key).json()["cached"] is False


class TestKeyPolicy:
    def test_a_threshold_for_each_who_may_answer(self, gateway, engine, acme_key):
        has_policy(acme_key, threshold={"engine": 0.99999, "fallback": 0.2})

        by_engine = gateway.detect(ATTACK, key=acme_key).json()
        engine.fails(500)
        by_fallback = gateway.detect(ATTACK, key=acme_key, use_cache=False).json()
        asked = gateway.detect(ATTACK, key=acme_key, confidence_threshold=0.3).json()

        assert (by_engine["threshold"], by_engine["is_malicious"]) == (0.99999, False)
        assert (by_fallback["threshold"], by_fallback["is_malicious"]) == (0.2, True)
        assert by_engine["threshold_source"] == by_fallback["threshold_source"] == "policy"
        assert (asked["threshold"], asked["threshold_source"]) == (0.3, "request")

    def test_it_may_only_watch(self, gateway, engine, acme_key):
        has_policy(acme_key, mode="monitor")

        body = gateway.detect(ATTACK, key=acme_key).json()

        assert (body["decision"], body["would_flag"]) == ("allow", True)

    def test_failing_open_says_that_nobody_looked(self, gateway, engine, acme_key):
        has_policy(acme_key, on_unavailable="fail_open")
        engine.is_down()

        body = gateway.detect(ATTACK, key=acme_key).json()

        expected = {
            "is_malicious": False,
            "confidence": 0.0,
            "threat_types": [],
            "decision": "review",
            "status": "degraded",
            "source": "none",
            "degraded_reason": "connect_error",
            "cached": False,
        }
        assert {name: body[name] for name in expected} == expected

    def test_failing_open_is_only_for_keys_that_may(self, gateway, engine, acme_key):
        r = gateway.detect(ATTACK, key=acme_key, on_unavailable="fail_open")

        problem(r, 403, "fail_open_forbidden")

    def test_failing_open_with_a_threshold_of_0_still_flags_nothing(
        self, gateway, engine, acme_key
    ):
        has_policy(acme_key, on_unavailable="fail_open")
        engine.is_down()

        body = gateway.detect(ATTACK, key=acme_key, confidence_threshold=0, detailed_response=True)

        assert body.json()["is_malicious"] is False

    def test_an_engine_that_refuses_us_never_fails_open(self, gateway, engine, acme_key):
        has_policy(acme_key, on_unavailable="fail_open")
        engine.fails(401)

        body = gateway.detect(ATTACK, key=acme_key).json()

        assert body["source"] == "fallback"


def test_a_policy_is_parsed_once():
    assert policies.in_force('{"mode": "monitor"}') is policies.in_force('{"mode": "monitor"}')
    assert policies.in_force("") is policies.DEFAULT


@pytest.mark.needs_redis
class TestForcedBreaker:
    """`manage.py breaker` reaches a running process."""

    def state(self, gateway):
        return gateway.get("/health").json()["breakers"]["engine"]

    def until(self, gateway, condition):
        async def wait():
            async with asyncio.timeout(5):
                while not condition():  # noqa: ASYNC110 - a word under way cannot be awaited
                    await asyncio.sleep(0.02)

        gateway.run(wait())

    def test_open_closed_and_let_go(self, gateway, engine, acme_key):
        breaker = registry.default().breaker

        call_command("breaker", "engine", "open", verbosity=0, stdout=io.StringIO())
        self.until(gateway, lambda: breaker.forced == "open")
        body = gateway.detect(ATTACK, key=acme_key).json()
        shown = self.state(gateway)
        call_command("breaker", "engine", "auto", stdout=io.StringIO())
        self.until(gateway, lambda: breaker.forced is None)

        assert (body["source"], body["degraded_reason"]) == ("fallback", "circuit_open")
        assert shown == {"state": "open", "failures": 0, "forced": True}
        assert gateway.detect(ATTACK, key=acme_key).json()["source"] == "engine"
        assert (
            list(AuditEvent.objects.values_list("action", "target"))[:2]
            == [("breaker.forced", "engine")] * 2
        )

    def test_a_process_that_was_cut_off_reads_it_when_it_is_back(self, gateway, engine):
        breaker = registry.default().breaker
        redis.client().hset("gw:breakers:forced", "engine", "open")

        async def gap():
            breaker_module._read_forced_again()

        gateway.run(gap())
        self.until(gateway, lambda: breaker.forced == "open")

    def test_health_shows_the_worst_of_all_processes(self, gateway, engine):
        now = int(timezone.now().timestamp())
        trouble = {"engine other/1": f"open {now - 7} 90", "engine dead/2": f"open {now - 100} 90"}
        redis.client().hset("gw:breakers:trouble", mapping=trouble)

        shown = self.state(gateway)

        assert (shown["state"], shown["failures"]) == ("open", 0)
        assert 6 <= shown["open_for_seconds"] <= 9
        self.until(
            gateway, lambda: redis.client().hkeys("gw:breakers:trouble") == [b"engine other/1"]
        )

    def test_an_open_breaker_is_known_to_the_others(self, gateway, engine, acme_key):
        engine.fails(500)
        for n in range(5):
            gateway.detect(f"{HARMLESS} {n}", key=acme_key)

        def left():
            return [field[:7] for field in redis.client().hkeys("gw:breakers:trouble")]

        self.until(gateway, lambda: left() == [b"engine "])
