"""What people type about webhooks. The rules are the API's (`webhooks/schemas.py`)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from django import forms
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import format_lazy
from django.utils.translation import gettext, gettext_lazy

from accounts import audit
from gateway_project.core.api.forms import EditForm, Form
from gateway_project.core.upstream import destinations
from portal.forms import GRACE, MomentField, SpanForm
from portal.labels import coded
from webhooks import catalogue
from webhooks.delivery.schedule import ATTEMPTS_MAX
from webhooks.models import Webhook, WebhookDelivery

PASTED_CHARS_MAX = 100_000
URL_HELP = gettext_lazy(
    "https, on port 443 or 8443, at a public address. Answer 2xx within 15 seconds."
)


def _labelled(event: catalogue.EventType) -> SafeString:
    """One piece, since what stands in a label beside its box is laid out side by side."""
    return format_html("<span>{}: {}</span>", event.name, coded(gettext(event.description)))


class WebhookForm(Form):
    url = forms.CharField(max_length=2048, label=gettext_lazy("Address"), help_text=URL_HELP)
    events = forms.MultipleChoiceField(
        label=gettext_lazy("Events"),
        initial=["detection.flagged"],
        widget=forms.CheckboxSelectMultiple,
        error_messages={
            "required": gettext_lazy("Choose at least one event, or nothing would be sent.")
        },
    )
    description = forms.CharField(max_length=200, required=False, label=gettext_lazy("Description"))
    retry_count = forms.IntegerField(
        min_value=0,
        max_value=ATTEMPTS_MAX - 1,
        required=False,
        label=gettext_lazy("Attempts after the first"),
        help_text=format_lazy(
            gettext_lazy("Empty: the whole schedule, {number} over about three days."),
            number=ATTEMPTS_MAX - 1,
        ),
    )

    def __init__(
        self,
        data: Any = None,
        *,
        kept: Collection[str] = (),
        is_robins: bool = True,
        can_audit: bool = True,
    ) -> None:
        super().__init__(data)
        field = cast(forms.MultipleChoiceField, self.fields["events"])
        field.choices = [
            (event.name, _labelled(event))
            for event in catalogue.TYPES
            if (is_robins or event.name in kept or not event.name.startswith("queue."))
            and (can_audit or event.name != audit.RECORDED)
        ]

    def clean_url(self) -> str:
        url: str = self.cleaned_data["url"]
        try:
            destinations.check(url)
        except destinations.Refused as exc:
            raise forms.ValidationError(exc.sentence.translated()) from None
        return url


class WebhookEditForm(EditForm, WebhookForm):
    def __init__(self, webhook: Webhook, data: Any = None, **options: Any) -> None:
        super().__init__(data, kept=webhook.events, **options)
        self.initial = {name: getattr(webhook, name) for name in self.fields}
        if webhook.inbox_id is not None:
            del self.fields["url"]  # the inbox has but one

    def clean_url(self) -> str:
        return super().clean_url() if "url" in self.changed_data else self.cleaned_data["url"]


class RotateSecretForm(Form):
    overlap_seconds = forms.TypedChoiceField(
        choices=GRACE,
        coerce=int,
        initial="86400",
        label=gettext_lazy("The old secret stops signing"),
    )


class TestForm(Form):
    ids = "test_%s"
    event = forms.ChoiceField(
        choices=[(event.name, event.name) for event in catalogue.TYPES],
        initial="webhook.test",
        label=gettext_lazy("Example of"),
    )


class RecoverForm(SpanForm):
    ids = "recover_%s"
    since = MomentField(label=gettext_lazy("Since"))
    until = MomentField(
        required=False,
        label=gettext_lazy("Until"),
        help_text=gettext_lazy("Empty: now."),
        is_end=True,
    )


class DeliveryFilter(SpanForm):
    """Filters of the delivery log, from the query string; a wrong one is told, not ignored."""

    status = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Status"),
        choices=[
            ("", gettext_lazy("Any state")),
            (WebhookDelivery.Status.PENDING, gettext_lazy("On its way")),
            (WebhookDelivery.Status.DELIVERED, gettext_lazy("Delivered")),
            (WebhookDelivery.Status.FAILED, gettext_lazy("Failed")),
        ],
    )
    event = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Event"),
        choices=[
            ("", gettext_lazy("Any event")),
            *((event.name, event.name) for event in catalogue.TYPES),
        ],
    )
    since = MomentField(required=False, label=gettext_lazy("Since"))
    until = MomentField(required=False, label=gettext_lazy("Until"), is_end=True)

    def conditions(self) -> dict[str, Any]:
        wanted = self.cleaned_data
        found = {
            "status": wanted["status"],
            "event_type": wanted["event"],
            "created_at__gte": wanted["since"],
            "created_at__lt": wanted["until"],
        }
        return {name: value for name, value in found.items() if value}


class DebugForm(Form):
    headers = forms.CharField(
        max_length=PASTED_CHARS_MAX,
        label=gettext_lazy("Headers as your receiver got them"),
        help_text=gettext_lazy("One a line. Only the three that begin with webhook- are read."),
        widget=forms.Textarea(attrs={"rows": 5, "spellcheck": "false", "class": "mono"}),
    )
    body = forms.CharField(
        max_length=PASTED_CHARS_MAX,
        required=False,
        strip=False,
        label=gettext_lazy("Body, byte for byte"),
        widget=forms.Textarea(attrs={"rows": 7, "spellcheck": "false", "class": "mono"}),
    )
    secret = forms.CharField(
        max_length=500,
        required=False,
        strip=False,
        label=gettext_lazy("Secret your receiver uses"),
        help_text=gettext_lazy("May stay empty. It is compared and kept nowhere."),
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
    )

    def clean_body(self) -> bytes:
        # Browsers send every line break of a text area as CR LF.
        body: str = self.cleaned_data["body"]
        return body.replace("\r\n", "\n").encode(errors="replace")
