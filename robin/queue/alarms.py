"""Alarms of operators: the oldest item, growth, dead items, the share that bounces.

Each is judged with the sample of each minute (`robin/metrics/sampling.py`), and is raised or over:
its beginning and its end are told once, to the addresses of the settings page and as the event
`queue.alert` to workspaces that staff mark as operators of Robin. What is not known changes
nothing, and so does Robin's being away. An alarm ends a little below where it begins, so that it
does not flap.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _
from redis.exceptions import RedisError

from accounts.events import audit, event, publish_all
from accounts.models import User
from accounts.services import Actor
from gateway_project.core import clock, errors, mails
from gateway_project.core.clock import utc_text
from gateway_project.core.language import number, speaking
from gateway_project.core.stores import database
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from robin.models import AlarmNotice, AlarmRecipient, QueueAlarm
from robin.queue import scan
from robin.queue.alerts import DEAD, listeners, of_dead, tls
from robin.queue.scan import Scanner
from robin.queue.scan_store import Facts, Part
from robin.queue.source import PlainSource
from robin.queue.translate import Item
from robin.queue.turns import rest_seconds

ALERT = "queue.alert"
ITEMS, DEAD_ITEMS = "ALL:0", "DEAD:0"
GROWTH_SPAN = timedelta(minutes=15)
SHARE_SPAN = timedelta(hours=1)
SHARE_ITEMS_MIN = 20
"""Of fewer that left in an hour a share says nothing."""
ENDS_BELOW = 0.9
"""Of the threshold."""
KNOWN_SECONDS = 300.0
"""What was read of the queue longer ago says nothing of now, unless no list can be newer."""
KEEP_DAYS = 90
RECIPIENTS_MAX = 20
AT_ONCE = 50
CLAIM = timedelta(minutes=5)
GIVEN_UP_AFTER = timedelta(days=1)
THRESHOLDS = {"oldest": 240, "growth": 500, "dead": 25, "bounce": 20}
"""To begin with."""
Kind = QueueAlarm.Kind
log = get_logger("gateway.robin")


# -- What is known --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Looked:
    """What the scan knows of now; None: nothing."""

    oldest_minutes: float | None = None
    dead: float | None = None
    dead_items: list[Item] | None = None
    """For the events; None where nobody wants to hear of them, too."""

    def figures(self) -> dict[str, float]:
        """For the sample, whose charts show them."""
        found = {"oldest_minutes": self.oldest_minutes, "dead_items": self.dead}
        return {name: value for name, value in found.items() if value is not None}


def on() -> list[str]:
    return list(QueueAlarm.objects.filter(is_on=True).values_list("kind", flat=True))


def look() -> Looked:
    """Of the scan that everybody shares. Where more is wanted than it knows, Robin is asked for
    one list: this minute for the one, the next for the other. Not inside a transaction."""
    kinds, has_listeners = on(), bool(listeners(DEAD))
    wanted = [ITEMS] if Kind.OLDEST in kinds else []
    # Of the oldest, too, it has to be known that it is not dead.
    if wanted or has_listeners or Kind.DEAD in kinds:
        wanted.append(DEAD_ITEMS)
    database.let_go()  # Robin may take its time
    items, dead = asyncio.run(_read(wanted))
    looked = looked_at(items, dead)
    return (
        replace(looked, dead_items=of_dead(dead)) if has_listeners and dead is not None else looked
    )


async def _read(wanted: Sequence[str]) -> list[Part | None]:
    """What is known of the items, and of the dead ones."""
    async with PlainSource(tls()) as source:
        scanner = Scanner(source=source)
        try:
            facts = await scanner.store.facts()
            since = {name: _read_at(facts.get(name, {})) for name in wanted}
            stalest = min(since, key=lambda name: since[name], default=None)
            if stalest and clock.time() - since[stalest] > scan.CALM_SECONDS - 15:
                try:
                    await scanner.read_once(stalest, age_seconds=0.0)
                except errors.GatewayError as error:
                    log.warning("queue_alerts_unread", part=stalest, error=error.code)
                facts = await scanner.store.facts()
            took = max((one.get("took", 0.0) for one in facts.values()), default=0.0)
            found = await scanner.store.parts([ITEMS, DEAD_ITEMS])
        except (RedisError, OSError):
            return [None, None]
        finally:
            await scanner.close()
    # Two lists of a long queue lie apart for as long as Robin rests between.
    until = clock.time() - max(KNOWN_SECONDS, 3 * (took + rest_seconds(took)))
    items, dead = (Part.unpacked(found.get(name)) for name in (ITEMS, DEAD_ITEMS))
    # Who is dead Robin has to say itself: what somebody bounced may have been delivered instead.
    dead = None if dead is None or dead.is_amended else dead
    return [part if part is not None and part.at > until else None for part in (items, dead)]


def _read_at(facts: Facts) -> float:
    return 0.0 if facts.get("amended") else float(facts.get("at", 0.0))


def looked_at(items: Part | None, dead: Part | None) -> Looked:
    """Robin lists what came first first."""
    count = float(dead.total) if dead is not None else None
    if items is None or dead is None:
        return Looked(None, count)
    gone = {item["uid"] for item in dead.items}
    waiting = [item for item in items.items if item["uid"] not in gone]
    if not waiting:
        is_all = items.total <= len(items.items)
        return Looked(0.0 if is_all else None, count)
    since = min(int(item["firstSeenTime"]) for item in waiting)
    return Looked(max(0.0, (clock.time() - since / 1000) / 60), count)


def share(died: float, left: float) -> float:
    """In percent, of what left the queue, how much was given up."""
    whole = died + left
    return 100 * died / whole if whole >= SHARE_ITEMS_MIN else 0.0


# -- Judging --------------------------------------------------------------------------------------


def judge(values: Mapping[str, float]) -> None:
    """Raise and end alarms by what is known."""
    with transaction.atomic():
        mine = QueueAlarm.objects.filter(is_on=True, kind__in=list(values)).order_by("kind")
        for alarm in mine.select_for_update(no_key=True):
            _judge(alarm, values[alarm.kind])


def _judge(alarm: QueueAlarm, value: float) -> None:
    alarm.value, alarm.seen_at = value, clock.now()
    if alarm.raised_at is None and value >= alarm.threshold:
        alarm.raised_at = alarm.seen_at
        _note(alarm, is_end=False)
    elif alarm.raised_at is not None and value < alarm.threshold * ENDS_BELOW:
        _note(alarm, is_end=True)
        alarm.raised_at = None
    alarm.save(update_fields=["value", "seen_at", "raised_at"])


def _note(alarm: QueueAlarm, *, is_end: bool) -> None:
    """Once for each change: the mail that is to be sent, and the event."""
    since = alarm.raised_at or clock.now()
    AlarmNotice.objects.create(
        kind=alarm.kind,
        is_end=is_end,
        value=alarm.value or 0.0,
        threshold=alarm.threshold,
        since=since,
    )
    result = {
        "alert": alarm.kind,
        "state": "ended" if is_end else "raised",
        "value": round(alarm.value or 0.0, 2),
        "threshold": alarm.threshold,
        "since": utc_text(since),
    }
    publish_all([event(one.pk, ALERT, result=result) for one in listeners(ALERT)])
    log.warning("queue_alarm", kind=alarm.kind, is_end=is_end, value=result["value"])


# -- Settings -------------------------------------------------------------------------------------


def alarms() -> list[QueueAlarm]:
    """All of them, in their order; what was never set is off."""
    known = {alarm.kind: alarm for alarm in QueueAlarm.objects.all()}
    return [
        known.get(kind) or QueueAlarm(kind=kind, threshold=THRESHOLDS[kind]) for kind in Kind.values
    ]


def recipients() -> list[str]:
    return list(AlarmRecipient.objects.order_by("email").values_list("email", flat=True))


def change(wanted: Mapping[str, tuple[bool, int]], emails: Sequence[str], *, actor: Actor) -> None:
    """`{kind: (is_on, threshold)}` and who gets mails. An alarm that is switched off is over, and
    whoever was told of it is told that."""
    changes: dict[str, list[object]] = {}
    with transaction.atomic():
        known = {alarm.kind: alarm for alarm in QueueAlarm.objects.select_for_update(no_key=True)}
        for kind, (is_on, threshold) in wanted.items():
            alarm = known.get(kind) or QueueAlarm(kind=kind, threshold=THRESHOLDS[kind])
            for name, value in (("is_on", is_on), ("threshold", threshold)):
                if getattr(alarm, name) != value:
                    changes[f"{kind}.{name}"] = [getattr(alarm, name), value]
            if alarm.raised_at is not None and not is_on:
                _note(alarm, is_end=True)
                alarm.raised_at = None
            alarm.is_on, alarm.threshold = is_on, threshold
            alarm.save()
        before = recipients()
        if sorted(emails) != before:
            changes["recipients"] = [before, sorted(emails)]
            AlarmRecipient.objects.exclude(email__in=emails).delete()
            rows = [AlarmRecipient(email=email) for email in emails]
            AlarmRecipient.objects.bulk_create(rows, ignore_conflicts=True)
        if changes:
            audit("robin.alarms_changed", changes=changes, **actor.fields())


def history(size: int = 20) -> list[AlarmNotice]:
    return list(AlarmNotice.objects.order_by("-at", "-id")[:size])


def prune() -> int:
    old = AlarmNotice.objects.filter(at__lt=clock.now() - timedelta(days=KEEP_DAYS))
    return Round().delete(old.order_by("at"))


# -- Mails ----------------------------------------------------------------------------------------

NAMES = {
    Kind.OLDEST: _("The oldest item of the mail queue"),
    Kind.GROWTH: _("The mail queue grows"),
    Kind.DEAD: _("Dead items in the mail queue"),
    Kind.BOUNCE: _("Mail bounces"),
}
NOW = {
    Kind.OLDEST: _("%(n)s minutes since it was first seen"),
    Kind.GROWTH: _("%(n)s items more than 15 minutes before"),
    Kind.DEAD: _("%(n)s dead items"),
    Kind.BOUNCE: _("%(n)s percent of what left within an hour"),
}


def text_of(notice: AlarmNotice) -> tuple[str, str]:
    """Subject and body, in the language that is spoken."""
    kind = Kind(notice.kind)
    what = {"what": NAMES[kind]}
    path = "/app/mail/alerts" if notice.is_end else "/app/mail-queue"
    facts = [
        (gettext("Now"), NOW[kind] % {"n": number(notice.value, ",.0f")}),
        (gettext("Threshold"), number(notice.threshold)),
        (gettext("Since"), f"{notice.since:%Y-%m-%d %H:%M} UTC"),
    ]
    head = gettext("%(what)s is over.") if notice.is_end else gettext("%(what)s needs a look.")
    todo = gettext("Nothing is left to do.")
    if not notice.is_end:
        todo = gettext("The queue, by destination:")
    foot = gettext(
        "You get this because your address stands on the alerts page of the mail server. It is "
        "told once when\nan alert begins and once when it ends."
    )
    link = f"{settings.PUBLIC_URL}{path}" if settings.PUBLIC_URL else path
    body = f"{head % what}\n\n{mails.table(facts)}\n\n{todo}\n{link}\n\n-- \n{foot}\n"
    subject = gettext("Over: %(what)s") if notice.is_end else gettext("Alert: %(what)s")
    return subject % what, body


def send_waiting() -> int:
    """Send the mails that wait; of how many notices some left. Each address gets one at most,
    unless a worker dies with it in hand."""
    now = clock.now()
    is_free = Q(claimed_at=None) | Q(claimed_at__lt=now - CLAIM)
    waits = Q(left__isnull=True, sent_at=None) | Q(left__isnull=False) & ~Q(left=[])
    waiting = AlarmNotice.objects.filter(is_free & waits, at__gt=now - GIVEN_UP_AFTER)
    sent, during = 0, Round()
    for pk in list(waiting.order_by("at").values_list("pk", flat=True)[:AT_ONCE]):
        if during.is_over:
            break
        # Compare-and-set: of two workers, one gets it. No transaction is held while mails leave.
        if not AlarmNotice.objects.filter(is_free & waits, pk=pk).update(claimed_at=now):
            continue
        notice = AlarmNotice.objects.get(pk=pk)
        found = _send(notice)
        notice.left = found.later
        if found.count:
            notice.sent_at = clock.now()
            sent += 1
        notice.save(update_fields=["left", "sent_at"])
        if found.is_away:
            break  # the others would fare no better
    return sent


def _send(notice: AlarmNotice) -> mails.Sent:
    emails = recipients()
    if notice.left is not None:
        emails = [email for email in emails if email in notice.left]
    known = dict(User.objects.filter(email__in=emails).values_list("email", "language"))

    def mail_to(email: str) -> EmailMessage:
        with speaking(known.get(email, "")):
            subject, body = text_of(notice)
            return mails.message(subject, body, [email])

    return mails.send_each(emails, mail_to)
