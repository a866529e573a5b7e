"""Every answer that a test is given is one that `docs/openapi.json` tells of.

`conftest.py` has each test client call `hold`, so no test has to ask for it: the status is
declared, the content type, the body by its schema, the declared headers, and no header of ours is
undeclared. What is no operation of the document (pages, metrics) is let through.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx
import jsonschema_rs
import pytest
from django.conf import settings
from django.test import client as django_client
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

from gateway_project.core.api.responses import NDJSON

SNAPSHOT = settings.BASE_DIR / "docs" / "openapi.json"
REFRESH = "manage.py spectacular --file docs/openapi.json --format openapi-json"
DOCUMENT: dict[str, Any] = json.loads(SNAPSHOT.read_text())
METHODS = ("get", "put", "post", "patch", "delete")
# Of HTTP and its caches and browsers, on whatever answer: not of any operation.
OF_HTTP = {
    *("content-type", "content-length", "content-encoding", "vary", "cache-control", "date"),
    *("connection", "server", "allow", "expires", "x-content-type-options", "referrer-policy"),
    *("content-security-policy", "x-frame-options", "strict-transport-security"),
    *("cross-origin-opener-policy", "content-language"),
}
# Put on by what Django's own test client never passes (`core/api/middleware.py`).
OF_THE_EDGE = {"x-request-id", "server-timing"}
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)\Z")

formats = FormatChecker()


@formats.checks("date-time")
def _is_time(value: Any) -> bool:
    return not isinstance(value, str) or RFC3339.match(value) is not None


class NotAsDocumented(AssertionError):
    """An answer of the gateway is none of the document's."""


@functools.cache
def _routes() -> tuple[dict[str, str], list[tuple[re.Pattern[str], str]]]:
    fixed = {path: path for path in DOCUMENT["paths"] if "{" not in path}
    with_names = [
        (re.compile(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(path)) + r"\Z"), path)
        for path in DOCUMENT["paths"]
        if "{" in path
    ]
    return fixed, with_names


@functools.lru_cache(1000)
def template_of(path: str) -> str | None:
    """`/v1/keys/{id}` of `/v1/keys/01a2…`; None: no operation of the document."""
    fixed, with_names = _routes()
    path = path.rstrip("/")
    return fixed.get(path) or next((t for known, t in with_names if known.match(path)), None)


def resolved(about: Mapping[str, Any]) -> Any:
    while "$ref" in about:
        found: Any = DOCUMENT
        for part in about["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        about = found
    return about


class Schema:
    """One of the document's. What is right is told in microseconds, what is wrong in words."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._quick = jsonschema_rs.Draft202012Validator(
            schema, validate_formats=True, formats={"date-time": _is_time}
        )
        self._words = Draft202012Validator(schema, format_checker=formats)

    def error_in(self, value: Any) -> ValidationError | None:
        return None if self._quick.is_valid(value) else next(self._words.iter_errors(value), None)


@functools.cache
def _schema(pointer: str) -> Schema:
    return Schema(
        {"$ref": pointer, "components": DOCUMENT["components"], "paths": DOCUMENT["paths"]}
    )


@functools.cache
def _schema_of_header(about: str) -> Schema:
    return Schema(json.loads(about))


def check(
    method: str,
    path: str,
    status: int,
    headers: Mapping[str, str],
    content: bytes | None,
    *,
    is_whole: bool = True,
) -> None:
    """Raise `NotAsDocumented` for what the document does not say.

    `content` None: it has not been read. `is_whole`: it came by way of the edge.
    """
    template = template_of(path)
    if template is None:
        return
    known = "get" if method == "HEAD" else method.lower()
    headers = {name.lower(): value for name, value in headers.items()}
    operation = DOCUMENT["paths"][template].get(known)
    if operation is None:
        return  # 405, or the answer to a browser that asks beforehand
    summary = f"{method} {path}: {status} {headers.get('content-type', '')}"

    def refuse(what: str) -> None:
        raise NotAsDocumented(f"{summary}: {what}. If it is meant: declare it, and {REFRESH}")

    response = operation["responses"].get(str(status))
    if response is None:
        refuse(f"the status is not declared, only {', '.join(operation['responses'])}")
    pointer = response.get("$ref") or _pointer("paths", template, known, "responses", str(status))
    response = resolved(response)
    _check_headers(response.get("headers", {}), headers, refuse, is_whole=is_whole)
    if method == "HEAD" or content is None:
        return
    declared = response.get("content", {})
    if not declared:
        if content:
            refuse("a body where none is declared")
        return
    kind = headers.get("content-type", "").partition(";")[0]
    if kind not in declared:
        refuse(f"the content type is not declared, only {', '.join(declared)}")
    if "json" in kind and kind != NDJSON:
        where = f"{pointer}/content/{_escaped(kind)}/schema"
        if (error := _schema(where).error_in(json.loads(content))) is not None:
            refuse(f"{error.json_path}: {error.message[:500]}")


def _pointer(*parts: str) -> str:
    return "#/" + "/".join(map(_escaped, parts))


def _escaped(part: str) -> str:
    for plain, escaped in (("~", "~0"), ("/", "~1"), ("{", "%7B"), ("}", "%7D")):
        part = part.replace(plain, escaped)
    return part


def _check_headers(
    declared: Mapping[str, Any],
    sent: Mapping[str, str],
    refuse: Callable[[str], None],
    *,
    is_whole: bool,
) -> None:
    names = set()
    for name, about in declared.items():
        about = resolved(about)
        names.add(name.lower())
        value = sent.get(name.lower())
        if value is None:
            if about.get("required") and (is_whole or name.lower() not in OF_THE_EDGE):
                refuse(f"the header {name} is missing")
            continue
        is_number = about["schema"]["type"] == "integer"
        if is_number and not value.isdigit():
            refuse(f"the header {name} is no number: {value!r}")
        found = int(value) if is_number else value
        if _schema_of_header(json.dumps(about["schema"])).error_in(found) is not None:
            refuse(f"the header {name} is {value!r}")
    undeclared = {
        name for name in set(sent) - names - OF_HTTP if not name.startswith("access-control-")
    }
    if undeclared:
        refuse(f"headers are not declared: {', '.join(sorted(undeclared))}")


async def hold(response: httpx.Response) -> None:
    """For `event_hooks` of an async client of the application."""
    if template_of(response.request.url.path) is None:
        return  # a page: who asked may want to read it in pieces
    # What comes in pieces may be read in pieces, as slowly as a test likes.
    is_whole = "content-length" in response.headers
    content = await response.aread() if is_whole else None
    check(
        response.request.method,
        response.request.url.path,
        response.status_code,
        response.headers,
        content,
    )


def hold_django(response: Any) -> None:
    """What Django's and DRF's test clients were answered."""
    content = None if response.streaming else response.content
    asked = response.request
    method, path = asked.get("REQUEST_METHOD"), asked.get("PATH_INFO")
    if method is None:  # of the async client: an ASGI scope
        method, path = asked["method"], asked["path"]
    check(method, path, response.status_code, response.headers, content, is_whole=False)


@contextmanager
def held() -> Iterator[None]:
    """Within, every client of `django.test`, and so of DRF, calls `hold_django`."""
    of_client = django_client.Client.request
    of_async_client = django_client.AsyncClient.request

    def request(self: Any, **asked: Any) -> Any:
        response = of_client(self, **asked)
        hold_django(response)
        return response

    async def arequest(self: Any, **asked: Any) -> Any:
        response = await of_async_client(self, **asked)
        hold_django(response)
        return response

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(django_client.Client, "request", request)
        patch.setattr(django_client.AsyncClient, "request", arequest)
        yield
