"""Announcements by mail: to confirmed addresses, in slices, once each, with progress for staff.

A mail server cannot be asked whether it has taken a mail, so that "once" needs the turn to be
written before the mail leaves. What a killed worker leaves is one account of which nobody knows; it
is counted as such, and staff may send to those again. The mail of one account and announcement has
one `Message-ID`, so that most mail programs show a second one as the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import parseaddr
from enum import Enum
from smtplib import SMTPException, SMTPRecipientsRefused, SMTPResponseException
from typing import Any
from uuid import UUID

from django.conf import settings
from django.core.mail import EmailMessage, get_connection
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet
from django.utils.translation import gettext
from django.utils.translation import gettext_noop as _

from accounts import mailing as mails_of
from accounts.events import audit
from accounts.models import Membership, User
from accounts.services import Actor
from gateway_project.core import clock, errors, mails
from gateway_project.core.language import speaking
from gateway_project.core.stores import database
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from portal.models import Announcement, Mailing

KIND = "news"
SLICE = 100
LEASE = timedelta(minutes=2)
"""After so long without a sign the worker is gone: no mail takes as long (`EMAIL_TIMEOUT`)."""
LISTED_MAX = 1_000
"""Of so many nobody knows: the mail server is broken, and somebody has to look."""
TRIED_FOR = timedelta(days=1)
IMPORTANT = _("This is important, and goes to everybody whatever their settings say.")
log = get_logger("gateway.mailings")


# -- What staff do --------------------------------------------------------------------------------


def begin(announcement: Announcement, *, actor: Actor, subject: str, is_important: bool) -> None:
    """Send it by mail, too, from the next round of the worker on. Raises 409 the second time."""
    with transaction.atomic():
        _, is_new = Mailing.objects.get_or_create(
            announcement=announcement,
            defaults={"subject": subject, "is_important": is_important, "begun_by": actor.name},
        )
        if not is_new:
            raise errors.Conflict("It was given to the mail already. Write another announcement.")
        audit(
            "announcement.mailing_begun",
            target=announcement.pk,
            subject=subject,
            important=is_important,
            plan=announcement.plan_id or "",
            **actor.fields(),
        )


def stop(announcement: Announcement, *, actor: Actor) -> bool:
    """Send no more of it. What has left has left."""
    with transaction.atomic():
        row = _locked(announcement.pk)
        if row is None or row.finished_at is not None:
            return False
        _finish(row, is_stopped=True, by=actor)
    return True


def send_again(announcement: Announcement, *, actor: Actor) -> bool:
    """To those of whom nobody knows whether they got it: some then get it twice."""
    with transaction.atomic():
        row = _locked(announcement.pk)
        if row is None or not row.unknown:
            return False
        row.again, row.unknown, row.finished_at = [*row.again, *row.unknown], [], None
        row.save(update_fields=["again", "unknown", "finished_at"])
        audit(
            "announcement.mailed_again",
            target=announcement.pk,
            accounts=len(row.again),
            **actor.fields(),
        )
    return True


def _locked(pk: UUID, **only: Any) -> Mailing | None:
    found = Mailing.objects.select_for_update(no_key=True, of=("self",)).filter(pk=pk, **only)
    return found.select_related("announcement").first()


# -- What the worker does -------------------------------------------------------------------------


class Outcome(Enum):
    SENT = "sent"
    REFUSED = "refused"
    LATER = "later"
    """Refused for now (4xx): tried again when all others had their turn, for `TRIED_FOR`."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Slice:
    """Whose turn it is next. `passed`: how many who want no news stand before each."""

    row: Mailing
    people: Sequence[User]
    passed: Mapping[UUID, int]


def work() -> int:
    """A round; returns how many mails were sent."""
    sent, during = 0, Round()
    waiting = Mailing.objects.filter(finished_at=None).order_by("begun_at")
    for pk in waiting.values_list("pk", flat=True)[:10]:
        if during.is_over:
            break
        sent += _work(pk, during)
    return sent


def _work(pk: UUID, during: Round) -> int:
    connection = get_connection()
    try:
        connection.open()  # before anybody's turn: a server that is away costs nobody a mail
    except (OSError, SMTPException) as exc:
        log.error("mailing_unsent", error=type(exc).__name__)
        return 0
    sent = 0
    try:
        while not during.is_over and (found := _slice(pk)) is not None:
            for user in found.people:
                mail = _claim(found, user)
                if mail is None:
                    return sent  # another worker's turn, or stopped
                mail.connection = connection
                outcome, is_well = _send(found.row, mail)
                sent += outcome is Outcome.SENT
                if not is_well or during.is_over:
                    return sent
    finally:
        connection.close()
    return sent


def _slice(pk: UUID) -> Slice | None:
    """None: there is nothing to do, or somebody does it."""
    with transaction.atomic():
        row = _locked(pk, finished_at=None)
        if row is None or not _is_free(row):
            return None
        if row.total is None:
            row.total = _everybody(row).count()
            row.save(update_fields=["total"])
        people: list[User] = []
        passed: dict[UUID, int] = {}
        found = _next(row)
        if not found:
            _finish(row, is_stopped=False)
            return None
        before = 0
        for user in found:
            if row.is_important or mails_of.wants(user, KIND):
                people.append(user)
                passed[user.pk], before = before, 0
            else:
                before += 1
        if not people:
            _pass(row, found, before)
            row.save(update_fields=PASSED)
    return Slice(row, people, passed)


