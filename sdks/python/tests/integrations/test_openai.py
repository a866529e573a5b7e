"""OpenAI's own library, before a local model."""

from __future__ import annotations

import asyncio

import pytest

openai = pytest.importorskip("openai", reason="needs openai: `make sdk-test`")

from gateway_guard import Guard, errors
from gateway_guard.integrations.openai import guard_openai

from ..fakes import ATTACK

HELLO = [{"role": "user", "content": "When does it open?"}]
TOOLS = [{"type": "function", "function": {"name": "mail", "parameters": {"type": "object"}}}]


@pytest.fixture
def client(model, guard):
    plain = openai.OpenAI(api_key="x", base_url=f"{model.url}/v1", max_retries=0)
    return guard_openai(plain, guard)


def asked(client, kind, **more):
    if kind == "chat":
        return client.chat.completions.create(model="m", messages=HELLO, **more)
    return client.responses.create(model="m", input="When does it open?", **more)


each_api = pytest.mark.parametrize("kind", ["chat", "responses"])


def test_it_is_the_client_that_it_was(client):
    assert isinstance(client, openai.OpenAI)
    assert asked(client, "chat").choices[0].message.content == "It opens at nine."
    assert asked(client, "responses").output_text == "It opens at nine."


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"role": "user", "content": ATTACK}, "user_input"),
        ({"role": "tool", "tool_call_id": "call_1", "content": ATTACK}, "tool_output"),
        ({"role": "assistant", "content": ATTACK}, "model_output"),
    ],
)
def test_an_attack_never_reaches_the_model(client, model, row, kind):
    with pytest.raises(errors.Blocked) as caught:
        client.chat.completions.create(model="m", messages=[*HELLO, row])

    assert caught.value.content_type == kind
    assert model.asked == []


def test_what_the_application_says_is_its_own(client):
    row = {"role": "system", "content": ATTACK}

    assert client.chat.completions.create(model="m", messages=[row, *HELLO]).choices


def test_definitions_of_tools_and_their_results_in_responses(client, model):
    with pytest.raises(errors.Blocked, match="a tool's definition"):
        asked(
            client, "chat", tools=[{**TOOLS[0], "function": {"name": "f", "description": ATTACK}}]
        )
    output = {"type": "function_call_output", "call_id": "call_1", "output": ATTACK}
    with pytest.raises(errors.Blocked, match="a tool's result"):
        client.responses.create(model="m", input=[*HELLO, output])
    assert model.asked == []


@each_api
def test_an_answer_is_checked(client, model, kind):
    model.text = ATTACK
    with pytest.raises(errors.Blocked, match="an answer of the model"):
        asked(client, kind)


@each_api
def test_a_call_of_a_tool_is_checked(client, model, kind):
    model.arguments = {"text": ATTACK}
    with pytest.raises(errors.Blocked, match="a tool call"):
        asked(client, kind)


@each_api
def test_a_stream_gives_out_only_what_was_judged(client, model, kind):
    assert len([*asked(client, kind, stream=True)]) > 3
    model.text = f"{'It opens at nine. ' * 400}{ATTACK}"
    seen = []
    with pytest.raises(errors.Blocked):
        for piece in asked(client, kind, stream=True):
            if kind == "chat":
                seen.append(piece.choices[0].delta.content or "")
            elif piece.type == "response.output_text.delta":
                seen.append(piece.delta)

    assert 2_000 < len("".join(seen)) < 400 * 18
    assert "Ignore" not in "".join(seen)


@each_api
def test_a_call_in_a_stream_is_held_back_until_its_end(client, model, kind):
    model.arguments = {"text": ATTACK}
    seen = []
    with pytest.raises(errors.Blocked, match="a tool call"):
        seen += asked(client, kind, stream=True)
    assert seen == []


