"""What accounts forget, and when. The log's own partitions: `accounts/usage/partitions.py`.

Each is a round of a periodic task: pieces of rows by an index, each committed at once. What a round
leaves is for the next. Everything that grows has its line here or in the `prune` of its app;
`docs/settings.md` has the days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from allauth.usersessions.models import UserSession
from django.conf import settings
from django.contrib.admin.models import LogEntry
from django.contrib.sessions.models import Session
from django.db.models import Exists, OuterRef, QuerySet

from accounts import audit, idempotency, parking
from accounts.models import (
    ApiKey,
    IdempotencyRecord,
    Invitation,
    LogExport,
    Parked,
    QuotaNotice,
    ScoreRollup,
    StoredText,
    UsageBatch,
    UsageRollup,
)
from accounts.usage import exports
from accounts.usage.partitions import retention_days
from accounts.usage.rollups import ROLLUPS_KEPT
from gateway_project.core import clock
from gateway_project.core.stores.refused import each_alone
from gateway_project.core.stores.sweeps import Round, delete_rows, some_of

BATCHES_REMEMBERED = timedelta(days=1)
INVITATIONS_KEPT = timedelta(days=30)
"""After their link has ended."""
SESSION_KEYS_KEPT = timedelta(hours=1)


def prune() -> int:
    """Forget what is past its time; returns how many rows."""
    now, during = clock.now(), Round()
    return sum(each_alone(_kinds(now, during), lambda forget: forget()))


def _kinds(now: datetime, during: Round) -> Iterator[Callable[[], int]]:
    """What forgets each kind of rows."""
    yield partial(during.repeat, idempotency.erase_secrets)
    files = LogExport.objects.filter(created_at__lt=now - exports.KEPT).order_by("created_at")
    yield partial(during.erase, files)
    if (begins := _begin(now, settings.AUDIT_RETENTION_DAYS)) is not None:
        yield partial(during.repeat, partial(audit.forget, begins))
    for rows in _past(now):
        yield partial(during.delete, rows)
    yield partial(_end_sessions, now, during)


def _past(now: datetime) -> Iterator[QuerySet[Any]]:
    """Rows to which nothing refers, the oldest first."""
    log_begins = now - timedelta(days=retention_days())
    for model in (UsageRollup, ScoreRollup):
        rollups = model.objects.order_by("period", "bucket")
        for period, kept in ROLLUPS_KEPT.items():
            yield rollups.filter(period=period, bucket__lt=now - kept)
        if (begins := _begin(now, settings.STATISTICS_RETENTION_DAYS)) is not None:
            yield rollups.filter(period="day", bucket__lt=begins)
    yield UsageBatch.objects.filter(written_at__lt=now - BATCHES_REMEMBERED).order_by("written_at")
    yield QuotaNotice.objects.filter(day__lt=log_begins.date()).order_by("day")
    yield StoredText.objects.filter(created_at__lt=log_begins).order_by("created_at")
    yield IdempotencyRecord.objects.filter(created_at__lt=now - idempotency.KEPT).order_by(
        "created_at"
    )
    closed = now - INVITATIONS_KEPT
    yield Invitation.objects.filter(expires_at__lt=closed).order_by("expires_at")
    yield Parked.objects.filter(created_at__lt=now - parking.KEPT).order_by("created_at")
    if (begins := _begin(now, settings.AUDIT_RETENTION_DAYS)) is not None:
        yield LogEntry.objects.filter(action_time__lt=begins).order_by("action_time")


def _begin(now: datetime, days: int) -> datetime | None:
    """What is older is forgotten; None: nothing is (0 days)."""
    return now - timedelta(days=days) if days else None


def _end_sessions(now: datetime, during: Round) -> int:
    """Of people who signed in, with what is shown of them; and keys of playgrounds."""
    ended = Session.objects.filter(expire_date__lt=now).order_by("expire_date")
    alive = Session.objects.filter(pk=OuterRef("session_key"))
    # Of sessions that ended by signing out.
    loose = UserSession.objects.filter(
        ~Exists(alive), created_at__lt=now - timedelta(seconds=settings.SESSION_COOKIE_AGE)
    )

    def end(size: int) -> int:
        keys = some_of(ended, size)
        shown = UserSession.objects.filter(session_key__in=keys).values_list("pk", flat=True)
        delete_rows(UserSession, list(shown))
        return delete_rows(Session, keys)

    keys = ApiKey.objects.filter(is_session=True, expires_at__lt=now - SESSION_KEYS_KEPT)
    return (
        during.repeat(end)
        + during.delete(loose.order_by("created_at"))
        + during.erase(keys.order_by("expires_at"))
    )
