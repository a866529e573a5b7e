"""Webhooks and deliveries in the admin: what staff see, what they do, and that it is audited."""

from __future__ import annotations

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from accounts.models import AuditEvent
from webhooks import services
from webhooks.delivery import callbacks
from webhooks.models import Webhook, WebhookDelivery

HOOKS, DELIVERIES = "/admin/webhooks/webhook/", "/admin/webhooks/webhookdelivery/"


@pytest.fixture
def delivery(webhook):
    return services.test(webhook, "webhook.test")


def act(browser, path, name, row):
    chosen = {"_selected_action": str(row.pk), "action": name}
    asked = browser.post(path, **chosen)
    assert "is_sure" in asked.text
    return browser.post(path, **chosen, is_sure="yes")


def was_done(action):
    return AuditEvent.objects.filter(action=action, actor="root@gateway.example").exists()


def test_they_are_listed_and_found_without_their_secrets(root, webhook, delivery):
    listed = root.get(HOOKS).text
    found = root.get(f"{HOOKS}?q={webhook.workspace.slug}").text
    shown = root.get(f"{HOOKS}{webhook.pk}/change/").text

    assert webhook.url in listed
    assert webhook.url in found
    assert webhook.url not in root.get(f"{HOOKS}?q=globex").text
    assert "webhook.test" in shown
    assert "_save" not in shown or "secret" not in shown
    assert webhook.secrets.get().encrypted not in shown


def test_disabling_one_gives_up_what_waits(root, webhook, delivery):
    act(root, HOOKS, "disable", webhook)

    delivery.refresh_from_db()
    assert not Webhook.objects.get(pk=webhook.pk).is_active
    assert delivery.status == WebhookDelivery.Status.FAILED
    assert AuditEvent.objects.filter(
        action="webhook.changed", actor="root@gateway.example"
    ).exists()


def test_the_one_of_addresses_named_in_requests_stays(root, acme):
    named = callbacks.of(acme.pk)
    act(root, HOOKS, "disable", named)

    assert Webhook.objects.get(pk=named.pk).is_active
    assert "webhook_url of requests" in root.get(HOOKS).text
    assert "disable" not in root.get(f"{HOOKS}{named.pk}/change/").text.partition("gw-acts")[2]


def test_sending_again(root, webhook, delivery):
    WebhookDelivery.objects.filter(pk=delivery.pk).update(status="failed", next_attempt_at=None)
    act(root, DELIVERIES, "resend", delivery)

    delivery.refresh_from_db()
    assert delivery.status == WebhookDelivery.Status.PENDING
    assert was_done("webhook.resent")


@pytest.mark.parametrize("by", ["pk", "webhook_id", "event_id"])
def test_a_delivery_is_found_by_each_id(root, delivery, by):
    page = root.get(f"{DELIVERIES}?q={getattr(delivery, by)}").text

    assert str(delivery.pk) in page
    assert "none yet" in root.get(f"{DELIVERIES}{delivery.pk}/change/").text


def test_a_list_never_counts_the_table(root, delivery):
    with CaptureQueriesContext(connection) as captured:
        root.get(DELIVERIES)

    counted = [q["sql"] for q in captured if "COUNT(*)" in q["sql"] and "LIMIT" not in q["sql"]]
    assert not [sql for sql in counted if "webhookdelivery" in sql]
