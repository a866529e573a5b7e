"""What people type in the pages. Messages say what to do next."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

from django import forms

from accounts.models import DEFAULT_SCOPES, SCOPES, ApiKey, Plan
from gateway_project.core import clock
from gateway_project.core.api.forms import Form

SCOPE_LABELS = {
    "detect": "Ask for verdicts",
    "batch": "Batches and jobs",
    "webhooks": "Manage webhooks",
    "usage:read": "Read the request log",
    "keys:write": "Manage keys and change their policies (give this to few)",
}
GRACE = (("0", "At once"), ("3600", "In 1 hour"), ("86400", "In 1 day"), ("604800", "In 7 days"))
NETWORKS_MAX = 50


def moment_input() -> forms.DateTimeInput:
    return forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


class KeyForm(Form):
    name = forms.CharField(max_length=100, initial="API key")
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {SCOPE_LABELS[scope]}") for scope in SCOPES],
        initial=list(DEFAULT_SCOPES),
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one scope, or the key could do nothing."},
    )
    allowed_cidrs = forms.CharField(
        required=False,
        label="Networks it may be used from",
        help_text="One a line, such as 203.0.113.0/24. Empty: from anywhere.",
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires (UTC)",
        help_text="Empty: never.",
        widget=moment_input(),
    )
    rate_limit_per_minute = forms.IntegerField(min_value=1, label="Requests per minute")
    rate_limit_per_day = forms.IntegerField(min_value=1, label="Requests per day")

    def __init__(self, plan: Plan, data: Any = None) -> None:
        super().__init__(data)
        for name in ("rate_limit_per_minute", "rate_limit_per_day"):
            most = getattr(plan, name)
            field = self.fields[name]
            field.initial = most
            field.help_text = f"At most {most:,} on the plan “{plan.name}”."
            field.widget.attrs["max"] = most

    def clean_allowed_cidrs(self) -> list[str]:
        lines = [line.strip() for line in self.cleaned_data["allowed_cidrs"].splitlines()]
        found = []
        for line in filter(None, lines):
            try:
                found.append(str(ipaddress.ip_network(line)))
            except ValueError:
                raise forms.ValidationError(
                    f"“{line[:60]}” is no network. Write it like 203.0.113.0/24 or 2001:db8::/32, "
                    "with zeros after the prefix."
                ) from None
        if len(found) > NETWORKS_MAX:
            raise forms.ValidationError(f"At most {NETWORKS_MAX} networks. Join neighbours.")
        return found

    def clean_expires_at(self) -> Any:
        value = self.cleaned_data["expires_at"]
        if value is not None and value <= clock.now():
            raise forms.ValidationError("This time is past. Choose a later one, or leave it empty.")
        return value


class RotateForm(Form):
    grace_seconds = forms.TypedChoiceField(
        choices=GRACE, coerce=int, initial="86400", label="The old key stops"
    )


class RevokeForm(Form):
    name = forms.CharField(label="Type the key's name to confirm", strip=True)

    def __init__(self, key: ApiKey, data: Any = None) -> None:
        super().__init__(data)
        self.key = key

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name != self.key.name.strip():
            raise forms.ValidationError(f"This is not its name. Type “{self.key.name}” exactly.")
        return name


class SpanForm(Form):
    """With `since` and `until`, of which either may be missing."""

    def clean(self) -> dict[str, Any]:
        since, until = self.cleaned_data.get("since"), self.cleaned_data.get("until")
        if since and until and since >= until:
            self.add_error("until", "This is before “since”. Choose a later time.")
        return self.cleaned_data


class RequestFilter(SpanForm):
    """Filters of the log, from the query string; a wrong one is told, not ignored."""

    key = forms.TypedChoiceField(required=False, coerce=UUID, empty_value=None)
    status = forms.TypedChoiceField(
        required=False,
        coerce=int,
        empty_value=None,
        choices=[
            ("", "Any status"),
            ("2", "Answered (2xx)"),
            ("4", "Refused (4xx)"),
            ("5", "Failed (5xx)"),
        ],
    )
    decision = forms.ChoiceField(
        required=False,
        choices=[
            ("", "Any decision"),
            ("allow", "Allow"),
            ("review", "Review"),
            ("flag", "Flag"),
        ],
    )
    since = forms.DateTimeField(required=False, label="Since (UTC)", widget=moment_input())
    until = forms.DateTimeField(required=False, label="Until (UTC)", widget=moment_input())

    def __init__(self, keys: Iterable[ApiKey], data: Any = None) -> None:
        super().__init__(data)
        names = [("", "Any key"), *((str(key.pk), key.name) for key in keys)]
        cast(forms.TypedChoiceField, self.fields["key"]).choices = names
