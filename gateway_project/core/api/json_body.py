"""A body of JSON, read as one thing only.

Of an object that has a name twice, one reader keeps the first value and another the last (RFC 8259
§4): what was judged here would not be what the application behind us acts on. So it is refused, at
every depth. The fast way says only whether something is wrong; the slow one, for who sent it, says
where.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, TypeVar

import jiter
import pydantic

from gateway_project.core import errors
from gateway_project.core.storable import NESTING_MAX, cleaned, unstorable

M = TypeVar("M", bound=pydantic.BaseModel)

FAULTS_SHOWN = 20
FIELD_CHARS_MAX = 200
INTEGER_DIGITS_MAX = 400  # more are as much beyond 64 bits, and slow to read
TWICE = "stands more than once in its object; send each name once"
# Well-formed by the grammar (RFC 8259 §8.2 and §9), but nothing that can be kept: what the parser
# says of it.
UNKEPT = ("surrogate", "end of hex escape", "recursion limit", "number out of range")
MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
# Without a mark: JSON begins with two ASCII characters, so the NULs tell (RFC 4627 §3).
ZEROS: dict[tuple[bool, ...], str] = {
    (True, True, True, False): "UTF-32",
    (False, True, True, True): "UTF-32",
    (True, False, True, False): "UTF-16",
    (False, True, False, True): "UTF-16",
}


def validated(body: bytes, model: type[M]) -> M:
    """`body` as `model`; raises the 400 or 422 that says what is wrong with it, and where."""
    try:
        found = model.model_validate_json(body)
    except pydantic.ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        if first["type"] != "json_invalid":
            raise errors.from_pydantic(exc, model) from None
        raise _unread(body, str(first.get("ctx", {}).get("error", "invalid JSON"))) from None
    refuse_twice(body)
    return found


def refuse_twice(body: bytes) -> None:
    """Raise the 422 of JSON in which a name stands twice in an object."""
    try:
        jiter.from_json(body, catch_duplicate_keys=True)
    except ValueError:
        raise errors.ValidationFailed(errors=_faults(body) or [_fault("", TWICE)]) from None


def _unread(body: bytes, reason: str) -> errors.GatewayError:
    """What there is to say of a body that the parser gave up on."""
    if any(sign in reason for sign in UNKEPT):
        too_deep = _fault("", f"is nested more than {NESTING_MAX} levels deep; flatten it")
        return errors.ValidationFailed(errors=_faults(body) or [too_deep])
    broken = f"The body could not be read as JSON: {reason}. Send one JSON object, in UTF-8."
    return errors.InvalidJSON(_not_utf8(body) or broken)


def _not_utf8(body: bytes) -> str:
    """Which other encoding it is, and what to do; empty for UTF-8."""
    if not body:
        return "The body is empty. Send one JSON object."
    if body.startswith(codecs.BOM_UTF8):
        return "The body begins with a byte order mark (EF BB BF). Send UTF-8 without it."
    marked = next((name for mark, name in MARKS if body.startswith(mark)), None)
    if name := marked or ZEROS.get(tuple(byte == 0 for byte in body[:4])):
        return f"The body is encoded as {name}. Encode it as UTF-8, without a byte order mark."
    if body.startswith(b"\x1f\x8b"):
        return "The body is compressed (gzip). Send it as it is."
    try:
        body.decode()
    except UnicodeDecodeError as exc:
        return (
            f"The body is not UTF-8: the byte {body[exc.start]:02X} at {exc.start} is part of no "
            "character. It may be Windows-1252 or ISO 8859; encode it as UTF-8."
        )
    return ""


# -- Where it is -----------------------------------------------------------------------------------


class _Object(dict[str, Any]):
    twice: tuple[str, ...] = ()


def _paired(pairs: list[tuple[str, Any]]) -> _Object:
    found = _Object(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        found.twice = tuple(name for name, count in counts.items() if count > 1)
    return found


def _integer(text: str) -> int:
    return int(text[:INTEGER_DIGITS_MAX])


def _faults(body: bytes) -> list[Mapping[str, str]]:
    """The first places of `body` that no reader should have to make sense of."""
    try:
        whole = json.loads(body.decode(), object_pairs_hook=_paired, parse_int=_integer)
    except (ValueError, RecursionError):
        return []
    return list(islice(_walk(whole, ()), FAULTS_SHOWN))


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[Mapping[str, str]]:
    if len(path) > NESTING_MAX:
        yield _fault(path, f"is nested more than {NESTING_MAX} levels deep; flatten it")
    elif isinstance(value, _Object):
        for name in value.twice:
            yield _fault((*path, name), TWICE)
        for name, inner in value.items():
            if reason := unstorable(name):
                yield _fault(path, f"has a name that {reason}")
            yield from _walk(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, (*path, str(number)))
    elif reason := unstorable(value):
        yield _fault(path, reason)


def _fault(path: tuple[str, ...] | str, message: str) -> Mapping[str, str]:
    field = path if isinstance(path, str) else ".".join(path)
    return {"field": cleaned(field)[:FIELD_CHARS_MAX], "message": message}
