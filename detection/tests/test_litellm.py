"""POST /beta/litellm_basic_guardrail_api. With the real proxy:
`gateway_project/tests/test_litellm_proxy.py`, whose recordings are the bodies here."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from accounts.models import UsageLog
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.guardrails import pieces
from detection.jobs import judging
from detection.litellm import calls, reading
from detection.policies import policy
from detection.tests.test_batch import remaining
from detection.tests.test_detect import ATTACK, HARMLESS, problem
from gateway_project.core.ratelimit import denials

PATH = "/beta/litellm_basic_guardrail_api"
RECORDED = sorted((Path(__file__).parent / "litellm_requests").glob("*.json"))
BODY = {
    "input_type": "request",
    "litellm_call_id": None,
    "litellm_trace_id": "trace",
    "structured_messages": None,
    "images": None,
    "tools": None,
    "texts": [],
    "request_data": {"user_api_key_alias": "team"},
    "request_headers": {"authorization": "[present]"},
    "litellm_version": "1.110.2",
    "additional_provider_specific_params": {},
    "tool_calls": None,
    "model": "gpt-4",
}
ALL = ("minute", "day", "workspace_minute", "workspace_day")
FREE = dict.fromkeys(ALL, 0)


@pytest.fixture(autouse=True)
def nobody_is_remembered():
    denials.clear()


@pytest.fixture
def guard(gateway, engine, acme_key):
    def guard(*texts, key=acme_key, **more):
        return gateway.post(PATH, {**BODY, "texts": list(texts), **more}, key=key)

    return guard


@pytest.fixture
def cost(gateway, acme_key):
    """What a call takes of each limit."""

    def cost(call):
        before = remaining(gateway, acme_key)
        call()
        after = remaining(gateway, acme_key)
        return {name: before[name] - after[name] for name in before}

    return cost


def row(role, content, **more):
    return {"role": role, "content": content, **more}


def request_of(role, text=ATTACK):
    """One message of that role, as LiteLLM sends it."""
    return {"texts": [text], "structured_messages": [row(role, text)]}


def test_a_harmless_text_passes(guard):
    assert guard(HARMLESS).json() == {"action": "NONE"}


def test_one_attack_among_many_blocks_and_no_text_is_repeated(guard):
    body = guard(HARMLESS, ATTACK, HARMLESS).json()

    assert body["action"] == "BLOCKED"
    assert body["blocked_reason"].startswith("Prompt injection in a message: ")
    assert "system_prompt_leak" in body["blocked_reason"]
    assert ATTACK not in body["blocked_reason"]


def test_texts_without_words_are_nothing(guard, engine):
    assert guard("", "").json() == {"action": "NONE"}
    assert guard().json() == {"action": "NONE"}
    assert guard(texts=None).json() == {"action": "NONE"}
    assert not engine.asked


def test_a_key_that_only_monitors_blocks_nothing(guard, acme_key):
    policy.save(acme_key.row, {"mode": "monitor"}, actor=Actor("test"))

    assert guard(ATTACK).json() == {"action": "NONE"}


# -- Any size ------------------------------------------------------------------------------------


LONG = "The weather was fine on that day, and nothing happened. " * 1_000


@pytest.mark.parametrize("at", [0, 9_990, 18_500, 55_000])
def test_a_long_text_is_judged_in_portions_wherever_the_attack_is(guard, at):
    assert guard(LONG[:at] + ATTACK + LONG[at:]).json()["action"] == "BLOCKED"
    assert guard(LONG).json() == {"action": "NONE"}


@pytest.mark.parametrize("chars", [0, 1, 9_999, 10_000, 10_001, 19_000, 19_001, 28_000, 123_456])
def test_portions_cover_all_and_are_as_many_as_they_cost(chars):
    text = "".join(chr(0x4E00 + n % 20_000) for n in range(chars))
    parts = pieces.portions(text)

    assert all(len(part) <= 10_000 for part in parts)
    assert parts[0] + "".join(part[pieces.OVERLAP_CHARS :] for part in parts[1:]) == text
    assert pieces.units(chars) == (len(parts) if chars else 0)


def test_more_texts_than_a_batch_takes_and_a_body_larger_than_one(guard):
    harmless = [f"{HARMLESS} {n}" for n in range(150)]

    assert guard(*harmless).json() == {"action": "NONE"}
    assert guard(*harmless, ATTACK).json()["action"] == "BLOCKED"


def picture(mebibytes):
    return "data:image/png;base64," + base64.b64encode(bytes(mebibytes << 20)).decode()


def with_picture(mebibytes, text):
    url = picture(mebibytes)
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": url}}]
    return {"texts": [text], "images": [url], "structured_messages": [row("user", parts)]}


def test_pictures_are_not_looked_at_and_that_is_reported(guard, cost):
    assert cost(lambda: guard(**with_picture(1, HARMLESS)))["day"] == 1
    assert guard(**with_picture(3, HARMLESS)).json() == {"action": "NONE", "skipped": {"images": 1}}
    assert guard(**with_picture(3, ATTACK)).json()["action"] == "BLOCKED"


def test_what_is_larger_than_memory_may_hold_is_blocked_and_not_refused(guard, monkeypatch):
    """Else whoever writes a chat could have it pass by its size, where the operator fails open."""
    r = guard(**with_picture(14, HARMLESS))

    assert r.status_code == 200
    assert r.json()["action"] == "BLOCKED"
    assert r.json()["blocked_reason"].startswith("Too large to be looked at. ")


def test_who_is_not_known_learns_nothing_by_a_large_body(guard):
    r = guard(**with_picture(14, HARMLESS), key="gw_live_" + "a" * 32 + "_000000")

    assert refusal(r) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "text",
    ["\x1b[1;31merror\x1b[0m\x1b[K", "\x00" * 50, "a\x00b", "\x0c", "“q” \x93\x94", "\x01" * 9],
    ids=["colours", "NULs", "one NUL", "form feed", "CP1252", "controls"],
)  # fmt: skip
def test_no_character_is_refused(guard, text):
    assert guard(text).json() == {"action": "NONE"}
    assert guard(f"{text} {ATTACK}").json()["action"] == "BLOCKED"


# -- Who speaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "developer", "System"])
def test_what_the_author_of_the_application_says_is_no_attack(guard, engine, cost, role):
    r = guard(**request_of(role))

    assert r.json() == {"action": "NONE", "skipped": {"instructions": 1}}
    assert not engine.asked
    assert cost(lambda: guard(**request_of(role)))["day"] == 0


@pytest.mark.parametrize(
    ("role", "where"),
    [
        ("user", "a message"),
        ("assistant", "an answer of the model"),
        ("tool", "a tool's result"),
        ("function", "a tool's result"),
        ("narrator", "a message"),
    ],
)
def test_everybody_else_is_judged_as_what_he_is(guard, role, where):
    assert (
        guard(**request_of(role))
        .json()["blocked_reason"]
        .startswith(f"Prompt injection in {where}: ")
    )


@pytest.mark.parametrize(
    "rows",
    [
        [row("system", ATTACK), row("user", ATTACK)],
        [row("system", f"{ATTACK} And be kind.")],
        [row("system", [{"type": "text", "text": "Be kind."}])],
        ["system", None, 5, {"content": ATTACK}, row(None, ATTACK), row(["system"], ATTACK)],
        [],
        None,
    ],
    ids=["the user repeats it", "a part of it", "another text", "not rows", "empty", "none"],
)
def test_who_is_not_surely_the_author_is_the_user(guard, rows):
    assert guard(ATTACK, structured_messages=rows).json()["action"] == "BLOCKED"


@pytest.mark.parametrize(
    ("message", "where"),
    [
        (row("user", [{"type": "tool_result", "content": ATTACK}]), "a tool's result"),
        (
            row("user", [{"type": "tool_result", "content": [{"type": "text", "text": ATTACK}]}]),
            "a tool's result",
        ),
        ({"type": "function_call_output", "output": ATTACK}, "a tool's result"),
        (row("user", [{"type": "input_text", "text": ATTACK}]), "a message"),
        (row("assistant", [{"type": "output_text", "text": ATTACK}]), "an answer of the model"),
    ],
)
def test_rows_as_the_client_sent_them_are_read_too(guard, message, where):
    reason = guard(ATTACK, structured_messages=[message]).json()["blocked_reason"]

    assert reason.startswith(f"Prompt injection in {where}: ")


def test_instructions_as_the_client_sent_them(guard):
    parts = [{"type": "input_text", "text": ATTACK}, {"type": "input_text", "text": "Be kind."}]
    r = guard(ATTACK, "Be kind.", HARMLESS, structured_messages=[row("developer", parts)])

    assert r.json() == {"action": "NONE", "skipped": {"instructions": 2}}


# -- Tools ---------------------------------------------------------------------------------------


def tool(description, **more):
    function = {"name": "search", "description": description, "parameters": {"type": "object"}}
    return {"type": "function", "function": {**function, **more}}


@pytest.mark.parametrize(
    "definition",
    [
        tool(ATTACK),
        tool("Search.", parameters={"properties": {"q": {"description": ATTACK}}}),
        tool("Search.", parameters={"properties": {"q": {"enum": ["a", ATTACK]}}}),
        tool("Search.", parameters={"properties": {ATTACK: {"type": "string"}}}),
        {"type": "mcp", "server_description": ATTACK},
        {"function_declarations": [{"name": "x", "description": ATTACK}]},
        ATTACK,
    ],
)
def test_definitions_of_tools_are_judged(guard, definition):
    r = guard(HARMLESS, tools=[tool("Finds pages."), definition]).json()

    assert r["action"] == "BLOCKED"
    assert r["blocked_reason"].startswith("Prompt injection in a tool's definition: ")


def test_harmless_tools_cost_one_and_pass(guard, cost):
    tools = [tool("Finds pages."), tool("Sends a mail to somebody.", name="mail")]

    assert guard(HARMLESS, tools=tools).json() == {"action": "NONE"}
    assert cost(lambda: guard(HARMLESS, tools=tools))["day"] == 2


def called(arguments, name="search"):
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "call",
    [
        called(json.dumps({"q": ATTACK})),
        called("".join(f"\\u{ord(c):04x}" for c in ATTACK).join(['{"q": "', '"}'])),
        called(json.dumps({"deep": [{"er": {"q": ATTACK}}]})),
        called(ATTACK),
        called("{}", name=ATTACK),
        {"type": "server_tool_use", "id": "x", "input": {"query": ATTACK}},
    ],
    ids=["argument", "escaped", "deep", "not JSON", "name", "of another kind"],
)
@pytest.mark.parametrize("input_type", ["request", "response"])
def test_tool_calls_and_their_arguments_are_judged(guard, call, input_type):
    r = guard(tool_calls=[called('{"q": "weather"}'), call], input_type=input_type).json()

    assert r["action"] == "BLOCKED"
    assert r["blocked_reason"].startswith("Prompt injection in a tool call: ")


# -- What it costs -------------------------------------------------------------------------------


def test_it_costs_one_of_the_minute_and_one_of_the_day_for_each_text(gateway, guard, cost):
    taken = cost(lambda: guard(HARMLESS, "", ATTACK))

    assert taken == {"minute": 1, "day": 2, "workspace_day": 2, "workspace_minute": 1}
    gateway.flush_usage()
    assert set(UsageLog.objects.values_list("endpoint", flat=True)) == {PATH}
    assert UsageLog.objects.count() == 2


def test_equal_texts_are_judged_and_cost_once(guard, cost, engine):
    assert cost(lambda: guard(HARMLESS, HARMLESS, HARMLESS))["day"] == 1
    assert len(engine.asked) == 1


def grown(text, every=40):
    return [text[:end] for end in range(every, len(text) + every, every)]


STREAM = "It was a dark and stormy night; the rain fell in torrents, and the wind swept up. " * 30


def test_a_stream_costs_what_was_added(gateway, guard, cost, monkeypatch):
    checks = grown(STREAM)
    judged = []
    of = judging.Item.of
    monkeypatch.setattr(
        judging.Item, "of", lambda _, text, c: judged.append(text) or of(_, text, c)
    )
    call = {"litellm_call_id": "call-1", "input_type": "response"}

    first = cost(lambda: guard(checks[0], **call))
    rest = cost(lambda: [guard(text, **call) for text in checks[1:40]])
    again = cost(lambda: guard(checks[39], **call))

    assert first == {"minute": 1, "day": 1, "workspace_day": 1, "workspace_minute": 1}
    assert rest == again == FREE
    assert [len(text) for text in judged[:3]] == [40, 80, 120]
    assert max(len(text) for text in judged) == pieces.OVERLAP_CHARS + 40
    assert len(judged) == 40
    gateway.flush_usage()
    assert UsageLog.objects.count() == 1


def test_a_hundred_checks_are_one_of_the_minute(guard, cost):
    checks = grown(STREAM, every=10)[:202]
    call = {"litellm_call_id": "call-1", "input_type": "response"}

    taken = cost(lambda: [guard(text, **call) for text in checks])

    assert taken["minute"] == 3
    assert taken["day"] == 1


def test_a_stream_pays_for_each_portion_once(guard, cost):
    call = {"litellm_call_id": "call-1", "input_type": "response"}
    long = LONG[:30_000]

    taken = cost(lambda: [guard(text, **call) for text in grown(long, every=3_000)])

    assert taken["day"] == pieces.units(30_000) == 4
    assert taken["minute"] == 1


def test_an_attack_at_the_end_of_a_stream_or_on_the_edge_is_found(gateway, guard):
    call = {"litellm_call_id": "call-1", "input_type": "response"}
    text = STREAM + ATTACK
    edge = len(STREAM) + 8

    assert guard(text[:edge], **call).json() == {"action": "NONE"}
    assert guard(text, **call).json()["action"] == "BLOCKED"
    gateway.flush_usage()
    assert sorted(UsageLog.objects.values_list("decision", flat=True)) == ["allow", "flag"]


def test_what_was_blocked_stays_blocked_and_costs_nothing_more(guard, cost, engine):
    call = {"litellm_call_id": "call-1", "input_type": "response"}
    reason = guard(ATTACK, **call).json()
    asked = len(engine.asked)
    answers = []

    assert cost(lambda: answers.append(guard(f"{ATTACK} and so on", **call).json())) == FREE
    assert answers == [reason]
    assert len(engine.asked) == asked


def test_messages_that_are_sent_before_and_during_the_call_cost_once(guard, cost):
    call = {"litellm_call_id": "call-1", **request_of("user", HARMLESS)}
    guard(**call)

    assert cost(lambda: guard(**call)) == FREE


@pytest.mark.parametrize(
    "other",
    [
        {"litellm_call_id": "call-2"},
        {"litellm_call_id": None},
        {"input_type": "request"},
        {"texts": [f"{STREAM[:399]}!"]},
    ],
    ids=["another call", "no call", "the other side", "another text"],
)
def test_only_the_same_of_the_same_call_is_known(guard, cost, other):
    call = {"litellm_call_id": "call-1", "input_type": "response", "texts": [STREAM[:400]]}
    guard(**call)

    assert cost(lambda: guard(**{**call, **other}))["day"] == 1


def test_a_request_is_known_as_a_whole_only(guard, cost):
    """Of an answer a beginning is enough: only the model goes on with it."""
    call = {"litellm_call_id": "call-1"}
    guard(STREAM[:400], **call)

    assert cost(lambda: guard(STREAM[:800], **call))["day"] == 1


def test_another_keys_calls_and_another_policys_are_unknown(guard, make_key, acme_key, engine):
    call = {"litellm_call_id": "call-1", "input_type": "response"}
    policy.save(acme_key.row, {"mode": "monitor"}, actor=Actor("test"))
    guard(ATTACK, **call)

    assert guard(ATTACK, key=make_key(), **call).json()["action"] == "BLOCKED"
    policy.save(acme_key.row, {"mode": "enforce"}, actor=Actor("test"))
    assert guard(ATTACK, **call).json()["action"] == "BLOCKED"


def test_what_got_no_verdict_is_judged_when_it_is_sent_again(guard, engine, acme_key):
    policy.save(acme_key.row, {"on_unavailable": "fail_open"}, actor=Actor("test"))
    call = {"litellm_call_id": "call-1", "input_type": "response"}
    engine.is_down()
    assert guard(ATTACK, **call).json() == {"action": "NONE"}
    engine.is_well()

    assert guard(ATTACK, **call).json()["action"] == "BLOCKED"


def test_a_stream_goes_on_when_the_minute_is_used_up(guard, make_key):
    key = make_key(rate_limit_per_minute=2)
    call = {"litellm_call_id": "call-1", "input_type": "response", "key": key}
    answers = [guard(text, **call) for text in grown(STREAM)[:5]]
    guard("and the last", key=key)
    assert refusal(guard("no more", key=key)) == (503, "guardrail_unavailable")

    answers += [guard(text, **call) for text in grown(STREAM)[5:10]]

    assert [r.json() for r in answers] == [{"action": "NONE"}] * 10


def test_what_is_kept_of_a_call_is_bounded(guard, monkeypatch):
    kept = []
    pack = calls.redis.pack
    monkeypatch.setattr(calls.redis, "pack", lambda *c: kept.append(c) or pack(*c))
    monkeypatch.setattr(calls.cache, "set", lambda *c: kept.append(("SET", *c)))
    guard(*(f"text {n}" for n in range(400)), litellm_call_id="x" * 100_000)

    key, value = next(c for c in kept if c[0] == "SET" and "gw:call:" in c[1])[1:3]
    assert len(key) < 60
    assert len(value) < 16_384
    assert b"text" not in value


# -- Without a verdict ---------------------------------------------------------------------------


def test_without_a_verdict_it_is_the_policy_that_decides(guard, engine, acme_key):
    engine.is_down()
    assert guard(ATTACK).json()["action"] == "BLOCKED"  # the embedded detector
    policy.save(acme_key.row, {"on_unavailable": "fail_closed"}, actor=Actor("test"))

    r = guard(HARMLESS)
    problem(r, 503, "detection_unavailable")
    assert r.headers["retry-after"]


@pytest.mark.parametrize(
    ("limits", "detail"),
    [
        ({"rate_limit_per_minute": 1}, "The limit 'minute' of 1 per minute is used up."),
        ({"rate_limit_per_day": 1}, "The limit 'day' of 1 per day is used up."),
    ],
)
def test_a_limit_is_for_litellm_a_guardrail_that_is_away(guard, make_key, limits, detail):
    """It fails open or closed, as its operator chose, for 502, 503 and 504 only."""
    key = make_key(**limits)
    guard(HARMLESS, key=key)
    for _ in range(2):  # asked, and remembered
        r = guard("another", key=key)

        body = problem(r, 503, "guardrail_unavailable")
        assert body["detail"].startswith(detail)
        assert int(r.headers["retry-after"]) > 0
        assert r.headers["ratelimit"].startswith('"minute"')


def test_a_fault_of_ours_is_a_guardrail_that_is_away(guard, monkeypatch):
    monkeypatch.setattr("detection.litellm.views.judging.judge", lambda *_, **__: 1 / 0)

    assert refusal(guard(HARMLESS)) == (503, "guardrail_unavailable")


def test_bodies_that_are_over_the_limit_are_not_read_for_ever(guard, make_key):
    key = make_key(rate_limit_per_minute=2)
    assert guard("one", key=key).json() == guard("two", key=key).json() == {"action": "NONE"}
    for _ in range(3):
        guard("more", key=key)

    read = []
    original = reading.of_texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "of_texts", lambda *a, **k: read.append(a) or original(*a, **k))
        r = guard("and more", key=key)

    assert refusal(r) == (503, "guardrail_unavailable")
    assert not read


def test_a_key_that_is_none_never_fails_open(guard):
    assert refusal(guard(HARMLESS, key="gw_live_" + "a" * 32 + "_000000")) == (
        401,
        "invalid_api_key",
    )


@pytest.mark.parametrize("body", [{"texts": "one"}, {"texts": [1]}, {"input_type": "other"}])
def test_what_litellm_never_sends(gateway, engine, acme_key, body):
    assert refusal(gateway.post(PATH, body, key=acme_key)) == (422, "validation_error")


# -- As the real proxy sends it ------------------------------------------------------------------


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda path: path.stem)
def test_what_the_real_proxy_sent_is_answered(gateway, engine, acme_key, recorded):
    for number, exchange in enumerate(json.loads(recorded.read_text())):
        r = gateway.post(PATH, exchange["request"], key=acme_key)

        assert (number, r.json()) == (number, exchange["answer"])


@pytest.mark.needs_redis
def test_it_costs_no_sql_and_no_thread_hop(gateway, guard, acme_key, counted):
    guard(HARMLESS)
    counted.sql = counted.hops = 0

    guard("another", litellm_call_id="call-1")

    assert (counted.sql, counted.hops) == (0, 0)
