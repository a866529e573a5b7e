"""Quality: what people said of verdicts, the rate of each key, and how a false alarm is settled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.contrib import messages
from django.db import transaction
from django.db.models import Count, QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy, ngettext
from rest_framework.request import Request

from accounts.models import ApiKey, UsageLog
from accounts.usage import log, reading, reports
from detection.feedback import services
from detection.models import TEXT_CHARS_MAX, FalseAlarmBudget, Feedback
from detection.policies import effects
from detection.policies import policy as policies
from detection.policies.policy import Owner
from gateway_project.core import clock, errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.api.pagination import page
from gateway_project.core.language import number
from portal import exports
from portal.feedback import VERDICT_LABELS
from portal.forms import LongSelect
from portal.labels import named
from portal.members import Member, workspace_page
from portal.request_log import moment

DAYS = 30
KEYS_SHOWN = 100
NOTE_CHARS_MAX = 200
Verdict = Feedback.Verdict
COUNTED_AS = {
    Verdict.FALSE_POSITIVE: "false_alarms",
    Verdict.FALSE_NEGATIVE: "missed",
    Verdict.CORRECT: "right",
}
COLUMNS = ("created_at", "request_id", "key", "verdict", "confidence", "decision", "source", "note")
RATES = ("id", "name", "is_test", "requests", "flagged", "false_alarms", "rate", "missed", "right")


class QualityFilter(Form):
    """From the query string; what is wrong is left out."""

    verdict = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Feedback"),
        choices=[("", gettext_lazy("False alarms and misses")), *VERDICT_LABELS.items()],
    )
    key = forms.TypedChoiceField(
        required=False,
        coerce=UUID,
        empty_value=None,
        label=gettext_lazy("Key"),
        widget=LongSelect,
    )

    def __init__(self, keys: Iterable[ApiKey], data: Any) -> None:
        super().__init__(data)
        names = [("", gettext("Any key")), *((str(key.pk), named(key)) for key in keys)]
        self.fields["key"].choices = names  # type: ignore[attr-defined]
        self.full_clean()

    def among(self, found: QuerySet[Feedback]) -> QuerySet[Feedback]:
        wanted = self.cleaned_data
        wrong = [Verdict.FALSE_POSITIVE, Verdict.FALSE_NEGATIVE]
        found = found.filter(verdict__in=[wanted["verdict"]] if wanted.get("verdict") else wrong)
        return found.filter(api_key_id=wanted["key"]) if wanted.get("key") else found


@require_safe
@workspace_page
def quality(request: HttpRequest, member: Member) -> HttpResponseBase:
    keys = {key.pk: key for key in member.keys.without_policies()}
    form = QualityFilter(keys.values(), request.GET)
    all_of_it = Feedback.objects.filter(workspace=member.workspace)
    found = form.among(all_of_it)
    try:
        rows, older = page(
            Request(request), found, ordering=("-created_at", "-id"), among=all_of_it
        )
    except errors.NotFound:
        raise Http404 from None
    rates = _rates(member, keys)
    budgets = FalseAlarmBudget.objects.filter(workspace=member.workspace)
    facts: dict[str, Any] = {
        "member": member,
        "form": form,
        "days": DAYS,
        "rows": [
            (row, keys.get(row.api_key_id), VERDICT_LABELS[Verdict(row.verdict)]) for row in rows
        ],
        "older": older,
        "has_cursor": "cursor" in request.GET,
        "is_filtered": any(request.GET.get(name) for name in form.fields),
        "rates": rates[:KEYS_SHOWN],
        "budgets": [(one, keys.get(one.api_key_id)) for one in budgets.order_by("-drifted_at")],
    }
    files = {
        "feedback": lambda: _table(exports.newest_first(found), keys),
        "rates": lambda: exports.Table(
            RATES,
            [
                [key.pk, key.name, key.is_test, *(counts[name] for name in RATES[3:])]
                for key, counts in rates
            ],
        ),
        "budgets": lambda: _budgets_table(facts["budgets"]),
    }
    return exports.page(request, "portal/pages/quality.html", facts, files)


def _rates(member: Member, keys: dict[UUID, ApiKey]) -> list[tuple[ApiKey, dict[str, Any]]]:
    """Of each key that flagged or was told of in `DAYS` days: the most false alarms first."""
    since = reports.floor(clock.now() - timedelta(days=DAYS), "day")
    sums = reports.by_subject(keys, since, "day")
    counts: dict[UUID, Counter[str]] = {}
    given = Feedback.objects.filter(workspace=member.workspace, created_at__gte=since).order_by()
    for key_id, verdict, count in given.values_list("api_key_id", "verdict").annotate(
        count=Count("pk")
    ):
        counts.setdefault(key_id, Counter())[COUNTED_AS[Verdict(verdict)]] += count
    found = []
    for pk, key in keys.items():
        flagged, reported = sums.get(pk, {}).get("flagged", 0), counts.get(pk, Counter())
        if flagged or reported:
            facts: dict[str, Any] = {name: reported[name] for name in COUNTED_AS.values()}
            facts |= {"requests": sums.get(pk, {}).get("requests", 0), "flagged": flagged}
            alarms = reported["false_alarms"]
            facts["rate"] = round(alarms / flagged, 4) if flagged else None
            found.append((key, facts))
    return sorted(found, key=lambda one: (-one[1]["false_alarms"], -one[1]["flagged"]))


def _table(rows: Iterable[Feedback], keys: dict[UUID, ApiKey]) -> exports.Table:
    return exports.Table(
        COLUMNS,
        (
            [
                *(row.created_at, row.request_id),
                keys[row.api_key_id].name if row.api_key_id in keys else "",
                *(row.verdict, row.confidence, row.decision, row.source, row.note),
            ]
            for row in rows
        ),
    )


def _budgets_table(rows: Iterable[tuple[FalseAlarmBudget, ApiKey | None]]) -> exports.Table:
    columns = ("content_type", "budget", "threshold", "basis", "harmless", "alarms")
    cells = (
        [
            key.name if key else "",
            *(getattr(one, name) for name in columns),
            one.drifted_at,
        ]
        for one, key in rows
    )
    return exports.Table(("key", *columns, "drifted_at"), cells)


class AllowForm(Form):
    """The whole text that was flagged. `digest` stands for it, where it was looked at already."""

    text = forms.CharField(
        max_length=TEXT_CHARS_MAX,
        strip=False,
        label=gettext_lazy("The text, whole"),
        help_text=gettext_lazy("Only its digest is kept."),
        widget=forms.Textarea(attrs={"rows": 6, "spellcheck": "false"}),
    )
    note = forms.CharField(
        required=False,
        max_length=NOTE_CHARS_MAX,
        label=gettext_lazy("Note"),
        help_text=gettext_lazy("Why it is harmless."),
    )
    where = forms.ChoiceField(label=gettext_lazy("In which policy"), widget=forms.RadioSelect)

    def __init__(self, key: ApiKey, followers: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["where"].choices = [  # type: ignore[attr-defined]
            ("key", gettext("Of the key “%(name)s” alone") % {"name": key.name}),
            (
                "workspace",
                ngettext(
                    "Of the workspace, which %(number)s key follows",
                    "Of the workspace, which %(number)s keys follow",
                    followers,
                )
                % {"number": number(followers, "d")},
            ),
        ]
        follows = not key.detection_policy
        self.fields["where"].initial = "workspace" if follows else "key"


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def allow(request: HttpRequest, member: Member, request_id: UUID) -> HttpResponse:
    """Settle a false alarm: the text is looked at first, with what else the rule would change."""
    at = request.GET.get("at", "")
    row = reading.find(member.workspace, request_id, moment(at))
    key = member.keys.filter(pk=row.api_key_id).first() if row is not None else None
    if row is None:
        raise Http404
    if key is None or key.is_ended or not row.is_malicious:
        text = (
            gettext("This request was not flagged: there is nothing to allow.")
            if not row.is_malicious
            else gettext(
                "It came from the playground, or its key never works again. Allow the text in the "
                "policy of the workspace, or of another key."
            )
        )
        messages.info(request, text)
        return redirect(_page_of(row))
    key.workspace = member.workspace
    followers = effects.followers_of(member.workspace)
    is_post = request.method == "POST"
    stored = log.text_of(row.request_id, member.workspace.pk)
    form = AllowForm(
        key, followers, request.POST if is_post else None, initial={"text": stored or ""}
    )
    digest = policies.digest_of(stored) if stored is not None else None
    if is_post:
        member.must_change()
        if form.is_valid():
            digest = policies.digest_of(form.cleaned_data["text"])
            if "preview" not in request.POST and _allow(request, member, key, row, form, digest):
                return redirect(_page_of(row))
    facts = {
        "member": member,
        "row": row,
        "key": key,
        "form": form,
        "is_stored": stored is not None,
        "days": effects.DAYS,
        "page": _page_of(row),
        **({} if digest is None else _what_else(member, key, row, digest)),
    }
    return render(request, "portal/pages/allow.html", facts)


def _what_else(member: Member, key: ApiKey, row: UsageLog, digest: str) -> dict[str, Any]:
    keys = list(member.keys.usable().values_list("pk", flat=True))
    here, shown = effects.same_text(member.workspace, [key.pk], digest)
    everywhere, _ = effects.same_text(member.workspace, keys, digest)
    return {
        "looked_at": True,
        "is_its_text": effects.is_text_of(row, digest),
        "here": here,
        "everywhere": everywhere,
        "shown": shown,
    }


def _allow(
    request: HttpRequest, member: Member, key: ApiKey, row: UsageLog, form: AllowForm, digest: str
) -> bool:
    if effects.is_text_of(row, digest) is False:
        form.add_error(
            "text", gettext("This is not the text of that request: it has another digest.")
        )
        return False
    owner: Owner = member.workspace if form.cleaned_data["where"] == "workspace" else key
    if owner is not key and key.detection_policy:
        form.add_error("where", gettext("This key has a policy of its own, and follows no other."))
        return False
    actor, note = member.actor(request), form.cleaned_data["note"]
    try:
        with transaction.atomic():
            version = policies.allow(owner, digest, note, actor=actor)
            services.give(member.workspace, row, Verdict.FALSE_POSITIVE, note, actor=actor)
    except errors.GatewayError as exc:
        form.add_error(None, "; ".join(exc.sentences) or exc.for_people())
        return False
    messages.success(
        request,
        gettext(
            "Allowed, as version %(version)s: this very text is not flagged any more, within a "
            "second. It is noted as a false alarm."
        )
        % {"version": version},
    )
    return True


def _page_of(row: UsageLog) -> str:
    page_of_it = reverse("portal-request", kwargs={"request_id": row.request_id})
    return f"{page_of_it}?{urlencode({'at': row.created_at.isoformat()})}"
