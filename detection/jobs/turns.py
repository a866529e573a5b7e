"""Whose chunks are sent to the workers next: workspaces take turns, and so do a workspace's jobs.

A message in the broker cannot be overtaken but by priority, so only `JOB_CHUNKS_IN_FLIGHT_MAX` full
chunks of the installation, or more smaller ones, are sent and not finished; all others wait in the
database, where it is decided anew whenever a place is free. The next is of the workspace that has
the fewest texts in flight; of several, of the one that waits the longest. One workspace alone
takes half of the places (`core/sharing.SharedBudget`), so that whoever comes finds one free. Where
workers are slower than that, and a message waits for `LINE_SECONDS`, each workspace has one in
line.

Within a workspace chunk n of a job is due n seconds after the job was made: a small job passes a
giant that came before, and no stream of small ones keeps a giant's last chunk waiting for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count, Min, Q, QuerySet, Sum

from detection.models import IN_FLIGHT, UNSENT, JobChunk
from gateway_project.core import clock
from gateway_project.core.sharing import FIRST, SharedBudget, Turn
from gateway_project.core.stores import advisory
from gateway_project.core.stores.bulk import each_once

TURN = timedelta(seconds=1)
WORKSPACES_AT_ONCE = 500
CHUNK_ITEMS = 200
CHUNK_COST = 10
"""What a chunk costs beside its texts, in texts: to be claimed, and to be written."""
SMALL_ITEMS = 20
LAST = 2
"""Of three priorities: small chunks, then the first of each job, then all others."""
TRUST = timedelta(seconds=10)
"""How long a message may be on its way before it is taken for lost."""
LINE_SECONDS = 1.0
OVERTAKING_SECONDS = 3.0
"""While the oldest message waits longer, nothing overtakes it any more."""
# The workspaces that have chunks unsent, found from one to the next by an index, with the time of
# the first of each.
WAITING = each_once(
    "workspace_id",
    "detection_jobchunk",
    "state = 'queued' AND sent_at IS NULL",
    """
