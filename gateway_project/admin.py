"""Staff's view of plans, of background work and of what lies parked. What is parked may hold
customers' texts, and is on no page."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from django_celery_beat.models import PeriodicTask

from accounts import moderation
from accounts.admin.actions import act
from accounts.admin.lists import SuperusersAct, TimeRange, actor_of, as_uuid, at
from accounts.models import Parked, Plan, Workspace
from gateway_project.core.api.forms import ModelForm
from gateway_project.staff import parked, plans
from gateway_project.staff.actions import reason_field
from gateway_project.staff.site import BackgroundWork

admin.site.register(PeriodicTask, BackgroundWork)


class PlanForm(ModelForm):
    reason = reason_field(_("Another member of staff reads it, and confirms the change."))


@admin.register(Plan)
class PlanAdmin(SuperusersAct):
    list_display = ["name", "rate_limit_per_minute", "rate_limit_per_day", "log_days", "keys_max"]
    ordering = ["rate_limit_per_day", "name"]
    search_help_text = _("The beginning of a name.")

    def find(self, queryset: QuerySet[Plan], term: str) -> QuerySet[Plan]:
        return queryset.filter(name__startswith=term.lower())

    def get_readonly_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[str]:
        return ["name"] if obj else []

    def get_form(
        self, request: HttpRequest, obj: Plan | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """A change that another has to confirm says why."""
        if obj is not None and _waits(request):
            kwargs["form"] = PlanForm
        return super().get_form(request, obj, change, **kwargs)

    def get_fields(self, request: HttpRequest, obj: Plan | None = None) -> list[Any]:
        columns = [field.name for field in Plan._meta.concrete_fields]
        may_propose = obj is not None and self.has_change_permission(request)
        return [*columns, *(["reason"] if may_propose and _waits(request) else [])]

    def save_model(self, request: HttpRequest, obj: Plan, form: Any, change: bool) -> None:
        # Empty: as it is, but where empty says something itself.
        changes = {
            name: form.cleaned_data[name]
            for name in form.changed_data
            if name != "reason"
            and (form.cleaned_data[name] is not None or Plan._meta.get_field(name).null)
        }
        actor = actor_of(request)
        if not change or "reason" not in form.cleaned_data:
            moderation.save_plan(obj, changes, actor=actor)
            return
        reason, by = form.cleaned_data["reason"], request.user
        if plans.propose(obj, changes, reason=reason, by=by, actor=actor):  # type: ignore[arg-type]
            text = gettext(
                'Nothing is changed yet: <a href="{url}">another member of staff confirms it</a>.'
            )
            messages.warning(request, format_html(text, url=reverse("admin:desk-plans")))

    # Django would say, and write down, that it was changed.
    def response_change(self, request: HttpRequest, obj: Plan) -> Any:
        if _waits(request):
            return self.response_post_save_change(request, obj)
        return super().response_change(request, obj)

    def log_change(self, request: HttpRequest, obj: Plan, message: Any) -> Any:
        return None if _waits(request) else super().log_change(request, obj, message)


def _waits(request: Any) -> bool:
    """Whether a change needs a second person: asked once for each request."""
    if not hasattr(request, "plan_changes_wait"):
        request.plan_changes_wait = plans.needs_two()
    return bool(request.plan_changes_wait)


@admin.register(Parked)
class ParkedAdmin(SuperusersAct):
    list_display = [at, "kind", "origin", "workspace", "error", "payload_bytes", "attempts"]
    list_filter = [TimeRange]
    list_select_related = ["workspace"]
    range_field = "created_at"
    ranges = {"any time": None}
    search_help_text = _("A kind (usage.row), where it came from, or a workspace's slug or id.")
    readonly_fields = [
        *("kind", "origin", "workspace", "error", "payload_bytes", "attempts", "created_at"),
    ]
    exclude = ["payload"]
    actions = [
        act(
            "rerun",
            _("Run again"),
            means=_(
                "What was refused is tried once more, and is no longer parked when it is taken."
            ),
            run=parked.rerun,
            applies=lambda row: row.kind in parked.RERUN,
        ),
        act(
            "discard",
            _("Throw away"),
            means=_("Nobody can bring it back."),
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
