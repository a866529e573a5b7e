"""From the bodies of model APIs to the texts that are to be judged, and where they stand. Pure.

Read are requests and answers of OpenAI (chat, completions, responses, embeddings), Anthropic and
Gemini, JSON-RPC of MCP, and OpenGuardrails' canonical form: each string is found by where it lies
and taken for what its role or block says. Of a body in which nothing is known, every string is
judged, so that no shape of its own brings an attack past.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

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
from detection.models import TEXT_CHARS_MAX

PATH_CHARS_MAX = 500
REQUEST: Mapping[str, Kind] = {
    **dict.fromkeys(("messages", "input", "prompt", "suffix", "contents", "query"), "user_input"),
    # Of conversations, threads and sessions that a provider keeps.
    **dict.fromkeys(("items", "additional_messages", "events", "initial_events"), "user_input"),
    "tool_outputs": "tool_output",
    "documents": "document",
    **dict.fromkeys(
        ("system", "instructions", "systemInstruction", "system_instruction"), INSTRUCTIONS
    ),
}
ANSWER = (
    *("choices", "output", "content", "candidates", "text", "reasoning", "completion"),
    *("message", "response"),
)
DEFINITIONS = ("tools", "functions")
CALL = re.compile(r"(?:tool_use|_call)\Z")
CALLS = frozenset({"tool_calls", "function_call", "functionCall"})
OF_BLOCK: Mapping[str, Kind] = {
    OUTPUT_TEXT: "model_output",
    **dict.fromkeys(("reasoning", "thinking", "refusal"), "model_output"),
    **dict.fromkeys(("document", "search_result", "input_file", "file"), "document"),
}
RETURNED = frozenset({"output", "outputs", "results"})
FREE = frozenset({"functionResponse", "structuredContent"})
"""JSON of a tool's own, in which no name means anything."""
PICTURES = frozenset(
    {
        *("image_url", "input_audio", "file_data", "fileData", "inlineData", "inline_data"),
        "blob",
    }
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
        # What it thought, sealed by its maker.
        *("signature", "encrypted_content", "thoughtSignature"),
    }
)
OPAQUE = re.compile(r"[!-~]*\Z")
"""An id, a name of the API's, a seal: whoever writes sentences there is read."""
NAME = re.compile(r"[\w.$-]{1,64}\Z", re.ASCII)


class Path(NamedTuple):
    """A place in a body. Not a text: names in a body may be long, and there may be many."""

    name: str
    above: Path | None = None

    def __str__(self) -> str:
        """`messages.1.content`."""
        names, at, chars = [self.name], self.above, len(self.name)
        while at is not None and chars < PATH_CHARS_MAX:
            names.append(at.name)
            chars += len(at.name) + 1
            at = at.above
        return ".".join(reversed(names))[-PATH_CHARS_MAX:]


@dataclass
class Chat:
    """What is to be judged, each text once with all its places, and how much is not."""

    texts: dict[Piece, list[Path]] = field(default_factory=dict)
    images: int = 0
    """With sound and files."""
    instructions: int = 0
    """Texts of the application's author."""

    def add(self, kind: Kind, text: str, path: Path) -> None:
        if not text.strip():
            return
        if kind == INSTRUCTIONS:
            self.instructions += 1
            return
        piece = Piece(kind, text, WHERE[kind])  # type: ignore[arg-type]
        self.texts.setdefault(piece, []).append(path)

    def read(self, value: Any, kind: Kind, path: Path) -> None:
        # A row's role is the application's word. In it, and in blocks, others' content begins.
        is_row = kind == "user_input"
        pending: list[tuple[Any, Kind, Path, bool]] = [(value, kind, path, is_row)]
        while pending:
            one, whose, at, is_row = pending.pop()
            if isinstance(one, str):
                self.add(whose, one, at)
            elif isinstance(one, list):
                pending += [
                    (under, whose, Path(str(number), at), is_row)
                    for number, under in reversed([*enumerate(one)])
                ]
            elif isinstance(one, dict):
                inside = self._inside(one, whose, at, is_row)
                is_above = is_row and one.keys().isdisjoint(("role", "type"))
                pending += [(under, its, path, is_above) for under, its, path in reversed(inside)]

    def _inside(
        self, block: dict[str, Any], kind: Kind, at: Path, is_row: bool
    ) -> list[tuple[Any, Kind, Path]]:
        if is_row and "role" in block:
            kind = kind_of(block["role"])
        name = block.get("type")
        name = name if isinstance(name, str) else ""
        if CALL.search(name):
            self.add_call(block, at)
            block = {key: value for key, value in block.items() if key in RETURNED}
            kind = "tool_output"
        elif kind != INSTRUCTIONS:
            kind = OF_BLOCK.get(name, "tool_output" if RESULT.search(name) else kind)
        found: list[tuple[Any, Kind, Path]] = []
        for key, value in block.items():
            path = Path(key, at)
            if key in CALLS:
                self.add_calls(value, path)
            elif _is_free(key, value, name):
                value, parts = _without_parts(value)
                self.add("tool_output", _json(value), path)
                found.append((parts, "tool_output", Path("parts", path)))
            elif _is_picture(key, value, block):
                self.images += value is not None
            elif key == "name" and isinstance(value, str) and NAME.match(value):
                continue
            elif not _is_no_text(key, value, kind):
                found.append((value, kind, path))
        return found

    def add_calls(self, calls: Any, path: Path) -> None:
        if not isinstance(calls, list):
            self.add_call(calls, path)
            return
        for number, call in enumerate(calls):
            self.add_call(call, Path(str(number), path))

    def add_call(self, call: Any, at: Path) -> None:
        """Names and arguments as one JSON: its strings are judged one by one, as long as it is
        short enough to be read whole."""
        if isinstance(call, dict):
            if isinstance(call.get("function"), dict):
                call, at = call["function"], Path("function", at)
            at = next((Path(k, at) for k in ("arguments", "input", "args") if k in call), at)
            drawn = {key for key, value in call.items() if _is_drawing(key, value, call)}
            self.images += len(drawn)
            call = {
                key: value
                for key, value in call.items()
                if key not in {*RETURNED, *drawn} and not _is_no_text(key, value, "tool_call")
            }
        if call:
            self.add("tool_call", _json(call), at)

    def read_definitions(self, tools: Any, path: Path) -> None:
        """All as one text: whoever wrote them, the model reads them as it reads a page."""
        if tools:
            self.add("tool_definition", _json(tools), path)


