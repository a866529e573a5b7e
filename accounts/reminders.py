"""Of keys that end: told of before they expire, or their grace after a rotation ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

WEEK = timedelta(days=7)
"""Before an expiry."""
AHEAD = timedelta(days=1)
"""Before the end of a grace at most; of a short grace its last quarter."""
SHARE = 4
LOOKED_AT_MAX = 1_000
log = get_logger("gateway.keys")


def remind_of_graces() -> int:
    """Tell of each once for each end of its grace; returns how many. One that nothing called since
    it was rotated is told of to nobody: it can end."""
    now = clock.now()
    found = [key for key in ending(now)[:LOOKED_AT_MAX] if is_time(key, now)]
    return _remind(found, "grace_until", _written)


def remind_of_expiries() -> int:
    """As well of keys that expire, once for each expiry. One that was made for no longer than
    `WEEK` ends as it was meant to."""
    return _remind(list(expiring(clock.now())[:LOOKED_AT_MAX]), "expires_at", _written_of_expiry)


def _remind(keys: Sequence[ApiKey], end: str, written: Callable[[ApiKey], tuple[str, str]]) -> int:
    """`end` names the column of the moment that is told of. A key has one: it is rotated, or it
    expires; so the columns of what was told serve both."""
    sent, during = 0, Round()
    for key in keys:
        if during.is_over:
            break
        until = getattr(key, end)
        # Compare-and-set of all that was seen: of two workers at once, one writes.
        mine = ApiKey.objects.filter(pk=key.pk, **{end: until})
        left = key.grace_untold
        unsent = Q(grace_untold=left) if left else Q(grace_untold__isnull=True)
        seen = mine.filter(unsent, grace_told_for=key.grace_told_for)
        if not seen.update(grace_told_for=until, grace_untold=None):
            continue
        found = mailing.to_workspace(
            key.workspace,
            "keys",
            partial(written, key),
            also=key.owner,
            left=left if key.grace_told_for == until else None,
        )
        sent += found.count
        if found.later:
            log.error("reminder_unsent", key_prefix=key.prefix, waiting=len(found.later))
            mine.update(grace_untold=found.later)
        if found.is_away:
            break  # the others would fare no better
    return sent


def ending(now: datetime):  # type: ignore[no-untyped-def]  # a query set of rows with relations
    """Keys whose grace ends soon, and is not told of yet; by an index on its end."""
    return (
        ApiKey.objects.filter(grace_until__gt=now, grace_until__lte=now + AHEAD, revoked_at=None)
        .exclude(_is_sent("grace_until"))
        .filter(replaced_by__isnull=False, workspace__deleted_at=None)
        .without_policies()
        .select_related("workspace", "replaced_by")
        .order_by("grace_until")
    )


def expiring(now: datetime):  # type: ignore[no-untyped-def]  # a query set of rows with relations
    """Keys in use that expire soon, which is not told of yet; by an index on their expiry."""
    return (
        ApiKey.objects.filter(expires_at__gt=now, expires_at__lte=now + WEEK, revoked_at=None)
        .exclude(_is_sent("expires_at"))
        .filter(expires_at__gt=F("created_at") + WEEK, last_used_at__isnull=False)
        .filter(replaced_by=None, workspace__deleted_at=None)
        .listed()
        .without_policies()
        .select_related("workspace")
        .order_by("expires_at")
    )


def _is_sent(end: str) -> Q:
    sent_for = Q(grace_told_for__isnull=False, grace_told_for=F(end))
    return sent_for & Q(grace_untold__isnull=True)


def is_time(key: ApiKey, now: datetime) -> bool:
    """Whether little of its grace is left, and something called with it since it was replaced."""
    successor, until = key.replaced_by, key.grace_until
    if successor is None or until is None or key.last_used_at is None:
        return False
    ahead = min(AHEAD, (until - successor.created_at) / SHARE)
    return now >= until - ahead and key.last_used_at > successor.created_at


def _last_call(key: ApiKey) -> tuple[str, str]:
    last = {"at": utc_text(key.last_used_at), "address": key.last_used_ip}  # type: ignore[arg-type]
    text = gettext("%(at)s from %(address)s") % last if last["address"] else str(last["at"])
    return gettext("The last"), text


def _written(key: ApiKey) -> tuple[str, str]:
    """Subject and text."""
    successor, until = key.replaced_by, key.grace_until
    assert successor is not None and until is not None  # noqa: S101, PT018 - asked for
    since = reports.floor(successor.created_at, "hour")
    calls = reports.by_subject([key.pk], since, "hour").get(key.pk, {"requests": 0})["requests"]
    names = {"name": mails.name(key.name), "workspace": mails.name(key.workspace.name)}
    facts = [
        (gettext("Old key"), f"{key.prefix}…{key.last4}"),
        (gettext("Works until"), utc_text(until)),
        (gettext("Calls"), gettext("%(n)s since it was rotated") % {"n": number(calls)}),
        _last_call(key),
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


def _written_of_expiry(key: ApiKey) -> tuple[str, str]:
    """Subject and text."""
    assert key.expires_at is not None  # noqa: S101 - asked for
    names = {"name": mails.name(key.name), "workspace": mails.name(key.workspace.name)}
    facts = [
        (gettext("Key"), f"{key.prefix}…{key.last4}"),
        (gettext("Works until"), utc_text(key.expires_at)),
        _last_call(key),
    ]
    parts = [
        gettext("The key “%(name)s” of your workspace %(workspace)s expires soon.") % names,
        mails.table(facts),
        gettext(
            "Rotate it on its page in the portal and give what calls with it the new key, or give "
            "it a later expiry there. Afterwards it is refused."
        ),
    ]
    return gettext("A key of %(workspace)s expires soon") % names, "\n\n".join(parts)
