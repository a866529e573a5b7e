"""A key's policy: the form, its versions, and the page where a threshold is chosen by looking."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log1p
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from accounts.models import ApiKey
from accounts.usage.rollups import SCORE_BINS as BINS
from detection.content_types import CONTENT_TYPES, ContentType
from detection.evaluation import calibration
from detection.evaluation.calibration import Compared, Known, from_threshold
from detection.models import PolicyVersion
from detection.policies import policy as policies
from detection.policies.policy import ENTRIES_MAX, THREAT_TYPES
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods
from portal.members import Member, workspace_page
from portal.posting import posts_for

LOCKS = {
    "threshold": "The threshold",
    "mode": "The mode",
    "on_unavailable": "What happens without the engine",
}
HEIGHT = 120


def _threshold(label: str) -> forms.FloatField:
    return forms.FloatField(
        required=False, min_value=0, max_value=1, label=label, help_text="0 to 1. Empty: 0.6."
    )


def _entries(label: str, help_text: str) -> forms.CharField:
    return forms.CharField(
        required=False,
        label=label,
        help_text=help_text,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
    )


class PolicyForm(Form):
    version = forms.IntegerField(widget=forms.HiddenInput)
    threshold_engine = _threshold("Threshold when the engine judged")
    threshold_fallback = _threshold("Threshold when the embedded detector had to")
    mode = forms.ChoiceField(
        choices=[("enforce", "Enforce: flag attacks"), ("monitor", "Monitor: only say would_flag")]
    )
    on_unavailable = forms.ChoiceField(
        label="When the engine is away",
        choices=[
            ("fallback", "Let the embedded detector judge"),
            ("fail_closed", "Refuse (503)"),
            ("fail_open", "Let everything pass, and say so"),
        ],
    )
    locked = forms.MultipleChoiceField(
        required=False,
        label="Requests may not change",
        choices=list(LOCKS.items()),
        widget=forms.CheckboxSelectMultiple,
    )
    categories = forms.MultipleChoiceField(
        required=False,
        label="Threat types that count",
        choices=[(name, name.replace("_", " ")) for name in THREAT_TYPES],
        widget=forms.CheckboxSelectMultiple,
    )
    allow_add = _entries("Allow these texts", "One a line. Each is the whole text, never a part.")
    deny_add = _entries("Deny these texts", "One a line. A text on both lists is denied.")
    drop = forms.MultipleChoiceField(
        required=False, label="Take off the lists", widget=forms.CheckboxSelectMultiple
    )
    store_text = forms.BooleanField(
        required=False,
        label="Keep texts, encrypted, as long as the log: members can read them",
    )

    def __init__(self, key: ApiKey, data: Any = None) -> None:
        values = key.detection_policy
        known = policies.of_key(key)
        super().__init__(
            data,
            initial={
                "version": policies.version_of(key),
                "threshold_engine": known.threshold("engine", None)[0],
                "threshold_fallback": known.threshold("fallback", None)[0],
                "mode": known.mode,
                "on_unavailable": known.on_unavailable,
                "locked": sorted(known.locked),
                "categories": [name for name in THREAT_TYPES if name not in known.switched_off],
                "store_text": known.store_text,
            },
        )
        self.in_force = values
        self.lists = {name: list(values.get(name) or ()) for name in ("allow", "deny")}
        drop = self.fields["drop"]
        drop.choices = [  # type: ignore[attr-defined]
            (f"{name}:{entry['digest']}", f"{name}: {entry['note'] or entry['digest'][:16] + '…'}")
            for name, entries in self.lists.items()
            for entry in entries
        ]
        if not drop.choices:  # type: ignore[attr-defined]
            del self.fields["drop"]

    def clean(self) -> dict[str, Any]:
        for name in ("allow", "deny"):
            if len(self._list(name)) > ENTRIES_MAX:
                self.add_error(f"{name}_add", f"At most {ENTRIES_MAX:,} texts on a list.")
        return self.cleaned_data

    def _list(self, name: str) -> list[dict[str, str]]:
        dropped = set(self.cleaned_data.get("drop") or ())
        entries = {
            entry["digest"]: entry
            for entry in self.lists[name]
            if f"{name}:{entry['digest']}" not in dropped
        }
        for line in self.cleaned_data.get(f"{name}_add", "").splitlines():
            if line.strip():
                digest = policies.digest_of(line)
                entries[digest] = {"digest": digest, "note": ""}
        return list(entries.values())

    def policy(self) -> dict[str, Any]:
        values = self.cleaned_data
        return {
            # What this form does not show stays as it is.
            "threshold": {
                **(self.in_force.get("threshold") or {}),
                "engine": values["threshold_engine"],
                "fallback": values["threshold_fallback"],
            },
            "engines": self.in_force.get("engines") or {},
            "locked": sorted(values["locked"]),
            "mode": values["mode"],
            "on_unavailable": values["on_unavailable"],
            "categories": {name: name in values["categories"] for name in THREAT_TYPES},
            "allow": self._list("allow"),
            "deny": self._list("deny"),
            "store_text": values["store_text"],
        }


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def policy(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    key = member.key(key_id)
    form = PolicyForm(key, request.POST if request.method == "POST" else None)
    if request.method == "POST":
        member.must_change()
        if form.is_valid():
            try:
                saved = policies.save(
                    key,
                    form.policy(),
                    expected=form.cleaned_data["version"],
                    actor=member.actor(request),
                )
            except (errors.PreconditionFailed, errors.Conflict) as exc:
                form.add_error(None, str(exc.detail))
            else:
                messages.success(request, f"Version {saved.version} is in force.")
                return redirect("portal-key-policy", key_id=key.pk)
    facts = {
        "member": member,
        "key": key,
        "form": form,
        "versions": _told(policies.versions_of(key)),
        "now": 0 if key.is_ended else policies.version_of(key),
    }
    return render(request, "portal/pages/policy.html", facts)


def _told(versions: Sequence[PolicyVersion]) -> list[tuple[PolicyVersion, list[str]]]:
    """Each version with what it changed of the one before; of the oldest nothing is known."""
    return [
        (
            version,
            [
                f"{name}: {before} → {after}"
                for name, (before, after) in policies.changes_between(
                    older.policy, version.policy
                ).items()
            ]
            if older is not None
            else [],
        )
        for version, older in zip(versions, [*versions[1:], None], strict=False)
    ]


@posts_for("portal-key-policy")
@workspace_page
def restore(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """An older version again, as a new one."""
    member.must_change()
    key = member.key(key_id)
    number = request.POST.get("version", "")
    known = {str(version.version): version for version in policies.versions_of(key)}
    if number not in known:
        messages.error(request, "There is no such version any more. Nothing was changed.")
        return redirect("portal-key-policy", key_id=key.pk)
    try:
        saved = policies.save(key, known[number].policy, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, str(exc.detail))
    else:
        messages.success(request, f"As in version {number}: {saved.version} is in force.")
    return redirect("portal-key-policy", key_id=key.pk)


class UploadForm(Form):
    file = forms.FileField(
        label="Labelled texts (JSONL)",
        help_text=(
            f'A line each: {{"text": "…", "label": 1}}, 1 for an attack. At most '
            f"{calibration.ROWS_MAX} rows and 1 MiB. They are scored, counted and forgotten."
        ),
    )

    content_type = forms.ChoiceField(
        required=False,
        label="They are",
        choices=[(name, name.replace("_", " ")) for name in CONTENT_TYPES],
        initial="user_input",
        help_text="Where in an agent they stand. Each type can have a threshold of its own.",
    )

    def clean_file(self) -> Any:
        found = self.cleaned_data["file"]
        if found.size > calibration.BYTES_MAX:
            raise forms.ValidationError("The file is larger than 1 MiB. Send a part of it.")
        return found


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def calibrate(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """The threshold over the scores of 30 days, and over labelled texts that are not kept."""
    key = member.key(key_id)
    form = UploadForm(
        request.POST if request.method == "POST" else None,
        request.FILES if request.method == "POST" else None,
    )
    compared: Compared | None = None
    kind = _kind(request.POST.get("content_type") or request.GET.get("content_type"))
    known_policy = policies.of_key(key)
    if request.method == "POST" and form.is_valid():
        try:
            compared = calibration.compare(
                form.cleaned_data["file"],
                member.workspace.pk,
                policy=known_policy,
                content_type=kind,
            )
        except TimeoutError:
            form.add_error("file", "The detector took too long. Send fewer rows, or try again.")
    in_force = known_policy.threshold("engine", None, kind)[0]
    chosen = _chosen(request.GET.get("threshold"), in_force)
    known = calibration.known_of(key.pk)
    facts = {
        "member": member,
        "key": key,
        "form": form,
        "in_force": in_force,
        "kind": kind,
        "chosen": chosen,
        "summary": _summary(known, compared, chosen),
        "bars": _bars(known, compared),
        "at": round(chosen * BINS),
        "height": HEIGHT,
        "total": sum(known.scores),
        "compared": compared,
        "data": {
            "scores": known.scores,
            "false_alarms": known.false_alarms,
            "missed": known.missed,
            "attacks": compared.attacks if compared else None,
            "harmless": compared.harmless if compared else None,
        },
    }
    return render(request, "portal/pages/calibrate.html", facts)


@posts_for("portal-key-calibrate")
@workspace_page
def use_threshold(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """One click: the policy as it is, with this threshold."""
    member.must_change()
    key = member.key(key_id)
    chosen = _chosen(request.POST.get("threshold"), -1.0)
    if chosen < 0:
        messages.error(request, "Choose a threshold from 0 to 1.")
        return redirect("portal-key-calibrate", key_id=key.pk)
    values = policies.body_of(key)
    kind = _kind(request.POST.get("content_type"))
    values["threshold"] = _with_threshold(values.get("threshold") or {}, kind, chosen)
    try:
        saved = policies.save(key, values, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, str(exc.detail))
    else:
        messages.success(request, f"{chosen:.2f} is in force, as version {saved.version}.")
    return redirect("portal-key-calibrate", key_id=key.pk)


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


def _summary(known: Known, compared: Compared | None, at: float) -> list[str]:
    """What the threshold means, as `calibrate.js` says it while it is moved."""
    flagged, total = from_threshold(known.scores, at), sum(known.scores)
    alarms = from_threshold(known.false_alarms, at)
    caught, missed = from_threshold(known.missed, at), sum(known.missed)
    lines = [
        f"{flagged:,} of {total:,} flagged in {calibration.DAYS} days, {alarms:,} of them reported "
        f"as false alarms.",
    ]
    if missed:
        lines.append(f"{caught:,} of {missed:,} missed attacks would be flagged.")
    if compared is not None:
        lines.append(
            f"Of the uploaded texts: {from_threshold(compared.attacks, at):,} of "
            f"{sum(compared.attacks):,} attacks flagged, {from_threshold(compared.harmless, at):,} "
            f"of {sum(compared.harmless):,} harmless ones."
        )
    return lines


def _bars(known: Known, compared: Compared | None) -> list[dict[str, Any]]:
    """Bars of each series on a logarithmic scale, so that a few high scores are seen too."""
    rows: list[tuple[str, Sequence[int]]] = [("clean", known.scores)]
    if compared is not None:
        rows = [("clean", compared.harmless), ("errors", compared.attacks)]
    most = max((max(counts) for _, counts in rows), default=0) or 1
    marks = [("false alarms", known.false_alarms), ("missed", known.missed)]
    bars = []
    for kind, counts in rows:
        for number, count in enumerate(counts):
            if count:
                height = HEIGHT * log1p(count) / log1p(most)
                bars.append(
                    {
                        "kind": kind,
                        "x": number,
                        "y": HEIGHT - height,
                        "height": height,
                        "title": f"{number / BINS:.2f}: {count:,}"
                        + "".join(f", {c[number]} {name}" for name, c in marks if c[number]),
                        "is_marked": kind == "clean" and bool(known.false_alarms[number]),
                    }
                )
    return bars
