"""What happened: requests, their sums, and who did what. All of it is only read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.admin.lists import (
    Choice,
    ReadOnly,
    TimeRange,
    as_uuid,
    at,
    link_to,
    of_subject,
    subjects,
)
from accounts.models import ApiKey, AuditEvent, UsageLog, UsageRollup, Workspace, normal_email
from accounts.usage.rollups import EVERYTHING
from gateway_project.core import clock
from gateway_project.core.language import number

REQUEST_SECONDS_MAX = 120
"""Longer no request takes: so far behind its id, which holds its beginning, its row may lie."""


class Outcome(Choice):
    title = _("outcome")
    parameter_name = "outcome"
    options = {
        "errors": (_("Errors (400 and above)"), {"http_status__gte": 400}),
        "flagged": (_("Flagged"), {"is_malicious": True}),
    }


@admin.register(UsageLog)
class UsageLogAdmin(ReadOnly):
    list_display = [
        at,
        "endpoint",
        "http_status",
        "decision",
        "source",
        "milliseconds",
        "key",
        "workspace",
    ]
    list_filter = [TimeRange, Outcome]
    range_field = "created_at"
    ranges = {
        "last hour": timedelta(hours=1),
        "last 15 minutes": timedelta(minutes=15),
        "last 6 hours": timedelta(hours=6),
        "last 24 hours": timedelta(hours=24),
        "last 7 days": timedelta(days=7),
        "last 30 days": timedelta(days=30),
    }
    ordering = ["-created_at", "-id"]
    search_help_text = _(
        "A request id, a key as lists show it, a workspace's slug, or the id of a key or workspace."
    )

    def window_of(self, term: str) -> tuple[datetime, datetime] | None:
        """When the request of that id was: its id says so, whatever range is chosen."""
        wanted = as_uuid(term)
        if wanted is None or wanted.version != 7 or subjects(term):
            return None
        milliseconds = wanted.int >> 80
        if milliseconds / 1000 > clock.time():
            return None  # of no request yet, and perhaps beyond the calendar
        began = datetime.fromtimestamp(milliseconds / 1000, UTC)
        return began - timedelta(seconds=1), began + timedelta(seconds=REQUEST_SECONDS_MAX)

    def find(self, queryset: QuerySet[UsageLog], term: str) -> QuerySet[UsageLog]:
        return of_subject(queryset, term, "request_id")

    def adorn(self, rows: list[Any]) -> None:
        found = ApiKey.objects.without_policies().select_related("workspace")
        keys = found.in_bulk({row.api_key_id for row in rows})
        for row in rows:
            row.api_key = keys.get(row.api_key_id)

    @admin.display(description=_("key"))
    def key(self, row: Any) -> str:
        key = getattr(row, "api_key", None)
        return link_to(key, f"{key.prefix}…{key.last4}") if key else str(row.api_key_id)

    @admin.display(description=_("workspace"))
    def workspace(self, row: Any) -> str:
        key = getattr(row, "api_key", None)
        return link_to(key.workspace) if key else str(row.workspace_id)

    @admin.display(description=_("ms"))
    def milliseconds(self, row: UsageLog) -> str:
        return number(row.response_time_ms, ",.1f")


class RollupPeriod(Choice):
    title = _("period")
    parameter_name = "period"
    default = {"period": "day"}
    options = {
        "hour": (_("Hours"), {"period": "hour"}),
        "minute": (_("Minutes"), {"period": "minute"}),
    }

    def choices(self, changelist: Any) -> Any:
        for choice in super().choices(changelist):
            is_default = "period=" not in str(choice["query_string"])
            yield {**choice, "display": gettext("Days") if is_default else choice["display"]}


@admin.register(UsageRollup)
class UsageRollupAdmin(ReadOnly):
    list_display = [
        "from_",
        "of",
        "endpoint",
        "http_status",
        "requests",
        "flagged",
        "degraded",
        "cached",
        "mean",
    ]
    list_filter = [RollupPeriod, TimeRange]
    range_field = "bucket"
    ranges = {
        "last 7 days": timedelta(days=7),
        "last 24 hours": timedelta(hours=24),
        "last 30 days": timedelta(days=30),
        "last 90 days": timedelta(days=90),
        "last 365 days": timedelta(days=365),
    }
    ordering = ["-bucket", "endpoint", "http_status", "-id"]
    search_help_text = _(
        "A key as lists show it, a workspace's slug, or an id. Empty: all together."
    )

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        term = search_term.strip()
        if not term:
            return queryset.filter(subject_id=EVERYTHING), False
        found = subjects(term)
        ids: list[UUID] = found.get("api_key_id__in", list(found.values()))
        return queryset.filter(subject_id__in=ids), False

    def adorn(self, rows: list[Any]) -> None:
        ids = {row.subject_id for row in rows} - {EVERYTHING}
        known: dict[UUID, Any] = {EVERYTHING: gettext("everything")}
        if ids:
            known |= Workspace.objects.in_bulk(ids) | ApiKey.objects.without_policies().in_bulk(ids)
        for row in rows:
            row.subject = known.get(row.subject_id, row.subject_id)

    @admin.display(description=_("from (UTC)"))
    def from_(self, row: UsageRollup) -> str:
        return f"{row.bucket:%Y-%m-%d}" if row.period == "day" else f"{row.bucket:%Y-%m-%d %H:%M}"

    @admin.display(description=_("of"))
    def of(self, row: Any) -> str:
        subject = getattr(row, "subject", row.subject_id)
        return link_to(subject) if isinstance(subject, Workspace | ApiKey) else str(subject)

    @admin.display(description=_("mean ms"))
    def mean(self, row: UsageRollup) -> str:
        return number(row.latency_ms_sum / row.requests, ",.1f") if row.requests else ""


@admin.register(AuditEvent)
class AuditEventAdmin(ReadOnly):
    list_display = ["when", "action", "actor", "workspace", "target", "client_ip"]
    list_filter = [TimeRange]
    list_select_related = ["workspace"]
    range_field = "at"
    ranges = {
        "any time": None,
        "last 24 hours": timedelta(hours=24),
        "last 7 days": timedelta(days=7),
        "last 30 days": timedelta(days=30),
    }
    ordering = ["-at", "-id"]
    search_help_text = _(
        "An action (key.revoked), an actor's whole e-mail address, a workspace's slug, the id of "
        "what was acted on, or a request id."
    )

    @admin.display(description=_("at (UTC)"))
    def when(self, event: AuditEvent) -> str:
        return f"{event.at:%Y-%m-%d %H:%M:%S}"

    def find(self, queryset: QuerySet[AuditEvent], term: str) -> QuerySet[AuditEvent]:
        # One condition, and so one index, decided by what the words look like.
        if as_uuid(term) is not None:
            done_to = queryset.filter(target=term)
            return done_to if done_to.exists() else queryset.filter(request_id=term)
        if "@" in term:
            return queryset.filter(actor=normal_email(term))
        if "." in term:
            return queryset.filter(action=term)
        if " " in term:  # "key gw_live_Ab12…", "command (root)"
            return queryset.filter(actor=term)
        workspaces = Workspace.objects.filter(slug=term.lower()).values_list("pk", flat=True)
        return queryset.filter(workspace__in=list(workspaces))
