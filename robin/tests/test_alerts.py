"""Events of Robin's queue: told to its operators, each thing once."""

from __future__ import annotations

import gc
import ssl
from uuid import uuid4

import pytest

from accounts.models import OutboxEvent, Workspace
from robin import tasks
from robin.models import DeadItem, MetricSample
from robin.queue import scan
from webhooks import catalogue


@pytest.fixture
def operators(robin, acme, globex, monkeypatch):
    """Acme is marked and listens; Globex only listens."""
    monkeypatch.setattr(scan, "CALM_SECONDS", 0.0)
    wanted = ["queue.item_dead", "queue.spike"]
    Workspace.objects.update(wanted_events=wanted)
    Workspace.objects.filter(pk=acme.pk).update(is_robin_operator=True)
    return acme


def sent(kind):
    rows = OutboxEvent.objects.filter(type=kind).order_by("created_at")
    for row in rows:
        catalogue.BY_NAME[kind].result.model_validate(row.body["data"]["result"])
    return [(row.workspace_id, row.body["data"]["result"]) for row in rows]


def look(count=1):
    for _ in range(count):
        assert tasks.sample_metrics()


def give_up(robin, count=1):
    alive = robin.seed.queue.select(["READY"])[:count]
    for item in alive:
        item.state = "DEAD"
    return [item.uid for item in alive]


def test_a_spike_is_reported_once_for_each_crossing(robin, operators, settings):
    settings.ROBIN_QUEUE_SPIKE_ITEMS = 113
    look(2)
    assert sent("queue.spike") == []
    settings.ROBIN_QUEUE_SPIKE_ITEMS = 112  # as many as there are
    MetricSample.objects.all().update(figures={"queue_size": 50})
    look(3)

    assert sent("queue.spike") == [(operators.pk, {"total": 112, "threshold": 112})]

    MetricSample.objects.create(figures={"queue_size": 10})
    look()
    assert len(sent("queue.spike")) == 2


def test_looking_every_minute_makes_no_tls_context(robin, operators):
    look()
    gc.collect()
    gc.disable()
    try:
        before = contexts()
        look(3)
        assert contexts() < before + 3  # another thread may have made one meanwhile
    finally:
        gc.enable()


def contexts():
    return sum(isinstance(thing, ssl.SSLContext) for thing in gc.get_objects())


def test_a_dead_item_is_reported_once(robin, operators):
    look()
    assert sent("queue.item_dead") == []  # what was dead before anybody looked is no news
    assert DeadItem.objects.count() == 8
    uids = give_up(robin, 2)
    look(3)

    found = sent("queue.item_dead")
    assert {workspace for workspace, _ in found} == {operators.pk}
    assert sorted(result["uid"] for _, result in found) == sorted(uids)


def test_one_that_came_to_life_and_died_again_is_news(robin, operators):
    look()
    [uid] = give_up(robin)
    look()
    robin.seed.queue.retry([uid])
    look()
    assert not DeadItem.objects.filter(pk=uid).exists()
    [item] = [one for one in robin.seed.queue.select(["READY", "CLAIMED"]) if one.uid == uid]
    item.state = "DEAD"
    look()

    assert [result["uid"] for _, result in sent("queue.item_dead")] == [uid, uid]


def test_only_what_robin_lists_as_dead_is_reported(robin, operators, member, monkeypatch):
    """Of what somebody bounces some are delivered that moment, and some never were."""
    look()
    monkeypatch.setattr(scan, "CALM_SECONDS", 60.0)
    ada = member("ROLE_ADMIN", by_hand=True)
    ada.get("/api/v1/queue")
    gone, died = robin.seed.queue.select(["READY"])[:5], robin.seed.queue.select(["READY"])[5:10]
    for item in gone:
        del robin.seed.queue.items[item.uid]
    uids = [one.uid for one in (*gone, *died)] + [str(uuid4()) for _ in range(10)]
    r = ada.post("/api/v1/queue/actions", {"action": "bounce", "uids": uids})
    assert (r.json()["done"], r.json()["requested"]) == (5, 20)
    look(2)

    found = {result["uid"]: result["retry_count"] for _, result in sent("queue.item_dead")}
    assert found == {item.uid: item.retry for item in died}


def test_robin_is_not_asked_for_what_nobody_wants(robin, gateway):
    look()

    assert robin.client.asked == []


def test_no_answer_changes_nothing(robin, operators):
    look()
    robin.run(robin.client.stop())

    look()
    assert DeadItem.objects.count() == 8
    assert sent("queue.item_dead") == []
