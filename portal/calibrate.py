"""Choosing a threshold by looking: past scores, labelled texts, and a budget of false alarms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log1p
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.contrib import messages
from django.core import signing
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.text import format_lazy
from django.utils.translation import gettext, gettext_lazy, gettext_noop

from accounts.models import ApiKey
from accounts.usage.rollups import SCORE_BINS as BINS
from detection.content_types import CONTENT_TYPES, ContentType
from detection.evaluation import budget as budgets
from detection.evaluation import calibration
from detection.evaluation.budget import Fitted, Texts
from detection.evaluation.calibration import Compared, Known, from_threshold
from detection.policies import policy as policies
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods
from gateway_project.core.language import number
from portal import exports
from portal.members import Member, workspace_page
from portal.posting import posts_for

HEIGHT = 120
SALT = "portal.budget"
FITTED_FOR_SECONDS = 60 * 60
BASES = {
    "uploaded": gettext_noop("the harmless texts you uploaded"),
    "reported": gettext_noop("verdicts that somebody reported as right or wrong"),
    "traffic": gettext_noop(
        "all traffic of 30 days, taken for harmless where nobody said otherwise"
    ),
}


class UploadForm(Form):
    file = forms.FileField(
        label=gettext_lazy("Labelled texts (JSONL)"),
        help_text=format_lazy(
            gettext_lazy(
                "A line each: {example}, 1 for an attack. At most {rows} rows and 1 MiB. They are "
                "scored, counted and forgotten; each costs one of the key's day."
            ),
            example='{"text": "…", "label": 1}',
            rows=calibration.ROWS_MAX,
        ),
    )

    content_type = forms.ChoiceField(
        required=False,
        label=gettext_lazy("They are"),
        choices=[(name, name.replace("_", " ")) for name in CONTENT_TYPES],
        initial="user_input",
        help_text=gettext_lazy(
            "Where in an agent they stand. Each type can have a threshold of its own."
        ),
    )

    def clean_file(self) -> Any:
        found = self.cleaned_data["file"]
        if found.size > calibration.BYTES_MAX:
            raise forms.ValidationError(
                gettext("The file is larger than 1 MiB. Send a part of it.")
            )
        return found


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def calibrate(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    """The threshold over the scores of 30 days, and over labelled texts that are not kept. Those
    are judged and use the quota, as calls of the key do: not by who only reads, and not with a key
    that is refused."""
    if request.method == "POST":
        member.must_change()
    key = member.key(key_id)
    is_refused = key.is_ended or member.workspace.suspended_at is not None
    kind = _kind(request.POST.get("content_type") or request.GET.get("content_type"))
    form = UploadForm(
        request.POST if request.method == "POST" else None,
        request.FILES if request.method == "POST" else None,
        initial={"content_type": kind},
    )
    compared: Compared | None = None
    known_policy = policies.of_key(key)
    if form.is_bound and is_refused:
        form.add_error(None, gettext("This key is refused. Calibrate one that works."))
    if request.method == "POST" and form.is_valid():
        try:
            compared = calibration.compare(
                form.cleaned_data["file"],
                key,
                policy=known_policy,
                content_type=kind,
            )
        except TimeoutError:
            form.add_error(
                "file", gettext("The detector took too long. Send fewer rows, or try again.")
            )
        except errors.GatewayError as exc:
            form.add_error("file", exc.for_people())
    in_force = known_policy.threshold("engine", None, kind)[0]
    chosen = _chosen(request.GET.get("threshold"), in_force)
    known = calibration.known_of(key.pk, kind)
    facts = {
        "member": member,
        "key": key,
        "form": form,
        "can_score": member.can_change and not is_refused,
        "in_force": in_force,
        "kind": kind,
        "kinds": [(name, name.replace("_", " ")) for name in CONTENT_TYPES],
        "chosen": chosen,
        "summary": _summary(known, compared, chosen, in_force),
        "bars": _bars(known, compared),
        "at": round(chosen * BINS),
        "height": HEIGHT,
        "most": max(compared.harmless + compared.attacks if compared else known.scores),
        "total": sum(known.scores),
        "compared": compared,
        "data": {
            "scores": known.scores,
            "false_alarms": known.false_alarms,
            "missed": known.missed,
            "attacks": compared.attacks if compared else None,
            "harmless": compared.harmless if compared else None,
            "in_force": in_force,
        },
    }
    texts, basis = _texts(key, kind, compared, request.GET.get("basis", ""))
    fitted = [budgets.fit(texts, budget) for budget in budgets.CHOICES]
    facts |= {
        "basis": basis,
        "basis_text": gettext(BASES[basis]),
        "other_basis": "traffic" if basis != "traffic" else "reported",
        "harmless": sum(texts.harmless),
        "holds": any(fitted),
        "budgets": [
            (budget, one, _token(key, kind, basis, one) if one else "")
            for budget, one in zip(budgets.CHOICES, fitted, strict=True)
        ],
        "kept": budgets.of_key(key),
    }
    files = {
        "scores": lambda: _scores_table(known),
        "budgets": lambda: _budgets_table(fitted),
    }
    return exports.page(request, "portal/pages/calibrate.html", facts, files)


def _texts(
    key: ApiKey, kind: ContentType, compared: Compared | None, basis: str
) -> tuple[Texts, str]:
    """The labelled texts that budgets are fitted on, and whose they are."""
    if compared is not None:
        return Texts(compared.harmless, compared.attacks), "uploaded"
    if basis == "traffic":
        return budgets.traffic(key, kind), basis
    reported = budgets.reported(key, kind)
    if basis == "reported" or any(reported.harmless):
        return reported, "reported"
    return budgets.traffic(key, kind), "traffic"


def _token(key: ApiKey, kind: ContentType, basis: str, fitted: Fitted) -> str:
    """What was shown, for the form that takes it: uploaded texts are gone by then."""
    return signing.dumps([str(key.pk), kind, basis, list(fitted)], salt=SALT)


def _scores_table(known: Known) -> exports.Table:
    rows = zip(known.scores, known.false_alarms, known.missed, strict=True)
    cells = [(at / BINS, *counts) for at, counts in enumerate(rows)]
    return exports.Table(("score_from", "verdicts", "false_alarms", "missed"), cells)


def _budgets_table(fitted: Sequence[Fitted | None]) -> exports.Table:
    columns = ("budget", "threshold", "alarms", "harmless", "found", "attacks", "low", "high")
    rows = [
        [*(getattr(one, name) for name in columns[:6]), one.rate.low, one.rate.high]
        for one in fitted
        if one is not None
    ]
    return exports.Table(columns, rows)


@posts_for("portal-key-calibrate")
@workspace_page
def use_budget(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """Put the threshold in force that a budget was fitted to, and watch the traffic from now on."""
    member.must_change()
    key = member.key(key_id)
    try:
        found = signing.loads(request.POST.get("fitted", ""), salt=SALT, max_age=FITTED_FOR_SECONDS)
    except signing.BadSignature:
        messages.error(
            request, gettext("This was fitted too long ago. Look at it again, then choose.")
        )
        return redirect("portal-key-calibrate", key_id=key.pk)
    its_key, kind, basis, values = found
    if its_key != str(key.pk):
        messages.error(request, gettext("This was fitted for another key. Nothing was changed."))
        return redirect("portal-key-calibrate", key_id=key.pk)
    fitted = Fitted(*values)
    with transaction.atomic():
        if _put_in_force(request, member, key, kind, fitted.threshold):
            budgets.keep(key, kind, fitted, basis)
    return _page_of(key, kind)


def _page_of(key: ApiKey, kind: ContentType) -> HttpResponse:
    page = reverse("portal-key-calibrate", kwargs={"key_id": key.pk})
    return redirect(f"{page}?{urlencode({'content_type': kind})}")


def _put_in_force(
    request: HttpRequest, member: Member, key: ApiKey, kind: ContentType, threshold: float
) -> bool:
    values = policies.body_of(key)
    values["threshold"] = _with_threshold(values.get("threshold") or {}, kind, threshold)
    try:
        saved = policies.save(key, values, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
        return False
    facts = {"threshold": number(threshold, ".2f"), "version": saved.version}
    text = gettext("%(threshold)s is in force, as version %(version)s.")
    messages.success(request, text % facts)
    return True


@posts_for("portal-key-calibrate")
@workspace_page
def use_threshold(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """One click: the policy as it is, with this threshold."""
    member.must_change()
    key = member.key(key_id)
    chosen = _chosen(request.POST.get("threshold"), -1.0)
    if chosen < 0:
        messages.error(request, gettext("Choose a threshold from 0 to 1."))
        return redirect("portal-key-calibrate", key_id=key.pk)
    kind = _kind(request.POST.get("content_type"))
    _put_in_force(request, member, key, kind, chosen)
    return _page_of(key, kind)


def _kind(text: str | None) -> ContentType:
    return text if text in CONTENT_TYPES else "user_input"


def _with_threshold(
    thresholds: Mapping[str, Any], kind: ContentType, chosen: float
) -> dict[str, Any]:
    """For texts of that type; those of users are what holds where nothing else is said."""
    if kind == "user_input":
        return {**thresholds, "engine": chosen}
    by_type = thresholds.get("content_types") or {}
    own = {**(by_type.get(kind) or {}), "engine": chosen}
    return {**thresholds, "content_types": {**by_type, kind: own}}


def _chosen(text: str | None, default: float) -> float:
    try:
        value = round(float(text or ""), 2)
    except ValueError:
        return default
    return value if 0 <= value <= 1 else default


def _summary(known: Known, compared: Compared | None, at: float, in_force: float) -> list[str]:
    """What the threshold means, as `calibrate.js` says it while it is moved."""
    flagged, total = from_threshold(known.scores, at), sum(known.scores)
    alarms = from_threshold(known.false_alarms, at)
    caught, missed = from_threshold(known.missed, at), sum(known.missed)
    lines = [
        gettext(
            "%(flagged)s of %(total)s flagged in %(days)s days, %(alarms)s of them reported as "
            "false alarms."
        )
        % {
            "flagged": number(flagged),
            "total": number(total),
            "days": calibration.DAYS,
            "alarms": number(alarms),
        },
    ]
    if change := flagged - from_threshold(known.scores, in_force):
        if change > 0:
            text = gettext("That is %(number)s more than at %(threshold)s, which is in force.")
        else:
            text = gettext("That is %(number)s fewer than at %(threshold)s, which is in force.")
        lines.append(text % {"number": number(abs(change)), "threshold": number(in_force, ".2f")})
    if missed:
        text = gettext("%(caught)s of %(missed)s missed attacks would be flagged.")
        lines.append(text % {"caught": number(caught), "missed": number(missed)})
    if compared is not None:
        text = gettext(
            "Of the uploaded texts: %(found)s of %(attacks)s attacks flagged, %(alarms)s of "
            "%(harmless)s harmless ones."
        )
        facts = {
            "found": number(from_threshold(compared.attacks, at)),
            "attacks": number(sum(compared.attacks)),
            "alarms": number(from_threshold(compared.harmless, at)),
            "harmless": number(sum(compared.harmless)),
        }
        lines.append(text % facts)
    return lines


def _bars(known: Known, compared: Compared | None) -> list[dict[str, Any]]:
    """Bars of each series on a logarithmic scale, so that a few high scores are seen too."""
    rows: list[tuple[str, Sequence[int]]] = [("clean", known.scores)]
    if compared is not None:
        rows = [("clean", compared.harmless), ("errors", compared.attacks)]
    most = max((max(counts) for _, counts in rows), default=0) or 1
    marks = [
        (gettext("%(number)s false alarms"), known.false_alarms),
        (gettext("%(number)s missed"), known.missed),
    ]
    bars = []
    for kind, counts in rows:
        for bin_, count in enumerate(counts):
            if count:
                height = HEIGHT * log1p(count) / log1p(most)
                bars.append(
                    {
                        "kind": kind,
                        "x": bin_,
                        "y": HEIGHT - height,
                        "height": height,
                        "title": f"{number(bin_ / BINS, '.2f')}: {number(count)}"
                        + "".join(
                            f", {text % {'number': c[bin_]}}" for text, c in marks if c[bin_]
                        ),
                        "is_marked": kind == "clean" and bool(known.false_alarms[bin_]),
                    }
                )
    return bars
