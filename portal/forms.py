"""What people type in the pages. Messages say what to do next."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from django import forms
from django.core.validators import MaxValueValidator
from django.forms.utils import flatatt
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext, gettext_lazy, pgettext_lazy

from accounts.models import AUDIT_SCOPE, SCOPES, ApiKey, Plan
from accounts.networks import network_of
from accounts.usage.reading import class_of
from detection.policies.policy import THREAT_TYPES
from gateway_project.core import clock
from gateway_project.core.api.forms import EditForm, Form
from gateway_project.core.errors import registered
from gateway_project.core.language import number
from portal.clocks import in_field
from portal.labels import named

SCOPE_LABELS = {
    "detect": gettext_lazy("Ask for verdicts"),
    "batch": gettext_lazy("Batches and jobs"),
    "webhooks": gettext_lazy("Manage webhooks"),
    "usage:read": gettext_lazy("Read the request log"),
    "keys:write": gettext_lazy("Manage keys and change their policies (give this to few)"),
    "audit:read": gettext_lazy("Read who did what"),
}
GRACE = (
    ("0", gettext_lazy("At once")),
    ("3600", gettext_lazy("In 1 hour")),
    ("86400", gettext_lazy("In 1 day")),
    ("604800", gettext_lazy("In 7 days")),
)
NETWORKS_MAX = 50
TAGS_MAX, TAG_CHARS_MAX = 10, 40


def moment_input() -> forms.DateTimeInput:
    return forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M")


class LongSelect(forms.Select):
    """Of a hundred options and more: Django renders two templates for each of them."""

    def render(self, name: str, value: Any, attrs: Any = None, renderer: Any = None) -> SafeString:
        widget = self.get_context(name, value, attrs)["widget"]
        options = format_html_join(
            "",
            "<option{}>{}</option>",
            (
                (flatatt({"value": option["value"], **option["attrs"]}), option["label"])
                for _, group, _ in widget["optgroups"]
                for option in group
            ),
        )
        return format_html(
            "<select{}>{}</select>", flatatt({"name": name, **widget["attrs"]}), options
        )


class MomentField(forms.DateTimeField):
    """A moment of the page's clock, or with an offset of its own.

    The hour that clocks show twice in autumn is the first of the two; with `is_end` the second, so
    that a span loses nothing. One that clocks jump over in spring is the hour after it.
    """

    def __init__(self, *, is_end: bool = False, **options: Any) -> None:
        super().__init__(**options, widget=moment_input())
        self.is_end = is_end

    def to_python(self, value: Any) -> datetime | None:
        if not isinstance(value, str) or not value.strip():
            return super().to_python(value)
        found = _parsed(value)
        try:
            if found is None:
                raise ValueError
            if timezone.is_naive(found):
                zone = timezone.get_current_timezone()
                found = found.replace(tzinfo=zone, fold=int(self.is_end))
            return found.astimezone(UTC)
        except (ValueError, OverflowError):
            raise forms.ValidationError(self.error_messages["invalid"], "invalid") from None

    def has_changed(self, initial: Any, data: Any) -> bool:
        """A page shows whole minutes."""
        try:
            before, after = self.to_python(initial), self.to_python(data)
        except forms.ValidationError:
            return True
        return _minute(before) != _minute(after)

    def prepare_value(self, value: Any) -> Any:
        found = _parsed(value) if isinstance(value, str) else None
        if found is not None and timezone.is_aware(found):
            with suppress(OverflowError):
                return in_field(found)
        return super().prepare_value(value)


def _minute(at: datetime | None) -> datetime | None:
    return at and at.replace(second=0, microsecond=0)


def _parsed(text: str) -> datetime | None:
    try:
        return parse_datetime(text.strip())
    except ValueError:  # well-formed, but no such day
        return None


class KeyForm(Form):
    """A name is enough: the rest is folded, and has what a key of a program needs."""

    FOLDED = (
        *("scopes", "tags", "owner", "allowed_cidrs", "expires_at"),
        *("rate_limit_per_minute", "rate_limit_per_day"),
    )

    name = forms.CharField(max_length=100, label=gettext_lazy("Name"))
    is_test = forms.BooleanField(
        required=False, label=gettext_lazy("A test key: never billed, and with a trial's limits")
    )
    scopes = forms.MultipleChoiceField(
        label=gettext_lazy("Scopes"),
        initial=["detect"],
        widget=forms.CheckboxSelectMultiple,
        error_messages={
            "required": gettext_lazy("Choose at least one scope, or the key could do nothing.")
        },
    )
    tags = forms.CharField(
        required=False,
        max_length=450,
        label=gettext_lazy("Tags"),
        help_text=gettext_lazy("With commas between, such as shop, eu."),
    )
    owner = forms.CharField(
        required=False,
        max_length=254,
        label=pgettext_lazy("of a key", "Owner"),
        help_text=gettext_lazy("Who looks after it."),
    )
    allowed_cidrs = forms.CharField(
        required=False,
        label=gettext_lazy("Networks it may be used from"),
        help_text=gettext_lazy("One a line, such as 203.0.113.0/24. Empty: from anywhere."),
        widget=forms.Textarea(attrs={"rows": 2}),
    )
    expires_at = MomentField(
        required=False, label=gettext_lazy("Expires"), help_text=gettext_lazy("Empty: never.")
    )
    rate_limit_per_minute = forms.IntegerField(
        min_value=1, required=False, label=gettext_lazy("Requests per minute")
    )
    rate_limit_per_day = forms.IntegerField(
        min_value=1, required=False, label=gettext_lazy("Requests per day")
    )

    def __init__(self, plan: Plan, data: Any = None, *, can_audit: bool = True) -> None:
        super().__init__(data)
        cast(forms.MultipleChoiceField, self.fields["scopes"]).choices = [
            (scope, format_lazy("{}: {}", scope, SCOPE_LABELS[scope]))
            for scope in SCOPES
            if can_audit or scope != AUDIT_SCOPE
        ]
        for name in ("rate_limit_per_minute", "rate_limit_per_day"):
            most = getattr(plan, name)
            field = self.fields[name]
            facts = {"most": number(most), "plan": plan.name}
            field.help_text = gettext("Empty: %(most)s, the most on the plan “%(plan)s”.") % facts
            field.widget.attrs["max"] = most
            field.validators.append(
                MaxValueValidator(most, gettext("At most %(most)s on the plan “%(plan)s”.") % facts)
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
                gettext("At most %(tags)s tags of %(characters)s characters each.")
                % {"tags": TAGS_MAX, "characters": TAG_CHARS_MAX}
            )
        return tags

    def clean_allowed_cidrs(self) -> list[str]:
        lines = [line.strip() for line in self.cleaned_data["allowed_cidrs"].splitlines()]
        found = []
        for line in filter(None, lines):
            try:
                found.append(str(network_of(line)))
            except ValueError:
                raise forms.ValidationError(
                    gettext(
                        "“%(text)s” is not a network. Write it like 203.0.113.0/24 or "
                        "2001:db8::/32, with zeros after the prefix."
                    )
                    % {"text": line[:60]}
                ) from None
        if len(found) > NETWORKS_MAX:
            raise forms.ValidationError(
                gettext("At most %(networks)s networks. Join neighbours.")
                % {"networks": NETWORKS_MAX}
            )
        return found

    def clean_expires_at(self) -> Any:
        value = self.cleaned_data["expires_at"]
        if value is not None and value <= clock.now():
            raise forms.ValidationError(
                gettext("This time is past. Choose a later one, or leave it empty.")
            )
        return value


class KeyEditForm(EditForm, KeyForm):
    """All that `PATCH /v1/keys/{id}` changes. What was kept stays valid: also an expiry past."""

    def __init__(self, key: ApiKey, data: Any = None, *, can_audit: bool = True) -> None:
        has_audit = AUDIT_SCOPE in key.scopes  # and keeps it
        super().__init__(key.workspace.plan, data, can_audit=can_audit or has_audit)
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
        if "expires_at" not in self.changed_data:
            return self.key.expires_at
        return super().clean_expires_at()

    def changes(self) -> dict[str, Any]:
        """Without what is only written in another way."""
        changed = super().changes().items()
        return {name: value for name, value in changed if value != getattr(self.key, name)}


class KeyFilter(Form):
    """The list of keys, from the query string; what is wrong is left out."""

    q = forms.CharField(required=False, max_length=100, label=gettext_lazy("Search"))
    state = forms.ChoiceField(
        required=False,
        label=gettext_lazy("State"),
        choices=[
            ("", gettext_lazy("Working")),
            ("all", gettext_lazy("All")),
            ("grace", gettext_lazy("In grace")),
            ("ended", gettext_lazy("Revoked or expired")),
        ],
    )
    sort = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Sort"),
        choices=[
            ("", gettext_lazy("Newest")),
            ("name", gettext_lazy("Name")),
            ("used", gettext_lazy("Last used")),
            ("expires", gettext_lazy("Expiry")),
        ],
    )


class RotateForm(Form):
    grace_seconds = forms.TypedChoiceField(
        choices=GRACE, coerce=int, initial="86400", label=gettext_lazy("The old key stops")
    )


class RevokeForm(Form):
    name = forms.CharField(label=gettext_lazy("Type the key's name to confirm"), strip=True)

    def __init__(self, key: ApiKey, data: Any = None) -> None:
        super().__init__(data)
        self.key = key

    def clean_name(self) -> str:
        name: str = self.cleaned_data["name"]
        if name != self.key.name.strip():
            raise forms.ValidationError(
                gettext("This is not its name. Type “%(name)s” exactly.") % {"name": self.key.name}
            )
        return name


class SpanForm(Form):
    """With `since` and `until`, of which either may be missing."""

    def clean(self) -> dict[str, Any]:
        since, until = self.cleaned_data.get("since"), self.cleaned_data.get("until")
        if since and until and since >= until:
            self.add_error("until", gettext("This is before “since”. Choose a later time."))
        return self.cleaned_data


class RequestFilter(SpanForm):
    """Filters of the log, from the query string; a wrong one is told, not ignored."""

    key = forms.TypedChoiceField(
        required=False,
        coerce=UUID,
        empty_value=None,
        label=gettext_lazy("Key"),
        widget=LongSelect,
    )
    status = forms.RegexField(
        r"^[1-5](xx|[0-9]{2})?$",
        required=False,
        label=gettext_lazy("Status"),
        error_messages={"invalid": gettext_lazy("Write it like 429, or 4xx for all of its class.")},
        widget=forms.TextInput(
            attrs={"list": "statuses", "placeholder": gettext_lazy("Any"), "size": 6}
        ),
    )
    decision = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Decision"),
        choices=[
            ("", gettext_lazy("Any decision")),
            ("allow", gettext_lazy("Allow")),
            ("review", gettext_lazy("Review")),
            ("flag", gettext_lazy("Flag")),
        ],
    )
    error = forms.ChoiceField(required=False, label=gettext_lazy("Error code"), widget=LongSelect)
    threat = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Threat"),
        choices=[
            ("", gettext_lazy("Any threat")),
            *((name, name.replace("_", " ")) for name in THREAT_TYPES),
        ],
    )
    batch = forms.UUIDField(required=False, widget=forms.HiddenInput)
    correlation = forms.CharField(required=False, max_length=128, widget=forms.HiddenInput)
    since = MomentField(required=False, label=gettext_lazy("Since"))
    until = MomentField(required=False, label=gettext_lazy("Until"), is_end=True)

    def __init__(self, keys: Iterable[ApiKey], data: Any = None) -> None:
        super().__init__(data)
        names = [("", gettext("Any key")), *((str(key.pk), named(key)) for key in keys)]
        cast(forms.TypedChoiceField, self.fields["key"]).choices = names
        codes = [("", gettext("Any")), *((code, code) for code in sorted(registered()))]
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
            "correlation": wanted["correlation"],
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
