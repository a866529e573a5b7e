"""LiteLLM's own class of guardrails, and its own answers of a local model."""

from __future__ import annotations

import asyncio
import json

import pytest

litellm = pytest.importorskip("litellm", reason="needs litellm: `make sdk-test`")
fastapi = pytest.importorskip("fastapi")

import httpx
from litellm.integrations.custom_guardrail import CustomGuardrail

from gateway_guard.integrations.litellm import GatewayGuardrail

from ..fakes import ATTACK

HELLO = [{"role": "user", "content": "When does it open?"}]


def asked(model, **more):
    return litellm.acompletion(
        model="openai/m", messages=HELLO, api_key="x", api_base=f"{model.url}/v1", **more
    )


def run(scenario, make_aguard, **options):
    async def go():
        guard = make_aguard(**options)
        guardrail = GatewayGuardrail(
            guard, guardrail_name="gateway", event_hook="pre_call", default_on=True
        )
        assert isinstance(guardrail, CustomGuardrail)
        await scenario(guardrail)
        await guard.client.aclose()

    asyncio.run(go())


def test_a_chat_passes_or_is_400(gateway, make_aguard):
    async def scenario(guardrail):
        data = {"messages": HELLO, "model": "m"}
        assert await guardrail.async_pre_call_hook({}, None, data, "completion") == data
        for role, where in (("user", "a message"), ("tool", "a tool's result")):
            rows = [*HELLO, {"role": role, "content": ATTACK}]
            with pytest.raises(fastapi.HTTPException) as caught:
                await guardrail.async_pre_call_hook({}, None, {"messages": rows}, "completion")
            assert caught.value.status_code == 400
            assert caught.value.detail["error"].startswith(f"Prompt injection in {where}")
            with pytest.raises(fastapi.HTTPException):
                await guardrail.async_moderation_hook({"messages": rows}, {}, "completion")

    run(scenario, make_aguard)


def test_an_answer_is_checked(model, make_aguard):
    async def scenario(guardrail):
        answer = await asked(model)
        assert await guardrail.async_post_call_success_hook({}, {}, answer) is answer
        model.text = ATTACK
        with pytest.raises(fastapi.HTTPException):
            await guardrail.async_post_call_success_hook({}, {}, await asked(model))
        model.arguments = {"text": ATTACK}
        with pytest.raises(fastapi.HTTPException) as caught:
            await guardrail.async_post_call_success_hook({}, {}, await asked(model))
        assert "a tool call" in caught.value.detail["error"]

    run(scenario, make_aguard)


def test_a_stream_gives_out_only_what_was_judged(model, make_aguard):
    async def scenario(guardrail):
        model.text = f"{'It opens at nine. ' * 400}{ATTACK}"
        stream = await asked(model, stream=True)
        seen = ""
        with pytest.raises(fastapi.HTTPException):
            async for piece in guardrail.async_post_call_streaming_iterator_hook({}, stream, {}):
                seen += piece.choices[0].delta.content or ""
        assert len(seen) > 2_000
        assert "Ignore" not in seen

    run(scenario, make_aguard)


async def messages(model, stream):
    if stream:  # for LiteLLM's own function half of its proxy has to be there
        return frames_of(model)
    return await litellm.anthropic_messages(
        model="anthropic/m", messages=HELLO, max_tokens=9, api_key="x", api_base=model.url
    )


async def frames_of(model):
    body = {"messages": HELLO, "stream": True}
    async with (
        httpx.AsyncClient() as client,
        client.stream("POST", f"{model.url}/v1/messages", json=body) as response,
    ):
        async for piece in response.aiter_raw():
            yield piece


def responses(model, **more):
    return litellm.aresponses(
        model="openai/m", input="When?", api_key="x", api_base=f"{model.url}/v1", **more
    )


ROUTES = {"chat": asked, "messages": messages, "responses": responses}
LONG = "It opens at nine. " * 400


