"""Of rotations: an old key that is still called is told of before it ends."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial

from django.db.models import F, Q
from django.utils.translation import gettext

from accounts import mailing
from accounts.models import ApiKey
from accounts.usage import reports
from gateway_project.core import clock, mails
from gateway_project.core.clock import utc_text
from gateway_project.core.language import number
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger

AHEAD = timedelta(days=1)
"""At most; of a short grace its last quarter."""
SHARE = 4
LOOKED_AT_MAX = 1_000
log = get_logger("gateway.keys")


def remind_of_graces() -> int:
    """Tell of each once for each end of its grace; returns how many. One that nothing called since
    it was rotated is told of to nobody: it can end."""
    now, told, during = clock.now(), 0, Round()
    for key in ending(now)[:LOOKED_AT_MAX]:
        if during.is_over:
            break
        if not is_time(key, now):
            continue
        # Compare-and-set of all that was seen: of two workers at once, one writes.
        mine = ApiKey.objects.filter(pk=key.pk, grace_until=key.grace_until)
        left = key.grace_untold
        untold = Q(grace_untold=left) if left else Q(grace_untold__isnull=True)
        seen = mine.filter(untold, grace_told_for=key.grace_told_for)
        if not seen.update(grace_told_for=F("grace_until"), grace_untold=None):
            continue
        found = _tell(key)
        told += found.count
        if found.later:
            log.error("reminder_unsent", key_prefix=key.prefix, waiting=len(found.later))
            mine.update(grace_untold=found.later)
        if found.is_away:
            break  # the others would fare no better
    return told


def ending(now: datetime):  # type: ignore[no-untyped-def]  # a query set of rows with relations
    """Keys whose grace ends soon, and is not told of yet; by an index on its end."""
    return (
        ApiKey.objects.filter(grace_until__gt=now, grace_until__lte=now + AHEAD, revoked_at=None)
        .exclude(_is_told())
        .filter(replaced_by__isnull=False, workspace__deleted_at=None)
        .without_policies()
        .select_related("workspace", "replaced_by")
        .order_by("grace_until")
    )


def _is_told() -> Q:
    told_for = Q(grace_told_for__isnull=False, grace_told_for=F("grace_until"))
    return told_for & Q(grace_untold__isnull=True)


def is_time(key: ApiKey, now: datetime) -> bool:
    """Whether little of its grace is left, and something called with it since it was replaced."""
    successor, until = key.replaced_by, key.grace_until
    if successor is None or until is None or key.last_used_at is None:
        return False
    ahead = min(AHEAD, (until - successor.created_at) / SHARE)
    return now >= until - ahead and key.last_used_at > successor.created_at


def _tell(key: ApiKey) -> mails.Sent:
    successor, until = key.replaced_by, key.grace_until
    assert successor is not None and until is not None and key.last_used_at is not None  # noqa: S101, PT018 - asked for
    since = reports.floor(successor.created_at, "hour")
    sums = reports.by_subject([key.pk], since, "hour").get(key.pk, {"requests": 0})
    written = partial(_written, key, successor, until, sums["requests"])
    left = key.grace_untold if key.grace_told_for == until else None
    return mailing.to_workspace(key.workspace, "keys", written, also=key.owner, left=left)


def _written(key: ApiKey, successor: ApiKey, until: datetime, calls: int) -> tuple[str, str]:
    """Subject and text."""
    names = {"name": mails.name(key.name), "workspace": mails.name(key.workspace.name)}
    last = {"at": utc_text(key.last_used_at), "address": key.last_used_ip}  # type: ignore[arg-type]
    facts = [
        (gettext("Old key"), f"{key.prefix}…{key.last4}"),
        (gettext("Works until"), utc_text(until)),
        (gettext("Calls"), gettext("%(n)s since it was rotated") % {"n": number(calls)}),
        (
            gettext("The last"),
            gettext("%(at)s from %(address)s") % last if last["address"] else str(last["at"]),
        ),
        (gettext("Successor"), f"{successor.prefix}…{successor.last4}"),
    ]
    parts = [
        gettext(
            "The key “%(name)s” of your workspace %(workspace)s was rotated, and the old one is "
            "still called."
        )
        % names,
        mails.table(facts),
        gettext(
            "Give what still calls with it the new key. If that takes longer, the key's page in "
            "the portal gives it one more day, and lists its calls."
        ),
    ]
    subject = gettext("An old key of %(workspace)s is still called, and ends soon") % names
    return subject, "\n\n".join(parts)
