"""What middleware of web frameworks shares: which texts of a body, and how it is refused.

Who sends a body also chooses its type, its names and its roles, so none of them decides whether
it is judged: ../vectors/bodies.json.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple, Optional
from urllib.parse import parse_qs, unquote

from gateway_guard.chats import Text, texts_of_stranger
from gateway_guard.errors import Blocked, GatewayError
from gateway_guard.models import Detection

FIELDS = ("message", "messages", "text", "prompt", "query", "question", "input", "content")
BODY_BYTES_MAX = 1 << 20
HEADER = "gateway-guard"
FAILED_OPEN = "failed-open"
WHOLE = ""
"""The name of a body that has no fields: a text, a list."""
URLENCODED, MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
CHARSET = re.compile(r"charset\s*=\s*\"?([^\s;\"]*)", re.IGNORECASE)
READABLE = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
SAYS_JSON = re.compile(r"application/json\Z|.*\+json\Z")
SAYS_TEXT = re.compile(r"(?:text/.*|.*[/+]xml)?\Z")
DIGITS_MAX = 300
TEXTS_MAX = 1_000
Extract = Callable[[Mapping[str, Any]], Iterable[Text]]


def fields(*names: str) -> Extract:
    """All texts in these fields of a JSON object or a form, and in a body that is neither."""
    wanted = {name.casefold() for name in (*names, WHOLE)}

    def extract(body: Mapping[str, Any]) -> list[Text]:
        meant = [value for name, value in body.items() if name.casefold() in wanted]
        found = texts_of_stranger(meant)
        if len(found) > TEXTS_MAX:  # each is asked about
            raise Unreadable(400, f"At most {TEXTS_MAX:,} texts are taken at a time.")
        return found

    return extract


class Refusal(NamedTuple):
    """A problem (RFC 9457)."""

    status: int
    content: bytes

    @classmethod
    def of(cls, error: Exception) -> Refusal:
        """Of a `GatewayError` or an `Unreadable`."""
        if isinstance(error, Unreadable):
            return cls._problem(error.status, "body_not_readable", str(error))
        if isinstance(error, Blocked):
            return cls._problem(403, "prompt_injection", str(error), request_id=error.request_id)
        return cls._problem(503, "no_verdict", "This cannot be checked right now. Try again.")

    @classmethod
    def too_large(cls, bytes_max: int) -> Refusal:
        return cls._problem(413, "body_too_large", f"At most {bytes_max:,} bytes are taken here.")

    @classmethod
    def _problem(cls, status: int, code: str, detail: str, **more: str) -> Refusal:
        title = {
            400: "Bad Request",
            403: "Forbidden",
            413: "Content Too Large",
            415: "Unsupported Media Type",
            503: "Service Unavailable",
        }[status]
        problem = {"title": title, "status": status, "code": code, "detail": detail, **more}
        return cls(status, json.dumps(problem).encode())


class Unreadable(Exception):
    """Nobody can say what the application would read in this body, so it does not pass."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status


REFUSED = (GatewayError, Unreadable)


def is_meant(paths: Iterable[str], *found: str) -> bool:
    """Whether what was asked for is one of `paths`, or below. Routers differ in which spellings
    they take for the same path: case, doubled slashes and percent-encoding do not count here."""
    wanted = [_folded(path) for path in paths]
    return not wanted or any(
        path == one or path.startswith(f"{one}/") for path in map(_folded, found) for one in wanted
    )


def _folded(path: str) -> str:
    return re.sub("//+", "/", unquote(path)).rstrip("/").casefold()


def kind_of(media_type: str, coding: str = "") -> str:
    """The type alone, such as `application/json`."""
    if coding.strip().lower() not in ("", "identity"):
        raise Unreadable(415, "A compressed body is not read here. Send it as it is.")
    if any(one.lower() not in READABLE for one in CHARSET.findall(media_type)):
        raise Unreadable(415, "Only UTF-8 is read here.")
    return media_type.partition(";")[0].strip().lower()


def body_of(content: bytes, kind: str) -> Mapping[str, Any]:
    """A JSON object's fields, whatever type it says to be: applications do not ask for that."""
    if not content.strip():
        return {}
    try:
        return _fields_of(content)
    except ValueError as error:
        if SAYS_JSON.match(kind):
            raise Unreadable(400, "The body is no JSON that can be read.") from error
        text = text_of(content)
        if text is None and SAYS_TEXT.match(kind):
            raise Unreadable(415, "Only UTF-8 is read here.") from None
        return {} if text is None else {WHOLE: text}


def with_json(form: Mapping[str, list[Any]], content: bytes) -> Mapping[str, Any]:
    """A body may be a form and JSON at the same time, and a handler read either."""
    try:
        found = _fields_of(content)
    except ValueError:
        return form
    return {**found, **{name: [*form[name], found.get(name)] for name in form}}


def _fields_of(content: bytes) -> Mapping[str, Any]:
    try:
        try:
            found = json.loads(content, parse_int=_number)
        except UnicodeDecodeError:
            found = json.loads(content.decode("utf-8-sig", "replace"), parse_int=_number)
    except RecursionError as error:
        raise Unreadable(400, "The body is too deep.") from error
    return found if isinstance(found, dict) else {WHOLE: found}


def _number(digits: str) -> float:
    """Python refuses to read very long ones, and other parsers do not."""
    return int(digits) if len(digits) <= DIGITS_MAX else float(digits)


def text_of(content: bytes) -> Optional[str]:
    """None: it is none, but a picture or the like."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def form_of(content: bytes) -> Mapping[str, list[Any]]:
    try:
        return parse_qs(content.decode("utf-8", "replace"), max_num_fields=1_000)
    except ValueError as error:
        raise Unreadable(400, "The form has too many fields.") from error


def has_failed_open(found: Iterable[Detection]) -> bool:
    return any(one.failed_open for one in found)
