"""A backlog of one webhook hides nobody else's deliveries, and is cleared away behind."""

from __future__ import annotations

from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts import moderation
from accounts.events import publish
from accounts.models import OutboxEvent
from accounts.tests.test_backlogs import OfPieces, never_waiting, somebody_else
from gateway_project.core.api import pagination
from gateway_project.core.stores import deletion
from webhooks import services
from webhooks.delivery import outbox, subscriptions
from webhooks.models import Webhook, WebhookDelivery, WebhookSecret
from webhooks.tests.conftest import ACTOR

pytestmark = pytest.mark.hostile


@pytest.fixture
def backlog(acme, receiver):
    """`backlog(webhook, 20)`: so many deliveries, due for longer than any other."""

    def make(webhook, size, lane=""):
        event = publish(webhook.workspace, "x", result={})
        events = [OutboxEvent(workspace=acme, type="x", body=event.body) for _ in range(size)]
        long_ago = timezone.now() - timedelta(hours=1)
        OutboxEvent.objects.bulk_create(events)
        OutboxEvent.objects.update(published_at=long_ago)
        WebhookDelivery.objects.bulk_create(
            WebhookDelivery(
                webhook=webhook, event=event, event_type="x", lane=lane, steps_max=1,
                next_attempt_at=long_ago,
            )
            for event in events
        )  # fmt: skip

    return make


@pytest.fixture
def little(monkeypatch):
    """What is looked at is little, so that few rows are a backlog."""
    monkeypatch.setattr(outbox, "CANDIDATES_PER_PLACE", 1)
    monkeypatch.setattr(outbox, "WEBHOOKS_AT_ONCE", 3)
    monkeypatch.setattr(outbox, "OF_EACH_MAX", 5)


def urls(jobs):
    return sorted({job.url.rpartition("/")[2] for job in jobs})


class TestClaims:
    def test_those_behind_a_full_webhook_are_found(self, make_webhook, backlog, little):
        full, other = make_webhook("/full"), make_webhook("/other")
        backlog(full, 50)
        backlog(other, 3)
        WebhookDelivery.objects.filter(webhook=other).update(next_attempt_at=timezone.now())

        jobs = outbox.Claims().take(10, {(full.pk, ""): 0}, 4)

        assert urls(jobs) == ["other"]
        assert len(jobs) == 3

    def test_all_webhooks_have_their_turn(self, make_webhook, backlog, little):
        full = make_webhook("/full")
        others = [make_webhook(f"/{n}") for n in range(9)]
        backlog(full, 30)
        for webhook in others:
            backlog(webhook, 1)
        WebhookDelivery.objects.exclude(webhook=full).update(next_attempt_at=timezone.now())
        claims, seen = outbox.Claims(), []
        for _ in range(6):
            seen += claims.take(10, {(full.pk, ""): 0}, 4)

        assert urls(seen) == [str(n) for n in range(9)]
        assert len(seen) == 9

    def test_an_address_behind_one_of_its_workspace_that_is_full_is_found(
        self, acme, receiver, backlog, little
    ):
        from webhooks.delivery import callbacks

        named = callbacks.of(acme.pk)
        backlog(named, 30, lane="https://slow.example/a")
        backlog(named, 1, lane="https://quick.example/b")
        WebhookDelivery.objects.filter(lane__contains="quick").update(
            next_attempt_at=timezone.now()
        )

        room = {(named.pk, "https://slow.example/a"): 0}
        outbox.Claims().take(10, room, 4)

        taken = WebhookDelivery.objects.filter(is_claimed=True)
        assert [delivery.lane for delivery in taken] == ["https://quick.example/b"]

    @pytest.mark.needs_postgresql
    def test_it_asks_as_much_whatever_waits(self, make_webhook, backlog, little):
        full = make_webhook("/full")
        counts = []
        for size in (20, 200):
            backlog(full, size)
            with CaptureQueriesContext(connection) as queries:
                outbox.Claims().take(10, {(full.pk, ""): 0}, 4)
            counts.append(len(queries))

        assert counts[0] == counts[1]

    def test_what_is_suspended_hides_nobody_and_is_closed_behind(
        self, acme, globex, make_webhook, backlog, little
    ):
        silent, other = make_webhook("/silent"), make_webhook("/other", workspace=globex)
        backlog(silent, 30)
        backlog(other, 1)
        WebhookDelivery.objects.filter(webhook=other).update(next_attempt_at=timezone.now())
        moderation.suspend_workspace(acme, actor=ACTOR)

        jobs = outbox.Claims().take(10, {}, 4)

        assert urls(jobs) == ["other"]
        assert pending(silent) == 30
        subscriptions.close_pending()
        assert pending(silent) == 0
        assert not Webhook.objects.filter(is_closing=True).exists()

    def test_one_event_for_many_webhooks_is_a_short_transaction(
        self, acme, make_webhook, monkeypatch
    ):
        monkeypatch.setattr(outbox, "DELIVERIES_AT_ONCE", 4)
        for n in range(3):
            make_webhook(f"/{n}", ["quota.80"])
        for _ in range(5):
            publish(acme, "quota.80", result={})

        assert [outbox.fan_out() for _ in range(4)] == [2, 2, 1, 0]
        assert WebhookDelivery.objects.count() == 15