@pytest.mark.parametrize("arguments", [None, {"text": ATTACK}], ids=["text", "call"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("entry", ROUTES)
def test_whatever_a_route_answers_with_is_checked(model, make_aguard, entry, stream, arguments):
    """What the proxy hands to the hooks: objects, JSON, or bytes."""

    async def passed(guardrail):
        answer = await ROUTES[entry](model, stream=stream)
        if not stream:
            assert await guardrail.async_post_call_success_hook({}, {}, answer) is answer
            return ""
        hook = guardrail.async_post_call_streaming_iterator_hook
        return "".join([str(piece) async for piece in hook({}, answer, {})])

    async def scenario(guardrail):
        model.text = LONG
        seen = await passed(guardrail)
        assert not stream or seen.count("nine") >= 200
        model.text, model.arguments = LONG + ATTACK, arguments
        with pytest.raises(fastapi.HTTPException) as caught:
            await passed(guardrail)
        assert caught.value.status_code == 400

    run(scenario, make_aguard)


def frames(*texts, end="\n\n"):
    """Anthropic's, as bytes."""
    made = []
    for text in texts:
        delta = {"type": "text_delta", "text": text}
        event = {"type": "content_block_delta", "index": 0, "delta": delta}
        made.append(f"event: content_block_delta\ndata: {json.dumps(event)}{end}".encode())
    return b"".join(made)


GEMINI = {"candidates": [{"content": {"role": "model", "parts": [{"text": ATTACK}]}}]}
GEMINI_CALL = {"functionCall": {"name": "mail", "args": {"text": ATTACK}}}
RESULT = {"type": "web_search_tool_result", "content": [{"type": "x", "title": ATTACK}]}
RAW = {
    "events": frames(ATTACK),
    "events, by other ends of lines": frames(ATTACK, end="\r\n\r\n"),
    "an attack in many events": frames(*ATTACK),
    "no end": frames("It opens. ", ATTACK)[:-2],
    "half of JSON": frames(ATTACK)[:-10],
    "no JSON": b"data: " + ATTACK.encode(),
    "no events": ATTACK.encode(),
    "Gemini's events": b"data: " + json.dumps(GEMINI).encode() + b"\r\n\r\n",
    "Gemini's JSON": json.dumps([GEMINI, GEMINI], indent=2).encode(),
    "Gemini's call": b"data: "
    + json.dumps({"candidates": [{"content": {"parts": [GEMINI_CALL]}}]}).encode(),
    "a result": b"data: "
    + json.dumps({"type": "content_block_start", "content_block": RESULT}).encode(),
}


@pytest.mark.parametrize("size", [1, 7, 10_000])
@pytest.mark.parametrize("raw", RAW)
def test_bytes_are_read_wherever_they_are_cut(make_aguard, raw, size):
    async def stream():
        harmless = frames(*(f"Line {n}. " for n in range(300)))
        for content in (harmless, RAW[raw]):
            for at in range(0, len(content), size):
                yield content[at : at + size]

    async def scenario(guardrail):
        seen = b""
        with pytest.raises(fastapi.HTTPException):
            async for one in guardrail.async_post_call_streaming_iterator_hook({}, stream(), {}):
                seen += one
        assert b"Ignore" not in seen
        assert size == 10_000 or b"Line 200." in seen

    run(scenario, make_aguard)


def test_without_a_verdict_it_is_503_or_passes(gateway, make_aguard):
    async def closed(guardrail):
        with pytest.raises(fastapi.HTTPException) as caught:
            await guardrail.async_pre_call_hook({}, None, {"messages": HELLO}, "completion")
        assert caught.value.status_code == 503

    async def opened(guardrail):
        data = {"messages": HELLO}
        assert await guardrail.async_pre_call_hook({}, None, data, "completion") == data

    gateway.is_away = True
    run(closed, make_aguard)
    run(opened, make_aguard, fail_open=True)


def test_the_proxy_finds_it_by_the_name_that_the_page_says(tmp_path):
    from litellm.proxy.types_utils.utils import get_instance_fn

    name = "gateway_guard.integrations.litellm.GatewayGuardrail"
    found = get_instance_fn(name, config_file_path=str(tmp_path / "config.yaml"))
    guardrail = found(
        guardrail_name="gateway",
        event_hook=["pre_call", "post_call"],
        default_on=True,
        fail_open=True,
        api_key=None,
    )

    assert isinstance(guardrail, GatewayGuardrail)
    assert isinstance(guardrail, CustomGuardrail)
