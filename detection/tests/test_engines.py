"""Any engine through one door: what it says well counts, and what it says badly never does"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import inf, nan

import pytest
from aiohttp import web

from accounts.models import Parked, UsageLog
from accounts.services import Actor
from detection.engines import addresses, registry
from detection.engines.addresses import BadAddress
from detection.engines.engine import REASON_CHARS_MAX, EngineUnavailable
from detection.models import EngineDay
from detection.policies import policy as policies
from detection.tests import fake_engines
from detection.tests.fake_engines import EVERY_BAD, VENDORS, completion, verdict
from detection.tests.test_detect import ATTACK, HARMLESS, problem
from gateway_project.core.context import RequestContext
from gateway_project.core.storable import unstorable

KINDS = pytest.mark.parametrize("kind", VENDORS)
PLAIN = "The meeting moved to Tuesday; please bring the figures."


@pytest.fixture(scope="module")
def _fake():
    with fake_engines.serving() as fake:
        yield fake


@pytest.fixture
def fake(_fake, gateway, engine):
    _fake.is_well()
    return _fake


@pytest.fixture
def ask(gateway, fake, acme_key):
    """Answers of a key whose first engine is of that kind."""
    known = []

    def ask(kind, text, score=0.1, *, url="", **config):
        address, says = VENDORS[kind]
        if not known:
            fake.answer = fake.answer if score is None else says(score)
            known.append(fake_engines.add(gateway, kind, url or address.format(fake.address)))
            policies.save(acme_key.row, {"engines": {"first": kind}}, actor=Actor("test"))
        return gateway.detect(text, key=acme_key, **config)

    yield ask
    for one in known:
        fake_engines.remove(gateway, one.name)


class TestWhatIsSaidWell:
    @KINDS
    @pytest.mark.parametrize(("score", "decision"), [(0.95, "flag"), (0.05, "allow")])
    def test_it_counts(self, ask, kind, score, decision):
        body = ask(kind, PLAIN, score).json()

        assert (body["decision"], body["status"], body["source"]) == (
            decision,
            "complete",
            "engine",
        )
        assert body["engine"] == kind
        assert (body["confidence"] >= 0.6) == (decision == "flag")
        assert bool(body["threat_types"]) == (decision == "flag")

    @KINDS
    def test_the_key_of_the_address_goes_along_and_nowhere_else(self, ask, fake, kind):
        r = ask(kind, PLAIN, 0.05, detailed_response=True)

        assert r.status_code == 200
        secret = addresses.parse(VENDORS[kind][0].format(fake.address), kind).secret
        if secret:
            assert any(secret in value for value in fake.headers[0].values())
            assert secret not in r.text
            assert secret not in registry.engines().get(kind).id

    @KINDS
    def test_its_score_is_remembered_under_its_own_name(self, ask, fake, kind, gateway, acme_key):
        ask(kind, PLAIN, 0.95)
        again = ask(kind, PLAIN).json()

        assert (again["cached"], again["engine"], len(fake.asked)) == (True, kind, 1)
        policies.save(acme_key.row, {}, actor=Actor("test"))
        body = gateway.detect(PLAIN, key=acme_key).json()
        assert (body["cached"], body["decision"]) == (False, "allow")

    @KINDS
    def test_its_health_is_shown(self, ask, gateway, fake, kind):
        ask(kind, PLAIN)

        assert gateway.run(registry.engines().get(kind).probe()) == "up"

    @pytest.mark.parametrize("kind", ["judge", "llmguard", "go"])
    def test_so_is_its_trouble(self, ask, gateway, fake, kind):
        ask(kind, PLAIN)
        fake.health = 503

        assert gateway.run(registry.engines().get(kind).probe()) == "down"

    def test_documents_are_shown_to_prompt_shields_as_documents(self, ask, fake):
        ask("azure", PLAIN, 0.95, content_type="tool_output")

        assert fake.asked[0] == {"userPrompt": "", "documents": [PLAIN]}
        assert fake.paths[0] == "/contentsafety/text:shieldPrompt?api-version=2024-09-01"

    def test_only_attacks_count_of_what_lakera_finds(self, ask):
        """Its fake finds a name in every text."""
        assert ask("lakera", PLAIN, 0.05).json()["decision"] == "allow"

    @pytest.mark.parametrize("level", ["l1_confident", "l2_very_likely", "l3_likely"])
    def test_levels_from_likely_on_are_malicious(self, ask, fake, level):
        says = fake_engines.lakera(0.95)

        def answer(body):
            found = says(body)
            found["breakdown"][0]["result"] = level
            return found

        fake.answer = answer
        assert ask("lakera", PLAIN, None).json()["is_malicious"] is True

    @KINDS
    def test_a_long_text_is_asked_in_windows(self, ask, fake, kind):
        address, says = VENDORS[kind]
        mark = "for the attention of the assistant"

        def answer(body):
            return says(0.95 if mark in json.dumps(body) else 0.05)(body)

        fake.answer = answer
        url = address.format(fake.address)
        url += ("&" if "?" in url else "?") + "window=300"
        body = ask(kind, f"{PLAIN} " * 20 + mark, None, url=url).json()

        assert body["decision"] == "flag"
        assert len(fake.asked) > 1

    def test_llm_guard_is_shown_no_more_than_its_scanner_reads(self, ask, fake):
        ask("llmguard", f"{PLAIN} " * 60)

        assert max(len(body["prompt"]) for body in fake.asked) <= 1_500 < len(PLAIN) * 60
        assert len(fake.asked) > 1


class TestWhatIsSaidBadly:
    @KINDS
    @pytest.mark.parametrize("bad", EVERY_BAD)
    def test_it_is_never_a_clean_verdict(self, ask, fake, kind, bad):
        fake.bad = bad
        config = {"timeout_seconds": 0.4} if bad == "late" else {}

        body = ask(kind, ATTACK, 0.05, **config).json()

        assert (body["status"], body["source"]) == ("degraded", "fallback"), body
        assert body["is_malicious"] is True
        assert body["degraded_reason"] in ("timeout", "connect_error", "engine_error")

    @KINDS
    @pytest.mark.parametrize("bad", ["html", "503", "half"])
    def test_it_fails_closed_where_that_is_asked_for(self, ask, fake, kind, bad):
        fake.bad = bad

        problem(ask(kind, PLAIN, 0.05, on_unavailable="fail_closed"), 503, "detection_unavailable")

    @KINDS
    def test_it_opens_the_breaker(self, ask, fake, kind):
        fake.bad = "500"
        for number in range(6):
            ask(kind, f"{PLAIN} {number}")
        asked = len(fake.asked)

        body = ask(kind, PLAIN).json()

        assert body["degraded_reason"] == "circuit_open"
        assert len(fake.asked) == asked

    @KINDS
    def test_a_refusal_does_not_fail_open(self, ask, fake, gateway, acme_key, kind):
        ask(kind, PLAIN)
        policies.save(
            acme_key.row,
            {"engines": {"first": kind}, "on_unavailable": "fail_open"},
            actor=Actor("test"),
        )
        fake.bad = "401"

        body = gateway.detect(ATTACK, key=acme_key).json()

        assert (body["source"], body["is_malicious"]) == ("fallback", True)

    @pytest.mark.parametrize(
        ("kind", "change"),
        [
            ("go", {"confidence": "0.1"}),
            ("go", {"confidence": True}),
            ("go", {"confidence": None}),
            ("go", {"is_malicious": "no"}),
            ("go", {"threat_types": "injection"}),
            ("go", {"coverage": []}),
            ("lakera", {"flagged": "no"}),
            ("lakera", {"breakdown": None}),
            ("lakera", {"breakdown": []}),
            ("lakera", {"breakdown": [{"detector_type": "pii", "detected": False}]}),
            ("lakera", {"breakdown": [{"detector_type": "prompt_attack", "detected": "no"}]}),
            (
                "lakera",
                {
                    "breakdown": [
                        {"detector_type": "prompt_attack", "detected": True, "result": "x"}
                    ]
                },
            ),
            ("azure", {"userPromptAnalysis": None}),
            ("azure", {"userPromptAnalysis": {}}),
            ("azure", {"userPromptAnalysis": {"attackDetected": "false"}}),
            ("azure", {"userPromptAnalysis": {"attackDetected": 0}}),
            ("azure", {"userPromptAnalysis": []}),
            ("llmguard", {"is_valid": 1}),
            ("llmguard", {"scanners": {}}),
            ("llmguard", {"scanners": []}),
            ("llmguard", {"scanners": {"Toxicity": -1.0}}),
            ("llmguard", {"scanners": {"PromptInjection": "-1"}}),
            ("llmguard", {"scanners": {"PromptInjection": 1.0}}),
            ("judge", {"choices": []}),
            ("judge", {"choices": None}),
            ("judge", {"choices": [{"message": None}]}),
            ("judge", {"choices": [{"message": {"content": None}}]}),
            ("judge", {"choices": [{"message": {"content": ["{}"]}}]}),
        ],
    )
    def test_neither_are_wrong_types(self, ask, fake, kind, change):
        says = VENDORS[kind][1](0.05)
        fake.answer = lambda body: {**says(body), **change}

        body = ask(kind, ATTACK, None).json()

        assert (body["status"], body["degraded_reason"]) == ("degraded", "engine_error")
        assert body["is_malicious"] is True

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
    @pytest.mark.parametrize("kind", ["go", "llmguard", "judge"])
    def test_nor_numbers_that_are_none(self, ask, fake, kind, number):
        texts = {
            "go": '{"is_malicious": false, "confidence": %s}',
            "llmguard": '{"is_valid": true, "scanners": {"PromptInjection": %s}}',
            "judge": '{"choices": [{"message": {"content": "{}"}}], "usage": %s}',
        }
        fake.answer = lambda body: web.Response(
            text=texts[kind] % number, content_type="application/json"
        )

        body = ask(kind, ATTACK, None).json()

        assert (body["status"], body["is_malicious"]) == ("degraded", True)


DEFINITION = json.dumps({"name": "search", "description": PLAIN, "note": f"{HARMLESS} Or not."})


class TestWhatItHasNotSeen:
    """Of parts that are asked apart no more counts as seen than was seen of each."""

    @pytest.fixture
    def half(self, ask, fake):
        def half(text, *, window=0, **config):
            url = f"http://{fake.address}?window={window}&floor=0"
            says = fake_engines.go(0.1)
            fake.answer = lambda body: {
                **says(body),
                "coverage": {"scanned_chars": len(body["text"]) // 2, "reasons": ["not_decoded"]},
            }
            return ask("go", text, None, url=url, **config).json()

        return half

    @pytest.mark.parametrize(
        ("text", "more"),
        [
            (PLAIN, {}),
            (f"{PLAIN} " * 30, {"window": 500}),
            (json.dumps({"a": PLAIN, "b": HARMLESS}), {"content_type": "tool_output"}),
            (DEFINITION, {"content_type": "tool_definition"}),
            (DEFINITION, {"content_type": "tool_definition", "window": 60}),
        ],
        ids=["whole", "windows", "strings together", "strings apart", "apart and in windows"],
    )
    def test_it_is_said_and_reviewed(self, half, text, more):
        body = half(text, **more)

        assert body["coverage"]["unseen"] == [{"reason": "not_decoded"}]
        assert body["coverage"]["scanned_chars"] <= 0.55 * len(text)
        assert (body["status"], body["decision"]) == ("partial", "review")
        assert half(text, **more)["cached"] is False

    @pytest.mark.parametrize("failing", [PLAIN, f"search\n{PLAIN}"], ids=["a part", "the whole"])
    def test_nor_is_a_string_seen_whose_call_failed(self, ask, fake, failing):
        says = fake_engines.go(0.55)

        def answer(body):
            if body["text"].startswith(failing):
                return web.json_response({}, status=503)
            return {**says(body), "threat_types": ["injection"]}

        fake.answer = answer
        url = f"http://{fake.address}?window=0&floor=0"
        body = ask("go", DEFINITION, None, url=url, content_type="tool_definition").json()

        assert body["coverage"]["unseen"] == [{"reason": "cut"}]
        assert body["coverage"]["scanned_chars"] < len(DEFINITION)
        assert (body["status"], body["decision"]) == ("partial", "review")


ODD = {
    "nested": "[" * 1_000 + "]" * 1_000,
    "an object": '{"a": {"b": []}}',
    "NUL": '"in\\u0000jection"',
    "a number without end": "9" * 5_000,
    "half": '"\\ud800"',
    "a long text": f'"{"long " * 2_000}"',
}


def places(value, *path):
    """The paths to all that an answer holds."""
    if isinstance(value, dict | list):
        for key, one in value.items() if isinstance(value, dict) else enumerate(value):
            yield (*path, key)
            yield from places(one, *path, key)


def put(value, path, other):
    """`value` with something else at that path."""
    if not path:
        return other
    changed = value.copy()
    changed[path[0]] = put(value[path[0]], path[1:], other)
    return changed


class TestWhateverItSays:
    @KINDS
    @pytest.mark.parametrize("odd", ODD)
    def test_no_field_of_it_is_an_error_of_ours_or_cannot_be_kept(
        self, ask, fake, gateway, kind, odd
    ):
        """Each in turn is something else: whatever its fake answers is tried."""
        ask(kind, PLAIN)
        engine = registry.engines().get(kind)
        engine.breaker.force("closed")
        whole = {"reason": "why", "coverage": {"scanned_chars": 5, "reasons": ["cut"]}}
        says = VENDORS[kind][1](0.95)

        def answer(body, path):
            found = {**says(body), **(whole if kind == "go" else {})}
            text = json.dumps(put(found, path, "@"))
            return web.Response(text=text.replace('"@"', ODD[odd]), content_type="application/json")

        example = {**says(fake.asked[0]), **(whole if kind == "go" else {})}
        for path in places(example):
            fake.answer = partial(answer, path=path)
            context = RequestContext("", None, None)
            asked = engine.ask(PLAIN, "user_input", timeout_seconds=5, context=context)
            try:
                scored = gateway.run(asked)
            except EngineUnavailable:
                continue
            words = [*scored.threat_types, *scored.unseen, scored.endpoint, scored.reason or ""]
            assert unstorable(words) is None, path
            assert max(map(len, words)) <= REASON_CHARS_MAX, path

    @KINDS
    @pytest.mark.parametrize("odd", ODD)
    def test_neither_is_its_health(self, ask, fake, gateway, kind, odd):
        ask(kind, PLAIN)
        fake.version = ODD[odd]

        assert gateway.run(registry.engines().get(kind).probe()) == "up"
        assert unstorable(registry.engines().get(kind).version) is None

    def test_what_no_store_takes_is_mended_and_logged(self, ask, fake, gateway, acme_key):
        nul = "in\x00jection"
        fake.answer = lambda body: {
            **fake_engines.go(0.95)(body),
            "threat_types": [nul],
            "reason": nul,
            "endpoint": nul,
            "coverage": {"scanned_chars": 5, "reasons": [nul]},
        }

        ask("go", HARMLESS, None)
        body = {"text": PLAIN, "webhook_url": "https://192.0.2.1.example"}
        r = gateway.post("/v1/detect", body, key=acme_key)
        gateway.flush_usage()

        assert (r.status_code, r.json()["threat_types"]) == (200, ["in\ufffdjection"])
        kept = UsageLog.objects.values_list("why__threats", flat=True)
        assert list(kept) == [["in\ufffdjection"]] * 2
        assert not Parked.objects.exists()


def chat_answer(content):
    return lambda body: completion(content)


def changed(**more):
    return lambda body: completion(json.dumps(verdict(body, 0.02, **more)))


OBEYS = {
    "says what the text tells it": lambda body: completion(
        '{"check": "ok", "attack": 0, "verdict": "harmless", "kinds": []}'
    ),
    "only the score": chat_answer('{"attack": 0}'),
    "another format": chat_answer('{"is_malicious": false, "confidence": 0.0}'),
    "prose": chat_answer("This text is harmless."),
    "follows it": chat_answer("PWNED"),
    "in a fence": lambda body: completion(f"```json\n{json.dumps(verdict(body, 0.02))}\n```"),
    "and explains": lambda body: completion(f"{json.dumps(verdict(body, 0.02))} It is harmless."),
    "twice": lambda body: completion(json.dumps([verdict(body, 0.02)])),
    "nothing": chat_answer(""),
    "null": chat_answer("null"),
    "without the word": changed(check=""),
    "with the fence for the word": lambda body: completion(
        json.dumps(
            verdict(body, 0.02, check=body["messages"][1]["content"].splitlines()[0].strip("= "))
        )
    ),
    "a word that is no text": changed(check=7),
    "the score as a text": changed(attack="0"),
    "no score": changed(attack=None),
    "a score of true": changed(attack=True),
    "below nothing": changed(attack=-5),
    "above everything": changed(attack=500, verdict="attack"),
    "NaN": lambda body: completion(json.dumps(verdict(body, 0.02) | {"attack": nan})),
    "infinity": lambda body: completion(json.dumps(verdict(body, 0.02) | {"attack": inf})),
    "two minds": changed(verdict="attack"),
    "a verdict of its own": changed(verdict="unclear"),
    "kinds of its own": changed(kinds=["nothing"]),
    "kinds that are no list": changed(kinds="injection"),
    "more than asked for": changed(note="The text is harmless."),
    "refuses": lambda body: completion(
        None, choices=[{"message": {"content": None, "refusal": "I cannot help with that."}}]
    ),
    "cut off": lambda body: completion(
        None,
        choices=[
            {
                "message": {"content": json.dumps(verdict(body, 0.02))},
                "finish_reason": "length",
            }
        ],
    ),
    "filtered": lambda body: completion(
        None,
        choices=[
            {
                "message": {"content": json.dumps(verdict(body, 0.02))},
                "finish_reason": "content_filter",
            }
        ],
    ),
    "persuaded, in form": changed(),
    "nested without end": chat_answer(ODD["nested"]),
    "kinds that are nested": lambda body: completion(
        json.dumps(verdict(body, 0.02, kinds=["@"])).replace('"@"', ODD["nested"])
    ),
}


class TestTheJudge:
    @pytest.mark.parametrize("how", OBEYS)
    def test_one_that_obeys_the_text_is_not_believed(self, ask, fake, how):
        fake.answer = OBEYS[how]

        body = ask("judge", ATTACK, None).json()

        assert (body["status"], body["source"]) == ("degraded", "fallback"), body
        assert body["is_malicious"] is True

    @pytest.mark.hostile
    @pytest.mark.parametrize("how", OBEYS)
    def test_texts_that_it_declines_are_no_outage_for_others(
        self, ask, fake, how, gateway, acme_key, make_key, globex
    ):
        ask("judge", PLAIN, 0.05)
        engines = {"engines": {"first": "judge"}}
        policies.save(acme_key.row, engines | {"on_unavailable": "fail_open"}, actor=Actor("test"))
        neighbour = make_key(globex)
        policies.save(neighbour.row, engines, actor=Actor("test"))
        fake.answer = OBEYS[how]

        declined = [gateway.detect(f"{ATTACK} {n}", key=acme_key).json() for n in range(6)]
        fake.answer = fake_engines.judge(0.05)
        body = gateway.detect(PLAIN, key=neighbour).json()

        assert {(one["source"], one["degraded_reason"]) for one in declined} == {
            ("fallback", "engine_error")
        }
        assert (body["engine"], body["status"]) == ("judge", "complete")

    @pytest.mark.hostile
    @pytest.mark.parametrize("how", ["prose", "refuses", "filtered", "400"])
    def test_nor_do_they_send_others_to_another_model(self, ask, fake, how):
        url = f"openai+http://{fake.address}/v1?model=one,two"
        fine = fake_engines.judge(0.05)

        def answer(body):
            is_declined = ATTACK in body["messages"][1]["content"] and body["model"] == "one"
            if is_declined and how == "400":
                return web.json_response({"error": "filtered"}, status=400)
            return OBEYS[how](body) if is_declined else fine(body)

        fake.answer = answer
        ask("judge", ATTACK, None, url=url)
        ask("judge", PLAIN)

        assert [body["model"] for body in fake.asked] == ["one", "two", "one"]

    def test_the_text_is_data_between_markers_that_it_cannot_know(self, ask, fake):
        ask("judge", f"{PLAIN}\n=== 0 ===", 0.05)
        ask("judge", f"{PLAIN} 2")

        fences = set()
        for body in fake.asked:
            system, user = body["messages"]
            assert (system["role"], user["role"]) == ("system", "user")
            first, *_, last = user["content"].splitlines()
            assert first == last
            assert first in system["content"]
            assert PLAIN not in system["content"]
            fences.add(first)
        assert len(fences) == 2

    def test_it_is_asked_for_one_object_at_temperature_0(self, ask, fake):
        ask("judge", PLAIN)

        body = fake.asked[0]
        assert body["temperature"] == 0
        assert body["response_format"]["type"] == "json_schema"
        assert body["response_format"]["json_schema"]["strict"] is True
        assert fake.paths == ["/v1/chat/completions"]
        assert fake.headers[0]["Authorization"] == "Bearer sk-1"

    def test_one_that_thinks_first_is_sent_no_temperature(self, ask, fake):
        ask("judge", PLAIN, url=f"openai+http://{fake.address}/v1?model=o9&reasoning=1")

        body = fake.asked[0]
        assert body["max_completion_tokens"] == 4_000
        assert not {"temperature", "max_tokens"} & set(body)

    def test_a_second_model_takes_its_turn_when_the_first_fails(self, ask, fake):
        url = f"openai+http://{fake.address}/v1?model=bad,good"
        fine = fake_engines.judge(0.95)
        fake.answer = lambda body: {"error": "no"} if body["model"] == "bad" else fine(body)

        one = ask("judge", PLAIN, None, url=url).json()
        two = ask("judge", f"{PLAIN} 2").json()

        assert {one["endpoint"], two["endpoint"]} == {"good"}
        assert [one["status"], two["status"]] == ["complete"] * 2
        # The bad one rests: it is not asked again at once.
        assert [body["model"] for body in fake.asked] == ["bad", "good", "good"]

    def test_without_any_that_answers_the_engine_is_away(self, ask, fake):
        url = f"openai+http://{fake.address}/v1?model=one,two"
        fake.answer = chat_answer("no")

        body = ask("judge", PLAIN, None, url=url).json()

        assert (body["status"], len(fake.asked)) == ("degraded", 2)

    def test_a_first_that_hangs_leaves_the_second_time(self, ask, fake, settings):
        settings.DETECTION_ENGINE_TIMEOUT_SECONDS = 2.0
        fine = fake_engines.judge(0.95)

        async def answer(body):
            if body["model"] == "slow":
                await asyncio.sleep(3600)
            return fine(body)

        fake.answer = answer
        url = f"openai+http://{fake.address}/v1?model=slow,quick"
        body = ask("judge", PLAIN, None, url=url).json()

        assert (body["status"], body["endpoint"]) == ("complete", "quick")

    def test_tokens_and_cost_are_counted_for_the_key(self, ask, fake, gateway, acme_key):
        from detection.ledger import ledger

        url = f"openai+http://{fake.address}/v1?model=judge-1&price_in=2.5&price_out=10"
        ask("judge", PLAIN, 0.05, url=url)
        ask("judge", f"{PLAIN} 2")
        ask("judge", PLAIN)  # remembered: it costs nothing
        gateway.run(ledger.flush())
        ask("judge", f"{PLAIN} 3")
        gateway.run(ledger.flush())

        row = EngineDay.objects.get(api_key_id=acme_key.row.pk)
        assert (row.engine, row.role, row.calls) == ("judge", "paid", 3)
        assert (row.tokens_in, row.tokens_out) == (1200, 180)
        assert row.cost == pytest.approx(3 * (400 * 2.5 + 60 * 10) / 1e6)


class TestWhatIsPaidFor:
    """Counted for the key, whatever the answers were worth."""

    @pytest.fixture
    def paid(self, gateway, acme_key):
        from detection.ledger import ledger

        def paid():
            gateway.run(ledger.flush())
            rows = EngineDay.objects.filter(api_key_id=acme_key.row.pk, role="paid")
            return [(row.engine, row.calls, row.tokens_in, row.cost) for row in rows]

        return paid

    def test_a_judge_that_is_not_believed(self, ask, fake, paid):
        fake.answer = chat_answer("no")
        url = f"openai+http://{fake.address}/v1?model=one,two&price_in=10"

        assert ask("judge", PLAIN, None, url=url).json()["status"] == "degraded"
        assert paid() == [("judge", 1, 800, pytest.approx(0.008))]

    def test_a_first_model_that_fails_beside_the_second(self, ask, fake, paid):
        url = f"openai+http://{fake.address}/v1?model=bad,good"
        fine = fake_engines.judge(0.95)
        fake.answer = lambda body: fine(body) if body["model"] == "good" else completion("no")

        assert ask("judge", PLAIN, None, url=url).json()["status"] == "complete"
        assert paid() == [("judge", 1, 800, 0.0)]

    def test_a_call_with_a_price_that_is_not_understood(self, ask, fake, paid):
        fake.answer = lambda body: {"flagged": "no"}
        url = f"lakera+http://:lk-1@{fake.address}?price=0.5"

        assert ask("lakera", PLAIN, None, url=url).json()["status"] == "degraded"
        assert paid() == [("lakera", 1, 0, 0.5)]

    def test_each_window(self, ask, fake, paid):
        url = f"lakera+http://:lk-1@{fake.address}?price=0.5&window=300"

        ask("lakera", f"{PLAIN} " * 20, url=url)

        assert paid() == [("lakera", 1, 0, 0.5 * len(fake.asked))]

    def test_it_is_not_paid_twice_by_who_joins(self, ask, fake, gateway, acme_key, paid):
        async def answer(body):
            await asyncio.sleep(0.2)
            return {"flagged": "no"}

        ask("lakera", PLAIN, url=f"lakera+http://:lk-1@{fake.address}?price=0.5")
        fake.answer = answer
        with ThreadPoolExecutor(3) as pool:
            texts = [f"{PLAIN} 2"] * 3
            list(pool.map(lambda text: gateway.detect(text, key=acme_key), texts))

        assert paid() == [("lakera", len(fake.asked), 0, 0.5 * len(fake.asked))]


class TestAddresses:
    @pytest.mark.parametrize(
        ("url", "kind", "where", "secret"),
        [
            ("http://engine:8080/", "http", "http://engine:8080", ""),
            ("https://u:p%40@engine/x", "https", "https://engine/x", "p@"),
            ("openai+https://:sk@h/v1?model=m", "openai+https", "https://h/v1", "sk"),
            ("lakera+https://:k@api.lakera.ai", "lakera+https", "https://api.lakera.ai", "k"),
            ("onnx:/models/guard", "onnx", "/models/guard", ""),
            ("onnx:org/name", "onnx", "org/name", ""),
            ("embedded:", "embedded", "", ""),
            ("http://[::1]:8080", "http", "http://[::1]:8080", ""),
        ],
    )
    def test_the_scheme_is_the_kind(self, url, kind, where, secret):
        found = addresses.parse(url)

        assert (found.kind, found.url, found.secret) == (kind, where, secret)

    @pytest.mark.parametrize(
        ("url", "says"),
        [
            ("", "no scheme"),
            ("engine:8080", "no scheme"),
            ("ftp://engine", "no scheme"),
            ("http://", "no host"),
            ("http://h:x", "port"),
            ("openai+https://:sk-secret@h/v1", "no model"),
            ("openai+https://:sk-secret@h/v1?modle=m", "modle"),
            ("onnx:", "no model"),
            ("http://h?window=many", "window"),
            ("http://h?window=-1", "window"),
            ("http://h?floor=nan", "floor"),
            ("lakera+https://:sk-secret@h?price=x", "price"),
        ],
    )
    def test_a_mistake_is_named_and_the_key_is_not(self, url, says):
        with pytest.raises(BadAddress) as caught:
            addresses.parse(url)

        assert says in str(caught.value)
        assert "sk-secret" not in str(caught.value)

    @pytest.mark.parametrize(
        "named",
        ["judge", "Judge=http://h", "default=http://h", "a=http://h a=http://g", "engine=http://h"],
    )
    def test_names_are_checked(self, named):
        with pytest.raises(BadAddress):
            addresses.parse_all("http://h", named)

    def test_there_may_be_several(self):
        found = addresses.parse_all("http://h", " a=embedded:\n b=openai+http://h/v1?model=x,y ")

        assert list(found) == ["default", "a", "b"]
        assert found["b"].options["model"] == "x,y"
