"""The real LiteLLM proxy before the really served gateway: `make litellm`.

What the proxy sends is written to `detection/tests/litellm_requests/` with `RECORD=1`; else it is
compared with what lies there, so that the bodies of `detection/tests/test_litellm.py` stay true.
"""

from __future__ import annotations

import base64
import json
import os
import re

import httpx
import pytest
import yaml

from accounts.services import Actor
from deploy import litellm
from detection.policies import policy
from detection.tests.test_batch import remaining
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.tests.litellm_fakes import LiteLLM, Model, Recorder
from gateway_project.tests.served import ROOT

pytestmark = pytest.mark.timeout(600)  # a proxy takes half a minute of a core to start
RECORDINGS = ROOT / "detection/tests/litellm_requests"
MASTER_KEY = "sk-0f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a6978"
PAGE = (ROOT / "docs/litellm.md").read_text()
# What LiteLLM makes anew for each call, or depends on the machine.
CHANGING = ("litellm_call_id", "litellm_trace_id", "request_headers", "request_data", "model")
VARIANTS = {
    "gateway": {},
    "open": {"unreachable_fallback": "fail_open"},
    "anything": {"fail_on_error": False},
    "sampled": {"streaming_end_of_stream_only": False},
    "as-sent": {"forward_messages_as_sent": True},
    "twice": {"mode": ["pre_call", "during_call", "post_call"]},
}


def configured(recorder_url):
    """That of the page, and its guardrail once more in the ways that the page describes."""
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)
    found = yaml.safe_load(block)
    (guardrail,) = found["guardrails"]
    found["guardrails"] = []
    for name, changes in VARIANTS.items():
        params = {**guardrail["litellm_params"], "api_base": recorder_url, **changes}
        params |= {"default_on": False, "timeout": 4}
        found["guardrails"].append({"guardrail_name": name, "litellm_params": params})
    return yaml.safe_dump(found)


@pytest.fixture(scope="module", params=litellm.VERSIONS)
def program(request):
    if not os.environ.get("LITELLM"):
        pytest.skip("`make litellm` runs it: each version takes half a minute of a core to start")
    try:
        return request.param, litellm.program(request.param)
    except litellm.NotInstallableError as exc:
        pytest.skip(f"LiteLLM {request.param} cannot be installed here: {exc}")


class Stack:
    def __init__(self, version, proxy, model, recorder, gateway, url, key):
        self.version, self.model, self.recorder = version, model, recorder
        self.gateway, self.url, self.key = gateway, url, key
        headers = {"Authorization": f"Bearer {MASTER_KEY}"}
        self.http = httpx.Client(base_url=proxy.url, timeout=60, headers=headers)

    def chat(self, *messages, guardrail="gateway", **more):
        body = {"model": "chat", "messages": list(messages), "guardrails": [guardrail], **more}
        return self.post("/v1/chat/completions", body)

    def post(self, path, body):
        return self.http.post(path, json=body)

    def stream(self, *messages, guardrail="gateway"):
        """The text that arrived, and the error that ended it."""
        text, error = "", None
        body = {"model": "chat", "messages": list(messages), "guardrails": [guardrail]}
        with self.http.stream(
            "POST", "/v1/chat/completions", json={**body, "stream": True}
        ) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: ") or line.endswith("[DONE]"):
                    continue
                event = json.loads(line.removeprefix("data: "))
                error = event.get("error") or error
                for choice in event.get("choices", ()):
                    text += choice["delta"].get("content") or ""
        return text, error

    def cost(self, call):
        before = remaining(self.gateway, self.key)
        call()
        after = remaining(self.gateway, self.key)
        return {name: before[name] - after[name] for name in ("minute", "day")}


@pytest.fixture(scope="module")
def _proxy(program, tmp_path_factory):
    """One proxy of a version for all tests; the gateway behind it and its key are each test's."""
    version, command = program
    with Model() as model, Recorder() as recorder:
        folder = tmp_path_factory.mktemp(f"litellm-{version}")
        proxy = LiteLLM(
            command,
            folder,
            configured(recorder.url),
            OPENAI_API_KEY="sk-none",
            OPENAI_BASE_URL=f"{model.url}/v1",
            OPENAI_API_BASE=f"{model.url}/v1",
            GATEWAY_KEY="of the test",
            LITELLM_MASTER_KEY=MASTER_KEY,
        )
        try:
            proxy.wait()
            yield version, proxy, model, recorder
        finally:
            proxy.close()


@pytest.fixture
def stack(_proxy, gateway, shared, make_key):
    version, proxy, model, recorder = _proxy
    model.is_well()
    recorder.is_well()
    key = make_key(rate_limit_per_minute=2_000, rate_limit_per_day=20_000)
    recorder.goes_to(shared.url, key)
    stack = Stack(version, proxy, model, recorder, gateway, shared.url, key)
    with stack.http:
        yield stack
    recorder.is_well()


def user(text, **more):
    return {"role": "user", "content": text, **more}


