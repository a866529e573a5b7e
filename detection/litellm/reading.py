"""From what LiteLLM sends to the texts that are to be judged, each with what it is.

LiteLLM flattens a chat into `texts`, and sends the rows they are from beside them
(`structured_messages`), in OpenAI's form or, with `forward_messages_as_sent`, in the client's own.
Only the rows say who speaks. A text is known by its words there, not by its place: handlers of
LiteLLM leave different rows out. Who is not named there is taken for the user.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from detection.guardrails.pieces import (
    INSTRUCTIONS,
    OUTPUT_TEXT,
    RESULT,
    WHERE,
    Kind,
    Piece,
    kind_of,
    words,
)


def of_texts(texts: Iterable[str], rows: Iterable[Any], *, is_answer: bool) -> list[Piece]:
    """What is to be judged of `texts`; those that only instructions hold are left out."""
    if is_answer:
        return [Piece("model_output", text, WHERE["model_output"]) for text in texts if text]
    kinds = _kinds_by_text(rows)
    found = []
    for text in texts:
        for kind in sorted(kinds.get(text, {"user_input"}) - {INSTRUCTIONS}) if text else ():
            found.append(Piece(kind, text, WHERE[kind]))  # type: ignore[arg-type]
    return found


def instructions_in(texts: Iterable[str], rows: Iterable[Any]) -> int:
    kinds = _kinds_by_text(rows)
    return sum(kinds.get(text) == {INSTRUCTIONS} for text in texts if text)


def of_tools(tools: Iterable[Any]) -> list[Piece]:
    """All definitions as one text: whoever wrote them, the model reads them as it reads a page."""
    text = "\n".join(line for tool in tools for line in words(tool))
    return [Piece("document", text, "a tool's definition")] if text else []


def of_calls(calls: Iterable[Any]) -> list[Piece]:
    """Names and arguments, without JSON's escapes."""
    found = []
    for call in calls:
        called = call.get("function", call) if isinstance(call, dict) else call
        if text := "\n".join(words(called)):
            found.append(Piece("model_output", text, "a tool call"))
    return found


def _kinds_by_text(rows: Iterable[Any]) -> dict[str, set[Kind]]:
    found: dict[str, set[Kind]] = {}
    for row in rows:
        if not isinstance(row, dict):
            continue
        for text, its_kind in _texts_of(row, kind_of(row.get("role"))):
            found.setdefault(text, set()).add(its_kind)
    return found


def _texts_of(row: dict[str, Any], kind: Kind) -> Iterator[tuple[str, Kind]]:
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
