"""What each error code means: cause and mend out of docs/errors.md, an example, and where it leads.

The codes are those of `core/errors.py`; a test holds the document to them, and another asks the
gateway what the examples ask.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from django.conf import settings
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe

from gateway_project.core import errors
from portal import markdown

LINK = re.compile(r"\[([^\]]+)\]\((?!/)[^)]+\)")
ROW = re.compile(r"^\| (\d{3}) \| `(\w+)` \| (.*?) \| (.*?) ?\|$", re.MULTILINE)
REQUEST_ID = "01a206fe-78a1-766d-896f-d02e80a236dd"
DETECT = "/v1/detect"
KEYED = '-H "X-API-Key: $GATEWAY_KEY"'
SENT = "-H 'Content-Type: application/json'"


class Example(NamedTuple):
    """A call that is refused so: what follows its address, and the fields it names."""

    path: str
    options: tuple[str, ...] = ()
    errors: tuple[Mapping[str, str], ...] = ()
    mended: str = ""


EXAMPLES: Mapping[str, Example] = {
    "invalid_json": Example(
        DETECT, (KEYED, SENT, "-d '{\"text\": '"), mended='-d \'{"text": "Hello"}\''
    ),
    "missing_api_key": Example("/v1/limits", mended=KEYED),
    "invalid_api_key": Example("/v1/limits", ("-H 'X-API-Key: gw_live_mistyped'",), mended=KEYED),
    "missing_token": Example("/api/v1/queue", mended='-H "Authorization: Bearer $ACCESS_TOKEN"'),
    "invalid_token": Example("/api/v1/queue", ("-H 'Authorization: Bearer expired'",)),
    "sign_in_refused": Example(
        "/api/v1/auth/login",
        (SENT, '-d \'{"username": "ada", "password": "wrong"}\''),
    ),
    "scope_denied": Example("/v1/keys", (KEYED,)),
    "fail_open_forbidden": Example(
        DETECT,
        (KEYED, SENT, '-d \'{"text": "Hello", "config": {"on_unavailable": "fail_open"}}\''),
        mended='-d \'{"text": "Hello", "config": {"on_unavailable": "fallback"}}\'',
    ),
    "not_found": Example("/v1/nowhere", (KEYED,)),
    "method_not_allowed": Example(DETECT, (KEYED,), mended="-X POST"),
    "unsupported_media_type": Example(
        DETECT, (KEYED, "-H 'Content-Type: text/plain'", "-d 'Hello'"), mended=SENT
    ),
    "expectation_failed": Example("/v1/limits", (KEYED, "-H 'Expect: 200-ok'")),
    "validation_error": Example(
        DETECT,
        (KEYED, SENT, '-d \'{"text": "Hello", "config": {"treshold": 0.5}}\''),
        (
            {
                "field": "config.treshold",
                "message": "unknown field; known here: confidence_threshold, …",
            },
        ),
        mended='-d \'{"text": "Hello", "config": {"confidence_threshold": 0.5}}\'',
    ),
    "email_taken": Example(
        "/auth/register",
        (SENT, '-d \'{"email": "you@example.com", "password": "a long password"}\''),
    ),
    "upgrade_required": Example("/ws/queue"),
}
PLACES: Mapping[str, str] = {
    "upstream_unexpected": "/api/v1/queue",
    "upstream_unavailable": "/api/v1/queue",
    "upstream_timeout": "/api/v1/queue",
    "not_possible": "/api/v1/queue/actions",
    "guardrail_unavailable": "/beta/litellm_basic_guardrail_api",
    "second_factor_required": "/api/v1/auth/login",
    "batch_over_limit": "/v1/detect/batch",
    "csrf_failed": "/app/keys",
    "precondition_failed": "/v1/policy",
}
"""Of those without an example, where they are met; the others at `/v1/detect`."""


class Kind(NamedTuple):
    """An error code. `cause` and `mend` are Markdown."""

    code: str
    status: int
    title: str
    detail: str
    cause: str
    mend: str
    url: str

    @property
    def cause_html(self) -> SafeString:
        return _sentence(self.cause)

    @property
    def mend_html(self) -> SafeString:
        return _sentence(self.mend)

    @property
    def example(self) -> Example | None:
        return EXAMPLES.get(self.code)

    @property
    def answer(self) -> str:
        """The body, as it comes."""
        example = self.example
        body: dict[str, Any] = {
            "type": self.url,
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "instance": example.path if example else PLACES.get(self.code, DETECT),
            "code": self.code,
            "request_id": REQUEST_ID,
            "errors": list(example.errors) if example else [],
        }
        return json.dumps(body, indent=2, ensure_ascii=False)

    def command(self, base_url: str) -> str:
        """The example as a command; empty where no call of one's own is answered so."""
        if self.example is None:
            return ""
        return " \\\n  ".join([f"curl -i {base_url}{self.example.path}", *self.example.options])


def everything() -> tuple[Kind, ...]:
    """All codes, by status."""
    return tuple(sorted(_kinds().values(), key=lambda kind: (kind.status, kind.code)))


def get(code: str) -> Kind | None:
    return _kinds().get(code)


@lru_cache(maxsize=1)
def _kinds() -> dict[str, Kind]:
    explained = {
        code: (cause, mend)
        for _, code, cause, mend in ROW.findall((settings.BASE_DIR / "docs/errors.md").read_text())
    }
    return {
        code: Kind(
            code,
            kind.status_code,
            kind.title,
            kind.default_detail,
            *explained.get(code, ("", "")),
            reverse("system-problem", args=[code]),
        )
        for code, kind in errors.registered().items()
    }


def _sentence(text: str) -> SafeString:
    """A cell of the table as a sentence. Of links to documents that the site lacks, the words."""
    text = LINK.sub(r"\1", text.strip())
    if text and text[-1] not in ".!?":
        text += "."
    return mark_safe(markdown.render(text[:1].upper() + text[1:]).html)  # noqa: S308 - our own file
