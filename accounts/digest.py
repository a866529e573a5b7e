"""The week in a mail: for members who run a workspace, on Mondays, of what it did and what needs a
look. A week without a request writes to nobody.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Sum
from django.utils.translation import gettext

from accounts import mailing
from accounts.models import ApiKey, AuditEvent, Membership, UsageRollup, Workspace
from accounts.usage import reports
from gateway_project.core import clock, mails
from gateway_project.core.language import dated, number, speaking
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

HOUR = 7
"""Of Monday, UTC."""
WINDOW = timedelta(days=1)
"""So long after it is too late: the next one is better than one of the middle of the week."""
WEEK = timedelta(days=7)
AT_ONCE = 200
SOON = timedelta(days=14)
log = get_logger("gateway.digest")


def send() -> int:
    """Send those that are due; returns how many. Between two workers each is claimed once."""
    now, sent, during = clock.now(), 0, Round()
    due = last_due(now)
    if now - due > WINDOW:
        return 0
    waiting = Membership.objects.filter(
        digest_at__lt=due,
        role__in=mailing.RUNNING,
        user__is_active=True,
        workspace__deleted_at=None,
    )
    places = waiting.select_related("user", "workspace__plan").order_by("digest_at", "pk")
    for place in places[:AT_ONCE]:
        if during.is_over:
            break
        mine = Membership.objects.filter(pk=place.pk, digest_at=place.digest_at)
        if not mine.update(digest_at=now):
            continue
        found = _send(place, due)
        if found is None:
            continue
        sent += found.count
        if found.later:
            log.error("digest_unsent")
            # Due, and behind all who had no turn yet.
            later = due - timedelta.resolution
            Membership.objects.filter(pk=place.pk).update(digest_at=later)
        if found.is_away:
            break  # the others would fare no better
    return sent


def last_due(now: datetime) -> datetime:
    """The last Monday's hour."""
    at = now.astimezone(UTC).replace(hour=HOUR, minute=0, second=0, microsecond=0)
    at -= timedelta(days=at.weekday())
    return at if at <= now else at - WEEK


def _send(place: Membership, due: datetime) -> mails.Sent | None:
    """None: nothing is to be sent."""
    user, workspace = place.user, place.workspace
    if user.email_confirmed_at is None or not mailing.wants(user, "digest"):
        return None
    with speaking(user.language):
        text = text_of(workspace, due)
        named = {"workspace": mails.name(workspace.name)}
        subject = gettext("Your week with %(workspace)s") % named
    if text is None:
        return None
    return mailing.to_people([user], "digest", lambda: (subject, text))


def text_of(workspace: Workspace, until: datetime) -> str | None:
    """The seven whole days (UTC) before `until`, beside the seven before; None without requests."""
    end = reports.floor(until, "day")
    now, before = _sums(workspace, end - WEEK, end), _sums(workspace, end - 2 * WEEK, end - WEEK)
    if not now["requests"]:
        return None
    reported = AuditEvent.objects.filter(
        workspace_id=workspace.pk,
        action="feedback.given",
        details__verdict="false_positive",
        at__gte=end - WEEK,
        at__lt=end,
    )
    flagged = gettext("%(number)s, %(share)s of them") % {
        "number": number(now["flagged"]),
        "share": number(now["flagged"] / now["requests"], ".1%"),
    }
    table = mails.table(
        [
            (gettext("Requests"), _compared(now["requests"], before["requests"])),
            (gettext("Flagged"), flagged),
            (gettext("Errors"), _compared(now["errors"], before["errors"])),
            (gettext("Reported false alarms"), number(reported.count())),
        ]
    )
    head = gettext("%(workspace)s, %(first)s to %(last)s (UTC):") % {
        "workspace": mails.name(workspace.name),
        "first": dated(end - WEEK, "day"),
        "last": dated(end - timedelta(days=1), "day"),
    }
    text = f"{head}\n\n{table}\n"
    if todo := _needs_a_look(workspace):
        lines = "\n".join(f"- {line}" for line in todo)
        todo_head = gettext("This needs a look:")
        text += f"\n{todo_head}\n\n{lines}\n"
    return text


def _sums(workspace: Workspace, since: datetime, until: datetime) -> dict[str, Any]:
    rows = UsageRollup.objects.filter(
        period="day", subject_id=workspace.pk, bucket__gte=since, bucket__lt=until
    )
    sums = {name: Sum(name, default=0) for name in ("flagged", "requests")}
    # Last, for it takes the column of this name, not the sum.
    return rows.aggregate(errors=reports.ERRORS, **sums)


def _compared(now: int, before: int) -> str:
    """`1,234 (+12 % on the week before)`."""
    percent = round(100 * (now - before) / before) if before else 0
    if now and not before:
        text = gettext("%(number)s (none in the week before)")
    elif percent:
        text = gettext("%(number)s (%(change)s on the week before)")
    else:
        text = gettext("%(number)s (as in the week before)")
    return text % {"number": number(now), "change": f"{number(percent, '+,')} %"}


def _needs_a_look(workspace: Workspace) -> list[str]:
    now = clock.now()
    keys = ApiKey.objects.usable(now).listed().without_policies().filter(workspace=workspace)
    lines = [
        gettext("The key “%(name)s” (%(key)s) expires on %(day)s.") % _named(key, key.expires_at)
        for key in keys.filter(expires_at__lte=now + SOON, replaced_by=None)[:10]
    ]
    lines += [
        gettext("The old key %(key)s of “%(name)s” works until %(day)s.")
        % _named(key, key.grace_until)
        for key in keys.filter(grace_until__isnull=False)[:10]
    ]
    if workspace.suspended_at is not None:
        lines.append(gettext("The workspace is suspended: its keys are refused."))
    return lines


def _named(key: ApiKey, at: datetime | None) -> dict[str, str]:
    day = dated(at, "day") if at else ""
    return {"name": mails.name(key.name), "key": f"{key.prefix}…{key.last4}", "day": day}
