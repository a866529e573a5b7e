"""LangChain's own chains, with models and retrievers that it ships for tests."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core", reason="needs langchain-core: `make sdk-test`")

from langchain_core import messages
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool

from gateway_guard import errors
from gateway_guard.integrations.langchain import (
    AsyncGuardCallback,
    GuardCallback,
    document_filter,
)

from ..fakes import ATTACK


class Pages(BaseRetriever):
    pages: list[str]

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=page, metadata={"n": n}) for n, page in enumerate(self.pages)]


@tool
def read(page: str) -> str:
    """Reads a page."""
    return page


@pytest.fixture
def calls(guard):
    return {"callbacks": [GuardCallback(guard)]}


def test_a_chat_passes_and_each_part_is_checked_as_what_it_is(gateway, calls):
    rows = [
        SystemMessage(ATTACK),
        HumanMessage("When?"),
        AIMessage("", tool_calls=[{"name": "read", "args": {"page": "1"}, "id": "call_1"}]),
        ToolMessage("At nine.", tool_call_id="call_1"),
    ]
    answer = FakeListChatModel(responses=["Nine."]).invoke(rows, config=calls)

    assert answer.content == "Nine."
    assert gateway.asked == [
        ("user_input", "When?"),
        ("tool_call", '{"name":"read","args":{"page":"1"}}'),
        ("tool_output", "At nine."),
        ("model_output", "Nine."),
    ]


ROLES = {"system": None, "user": "user_input", "assistant": "model_output", "tool": "tool_output"}
KINDS = {
    messages.SystemMessage: None,
    messages.HumanMessage: "user_input",
    messages.AIMessage: "model_output",
    messages.ToolMessage: "tool_output",
    messages.FunctionMessage: "tool_output",
}


def classes(of=messages.BaseMessage):
    for one in of.__subclasses__():
        if one.__module__.startswith("langchain_core."):
            yield one
        yield from classes(one)


CLASSES = sorted({*classes()} - {messages.BaseMessageChunk}, key=lambda one: one.__name__)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_class_of_messages_is_what_it_is(gateway, calls, kind):
    def asked(**more):
        gateway.asked.clear()
        made = kind(content="When?", id="1", **more)
        FakeListChatModel(responses=["Nine."]).invoke([made], config=calls)
        return [content_type for content_type, text in gateway.asked if text == "When?"]

    if issubclass(kind, messages.RemoveMessage):
        pytest.skip("names another, and says nothing")
    if issubclass(kind, messages.ChatMessage):
        for role, expected in ROLES.items():
            assert asked(role=role) == [expected] * (expected is not None)
        return
    (expected,) = [found for base, found in KINDS.items() if issubclass(kind, base)]
    needed = {"tool_call_id": "call_1", "name": "read"}
    more = {name: needed[name] for name in needed if name in kind.model_fields}
    assert asked(**more) == [expected] * (expected is not None)


def test_a_gathered_stream_is_an_answer_and_the_next_turn_passes(gateway, calls):
    model = FakeListChatModel(responses=["It opens at nine."])
    gathered = None
    for chunk in model.stream("When?", config=calls):
        gathered = chunk if gathered is None else gathered + chunk
    gateway.asked.clear()
    model.invoke([SystemMessage(ATTACK), gathered, HumanMessage("And on Sunday?")], config=calls)

    assert ("user_input", "And on Sunday?") in gateway.asked
    assert {kind for kind, text in gateway.asked if text == gathered.content} <= {"model_output"}


def test_a_stream_ends_with_what_is_said_of_it(calls):
    seen = ""
    with pytest.raises(errors.Blocked, match="an answer"):
        for chunk in FakeListChatModel(responses=[ATTACK]).stream("When?", config=calls):
            seen += chunk.content
    assert seen == ATTACK  # a callback cannot hold it back, and the class says so


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (HumanMessage(ATTACK), "user_input"),
        (HumanMessage([{"type": "text", "text": ATTACK}]), "user_input"),
        (ToolMessage(ATTACK, tool_call_id="call_1"), "tool_output"),
        (AIMessage(ATTACK), "model_output"),
    ],
)
def test_an_attack_raises_out_of_the_chain(calls, message, kind):
    with pytest.raises(errors.Blocked) as caught:
        FakeListChatModel(responses=["Nine."]).invoke([message], config=calls)

    assert caught.value.content_type == kind


def test_answers_bare_prompts_tools_and_documents(calls, guard):
    with pytest.raises(errors.Blocked, match="an answer"):
        FakeListChatModel(responses=[ATTACK]).invoke("When?", config=calls)
    with pytest.raises(errors.Blocked, match="a message"):
        FakeListLLM(responses=["Nine."]).invoke(ATTACK, config=calls)
    with pytest.raises(errors.Blocked, match="a tool's result"):
        read.invoke({"page": ATTACK}, config=calls)
    with pytest.raises(errors.Blocked, match="a document"):
        Pages(pages=["At nine.", ATTACK]).invoke("When?", config=calls)
    quiet = {"callbacks": [GuardCallback(guard, answers=False)]}
    assert FakeListChatModel(responses=[ATTACK]).invoke("When?", config=quiet).content == ATTACK


def test_documents_are_filtered_in_their_order(guard):
    dropped = []
    chain = Pages(pages=["one", ATTACK, "two"]) | document_filter(
        guard, on_dropped=lambda document, error: dropped.append((document.metadata["n"], error))
    )

    assert [one.page_content for one in chain.invoke("When?")] == ["one", "two"]
    ((number, error),) = dropped
    assert (number, error.content_type) == (1, "document")


def test_the_same_with_asyncio(make_aguard):
    async def run():
        guard = make_aguard()
        calls = {"callbacks": [AsyncGuardCallback(guard)]}
        model = FakeListChatModel(responses=["Nine.", ATTACK])
        assert (await model.ainvoke("When?", config=calls)).content == "Nine."
        with pytest.raises(errors.Blocked):
            await model.ainvoke("And on Sunday?", config=calls)
        with pytest.raises(errors.Blocked):
            await model.ainvoke(ATTACK, config=calls)
        chain = Pages(pages=["one", ATTACK]) | document_filter(guard)
        assert [one.page_content for one in await chain.ainvoke("When?")] == ["one"]
        await guard.client.aclose()

    asyncio.run(run())
