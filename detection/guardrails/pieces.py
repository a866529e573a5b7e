"""Texts of a chat that are judged one by one, of any length, each with what it is."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from detection.content_types import ContentType
from detection.jobs.judging import Item, Judged
from detection.models import TEXT_CHARS_MAX
from detection.schemas import DetectConfig

OVERLAP_CHARS = 1_000
"""What neighbouring portions have in common, so that no attack hides on the edge."""
STEP_CHARS = TEXT_CHARS_MAX - OVERLAP_CHARS

INSTRUCTIONS = "instructions"
"""Of the application's author: what tells the model how to behave is no attack on it."""
Kind = ContentType | str
OF_ROLE: dict[str, Kind] = {
    "system": INSTRUCTIONS,
    "developer": INSTRUCTIONS,
    "assistant": "model_output",
    "model": "model_output",  # Gemini's word
    "tool": "tool_output",
    "function": "tool_output",
}
# Anthropic's `tool_result` lies in a row of the user, OpenAI's `function_call_output` in none.
RESULT = re.compile(r"(?:_result|_output)\Z")
OUTPUT_TEXT = "output_text"  # OpenAI's block of what the model says
WORD = re.compile(r"[\w.$-]{1,40}\Z")
WHERE: dict[str, str] = {
    "user_input": "a message",
    "document": "a document",
    "tool_output": "a tool's result",
    "model_output": "an answer of the model",
    "tool_definition": "a tool's definition",
    "tool_call": "a tool call",
}


class Piece(NamedTuple):
    """One text. `where` is what people call it."""

    kind: ContentType
    text: str
    where: str


def kind_of(role: Any) -> Kind:
    """Who is not named here is taken for the user."""
    return OF_ROLE.get(role.lower(), "user_input") if isinstance(role, str) else "user_input"


def portions(text: str, judged_chars: int = 0) -> list[str]:
    """What is left to judge of `text` behind its first `judged_chars`, in parts that overlap."""
    rest = text[max(0, judged_chars - OVERLAP_CHARS) :]
    if len(rest) <= TEXT_CHARS_MAX:
        return [rest]
    return [
        rest[at : at + TEXT_CHARS_MAX] for at in range(0, len(rest) - OVERLAP_CHARS, STEP_CHARS)
    ]


def units(chars: int) -> int:
    """What a text costs of the day: 1 for each portion it would have from its beginning."""
    if not chars:
        return 0
    return max(1, math.ceil((chars - OVERLAP_CHARS) / STEP_CHARS))


def items_of(piece: Piece, judged_chars: int = 0) -> list[Item]:
    config = DetectConfig(content_type=piece.kind)
    return [Item.of("", text, config) for text in portions(piece.text, judged_chars)]


def reason_of(piece: Piece, judged: Judged) -> str:
    """Where it is and what; never a text of the chat. Letters, commas and apostrophes only."""
    kinds = ", ".join(judged.verdict.threat_types if judged.verdict is not None else ())
    what = kinds or "a text on this key's deny list"
    return f"Prompt injection in {piece.where}: {what}"


def logged(units: int, found: Sequence[Judged]) -> Iterable[Judged]:
    """What of a text is in the log: what was paid for, and what was found."""
    for number, one in enumerate(found):
        if number < units or one.is_flagged or one.error is not None:
            yield one


def words(value: Any) -> Iterator[str]:
    """The strings of `value` in their order, those of JSON inside of strings too. No keywords of
    JSON Schema; names only where they are more than a word."""
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            if one:
                yield one
        elif isinstance(one, list):
            pending += reversed(one)
        elif isinstance(one, dict):
            for name, under in reversed(one.items()):
                if name in ("id", "type") and isinstance(under, str) and WORD.match(under):
                    continue
                pending.append(_read(under) if name in ("arguments", "input") else under)
                if not WORD.match(name):
                    pending.append(name)


def _read(arguments: Any) -> Any:
    """Arguments are JSON in a string; a model may have written something else."""
    if not isinstance(arguments, str):
        return arguments
    try:
        return orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return arguments
