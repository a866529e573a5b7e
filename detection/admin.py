"""Staff's view of jobs, of keys' policies, and of what customers say of verdicts."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, cast

import pydantic
from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, StreamingHttpResponse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.admin.lists import (
    Choice,
    ReadOnly,
    TimeRange,
    actor_of,
    as_uuid,
    at,
    is_superuser,
    link_to,
    of_subject,
)
from accounts.events import audit
from accounts.models import ApiKey
from detection.feedback import services
from detection.models import Feedback, Job, PolicyVersion
from detection.policies import policy
from detection.policies.views import PolicyRequest
from gateway_project.core import errors
from gateway_project.core.api.forms import ModelForm
from gateway_project.core.api.responses import ndjson
from gateway_project.core.language import number

EXPORTED_MAX = 10_000


@admin.display(description=_("workspace"))
def of(row: Job | Feedback) -> str:
    return link_to(row.workspace)


class JobState(Choice):
    title = _("state")
    parameter_name = "state"
    options = {
        "running": (_("Waiting or running"), {"finished_at__isnull": True}),
        "over": (_("Over"), {"finished_at__isnull": False}),
    }


@admin.register(Job)
class JobAdmin(ReadOnly):
    """Without items: their texts are the customer's."""

    list_display = [at, "kind", "status", "progress", "flagged", "failed", of]
    list_filter = [JobState, TimeRange]
    list_select_related = ["workspace"]
    range_field = "created_at"
    ranges = {
        "last 24 hours": timedelta(hours=24),
        "last 7 days": timedelta(days=7),
        "any time": None,
    }
    ordering = ["-created_at"]
    search_help_text = _("A job's id, a workspace's slug, or the id of a workspace.")

    def find(self, queryset: QuerySet[Job], term: str) -> QuerySet[Job]:
        return of_subject(queryset, term, "pk")

    @admin.display(description=_("progress"))
    def progress(self, row: Job) -> str:
        facts = {"done": number(row.done), "total": number(row.total)}
        return gettext("%(done)s of %(total)s") % facts


class PolicyVersionForm(ModelForm):
    """A whole policy, as `PUT /v1/policy` takes it."""

    class Meta:
        model = PolicyVersion
        fields = ("api_key", "policy")

    def clean_api_key(self) -> ApiKey:
        key: ApiKey = self.cleaned_data["api_key"]
        if key.is_ended:
            raise forms.ValidationError(
                gettext("It was revoked or replaced: it never works again.")
            )
        return key

    def clean_policy(self) -> dict[str, Any]:
        try:
            policy_request = PolicyRequest.model_validate(self.cleaned_data["policy"])
        except pydantic.ValidationError as exc:
            wrong = errors.from_pydantic(exc, PolicyRequest).sentences
            raise forms.ValidationError(wrong) from None
        return policy_request.kept()


@admin.register(PolicyVersion)
class PolicyVersionAdmin(ReadOnly):
    """Adding a version puts it in force; what was is never changed."""

    form = PolicyVersionForm
    raw_id_fields = ("api_key",)
    list_display = [at, "version", "actor", "api_key"]
    list_filter = [TimeRange]
    list_select_related = ["api_key"]
    range_field = "created_at"
    ranges = {"last 30 days": timedelta(days=30), "any time": None}
    ordering = ["-created_at"]
    search_help_text = _("The id of a key.")

    def get_queryset(self, request: HttpRequest) -> QuerySet[PolicyVersion]:
        return super().get_queryset(request).defer("policy", "api_key__detection_policy")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return is_superuser(request)

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return (
            ("api_key", "policy")
            if obj is None
            else ("api_key", "version", "policy", "actor", "created_at")
        )

    def save_model(self, request: HttpRequest, obj: PolicyVersion, form: Any, change: bool) -> None:
        key = cast(ApiKey, obj.api_key)  # the form asks for one
        saved = policy.save(key, obj.policy, actor=actor_of(request))
        obj.pk, obj.version = saved.pk, saved.version

    def find(self, queryset: QuerySet[PolicyVersion], term: str) -> QuerySet[PolicyVersion]:
        wanted = as_uuid(term)
        return queryset.filter(subject_id=wanted) if wanted else queryset.none()


class FeedbackVerdict(Choice):
    title = _("verdict")
    parameter_name = "verdict"
    options = {
        Feedback.Verdict.FALSE_POSITIVE: (_("False alarms"), {"verdict": "false_positive"}),
        Feedback.Verdict.FALSE_NEGATIVE: (_("Missed attacks"), {"verdict": "false_negative"}),
        Feedback.Verdict.CORRECT: (_("Right"), {"verdict": "correct"}),
    }


@admin.register(Feedback)
class FeedbackAdmin(ReadOnly):
    list_display = [at, "verdict", "score", "decision", "source", "request_id", of]
    list_filter = [FeedbackVerdict, TimeRange]
    list_select_related = ["workspace"]
    range_field = "created_at"
    ranges = {
        "any time": None,
        "last 24 hours": timedelta(hours=24),
        "last 7 days": timedelta(days=7),
        "last 30 days": timedelta(days=30),
    }
    ordering = ["-created_at", "-id"]
    search_help_text = _(
        "A request id, a workspace's slug, a key as lists show it, or the id of a key or workspace."
    )
    actions = ["export"]

    def find(self, queryset: QuerySet[Feedback], term: str) -> QuerySet[Feedback]:
        return of_subject(queryset, term, "request_id")

    @admin.display(description=_("score"))
    def score(self, row: Feedback) -> str:
        return number(row.confidence, ".3f")

    def has_export_permission(self, request: HttpRequest) -> bool:
        """Texts of customers: like every act, for superusers."""
        return is_superuser(request)

    @admin.action(description=_("Export as JSONL"), permissions=["export"])
    def export(
        self, request: HttpRequest, queryset: QuerySet[Feedback]
    ) -> StreamingHttpResponse | None:
        """What `manage.py evaluate` reads, of the rows whose texts are stored."""
        rows = list(queryset[: EXPORTED_MAX + 1])
        if len(rows) > EXPORTED_MAX:
            text = gettext("At most %(most)s rows at once. Narrow the list.")
            text %= {"most": number(EXPORTED_MAX)}
            self.message_user(request, text, messages.ERROR)
            return None
        stored = services.count_stored(rows)
        left_out = len(rows) - stored
        facts = {"stored": number(stored), "all": number(len(rows)), "left": number(left_out)}
        text = gettext("Exported %(stored)s of %(all)s.")
        if left_out:
            text += " " + gettext(
                "Of %(left)s no text is stored; their keys' policies do not ask for it."
            )
        text %= facts
        self.message_user(request, text, messages.SUCCESS if stored else messages.WARNING)
        if not stored:
            return None
        audit("feedback.exported", rows=stored, **actor_of(request).fields())
        headers = {
            "Content-Disposition": 'attachment; filename="feedback.jsonl"',
            "Cache-Control": "no-store",
        }
        return ndjson(services.jsonl(rows), **headers)

    # As `accounts.admin.actions` says: the page of one row offers it.
    export.applies = lambda row: True  # type: ignore[attr-defined]
