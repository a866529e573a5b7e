"""From bodies of model APIs to the texts in them, each with what it is.

Read are requests and answers of OpenAI (chat, completions, responses, embeddings), Anthropic and
Gemini. What a `system` or `developer` says is the application's own and left out, as are pictures:
where the application wrote the body. Of a body that came from outside nothing is its own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Optional

TEXT_CHARS_MAX = 10_000
"""What the gateway takes at a time."""
OVERLAP_CHARS = 1_000
OWN = "system"
"""Instructions of the application: not judged."""
OF_ROLE = {
    **dict.fromkeys(("system", "developer"), OWN),
    **dict.fromkeys(("assistant", "model"), "model_output"),
    **dict.fromkeys(("tool", "function"), "tool_output"),
}
OF_BLOCK = {
    **dict.fromkeys(("output_text", "reasoning", "thinking", "refusal"), "model_output"),
    **dict.fromkeys(("document", "search_result", "input_file", "file"), "document"),
}
RESULT = re.compile(r"(?:_result|_output)\Z")
CALL = re.compile(r"(?:tool_use|_call)\Z")
CALLS = frozenset({"tool_calls", "function_call", "functionCall"})
RETURNED = frozenset({"output", "outputs", "results"})
FREE = frozenset({"functionResponse", "structuredContent"})
PICTURES = frozenset(
    {"image_url", "input_audio", "file_data", "fileData", "inlineData", "inline_data", "blob"}
)
BESIDE_DATA = frozenset({"transcript", "format", "media_type", "mimeType", "mime_type"})
DATA_URI = re.compile(
    r"data:(?:image|audio|video)/[\w.+-]+;base64,[A-Za-z0-9+/]*={0,2}\Z", re.ASCII
)
NO_TEXT = frozenset(
    {
        *("type", "id", "role", "model", "object", "status", "format", "detail", "index"),
        *("created", "usage", "logprobs", "finish_reason", "stop_reason", "finishReason"),
        *("cache_control", "media_type", "mimeType", "mime_type", "annotations", "citations"),
        *("signature", "encrypted_content", "thoughtSignature", "parsed", "parsed_arguments"),
    }
)
OPAQUE = re.compile(r"[!-~]*\Z")
NAME = re.compile(r"[\w.$-]{1,64}\Z", re.ASCII)
SEALED = PICTURES | {"data", "url", "signature", "encrypted_content", "thoughtSignature"}
LABEL_CHARS_MAX = 64
REQUEST = {
    **dict.fromkeys(("messages", "input", "prompt", "suffix", "contents", "query"), "user_input"),
    # Of conversations, threads and sessions that a provider keeps.
    **dict.fromkeys(("items", "additional_messages", "events", "initial_events"), "user_input"),
    "tool_outputs": "tool_output",
    "documents": "document",
}
ANSWER = ("choices", "output", "content", "candidates", "text", "completion", "message")
WHERE = {
    "user_input": "a message",
    "document": "a document",
    "tool_output": "a tool's result",
    "model_output": "an answer of the model",
    "tool_definition": "a tool's definition",
    "tool_call": "a tool call",
}


class Text(NamedTuple):
    """One text and what it is: `user_input`, `document`, `tool_output`, `model_output`,
    `tool_definition`, `tool_call`. `where` is what people call it."""

    text: str
    content_type: str = "user_input"
    where: Optional[str] = None

    @property
    def place(self) -> str:
        return self.where or WHERE.get(self.content_type, self.content_type)


def texts_of_request(body: Mapping[str, Any]) -> list[Text]:
    """What goes to a model, each text once. Definitions of tools are one text."""
    found: list[Text] = []
    for one in _bodies(body):
        for name, value in one.items():
            if name in ("tools", "functions"):
                found += _one("tool_definition", _json(value)) if value else []
            elif name in REQUEST:
                found += _read(value, REQUEST[name])
            elif name == "content":
                found += _read({"role": one.get("role", "user"), "content": value}, "user_input")
    return [*dict.fromkeys(found)]


def texts_of_answer(body: Mapping[str, Any]) -> list[Text]:
    """What a model says, and the calls that it asks for."""
    found: list[Text] = []
    for name, value in body.items():
        if name in CALLS:
            found += _calls(value)
        elif name in ANSWER and not (name == "text" and not isinstance(value, str)):
            found += _read(value, "model_output")
    return [*dict.fromkeys(found)]


def texts_of_result(value: Any, where: Optional[str] = None) -> list[Text]:
    """What a tool returned: a text, blocks of content, or JSON of its own."""
    if isinstance(value, (list, tuple)) and value and all(map(_is_block, value)):
        return [one._replace(where=where) for one in _read([*value], "tool_output")]
    return [one._replace(where=where) for one in _one("tool_output", _json(value))]


def texts_of_mcp(result: Mapping[str, Any]) -> list[Text]:
    """Of a result as it is on MCP's wire: contents of a tool, a resource or a prompt."""
    return [*dict.fromkeys(_read(dict(result), "tool_output"))]


def texts_of_stranger(value: Any) -> list[Text]:
    """All in what somebody sent to an application, as the user's: whatever role, or type of a
    block, he gives it. Left out are pictures and ids, as long as they can be no sentence."""
    found: list[Text] = []
    pending = [("", value)]
    while pending:
        name, one = pending.pop()
        if isinstance(one, str):
            found += [] if _is_label(name, one) else _one("user_input", one)
        elif isinstance(one, (list, tuple)):
            pending += [(name, each) for each in reversed(one)]
        elif isinstance(one, dict):
            found += [Text(key) for key in one if key.strip() and not NAME.match(key)]
            pending += reversed(one.items())
    return [*dict.fromkeys(found)]


