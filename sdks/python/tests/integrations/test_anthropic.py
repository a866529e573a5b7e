"""Anthropic's own library, before a local model."""

from __future__ import annotations

import asyncio

import pytest

anthropic = pytest.importorskip("anthropic", reason="needs anthropic: `make sdk-test`")

from gateway_guard import errors
from gateway_guard.integrations.anthropic import guard_anthropic

from ..fakes import ATTACK

HELLO = [{"role": "user", "content": "When does it open?"}]


@pytest.fixture
def client(model, guard):
    plain = anthropic.Anthropic(api_key="x", base_url=model.url, max_retries=0)
    return guard_anthropic(plain, guard)


def asked(client, messages=HELLO, **more):
    return client.messages.create(model="m", max_tokens=9, messages=messages, **more)


def test_it_is_the_client_that_it_was(client):
    assert isinstance(client, anthropic.Anthropic)
    assert asked(client, system=ATTACK).content[0].text == "It opens at nine."


@pytest.mark.parametrize(
    ("block", "kind"),
    [
        ({"type": "text", "text": ATTACK}, "user_input"),
        ({"type": "tool_result", "tool_use_id": "t", "content": ATTACK}, "tool_output"),
        (
            {
                "type": "document",
                "source": {"type": "text", "media_type": "text/plain", "data": ATTACK},
            },
            "document",
        ),
    ],
)
def test_an_attack_never_reaches_the_model(client, model, block, kind):
    with pytest.raises(errors.Blocked) as caught:
        asked(client, [*HELLO, {"role": "user", "content": [block]}])

    assert caught.value.content_type == kind
    assert model.asked == []


def test_answers_and_calls_of_tools_are_checked(client, model):
    model.text = ATTACK
    with pytest.raises(errors.Blocked, match="an answer of the model"):
        asked(client)
    model.arguments = {"text": ATTACK}
    with pytest.raises(errors.Blocked, match="a tool call"):
        asked(client)


def test_streams_give_out_only_what_was_judged(client, model):
    with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == "It opens at nine."
    model.text = f"{'It opens at nine. ' * 400}{ATTACK}"
    seen = ""
    with (
        pytest.raises(errors.Blocked),
        client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream,
    ):
        for text in stream.text_stream:
            seen += text
    assert len(seen) > 2_000
    assert "Ignore" not in seen
    model.arguments = {"text": ATTACK}
    seen = []
    with pytest.raises(errors.Blocked, match="a tool call"):
        for event in asked(client, stream=True):
            seen.append(event.type)
    assert "content_block_delta" not in seen


def test_counting_asks_no_model_and_no_gateway(client, gateway):
    client.messages.count_tokens(model="m", messages=[{"role": "user", "content": ATTACK}])

    assert gateway.asked == []


def test_the_same_with_asyncio(model, make_aguard):
    async def run():
        aguard = make_aguard()
        async with anthropic.AsyncAnthropic(api_key="x", base_url=model.url) as plain:
            client = guard_anthropic(plain, aguard)
            assert (await asked(client)).content[0].text == "It opens at nine."
            async with client.messages.stream(model="m", max_tokens=9, messages=HELLO) as stream:
                assert await stream.get_final_text() == "It opens at nine."
            model.text = ATTACK
            with pytest.raises(errors.Blocked):
                await asked(client)
            with pytest.raises(errors.Blocked):
                await asked(client, [{"role": "user", "content": ATTACK}])
        await aguard.client.aclose()

    asyncio.run(run())
