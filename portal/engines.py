"""Which engines judge for a key, how they compare on its own traffic, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.utils.translation import gettext, gettext_lazy

from accounts.models import ApiKey
from detection import comparisons
from detection.comparisons import Comparison
from detection.engines import registry
from detection.policies import policy as policies
from gateway_project.core import clock, errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods
from portal import exports, plots
from portal.members import Member, workspace_page

LEAST, MOST, SHARE = 0.3, 0.8, 10
COMPARED = (
    *("engine", "compared_to", "agreed", "only_own", "only_shadow", "failed", "skipped"),
    *("milliseconds", "own_milliseconds", "tokens", "cost"),
)
DISAGREED = (
    *("created_at", "request_id", "content_type", "compared_to", "own_score", "engine"),
    *("shadow_score", "is_malicious"),
)


def _number(label: Any, most: float, help_text: Any = "") -> forms.FloatField:
    return forms.FloatField(
        required=False, min_value=0, max_value=most, label=label, help_text=help_text
    )


class EnginesForm(Form):
    version = forms.IntegerField(widget=forms.HiddenInput)
    first = forms.ChoiceField(label=gettext_lazy("Judges first"))
    second = forms.ChoiceField(
        required=False, label=gettext_lazy("Asked as well when the first is unsure")
    )
    least = _number(
        gettext_lazy("Unsure from"), 1, gettext_lazy("Scores of the first engine, 0 to 1.")
    )
    most = _number(gettext_lazy("Unsure to"), 1)
    shadow = forms.ChoiceField(
        required=False,
        label=gettext_lazy("Shadow"),
        help_text=gettext_lazy(
            "Sees a share of the texts behind the answers, and never changes one."
        ),
    )
    share = _number(gettext_lazy("Share of the texts for the shadow, in percent"), 100)

    def __init__(self, key: ApiKey, data: Any = None) -> None:
        known = policies.of_key(key)
        second, shadow = known.route.second, known.shadow
        super().__init__(
            data,
            initial={
                "version": policies.version_of(key),
                "first": known.route.first,
                "second": second.engine if second else "",
                "least": second.least if second else LEAST,
                "most": second.most if second else MOST,
                "shadow": shadow.engine if shadow else "",
                "share": round(shadow.share * 100, 2) if shadow else SHARE,
            },
        )
        names = [(name, name) for name in registry.configured()]
        for field in ("first", "second", "shadow"):
            chosen = self.initial[field]
            gone = (
                [(chosen, gettext("%(engine)s (gone)") % {"engine": chosen})]
                if chosen and (chosen, chosen) not in names
                else []
            )
            nobody = [] if field == "first" else [("", gettext("nobody"))]
            self.fields[field].choices = nobody + names + gone  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        values = self.cleaned_data
        if values.get("second") and values["second"] == values.get("first"):
            self.add_error("second", gettext("It is the first engine already."))
        if (values.get("least") or 0) > (1 if values.get("most") is None else values["most"]):
            self.add_error("least", gettext("It is above the other end."))
        if values.get("shadow") and not values.get("share"):
            self.add_error("share", gettext("Say how many of the texts it is to see: above 0."))
        return values

    def engines(self) -> dict[str, Any]:
        """As a policy holds them."""
        values = self.cleaned_data
        second = {
            "engine": values["second"],
            "from": LEAST if values["least"] is None else values["least"],
            "to": MOST if values["most"] is None else values["most"],
        }
        shadow = {"engine": values["shadow"], "share": (values["share"] or SHARE) / 100}
        return {
            "first": values["first"],
            "second": second if values["second"] else None,
            "shadow": shadow if values["shadow"] else None,
        }


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def engines(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    key = member.key(key_id)
    form = EnginesForm(key, request.POST if request.method == "POST" else None)
    if request.method == "POST":
        member.must_change()
        if form.is_valid():
            values = {**policies.body_of(key), "engines": form.engines()}
            try:
                saved = policies.save(
                    key,
                    values,
                    expected=[form.cleaned_data["version"]],
                    actor=member.actor(request),
                )
            except (errors.PreconditionFailed, errors.Conflict) as exc:
                form.add_error(None, exc.for_people())
            else:
                text = gettext("Version %(version)s is in force.")
                messages.success(request, text % {"version": saved.version})
                return redirect("portal-key-engines", key_id=key.pk)
    compared = comparisons.of_key(key.pk)
    drawn = [(one, _plot(one)) for one in compared]
    facts: dict[str, Any] = {
        "member": member,
        "key": key,
        "form": form,
        "has_choice": len(registry.configured()) > 1,
        "days": comparisons.DAYS,
        "compared": drawn,
        "disagreements": comparisons.disagreements_of(key.pk) if compared else [],
        "spent": comparisons.spent_by(key.pk),
    }
    files = {
        **plots.files(*(plot for _, plot in drawn)),
        "compared": lambda: exports.table(COMPARED, compared),
        "disagreements": lambda: exports.table(DISAGREED, comparisons.disagreements_of(key.pk)),
        "costs": lambda: exports.table(comparisons.SPENT, facts["spent"]),
    }
    return exports.page(request, "portal/pages/engines.html", facts, files)


def _plot(compared: Comparison) -> plots.Plot:
    today = datetime.combine(clock.now().date(), time(), UTC)
    days: Sequence[datetime] = plots.buckets(
        today - timedelta(days=comparisons.DAYS - 1), today, "day"
    )
    counts = {
        datetime.combine(day.at, time(), UTC): {
            "agreed": day.agreed,
            "only_own": day.only_own,
            "only_shadow": day.only_shadow,
        }
        for day in compared.days
    }
    return plots.comparison_plot(days, counts, compared.engine)
