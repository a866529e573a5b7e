"""Guards, and reading chats: ../vectors/chats.json."""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
from pathlib import Path
from unittest.mock import MagicMock

import pytest

from gateway_guard import AsyncClient, AsyncGuard, Client, Guard, Text, errors
from gateway_guard.chats import (
    portions,
    texts_of_answer,
    texts_of_mcp,
    texts_of_request,
    texts_of_result,
)

from .fakes import ATTACK

CHATS = json.loads((Path(__file__).resolve().parents[2] / "vectors/chats.json").read_text())
LONG = "The weather was fine on that day, and nothing happened. " * 500
READ = {"request": texts_of_request, "answer": texts_of_answer}
DRAWN = {
    "a data URI": "data:image/png;base64,T2JleSB0aGUgcGFnZS4=",
    "words in a data URI": "data:image/png;base64,Obey_the_page",
    "base64": "T2JleSB0aGUgcGFnZS4=",
    "words without blanks": "Obey_the_page",
}


@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["what"])
def test_a_chat_is_read(case):
    found = READ[case["side"]](case["body"])

    assert sorted((one.content_type, one.text) for one in found) == sorted(
        (kind, text) for kind, text in case["texts"]
    )


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN.keys())
@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["what"])
def test_where_a_word_is_judged_so_is_what_looks_like_a_picture(case, drawn):
    def judged(text, instead):
        body = json.dumps(case["body"]).replace(json.dumps(text), json.dumps(instead))
        return instead in {found.text for found in READ[case["side"]](json.loads(body))}

    for _, text in case["texts"]:
        # But for places of pictures and ids themselves.
        if judged(text, "Obey") and not text.startswith("data:"):
            assert judged(text, drawn), text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x y", "x y"),
        ([{"type": "text", "text": "x y"}], "x y"),
        ({"id": "x y"}, '{"id":"x y"}'),
        (["x y", 5], '["x y",5]'),
        ([], "[]"),
    ],
)
def test_what_a_tool_returned(value, text):
    assert texts_of_result(value) == [Text(text, "tool_output")]


@pytest.mark.parametrize(
    "block",
    [
        {"type": "text", "role": "system", "text": "x y"},
        {"type": "note", "data": "x y"},
        {"type": "image", "image_url": {"url": "x y"}},
    ],
)
def test_a_tool_hides_nothing_by_a_role_or_a_picture(block):
    assert texts_of_result([block]) == [Text("x y", "tool_output")]
    assert texts_of_mcp({"content": [block]}) == [Text("x y", "tool_output")]


@pytest.mark.parametrize("chars", [1, 9_999, 10_000, 10_001, 19_001, 123_456])
def test_portions_cover_all(chars):
    text = "".join(chr(0x4E00 + n % 20_000) for n in range(chars))
    parts = portions(text)

    assert all(len(part) <= 10_000 for part in parts)
    assert parts[0] + "".join(part[1_000:] for part in parts[1:]) == text


def test_each_text_is_checked_as_what_it_is(gateway, guard):
    guard.check_all([Text("a"), Text("b", "document"), Text("c", "tool_output")])

    assert gateway.asked == [("user_input", "a"), ("document", "b"), ("tool_output", "c")]


def test_what_is_flagged_raises_and_says_what_to_do(guard):
    with pytest.raises(errors.Blocked) as caught:
        guard.check(LONG + ATTACK, "document", "the page of the library")

    error = caught.value
    assert (error.content_type, error.where) == ("document", "the page of the library")
    assert error.request_id == error.detection.request_id
    assert str(error).startswith("Prompt injection in the page of the library: injection (request")
    assert "false_positive" in str(error)
    assert ATTACK not in str(error)


def test_a_history_is_asked_once(gateway, guard):
    for end in range(1, 5):
        guard.check_all([Text(f"message {n}") for n in range(end)])

    assert len(gateway.asked) == 4


def test_what_was_flagged_stays_flagged(gateway, guard):
    for _ in range(2):
        with pytest.raises(errors.Blocked):
            guard.check(ATTACK)

    assert len(gateway.asked) == 1


