"""When this gateway first saw an item of Robin's queue: all that can be known of its age.

The date that Robin shows beside an item is that of the listing, new each time. So each uid is
remembered from its first sight on, for as long as the item is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from django.db import Error as DatabaseError

from gateway_project.core import errors
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from robin.models import SeenItem
from robin.queue.translate import Item

AT_ONCE = 1000
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


async def forget_all_but(uids: Collection[str]) -> None:
    """The others are gone from Robin's queue."""
    try:
        await database.run_behind(_forget_all_but, {UUID(uid) for uid in uids if _is_uuid(uid)})
    except (errors.StoreUnavailable, DatabaseError) as exc:
        log.warning("gone_items_not_forgotten", error=type(exc).__name__)


def _forget_all_but(uids: Collection[UUID]) -> None:
    known = SeenItem.objects.values_list("uid", flat=True).iterator(chunk_size=5000)
    gone = [uid for uid in known if uid not in uids]
    for start in range(0, len(gone), AT_ONCE):
        SeenItem.objects.filter(uid__in=gone[start : start + AT_ONCE]).delete()


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