def pending(webhook):
    return WebhookDelivery.objects.filter(webhook=webhook, status="pending").count()


class TestStopping:
    @pytest.mark.parametrize("how", ["pause", "disable", "delete"])
    def test_it_does_as_much_whatever_the_backlog(self, webhook, backlog, monkeypatch, how):
        monkeypatch.setattr(subscriptions, "CLOSED_FIRST", 5)
        backlog(webhook, 20)
        with CaptureQueriesContext(connection) as queries:
            stop(webhook, how)
        touched = [q["sql"] for q in queries if "webhookdelivery" in q["sql"]]

        assert pending(webhook) == (20 if how == "delete" else 15)
        assert len(touched) <= 2

        subscriptions.close_pending()
        deletion.erase()

        assert pending(webhook) == 0
        assert WebhookDelivery.objects.count() == (0 if how == "delete" else 20)

    def test_a_round_that_is_over_is_gone_on_with(self, webhook, backlog, monkeypatch):
        monkeypatch.setattr(subscriptions, "CLOSED_FIRST", 1)
        monkeypatch.setattr(subscriptions, "Round", lambda: OfPieces(3))
        backlog(webhook, 20)
        stop(webhook, "pause")
        left = []
        while pending(webhook):
            subscriptions.close_pending()
            left.append(pending(webhook))

        assert left == [13, 7, 1, 0]
        errors = set(WebhookDelivery.objects.values_list("error", flat=True))
        assert errors == {"the webhook was paused"}

    def test_one_that_is_enabled_again_meanwhile_keeps_what_is_left(self, webhook, backlog):
        backlog(webhook, 3)
        Webhook.objects.update(is_closing=True)

        subscriptions.close_pending()

        assert pending(webhook) == 3
        assert not Webhook.objects.filter(is_closing=True).exists()

    def test_a_deleted_one_is_in_no_list_and_signs_nothing(self, api, webhook, backlog):
        backlog(webhook, 1)
        delivery = WebhookDelivery.objects.get()
        services.delete(webhook, actor=ACTOR)

        assert api("GET", "/list").json()["results"] == []
        for path in (f"/{webhook.pk}", f"/{webhook.pk}/deliveries", f"/deliveries/{delivery.pk}"):
            assert api("GET", path).status_code == 404
        assert not WebhookSecret.objects.exists()
        assert outbox.Claims().take(10, {}, 4) == []

    @pytest.mark.needs_postgresql
    def test_events_are_written_while_a_webhook_is_changed(self, acme, webhook):
        with somebody_else(lambda: subscriptions.locked(acme.pk)):
            never_waiting(lambda: publish(acme, "x", result={}))

        assert OutboxEvent.objects.count() == 1


def stop(webhook, how):
    if how == "pause":
        services.update(webhook, {"is_active": False}, actor=ACTOR)
    elif how == "disable":
        subscriptions.disable(webhook.pk, Webhook.DisabledReason.GONE, {})
    else:
        services.delete(webhook, actor=ACTOR)


class TestReading:
    def test_a_filter_that_matches_little_looks_back_a_bit_at_a_time(
        self, api, webhook, backlog, monkeypatch
    ):
        monkeypatch.setattr(pagination, "LOOKED_AT_MAX", 8)
        backlog(webhook, 20)
        with transaction.atomic():
            oldest = WebhookDelivery.objects.order_by("created_at")[0]
            WebhookDelivery.objects.filter(pk=oldest.pk).update(status="failed")
        sizes, path = [], f"/{webhook.pk}/deliveries?status=failed"
        while path:
            body = api("GET", path).json()
            sizes.append(len(body["results"]))
            path = (body["next"] or "").removeprefix("http://testserver/webhooks")

        assert sizes in ([0, 0, 1], [0, 1])
        assert sum(sizes) == 1

    def test_each_is_on_one_page(self, api, webhook, backlog, monkeypatch):
        monkeypatch.setattr(pagination, "LOOKED_AT_MAX", 8)
        backlog(webhook, 20)
        seen, path = [], f"/{webhook.pk}/deliveries?status=pending&limit=3"
        while path:
            body = api("GET", path).json()
            seen += [each["id"] for each in body["results"]]
            path = (body["next"] or "").removeprefix("http://testserver/webhooks")

        assert len(seen) == len(set(seen)) == 20

    def test_counts_end(self, webhook, backlog, monkeypatch):
        monkeypatch.setattr(services, "COUNTED_MAX", 10)
        backlog(webhook, 12)

        assert services.counts_of([webhook]) == {webhook.pk: {"pending": 10}}
