"""LiteLLM's own class of guardrails, and its own answers of a local model."""

from __future__ import annotations

import asyncio

import pytest

litellm = pytest.importorskip("litellm", reason="needs litellm: `make sdk-test`")
fastapi = pytest.importorskip("fastapi")

from litellm.integrations.custom_guardrail import CustomGuardrail

from gateway_guard.integrations.litellm import GatewayGuardrail

from ..world import ATTACK

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
