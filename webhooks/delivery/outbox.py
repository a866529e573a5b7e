"""From a fact to deliveries that are due, and from those to jobs: the two steps of the database.

Both may run in any number of workers at once: rows are locked with SKIP LOCKED on PostgreSQL; on
SQLite transactions exclude each other. What is taken is committed before anything is sent, and a
worker that dies holds it no longer than `LEASE`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, NamedTuple
from uuid import UUID

from django.db import connection, transaction
from django.db.models import Exists, Min, OuterRef, QuerySet
from django.utils.translation import gettext_noop

from accounts import parking
from accounts.models import OutboxEvent
from gateway_project.core import clock
from gateway_project.core.encryption import Undecryptable
from gateway_project.core.sharing import SharedBudget, Turn
from gateway_project.core.stores.bulk import each_once
from gateway_project.core.stores.refused import write_all_but
from gateway_project.core.stores.sweeps import Round
from webhooks.delivery import attempt, callbacks
from webhooks.delivery.attempt import WindowKey
from webhooks.delivery.schedule import steps_max
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice

EVENTS_AT_ONCE = 500
DELIVERIES_AT_ONCE = 2_000
CANDIDATES_PER_PLACE = 4
CALLBACKS_MAX = 128
"""Of all addresses that requests of one workspace name, in flight at once in a process."""
LEASE = timedelta(seconds=60)
"""Longer than a request may take and its result needs to be written."""
LEFT_TO_OTHERS = timedelta(seconds=5)
"""How soon a delivery is due again whose secrets this process cannot decrypt."""
LEFT_SECONDS = 60.0
"""For how long this process then looks at no other of that webhook."""
LEFT_MAX = timedelta(days=10)
"""Longer than any schedule, twice as long for a receiver that asks for it: nobody has its key."""
UNPUBLISHED, UNSENDABLE = "webhooks.event", "webhooks.delivery"
WEBHOOKS_AT_ONCE = 500
OF_EACH_MAX = 32
CROWDED_AT_ONCE = 4
LANES_AT_ONCE = 2 * CALLBACKS_MAX
"""Of one webhook more than can be full, so that there are some that are not."""
# The next webhooks that have something pending, found from one to the next by an index.
WAITING = each_once(
    "webhook_id",
    "webhooks_webhookdelivery",
    "status = 'pending'",
    "SELECT webhook_id FROM waiting WHERE webhook_id IS NOT NULL LIMIT %(at_once)s",
    after="after",
)
# Of each workspace that has events waiting, from one to the next, the first of them.
EVENTS_OF_EACH = each_once(
    "workspace_id",
    "accounts_outboxevent",
    "published_at IS NULL",
    """
, asked AS (
    SELECT workspace_id FROM waiting WHERE workspace_id IS NOT NULL LIMIT %(at_once)s
), share AS (SELECT greatest(1, %(at_once)s / greatest(1, count(*)))::bigint AS each FROM asked)
SELECT found.id, asked.workspace_id
FROM asked CROSS JOIN share CROSS JOIN LATERAL (
    SELECT id, row_number() OVER (ORDER BY created_at) AS rank FROM accounts_outboxevent
    WHERE published_at IS NULL AND workspace_id = asked.workspace_id
    ORDER BY created_at LIMIT share.each
) AS found
ORDER BY found.rank
""",
    after="after",
)
OF_EACH = """
SELECT found.id, asked.webhook_id, found.lane
FROM unnest(%(webhooks)s::uuid[]) AS asked (webhook_id)
JOIN webhooks_webhook AS webhook ON webhook.id = asked.webhook_id AND webhook.is_active
JOIN accounts_workspace AS workspace
    ON workspace.id = webhook.workspace_id AND workspace.suspended_at IS NULL
    AND workspace.id <> ALL(%(workspaces)s::uuid[])
