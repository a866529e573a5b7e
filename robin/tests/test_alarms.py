"""Alarms of the queue: each is told once when it begins and once when it ends."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.core import mail
from django.utils import timezone

from accounts.models import AuditEvent, OutboxEvent
from accounts.services import Actor
from gateway_project.core import mails
from robin import tasks
from robin.metrics import sampling
from robin.models import AlarmNotice, MetricSample, QueueAlarm
from robin.queue import alarms
from robin.queue.scan_store import Part, make_scan_store
from webhooks import catalogue

ACTOR = Actor("ada@robin.example")
OFF = {kind: (False, threshold) for kind, threshold in alarms.THRESHOLDS.items()}


def set_up(emails=("ops@robin.example",), **thresholds):
    wanted = OFF | {kind: (True, threshold) for kind, threshold in thresholds.items()}
    alarms.change(wanted, list(emails), actor=ACTOR)


@pytest.fixture
def operators(acme):
    acme.is_robin_operator = True
    acme.wanted_events = [alarms.ALERT]
    acme.save()
    return acme


def notices():
    """(kind, whether it is the end) of each notice, in their order."""
    return list(AlarmNotice.objects.order_by("at").values_list("kind", "is_end"))


def test_it_is_mailed_once_when_it_begins_and_once_when_it_ends(gateway, operators):
    set_up(dead=10)
    for value in (3, 10, 12, 9.5, 30, 8, 2):
        alarms.judge({"dead": float(value)})

    assert notices() == [("dead", False), ("dead", True)]
    bodies = list(OutboxEvent.objects.order_by("created_at").values_list("body", flat=True))
    states = [body["data"]["result"]["state"] for body in bodies]
    assert states == ["raised", "ended"]
    example = catalogue.BY_NAME[alarms.ALERT].example
    assert all(body["data"]["result"].keys() == example.keys() for body in bodies)


def test_what_is_not_known_changes_nothing(gateway):
    set_up(dead=10, oldest=5)
    alarms.judge({"dead": 11.0, "oldest": 6.0})
    alarms.judge({})
    alarms.judge({"oldest": 7.0})

    assert notices() == [("dead", False), ("oldest", False)]
    assert QueueAlarm.objects.get(kind="dead").raised_at is not None


def test_an_alarm_switched_off_is_over_and_says_so(gateway):
    set_up(dead=10)
    alarms.judge({"dead": 11.0})
    set_up()

    assert notices() == [("dead", False), ("dead", True)]
    alarms.judge({"dead": 20.0})
    assert len(notices()) == 2


def test_mails_go_to_each_address_once(gateway):
    set_up(["a@robin.example", "b@robin.example"], dead=10)
    alarms.judge({"dead": 11.0})
    sent = [alarms.send_waiting(), alarms.send_waiting()]
    alarms.judge({"dead": 1.0})
    tasks.send_alarms()

    assert sent == [1, 0]
    assert [one.to for one in mail.outbox] == [["a@robin.example"], ["b@robin.example"]] * 2
    assert mail.outbox[0].subject == "Alert: Dead items in the mail queue"
    assert "11 dead items" in mail.outbox[0].body
    assert mail.outbox[2].subject == "Over: Dead items in the mail queue"


def test_a_mail_server_that_is_away_gets_it_later(gateway, monkeypatch):
    set_up(dead=10)
    alarms.judge({"dead": 11.0})

    def away():
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(
            mails, "get_connection", lambda: SimpleNamespace(open=away, close=lambda: None)
        )
        assert alarms.send_waiting() == 0
    AlarmNotice.objects.update(claimed_at=timezone.now() - 2 * alarms.CLAIM)

    assert alarms.send_waiting() == 1
    assert len(mail.outbox) == 1


def test_changes_are_in_the_audit_trail_and_nothing_else_is(gateway):
    set_up(dead=10)
    set_up(dead=10)

    (row,) = AuditEvent.objects.filter(action="robin.alarms_changed")
    assert row.actor == "ada@robin.example"
    assert row.details["changes"]["dead.is_on"] == [False, True]
    assert row.details["changes"]["recipients"] == [[], ["ops@robin.example"]]


def item(uid, minutes, now):
    return {"uid": uid, "firstSeenTime": int((now - 60 * minutes) * 1000)}


def test_the_oldest_is_the_oldest_that_waits(gateway):
    now = timezone.now().timestamp()
    items = Part(now, 3, [item("a", 300, now), item("b", 100, now), item("c", 5, now)])

    found = alarms.looked_at(items, Part(now, 1, [{"uid": "a"}]))

    assert round(found.oldest_minutes) == 100
    assert found.dead == 1
    assert alarms.looked_at(Part(now, 0, []), Part(now, 0, [])).oldest_minutes == 0


def test_what_was_read_long_ago_says_nothing(gateway, robin):
    set_up(dead=1, oldest=10)
    known = [alarms.look() for _ in "123"][-1]
    assert known.dead == 8
    robin.run(robin.client.stop())
    age_parts(2 * alarms.KNOWN_SECONDS)

    assert alarms.look() == alarms.Looked(None, None)


def age_parts(seconds):
    """As if Robin had been read so long before."""

    async def age():
        store = make_scan_store()
        facts = await store.facts()
        for name, packed in (await store.parts(facts)).items():
            part = Part.unpacked(packed)
            old = part._replace(at=part.at - seconds)
            await store.put(name, {**facts[name], "at": old.at}, old.packed())
        await store.close()

    asyncio.run(age())


@pytest.mark.parametrize(
    "has_listener", [False, True], ids=["no listener", "a listener of the dead"]
)
@pytest.mark.parametrize("kind", QueueAlarm.Kind.values)
def test_each_alone_is_judged_where_nobody_watches(gateway, robin, operators, kind, has_listener):
    operators.wanted_events = ["queue.item_dead"] if has_listener else []
    operators.save()
    set_up(**{kind: 10_000})
    figures = {"queue_size": 2, "accepted": 0.0, "died": 0.0}
    MetricSample.objects.create(at=timezone.now() - timedelta(minutes=20), figures=figures)
    for _ in "123":
        robin.client.asked.clear()
        assert tasks.sample_metrics() is True
        assert len([t for _, t in robin.client.asked if "/client/queue/list" in t]) <= 1

    assert QueueAlarm.objects.get(kind=kind).value is not None


@pytest.mark.parametrize(
    ("died", "left", "percent"), [(0, 0, 0), (5, 5, 0), (10, 10, 50), (0, 100, 0), (1, 99, 1)]
)
def test_a_share_of_few_says_nothing(died, left, percent):
    assert alarms.share(died, left) == percent


def test_the_sample_of_each_minute_judges(gateway, member, robin):
    set_up(dead=1, oldest=10_000, growth=1, bounce=50)
    now = timezone.now()
    before = {"queue_size": 2, "accepted": 0.0, "died": 0.0}
    MetricSample.objects.create(at=now - timedelta(minutes=20), figures=before)

    assert tasks.sample_metrics() is True
    assert tasks.sample_metrics() is True

    values = dict(QueueAlarm.objects.values_list("kind", "value"))
    assert values["growth"] == 110  # 112 wait
    assert values["dead"] is None or values["dead"] == 8
    assert ("growth", False) in notices()


def test_nobody_watches_and_one_list_a_minute_is_asked_for(gateway, member, robin):
    set_up(dead=1, oldest=10)
    robin.client.asked.clear()
    tasks.sample_metrics()

    lists = [target for _, target in robin.client.asked if "/client/queue/list" in target]
    assert len(lists) == 1


def test_without_alarms_no_list_is_asked_for(gateway, member, robin):
    set_up()
    robin.client.asked.clear()
    tasks.sample_metrics()

    assert not [target for _, target in robin.client.asked if "/client/queue" in target]


def test_what_was_delivered_is_not_taken_for_given_up():
    at = timezone.now()
    rows = [
        (at, {"queue_size": 10, "accepted": 100.0, "died": 2.0}),
        (at + timedelta(minutes=1), {"queue_size": 8, "accepted": 110.0, "died": 5.0}),
    ]

    # Ten came, two fewer wait: twelve went, three of them given up.
    assert sampling.left(rows) == (3.0, 9.0)