def of_request(body: Mapping[str, Any]) -> Chat:
    """What goes to a model, or by MCP to a tool."""
    chat, is_known = Chat(), False
    if "jsonrpc" in body:
        return _of_rpc(body)
    for name, value in body.items():
        if name in DEFINITIONS:
            chat.read_definitions(value, Path(name))
        elif name in REQUEST:
            is_known = True
            chat.read(value, REQUEST[name], Path(name))
    if not is_known:
        _read_all(chat, body, "user_input")
    return chat


def of_answer(body: Mapping[str, Any]) -> Chat:
    """What a model says."""
    chat, is_known = Chat(), False
    if "jsonrpc" in body:
        return _of_rpc(body)
    for name in body:
        value = body[name]
        if name in CALLS:
            is_known = True
            chat.add_calls(value, Path(name))
        elif name in ANSWER and (name not in ("text", "reasoning") or isinstance(value, str)):
            is_known = True
            chat.read(value, "model_output", Path(name))
    if not is_known:
        _read_all(chat, body, "model_output")
    return chat


def of_text(text: str, kind: Kind) -> Chat:
    chat = Chat()
    chat.add(kind, text, Path("content"))
    return chat


def _of_rpc(body: Mapping[str, Any]) -> Chat:
    """A call of a tool, or what came of it; lists of tools are definitions."""
    chat = Chat()
    params = body.get("params")
    if isinstance(params, dict) and "messages" in params:
        chat.read(params["messages"], "user_input", Path("messages", Path("params")))
    else:
        chat.add_call(params, Path("params"))
    result = body.get("result")
    if isinstance(result, dict) and "tools" in result:
        chat.read_definitions(result["tools"], Path("tools", Path("result")))
    elif result is not None:
        chat.read(result, "tool_output", Path("result"))
    chat.read(body.get("error"), "tool_output", Path("error"))
    return chat


def _read_all(chat: Chat, body: Mapping[str, Any], kind: Kind) -> None:
    for name, value in body.items():
        if name not in DEFINITIONS:
            chat.read(value, kind, Path(name))


def _is_free(key: str, value: Any, block: str) -> bool:
    """What a screen shows is none."""
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
        elif isinstance(one, (list, dict)):
            pending += one.values() if isinstance(one, dict) else one
    return True


def _is_drawing(key: str, value: Any, call: Mapping[str, Any]) -> bool:
    """In a call of a tool that draws, what it drew."""
    if key != "result" or call.get("type") != "image_generation_call":
        return False
    return isinstance(value, str) and OPAQUE.match(value) is not None


def _is_no_text(name: str, value: Any, kind: Kind) -> bool:
    if name not in NO_TEXT and not name.endswith("_id"):
        return False
    if isinstance(value, str):
        return OPAQUE.match(value) is not None
    return kind in ("model_output", INSTRUCTIONS)


def _json(value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        text = orjson.dumps(value).decode()
    except orjson.JSONEncodeError:  # such as a number with more than 64 bits
        return "\n".join(words(value))
    return text if len(text) <= TEXT_CHARS_MAX else "\n".join(words(value))
