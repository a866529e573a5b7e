"""The doors for other gateways: what each publishes that it sends, and what it makes of the answer.

The tables (`guardrail_requests/`) are in the shapes of the pages that each module of
`detection/guardrails/` names, with texts of our own.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import orjson
import pytest
import redis
import yaml
from django.conf import settings as django_settings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accounts.models import UsageLog
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.guardrails import PATHS, reading
from detection.policies import policy
from detection.tests.test_batch import remaining
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.core.ratelimit import denials

TABLES = sorted((Path(__file__).parent / "guardrail_requests").glob("*.json"))
ROWS = [
    pytest.param(row, id=f"{table.stem}: {row['what']}")
    for table in TABLES
    for row in json.loads(table.read_text())
]
EVENT = {
    **dict.fromkeys(("agent_id", "agent_type", "agent_workspace", "agent_user"), ""),
    "kind": "step/request",
    "step_id": "1",
    "llm_protocol": "openai.chat",
}
PORTKEY, KONG, PROMPT, CHOICES, OGR = PATHS


@pytest.fixture(autouse=True)
def nobody_is_remembered():
    denials.clear()


def body_of(path, text):
    """As small as each of them may be."""
    rows = [{"role": "user", "content": text}]
    return {
        PORTKEY: {"eventType": "beforeRequestHook", "request": {"json": {"messages": rows}}},
        KONG: {"content": text, "source": "INPUT"},
        PROMPT: {"body": {"messages": rows}},
        CHOICES: {"body": {"choices": [{"message": {"role": "assistant", "content": text}}]}},
        OGR: {**EVENT, "payload": {"messages": rows}},
    }[path]


def is_blocked(path, answer):
    return {
        PORTKEY: lambda: answer["verdict"] is False,
        KONG: lambda: answer["block"] is True,
        PROMPT: lambda: "status_code" in answer["action"],
        CHOICES: lambda: "status_code" in answer["action"],
        OGR: lambda: answer["decision"] == "block",
    }[path]()


each_path = pytest.mark.parametrize("path", PATHS)


@pytest.fixture
def ask(gateway, engine, acme_key):
    def ask(path, text, key=acme_key):
        return gateway.post(path, body_of(path, text), key=key)

    return ask


# -- As they are published -------------------------------------------------------------------------


def filled(value):
    """A table's row with our texts; inside a string of JSON, too."""
    text = json.dumps(value)
    return json.loads(text.replace("$ATTACK", ATTACK).replace("$HARMLESS", HARMLESS))


def fits(expected, found):
    """`*` is anything, `$REASON` the beginning of a reason; of errors and findings a part."""
    if expected == "*":
        return bool(found)
    if isinstance(expected, str) and expected.startswith("$REASON"):
        return found.startswith(expected.replace("$REASON", "Prompt injection") + ": ")
    if isinstance(expected, list):
        return len(expected) == len(found) and all(map(fits, expected, found))
    if isinstance(expected, dict):
        is_part = "error" in expected or "path" in expected
        names = expected if is_part else {*expected, *found}
        return all(n in expected and n in found and fits(expected[n], found[n]) for n in names)
    return expected == found


@pytest.mark.parametrize("row", ROWS)
def test_what_is_published_is_answered(gateway, engine, acme_key, row):
    r = gateway.post(row["path"], filled(row["request"]), key=acme_key)

    assert r.status_code == row.get("status", 200), r.text
    assert fits(row["answer"], r.json()), r.text
    assert ATTACK not in r.text


def test_each_path_has_a_table_and_each_side_of_it_a_row():
    assert {row.values[0]["path"] for row in ROWS} == {*PATHS}


def test_an_answer_of_openguardrails_is_a_verdict_of_its_schema(ask):
    """https://openguardrails.com/schema/1.0/verdict.schema.json, its names and words."""
    for text in (HARMLESS, ATTACK):
        found = ask(OGR, text).json()
        assert {*found} <= {"event_id", "provider", "decision", "findings", "unjudged"}
        assert found["decision"] in ("allow", "block")
        for finding in found["findings"]:
            assert {*finding} == {"category", "path", "score", "detector"}
            assert finding["category"].startswith("security.")
            assert 0 <= finding["score"] <= 1


