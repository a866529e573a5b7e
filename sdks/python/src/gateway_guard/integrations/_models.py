"""Clients of OpenAI's and Anthropic's libraries: both send everything by their own `post`."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, Optional, TypeVar, Union

from gateway_guard.chats import OVERLAP_CHARS, Text, texts_of_answer, texts_of_request
from gateway_guard.guard import AsyncGuard, Guard

C = TypeVar("C")
STREAM_CHARS = 2_000
ASKS_NO_MODEL = ("/count_tokens", "/input_tokens", "/moderations")
CALL = "tool_call"


def guarded(
    client: C, guard: Union[Guard, AsyncGuard], *, answers: bool, stream_chars: int = STREAM_CHARS
) -> C:
    """A copy of `client`, of the same kind, with a `post` that checks; copies of it check too."""
    kind = type(client)
    is_async = kind.__name__.startswith("Async")
    (AsyncGuard if is_async else Guard).needed(guard, kind.__name__)

    def post(self: Any, path: str, **options: Any) -> Any:
        texts = _texts(path, options.get("body"))
        assert isinstance(guard, Guard)
        if texts is None:
            return kind.post(self, path, **options)  # type: ignore[attr-defined]
        guard.check_all(texts)
        answer = kind.post(self, path, **options)  # type: ignore[attr-defined]
        if not answers:
            return answer
        output = answer.parse() if hasattr(answer, "http_response") else answer
        if hasattr(output, "_iterator"):
            output._iterator = _streamed(output._iterator, guard, stream_chars)
        else:
            guard.check_all(_answer_texts(output))
        return answer

    async def apost(self: Any, path: str, **options: Any) -> Any:
        texts = _texts(path, options.get("body"))
        assert isinstance(guard, AsyncGuard)
        if texts is None:
            return await kind.post(self, path, **options)  # type: ignore[attr-defined]
        await guard.check_all(texts)
        answer = await kind.post(self, path, **options)  # type: ignore[attr-defined]
        if not answers:
            return answer
        output = answer
        if hasattr(answer, "http_response"):
            output = answer.parse()
            output = await output if hasattr(output, "__await__") else output
        if hasattr(output, "_iterator"):
            output._iterator = _astreamed(output._iterator, guard, stream_chars)
        else:
            await guard.check_all(_answer_texts(output))
        return answer

    made = copy.copy(client)
    # Its resources, and what wraps them, hold the client that made them: these are made anew.
    for name, value in [*vars(made).items()]:
        if not name.startswith("_") and hasattr(value, "_client"):
            del made.__dict__[name]
    made.__class__ = type(kind.__name__, (kind,), {"post": apost if is_async else post})
    return made


def _texts(path: str, body: Any) -> Optional[list[Text]]:
    """None: no model is asked."""
    if not isinstance(body, Mapping) or path.endswith(ASKS_NO_MODEL):
        return None
    return texts_of_request(body)


def _answer_texts(answer: Any) -> list[Text]:
    if isinstance(answer, str):  # such as what was heard in a recording
        return [Text(answer, "model_output")] if answer.strip() else []
    return texts_of_answer(plain(answer))


def plain(answer: Any) -> Mapping[str, Any]:
    """An answer as JSON: of a library's class, or as a proxy hands it on; else empty."""
    if isinstance(answer, Mapping):
        return answer
    dump = getattr(answer, "model_dump", None)
    found = dump(mode="json", exclude_none=True) if dump is not None else {}
    return found if isinstance(found, Mapping) else {}


