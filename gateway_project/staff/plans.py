"""Changes of plans by four eyes: one member of staff proposes, another confirms.

A plan's limits and price are everybody's who is on it, and one slip of the pen is a thousand
customers'. So a change waits for a second person with the right to confirm it, as long as there is
one (`STAFF_FOUR_EYES` says otherwise); where one person runs the installation, it is done at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from smtplib import SMTPException
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q, QuerySet
from django.urls import reverse
from django.utils.translation import gettext, gettext_noop

from accounts import moderation, roles
from accounts.events import audit
from accounts.models import Plan, User
from accounts.services import Actor
from gateway_project.core import clock, errors, mails
from gateway_project.core.language import dated, speaking
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from portal.models import PlanProposal

RIGHT = "limits"
WAITS = timedelta(days=7)
LISTED_MAX = 20
NOTIFIED_MAX = 20
"""So many members of staff get a mail of one proposal."""
Outcome = PlanProposal.Outcome
ALREADY = {
    Outcome.CONFIRMED: gettext_noop("It is confirmed already, by %(name)s. Reload the page."),
    Outcome.DECLINED: gettext_noop("It is declined already, by %(name)s. Reload the page."),
}
log = get_logger("gateway.staff")


def needs_two() -> bool:
    """Whether a change waits. By default: while two members of staff may confirm one."""
    if settings.STAFF_FOUR_EYES is not None:
        return bool(settings.STAFF_FOUR_EYES)
    return len(_with_right()[:2]) == 2


def _with_right() -> QuerySet[User]:
    names = [name for name, rights in roles.RIGHTS.items() if RIGHT in rights]
    people = User.objects.filter(is_staff=True, is_active=True)
    return people.filter(Q(is_superuser=True) | Q(groups__name__in=names)).distinct()


def propose(
    plan: Plan, changes: Mapping[str, Any], *, reason: str, by: User, actor: Actor
) -> PlanProposal | None:
    """Have another person confirm these; None: the plan has these values already."""
    held = Plan.objects.get(pk=plan.pk)
    changes = {name: value for name, value in changes.items() if getattr(held, name) != value}
    if not changes:
        return None
    before = {name: getattr(held, name) for name in changes}
    with transaction.atomic():
        found = PlanProposal.objects.create(
            plan=held,
            changes=changes,
            before=before,
            reason=reason,
            proposer_id=by.pk,
            proposed_by=by.email,
            expires_at=clock.now() + WAITS,
        )
        audit(
            "plan.change_proposed",
            target=plan.pk,
            changes={name: [before[name], value] for name, value in changes.items()},
            reason=reason,
            **actor.fields(),
        )
        transaction.on_commit(lambda: _tell_others(found), robust=True)
    return found


def waiting() -> QuerySet[PlanProposal]:
    return PlanProposal.objects.filter(outcome=Outcome.WAITING, expires_at__gt=clock.now())


def latest() -> QuerySet[PlanProposal]:
    """What became of the last ones; those that nobody confirmed in time among them."""
    over = PlanProposal.objects.exclude(outcome=Outcome.WAITING)
    return (over | PlanProposal.objects.filter(expires_at__lte=clock.now()))[:LISTED_MAX]


def confirm(proposal_id: UUID, *, by: User, actor: Actor) -> PlanProposal:
    """Carry it out. Raises 409 for one's own, and when the plan or the proposal has moved on."""
    with transaction.atomic():
        found = _decide(proposal_id, Outcome.CONFIRMED, by)
        if found.proposer_id == by.pk:
            raise errors.Conflict(
                gettext_noop("You proposed this. Somebody else has to confirm it.")
            )
        plan = Plan.objects.select_for_update(no_key=True).get(pk=found.plan_id)
        moved = [name for name, was in found.before.items() if getattr(plan, name) != was]
        if moved:
            raise errors.Conflict(
                Sentence(
                    gettext_noop(
                        "The plan was changed since (%(columns)s). Decline this, and propose it "
                        "anew as it stands now."
                    ),
                    columns=", ".join(moved),
                )
            )
        moderation.save_plan(plan, found.changes, actor=actor)
        audit(
            "plan.change_confirmed",
            target=found.plan_id,
            proposed_by=found.proposed_by,
            reason=found.reason,
            **actor.fields(),
        )
        transaction.on_commit(lambda: _tell_proposer(found), robust=True)
    return found


