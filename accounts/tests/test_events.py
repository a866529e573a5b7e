"""The outbox and the audit trail: `publish` and `audit`."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from django.db import transaction
from django.utils import timezone

from accounts.events import audit, publish
from accounts.models import AuditEvent, OutboxEvent
from accounts.tests.shapes import moment


class RolledBack(Exception):
    pass


class TestPublish:
    def test_the_body_has_the_fields_of_the_contract(self, acme, acme_key):
        request_id = str(uuid4())

        event = publish(
            acme,
            "detection.completed",
            result={"is_malicious": True},
            metadata={"order": 7},
            request_id=request_id,
            api_key_id=acme_key.row.pk,
        )

        stored = OutboxEvent.objects.get()
        assert stored.pk == event.pk
        assert stored.workspace == acme
        assert stored.type == "detection.completed"
        assert stored.published_at is None
        assert stored.body == {
            "id": str(event.pk),
            "type": "detection.completed",
            "timestamp": stored.body["timestamp"],
            "request_id": request_id,
            "api_key_id": str(acme_key.row.pk),
            "data": {"result": {"is_malicious": True}, "metadata": {"order": 7}},
        }
        since = timezone.now() - moment(stored.body["timestamp"])
        assert timedelta(0) <= since < timedelta(minutes=1)
        assert UUID(stored.body["id"]).version == 7

    def test_what_is_not_known_is_left_out(self, acme):
        publish(acme, "quota.80", result={"used": 80})

        body = OutboxEvent.objects.get().body
        assert set(body) == {"id", "type", "timestamp", "data"}
        assert body["data"] == {"result": {"used": 80}, "metadata": {}}

    def test_it_takes_the_id_of_a_workspace(self, acme):
        publish(acme.pk, "quota.80", result={})

        assert OutboxEvent.objects.get().workspace == acme

    def test_it_is_one_statement(self, acme, django_assert_num_queries):
        with django_assert_num_queries(1):
            publish(acme, "quota.80", result={})

    def test_an_event_that_is_rolled_back_is_never_sent(self, acme):
        with suppress(RolledBack), transaction.atomic():
            publish(acme, "quota.80", result={})
            audit("quota.crossed", actor="test", workspace=acme)
            raise RolledBack

        assert not OutboxEvent.objects.exists()
        assert not AuditEvent.objects.exists()


class TestAudit:
    def test_it_keeps_who_did_what_to_what(self, acme):
        target = uuid4()

        audit(
            "key.revoked",
            actor="alice@acme.example",
            workspace=acme,
            target=target,
            client_ip="2001:db8::1",
            request_id="r-1",
            reason="leaked",
        )

        event = AuditEvent.objects.get()
        assert event.action == "key.revoked"
        assert event.actor == "alice@acme.example"
        assert event.workspace == acme
        assert event.target == str(target)
        assert event.client_ip == "2001:db8::1"
        assert event.request_id == "r-1"
        assert event.details == {"reason": "leaked"}

    def test_only_the_actor_is_needed(self, gateway):
        audit("plan.changed", actor="manage.py", client_ip="")

        event = AuditEvent.objects.get()
        assert (event.workspace, event.target, event.client_ip, event.details) == (
            None,
            "",
            None,
            {},
        )

    def test_a_row_cannot_be_changed(self, acme):
        event = audit("key.revoked", actor="alice", workspace=acme)
        event.actor = "nobody"

        with pytest.raises(TypeError, match="never changed"):
            event.save()

        assert AuditEvent.objects.get().actor == "alice"

    def test_a_row_cannot_be_changed_after_reading_it_again(self, gateway):
        audit("key.revoked", actor="alice")
        event = AuditEvent.objects.get()

        with pytest.raises(TypeError, match="never changed"):
            event.save(update_fields=["actor"])

    def test_a_row_cannot_be_deleted(self, gateway):
        event = audit("key.revoked", actor="alice")

        with pytest.raises(TypeError, match="never changed or deleted"):
            event.delete()

        assert AuditEvent.objects.count() == 1

    def test_it_outlives_its_workspace(self, acme):
        audit("key.revoked", actor="alice", workspace=acme)

        workspace_id = acme.pk
        acme.delete()

        assert AuditEvent.objects.get().workspace_id == workspace_id
