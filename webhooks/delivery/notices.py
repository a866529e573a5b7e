"""Mails to the owners of a webhook: it fails, it was disabled, it is enabled again.

A notice is a row, written with the fact it tells of, so that none is forgotten; it is sent apart,
because a mail server is slow. While the mail server is away it is tried again, for a day; what the
server refuses for what it holds, or to whom it goes, is parked.
"""

from __future__ import annotations

from datetime import timedelta

from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts import mailing, parking
from accounts.models import User
from gateway_project.core import clock, mails
from gateway_project.core.language import speaking
from gateway_project.core.stores.refused import UNFIT
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from webhooks.delivery.results import DISABLE_AFTER, NOTICE_STEP
from webhooks.models import Webhook, WebhookNotice

AT_ONCE = 100
CLAIM = timedelta(minutes=10)
GIVEN_UP_AFTER = timedelta(days=1)
UNSENDABLE = "webhooks.notice"
LEFT, REFUSED = "left", "refused"
"""In a notice's facts: the addresses that are to be written to yet, and those that were refused."""
Kind = WebhookNotice.Kind
log = get_logger("gateway.webhooks")

SUBJECTS = {
    Kind.FAILING: _("A webhook of {workspace} is failing"),
    Kind.DISABLED: _("A webhook of {workspace} was disabled"),
    Kind.ENABLED: _("A webhook of {workspace} is enabled again"),
}
BODIES = {
    Kind.FAILING: _(
        """\
The webhook

    {url}

of your workspace {workspace} did not accept an event, {step} times in a row. The last answer was:

    {last}

We go on trying: an event is sent up to ten times within three days. After {days} days of nothing
but failures the webhook is disabled.

What to do: look at its deliveries (GET /webhooks/{id}/deliveries shows every attempt with the
answer), mend the receiver, and send a test (POST /webhooks/test).
"""
    ),
    Kind.DISABLED: _(
        """\
The webhook

    {url}

of your workspace {workspace} was disabled: {why}.
Nothing is sent there any more. The last answer was:

    {last}

What to do: mend the receiver, then enable the webhook (PATCH /webhooks/{id} with
{{"is_active": true}}); it is probed first. What it missed can be sent again with
POST /webhooks/{id}/recover and the time of the first failure{since}.
"""
    ),
    Kind.ENABLED: _(
        """\
The webhook

    {url}

of your workspace {workspace} answered its probe and is enabled again. New events are sent from now
on; older ones only when you ask for them (POST /webhooks/{id}/recover).
"""
    ),
}
WHY = {
    Webhook.DisabledReason.GONE: _("it answered 410 Gone, which asks us to stop"),
    Webhook.DisabledReason.FAILING: _("for {days} days nothing but failures came back"),
}


def send_waiting() -> int:
    """Send the notices that wait; returns how many left. Each address gets
    one at most, unless a worker dies with it in hand."""
    now = clock.now()
    is_free = Q(claimed_at=None) | Q(claimed_at__lt=now - CLAIM)
    waiting = WebhookNotice.objects.filter(
        is_free, sent_at=None, created_at__gt=now - GIVEN_UP_AFTER
    ).order_by("created_at")
    sent, during = 0, Round()
    for pk in list(waiting.values_list("pk", flat=True)[:AT_ONCE]):
        if during.is_over:
            break
        # Compare-and-set: of two workers, one gets it. No transaction is held while mails leave.
        if not WebhookNotice.objects.filter(is_free, pk=pk, sent_at=None).update(claimed_at=now):
            continue
        notice = WebhookNotice.objects.select_related("webhook__workspace").filter(pk=pk).first()
        if notice is None:
            continue
        try:
            found = _send(notice)
        except UNFIT as exc:
            _park(notice, exc)
            WebhookNotice.objects.filter(pk=pk).update(sent_at=clock.now())
            continue
        for refused in found.refused.values():
            _park(notice, refused)
        # Who is left is tried again when the claim ends; who was refused, when staff say so.
        refused_of_all = [*notice.facts.get(REFUSED, []), *found.refused]
        facts = {**notice.facts, LEFT: found.later, REFUSED: refused_of_all}
        sent_at = None if found.later else clock.now()
        WebhookNotice.objects.filter(pk=pk).update(sent_at=sent_at, facts=facts)
        sent += sent_at is not None and not found.refused
        if found.is_away:
            break  # the others would fare no better
    return sent


def _park(notice: WebhookNotice, error: Exception) -> None:
    parking.park(UNSENDABLE, notice.pk, error, workspace_id=notice.webhook.workspace_id)


def _send(notice: WebhookNotice) -> mails.Sent:
    """A mail to each, or to those whom it has not reached yet."""
    left = notice.facts.get(LEFT)
    people = {one.email: one for one in recipients(notice.webhook)}
    if left is not None:
        people = {email: one for email, one in people.items() if email in left}

    def mail_to(email: str) -> EmailMessage:
        with speaking(people[email].language):
            subject, body = text_of(notice)
            return mails.message(subject, body, [email])

    return mails.send_each(list(people), mail_to)


@transaction.atomic
def send_again(notice_id: int) -> None:
    """Let a notice that was parked wait for the next round, for those who were refused."""
    notice = WebhookNotice.objects.select_for_update(no_key=True).filter(pk=notice_id).first()
    if notice is None:
        return
    if refused := notice.facts.pop(REFUSED, []):
        notice.facts[LEFT] = [*notice.facts[LEFT], *refused]
    notice.sent_at, notice.claimed_at, notice.created_at = None, None, clock.now()
    notice.save(update_fields=["facts", "sent_at", "claimed_at", "created_at"])


def recipients(webhook: Webhook) -> list[User]:
    """Owners and admins of its workspace who want such mails, each in a mail of their own.

    Without those whose address nobody confirmed: it may be a stranger's.
    """
    return mailing.people_of(webhook.workspace, "webhooks")


def text_of(notice: WebhookNotice) -> tuple[str, str]:
    """Subject and body, in the language that is spoken."""
    webhook, kind = notice.webhook, Kind(notice.kind)
    since = notice.facts.get("failing_since", "")
    why = WHY.get(notice.facts.get("reason", ""), gettext("its owner paused it"))
    values = {
        "url": webhook.url,
        "id": webhook.pk,
        "workspace": mails.name(webhook.workspace.name),
        "step": NOTICE_STEP,
        "days": DISABLE_AFTER.days,
        "last": notice.facts.get("last") or gettext("unknown"),
        "why": str(why).format(days=DISABLE_AFTER.days),
        "since": f", {since}" if since else "",
    }
    return str(SUBJECTS[kind]).format(**values), str(BODIES[kind]).format(**values)
