"""What staff do to one customer: each act asks a reason, which the customer reads, and may end.

An act goes through the services that everybody uses, so that it is audited by them; beside that
line stands ours, with the reason. What has an end is undone by `undo_due`, to what was before,
unless somebody has changed it meanwhile. Of acts on the same limit the newest that has not ended is
in force; one that ends below it leaves it what was before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from allauth.usersessions.models import UserSession
from django import forms
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext, gettext_noop, ngettext
from django.utils.translation import gettext_lazy as _

from accounts import moderation, services
from accounts.adapter import send_confirmation
from accounts.events import audit
from accounts.models import ApiKey, Plan, User, Workspace
from accounts.services import Actor
from gateway_project.core import clock, errors
from gateway_project.core.api.forms import Form
from gateway_project.core.language import number
from gateway_project.core.stores.refused import each_alone
from portal.forms import moment_input
from portal.models import StaffAct
from webhooks import services as webhooks
from webhooks.models import Webhook

AT_ONCE = 20
UNDONE_BY = Actor("staff, when the time was up")


def reason_field(help_text: Any) -> forms.CharField:
    """Why somebody of staff does it; `help_text` says who reads that."""
    area = forms.Textarea(attrs={"rows": 3})
    return forms.CharField(
        label=_("Reason"), min_length=5, max_length=500, widget=area, help_text=help_text
    )


class ReasonForm(Form):
    """What every act asks. `workspace` narrows what can be chosen to what is theirs."""

    reason = reason_field(_("The customer reads it in their audit trail."))

    def __init__(self, workspace: Workspace, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.workspace = workspace
        own = [name for name in self.fields if name not in ("until", "reason")]
        self.order_fields([*own, "until", "reason"])


class UntilForm(ReasonForm):
    until = forms.DateTimeField(
        required=False,
        label=_("Until (UTC)"),
        widget=moment_input(),
        help_text=_("Undone by itself then. Empty: until somebody does."),
    )

    def clean_until(self) -> datetime | None:
        until: datetime | None = self.cleaned_data["until"]
        if until is not None and until <= clock.now():
            raise forms.ValidationError(gettext("This is past. Choose a time to come."))
        return until


class LimitsForm(UntilForm):
    per_day = forms.IntegerField(
        min_value=1,
        max_value=2_000_000_000,
        required=False,
        label=_("Texts a day, of all its keys"),
    )
    per_minute = forms.IntegerField(
        min_value=1,
        max_value=2_000_000_000,
        required=False,
        label=_("Calls a minute, of all its keys"),
    )

    def __init__(self, workspace: Workspace, *args: Any, **kwargs: Any) -> None:
        super().__init__(workspace, *args, **kwargs)
        for name, limit in (
            ("per_day", workspace.day_quota),
            ("per_minute", workspace.minute_limit),
        ):
            message = gettext("Now %(number)s. Empty: as it is.") % {"number": number(limit)}
            self.fields[name].help_text = message

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if not self.errors and not (values.get("per_day") or values.get("per_minute")):
            raise forms.ValidationError(gettext("Give at least one limit."))
        return values


class PlanForm(ReasonForm):
    plan = forms.ModelChoiceField(
        Plan.objects.order_by("rate_limit_per_day", "name"), label=_("Plan")
    )


class KeyForm(ReasonForm):
    key = forms.ModelChoiceField(ApiKey.objects.none(), label=_("Key"))

    def __init__(self, workspace: Workspace, *args: Any, **kwargs: Any) -> None:
        super().__init__(workspace, *args, **kwargs)
        choice: Any = self.fields["key"]
        choice.queryset = workspace.keys.usable().listed().without_policies().order_by("-id")
        choice.label_from_instance = lambda key: f"{key.name} ({key.prefix}…{key.last4})"


class ExtendForm(KeyForm):
    days = forms.IntegerField(min_value=1, max_value=90, initial=1, label=_("Days more"))


class PersonForm(ReasonForm):
    person = forms.ModelChoiceField(User.objects.none(), label=_("Person"))

    def __init__(self, workspace: Workspace, *args: Any, **kwargs: Any) -> None:
        super().__init__(workspace, *args, **kwargs)
        choice: Any = self.fields["person"]
        choice.queryset = User.objects.filter(memberships__workspace=workspace).order_by("email")


class WebhookForm(ReasonForm):
    webhook = forms.ModelChoiceField(Webhook.objects.none(), label=_("Webhook"))
    days = forms.IntegerField(min_value=1, max_value=30, initial=1, label=_("Of the last days"))

    def __init__(self, workspace: Workspace, *args: Any, **kwargs: Any) -> None:
        super().__init__(workspace, *args, **kwargs)
        choice: Any = self.fields["webhook"]
        choice.queryset = Webhook.objects.listed().filter(workspace=workspace, is_active=True)
        choice.label_from_instance = lambda hook: hook.url


@dataclass(frozen=True, slots=True)
class Call:
    """An act that is being done: to whom, by whom, and what its form said."""

    workspace: Workspace
    values: Mapping[str, Any]
    actor: Actor
    request: HttpRequest


@dataclass(frozen=True, slots=True)
class Done:
    """What is told of it. `before` is what an end restores."""

    message: str
    target: str = ""
    before: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Action:
    name: str
    label: Any
    means: Any
    right: str
    form: type[ReasonForm]
    run: Callable[[Call], Done]
    applies: Callable[[Workspace], bool] = field(default=lambda _: True)
    is_grave: bool = False


def do(act: Action, call: Call) -> Done:
    """Do it, with our line beside the services' own, or nothing of it.

    What mails or talks to others does so when the row is written. Raises a `GatewayError` to
    refuse.
    """
    reason, until = call.values["reason"], call.values.get("until")
    with transaction.atomic():
        done = act.run(call)
        StaffAct.objects.create(
            workspace=call.workspace,
            act=act.name,
            target=done.target,
            reason=reason,
            done_by=call.actor.name,
            until=until,
            before=done.before,
        )
        details = {"reason": reason, **({"until": f"{until:%Y-%m-%d %H:%M} UTC"} if until else {})}
        audit(
            f"staff.{act.name}",
            workspace=call.workspace,
            target=done.target or call.workspace.pk,
            **details,
            **call.actor.fields(),
        )
    return done


# -- The acts -------------------------------------------------------------------------------------


def _suspend(call: Call) -> Done:
    if not moderation.suspend_workspace(call.workspace, actor=call.actor):
        raise errors.Conflict(
            gettext_noop("It is suspended already. Reload the page to see since when.")
        )
    return Done(
        gettext("Suspended: every key is refused within a second."), before={"suspended": False}
    )


def _reinstate(call: Call) -> Done:
    if not moderation.reinstate_workspace(call.workspace, actor=call.actor):
        raise errors.Conflict(gettext_noop("It is not suspended any more. Reload the page."))
    _settle(call.workspace, "suspend")
    return Done(gettext("Reinstated: its keys work again."))


def _raise_limits(call: Call) -> Done:
    wanted = {
        "rate_limit_per_day": call.values.get("per_day"),
        "rate_limit_per_minute": call.values.get("per_minute"),
    }
    changes = {name: limit for name, limit in wanted.items() if limit}
    held = Workspace.objects.select_for_update(no_key=True).get(pk=call.workspace.pk)
    before = {name: [getattr(held, name), limit] for name, limit in changes.items()}
    moderation.change_workspace(call.workspace, changes, actor=call.actor)
    return Done(gettext("The limits count from the next call on."), before=before)


def _change_plan(call: Call) -> Done:
    plan: Plan = call.values["plan"]
    moderation.change_plan(call.workspace, plan, actor=call.actor, fit_keys=False)
    message = gettext("On the plan “%(name)s” from the next call on.") % {"name": plan.name}
    return Done(message, target=plan.name)


def _revoke(call: Call) -> Done:
    key: ApiKey = call.values["key"]
    services.revoke_key(key, actor=call.actor)
    message = gettext("“%(name)s” is refused within a second.") % {"name": key.name}
    return Done(message, target=str(key.pk))


def _extend(call: Call) -> Done:
    key: ApiKey = call.values["key"]
    days = timedelta(days=call.values["days"])
    if key.status == "grace":
        services.extend_grace(key, int(days.total_seconds()), actor=call.actor)
    elif key.expires_at is not None:
        changes = {"expires_at": key.expires_at + days}
        services.update_key(key, changes, actor=call.actor, within_plan=False)
    else:
        raise errors.Conflict(
            gettext_noop("This key has no end. Choose one that is in its grace or expires.")
        )
    message = ngettext(
        "“%(name)s” works one day longer.", "“%(name)s” works %(days)s days longer.", days.days
    )
    return Done(message % {"name": key.name, "days": days.days}, target=str(key.pk))


def _confirm_again(call: Call) -> Done:
    person: User = call.values["person"]
    if person.email_confirmed_at is not None:
        raise errors.Conflict(gettext_noop("This address is confirmed. Choose another person."))
    request = call.request
    transaction.on_commit(lambda: send_confirmation(request, person))
    message = gettext("The link is sent to %(email)s again.") % {"email": person.email}
    return Done(message, target=person.email)


def _end_sessions(call: Call) -> Done:
    person: User = call.values["person"]
    sessions = list(UserSession.objects.filter(user=person))
    for session in sessions:
        session.end()
    message = ngettext(
        "One session of %(email)s is ended.",
        "%(n)s sessions of %(email)s are ended.",
        len(sessions),
    )
    return Done(message % {"n": len(sessions), "email": person.email}, target=person.email)


def _recover(call: Call) -> Done:
    hook: Webhook = call.values["webhook"]
    since = clock.now() - timedelta(days=call.values["days"])
    count, is_all = webhooks.recover(hook, since, None, actor=call.actor)
    message = ngettext("One delivery is sent again.", "%(n)s deliveries are sent again.", count)
    more = "" if is_all else " " + gettext("There are more: do it again.")
    return Done(message % {"n": number(count)} + more, target=str(hook.pk))


ACTIONS: Mapping[str, Action] = {
    act.name: act
    for act in (
        Action(
            "resend_confirmation",
            _("Send the confirmation again"),
            _("A new link to a person who has not confirmed their address."),
            "help",
            PersonForm,
            _confirm_again,
        ),
        Action(
            "resend_deliveries",
            _("Send failed deliveries again"),
            _(
                "What failed, and what was never tried, of one webhook. Receivers may see some "
                "twice."
            ),
            "help",
            WebhookForm,
            _recover,
        ),
        Action(
            "extend_key",
            _("Extend a key"),
            _("The grace of a rotated key, or the end of one that expires."),
            "help",
            ExtendForm,
            _extend,
        ),
        Action(
            "end_sessions",
            _("End sessions"),
            _("All of one person, everywhere: they sign in again."),
            "help",
            PersonForm,
            _end_sessions,
        ),
        Action(
            "raise_limits",
            _("Change limits"),
            _("Of all its keys together, instead of the plan's, until the time you say."),
            "limits",
            LimitsForm,
            _raise_limits,
        ),
        Action(
            "change_plan",
            _("Change the plan"),
            _("The new limits count from the next call on. Keys keep their own limits."),
            "limits",
            PlanForm,
            _change_plan,
        ),
        Action(
            "revoke_key",
            _("Revoke a key"),
            _("Refused everywhere within a second, for good: nobody can take it back."),
            "revoke",
            KeyForm,
            _revoke,
            is_grave=True,
        ),
        Action(
            "suspend",
            _("Suspend"),
            _(
                "Every key is refused with 403 workspace_suspended, and no webhook is sent. "
                "Nothing is deleted."
            ),
            "suspend",
            UntilForm,
            _suspend,
            applies=lambda workspace: not workspace.is_suspended_by_staff,
            is_grave=True,
        ),
        Action(
            "reinstate",
            _("Reinstate"),
            _("Its keys work again, and its webhooks are sent."),
            "suspend",
            ReasonForm,
            _reinstate,
            applies=lambda workspace: workspace.is_suspended_by_staff,
        ),
    )
}


# -- Undoing what had an end ----------------------------------------------------------------------


def undo_due() -> int:
    """Undo what is due, some at a time; returns how many were."""
    due = StaffAct.objects.filter(undone_at=None, until__lte=clock.now())
    ids = list(due.order_by("until").values_list("pk", flat=True)[:AT_ONCE])
    return sum(each_alone(ids, partial(_undo_one, due)))


@transaction.atomic
def _undo_one(due: QuerySet[StaffAct], pk: UUID) -> bool:
    """False: it is another worker's."""
    # The workspace, too: acts on one take place one after the other.
    found = due.select_related("workspace").select_for_update(
        skip_locked=True, no_key=True, of=("self", "workspace")
    )
    row = found.filter(pk=pk).first()
    if row is None:
        return False
    _undo(row)
    StaffAct.objects.filter(pk=pk).update(undone_at=clock.now())
    return True