def test_helpers_of_the_library_are_guarded_too(client, model):
    with client.chat.completions.stream(model="m", messages=HELLO) as stream:
        assert stream.get_final_completion().choices[0].message.content == "It opens at nine."
    with client.responses.stream(model="m", input="x") as stream:
        assert stream.get_final_response().output_text == "It opens at nine."
    raw = client.chat.completions.with_raw_response.create(model="m", messages=HELLO)
    assert raw.parse().choices[0].message.content == "It opens at nine."
    model.text = ATTACK
    for call in (
        lambda: client.chat.completions.parse(model="m", messages=HELLO),
        lambda: client.chat.completions.with_raw_response.create(model="m", messages=HELLO),
        lambda: client.with_options(timeout=5).chat.completions.create(model="m", messages=HELLO),
    ):
        with pytest.raises(errors.Blocked):
            call()
    with (
        pytest.raises(errors.Blocked),
        client.chat.completions.stream(model="m", messages=HELLO) as stream,
    ):
        stream.until_done()


def test_without_a_verdict_nothing_is_sent_unless_it_fails_open(gateway, guard, model, client):
    gateway.is_away = True
    with pytest.raises(errors.ServerError):
        asked(client, "chat")
    assert model.asked == []
    plain = openai.OpenAI(api_key="x", base_url=f"{model.url}/v1")
    verdicts = []
    lenient = Guard(guard.client, fail_open=True, on_verdict=lambda *one: verdicts.append(one))

    assert asked(guard_openai(plain, lenient), "chat").choices
    assert all(verdict.failed_open for _, verdict in verdicts)


def test_answers_may_be_left_out(model, guard):
    plain = openai.OpenAI(api_key="x", base_url=f"{model.url}/v1")
    model.text = ATTACK

    assert asked(guard_openai(plain, guard, answers=False), "chat").choices


def test_the_client_that_it_was_made_of_stays_as_it_is(model, guard):
    plain = openai.OpenAI(api_key="x", base_url=f"{model.url}/v1")
    plain.chat.completions  # noqa: B018 - made before the copy
    guarded = guard_openai(plain, guard)
    rows = [{"role": "user", "content": ATTACK}]

    assert plain.chat.completions.create(model="m", messages=rows).choices
    with pytest.raises(errors.Blocked):
        guarded.chat.completions.create(model="m", messages=rows)


def test_the_same_with_asyncio(model, guard, make_aguard):
    async def run():
        aguard = make_aguard()
        async with openai.AsyncOpenAI(api_key="x", base_url=f"{model.url}/v1") as plain:
            client = guard_openai(plain, aguard)
            create = client.chat.completions.create
            answer = await create(model="m", messages=HELLO)
            assert answer.choices[0].message.content == "It opens at nine."
            pieces = [one async for one in await create(model="m", messages=HELLO, stream=True)]
            assert len(pieces) > 3
            model.text = ATTACK
            for call in (
                create(model="m", messages=[{"role": "user", "content": ATTACK}]),
                create(model="m", messages=HELLO),
                client.chat.completions.with_raw_response.create(model="m", messages=HELLO),
                client.responses.create(model="m", input="x"),
            ):
                with pytest.raises(errors.Blocked):
                    await call
            with pytest.raises(errors.Blocked):
                async for _ in await create(model="m", messages=HELLO, stream=True):
                    pass
        with pytest.raises(TypeError, match="AsyncOpenAI needs an AsyncGuard"):
            guard_openai(plain, guard)
        await aguard.client.aclose()

    asyncio.run(run())


def test_calls_in_the_older_form_are_checked_in_a_stream(client, model, monkeypatch):
    call = {"function_call": {"name": "mail", "arguments": ATTACK}}
    chunk = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    events = [("", {**chunk, "choices": [{"index": 0, "delta": call}]}), ("", "[DONE]")]
    monkeypatch.setattr(model, "_chunks", lambda: events)

    with pytest.raises(errors.Blocked, match="a tool call"):
        [*asked(client, "chat", stream=True)]