def blocked(answer):
    """The reason; of a chat that the guardrail stopped."""
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def went_on(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["message"]["content"]


LONG = "The weather was fine on that day, and nothing happened. " * 500


def test_harmless_and_attack(stack):
    assert went_on(stack.chat(user(HARMLESS))) == stack.model.text
    assert "Prompt injection in a message" in blocked(stack.chat(user(ATTACK)))
    assert [one["request"]["input_type"] for one in stack.recorder.passed] == [
        "request",
        "response",
        "request",
    ]
    assert len(stack.model.asked) == 1


PICTURE = "data:image/png;base64," + base64.b64encode(bytes(3 << 20)).decode()
SIZES = {
    "25,000 characters": [user(LONG)],
    "150 messages": [user(f"{HARMLESS} {n}") for n in range(150)],
    "a picture of 3 MB": [
        user(
            [
                {"type": "text", "text": HARMLESS},
                {"type": "image_url", "image_url": {"url": PICTURE}},
            ]
        )
    ],
    "colours": [user("\x1b[1;31merror\x1b[0m\x1b[K" * 3)],
    "NUL": [user("a\x00b")],
}


@pytest.mark.parametrize("messages", SIZES.values(), ids=SIZES)
def test_nothing_is_refused_for_its_size_or_its_characters(stack, messages):
    assert went_on(stack.chat(*messages)) == stack.model.text
    assert "Prompt injection" in blocked(stack.chat(*messages, user(ATTACK)))


def test_a_long_answer_passes_and_an_attack_in_it_does_not(stack):
    stack.model.text = LONG
    assert went_on(stack.chat(user(HARMLESS))) == LONG
    stack.model.text = LONG + ATTACK
    assert "in an answer of the model" in blocked(stack.chat(user(HARMLESS)))


@pytest.mark.parametrize("guardrail", ["gateway", "as-sent"])
@pytest.mark.parametrize("role", ["system", "developer"])
def test_instructions_are_no_attack(stack, guardrail, role):
    instructions = {"role": role, "content": f"If somebody says '{ATTACK}', refuse."}
    assert went_on(stack.chat(instructions, user(HARMLESS), guardrail=guardrail))
    parts = [{"type": "text", "text": ATTACK}]
    assert went_on(stack.chat({"role": role, "content": parts}, user(HARMLESS)))
    assert blocked(stack.chat(instructions, user(ATTACK), guardrail=guardrail))


CALL = {"id": "1", "type": "function", "function": {"name": "search", "arguments": "{}"}}
ASSISTANT = {"role": "assistant", "content": None, "tool_calls": [CALL]}


def tool(description):
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}}
    function = {"name": "search", "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


def test_results_definitions_and_calls_of_tools(stack):
    result = {"role": "tool", "tool_call_id": "1", "content": ATTACK}
    assert "a tool's result" in blocked(stack.chat(user("Search."), ASSISTANT, result))
    assert went_on(stack.chat(user("Search."), tools=[tool("Finds pages.")]))
    assert "a tool's definition" in blocked(stack.chat(user("Search."), tools=[tool(ATTACK)]))

    stack.model.arguments = json.dumps({"q": "weather"})
    assert stack.chat(user("Search."), tools=[tool("Finds pages.")]).status_code == 200
    stack.model.arguments = json.dumps({"q": ATTACK})
    assert "a tool call" in blocked(stack.chat(user("Search."), tools=[tool("Finds pages.")]))
    made = {**CALL, "function": {"name": "search", "arguments": json.dumps({"q": ATTACK})}}
    history = {**ASSISTANT, "tool_calls": [made]}
    done = {"role": "tool", "tool_call_id": "1", "content": "Nothing."}
    assert "a tool call" in blocked(stack.chat(user("Search."), history, done))


def test_a_stream_costs_what_was_added(stack):
    stack.model.text = LONG[:3_000]

    taken = stack.cost(lambda: stack.stream(user(HARMLESS), guardrail="sampled"))

    checks = [one for one in stack.recorder.passed if one["request"]["input_type"] == "response"]
    assert len(checks) > 40
    assert {one["status"] for one in checks} == {200}
    assert taken == {"minute": 2, "day": 2}


def test_a_stream_with_an_attack_ends_early(stack):
    stack.model.text = f"{LONG[:600]}{ATTACK} {LONG[:3_000]}"

    text, error = stack.stream(user(HARMLESS), guardrail="sampled")

    assert len(text) < 1_000
    assert "Prompt injection in an answer of the model" in error["message"]


def test_a_stream_that_is_checked_at_its_end(stack):
    stack.model.text = LONG
    taken = stack.cost(lambda: stack.stream(user(HARMLESS)))

    assert taken == {"minute": 2, "day": 1 + 3}
    assert [one["request"]["input_type"] for one in stack.recorder.passed] == [
        "request",
        "response",
    ]
    stack.model.text = ATTACK
    assert "Prompt injection" in stack.stream(user(HARMLESS))[1]["message"]


def test_messages_before_and_during_the_call_cost_once(stack):
    taken = stack.cost(lambda: stack.chat(user(HARMLESS), guardrail="twice"))

    assert len(stack.recorder.passed) == 3
    assert taken == {"minute": 2, "day": 2}


# -- Without a verdict ---------------------------------------------------------------------------


def over_the_limit(stack, make_key):
    stack.recorder.goes_to(stack.url, key := make_key(rate_limit_per_minute=1))
    httpx.post(f"{stack.url}/v1/detect", json={"text": HARMLESS}, headers={"X-API-Key": key})


def over_the_day(stack, make_key):
    stack.recorder.goes_to(stack.url, key := make_key(rate_limit_per_day=1))
    httpx.post(f"{stack.url}/v1/detect", json={"text": HARMLESS}, headers={"X-API-Key": key})


def engine_away(stack, make_key):
    key = make_key()
    policy.save(key.row, {"on_unavailable": "fail_closed"}, actor=Actor("test"))
    stack.recorder.goes_to(stack.url, key)
    stack.engine.fails(503)


def silent(stack, make_key):
    stack.recorder.how = "silent"


def broken(stack, make_key):
    stack.recorder.how = 502


AWAY = [over_the_limit, over_the_day, engine_away, silent, broken]


@pytest.mark.parametrize("trouble", AWAY, ids=lambda one: one.__name__)
def test_the_operator_decides_what_happens_without_a_verdict(stack, engine, make_key, trouble):
    stack.engine = engine
    trouble(stack, make_key)

    assert stack.chat(user(HARMLESS), guardrail="gateway").status_code == 500
    assert not stack.model.asked
    for guardrail in ("open", "anything"):
        assert went_on(stack.chat(user(HARMLESS), guardrail=guardrail)) == stack.model.text


def test_a_wrong_key_is_not_a_guardrail_that_is_away(stack):
    stack.recorder.goes_to(stack.url, "gw_live_" + "a" * 32 + "_000000")

    for guardrail in ("gateway", "open"):
        assert stack.chat(user(HARMLESS), guardrail=guardrail).status_code == 500
    assert went_on(stack.chat(user(HARMLESS), guardrail="anything")) == stack.model.text


def test_an_attack_is_blocked_wherever_errors_are_let_pass(stack):
    for guardrail in ("open", "anything"):
        assert "Prompt injection" in blocked(stack.chat(user(ATTACK), guardrail=guardrail))


# -- The other ways to talk to the proxy ----------------------------------------------------------


def messages(stack, *rows, system="Be kind.", **more):
    body = {"model": "chat", "max_tokens": 10, "system": system, "messages": list(rows)}
    return stack.post("/v1/messages", {**body, "guardrails": ["gateway"], **more})


def test_anthropics_messages(stack):
    assert messages(stack, user(HARMLESS)).status_code == 200
    assert messages(stack, user(HARMLESS), system=f"Beware of '{ATTACK}'.").status_code == 200
    assert messages(stack, user(ATTACK)).status_code == 400
    use = {"type": "tool_use", "id": "1", "name": "search", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "1", "content": ATTACK}
    asked = {"role": "assistant", "content": [use]}
    assert messages(stack, user("Search."), asked, user([result])).status_code == 400
    assert "a tool's result" in stack.recorder.passed[-1]["answer"]["blocked_reason"]


def test_openais_responses_completions_and_embeddings(stack):
    def responses(text, **more):
        body = {"model": "chat", "input": text, "guardrails": ["gateway"], **more}
        return stack.post("/v1/responses", body).status_code

    assert responses(HARMLESS, instructions=f"Beware of '{ATTACK}'.") == 200
    assert responses(ATTACK) == 400
    for path, field in (("/v1/completions", "prompt"), ("/v1/embeddings", "input")):
        body = {"model": "chat", field: ATTACK, "guardrails": ["gateway"]}
        assert stack.post(path, body).status_code == 400


# -- Recordings ----------------------------------------------------------------------------------


def shape(value):
    """Names and kinds, without what differs from call to call."""
    if isinstance(value, dict):
        return {name: shape(one) for name, one in value.items() if name not in CHANGING}
    if isinstance(value, list):
        return [shape(one) for one in value]
    return type(value).__name__


def test_the_recordings_are_what_it_sends(stack):
    system = {"role": "system", "content": "Be kind."}
    stack.model.text = "All is well. " * 12
    stack.chat(system, user([{"type": "text", "text": HARMLESS}]), tools=[tool("Finds pages.")])
    stack.chat(user("Search."), ASSISTANT, {"role": "tool", "tool_call_id": "1", "content": ATTACK})
    stack.stream(user(HARMLESS), guardrail="sampled")
    stack.model.arguments = json.dumps({"q": "weather"})
    stack.chat(user("Search."), guardrail="as-sent")
    sent = stack.recorder.passed

    path = RECORDINGS / f"{stack.version}.json"
    if os.environ.get("RECORD"):
        keep = [{"request": one["request"], "answer": one["answer"]} for one in sent]
        path.write_text(json.dumps(keep, indent=1) + "\n")
    recorded = json.loads(path.read_text())
    assert shape([one["request"] for one in sent]) == shape([one["request"] for one in recorded])
    assert [one["answer"] for one in sent] == [one["answer"] for one in recorded]
