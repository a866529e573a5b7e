"""What middleware of web frameworks shares: which texts of a body, and how it is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Callable, NamedTuple
from urllib.parse import parse_qs

from gateway_guard.chats import Text, texts_of_request
from gateway_guard.errors import Blocked, GatewayError
from gateway_guard.models import Detection

FIELDS = ("message", "messages", "text", "prompt", "query", "question", "input", "content")
BODY_BYTES_MAX = 1 << 20
HEADER = "gateway-guard"
FAILED_OPEN = "failed-open"
Extract = Callable[[Mapping[str, Any]], Iterable[Text]]


def fields(*names: str) -> Extract:
    """These fields of a JSON object or a form: texts, or chats as model APIs take them."""

    def extract(body: Mapping[str, Any]) -> list[Text]:
        return texts_of_request({"input": [body[name] for name in names if name in body]})

    return extract


class Refusal(NamedTuple):
    """A problem (RFC 9457)."""

    status: int
    content: bytes

    @classmethod
    def of(cls, error: GatewayError) -> Refusal:
        if isinstance(error, Blocked):
            return cls._problem(403, "prompt_injection", str(error), request_id=error.request_id)
        return cls._problem(503, "no_verdict", "This cannot be checked right now. Try again.")

    @classmethod
    def too_large(cls, bytes_max: int) -> Refusal:
        return cls._problem(413, "body_too_large", f"At most {bytes_max:,} bytes are taken here.")

    @classmethod
    def _problem(cls, status: int, code: str, detail: str, **more: str) -> Refusal:
        title = {403: "Forbidden", 413: "Content Too Large", 503: "Service Unavailable"}[status]
        problem = {"title": title, "status": status, "code": code, "detail": detail, **more}
        return cls(status, json.dumps(problem).encode())


def body_of(content: bytes, media_type: str) -> Mapping[str, Any]:
    """A JSON object's or a form's fields; empty for everything else."""
    kind = media_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return parse_qs(content.decode("utf-8", "replace"), max_num_fields=1_000)
    if kind != "application/json" and not kind.endswith("+json"):
        return {}
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}  # the application says what is wrong with it
    return found if isinstance(found, dict) else {"input": found}


def has_failed_open(found: Iterable[Detection]) -> bool:
    return any(one.failed_open for one in found)
