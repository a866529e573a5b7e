"""Staff's view of background work and of what lies parked. What is parked may hold
customers' texts, and is on no page."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django_celery_beat.models import PeriodicTask

from accounts.admin.actions import act
from accounts.admin.lists import SuperusersAct, TimeRange, as_uuid, at
from accounts.models import Parked, Workspace
from gateway_project.staff import parked
from gateway_project.staff.site import BackgroundWork

admin.site.register(PeriodicTask, BackgroundWork)


@admin.register(Parked)
class ParkedAdmin(SuperusersAct):
    list_display = [at, "kind", "origin", "workspace", "error", "payload_bytes", "attempts"]
    list_filter = [TimeRange]
    list_select_related = ["workspace"]
    range_field = "created_at"
    ranges = {"any time": None}
    search_help_text = "A kind (usage.row), where it came from, or a workspace's slug or id."
    readonly_fields = [
        *("kind", "origin", "workspace", "error", "payload_bytes", "attempts", "created_at"),
    ]
    exclude = ["payload"]
    actions = [
        act(
            "rerun",
            "Run again",
            means="What was refused is tried once more, and is no longer parked when it is taken.",
            run=parked.rerun,
            applies=lambda row: row.kind in parked.RERUN,
        ),
        act(
            "discard",
            "Throw away",
            means="Nobody can bring it back.",
            run=parked.discard,
            is_grave=True,
        ),
    ]

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def find(self, queryset: QuerySet[Parked], term: str) -> QuerySet[Parked]:
        if (wanted := as_uuid(term)) is not None:
            return queryset.filter(workspace=wanted) | queryset.filter(origin=term)
        if "." in term:
            return queryset.filter(kind=term)
        workspaces = Workspace.objects.filter(slug=term.lower()).values_list("pk", flat=True)
        found = list(workspaces)
        return queryset.filter(workspace__in=found) if found else queryset.filter(origin=term)