SELECT found.workspace_id, (
    SELECT turn FROM detection_jobchunk
    WHERE state = 'queued' AND sent_at IS NULL AND workspace_id = found.workspace_id
    ORDER BY workspace_id, turn LIMIT 1
)
FROM (
    SELECT workspace_id FROM waiting
    WHERE (SELECT suspended_at IS NULL FROM accounts_workspace WHERE id = workspace_id)
    LIMIT %(at_once)s
) AS found
""",
    after="after",
)


class Message(NamedTuple):
    """A chunk to be sent; `priority` 0 comes before 1, and 1 before 2."""

    chunk_id: UUID
    priority: int
    traceparent: str


_turn = Turn()
"""Of this process, through the workspaces that have chunks unsent."""


def unsent() -> QuerySet[JobChunk]:
    return JobChunk.objects.filter(UNSENT)


def take() -> list[Message]:
    """The chunks whose turn it is, noted as sent now. SQL; owns a transaction.

    One looks at a time in the whole installation, or several would give away the same places.
    """
    if not unsent().exists():
        return []  # mostly; without a transaction: SQLite's would keep writers out
    with transaction.atomic():
        advisory.hold("jobs.turns")
        now = clock.now()
        places, oldest, in_line = _places(now)
        seconds = 0.0 if oldest is None else (now - oldest).total_seconds()
        if seconds < LINE_SECONDS:
            in_line = set()
        chosen = {chunk.pk: chunk for chunk in _shared_out(places, _next_waiting(), in_line)}
        # Locked as everywhere by their id, and only now: who cancels a job waits for nothing.
        locked = (
            unsent()
            .select_for_update(no_key=True, skip_locked=True)
            .filter(pk__in=chosen)
            .order_by("pk")
        )
        found = set(locked.values_list("pk", flat=True))
        JobChunk.objects.filter(pk__in=found).update(sent_at=now)
    may_overtake = seconds < OVERTAKING_SECONDS
    return [
        Message(pk, priority_of(chunk) if may_overtake else LAST, chunk.job.traceparent)
        for pk, chunk in chosen.items()
        if pk in found
    ]


def priority_of(chunk: JobChunk) -> int:
    """What is done at once goes first, and who has nothing yet before those that have."""
    if chunk.size <= SMALL_ITEMS:
        return 0
    return 1 if chunk.number == 0 else LAST


def in_flight() -> int:
    return JobChunk.objects.filter(IN_FLIGHT).count()


def _places(now: datetime) -> tuple[SharedBudget, datetime | None, set[UUID]]:
    """What is in flight, in texts; since when the oldest message waits; who has one that waits.

    A message that may be lost waits for nobody, nor does one whose task is to be tried again, or
    whose workspace is suspended.
    """
    places = SharedBudget(settings.JOB_CHUNKS_IN_FLIGHT_MAX * (CHUNK_ITEMS + CHUNK_COST))
    in_line = Q(state=JobChunk.State.QUEUED, attempts=0, sent_at__gt=now - TRUST)
    rows = list(
        JobChunk.objects.filter(IN_FLIGHT, job__workspace__suspended_at=None)
        .order_by()
        .values_list("workspace_id")
        .annotate(n=Count("pk"), texts=Sum("size"), oldest=Min("sent_at", filter=in_line))
    )
    for workspace_id, count, texts, _ in rows:
        places.note(workspace_id, texts + count * CHUNK_COST)
    waiting = {workspace_id: oldest for workspace_id, _, _, oldest in rows if oldest is not None}
    return places, min(waiting.values(), default=None), set(waiting)


def _shared_out(
    places: SharedBudget, turns: dict[UUID, datetime], in_line: set[UUID]
) -> Iterator[JobChunk]:
    """The chunks that get the free places; none of those `in_line`, and of others one in that case.

    `in_line` is empty while messages do not wait long. At most as many as full ones have places:
    the next round, when one of them ends, has more.
    """
    is_late, most = bool(in_line), settings.JOB_CHUNKS_IN_FLIGHT_MAX
    next_ones: dict[UUID, deque[JobChunk]] = {}
    for workspace_id in in_line:
        turns.pop(workspace_id, None)
    chosen = 0
    while turns and places.used < places.most and chosen < most:
        fewest = min(turns, key=lambda pk: (places.held(pk), turns[pk]))
        if fewest not in next_ones:
            own = unsent().filter(workspace_id=fewest).order_by("turn", "pk")
            own = own.select_related("job").only("pk", "number", "size", "job__traceparent")
            next_ones[fewest] = deque(own[:most])
        cost = next_ones[fewest][0].size + CHUNK_COST if next_ones[fewest] else 0
        # One is everybody's, whatever that leaves.
        if not cost or (places.held(fewest) and places.room(fewest) < cost):
            del turns[fewest]
            continue
        places.note(fewest, cost)
        yield next_ones[fewest].popleft()
        chosen += 1
        if is_late:
            del turns[fewest]


def _next_waiting() -> dict[UUID, datetime]:
    """`_waiting` where the last look ended, or from the beginning when nothing is behind that."""
    after = _turn.after
    found = dict(_waiting(after))
    if not found and after != FIRST:
        found = dict(_waiting(FIRST))
    _turn.go_on(found, WORKSPACES_AT_ONCE)
    return found


def _waiting(after: UUID) -> list[tuple[UUID, datetime]]:
    """Workspaces with chunks unsent, without those suspended, and when the first of each is due."""
    if connection.vendor != "postgresql":
        found = unsent().filter(job__workspace__suspended_at=None).order_by()
        return list(found.values_list("workspace_id").annotate(turn=Min("turn")))
    with connection.cursor() as cursor:
        cursor.execute(WAITING, {"after": after, "at_once": WORKSPACES_AT_ONCE})
        return list(cursor.fetchall())