def _undo(row: StaffAct) -> None:
    if row.act == "suspend":
        # One that was suspended again, wherever, is so for another reason.
        at = row.workspace.suspended_at
        if at is not None and at <= row.done_at:
            moderation.reinstate_workspace(row.workspace, actor=UNDONE_BY)
        return
    # Somebody who has set another limit meanwhile meant it.
    changes = {}
    for name, (before, given) in (row.before or {}).items():
        if above := _above(row, name):
            if above.before[name][0] == given:
                above.before[name][0] = before
                above.save(update_fields=["before"])
        elif getattr(row.workspace, name) == given:
            changes[name] = before
    if changes:
        moderation.change_workspace(row.workspace, changes, actor=UNDONE_BY)


def _above(row: StaffAct, limit: str) -> Any:
    """The act that changed the limit next after this one, if it has not ended."""
    later = StaffAct.objects.filter(
        workspace=row.workspace, act=row.act, undone_at=None, id__gt=row.pk, before__has_key=limit
    )
    return later.order_by("id").first()


def _settle(workspace: Workspace, act: str) -> None:
    """An act that was taken back by hand has no end any more."""
    waiting = StaffAct.objects.filter(workspace=workspace, act=act, undone_at=None)
    waiting.filter(until__isnull=False).update(undone_at=clock.now())
