"""Two change a webhook at once: who waited changes what was asked, and nothing else."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connection
from django.forms.models import model_to_dict

from accounts.models import AuditEvent
from gateway_project.core import errors
from gateway_project.core.stores import deletion
from webhooks import services
from webhooks.delivery import subscriptions
from webhooks.models import Webhook
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer

pytestmark = pytest.mark.needs_postgresql
GONE = Webhook.DisabledReason.GONE
ENABLED = {"is_active", "is_closing", "disabled_reason", "failing_since", "last_failed_at"}
ASKED = {
    "describe": ({"description"}, lambda w: services.update(w, {"description": "x"}, actor=ACTOR)),
    "pause": (
        {"is_active", "disabled_reason", "is_closing"},
        lambda w: services.update(w, {"is_active": False}, actor=ACTOR),
    ),
    "rotate": (set(), lambda w: services.rotate_secret(w, overlap_seconds=0, actor=ACTOR)),
    "enable": (ENABLED | {"is_noticed"}, lambda w: services.enable(w, actor=ACTOR)),
    "delete": (
        {"is_active", "deleted_at", "inbox"},
        lambda w: services.delete(w, actor=ACTOR),
    ),
}


def columns(webhook):
    row = Webhook._base_manager.get(pk=webhook.pk)
    return {**model_to_dict(row), "deleted_at": row.deleted_at}


def in_its_own_connection(act):
    try:
        act()
    finally:
        connection.close()


@pytest.fixture
def beside(monkeypatch):
    """`beside(act)`: somebody does `act` right before the next one gets the workspace's lock."""
    locked = subscriptions.locked

    def beside(act):
        def after(workspace_id):
            monkeypatch.setattr(subscriptions, "locked", locked)
            with ThreadPoolExecutor(1) as other:
                other.submit(in_its_own_connection, act).result()
            return locked(workspace_id)

        monkeypatch.setattr(subscriptions, "locked", after)

    return beside


@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("other", ["disabled", "changed", "deleted", "erased"])
def test_what_another_did_meanwhile_stays(webhook, receiver, beside, what, other):
    asked, act = ASKED[what]
    if what == "enable":
        services.update(webhook, {"is_active": False}, actor=ACTOR)
    found = Webhook.objects.get(pk=webhook.pk)
    seen = {}

    def meanwhile():
        mine = Webhook.objects.get(pk=webhook.pk)
        match other:
            case "disabled":
                subscriptions.disable(webhook.pk, GONE, {})
            case "changed":
                changes = {"events": ["quota.80"], "retry_count": 3}
                services.update(mine, changes, actor=ACTOR)
            case _:
                services.delete(mine, actor=ACTOR)
        if other == "erased":
            Webhook._base_manager.filter(pk=webhook.pk).update(is_closing=False)
            deletion.erase()
        else:
            seen.update(columns(webhook))

    beside(meanwhile)
    lines = AuditEvent.objects.count
    if other in ("deleted", "erased"):
        with pytest.raises(errors.NotFound):
            act(found)
        assert AuditEvent.objects.order_by("-at", "-id").first().action == "webhook.deleted"
        if other == "deleted":
            assert columns(webhook) == seen
        return
    before = lines()
    act(found)

    changed = {name for name, value in columns(webhook).items() if value != seen[name]}
    assert changed <= asked
    assert lines() > before
    if other == "disabled" and what in ("describe", "pause"):
        row = Webhook.objects.get(pk=webhook.pk)
        assert (row.is_active, row.disabled_reason) == (False, GONE)


def test_an_address_that_nobody_probed_is_not_enabled(webhook, receiver, beside):
    services.update(webhook, {"is_active": False}, actor=ACTOR)
    found = Webhook.objects.get(pk=webhook.pk)
    receiver.answers(Answer(200))

    def meanwhile():
        mine = Webhook.objects.get(pk=webhook.pk)
        services.update(mine, {"url": receiver.url("/new")}, actor=ACTOR)

    beside(meanwhile)
    with pytest.raises(errors.Conflict):
        services.enable(found, actor=ACTOR)
    assert not Webhook.objects.get(pk=webhook.pk).is_active
