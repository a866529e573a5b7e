"""What answers must look like, field by field, for the tests of the account endpoints."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any
from uuid import UUID

import httpx

from accounts.models import UsageLog
from accounts.usage import partitions, rollups
from accounts.usage.rows import COLUMNS

KEY_FIELDS = {
    "id",
    "prefix",
    "last4",
    "name",
    "status",
    "scopes",
    "allowed_cidrs",
    "rate_limit_per_minute",
    "rate_limit_per_day",
    "created_at",
    "expires_at",
    "grace_until",
    "revoked_at",
    "replaced_by",
    "last_used_at",
    "last_used_ip",
    "tags",
    "owner",
    "is_test",
}
PROBLEM_FIELDS = {
    "type",
    "title",
    "status",
    "detail",
    "instance",
    "code",
    "request_id",
    "errors",
}
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z\Z")


def problem(r: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a problem that is whole and says what it should."""
    assert r.status_code == status, r.text
    assert r.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = r.json()
    assert set(body) == PROBLEM_FIELDS
    assert body["code"] == code
    assert body["status"] == status
    assert body["type"] == f"/problems/{code}"
    assert body["instance"] == r.request.url.path.rstrip("/")
    assert body["title"]
    assert body["detail"]
    UUID(body["request_id"])
    return body


def fields(r: httpx.Response) -> dict[str, str]:
    """{field: message} of a 422."""
    body = problem(r, 422, "validation_error")
    return {error["field"]: error["message"] for error in body["errors"]}


def moment(text: str) -> datetime:
    """The time of an answer: UTC, with a Z, in milliseconds."""
    assert UTC_TIME.match(text), text
    return datetime.fromisoformat(text)


def same_but_for_ids(one: httpx.Response, other: httpx.Response) -> bool:
    """Whether two answers could be told apart by anything but their request ids and timings."""

    def bare(r: httpx.Response) -> tuple[Any, ...]:
        body = r.json()
        body.pop("request_id")
        varying = {"x-request-id", "server-timing", "ratelimit"}
        varying |= {"x-ratelimit-remaining", "x-ratelimit-reset"}  # of the moment, and its second
        headers = {k: v for k, v in r.headers.items() if k not in varying}
        return r.status_code, body, headers

    return bare(one) == bare(other)


def refusal(r: Any) -> tuple[int, str]:
    """The status and the code of an error, of a problem or of a page for people."""
    if r.headers["content-type"].startswith("text/html"):
        [code] = re.findall(r'<p class="code">\d+ · (\w+)</p>', r.content.decode())
    else:
        code = r.json()["code"]
    return r.status_code, code


def logged(values: dict[str, Any]) -> UsageLog:
    """A row of the log, by column, with what it adds to the sums."""
    at = values["created_at"]
    partitions.ensure_partitions([at.date()])
    found = UsageLog.objects.create(**values)
    row = [getattr(found, name) for name in COLUMNS[:-1]]
    rollups.add_up([[*map(str, row[:3]), *row[3:], at.isoformat()]])
    return found
