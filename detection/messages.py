"""A conversation as chat APIs send it, and who said what in it. Pure.

Taken are the shapes of OpenAI's chat completions and of Anthropic's messages: contents that are a
text or a list of parts, calls of tools, results of tools. A model of the owner's choice reads all
of it, so whatever is no text is named, and what is not known is not passed over.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
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
IDS = frozenset({"id", "type", "name", "signature", "encrypted_content", "cache_control"})
"""And what ends in `_id`: of any length. Whoever writes sentences there is read all the same."""
OPAQUE = re.compile(r"[!-~]*\Z")
WORD_CHARS_MAX = 64
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
class Passage:
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
    passages: Sequence[Passage]
    unseen: Sequence[Unseen]


def passages_of(messages: Sequence[Message]) -> Conversation:
    """What is to be judged, in order, and what cannot or need not be."""
    passages: list[Passage] = []
    unseen: list[Unseen] = []
    for number, message in enumerate(messages):
        if message.role in TRUSTED:
            unseen.append(Unseen("trusted_role", number))
            continue
        for found in (_texts(message), _beside(message)):
            texts: dict[ContentType, list[str]] = {}
            for kind, text in found:
                if kind is None:
                    unseen.append(Unseen(text, number))
                elif text.strip():
                    texts.setdefault(kind, []).append(text)
            passages += [
                Passage("\n".join(several), kind, (number,)) for kind, several in texts.items()
            ]
    return Conversation(_grouped(passages), tuple(dict.fromkeys(unseen)))


def chars_of(messages: Iterable[Message]) -> int:
    """Of all texts, trusted ones included: what a request may hold is one text's size."""
    return sum(len(text) for message in messages for text in _all_of(message))


def as_text(messages: Iterable[Message]) -> str:
    """All of it as one text, for people to read."""
    return "\n\n".join(
        f"{message.role}: {text}" for message in messages for text in _all_of(message)
    )


def _all_of(message: Message) -> Iterator[str]:
    for kind, text in chain(_texts(message), _beside(message)):
        if kind is not None:
            yield text


def _texts(message: Message) -> Iterator[tuple[ContentType | None, str]]:
    """What a message says, and as what; without a type: why something in it is no text."""
    kind = TYPES.get(message.role, "system")
    if isinstance(message.content, str):
        yield kind, message.content
    for part in message.content if isinstance(message.content, list) else ():
        yield from _of_part(part, kind)
    for call in (*(message.tool_calls or ()), (message.model_extra or {}).get("function_call")):
        if call:
            yield from _of_call(call)


def _beside(message: Message) -> Iterator[tuple[ContentType | None, str]]:
    """What it says elsewhere: thoughts, refusals, citations, whatever a server adds."""
    extra = {k: v for k, v in (message.model_extra or {}).items() if k != "function_call"}
    if isinstance(audio := extra.get("audio"), dict):
        yield None, "audio"
        extra["audio"] = audio.get("transcript")
    yield from _others(extra, TYPES.get(message.role, "system"))


def _of_part(
    part: Mapping[str, Any], kind: ContentType
) -> Iterator[tuple[ContentType | None, str]]:
    what = part.get("type")
    what = what if isinstance(what, str) else ""
    if what in TEXTS or (not what and "text" in part):
        member = "text" if "text" in part else what
        text = part.get(member)
        yield (kind, text) if isinstance(text, str) else (None, "not_text")
        yield from _others(part, kind, but=(member,))
    elif what == "tool_result":
        content = part.get("content")
        if isinstance(content, list):
            for inner in content:
                if isinstance(inner, dict):
                    yield from _of_part(inner, "tool_output")
                else:
                    yield "tool_output", _json(inner)
        elif content is not None:
            yield "tool_output", _json(content)
        yield from _others(part, "tool_output", but=("content",))
    elif what == "tool_use":
        yield from _of_call(part)
    else:
        yield None, NOT_TEXT.get(what, "not_text")


def _of_call(call: Any) -> Iterator[tuple[ContentType, str]]:
    """As JSON: its strings are read one by one, the arguments too, which are JSON in a string."""
    inner = call
    if isinstance(call, dict) and "function" in call:
        inner = call["function"]
        yield from _others(call, "tool_call", but=("function",))
    if isinstance(inner, dict):
        inner = {k: v for k, v in inner.items() if k not in ("id", "type", "cache_control")}
    yield "tool_call", _json(inner)


def _others(
    members: Mapping[str, Any], kind: ContentType, but: Collection[str] = ()
) -> Iterator[tuple[ContentType, str]]:
    """The strings of what has no place of its own here, since a model may read it. Not ids, nor
    single words, as APIs say them of a state or a format."""
    pending: list[tuple[str, Any]] = [("", {k: v for k, v in members.items() if k not in but})]
    while pending:
        name, one = pending.pop()
        is_id = name in IDS or name.endswith("_id")
        if isinstance(one, str):
            if not (OPAQUE.match(one) and (is_id or len(one) <= WORD_CHARS_MAX)):
                yield kind, one
        elif isinstance(one, list):
            pending += [(name, under) for under in reversed(one)]
        elif isinstance(one, dict):
            yield from ((kind, key) for key in one if OPAQUE.match(key) is None)
            pending += [(name if is_id else key, one[key]) for key in reversed(one)]


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _grouped(passages: list[Passage]) -> list[Passage]:
    """At most `APART_MAX`: the newest as they are, older ones together by what they are."""
    if len(passages) <= APART_MAX:
        return passages
    older, newer = passages[:-GROUPED_AT], passages[-GROUPED_AT:]
    by_type: dict[ContentType, list[Passage]] = {}
    for one in older:
        by_type.setdefault(one.content_type, []).append(one)
    together = [
        Passage(
            "\n".join(one.text for one in some),
            kind,
            tuple(one.messages[0] for one in some),
            tuple(one.text for one in some),
        )
        for kind, some in by_type.items()
    ]
    return [*together, *newer]