def test_errors_of_openguardrails_are_in_its_words(gateway, engine, make_key):
    key = make_key(rate_limit_per_minute=1)
    body = body_of(OGR, HARMLESS)
    assert gateway.post(OGR, body, key="gw_live_nobody").json()["error"] == "unauthorized"
    gateway.post(OGR, body, key=key)
    r = gateway.post(OGR, body, key=key)

    assert r.status_code == 429
    assert r.json()["error"] == "rate_limited"
    assert r.json()["limit"] == 1
    invalid = gateway.post(OGR, {**body, "kind": "turn/end"}, key=make_key())
    assert invalid.status_code == 400
    assert invalid.json()["details"][0]["field"] == "kind"


def test_agentgateway_tells_the_client_in_openais_form(ask):
    action = ask(PROMPT, ATTACK).json()["action"]

    error = json.loads(action["body"])["error"]
    assert error["code"] == "prompt_injection"
    assert error["message"] == action["reason"]


# -- As the page configures them -------------------------------------------------------------------


def blocks(language):
    page = (Path(__file__).parents[2] / "docs/guardrails.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.M | re.S)


def kong(name):
    (found,) = (
        plugin["config"]
        for block in blocks("yaml")
        for plugin in yaml.safe_load(block).get("plugins", ())
        if plugin["name"] == name
    )
    return found


def test_every_address_that_the_page_configures_is_one_of_ours():
    page = (Path(__file__).parents[2] / "docs/guardrails.md").read_text()
    configured = re.findall(r"gateway\.example\.com(/v1/guardrails/[\w/]+)|\"(/v1/[\w/]+)\"", page)
    paths = {one or other for one, other in configured}

    assert {path if path in PATHS else f"{path}/v1/evaluate" for path in paths} == {*PATHS}


@pytest.fixture
def lua():
    """Kong's Lua is 5.1, and so is that of Redis."""
    if not django_settings.REDIS_URL:
        pytest.skip("needs Redis: `make test` starts it")
    client = redis.Redis.from_url(django_settings.REDIS_URL)
    yield client.eval
    client.close()


VERDICT = """
local verdict = (function() %s end)()
local resp = ARGV[1]
if ARGV[2] == "table" then resp = cjson.decode(resp) end
local ok, found = pcall(verdict, resp)
return cjson.encode({ ok = ok, found = ok and found or tostring(found) })
"""


@pytest.mark.parametrize("form", ["table", "string"])
def test_kongs_function_reads_what_the_gateway_answers(gateway, ask, make_key, lua, form):
    """As a string, too: that is how the plugin has it when it looks at an answer of the model."""
    script = VERDICT % kong("ai-custom-guardrail")["functions"]["verdict"]
    used_up = make_key(rate_limit_per_minute=1)
    ask(KONG, HARMLESS, key=used_up)
    answers = [ask(KONG, HARMLESS), ask(KONG, ATTACK), ask(KONG, HARMLESS, key=used_up)]
    passed, blocked, refused = (json.loads(lua(script, 0, r.text, form)) for r in answers)

    assert passed == {"ok": True, "found": {"block": False, "block_message": ""}}
    assert blocked["found"] == {"block": True, "block_message": answers[1].json()["block_message"]}
    assert not refused["ok"]
    assert "no verdict" in refused["found"]
    assert not json.loads(lua(script, 0, "<html>block</html>", "string"))["ok"]


UPSTREAM = """
local said
local body = ARGV[1] ~= "" and cjson.decode(ARGV[1]) or nil
local kong = {
  ctx = { shared = { callouts = { gateway = { response = { body = body } } } } },
  response = { exit = function(status, answer) said = { status, answer.error.message } end },
}
(function() %s end)()
return cjson.encode(said or {})
"""


def test_kongs_callout_lets_pass_only_what_has_a_verdict(ask, lua):
    script = UPSTREAM % kong("request-callout")["upstream"]["by_lua"]
    blocked = ask(KONG, ATTACK)

    assert json.loads(lua(script, 0, ask(KONG, HARMLESS).text)) == {}
    assert json.loads(lua(script, 0, blocked.text)) == [403, blocked.json()["block_message"]]
    assert json.loads(lua(script, 0, "")) == [403, "no verdict"]
    assert json.loads(lua(script, 0, '{"code": "rate_limited"}'))[0] == 403


# -- What all of them do ---------------------------------------------------------------------------


@each_path
def test_an_attack_is_blocked_and_can_be_found_in_the_log(gateway, ask, path):
    assert not is_blocked(path, ask(path, HARMLESS).json())
    r = ask(path, ATTACK)

    assert is_blocked(path, r.json())
    gateway.flush_usage()
    row = UsageLog.objects.get(decision="flag")
    assert row.endpoint == path
    assert str(row.request_id) in r.text


LONG = "The weather was fine on that day, and nothing happened. " * 400


@each_path
@pytest.mark.parametrize("at", [0, 9_990, 20_000])
def test_a_text_of_any_length_is_judged_wherever_the_attack_is(ask, path, at):
    assert is_blocked(path, ask(path, LONG[:at] + ATTACK + LONG[at:]).json())


@each_path
def test_it_costs_one_of_the_minute_and_one_of_the_day_for_each_portion(
    gateway, ask, acme_key, path
):
    before = remaining(gateway, acme_key)
    ask(path, LONG)
    after = remaining(gateway, acme_key)

    assert before["minute"] - after["minute"] == 1
    assert before["day"] - after["day"] == 3
    assert not is_blocked(path, ask(path, LONG).json())


@each_path
def test_a_chat_that_is_too_large_is_blocked_and_not_refused(gateway, acme_key, path):
    """Else whoever writes it could have it pass by its size, where the operator fails open."""
    huge = "word " * (17 << 18)
    r = gateway.post(path, body_of(path, huge), key=acme_key)

    assert r.status_code == 200
    assert is_blocked(path, r.json())
    assert gateway.post(path, body_of(path, huge), key="gw_live_nobody").status_code == 401


@each_path
def test_a_key_that_only_monitors_blocks_nothing(ask, acme_key, path):
    policy.save(acme_key.row, {"mode": "monitor"}, actor=Actor("test"))
    r = ask(path, ATTACK)

    assert not is_blocked(path, r.json())
    if path == OGR:  # allowed with findings is what it calls flagged
        assert [one["path"] for one in r.json()["findings"]] == ["payload.messages.0.content"]


@each_path
def test_without_a_verdict_it_is_the_policy_that_decides(ask, engine, acme_key, path):
    engine.is_down()
    assert is_blocked(path, ask(path, ATTACK).json())  # the embedded detector
    policy.save(acme_key.row, {"on_unavailable": "fail_closed"}, actor=Actor("test"))
    closed = ask(path, HARMLESS)
    policy.save(acme_key.row, {"on_unavailable": "fail_open"}, actor=Actor("test"))
    opened = ask(path, HARMLESS).json()

    if path == OGR:
        assert closed.json()["decision"] == "block"
        assert closed.json()["unjudged"] == opened["unjudged"] == ["payload.messages.0.content"]
    else:
        assert refusal(closed) == (503, "detection_unavailable")
        assert closed.headers["retry-after"]
        assert "unjudged" in json.dumps(opened) or "fails open" in json.dumps(opened)
    assert not is_blocked(path, opened)


@each_path
def test_errors_are_never_taken_for_an_answer(gateway, engine, make_key, path):
    """Proxies read the body of an error, too: nothing in it may look like a verdict."""
    key = make_key(rate_limit_per_minute=1)
    gateway.post(path, body_of(path, HARMLESS), key=key)
    refused = [
        gateway.post(path, body_of(path, HARMLESS), key=key),
        gateway.post(path, body_of(path, HARMLESS), key="gw_live_nobody"),
        gateway.post(path, {**body_of(path, HARMLESS), "kind": 5, "body": 5, "source": 5,
                            "eventType": 5}, key=make_key()),
    ]  # fmt: skip

    assert [r.status_code for r in refused] == [429, 401, 400 if path == OGR else 422]
    for r in refused:
        assert not {"verdict", "block", "action", "decision"} & {*r.json()}


# -- Reading chats ---------------------------------------------------------------------------------


def texts(chat):
    return {(piece.kind, piece.text) for piece in chat.texts}


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ({"role": "user", "content": "x y"}, "user_input"),
        ({"content": "x y"}, "user_input"),
        ({"role": "narrator", "content": "x y"}, "user_input"),
        ({"role": ["system"], "content": "x y"}, "user_input"),
        ({"role": "user", "name": "x y", "content": ""}, "user_input"),
        ({"role": "user", "content": [{"type": "text", "text": "x y", "id": "a_1"}]}, "user_input"),
        ({"role": "user", "content": [{"type": "text", "id": "x y", "text": ""}]}, "user_input"),
        ({"role": "assistant", "content": "x y"}, "model_output"),
        ({"role": "assistant", "refusal": "x y"}, "model_output"),
        ({"role": "assistant", "audio": {"id": "a", "transcript": "x y"}}, "model_output"),
        ({"type": "reasoning", "summary": [{"text": "x y"}]}, "model_output"),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "x y"}]},
         "model_output"),
        ({"role": "tool", "content": "x y"}, "tool_output"),
        ({"role": "function", "content": [{"type": "text", "text": "x y"}]}, "tool_output"),
        ({"type": "function_call_output", "output": [{"type": "input_text", "text": "x y"}]},
         "tool_output"),
        ({"type": "mcp_call", "name": "f", "arguments": "{}", "output": "x y"}, "tool_output"),
        ({"role": "user", "content": [{"type": "tool_result", "content": "x y"}]}, "tool_output"),
        ({"role": "user", "content": [{"type": "web_search_tool_result", "content": [
            {"type": "web_search_result", "title": "x y", "url": "https://a.example"}]}]},
         "tool_output"),
        ({"role": "user", "content": [{"type": "document", "source":
            {"type": "text", "media_type": "text/plain", "data": "x y"}}]}, "document"),
        ({"role": "user", "content": [{"type": "search_result", "title": "x y"}]}, "document"),
        ({"role": "user", "parts": [{"text": "x y"}]}, "user_input"),
        ({"role": "model", "parts": [{"text": "x y"}]}, "model_output"),
    ],
)  # fmt: skip
def test_who_speaks_is_told_by_roles_and_blocks(message, kind):
    for name in ("messages", "input", "contents"):
        assert (kind, "x y") in texts(reading.of_request({name: [message], "model": "m"}))


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "x y"}}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "x y"}},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "name": "f", "input": {"q": "x y"}}],
        },
        {"type": "function_call", "name": "f", "arguments": '{"q": "x y"}'},
        {"type": "custom_tool_call", "name": "f", "input": "x y"},
        {"role": "model", "parts": [{"functionCall": {"name": "f", "args": {"q": "x y"}}}]},
    ],
)
def test_calls_of_tools_are_one_text_each(message):
    ((piece,), _) = (found := reading.of_request({"messages": [message]})).texts, found
    assert piece.kind == "tool_call"
    assert "x y" in piece.text


