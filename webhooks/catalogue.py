"""Every event that is sent, as the model of its body, with an example of it.

`GET /webhooks/events` shows the schemas; tests hold what is really sent against them. Receivers
must ignore fields that they do not know: bodies may grow, and never lose or change a field. No
event holds a text that a customer sent.
"""

from __future__ import annotations

from datetime import date
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from django.utils.translation import gettext_noop
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

Score = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


class Result(BaseModel):
    """What happened."""

    model_config = ConfigDict(extra="forbid")


class Verdict(Result):
    """`threat_types` is empty when the verdict was found harmless."""

    is_malicious: bool
    would_flag: bool | None = Field(
        None,
        description="Monitor mode only: whether it would have been flagged.",
        exclude_if=lambda value: value is None,
    )
    confidence: Score
    threat_types: list[str]
    decision: Literal["allow", "flag", "review"]
    status: Literal["complete", "partial", "degraded"]
    source: Literal["engine", "fallback", "none"]
    cached: bool
    processing_time_ms: float
    endpoint: str = Field(description="The path that was asked, such as /v1/detect.")


class DetectionFailure(Result):
    code: str = Field(description="Of the problem that was answered; see /problems/{code}.")
    http_status: int
    endpoint: str


class Batch(Result):
    batch_id: UUID
    status: Literal["complete", "partial", "failed", "cancelled"]
    total: Count
    succeeded: Count
    failed: Count
    flagged: Count
    status_url: str = Field(description="Where the results are; the event never holds them.")


class BatchFailure(Result):
    batch_id: UUID
    total: Count
    code: str
    status_url: str


class Quota(Result):
    percent: Literal[80, 100]
    limit: Count = Field(description="Of the day, in detections.")
    used: Count
    day: date = Field(description="In UTC; the quota starts anew at its end.")


class KeyExpiry(Result):
    prefix: str
    last4: str
    name: str
    expires_at: AwareDatetime


class QueueSpike(Result):
    total: Count
    threshold: Count


class DeadItem(Result):
    uid: str
    retry_count: Count


class QueueAlert(Result):
    alert: Literal["oldest", "growth", "dead", "bounce"]
    state: Literal["raised", "ended"]
    value: float = Field(description="Minutes, items, items, percent.")
    threshold: Count
    since: AwareDatetime = Field(description="When it was raised.")


class AuditRecord(Result):
    """As `GET /v1/audit` has it."""

    id: UUID
    number: int
    at: AwareDatetime
    action: str
    actor: str
    target: str
    client_ip: str | None
    request_id: str | None
    changes: dict[str, list[Any]] = Field(description="`[before, after]` of each field.")
    details: dict[str, Any]
    digest: str = Field(description="SHA-256 of this record and of the digest before it.")


class Test(Result):
    message: str


class EventType(NamedTuple):
    name: str
    description: str
    result: type[Result]
    example: dict[str, Any]
    """Of `data.result`."""
    has_request: bool = False
    """Whether it tells of a request of a key, and so names both."""


