"""POST /beta/litellm_basic_guardrail_api"""

from __future__ import annotations

import pytest

from accounts.models import UsageLog
from accounts.services import Actor
from detection.policies import policy
from detection.tests.test_batch import remaining
from detection.tests.test_detect import ATTACK, HARMLESS, field, problem

PATH = "/beta/litellm_basic_guardrail_api"
# As LiteLLM 1.80 sends it.
BODY = {
    "texts": [HARMLESS],
    "images": None,
    "tools": None,
    "input_type": "request",
    "litellm_call_id": "c0ffee",
    "litellm_trace_id": "trace",
    "structured_messages": [{"role": "user", "content": "…"}],
    "request_data": {"user_api_key_alias": "team"},
    "additional_provider_specific_params": {},
}


@pytest.fixture
def guard(gateway, engine, acme_key):
    def guard(*texts, **more):
        return gateway.post(PATH, {**BODY, "texts": list(texts), **more}, key=acme_key)

    return guard


def test_a_harmless_text_passes(guard):
    assert guard(HARMLESS).json() == {"action": "NONE"}


def test_one_attack_among_many_blocks_and_no_text_is_repeated(guard):
    body = guard(HARMLESS, ATTACK, HARMLESS).json()

    assert body["action"] == "BLOCKED"
    assert "system_prompt_leak" in body["blocked_reason"]
    assert ATTACK not in body["blocked_reason"]


def test_texts_without_words_are_nothing(guard, engine):
    assert guard("", "").json() == {"action": "NONE"}
    assert guard().json() == {"action": "NONE"}
    assert not engine.asked


def test_a_key_that_only_monitors_blocks_nothing(guard, acme_key):
    policy.save(acme_key.row, {"mode": "monitor"}, actor=Actor("test"))

    assert guard(ATTACK).json() == {"action": "NONE"}


def test_without_a_verdict_it_is_the_policy_that_decides(guard, engine, acme_key):
    engine.is_down()
    assert guard(ATTACK).json()["action"] == "BLOCKED"  # the embedded detector
    policy.save(acme_key.row, {"on_unavailable": "fail_closed"}, actor=Actor("test"))

    r = guard(HARMLESS)
    problem(r, 503, "detection_unavailable")
    assert r.headers["retry-after"]


def test_it_costs_one_of_the_minute_and_one_of_the_day_for_each_text(gateway, guard, acme_key):
    before = remaining(gateway, acme_key)
    guard(HARMLESS, "", ATTACK)
    after = remaining(gateway, acme_key)

    assert {name: before[name] - after[name] for name in before} == {
        "minute": 1,
        "day": 2,
        "workspace_day": 2,
        "workspace_minute": 1,
    }
    gateway.flush_usage()
    assert set(UsageLog.objects.values_list("endpoint", flat=True)) == {PATH}
    assert UsageLog.objects.count() == 2


@pytest.mark.parametrize(
    ("body", "at"),
    [({}, "texts"), ({"texts": "one"}, "texts"), ({"texts": ["x" * 10_001]}, "texts.0")],
)
def test_what_it_cannot_read(gateway, engine, acme_key, body, at):
    assert field(problem(gateway.post(PATH, body, key=acme_key), 422, "validation_error")) == at
