"""When this gateway first saw an item of Robin's queue: all that can be known of its age.

The date that Robin shows beside an item is that of the listing, new each time. So each uid is
remembered from its first sight on, for as long as the item is there and somewhat longer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

from django.db import Error as DatabaseError
from django.db.models import QuerySet

from gateway_project.core import clock, errors
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from robin.models import SeenItem
from robin.queue.translate import Item

AT_ONCE = 1000
MISSED_SECONDS_MIN = 3600.0
MISSED_ROUNDS = 3
log = get_logger("gateway.live")


async def first_seen(items: Sequence[Item], known: Mapping[str, int], *, at: float) -> list[Item]:
    """The items with `firstSeenTime`, and `createTime` where Robin gave none (milliseconds)."""
    now = int(at * 1000)
    fresh = [item["uid"] for item in items if item["uid"] not in known]
    times = dict(known)
    if fresh:
        try:
            times |= await database.run_behind(_remember, fresh, now)
        except (errors.StoreUnavailable, DatabaseError) as exc:
            log.warning("first_seen_not_kept", error=type(exc).__name__)
    found = []
    for item in items:
        since = times.get(item["uid"], now)
        found.append({"createTime": since, **item, "firstSeenTime": since})
    return found


def _remember(uids: Sequence[str], now: int) -> dict[str, int]:
    """Since when each is known; those that are not yet, since now."""
    ids = {uid: UUID(uid) for uid in uids if _is_uuid(uid)}
    at = datetime.fromtimestamp(now / 1000, UTC)
    rows = [SeenItem(uid=one, first_seen_at=at) for one in ids.values()]
    SeenItem.objects.bulk_create(rows, ignore_conflicts=True)
    known = SeenItem.objects.filter(uid__in=ids.values()).values_list("uid", "first_seen_at")
    return {str(uid): int(when.timestamp() * 1000) for uid, when in known}


async def forget_all_but(uids: Collection[str], *, round_seconds: float) -> None:
    """The others are gone from Robin's queue, when they are missed in a few whole rounds.

    In one they may only have passed from a part that was not read yet into one that was.
    """
    there = {UUID(uid) for uid in uids if _is_uuid(uid)}
    before = clock.now() - timedelta(seconds=max(MISSED_SECONDS_MIN, MISSED_ROUNDS * round_seconds))
    try:
        await database.run_behind(_forget_all_but, there, before)
    except (errors.StoreUnavailable, DatabaseError) as exc:
        log.warning("gone_items_not_forgotten", error=type(exc).__name__)


def _forget_all_but(uids: Collection[UUID], before: datetime) -> None:
    found, missed, gone = list[UUID](), list[UUID](), list[UUID]()
    for uid, at in SeenItem.objects.values_list("uid", "missed_at").iterator(chunk_size=5000):
        if uid in uids:
            if at is not None:
                found.append(uid)
        elif at is None:
            missed.append(uid)
        elif at < before:
            gone.append(uid)
    for some in _pieces(found):
        some.update(missed_at=None)
    for some in _pieces(missed):
        some.update(missed_at=clock.now())
    for some in _pieces(gone):
        some.delete()


def _pieces(uids: Sequence[UUID]) -> Iterator[QuerySet[SeenItem]]:
    for start in range(0, len(uids), AT_ONCE):
        yield SeenItem.objects.filter(uid__in=uids[start : start + AT_ONCE])


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
