"""API keys. The text of one is shown once, when it is made; neither it nor its hash ever again."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from pydantic import ValidationError

from accounts import services
from accounts.admin.actions import act
from accounts.admin.lists import (
    KEY_PREFIX,
    Choice,
    SuperusersAct,
    actor_of,
    as_uuid,
    keys_like,
)
from accounts.admin.people import usage_of
from accounts.models import DEFAULT_SCOPES, SCOPES, ApiKey, Workspace
from accounts.schemas import KeyRequest
from accounts.services import Actor
from gateway_project.core.api.forms import Form, ModelForm


class LinesField(forms.CharField):
    """A list of words, one a line."""

    widget = forms.Textarea(attrs={"rows": 3, "cols": 60})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        lines = value if isinstance(value, list) else (value or "").splitlines()
        return [line.strip() for line in lines if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return bool(self.to_python(initial) != self.to_python(data))


class KeyForm(ModelForm):
    """The API's rules for the fields of a key, except that staff may go beyond the plan."""

    scopes = forms.MultipleChoiceField(
        label=_("Scopes"),
        choices=[(scope, scope) for scope in SCOPES],
        initial=DEFAULT_SCOPES,
        widget=forms.CheckboxSelectMultiple,
    )
    allowed_cidrs = LinesField(
        label=_("Networks"),
        required=False,
        help_text=_("One a line, such as 203.0.113.0/24; empty: any."),
    )

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        for field in set(values) & (set(KeyRequest.model_fields) - {"expires_at"}):
            model = KeyRequest.model_construct()
            try:
                KeyRequest.__pydantic_validator__.validate_assignment(model, field, values[field])
            except ValidationError as exc:
                self.add_error(field, "; ".join(error["msg"] for error in exc.errors()))
            else:
                values[field] = getattr(model, field)
        return values


class LimitsForm(Form):
    per_minute = forms.IntegerField(
        min_value=1,
        max_value=2_000_000_000,
        required=False,
        label=_("Requests per minute"),
        help_text=_("Empty: as it is."),
    )
    per_day = forms.IntegerField(
        min_value=1,
        max_value=2_000_000_000,
        required=False,
        label=_("Requests per day"),
        help_text=_("Empty: as it is."),
    )

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and not any(values.values()):
            raise forms.ValidationError(gettext("Give at least one limit."))
        return values


def change_limits(
    key: ApiKey, *, actor: Actor, per_minute: int | None, per_day: int | None
) -> bool:
    """Staff may go beyond the plan; the workspace's day quota holds all the same."""
    given = {"rate_limit_per_minute": per_minute, "rate_limit_per_day": per_day}
    changes = {
        name: limit
        for name, limit in given.items()
        if limit is not None and limit != getattr(key, name)
    }
    if not changes or key.revoked_at is not None:
        return False
    services.update_key(key, changes, actor=actor, within_plan=False)
    return True


def revoke(key: ApiKey, *, actor: Actor) -> bool:
    if key.revoked_at is not None:
        return False
    services.revoke_key(key, actor=actor)
    return True


class KeyState(Choice):
    title = _("state")
    parameter_name = "state"
    default = {"is_session": False}
    options = {
        "revoked": (_("Revoked"), {"revoked_at__isnull": False}),
        "playground": (_("Of playgrounds"), {"is_session": True}),
    }


@admin.register(ApiKey)
class ApiKeyAdmin(SuperusersAct):
    form = KeyForm
    list_display = [
        "name",
        "shown",
        "workspace",
        "status",
        "rate_limit_per_minute",
        "rate_limit_per_day",
        "last_used_at",
        "created_at",
    ]
    list_filter = [KeyState]
    list_select_related = ["workspace"]
    search_help_text = _(
        "A key as lists show it (gw_live_Ab12 or gw_live_Ab12…9xYz), a workspace's slug, or an id."
    )
    autocomplete_fields = ["workspace"]
    actions = [
        act(
            "change_limits",
            _("Change the limits"),
            means=_("They count from the next call on, and may go beyond the plan."),
            run=change_limits,
            form=LimitsForm,
            applies=lambda key: key.revoked_at is None,
        ),
        act(
            "revoke",
            _("Revoke"),
            means=_("Refused within a second, for good: nobody can take it back."),
            run=revoke,
            is_grave=True,
            applies=lambda key: key.revoked_at is None,
        ),
    ]
    own_fields = [
        "name",
        "scopes",
        "allowed_cidrs",
        "rate_limit_per_minute",
        "rate_limit_per_day",
        "expires_at",
    ]
    facts = [
        *("shown", "status", "created_at", "last_used_at", "last_used_ip"),
        *("grace_until", "revoked_at", "usage"),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiKey]:
        return super().get_queryset(request).defer("detection_policy")

    @admin.display(description=_("key"))
    def shown(self, key: ApiKey) -> str:
        return f"{key.prefix}…{key.last4}"

    @admin.display(description=_("usage of 30 days"))
    def usage(self, key: ApiKey) -> str:
        return usage_of(key.pk)

    def find(self, queryset: QuerySet[ApiKey], term: str) -> QuerySet[ApiKey]:
        wanted = as_uuid(term)
        if wanted is not None:
            return queryset.filter(pk=wanted)
        if term.startswith(KEY_PREFIX):
            return queryset.filter(pk__in=keys_like(term).values("pk"))
        return queryset.filter(workspace__in=Workspace.objects.filter(slug=term.lower()))

    def get_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[Any]:
        return ["workspace", *self.own_fields, *(self.facts if obj else [])]

    def get_readonly_fields(self, request: HttpRequest, obj: ApiKey | None = None) -> list[str]:
        if obj is None:
            return []
        if obj.revoked_at is not None:
            return ["workspace", *self.own_fields, *self.facts]
        return ["workspace", *self.facts]

    def save_model(self, request: HttpRequest, obj: ApiKey, form: Any, change: bool) -> None:
        values = {field: form.cleaned_data[field] for field in form.cleaned_data}
        if change:
            changed = {field: values[field] for field in form.changed_data}
            if changed:
                # The form has put what is new on `obj`; the audit trail tells what was before.
                before = ApiKey.objects.select_related("workspace__plan").get(pk=obj.pk)
                services.update_key(before, changed, actor=actor_of(request), within_plan=False)
            return
        workspace = values.pop("workspace")
        made, text = services.issue_key(workspace, actor=actor_of(request), **values)
        obj.__dict__.update(made.__dict__)
        message = gettext("The key, shown this once: <code>{key}</code>")
        messages.success(request, format_html(message, key=text))