def test_without_a_verdict_it_raises_unless_it_fails_open_and_then_says_so(gateway, guard, caplog):
    gateway.is_away = True
    with pytest.raises(errors.ServerError):
        guard.check("x")
    verdicts = []
    lenient = Guard(guard.client, fail_open=True, on_verdict=lambda *one: verdicts.append(one))
    with caplog.at_level(logging.WARNING, "gateway_guard"):
        (found,) = lenient.check(ATTACK)

    assert found.failed_open
    assert [(text.text, verdict.failed_open) for text, verdict in verdicts] == [(ATTACK, True)]
    assert "passed without a verdict" in caplog.text
    gateway.is_away = False
    with pytest.raises(errors.Blocked):  # that it passed is not remembered
        lenient.check(ATTACK)


def test_a_wrong_key_never_fails_open(monkeypatch, gateway):
    monkeypatch.setattr(
        gateway,
        "answer",
        lambda handler, _: gateway.send(
            handler, 401, {"code": "invalid_api_key", "detail": "no such key", "status": 401}
        ),
    )
    with (
        Client("gw_live_x", base_url=gateway.url) as client,
        pytest.raises(errors.InvalidAPIKey),
    ):
        Guard(client, fail_open=True).check("x")


def test_the_same_with_asyncio(gateway, make_aguard):
    async def run():
        guard = make_aguard()
        async with guard.client:
            await guard.check_all([Text(f"message {n}", "document") for n in range(20)])
            with pytest.raises(errors.Blocked):
                await guard.check_all([Text("message 1", "document"), Text(ATTACK), Text(LONG)])

    asyncio.run(run())

    kinds = [kind for kind, text in gateway.asked if text.startswith("message")]
    assert kinds == ["document"] * 20


def test_both_guards_take_the_same():
    import inspect

    for one, other in ((Guard, AsyncGuard), (Guard.check, AsyncGuard.check)):
        assert [*inspect.signature(one).parameters] == [*inspect.signature(other).parameters]
    assert isinstance(AsyncGuard(AsyncClient("k")).client, AsyncClient)


# What each integration is made with, and whether that is an AsyncGuard.
MADE = {
    "agents.input_guardrail": (True, lambda make, guard: make(guard)),
    "agents.output_guardrail": (True, lambda make, guard: make(guard)),
    "agents.tool_input_guardrail": (True, lambda make, guard: make(guard)),
    "agents.tool_output_guardrail": (True, lambda make, guard: make(guard)),
    "langchain.AsyncGuardCallback": (True, lambda make, guard: make(guard)),
    "langchain.GuardCallback": (False, lambda make, guard: make(guard)),
    "litellm.GatewayGuardrail": (True, lambda make, guard: make(guard)),
    "llama_index.GuardPostprocessor": (False, lambda make, guard: make(guard=guard)),
    "mcp.guard_mcp": (True, lambda make, guard: make(MagicMock(), guard)),
    "starlette.GuardMiddleware": (True, lambda make, guard: make(None, guard=guard)),
}


@pytest.mark.parametrize("name", MADE)
def test_the_other_kind_of_guard_is_refused_when_it_is_given(name, guard, make_aguard):
    """An `AsyncGuard` that nobody awaits lets everything pass; a `Guard` that is awaited judges,
    and then every request fails."""
    module, _, function = name.partition(".")
    try:
        make = getattr(importlib.import_module(f"gateway_guard.integrations.{module}"), function)
    except ModuleNotFoundError as error:
        pytest.skip(f"needs {error.name}: `make sdk-test`")
    is_async, made_with = MADE[name]
    right, wrong = (make_aguard(), guard) if is_async else (guard, make_aguard())

    assert made_with(make, right) is not None
    with pytest.raises(TypeError, match="needs an Async" if is_async else r"needs a Guard\("):
        made_with(make, wrong)


def test_a_postprocessor_of_llama_index_awaits_an_async_guard(guard, make_aguard):
    pytest.importorskip("llama_index.core", reason="needs llama-index: `make sdk-test`")
    from gateway_guard.integrations.llama_index import GuardPostprocessor

    assert GuardPostprocessor(guard=guard, aguard=make_aguard()).aguard is not None
    with pytest.raises(TypeError, match="needs an AsyncGuard"):
        GuardPostprocessor(guard=guard, aguard=guard)
