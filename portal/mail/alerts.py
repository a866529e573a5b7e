"""What operators want to be told of: thresholds, whom a mail tells, what was told of late."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponseBase
from django.shortcuts import redirect
from django.utils.translation import gettext, gettext_lazy, gettext_noop

from accounts.models import Workspace, normal_email
from gateway_project.core import errors
from gateway_project.core.api.forms import EditForm
from gateway_project.core.api.methods import require_http_methods
from portal.exports import ROWS_MAX, Table
from portal.mail.entry import Operator, mail_page, show_or_file
from robin.models import AlarmNotice, AlarmRecipient, QueueAlarm
from robin.permissions import Permission
from robin.queue import alarms
from robin.queue.alerts import listeners

ADDRESS = AlarmRecipient._meta.get_field("email")
LABELS = {
    "oldest": (
        gettext_noop("Oldest item"),
        gettext_noop("minutes since it was first seen here"),
        1,
        43_200,
    ),
    "growth": (
        gettext_noop("Growth"),
        gettext_noop("items more than 15 minutes before"),
        1,
        1_000_000,
    ),
    "dead": (gettext_noop("Dead items"), gettext_noop("items that Robin gave up"), 1, 1_000_000),
    "bounce": (
        gettext_noop("Bounce share"),
        gettext_noop("percent of what left within an hour was given up, of 20 mails or more"),
        1,
        100,
    ),
}


def _labels(kind: str) -> tuple[str, str]:
    """What it is called, and what its figure counts."""
    label, unit, _, _ = LABELS[kind]
    return gettext(label), gettext(unit)


class AlertsForm(EditForm):
    emails = forms.CharField(
        required=False,
        label=gettext_lazy("Mails go to"),
        help_text=gettext_lazy("One address a line. Empty: no mails."),
        widget=forms.Textarea(attrs={"rows": 3}),
    )

    def __init__(self, rows: list[QueueAlarm], data: Any = None) -> None:
        super().__init__(data)
        self.rows = rows
        self.initial["emails"] = "\n".join(alarms.recipients())
        for row in rows:
            (label, unit), (least, most) = _labels(row.kind), LABELS[row.kind][2:]
            self.initial.update({f"{row.kind}_on": row.is_on, row.kind: row.threshold})
            self.fields[f"{row.kind}_on"] = forms.BooleanField(required=False, label=label)
            self.fields[row.kind] = forms.IntegerField(
                min_value=least,
                max_value=most,
                label=gettext("%(label)s: threshold") % {"label": label},
                help_text=unit,
            )

    def lines(self) -> Iterator[Line]:
        for row in self.rows:
            label, unit = _labels(row.kind)
            yield Line(row, label, unit, self[f"{row.kind}_on"], self[row.kind])

    def clean_emails(self) -> list[str]:
        lines = [normal_email(line) for line in self.cleaned_data["emails"].split()]
        found = list(dict.fromkeys(line.strip(",;") for line in lines if line.strip(",;")))
        for email in found:
            try:
                ADDRESS.run_validators(email)
            except forms.ValidationError:
                raise forms.ValidationError(
                    gettext("“%(text)s” is not an e-mail address. Write one a line.")
                    % {"text": email[:60]}
                ) from None
        if len(found) > alarms.RECIPIENTS_MAX:
            raise forms.ValidationError(
                gettext("At most %(number)s addresses. Use a mailing list for more.")
                % {"number": alarms.RECIPIENTS_MAX}
            )
        return found

    def wanted(self) -> dict[str, tuple[bool, int]]:
        """As it stands, with what was changed."""
        given = {**self.initial, **self.changes()}
        return {row.kind: (given[f"{row.kind}_on"], given[row.kind]) for row in self.rows}


class Line(NamedTuple):
    """An alert with its two fields."""

    alarm: QueueAlarm
    label: str
    unit: str
    on: forms.BoundField
    threshold: forms.BoundField


@mail_page(Permission.VIEW_QUEUE)
@require_http_methods(["GET", "HEAD", "POST"])
def alerts(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    is_sent = request.method == "POST"
    if is_sent and not operator.can_act:
        raise errors.PermissionDenied(
            gettext_noop("Your role looks at alerts. Ask an operator to change them.")
        )
    form = AlertsForm(alarms.alarms(), request.POST if is_sent else None)
    if is_sent and form.is_valid():
        emails = form.changes().get("emails", alarms.recipients())
        alarms.change(form.wanted(), emails, actor=operator.actor(request))
        messages.success(request, gettext("Saved. Alerts are looked at each minute."))
        return redirect("portal-mail-alerts")
    marked = Workspace.objects.filter(is_robin_operator=True).order_by("name")
    facts: dict[str, Any] = {
        "at": "alerts",
        "form": form,
        "history": [(one, *_labels(one.kind)) for one in alarms.history()],
        "is_sent_to_webhooks": bool(listeners(alarms.ALERT)),
        "is_of_operators": operator.member is not None
        and operator.member.workspace.is_robin_operator,
        "has_operators": marked.exists(),
    }
    files = {
        "alerts": lambda: _table(form.rows),
        "alerts-told": lambda: _table_of_history(alarms.history(ROWS_MAX)),
    }
    return show_or_file(request, operator, "alerts", files, **facts)


def _table(rows: Iterable[QueueAlarm]) -> Table:
    columns = ("alert", "unit", "is_on", "threshold", "now", "raised_at")
    return Table(
        columns,
        (
            [*LABELS[row.kind][:2], row.is_on, row.threshold, row.value, row.raised_at]
            for row in rows
        ),
    )


def _table_of_history(notices: Iterable[AlarmNotice]) -> Table:
    columns = ("at", "alert", "unit", "state", "value", "threshold", "since", "mail_sent_at")
    return Table(
        columns,
        (
            [
                *(one.at, *LABELS[one.kind][:2], "ended" if one.is_end else "raised"),
                *(one.value, one.threshold, one.since, one.sent_at),
            ]
            for one in notices
        ),
    )
