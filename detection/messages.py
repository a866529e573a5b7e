"""A conversation as chat APIs send it, and who said what in it. Pure.

Taken are the shapes of OpenAI's chat completions and of Anthropic's messages: contents that are a
text or a list of parts, calls of tools, results of tools. A model of the owner's choice reads all
of it, so whatever is no text is named, and what is not known is not passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from pydantic import ConfigDict, Field

from detection.content_types import ContentType
from gateway_project.core.api.endpoint import Asked

TRUSTED = frozenset({"system", "developer"})
TYPES: Mapping[str, ContentType] = {
    "user": "user_input",
    "assistant": "model_output",
    "tool": "tool_output",
    "function": "tool_output",
}
NOT_TEXT: Mapping[str, str] = {
    **dict.fromkeys(("image_url", "image", "input_image"), "picture"),
    **dict.fromkeys(("input_audio", "audio"), "audio"),
    **dict.fromkeys(("file", "input_file", "document"), "file"),
}
TEXTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
APART_MAX = 32
"""So many texts of one request are judged one by one. Of more, the oldest are judged together."""
GROUPED_AT = 24


class Message(Asked):
    """`{role, content}`, with whatever else a chat API puts there."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = Field(
        None, description="A text, or parts of which those with a `text` are judged."
    )
    tool_calls: list[dict[str, Any]] | None = Field(
        None, description="What the model wants of tools: name and arguments are judged."
    )


@dataclass(frozen=True, slots=True)
class Said:
    """One text to judge. `messages` are those that it stands in: one, unless many were grouped."""

    text: str
    content_type: ContentType
    messages: tuple[int, ...]
    parts: tuple[str, ...] = ()
    """Of grouped ones, the texts."""


class Unseen(NamedTuple):
    reason: str
    message: int


class Conversation(NamedTuple):
    said: Sequence[Said]
    unseen: Sequence[Unseen]


def said_of(messages: Sequence[Message]) -> Conversation:
    """What is to be judged, in order, and what cannot or need not be."""
    said: list[Said] = []
    unseen: list[Unseen] = []
    for number, message in enumerate(messages):
        if message.role in TRUSTED:
            unseen.append(Unseen("trusted_role", number))
            continue
        texts: dict[ContentType, list[str]] = {}
        for kind, text in _texts(message):
            if kind is None:
                unseen.append(Unseen(text, number))
            elif text.strip():
                texts.setdefault(kind, []).append(text)
        said += [Said("\n".join(found), kind, (number,)) for kind, found in texts.items()]
    return Conversation(_grouped(said), tuple(dict.fromkeys(unseen)))


def chars_of(messages: Iterable[Message]) -> int:
    """Of all texts, trusted ones included: what a request may hold is one text's size."""
    return sum(
        len(text) for message in messages for kind, text in _texts(message) if kind is not None
    )


def as_text(messages: Iterable[Message]) -> str:
    """All of it as one text, for people to read."""
    return "\n\n".join(
        f"{message.role}: {text}"
        for message in messages
        for kind, text in _texts(message)
        if kind is not None
    )


def _texts(message: Message) -> Iterator[tuple[ContentType | None, str]]:
    """What a message says, and as what; without a type: why something in it is no text."""
    kind = TYPES.get(message.role, "system")
    if isinstance(message.content, str):
        yield kind, message.content
    for part in message.content if isinstance(message.content, list) else ():
        yield from _of_part(part, kind)
    extra = message.model_extra or {}
    calls = [*(message.tool_calls or ()), *filter(None, [extra.get("function_call")])]
    for call in calls:
        yield "tool_call", _of_call(call)
    if isinstance(extra.get("audio"), dict):
        yield None, "audio"
    for name in ("reasoning_content", "refusal"):
        if isinstance(extra.get(name), str):
            yield kind, extra[name]


def _of_part(
    part: Mapping[str, Any], kind: ContentType
) -> Iterator[tuple[ContentType | None, str]]:
    what = part.get("type")
    if what in TEXTS or (what is None and "text" in part):
        text = part.get("text", part.get(what or "text"))
        yield (kind, text) if isinstance(text, str) else (None, "not_text")
    elif what == "tool_result":
        content = part.get("content")
        if isinstance(content, str):
            yield "tool_output", content
        for inner in content if isinstance(content, list) else ():
            if isinstance(inner, dict):
                yield from _of_part(inner, "tool_output")
            else:
                yield None, "not_text"
    elif what == "tool_use":
        yield "tool_call", _of_call({"name": part.get("name"), "input": part.get("input")})
    else:
        yield None, NOT_TEXT.get(str(what), "not_text")


def _of_call(call: Any) -> str:
    """As JSON: its strings are read one by one, the arguments too, which are JSON in a string."""
    if not isinstance(call, dict):
        return str(call)
    inner = call.get("function", call)
    if isinstance(inner, dict):
        inner = {key: value for key, value in inner.items() if key not in ("id", "type")}
    return json.dumps(inner, ensure_ascii=False)


def _grouped(said: list[Said]) -> list[Said]:
    """At most `APART_MAX`: the newest as they are, older ones together by what they are."""
    if len(said) <= APART_MAX:
        return said
    older, newer = said[:-GROUPED_AT], said[-GROUPED_AT:]
    by_type: dict[ContentType, list[Said]] = {}
    for one in older:
        by_type.setdefault(one.content_type, []).append(one)
    together = [
        Said(
            "\n".join(one.text for one in some),
            kind,
            tuple(one.messages[0] for one in some),
            tuple(one.text for one in some),
        )
        for kind, some in by_type.items()
    ]
    return [*together, *newer]
