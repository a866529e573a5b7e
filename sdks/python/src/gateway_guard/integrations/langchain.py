"""LangChain: a callback that checks what passes, and a filter for documents.

model.invoke(question, config={"callbacks": [GuardCallback(Guard())]})
retriever | document_filter(Guard())
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional, Union

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableLambda

from gateway_guard.chats import Text, texts_of_request, texts_of_result
from gateway_guard.errors import Blocked
from gateway_guard.guard import AsyncGuard, Guard

OnDropped = Callable[[Document, Blocked], None]
OF_CLASS = {
    AIMessage: "assistant",
    SystemMessage: "system",
    ToolMessage: "tool",
    FunctionMessage: "tool",
}


def _role(message: BaseMessage) -> str:
    """By its class: a chunk says another `type` than the message that it is a part of."""
    if isinstance(message, ChatMessage):
        return message.role
    return next((role for kind, role in OF_CLASS.items() if isinstance(message, kind)), "user")


def _asked(messages: Sequence[Sequence[BaseMessage]]) -> list[Text]:
    rows = [
        {
            "role": _role(one),
            "content": one.content,
            "tool_calls": getattr(one, "tool_calls", None) or [],
        }
        for some in messages
        for one in some
    ]
    return texts_of_request({"messages": rows})


def _texts_in(response: LLMResult) -> list[Text]:
    found: list[Text] = []
    for some in response.generations:
        for one in some:
            found.append(Text(one.text, "model_output"))
            message = one.message if isinstance(one, ChatGeneration) else None
            calls = getattr(message, "tool_calls", None)
            if calls:
                row = {"role": "assistant", "content": "", "tool_calls": calls}
                found += texts_of_request({"messages": [row]})
    return [one for one in found if one.text.strip()]


def _returned(output: Any) -> list[Text]:
    content = getattr(output, "content", output)
    return texts_of_result(content)


class GuardCallback(BaseCallbackHandler):
    """Checks prompts, answers, results of tools and retrieved documents, and raises
    `errors.Blocked` out of the chain. `answers=False` leaves out what models say.

    A callback cannot hold back a stream: its answer is given out as it comes, and `Blocked` raised
    at its end. Where nothing may be seen before it was judged, use `invoke`, or a client that
    holds back (`guard_openai`, `guard_anthropic`)."""

    raise_error = True  # else LangChain logs it, and goes on
    run_inline = True

    def __init__(self, guard: Optional[Guard] = None, *, answers: bool = True) -> None:
        self.guard = Guard.needed(guard, "GuardCallback")
        self.answers = answers

    def on_chat_model_start(
        self, serialized: Any, messages: Sequence[Sequence[BaseMessage]], **_: Any
    ) -> None:
        self.guard.check_all(_asked(messages))

    def on_llm_start(self, serialized: Any, prompts: Sequence[str], **_: Any) -> None:
        self.guard.check_all(Text(prompt) for prompt in prompts)

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        if self.answers:
            self.guard.check_all(_texts_in(response))

    def on_tool_end(self, output: Any, **_: Any) -> None:
        self.guard.check_all(_returned(output))

    def on_retriever_end(self, documents: Sequence[Document], **_: Any) -> None:
        self.guard.check_all(Text(one.page_content, "document") for one in documents)


class AsyncGuardCallback(AsyncCallbackHandler):
    """The same with asyncio."""

    raise_error = True
    run_inline = True

    def __init__(self, guard: Optional[AsyncGuard] = None, *, answers: bool = True) -> None:
        self.guard = AsyncGuard.needed(guard, "AsyncGuardCallback")
        self.answers = answers

    async def on_chat_model_start(
        self, serialized: Any, messages: Sequence[Sequence[BaseMessage]], **_: Any
    ) -> None:
        await self.guard.check_all(_asked(messages))

    async def on_llm_start(self, serialized: Any, prompts: Sequence[str], **_: Any) -> None:
        await self.guard.check_all(Text(prompt) for prompt in prompts)

    async def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        if self.answers:
            await self.guard.check_all(_texts_in(response))

    async def on_tool_end(self, output: Any, **_: Any) -> None:
        await self.guard.check_all(_returned(output))

    async def on_retriever_end(self, documents: Sequence[Document], **_: Any) -> None:
        await self.guard.check_all(Text(one.page_content, "document") for one in documents)


def document_filter(
    guard: Union[Guard, AsyncGuard], *, on_dropped: Optional[OnDropped] = None
) -> RunnableLambda[Sequence[Document], list[Document]]:
    """Leaves out documents that are attacks, and hands on the others in their order. With an
    `AsyncGuard` the chain is to be called by `ainvoke`. `on_dropped` is told of each."""

    def dropped(document: Document, error: Blocked) -> None:
        if on_dropped is not None:
            on_dropped(document, error)

    def keep(documents: Sequence[Document]) -> list[Document]:
        assert isinstance(guard, Guard)
        kept = []
        for document in documents:
            try:
                guard.check(document.page_content, "document")
            except Blocked as error:
                dropped(document, error)
            else:
                kept.append(document)
        return kept

    async def akeep(documents: Sequence[Document]) -> list[Document]:
        assert isinstance(guard, AsyncGuard)
        kept = []
        for document in documents:
            try:
                await guard.check(document.page_content, "document")
            except Blocked as error:
                dropped(document, error)
            else:
                kept.append(document)
        return kept

    if isinstance(guard, AsyncGuard):
        return RunnableLambda(akeep, name="gateway_guard")
    return RunnableLambda(keep, name="gateway_guard")