CROSS JOIN LATERAL (
    SELECT id, lane FROM webhooks_webhookdelivery
    WHERE status = 'pending' AND webhook_id = asked.webhook_id AND next_attempt_at <= %(now)s
    ORDER BY next_attempt_at LIMIT %(each)s
) AS found
LIMIT %(at_once)s
"""
# Of one webhook that stands for many addresses: from one lane to the next, a few of each.
OF_EACH_LANE = each_once(
    "lane",
    "webhooks_webhookdelivery",
    "status = 'pending' AND lane <> '' AND webhook_id = %(webhook)s",
    """
SELECT found.id, %(webhook)s::uuid, lanes.lane
FROM (SELECT lane FROM waiting WHERE lane IS NOT NULL LIMIT %(lanes)s) AS lanes
CROSS JOIN LATERAL (
    SELECT id FROM webhooks_webhookdelivery
    WHERE status = 'pending' AND lane <> '' AND webhook_id = %(webhook)s AND lane = lanes.lane
        AND next_attempt_at <= %(now)s
    ORDER BY next_attempt_at LIMIT 4
) AS found
WHERE lanes.lane <> ALL(%(full)s)
""",
)


def fan_out() -> int:
    """Make a delivery of each waiting event for each webhook that wants it; returns the events.

    An event for an address that a request named has one delivery, whoever listens. When more wait
    than are taken at once, each workspace's first come before any other's second.
    """
    waiting = OutboxEvent.objects.filter(published_at=None)
    ids = list(waiting.order_by("created_at").values_list("pk", flat=True)[: EVENTS_AT_ONCE + 1])
    if not ids:
        return 0  # without a transaction: SQLite's would keep writers out
    if len(ids) > EVENTS_AT_ONCE:
        ids = _events_of_each() or ids[:EVENTS_AT_ONCE]
    rank = {pk: number for number, pk in enumerate(ids)}
    with transaction.atomic():
        locked = (
            waiting.filter(pk__in=ids)
            .select_for_update(no_key=True, skip_locked=True)
            .order_by("pk")
        )
        found = locked.values_list("pk", "workspace_id", "type", "deliver_to")
        events = [_Event(*row) for row in sorted(found, key=lambda row: rank[row[0]])]
        done: list[UUID] = []
        write_all_but(
            events,
            lambda some: done.extend(_publish(some)),
            lambda event, error: done.append(_park_event(event, error)),
        )
    return len(done)


_turn = Turn()
"""Of this process, through the workspaces that have events waiting."""


def _events_of_each() -> list[UUID]:
    """Waiting events of all workspaces, the first of each before their second."""
    if connection.vendor != "postgresql":
        return []
    asked: dict[str, Any] = {"after": _turn.after, "at_once": EVENTS_AT_ONCE}
    with connection.cursor() as cursor:
        cursor.execute(EVENTS_OF_EACH, asked)
        found = cursor.fetchall()
    _turn.go_on({workspace_id for _, workspace_id in found}, EVENTS_AT_ONCE)
    return [pk for pk, _ in found]


class _Event(NamedTuple):
    pk: UUID
    workspace_id: UUID
    type: str
    deliver_to: str


def _publish(events: Sequence[_Event]) -> list[UUID]:
    """Of these events the first, until they make `DELIVERIES_AT_ONCE`; the others wait on."""
    _make_callbacks({event.workspace_id for event in events if event.deliver_to})
    active: dict[UUID, list[Webhook]] = defaultdict(list)
    for webhook in Webhook.objects.filter(
        workspace__in={event.workspace_id for event in events},
        workspace__suspended_at=None,
        is_active=True,
    ):
        active[webhook.workspace_id].append(webhook)
    published: list[UUID] = []
    deliveries: list[WebhookDelivery] = []
    for event in events:
        if len(deliveries) >= DELIVERIES_AT_ONCE:
            break  # a workspace may have a hundred webhooks
        published.append(event.pk)
        deliveries += [
            WebhookDelivery(
                webhook=webhook,
                event_id=event.pk,
                event_type=event.type,
                lane=callbacks.lane_of(event.deliver_to),
                steps_max=steps_max(webhook.retry_count),
            )
            for webhook in active[event.workspace_id]
            if (webhook.is_per_request if event.deliver_to else event.type in webhook.events)
        ]
    WebhookDelivery.objects.bulk_create(deliveries, batch_size=1000)
    OutboxEvent.objects.filter(pk__in=published).update(published_at=clock.now())
    return published


def _park_event(event: _Event, error: Exception) -> UUID:
    """It goes to nobody, and is looked at no more, until it is run again."""
    OutboxEvent.objects.filter(pk=event.pk).update(published_at=clock.now())
    parking.park(UNPUBLISHED, event.pk, error, workspace_id=event.workspace_id)
    return event.pk


def publish_again(event_id: UUID) -> None:
    """Let an event that was parked wait for the next round."""
    OutboxEvent.objects.filter(pk=event_id).update(published_at=None)


def _make_callbacks(workspace_ids: set[UUID]) -> None:
    made = Webhook.objects.filter(workspace__in=workspace_ids, is_per_request=True)
    missing = workspace_ids - set(made.values_list("workspace_id", flat=True))
    for workspace_id in sorted(missing):  # in order, so that no two wait for each other
        callbacks.of(workspace_id)


class Candidate(NamedTuple):
    """A delivery that is due, whose it is, and whether its webhook is sent anything."""

    pk: UUID
    webhook_id: UUID
    workspace_id: UUID
    lane: str
    is_listening: bool


class Claims:
    """Takes deliveries for one engine; remembers where its turn through all webhooks has come to.

    The oldest that are due are looked at first, `places * CANDIDATES_PER_PLACE` of them. When these
    leave places free (their webhooks have no room, or are sent nothing more) there may be others
    behind them: then each webhook is looked at in turn, `WEBHOOKS_AT_ONCE` a time. So what waits
    for one webhook hides nobody else's, and no claim reads more than a bounded number of rows.
    """

    def __init__(self) -> None:
        self.taken = 0
        """By the last `take`, those among them that cannot be sent."""
        self._turn = Turn()
        self._left: dict[UUID, float] = {}
        """Webhooks whose secrets this process cannot decrypt, and until when they are let be."""

    def take(
        self,
        places: int,
        room: Mapping[WindowKey, int],
        room_default: int,
        callbacks_default: int = CALLBACKS_MAX,
        *,
        shares: SharedBudget | None = None,
    ) -> list[attempt.Job]:
        """Take up to `places` due deliveries, and of each webhook no more than it has room for.

        Of each workspace no more than its share: `shares` has what is in flight of each already,
        and is changed.

        Of the addresses that requests name each has its lane with room of its own, and all of a
        workspace have together what the webhook itself has: `callbacks_default` until `room` says.
        """
        self.taken = 0
        if places <= 0 or not _due().exists():
            return []
        shares = shares or SharedBudget(2 * places)  # half of which one alone may take
        now = monotonic()
        self._left = {webhook: until for webhook, until in self._left.items() if until > now}
        room = {**room, **{(webhook, ""): 0 for webhook in self._left}}
        choice = _Choice(places, room, room_default, callbacks_default, shares)
        at_once = places * CANDIDATES_PER_PLACE
        with transaction.atomic():
            oldest = _candidates(_due().order_by("next_attempt_at"), at_once)
            choice.choose(oldest)
            if len(oldest) == at_once and choice.places_left:
                choice.choose(self._hidden(choice, at_once))
            WebhookDelivery.objects.filter(pk__in=choice.taken).update(
                next_attempt_at=clock.now() + LEASE, is_claimed=True
            )
        self.taken = len(choice.taken)
        if choice.silent:  # `recover` brings back what they do not get
            closing = Webhook._base_manager.filter(pk__in=choice.silent, is_closing=False)
            closing.update(is_closing=True)
        jobs = attempt.jobs_of(choice.taken, give_up)
        if unreadable := [job for job in jobs if not job.secrets]:
            self._leave(unreadable)
        if withheld := [job.delivery_id for job in jobs if job.is_withheld]:
            _fail(withheld, gettext_noop("the webhook asks for the audit trail no more"))
        return [
            job
            for job in jobs
            if job.secrets and job.is_active and not (job.is_suspended or job.is_withheld)
        ]

    def _leave(self, jobs: Sequence[attempt.Job]) -> None:
        """Untouched, for who has the key: no attempt of the receiver's has failed."""
        self._left |= {job.webhook_id: monotonic() + LEFT_SECONDS for job in jobs}
        left = WebhookDelivery.objects.filter(pk__in=[job.delivery_id for job in jobs])
        left.update(next_attempt_at=clock.now() + LEFT_TO_OTHERS, is_claimed=False)
        for pk in left.filter(created_at__lt=clock.now() - LEFT_MAX).values_list("pk", flat=True):
            give_up(pk, Undecryptable())

    def _hidden(self, choice: _Choice, at_once: int) -> list[Candidate]:
        """Due deliveries of the webhooks whose turn it is, a few of each."""
        if connection.vendor != "postgresql":
            return _candidates(choice.excluding_full(_due()).order_by("next_attempt_at"), at_once)
        with connection.cursor() as cursor:
            cursor.execute(WAITING, {"after": self._turn.after, "at_once": WEBHOOKS_AT_ONCE})
            webhooks = [row[0] for row in cursor.fetchall()]
            self._turn.go_on(webhooks, WEBHOOKS_AT_ONCE)
            with_room = [pk for pk in webhooks if choice.room_of(pk, is_named=True) > 0]
            asked: dict[str, Any] = {
                "webhooks": with_room,
                "workspaces": choice.workspaces_without_room,
                "now": clock.now(),
                # So few that each of them is seen.
                "each": min(OF_EACH_MAX, max(1, at_once // max(1, len(with_room)))),
                "lanes": LANES_AT_ONCE,
                "at_once": at_once,
            }
            cursor.execute(OF_EACH, asked)
            found = cursor.fetchall()
            for webhook_id in choice.crowded(found)[:CROWDED_AT_ONCE]:
                lanes = choice.full[webhook_id]
                cursor.execute(OF_EACH_LANE, {**asked, "webhook": webhook_id, "full": lanes})
                found += cursor.fetchall()
        ids = [pk for pk, *_ in found]
        return _candidates(_due().filter(pk__in=ids).order_by("next_attempt_at"), at_once)


def _due() -> QuerySet[WebhookDelivery]:
    return WebhookDelivery.objects.filter(
        status=WebhookDelivery.Status.PENDING, next_attempt_at__lte=clock.now()
    )


def _candidates(due: QuerySet[WebhookDelivery], at_once: int) -> list[Candidate]:
    """Locked, so that no other worker takes them meanwhile."""
    rows = due.select_for_update(no_key=True, skip_locked=True, of=("self",)).values_list(
        *("pk", "webhook_id", "webhook__workspace_id", "lane"),
        *("webhook__is_active", "webhook__workspace__suspended_at"),
    )
    return [
        Candidate(pk, webhook_id, workspace_id, lane, is_active and suspended_at is None)
        for pk, webhook_id, workspace_id, lane, is_active, suspended_at in rows[:at_once]
    ]


class _Choice:
    """Which of the candidates are taken: as many as there are places, and as each has room."""

    def __init__(
        self,
        places: int,
        room: Mapping[WindowKey, int],
        room_default: int,
        callbacks_default: int,
        shares: SharedBudget,
    ) -> None:
        self.taken: list[UUID] = []
        self.silent: set[UUID] = set()
        """Webhooks that are sent nothing more."""
        self.full: dict[UUID, list[str]] = defaultdict(list)
        """By webhook the lanes that had no room from the beginning."""
        for (webhook_id, lane), left in room.items():
            if left <= 0:
                self.full[webhook_id].append(lane)
        self._places = places
        self._shares = shares
        self._without_room: set[UUID] = set()
        self._room = room
        self._defaults = room_default, callbacks_default
        self._begun: dict[WindowKey, int] = defaultdict(int)

    @property
    def places_left(self) -> int:
        return self._places - len(self.taken)

    def room_of(self, webhook_id: UUID, lane: str = "", *, is_named: bool = False) -> int:
        """What is left of its window; `is_named`: of all addresses that requests name together."""
        default = self._defaults[1] if is_named else self._defaults[0]
        key = (webhook_id, lane)
        return self._room.get(key, default) - self._begun[key]

    @property
    def workspaces_without_room(self) -> list[UUID]:
        """Those of which something was left for others to have a place."""
        return sorted(self._without_room)

    def choose(self, candidates: Iterable[Candidate]) -> None:
        for pk, webhook_id, workspace_id, lane, is_listening in candidates:
            if not is_listening:
                self.silent.add(webhook_id)
                continue
            if self._shares.held(workspace_id) and not self._shares.room(workspace_id):
                self._without_room.add(workspace_id)
                continue
            if not self.places_left or self.room_of(webhook_id, is_named=bool(lane)) <= 0:
                continue
            if lane:
                if self.room_of(webhook_id, lane) <= 0:
                    continue
                self._begun[webhook_id, lane] += 1
            self._begun[webhook_id, ""] += 1
            self._shares.note(workspace_id, 1)
            self.taken.append(pk)

    def crowded(self, found: Sequence[Sequence[Any]]) -> list[UUID]:
        """Webhooks of which all that was found lies in lanes that are full."""
        seen = {webhook_id for _, webhook_id, _ in found}
        free = {webhook for _, webhook, lane in found if lane not in self.full.get(webhook, ())}
        return sorted(seen - free)

    def excluding_full(self, due: QuerySet[WebhookDelivery]) -> QuerySet[WebhookDelivery]:
        due = due.exclude(webhook_id__in=[pk for pk, lanes in self.full.items() if "" in lanes])
        for webhook_id, lanes in self.full.items():
            if "" not in lanes:
                due = due.exclude(webhook_id=webhook_id, lane__in=lanes)
        return due


def give_up(delivery_id: UUID, error: Exception) -> None:
    """End a delivery that cannot even be tried, and park it: it would be tried for ever."""
    with transaction.atomic():
        _fail([delivery_id], gettext_noop("it could not be sent as it is stored"))
        park_delivery(UNSENDABLE, delivery_id, error)


def _fail(delivery_ids: Sequence[UUID], error: str) -> None:
    WebhookDelivery.objects.filter(pk__in=delivery_ids).update(
        status=WebhookDelivery.Status.FAILED,
        error=error,
        next_attempt_at=None,
        is_claimed=False,
        finished_at=clock.now(),
    )


def park_delivery(kind: str, delivery_id: UUID, error: Exception, payload: bytes = b"") -> None:
    owner = WebhookDelivery.objects.filter(pk=delivery_id)
    workspace_id = owner.values_list("webhook__workspace_id", flat=True).first()
    parking.park(kind, delivery_id, error, payload=payload, workspace_id=workspace_id)


def send_again(delivery_ids: Iterable[UUID]) -> None:
    """Begin these deliveries anew, now, whatever became of them."""
    WebhookDelivery.objects.filter(pk__in=list(delivery_ids)).update(
        status=WebhookDelivery.Status.PENDING,
        step=0,
        next_attempt_at=clock.now(),
        is_claimed=False,
        finished_at=None,
    )


def oldest_pending_seconds() -> float:
    """How long the oldest event or delivery that is due has been waiting; 0 when none is."""
    now = clock.now()
    since = [
        _due().aggregate(at=Min("next_attempt_at"))["at"],
        OutboxEvent.objects.filter(published_at=None).aggregate(at=Min("created_at"))["at"],
    ]
    return max([(now - at).total_seconds() for at in since if at is not None], default=0.0)


def prune(before_days: int) -> int:
    """Drop events that are older, with their log; those that are still on their way stay."""
    during = Round()
    before = clock.now() - timedelta(days=before_days)
    during.delete(WebhookNotice.objects.filter(created_at__lt=before).order_by("created_at"))
    pending = WebhookDelivery.objects.filter(
        status=WebhookDelivery.Status.PENDING, event=OuterRef("pk")
    )
    old = OutboxEvent.objects.filter(
        ~Exists(pending), created_at__lt=before, published_at__isnull=False
    )
    return during.erase(old.order_by("created_at"))