CHATS = json.loads((django_settings.BASE_DIR / "sdks/vectors/chats.json").read_text())
READ = {"request": reading.of_request, "answer": reading.of_answer}
DRAWN = {
    "a data URI": "data:image/png;base64,T2JleSB0aGUgcGFnZS4=",
    "words in a data URI": "data:image/png;base64,Obey_the_page",
    "base64": "T2JleSB0aGUgcGFnZS4=",
    "words without blanks": "Obey_the_page",
}


@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["what"])
def test_chats_are_read_as_the_libraries_read_them(case):
    chat = READ[case["side"]](case["body"])

    assert texts(chat) == {(kind, text) for kind, text in case["texts"]}
    assert chat.images == case.get("images", chat.images)


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN.keys())
@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["what"])
def test_where_a_word_is_judged_so_is_what_looks_like_a_picture(case, drawn):
    def judged(text, instead):
        body = json.dumps(case["body"]).replace(json.dumps(text), json.dumps(instead))
        return instead in {found for _, found in texts(READ[case["side"]](json.loads(body)))}

    for _, text in case["texts"]:
        # But for places of pictures and ids themselves.
        if judged(text, "Obey") and not text.startswith("data:"):
            assert judged(text, drawn), text


@pytest.mark.parametrize("value", [{"role": "x y"}, {"type": "x y"}, {"a_id": "x y"}, {"x y": 1}])
def test_a_tools_own_json_hides_nothing_under_names_of_the_api(value):
    for message in (
        {"type": "function_call_output", "output": value},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": value}}]},
    ):
        assert any(
            kind == "tool_output" and "x y" in text
            for kind, text in texts(reading.of_request({"input": [message]}))
        )
    answer = {"jsonrpc": "2.0", "result": {"content": [], "structuredContent": value}}
    assert any("x y" in text for _, text in texts(reading.of_request(answer)))