def _is_free(row: Mailing) -> bool:
    """Whether nobody is sending. The account that a dead worker had in hand is of unknown fate."""
    if row.current is None:
        return True
    if row.worked_at is not None and row.worked_at > clock.now() - LEASE:
        return False
    _settle(row, Outcome.UNKNOWN)
    return row.finished_at is None


def _everybody(row: Mailing) -> QuerySet[User]:
    people = User.objects.filter(
        is_active=True, email_confirmed_at__isnull=False, pk__lte=row.last_id
    )
    if plan := row.announcement.plan_id:
        of_plan = Membership.objects.filter(
            user=OuterRef("pk"), workspace__plan=plan, workspace__deleted_at=None
        )
        people = people.filter(Exists(of_plan))
    return people


def _next(row: Mailing) -> list[User]:
    """By their ids, and at the end those who are tried again, but for those who went away."""
    people = _everybody(row).order_by("pk")
    found: list[User] = []
    if len(row.again) < LISTED_MAX:
        rest = people if row.after is None else people.filter(pk__gt=row.after)
        found = list(rest[:SLICE])
    while not found and row.again:
        found = list(people.filter(pk__in=row.again[:SLICE]))
        if not found:
            row.again = row.again[SLICE:]
            row.save(update_fields=["again"])
    return found


PASSED = ["after", "again", "skipped"]


def _pass(row: Mailing, users: Sequence[User], skipped: int) -> None:
    """Their turn is over."""
    gone = {str(user.pk) for user in users}
    if not gone.isdisjoint(row.again):
        row.again = [one for one in row.again if one not in gone]
    else:
        row.after = users[-1].pk
    row.skipped += skipped


def _claim(seen: Slice, user: User) -> EmailMessage | None:
    """The mail of whoever's turn it is, once that is written; None: the turn is another's."""
    with transaction.atomic():
        row = _locked(seen.row.pk, finished_at=None)
        if row is None or row.current is not None:
            return None
        is_as_seen = (row.after, row.again) == (seen.row.after, seen.row.again)
        if not is_as_seen:
            return None
        _pass(row, [user], seen.passed.get(user.pk, 0))
        row.current, row.worked_at = user.pk, clock.now()
        row.save(update_fields=[*PASSED, "current", "worked_at"])
    seen.row.after, seen.row.again = row.after, row.again
    return _mail(row, user)


def _mail(row: Mailing, user: User) -> EmailMessage:
    text = row.announcement.text
    if settings.PUBLIC_URL:
        text += f"\n\n{settings.PUBLIC_URL.rstrip('/')}/app/"
    if row.is_important:
        with speaking(user.language):
            foot = f"\n-- \n{gettext(IMPORTANT)}\n"
            mail: EmailMessage = mails.message(
                row.subject, f"{text}\n{foot}", [user.email], ours=mails.ANY_LINK
            )
    else:
        mail = mails_of.message_to(user, KIND, lambda: (row.subject, text), mails.ANY_LINK)
    domain = parseaddr(settings.DEFAULT_FROM_EMAIL)[1].rpartition("@")[2] or "localhost"
    mail.extra_headers["Message-ID"] = f"<{row.pk}.{user.pk}@{domain}>"
    return mail


def _send(seen: Mailing, mail: EmailMessage) -> tuple[Outcome, bool]:
    """What came of it, and whether the next may be tried now."""
    database.let_go()
    outcome, is_well = Outcome.SENT, True
    try:
        mail.send()
    except SMTPRecipientsRefused as exc:
        codes = [code for code, _ in exc.recipients.values()]
        is_for_now = all(400 <= code < 500 for code in codes)
        outcome = Outcome.LATER if is_for_now else Outcome.REFUSED
    except SMTPResponseException as exc:
        is_well = exc.smtp_code >= 500  # else: too many at once, and the next will fare no better
        outcome = Outcome.REFUSED if is_well else Outcome.LATER
    except (OSError, SMTPException) as exc:
        log.error("mailing_unsent", error=type(exc).__name__)
        outcome, is_well = Outcome.UNKNOWN, False
    with transaction.atomic():
        row = _locked(seen.pk)
        if row is None or row.current is None:
            return outcome, False
        is_again = row.current != row.after
        _settle(row, outcome)
    seen.again = row.again
    return outcome, is_well and not (outcome is Outcome.LATER and is_again)


def _settle(row: Mailing, outcome: Outcome) -> None:
    """Write what came of the one that was in hand."""
    who, row.current = str(row.current), None
    if outcome is Outcome.LATER and row.begun_at < clock.now() - TRIED_FOR:
        outcome = Outcome.REFUSED
    if outcome is Outcome.SENT:
        row.sent += 1
    elif outcome is Outcome.REFUSED:
        row.refused += 1
    elif outcome is Outcome.LATER:
        row.again = [*row.again, who]
    else:
        row.unknown = [*row.unknown, who]
    row.save(update_fields=["sent", "refused", "again", "unknown", "current"])
    if len(row.unknown) >= LISTED_MAX and row.finished_at is None:
        _finish(row, is_stopped=True)


def _finish(row: Mailing, *, is_stopped: bool, by: Actor | None = None) -> None:
    row.finished_at, row.is_stopped = clock.now(), is_stopped
    row.save(update_fields=["finished_at", "is_stopped"])
    audit(
        "announcement.mailing_stopped" if is_stopped else "announcement.mailed",
        target=row.pk,
        sent=row.sent,
        not_wanted=row.skipped,
        refused=row.refused,
        unknown=len(row.unknown),
        **(by or Actor("worker")).fields(),
    )
