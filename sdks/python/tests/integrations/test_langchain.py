"""LangChain's own chains, with models and retrievers that it ships for tests."""

from __future__ import annotations

import asyncio

import pytest

pytest.importorskip("langchain_core", reason="needs langchain-core: `make sdk-test`")

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

from ..world import ATTACK


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
    messages = [
        SystemMessage(ATTACK),
        HumanMessage("When?"),
        AIMessage("", tool_calls=[{"name": "read", "args": {"page": "1"}, "id": "call_1"}]),
        ToolMessage("At nine.", tool_call_id="call_1"),
    ]
    answer = FakeListChatModel(responses=["Nine."]).invoke(messages, config=calls)

    assert answer.content == "Nine."
    assert gateway.asked == [
        ("user_input", "When?"),
        ("tool_call", '{"name":"read","args":{"page":"1"}}'),
        ("tool_output", "At nine."),
        ("model_output", "Nine."),
    ]


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
