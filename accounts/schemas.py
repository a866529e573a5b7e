"""Bodies and answers of the account endpoints (`docs` shows them; times are UTC)."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError as DjangoValidationError
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    EmailStr,
    Field,
    StringConstraints,
    model_validator,
)

from accounts.addresses import CHARS_MAX, deliverable
from accounts.models import ApiKey, Plan, UsageLog, User, Workspace, effective_limits
from accounts.networks import network_of
from gateway_project.core import clock
from gateway_project.core.api.endpoint import Asked, Body
from gateway_project.core.api.fields import ONE_LINE, WHOLE, Moment, Time
from gateway_project.core.api.pagination import Paging

Scope = Literal["detect", "batch", "webhooks", "usage:read", "keys:write", "audit:read"]
Limit = Annotated[int, Field(ge=1, le=2_000_000_000), WHOLE]


def _network(value: str) -> str:
    try:
        return str(network_of(value, strict=False))
    except ValueError:
        raise ValueError("not a network such as 203.0.113.0/24 or 2001:db8::/32") from None


def _acceptable(password: str) -> str:
    try:
        validate_password(password)
    except DjangoValidationError as exc:
        raise ValueError(" ".join(exc.messages)) from None
    return password


def _future(value: datetime) -> datetime:
    try:
        value = value.astimezone(UTC)
    except OverflowError:  # the year 9999 with an offset
        raise ValueError("lies beyond the calendar") from None
    if value <= clock.now():
        raise ValueError("lies in the past")
    return value


# The validators' least length, which they say in words.
PASSWORD_CHARS_MIN = settings.AUTH_PASSWORD_VALIDATORS[0]["OPTIONS"]["min_length"]  # type: ignore[index]
Password = Annotated[
    str,
    StringConstraints(max_length=128),
    AfterValidator(_acceptable),
    Field(json_schema_extra={"minLength": PASSWORD_CHARS_MIN}),
]
Name = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=100), ONE_LINE
]
Network = Annotated[str, StringConstraints(max_length=50), AfterValidator(_network)]
Future = Annotated[Moment, AfterValidator(_future)]


class RegisterRequest(Body):
    email: Annotated[EmailStr, StringConstraints(max_length=CHARS_MAX), AfterValidator(deliverable)]
    password: Password
    name: Name | None = None


class RotateRequest(Body):
    grace_seconds: Annotated[int, Field(ge=0, le=604_800), WHOLE] = 86_400


class RevokeQuery(Asked):
    key_id: UUID | None = Field(None, description="Without it: the calling key.")


Tag = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40), ONE_LINE
]
Tags = Annotated[list[Tag], Field(max_length=10)]
Owner = Annotated[str, StringConstraints(strip_whitespace=True, max_length=254), ONE_LINE]


class KeyRequest(Body):
    name: Name = "API key"
    scopes: Annotated[list[Scope], Field(min_length=1)] | None = None
    allowed_cidrs: Annotated[list[Network], Field(max_length=50)] = []
    expires_at: Future | None = None
    rate_limit_per_minute: Limit | None = None
    rate_limit_per_day: Limit | None = None
    tags: Tags = []
    owner: Owner = Field("", description="Who looks after it, such as an e-mail address.")
    is_test: bool = Field(
        False, description="A `gw_test_…` key: never billed, and with a trial's limits."
    )


class KeyPatch(Body):
    """What is left out, or null, stays as it is; `expires_at: null` takes the expiry away."""

    name: Name | None = None
    scopes: Annotated[list[Scope], Field(min_length=1)] | None = None
    allowed_cidrs: Annotated[list[Network], Field(max_length=50)] | None = None
    expires_at: Future | None = None
    rate_limit_per_minute: Limit | None = None
    rate_limit_per_day: Limit | None = None
    tags: Tags | None = None
    owner: Owner | None = None


class UserView(BaseModel):
    id: UUID
    email: str
    confirmed: bool

    @classmethod
    def of(cls, user: User) -> UserView:
        return cls(id=user.pk, email=user.email, confirmed=user.email_confirmed_at is not None)


class WorkspaceView(BaseModel):
    id: UUID
    slug: str
    name: str

    @classmethod
    def of(cls, workspace: Workspace) -> WorkspaceView:
        return cls(id=workspace.pk, slug=workspace.slug, name=workspace.name)


class PlanView(BaseModel):
    name: str
    rate_limit_per_minute: int
    rate_limit_per_day: int
    log_days: int

    @classmethod
    def of(cls, plan: Plan) -> PlanView:
        return cls(
            name=plan.name,
            rate_limit_per_minute=plan.rate_limit_per_minute,
            rate_limit_per_day=plan.rate_limit_per_day,
            log_days=plan.log_days,
        )


class KeyView(BaseModel):
    """A key without its text. The limits are the ones enforced now (lower while on trial)."""

    id: UUID
    prefix: str
    last4: str
    name: str
    status: Literal["active", "grace", "expired", "revoked"]
    scopes: list[str]
    allowed_cidrs: list[str]
    rate_limit_per_minute: int
    rate_limit_per_day: int
    created_at: Time
    expires_at: Time | None
    grace_until: Time | None
    revoked_at: Time | None
    replaced_by: UUID | None
    last_used_at: Time | None
    last_used_ip: str | None
    tags: list[str]
    owner: str
    is_test: bool

    @classmethod
    def of(cls, key: ApiKey, /, **more: str) -> KeyView:
        per_minute, per_day, *_ = effective_limits(key)
        return cls(
            id=key.pk,
            prefix=key.prefix,
            last4=key.last4,
            name=key.name,
            status=key.status,
            scopes=key.scopes,
            allowed_cidrs=key.allowed_cidrs,
            rate_limit_per_minute=per_minute,
            rate_limit_per_day=per_day,
            created_at=key.created_at,
            expires_at=key.expires_at,
            grace_until=key.grace_until,
            revoked_at=key.revoked_at,
            replaced_by=key.replaced_by_id,
            last_used_at=key.last_used_at,
            last_used_ip=key.last_used_ip,
            tags=key.tags,
            owner=key.owner,
            is_test=key.is_test,
            **more,
        )


class NewKeyView(KeyView):
    """A key with its text, which is shown this once."""

    key: str


class Registration(BaseModel):
    user: UserView
    workspace: WorkspaceView
    api_key: NewKeyView


class PreviousKey(BaseModel):
    id: UUID
    grace_until: Time


class Rotation(BaseModel):
    api_key: NewKeyView
    previous: PreviousKey


class PolicyState(BaseModel):
    name: str
    limit: int
    remaining: int
    reset_seconds: int = Field(
        description="Until all of `limit` is back, if nothing more is asked."
    )
    window_seconds: int


class Limits(BaseModel):
    policies: list[PolicyState]


class WindowUsage(BaseModel):
    limit: int
    remaining: int
    reset_seconds: int


class DayUsage(BaseModel):
    date: date
    requests: int
    flagged: int
    errors: int


class Usage(BaseModel):
    minute: WindowUsage | None
    day: WindowUsage | None
    last_30_days: list[DayUsage]


class Profile(BaseModel):
    api_key: KeyView
    workspace: WorkspaceView
    plan: PlanView
    usage: Usage


class RequestsQuery(Paging):
    model_config = ConfigDict(extra="forbid")

    key: UUID | None = Field(None, description="The id of a key.")
    status: Annotated[str, StringConstraints(pattern=r"^([1-5]xx|[1-5][0-9]{2})$")] | None = Field(
        None, description="`422`, or `2xx`, `4xx`, `5xx`."
    )
    decision: Literal["allow", "review", "flag"] | None = None
    since: Moment | None = Field(None, description="With its offset, or Z; inclusive.")
    until: Moment | None = Field(None, description="Likewise; exclusive.")

    @model_validator(mode="after")
    def _in_order(self) -> RequestsQuery:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("since must lie before until")
        return self

    @property
    def statuses(self) -> range | None:
        if self.status is None:
            return None
        first = int(self.status.replace("x", "0"))
        return range(first, first + (100 if "x" in self.status else 1))


class RequestTiming(BaseModel):
    """Milliseconds: all of it, what the engine took of it, and what is left for the gateway."""

    total_ms: float
    upstream_ms: float
    gateway_ms: float


class LoggedRequest(BaseModel):
    """A row of the log. What no verdict was given for is null from `status` on.

    `is_malicious` is what was found. With `decision` `allow` that was in monitor mode, where the
    answer said `would_flag` instead.
    """

    request_id: UUID
    created_at: Time
    api_key_id: UUID
    endpoint: str
    http_status: int
    error_code: str | None
    request_bytes: int
    timing: RequestTiming
    status: str | None
    source: str | None
    decision: str | None
    is_malicious: bool | None
    confidence: float | None
    cached: bool
    why: dict[str, Any] = Field(
        description=(
            "All that can be said without the text: `ip`, `agent`, `correlation` (the "
            "`X-Request-ID` that was sent), `detail` and `errors` of a refusal, `threats`, "
            "`reason`, `threshold`, `threshold_from`, `policy` (the version), `matched`, "
            "`degraded`, `would_flag`, `batch`; may grow."
        )
    )

    @classmethod
    def of(cls, row: UsageLog) -> LoggedRequest:
        return cls(
            request_id=row.request_id,
            created_at=row.created_at,
            api_key_id=row.api_key_id,
            endpoint=row.endpoint,
            http_status=row.http_status,
            error_code=row.error_code or None,
            request_bytes=row.request_size,
            timing=RequestTiming(
                total_ms=round(row.response_time_ms, 2),
                upstream_ms=round(row.upstream_ms, 2),
                gateway_ms=round(max(0.0, row.response_time_ms - row.upstream_ms), 2),
            ),
            status=row.status or None,
            source=row.source or None,
            decision=row.decision or None,
            is_malicious=row.is_malicious,
            confidence=row.confidence,
            cached=row.cached,
            why=row.why,
        )


class LoggedRequests(BaseModel):
    results: list[LoggedRequest]
    next: str | None


class KeyList(BaseModel):
    results: list[KeyView]
    next: str | None


class AuditQuery(Paging):
    model_config = ConfigDict(extra="forbid")

    action: Annotated[str, StringConstraints(max_length=60)] = Field(
        "", description="One, or the beginning of several with a dot at its end: `key.`"
    )
    actor: Annotated[str, StringConstraints(max_length=254)] = ""
    target: Annotated[str, StringConstraints(max_length=100)] = Field(
        "", description="An id, an address or a name."
    )
    since: Moment | None = Field(None, description="With its offset, or Z; inclusive.")
    until: Moment | None = Field(None, description="Likewise; exclusive.")

    @model_validator(mode="after")
    def _in_order(self) -> AuditQuery:
        if self.since and self.until and self.since >= self.until:
            raise ValueError("since must lie before until")
        return self


class AuditRecord(BaseModel):
    """Who did what. `changes` has `[before, after]` of each field; no secret and no text is in it.

    `number` and `digest` are its place in the workspace's chain; null and empty for some seconds.
    """

    id: UUID
    number: int | None
    at: Time
    action: str
    actor: str = Field(description="An e-mail address, `key gw_live_…`, or a command.")
    target: str
    client_ip: str | None
    request_id: str | None
    changes: dict[str, list[Any]]
    details: dict[str, Any]
    digest: str


class AuditRecords(BaseModel):
    results: list[AuditRecord]
    next: str | None
