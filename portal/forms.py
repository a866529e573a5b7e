"""What people type in the pages. Messages say what to do next."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, cast
from uuid import UUID

from django import forms
from django.core.validators import MaxValueValidator

from accounts.models import SCOPES, ApiKey, Plan
from accounts.usage.reading import class_of
from detection.policies.policy import THREAT_TYPES
from gateway_project.core import clock
from gateway_project.core.api.forms import Form
from gateway_project.core.errors import registered

SCOPE_LABELS = {
    "detect": "Ask for verdicts",
    "batch": "Batches and jobs",
    "webhooks": "Manage webhooks",
    "usage:read": "Read the request log",
    "keys:write": "Manage keys and change their policies (give this to few)",
    "audit:read": "Read who did what",
}
GRACE = (("0", "At once"), ("3600", "In 1 hour"), ("86400", "In 1 day"), ("604800", "In 7 days"))
NETWORKS_MAX = 50
TAGS_MAX, TAG_CHARS_MAX = 10, 40


def moment_input() -> forms.DateTimeInput:
    return forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


class KeyForm(Form):
    """A name is enough: the rest is folded, and has what a key of a program needs."""

    FOLDED = (
        *("scopes", "tags", "owner", "allowed_cidrs", "expires_at"),
        *("rate_limit_per_minute", "rate_limit_per_day"),
    )

    name = forms.CharField(max_length=100)
    is_test = forms.BooleanField(
        required=False, label="A test key: never billed, and with a trial's limits"
    )
    scopes = forms.MultipleChoiceField(
        choices=[(scope, f"{scope}: {SCOPE_LABELS[scope]}") for scope in SCOPES],
        initial=["detect"],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": "Choose at least one scope, or the key could do nothing."},
    )
    tags = forms.CharField(
        required=False, max_length=450, help_text="With commas between, such as shop, eu."
    )
    owner = forms.CharField(
        required=False, max_length=254, label="Owner", help_text="Who looks after it."
    )
    allowed_cidrs = forms.CharField(
        required=False,
        label="Networks it may be used from",
        help_text="One a line, such as 203.0.113.0/24. Empty: from anywhere.",
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    expires_at = forms.DateTimeField(
        required=False,
        label="Expires",
        help_text="Empty: never.",
        widget=moment_input(),
    )
    rate_limit_per_minute = forms.IntegerField(
        min_value=1, required=False, label="Requests per minute"
    )
    rate_limit_per_day = forms.IntegerField(min_value=1, required=False, label="Requests per day")

    def __init__(self, plan: Plan, data: Any = None) -> None:
        super().__init__(data)
        for name in ("rate_limit_per_minute", "rate_limit_per_day"):
            most = getattr(plan, name)
            field = self.fields[name]
            field.help_text = f"Empty: {most:,}, the most on the plan “{plan.name}”."
            field.widget.attrs["max"] = most
            field.validators.append(
                MaxValueValidator(most, f"At most {most:,} on the plan “{plan.name}”.")
            )

    @property
    def folded(self) -> list[forms.BoundField]:
        return [self[name] for name in self.FOLDED]

    @property
    def shown(self) -> list[forms.BoundField]:
        return [self[name] for name in self.fields if name not in self.FOLDED]

    @property
    def is_open(self) -> bool:
        """Whether something that is folded needs another look."""
        return any(name in self.errors for name in self.FOLDED)

    def clean_tags(self) -> list[str]:
        tags = list(dict.fromkeys(tag.strip() for tag in self.cleaned_data["tags"].split(",")))
        tags = [tag for tag in tags if tag]
        if len(tags) > TAGS_MAX or any(len(tag) > TAG_CHARS_MAX for tag in tags):
            raise forms.ValidationError(
                f"At most {TAGS_MAX} tags of {TAG_CHARS_MAX} characters each."
            )
        return tags

    def clean_allowed_cidrs(self) -> list[str]:
        lines = [line.strip() for line in self.cleaned_data["allowed_cidrs"].splitlines()]
        found = []
        for line in filter(None, lines):
            try:
                found.append(str(ipaddress.ip_network(line)))
            except ValueError:
                raise forms.ValidationError(
                    f"“{line[:60]}” is not a network. Write it like 203.0.113.0/24 or "
                    "2001:db8::/32, with zeros after the prefix."
                ) from None
        if len(found) > NETWORKS_MAX:
            raise forms.ValidationError(f"At most {NETWORKS_MAX} networks. Join neighbours.")
        return found

    def clean_expires_at(self) -> Any:
        value = self.cleaned_data["expires_at"]
        if value is not None and value <= clock.now():
            raise forms.ValidationError("This time is past. Choose a later one, or leave it empty.")
        return value


class KeyEditForm(KeyForm):
    """All that `PATCH /v1/keys/{id}` changes. What was kept stays valid: also an expiry past."""

    def __init__(self, key: ApiKey, data: Any = None) -> None:
        super().__init__(key.workspace.plan, data)
        self.key = key
        del self.fields["is_test"]
        self.initial = {
            **{name: getattr(key, name) for name in ("name", "scopes", "owner", "expires_at")},
            "tags": ", ".join(key.tags),
            "allowed_cidrs": "\n".join(key.allowed_cidrs),
            "rate_limit_per_minute": key.rate_limit_per_minute,
            "rate_limit_per_day": key.rate_limit_per_day,
        }
        for name in ("rate_limit_per_minute", "rate_limit_per_day"):
            field = cast(forms.IntegerField, self.fields[name])
            field.required = True
            # What operators gave beyond the plan may stay as it is.
            if getattr(key, name) > getattr(key.workspace.plan, name):
                field.validators = [
                    v for v in field.validators if not isinstance(v, MaxValueValidator)
                ]
                field.widget.attrs.pop("max", None)

    def clean_expires_at(self) -> Any:
        value = self.cleaned_data["expires_at"]
        if value is not None and self.key.expires_at is not None:
            kept = self.key.expires_at.replace(second=0, microsecond=0)
            if value == kept:
                return self.key.expires_at
        return super().clean_expires_at()

    def changes(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.cleaned_data.items()
            if value != getattr(self.key, name)
        }


class KeyFilter(Form):
    """The list of keys, from the query string; what is wrong is left out."""

    q = forms.CharField(required=False, max_length=100, label="Search")
    state = forms.ChoiceField(
        required=False,
        choices=[
            ("", "Working"),
            ("all", "All"),
            ("grace", "In grace"),
            ("ended", "Revoked or expired"),
        ],
    )
    sort = forms.ChoiceField(
        required=False,
        choices=[("", "Newest"), ("name", "Name"), ("used", "Last used"), ("expires", "Expiry")],
    )


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
    status = forms.RegexField(
        r"^[1-5](xx|[0-9]{2})?$",
        required=False,
        error_messages={"invalid": "Write it like 429, or 4xx for all of its class."},
        widget=forms.TextInput(attrs={"list": "statuses", "placeholder": "Any", "size": 6}),
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
    error = forms.ChoiceField(required=False, label="Error code")
    threat = forms.ChoiceField(
        required=False,
        label="Threat",
        choices=[("", "Any threat"), *((name, name.replace("_", " ")) for name in THREAT_TYPES)],
    )
    batch = forms.UUIDField(required=False, widget=forms.HiddenInput)
    since = forms.DateTimeField(required=False, label="Since", widget=moment_input())
    until = forms.DateTimeField(required=False, label="Until", widget=moment_input())

    def __init__(self, keys: Iterable[ApiKey], data: Any = None) -> None:
        super().__init__(data)
        names = [("", "Any key"), *((str(key.pk), key.name) for key in keys)]
        cast(forms.TypedChoiceField, self.fields["key"]).choices = names
        codes = [("", "Any"), *((code, code) for code in sorted(registered()))]
        cast(forms.ChoiceField, self.fields["error"]).choices = codes

    def conditions(self) -> dict[str, Any]:
        """As `accounts.usage.reading.page` takes them."""
        wanted = self.cleaned_data
        return {
            "api_key_id": wanted["key"],
            "statuses": self._statuses(wanted["status"]),
            "decision": wanted["decision"],
            "error_code": wanted["error"],
            "threat": wanted["threat"],
            "batch": str(wanted["batch"] or ""),
            "since": wanted["since"],
            "until": wanted["until"],
        }

    @staticmethod
    def _statuses(text: str) -> range | None:
        if not text:
            return None
        if len(text) == 3 and text.isdigit():
            return range(int(text), int(text) + 1)
        return class_of(int(text[0]))