def decline(proposal_id: UUID, *, by: User, actor: Actor) -> PlanProposal:
    """Let nothing come of it; one's own as well. Raises 409 when it is decided."""
    with transaction.atomic():
        found = _decide(proposal_id, Outcome.DECLINED, by)
        audit(
            "plan.change_declined",
            target=found.plan_id,
            proposed_by=found.proposed_by,
            **actor.fields(),
        )
        transaction.on_commit(lambda: _tell_proposer(found), robust=True)
    return found


def _decide(proposal_id: UUID, outcome: Outcome, by: User) -> PlanProposal:
    rows = PlanProposal.objects.select_for_update(no_key=True).filter(pk=proposal_id)
    found = rows.first()
    if found is None:
        raise errors.NotFound(
            gettext_noop("There is no such proposal. Look at the list of those that wait.")
        )
    if found.outcome != Outcome.WAITING:
        refusal = ALREADY[Outcome(found.outcome)]
        raise errors.Conflict(Sentence(refusal, name=found.decided_by))
    if found.expires_at <= clock.now():
        raise errors.Conflict(gettext_noop("Nobody confirmed it in time. Propose it anew."))
    found.outcome, found.decided_by, found.decided_at = outcome, by.email, clock.now()
    found.save(update_fields=["outcome", "decided_by", "decided_at"])
    return found


# -- Mails ----------------------------------------------------------------------------------------


def _tell_others(proposal: PlanProposal) -> None:
    """Who may confirm it would not know otherwise: it waits for seven days."""
    notices = []
    for person in _with_right().exclude(pk=proposal.proposer_id).order_by("pk")[:NOTIFIED_MAX]:
        with speaking(person.language):
            facts = {
                "plan": proposal.plan_id,
                "name": proposal.proposed_by,
                "at": dated(proposal.expires_at),
                "reason": proposal.reason,
            }
            subject = gettext("A change of the plan “%(plan)s” waits for you to confirm it") % facts
            text = gettext(
                "%(name)s proposes this change, for everybody on the plan “%(plan)s”:\n"
                "\n"
                "%(changes)s\n"
                "\n"
                "The reason: %(reason)s\n"
                "\n"
                "Confirm or decline it until %(at)s UTC, at the desk under “Plan changes”."
            ) % {**facts, "changes": _changes(proposal)}
            notices.append(_mail(person, subject, text))
    _send(notices)


def _tell_proposer(proposal: PlanProposal) -> None:
    """What became of it, unless they decided it themselves."""
    person = User.objects.filter(pk=proposal.proposer_id, is_active=True).first()
    if person is None or person.email == proposal.decided_by:
        return
    with speaking(person.language):
        if proposal.outcome == Outcome.CONFIRMED:
            subject = gettext("Your change of the plan “%(plan)s” is confirmed")
            text = gettext("%(name)s confirmed it. It counts from the next call on:\n\n%(changes)s")
        else:
            subject = gettext("Your change of the plan “%(plan)s” is declined")
            text = gettext(
                "%(name)s declined it. The plan stays as it was; not changed:\n\n%(changes)s"
            )
        facts = {"name": proposal.decided_by, "changes": _changes(proposal)}
        notice = _mail(person, subject % {"plan": proposal.plan_id}, text % facts)
    _send([notice])


def _changes(proposal: PlanProposal) -> str:
    return mails.table([(name, f"{before} → {after}") for name, before, after in proposal.lines])


def _mail(person: User, subject: str, text: str) -> EmailMessage:
    if settings.PUBLIC_URL:
        text += f"\n\n{settings.PUBLIC_URL.rstrip('/')}{reverse('admin:desk-plans')}"
    return mails.message(subject, text, [person.email])


def _send(notices: Sequence[EmailMessage]) -> None:
    database.let_go()  # a mail server takes its time
    for mail in notices:
        try:
            mail.send()
        except (OSError, SMTPException) as exc:
            # The desk says that it waits, too.
            log.error("plan_mail_unsent", error=type(exc).__name__)
