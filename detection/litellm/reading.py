"""From what LiteLLM sends to the texts that are to be judged, each with what it is.

LiteLLM flattens a chat into `texts`, and sends the rows they are from beside them
(`structured_messages`), in OpenAI's form or, with `forward_messages_as_sent`, in the client's own.
Only the rows say who speaks. A text is known by its words there, not by its place: handlers of
LiteLLM leave different rows out. Who is not named there is taken for the user.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from detection.content_types import ContentType
from detection.models import TEXT_CHARS_MAX

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


class Piece(NamedTuple):
    """One text. `where` is what people call it."""

    kind: ContentType
    text: str
    where: str


WHERE: dict[str, str] = {
    "user_input": "a message",
    "tool_output": "a tool's result",
    "model_output": "an answer of the model",
}


def of_texts(texts: Iterable[str], rows: Iterable[Any], *, is_answer: bool) -> list[Piece]:
    """What is to be judged of `texts`; those that only instructions hold are left out."""
    if is_answer:
        return [Piece("model_output", text, WHERE["model_output"]) for text in texts if text]
    said = _kinds_by_text(rows)
    found = []
    for text in texts:
        for kind in sorted(said.get(text, {"user_input"}) - {INSTRUCTIONS}) if text else ():
            found.append(Piece(kind, text, WHERE[kind]))  # type: ignore[arg-type]
    return found


def instructions_in(texts: Iterable[str], rows: Iterable[Any]) -> int:
    said = _kinds_by_text(rows)
    return sum(said.get(text) == {INSTRUCTIONS} for text in texts if text)


def of_tools(tools: Iterable[Any]) -> list[Piece]:
    """All definitions as one text: whoever wrote them, the model reads them as it reads a page."""
    text = "\n".join(line for tool in tools for line in _words(tool))
    return [Piece("document", text, "a tool's definition")] if text else []


def of_calls(calls: Iterable[Any]) -> list[Piece]:
    """Names and arguments, without JSON's escapes."""
    found = []
    for call in calls:
        called = call.get("function", call) if isinstance(call, dict) else call
        if text := "\n".join(_words(called)):
            found.append(Piece("model_output", text, "a tool call"))
    return found


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


def _kinds_by_text(rows: Iterable[Any]) -> dict[str, set[Kind]]:
    found: dict[str, set[Kind]] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        role = row.get("role")
        kind = OF_ROLE.get(role.lower(), "user_input") if isinstance(role, str) else "user_input"
        for text, its_kind in _said(row, kind):
            found.setdefault(text, set()).add(its_kind)
    return found


def _said(row: dict[str, Any], kind: Kind) -> Iterator[tuple[str, Kind]]:
    """Every text in a row, however deep, and whose it is."""
    pending: list[tuple[Any, Kind]] = [(row, kind)]
    while pending:
        value, whose = pending.pop()
        if isinstance(value, str):
            yield value, whose
        elif isinstance(value, list):
            pending += [(one, whose) for one in value]
        elif isinstance(value, dict):
            block = value.get("type")
            if isinstance(block, str) and RESULT.search(block):
                whose = "tool_output"
            elif block == OUTPUT_TEXT:
                whose = "model_output"
            pending += [(one, whose) for name, one in value.items() if name != "type"]


def _words(value: Any) -> Iterator[str]:
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
