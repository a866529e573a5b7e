"""Questions and answers of `/admin/stats`, `/admin/users` and `/admin/usage/{api_key_id}`."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from django.utils import timezone
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from gateway_project.core import clock
from gateway_project.core.api.endpoint import Asked
from gateway_project.core.api.fields import Moment, Time
from gateway_project.core.api.pagination import Limit, Position

YEARS_MAX = timedelta(days=3660)
HOURS_KEPT = timedelta(days=95)
Rate = Annotated[float, Field(ge=0, le=1)]


class Query(Asked):
    """A query string: a parameter that nobody knows is a mistake, not a wish."""

    model_config = ConfigDict(extra="forbid")


class Range(Query):
    since: Moment | None = Field(None, description="With its offset, or Z. A day before `until`.")
    until: Moment | None = Field(None, description="With its offset, or Z. Without it: now.")

    @model_validator(mode="after")
    def _in_order(self) -> Range:
        since, until = self.bounds(timedelta(days=1))
        if since >= until:
            raise ValueError("since must lie before until")
        if until - since > YEARS_MAX:
            raise ValueError("since and until are at most ten years apart")
        return self

    def bounds(self, default: timedelta) -> tuple[datetime, datetime]:
        """(since, until) in UTC; now and `default` before it where nothing is said."""
        zone = timezone.get_default_timezone()  # UTC
        try:
            until = (self.until or clock.now()).astimezone(zone)
            return (self.since or until - default).astimezone(zone), until
        except OverflowError:
            raise ValueError("since and until lie beyond the calendar") from None


class UsageQuery(Range):
    since: Moment | None = Field(None, description="With its offset, or Z. 30 days before `until`.")
    period: Literal["hour", "day"] | None = None

    @model_validator(mode="after")
    def _hours_are_kept(self) -> UsageQuery:
        since, until = self.bounds(timedelta(days=30))
        if self.period == "hour" and until - since > HOURS_KEPT:
            raise ValueError(f"hours are kept for {HOURS_KEPT.days} days: ask by day")
        return self


class UsersQuery(Query):
    search: Annotated[str, StringConstraints(max_length=254)] = Field(
        "", description="Beginning of an e-mail, or an id."
    )
    ordering: Literal["email", "-email", "date_joined", "-date_joined"] = "-date_joined"
    limit: Limit = 50
    cursor: Position = ""


class LatencyView(BaseModel):
    p50: float | None = Field(description="Milliseconds; null without requests.")
    p95: float | None
    p99: float | None


class ActiveKeysView(BaseModel):
    d1: int = Field(description="Used within the last day; d7, d30: week, month.")
    d7: int
    d30: int


class WebhooksView(BaseModel):
    delivered_rate: Rate | None = Field(
        description="Of the deliveries begun in the range that have ended; null without any."
    )
    oldest_pending_seconds: float = Field(description="Of what is due; 0: nothing waits.")


class JobsView(BaseModel):
    """Batches and single texts that wait or are worked on; null: none waits."""

    queued: int
    processing: int
    oldest_queued_seconds: float | None


class StaffBreakerView(BaseModel):
    """Of the web process where it is in the worst state."""

    state: Literal["closed", "half-open", "open"]
    failures: int
    open_for_seconds: float | None
    forced: bool = False


class StatsPointView(BaseModel):
    at: Time
    requests: int
    flagged: int
    errors: int


class Stats(BaseModel):
    requests: int
    flagged_rate: Rate
    error_rate: Rate
    degraded_rate: Rate
    latency_ms: LatencyView
    active_keys: ActiveKeysView
    new_workspaces: int
    webhooks: WebhooksView
    jobs: JobsView
    breakers: dict[str, StaffBreakerView]
    series: list[StatsPointView] = Field(
        description="By the hour up to a fortnight, by day beyond; empty buckets are left out."
    )


class StaffUserView(BaseModel):
    id: UUID
    email: str
    confirmed: bool
    is_active: bool
    workspaces: int = Field(description="In how many they are.")
    keys: int = Field(description="Keys in use in those workspaces.")
    last_login_at: Time | None
    requests_30d: int = Field(description="Of those workspaces, in the last 30 days.")


class StaffUserList(BaseModel):
    results: list[StaffUserView]
    next: str | None


class SumsView(BaseModel):
    requests: int
    flagged: int
    errors: int
    degraded: int
    cached: int
    request_bytes: int


class TotalsView(SumsView):
    latency_ms: LatencyView


class UsagePointView(SumsView):
    at: Time


class EndpointSumsView(SumsView):
    endpoint: str


class StatusSumsView(SumsView):
    status: int = Field(description="HTTP status")


class KeyUsage(BaseModel):
    api_key_id: UUID
    workspace_id: UUID
    since: Time
    until: Time
    period: Literal["hour", "day"]
    totals: TotalsView
    series: list[UsagePointView] = Field(description="Empty buckets are left out.")
    by_endpoint: list[EndpointSumsView]
    by_status: list[StatusSumsView]