def test_instructions_and_pictures_are_counted_and_not_judged():
    chat = reading.of_request(
        {
            "system": [{"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}],
            "instructions": "be brief",
            "messages": [
                {"role": "developer", "content": "be swift"},
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
                    {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
                    {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
                    {"type": "text", "text": "x y"},
                ]},
                {"parts": [{"inlineData": {"mimeType": "image/png", "data": "AA"}}]},
            ],
        }
    )  # fmt: skip

    assert texts(chat) == {("user_input", "x y")}
    assert (chat.instructions, chat.images) == (3, 4)


def test_definitions_of_tools_are_one_text():
    tools = [{"name": "a", "description": "x y"}, {"name": "b", "description": "z"}]
    ((piece, (path,)),) = reading.of_request({"messages": [], "tools": tools}).texts.items()

    assert piece.kind == "tool_definition"
    assert json.loads(piece.text) == tools
    assert str(path) == "tools"
    listed = reading.of_request({"jsonrpc": "2.0", "id": 1, "result": {"tools": tools}})
    assert [piece.kind for piece in listed.texts] == ["tool_definition"]


def test_equal_texts_are_judged_once_and_have_all_their_places():
    rows = [{"role": "user", "content": "x y"}] * 3
    ((_, paths),) = reading.of_request({"messages": rows}).texts.items()

    assert [str(path) for path in paths] == [f"messages.{n}.content" for n in range(3)]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["role", "type", "content", "text", "tool_calls", "function", "output",
                         "data", "name", "messages", "input", "tools", "result", "params", "x"]),
        inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


@settings(suppress_health_check=[HealthCheck.too_slow])  # other processes are beside it
@given(st.dictionaries(st.sampled_from(
    ["messages", "input", "choices", "output", "jsonrpc", "result", "params", "prompt", "tools",
     "tool_calls", "text", "x"]), json_values, max_size=4))  # fmt: skip
def test_no_body_is_too_strange_to_be_read(body):
    for read in (reading.of_request, reading.of_answer):
        for piece, paths in read(body).texts.items():
            assert piece.text.strip()
            assert all(map(str, paths))


@given(st.text(min_size=3, alphabet="abc "), json_values)
def test_a_sentence_of_the_user_is_never_left_out(text, more):
    sentence = f"{text} and more"
    for content in (sentence, [{"type": "text", "text": sentence}], [{"text": sentence}, more]):
        chat = reading.of_request({"messages": [{"role": "user", "content": content}]})
        assert any(sentence in piece.text for piece in chat.texts)


def test_numbers_of_any_size_keep_nothing_from_being_read():
    tools = [{"name": "a", "description": "x y", "parameters": {"maximum": 10**400}}]
    ((piece, _),) = reading.of_request({"messages": [], "tools": tools}).texts.items()

    assert "x y" in piece.text


def test_deep_and_long_names_cost_no_memory():
    name = "n" * 100_000
    body = {"messages": {name: [{"a": f"text {n}"} for n in range(2_000)]}}
    paths = [path for found in reading.of_request(body).texts.values() for path in found]

    assert len(paths) == 2_000
    assert all(len(str(path)) <= reading.PATH_CHARS_MAX for path in paths[:50])
    deep = orjson.loads('{"messages": ' + "[" * 900 + '"x y"' + "]" * 900 + "}")
    assert texts(reading.of_request(deep)) == {("user_input", "x y")}