def portions(text: str) -> list[str]:
    """Parts that the gateway takes, which overlap, so that no attack hides on the edge."""
    if len(text) <= TEXT_CHARS_MAX:
        return [text]
    step = TEXT_CHARS_MAX - OVERLAP_CHARS
    return [text[at : at + TEXT_CHARS_MAX] for at in range(0, len(text) - OVERLAP_CHARS, step)]


def _bodies(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """With those in it: of a thread that is made and run at once, of a batch."""
    requests = body.get("requests")
    inside = [one.get("params") for one in requests or () if isinstance(one, Mapping)]
    yield from (one for one in (body, body.get("thread"), *inside) if isinstance(one, Mapping))


def _is_block(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("type"), str)


def _one(kind: str, text: str) -> list[Text]:
    return [Text(text, kind)] if text.strip() and kind != OWN else []


def _read(value: Any, kind: str) -> Iterator[Text]:
    # A row's role is the application's word. In it, and in blocks, others' content begins.
    pending = [(value, kind, kind == "user_input")]
    while pending:
        one, whose, is_row = pending.pop()
        if isinstance(one, str):
            yield from _one(whose, one)
        elif isinstance(one, (list, tuple)):
            pending += [(each, whose, is_row) for each in reversed(one)]
        elif isinstance(one, dict):
            texts, inside = _inside(one, whose, is_row)
            yield from texts
            is_above = is_row and one.keys().isdisjoint(("role", "type"))
            pending += [(under, its, is_above) for under, its in reversed(inside)]


def _inside(
    block: Mapping[str, Any], kind: str, is_row: bool
) -> tuple[list[Text], list[tuple[Any, str]]]:
    if is_row and "role" in block:
        role = block["role"]
        kind = OF_ROLE.get(role.lower(), "user_input") if isinstance(role, str) else "user_input"
    name = block.get("type")
    name = name if isinstance(name, str) else ""
    texts: list[Text] = []
    if CALL.search(name):
        texts += _calls([block])
        block = {key: value for key, value in block.items() if key in RETURNED}
        kind = "tool_output"
    elif kind != OWN:
        kind = OF_BLOCK.get(name, "tool_output" if RESULT.search(name) else kind)
    found = []
    for key, value in block.items():
        if key in CALLS:
            texts += _calls(value)
        elif _is_free(key, value, name):
            value, parts = _without_parts(value)
            texts += _one("tool_output", _json(value))
            found.append((parts, "tool_output"))
        elif not (_is_picture(key, value, block) or _is_left_out(key, value, kind)):
            found.append((value, kind))
    return texts, found


def _calls(calls: Any) -> list[Text]:
    """Each as one JSON of name and arguments."""
    found = []
    for call in calls if isinstance(calls, (list, tuple)) else [calls]:
        if isinstance(call, dict):
            inner = call.get("function")
            call = inner if isinstance(inner, dict) else call
            call = {
                key: value
                for key, value in call.items()
                if not (
                    key in RETURNED
                    or _is_drawing(key, value, call)
                    or _is_no_text(key, value, "tool_call")
                )
            }
        if call:
            found += _one("tool_call", _json(call))
    return found


def _is_free(key: str, value: Any, block: str) -> bool:
    """JSON of a tool's own, in which no name means anything; what a screen shows is none."""
    is_own = isinstance(value, dict) and block != "computer_call_output"
    return key in FREE or (key in RETURNED and is_own)


def _without_parts(value: Any) -> tuple[Any, Any]:
    """What a function of Gemini's returns beside its JSON are blocks."""
    if not isinstance(value, dict) or "response" not in value:
        return value, None
    return {key: one for key, one in value.items() if key != "parts"}, value.get("parts")


def _is_picture(key: str, value: Any, block: Mapping[str, Any]) -> bool:
    """And sound, and files in base64. Who writes sentences there is read all the same."""
    name: object = block.get("type")
    is_typed = bool(name) and name != "text"
    is_data = key == "data" and (is_typed or (not name and not BESIDE_DATA.isdisjoint(block)))
    if key in PICTURES or is_data:
        return _is_opaque(value)
    # Not of any place: in a text, a model reads the words of a data URI as words.
    return key == "url" and isinstance(value, str) and DATA_URI.match(value) is not None


def _is_opaque(value: Any) -> bool:
    pending = [value]
    while pending:
        one = pending.pop()
        if isinstance(one, str):
            if OPAQUE.match(one) is None:
                return False
        elif isinstance(one, (list, tuple, dict)):
            pending += one.values() if isinstance(one, dict) else one
    return True


def _is_drawing(key: str, value: Any, call: Mapping[str, Any]) -> bool:
    """In a call of a tool that draws, what it drew."""
    if key != "result" or call.get("type") != "image_generation_call":
        return False
    return isinstance(value, str) and OPAQUE.match(value) is not None


def _is_left_out(key: str, value: Any, kind: str) -> bool:
    if key == "name" and isinstance(value, str) and NAME.match(value):
        return True
    return _is_no_text(key, value, kind)


def _is_no_text(name: str, value: Any, kind: str) -> bool:
    """Who writes sentences into an id is read all the same."""
    if name not in NO_TEXT and not name.endswith("_id"):
        return False
    if isinstance(value, str):
        return OPAQUE.match(value) is not None
    return kind in ("model_output", OWN)


def _is_label(name: str, text: str) -> bool:
    """In what a stranger sent."""
    if OPAQUE.match(text) is None:
        return False
    is_short = len(text) <= LABEL_CHARS_MAX
    return name in SEALED or (is_short and (name in ("name", *NO_TEXT) or name.endswith("_id")))


def _json(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
