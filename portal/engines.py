"""Which engines judge for a key, how they compare on its own traffic, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from accounts.models import ApiKey
from detection import comparisons
from detection.comparisons import Comparison
from detection.engines import door
from detection.policies import policy as policies
from gateway_project.core import clock, errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods
from portal import plots
from portal.members import Member, workspace_page

LEAST, MOST, SHARE = 0.3, 0.8, 10


def _number(label: str, most: float, help_text: str = "") -> forms.FloatField:
    return forms.FloatField(
        required=False, min_value=0, max_value=most, label=label, help_text=help_text
    )


class EnginesForm(Form):
    version = forms.IntegerField(widget=forms.HiddenInput)
    first = forms.ChoiceField(label="Judges first")
    second = forms.ChoiceField(required=False, label="Asked as well when the first is unsure")
    least = _number("Unsure from", 1, "Scores of the first engine, 0 to 1.")
    most = _number("Unsure to", 1)
    shadow = forms.ChoiceField(
        required=False,
        label="Shadow",
        help_text="Sees a share of the texts behind the answers, and never changes one.",
    )
    share = _number("Share of the texts for the shadow, in percent", 100)

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
        names = [(name, name) for name in door.configured()]
        for field in ("first", "second", "shadow"):
            chosen = self.initial[field]
            gone = (
                [(chosen, f"{chosen} (gone)")] if chosen and (chosen, chosen) not in names else []
            )
            nobody = [] if field == "first" else [("", "nobody")]
            self.fields[field].choices = nobody + names + gone  # type: ignore[attr-defined]

    def clean(self) -> dict[str, Any]:
        values = self.cleaned_data
        if values.get("second") and values["second"] == values.get("first"):
            self.add_error("second", "It is the first engine already.")
        if (values.get("least") or 0) > (1 if values.get("most") is None else values["most"]):
            self.add_error("least", "It is above the other end.")
        if values.get("shadow") and not values.get("share"):
            self.add_error("share", "Say how many of the texts it is to see: above 0.")
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
def engines(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
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
                    expected=form.cleaned_data["version"],
                    actor=member.actor(request),
                )
            except (errors.PreconditionFailed, errors.Conflict) as exc:
                form.add_error(None, str(exc.detail))
            else:
                messages.success(request, f"Version {saved.version} is in force.")
                return redirect("portal-key-engines", key_id=key.pk)
    compared = comparisons.of_key(key.pk)
    facts = {
        "member": member,
        "key": key,
        "form": form,
        "has_choice": len(door.configured()) > 1,
        "days": comparisons.DAYS,
        "compared": [(one, _plot(one)) for one in compared],
        "disagreements": comparisons.disagreements_of(key.pk) if compared else [],
        "spent": comparisons.spent_by(key.pk),
    }
    return render(request, "portal/pages/engines.html", facts)


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
