"""Policies: the workspace's, which keys follow, and keys' own; their versions, and what a change of
one would have changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect
from django.urls import reverse
from django.utils.translation import gettext, gettext_lazy

from accounts.models import ApiKey
from detection.models import PolicyVersion
from detection.policies import effects
from detection.policies import policy as policies
from detection.policies.effects import Effect
from detection.policies.policy import ENTRIES_MAX, THREAT_TYPES, DetectionPolicy, Owner
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods
from gateway_project.core.language import number
from portal import exports
from portal.members import Member, workspace_page
from portal.posting import posts_for

LOCKS = {
    "threshold": gettext_lazy("The threshold"),
    "mode": gettext_lazy("The mode"),
    "on_unavailable": gettext_lazy("What happens without the engine"),
}


def _threshold(label: Any) -> forms.FloatField:
    return forms.FloatField(
        required=False,
        min_value=0,
        max_value=1,
        label=label,
        help_text=gettext_lazy("0 to 1. Empty: 0.6."),
    )


def _entries(label: Any, help_text: Any) -> forms.CharField:
    return forms.CharField(
        required=False,
        label=label,
        help_text=help_text,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
    )


class PolicyForm(Form):
    version = forms.IntegerField(widget=forms.HiddenInput)
    threshold_engine = _threshold(gettext_lazy("Threshold when the engine judged"))
    threshold_fallback = _threshold(gettext_lazy("Threshold when the embedded detector had to"))
    mode = forms.ChoiceField(
        label=gettext_lazy("Mode"),
        choices=[
            ("enforce", gettext_lazy("Enforce: flag attacks")),
            ("monitor", gettext_lazy("Monitor: only say would_flag")),
        ],
    )
    on_unavailable = forms.ChoiceField(
        label=gettext_lazy("When the engine is away"),
        choices=[
            ("fallback", gettext_lazy("Let the embedded detector judge")),
            ("fail_closed", gettext_lazy("Refuse (503)")),
            ("fail_open", gettext_lazy("Judge nothing, and answer “review”")),
        ],
    )
    locked = forms.MultipleChoiceField(
        required=False,
        label=gettext_lazy("Requests may not change"),
        choices=list(LOCKS.items()),
        widget=forms.CheckboxSelectMultiple,
    )
    categories = forms.MultipleChoiceField(
        required=False,
        label=gettext_lazy("Threat types that count"),
        choices=[(name, name.replace("_", " ")) for name in THREAT_TYPES],
        widget=forms.CheckboxSelectMultiple,
    )
    allow_add = _entries(
        gettext_lazy("Allow these texts"),
        gettext_lazy("One a line. Each is the whole text, never a part."),
    )
    deny_add = _entries(
        gettext_lazy("Deny these texts"),
        gettext_lazy("One a line. A text on both lists is denied."),
    )
    drop = forms.MultipleChoiceField(
        required=False,
        label=gettext_lazy("Take off the lists"),
        widget=forms.CheckboxSelectMultiple,
    )
    store_text = forms.BooleanField(
        required=False,
        label=gettext_lazy("Keep texts, encrypted, as long as the log: members can read them"),
    )

    def __init__(
        self, owner: Owner, data: Any = None, *, like: dict[str, Any] | None = None
    ) -> None:
        """Filled from what is in force for `owner`, or from another policy, as it is stored."""
        values = policies.body_of(owner) if like is None else like
        known = policies.of_document(values)
        super().__init__(
            data,
            initial={
                "version": policies.version_of(owner),
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
                text = gettext("At most %(number)s texts on a list.")
                self.add_error(f"{name}_add", text % {"number": number(ENTRIES_MAX)})
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
def policy(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponseBase:
    """A key's: its own, or its workspace's until it has one."""
    return _page(request, member, member.key(key_id))


@require_http_methods(["GET", "HEAD", "POST"])
@workspace_page
def of_workspace(request: HttpRequest, member: Member) -> HttpResponseBase:
    """The one that is in force for all keys that have none of their own."""
    return _page(request, member, member.workspace)


def _page(request: HttpRequest, member: Member, owner: Owner) -> HttpResponseBase:
    """The form, filled from what is in force or from what `?like=` names; a POST saves it, or with
    `preview` says what it would have changed."""
    is_post = request.method == "POST"
    wanted = (request.POST if is_post else request.GET).get("like", "")
    like = _like(member, owner, wanted)
    form = PolicyForm(owner, request.POST if is_post else None, like=like)
    effect: Effect | None = None
    if is_post:
        member.must_change()
        if form.is_valid():
            if "preview" in request.POST:
                effect = _effect(member, owner, policies.read(form.policy()))
            elif _save(request, member, owner, form):
                return redirect(_address(owner))
    elif like is not None:
        effect = _effect(member, owner, policies.of_document(like))
    versions = _with_changes(policies.versions_of(owner))
    key = owner if isinstance(owner, ApiKey) else None
    is_ended = key is not None and key.is_ended
    facts = {
        "member": member,
        "key": key,
        "is_ended": is_ended,
        "follows": key is not None and not key.detection_policy,
        "has_default": bool(member.workspace.detection_policy),
        "form": form,
        "like": wanted if like is not None else "",
        "others": _others(member, owner),
        "effect": effect,
        "days": effects.DAYS,
        "followers": effects.followers_of(member.workspace) if key is None else 0,
        "versions": versions,
        "now": 0 if is_ended else policies.version_of(owner),
    }
    files = {"versions": lambda: _table(versions)}
    return exports.page(request, "portal/pages/policy.html", facts, files)


def _address(owner: Owner) -> str:
    if isinstance(owner, ApiKey):
        return reverse("portal-key-policy", kwargs={"key_id": owner.pk})
    return reverse("portal-policy")


def _save(request: HttpRequest, member: Member, owner: Owner, form: PolicyForm) -> bool:
    try:
        saved = policies.save(
            owner,
            form.policy(),
            expected=[form.cleaned_data["version"]],
            actor=member.actor(request),
        )
    except (errors.PreconditionFailed, errors.Conflict, errors.ValidationFailed) as exc:
        form.add_error(None, "; ".join(exc.sentences) or exc.for_people())
        return False
    messages.success(
        request, gettext("Version %(version)s is in force.") % {"version": saved.version}
    )
    return True


def _effect(member: Member, owner: Owner, after: DetectionPolicy) -> Effect:
    before = policies.of_owner(owner)
    return effects.of_change(member.workspace, effects.keys_of(owner), before, after)


def _like(member: Member, owner: Owner, text: str) -> dict[str, Any] | None:
    """The policy that `like` names: a version of this one (`3`), the workspace's, or a key's by its
    id. None: nothing is named, or there is none such."""
    if text == "workspace":
        return dict(member.workspace.detection_policy)
    if text.isascii() and text.isdigit():
        found = {str(one.version): one.policy for one in policies.versions_of(owner)}
        return found.get(text)
    try:
        other = member.keys.filter(pk=UUID(text)).first()
    except ValueError:
        return None
    return dict(other.detection_policy) if other is not None else None


def _others(member: Member, owner: Owner) -> list[tuple[str, str]]:
    """Whose policies may be copied: `(like, name)`."""
    keys = member.keys.usable().exclude(detection_policy={}).exclude(pk=owner.pk)
    found = [(str(pk), name) for pk, name in keys.order_by("name").values_list("pk", "name")[:200]]
    if isinstance(owner, ApiKey) and member.workspace.detection_policy:
        found.insert(0, ("workspace", gettext("The workspace's")))
    return found


def _with_changes(versions: Sequence[PolicyVersion]) -> list[tuple[PolicyVersion, list[str]]]:
    """Each version with what it changed of the one before; of the oldest nothing is known."""
    return [
        (
            version,
            [
                f"{name}: {_plain(before)} → {_plain(after)}"
                for name, (before, after) in policies.changes_between(
                    older.policy, version.policy
                ).items()
            ]
            if older is not None
            else [],
        )
        for version, older in zip(versions, [*versions[1:], None], strict=False)
    ]


def _plain(value: Any) -> str:
    """As people read it: what is at its default is not said."""
    if isinstance(value, dict):
        parts = [
            f"{name} {_plain(one)}" for name, one in value.items() if one not in (None, {}, [])
        ]
        return ", ".join(parts) or gettext("default")
    if isinstance(value, bool):
        return gettext("on") if value else gettext("off")
    if isinstance(value, list):
        return ", ".join(map(str, value)) or gettext("none")
    return gettext("default") if value is None else str(value)


def _table(versions: Sequence[tuple[PolicyVersion, list[str]]]) -> exports.Table:
    return exports.Table(
        ("version", "created_at", "actor", "changes"),
        [(one.version, one.created_at, one.actor, "; ".join(changes)) for one, changes in versions],
    )


@posts_for("portal-key-policy")
@workspace_page
def restore(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    return _restore(request, member, member.key(key_id))


@posts_for("portal-policy")
@workspace_page
def restore_default(request: HttpRequest, member: Member) -> HttpResponse:
    return _restore(request, member, member.workspace)


def _restore(request: HttpRequest, member: Member, owner: Owner) -> HttpResponse:
    """An older version again, as a new one."""
    member.must_change()
    wanted = request.POST.get("version", "")
    known = {str(version.version): version for version in policies.versions_of(owner)}
    if wanted not in known:
        messages.error(request, gettext("There is no such version any more. Nothing was changed."))
        return redirect(_address(owner))
    try:
        saved = policies.save(owner, known[wanted].policy, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
    else:
        text = gettext("As in version %(old)s: %(version)s is in force.")
        messages.success(request, text % {"old": wanted, "version": saved.version})
    return redirect(_address(owner))


@posts_for("portal-key-policy")
@workspace_page
def follow(request: HttpRequest, member: Member, key_id: UUID) -> HttpResponse:
    """Drop the key's own policy, so that the workspace's is in force."""
    member.must_change()
    key = member.key(key_id)
    try:
        policies.follow_workspace(key, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
    else:
        messages.success(
            request, gettext("The key follows the workspace's policy. Its versions stay here.")
        )
    return redirect(_address(key))