VERDICT = {
    "is_malicious": True,
    "confidence": 0.97,
    "threat_types": ["injection"],
    "decision": "flag",
    "status": "complete",
    "source": "engine",
    "cached": False,
    "processing_time_ms": 12.5,
    "endpoint": "/v1/detect",
}
BATCH_ID = "01a206fe-78a1-766d-896f-d02e80a236dd"
TYPES = (
    EventType(
        "detection.completed",
        gettext_noop("A text was judged, whatever the verdict."),
        Verdict,
        {**VERDICT, "is_malicious": False, "confidence": 0.08, "threat_types": []}
        | {"decision": "allow"},
        has_request=True,
    ),
    EventType(
        "detection.flagged",
        gettext_noop("A text was judged and flagged."),
        Verdict,
        VERDICT,
        has_request=True,
    ),
    EventType(
        "detection.failed",
        gettext_noop(
            "A detection ended without a verdict, because engine and gateway could not give one."
        ),
        DetectionFailure,
        {"code": "detection_unavailable", "http_status": 503, "endpoint": "/v1/detect"},
        has_request=True,
    ),
    EventType(
        "batch.completed",
        gettext_noop("A batch is done; fetch its results from `status_url`."),
        Batch,
        {
            "batch_id": BATCH_ID,
            "status": "complete",
            "total": 250,
            "succeeded": 250,
            "failed": 0,
            "flagged": 3,
            "status_url": f"/v1/detect/batch/{BATCH_ID}",
        },
        has_request=True,
    ),
    EventType(
        "batch.failed",
        gettext_noop("A batch ended without results."),
        BatchFailure,
        {
            "batch_id": BATCH_ID,
            "total": 250,
            "code": "detection_unavailable",
            "status_url": f"/v1/detect/batch/{BATCH_ID}",
        },
        has_request=True,
    ),
    EventType(
        "quota.80",
        gettext_noop(
            "A key, or without `api_key_id` the workspace, has used 80 % of its day; told "
            "once a day."
        ),
        Quota,
        {"percent": 80, "limit": 10_000, "used": 8_000, "day": "2026-05-01"},
    ),
    EventType(
        "quota.100",
        gettext_noop(
            "A key, or without `api_key_id` the workspace, has used up its day and is refused "
            "until midnight UTC; told once a day."
        ),
        Quota,
        {"percent": 100, "limit": 10_000, "used": 10_000, "day": "2026-05-01"},
    ),
    EventType(
        "key.expiring",
        gettext_noop("A key expires within seven days."),
        KeyExpiry,
        {
            "prefix": "gw_live_7Qxk",
            "last4": "x9Fa",
            "name": "Production",
            "expires_at": "2026-05-08T00:00:00.000Z",
        },
    ),
    EventType(
        "audit.recorded",
        gettext_noop(
            "Somebody did something in the workspace: a line of its audit trail, for a SIEM."
        ),
        AuditRecord,
        {
            "id": "01a206fe-78a1-766d-896f-d02e80a236de",
            "number": 42,
            "at": "2026-05-01T12:00:00.000Z",
            "action": "key.revoked",
            "actor": "dana@example.com",
            "target": "01a206fe-0000-7000-8000-d02e80a236df",
            "client_ip": "203.0.113.7",
            "request_id": "01a206fe-78a1-766d-896f-d02e80a236df",
            "changes": {},
            "details": {"key_name": "Production"},
            "digest": "6d1f0f0c7c8f2a1b9e3d4c5b6a79808f6d1f0f0c7c8f2a1b9e3d4c5b6a79808f",
        },
    ),
    EventType(
        "queue.spike",
        gettext_noop(
            "Robin's mail queue has grown beyond the threshold; told once for each crossing."
        ),
        QueueSpike,
        {"total": 12_500, "threshold": 10_000},
    ),
    EventType(
        "queue.item_dead",
        gettext_noop("Robin has given up on a mail."),
        DeadItem,
        {"uid": "q-00012fe1", "retry_count": 30},
    ),
    EventType(
        "queue.alert",
        gettext_noop("An alert that Robin's operators set has begun or ended; told once for each."),
        QueueAlert,
        {"alert": "oldest", "state": "raised", "value": 251, "threshold": 240}
        | {"since": "2026-05-01T12:00:00.000Z"},
    ),
    EventType(
        "webhook.test",
        gettext_noop("Sent when you ask for a test, and before a webhook is enabled again."),
        Test,
        {"message": "This is a test. Nothing has happened."},
    ),
)
BY_NAME = {event.name: event for event in TYPES}
ALIASES = {"detection_complete": "detection.completed"}
"""Older names that clients still send, and ours for them."""


def schema_of(event: EventType, *, is_open: bool = True) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the whole body.

    Not open, it refuses fields that are not declared, as our own tests do and receivers must not.
    """
    required = ["id", "type", "timestamp", "data"]
    request = {
        "request_id": {"type": "string", "format": "uuid"},
        "api_key_id": {"type": "string", "format": "uuid"},
    }
    result = event.result.model_json_schema()
    result.pop("description", None)
    closed = {} if is_open else {"additionalProperties": False}
    if is_open:
        result.pop("additionalProperties", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": event.name,
        "description": event.description,
        "type": "object",
        "properties": {
            "id": {"type": "string", "format": "uuid", "description": "Dedupe by it."},
            "type": {"const": event.name},
            "timestamp": {"type": "string", "format": "date-time"},
            **request,
            "data": {
                "type": "object",
                "properties": {
                    "result": result,
                    "metadata": {
                        "type": "object",
                        "description": "What the request that caused it said of itself.",
                    },
                },
                "required": ["result", "metadata"],
                **closed,
            },
        },
        "required": [*required, *(request if event.has_request else ())],
        **closed,
    }


def example_of(event: EventType) -> dict[str, Any]:
    """A whole body as it would be sent."""
    body: dict[str, Any] = {
        "id": "01a206fe-7f00-7c31-b2a4-5d0e9a3c1b77",
        "type": event.name,
        "timestamp": "2026-05-01T12:00:00.000Z",
        "data": {"result": {**event.example}, "metadata": {}},
    }
    if event.has_request:
        body["request_id"] = "01a206fe-78a1-766d-896f-d02e80a236de"
        body["api_key_id"] = "01a206fe-0000-7000-8000-d02e80a236df"
    return body