class Streamed:
    """What was said so far; pieces are held back until all that was said in them is judged."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._text, self._judged = "", 0
        self._calls: dict[Any, str] = {}
        self._whole: list[Text] = []
        self.held: list[Any] = []

    def take(self, piece: Any) -> bool:
        """Whether it is time to look. With a call of a tool it is at the end, when it is whole."""
        self.held.append(piece)
        self.read(piece)
        return self.is_time()

    def read(self, piece: Any) -> None:
        for place, text in _deltas(piece):
            if place is None:
                self._text += text
            else:
                self._calls[place] = self._calls.get(place, "") + text
        self._whole += _wholes(piece)

    def is_time(self) -> bool:
        return not self._calls and len(self._text) - self._judged >= self._every

    def texts(self, *, at_end: bool = False) -> list[Text]:
        """What is new, with what stands before it."""
        new = self._text[max(0, self._judged - OVERLAP_CHARS) :]
        found = [Text(new, "model_output")] if len(self._text) > self._judged else []
        self._judged = len(self._text)
        found += self._whole
        self._whole = []
        if at_end:
            found += [Text(call, CALL) for call in self._calls.values() if call.strip()]
        return found

    def released(self) -> Iterator[Any]:
        held, self.held = self.held, []
        yield from held


def _streamed(pieces: Iterator[Any], guard: Guard, every: int) -> Iterator[Any]:
    output = Streamed(every)
    for piece in pieces:
        if output.take(piece):
            guard.check_all(output.texts())
            yield from output.released()
    guard.check_all(output.texts(at_end=True))
    yield from output.released()


async def _astreamed(
    pieces: AsyncIterator[Any], guard: AsyncGuard, every: int
) -> AsyncIterator[Any]:
    output = Streamed(every)
    async for piece in pieces:
        if output.take(piece):
            await guard.check_all(output.texts())
            for one in output.released():
                yield one
    await guard.check_all(output.texts(at_end=True))
    for one in output.released():
        yield one


def _of(value: Any, name: str) -> Any:
    """Of an object of a library, or of its JSON."""
    return value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)


def _texts_in(value: Any, *names: str) -> Iterator[str]:
    for name in names:
        text = _of(value, name)
        if isinstance(text, str):
            yield text


def _deltas(piece: Any) -> Iterator[tuple[Any, str]]:
    """What a piece adds: to the text (None), or to the call of a tool at a place."""
    for choice in _of(piece, "choices") or ():  # OpenAI's chat and completions
        delta = _of(choice, "delta")
        for text in _texts_in(choice, "text"):
            yield None, text
        for text in _texts_in(delta, "content", "refusal", "reasoning_content"):
            yield None, text
        for call in _of(delta, "tool_calls") or ():
            place = (_of(choice, "index"), _of(call, "index"))
            yield place, "".join(_texts_in(_of(call, "function"), "name", "arguments"))
        for text in _texts_in(_of(delta, "function_call"), "name", "arguments"):
            yield (_of(choice, "index"), None), text
    for candidate in _of(piece, "candidates") or ():  # Gemini
        for part in _of(_of(candidate, "content"), "parts") or ():
            for text in _texts_in(part, "text"):
                yield None, text
    kind = _of(piece, "type")
    delta = _of(piece, "delta")
    if kind == "content_block_start":  # Anthropic
        for text in _texts_in(_of(piece, "content_block"), "text", "thinking"):
            yield None, text
    elif kind == "content_block_delta":
        for text in _texts_in(delta, "text", "thinking"):
            yield None, text
        for text in _texts_in(delta, "partial_json"):
            yield _of(piece, "index"), text
    elif isinstance(delta, str) and isinstance(kind, str) and kind.endswith(".delta"):
        # OpenAI's responses
        place = _of(piece, "item_id") or "" if "arguments" in kind or "input" in kind else None
        yield place, delta


def _wholes(piece: Any) -> list[Text]:
    """What a piece brings at once: results of tools, and Gemini's calls."""
    found = []
    if _of(piece, "type") == "content_block_start":
        blocks = [plain(_of(piece, "content_block"))]
        found += [one for one in texts_of_answer({"content": blocks}) if one.content_type != CALL]
    for candidate in _of(piece, "candidates") or ():
        found += texts_of_answer({"content": plain(_of(candidate, "content"))})
    return [one for one in found if one.content_type != "model_output"]
