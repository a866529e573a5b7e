"""`webhook_url`: addresses that a request names."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from unittest.mock import patch

import pytest
import time_machine
from django import db
from django.utils import timezone

from accounts import moderation
from accounts.events import publish
from accounts.models import AuditEvent, OutboxEvent, Plan, UsageLog, Workspace
from accounts.tests.shapes import fields, problem, refusal
from gateway_project.core.upstream import names
from webhooks import services
from webhooks.delivery import callbacks, outbox
from webhooks.delivery import engine as delivering
from webhooks.delivery.engine import deliver_all
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer
from webhooks.tests.test_catalogue import ATTACK, errors


@pytest.fixture
def per_request(api):
    """The workspace's, as the API shows it, with its secret."""
    shown = api("GET", "/per-request").json()
    shown["secret"] = api("POST", f"/{shown['id']}/rotate-secret", {"overlap_seconds": 0}).json()[
        "secret"
    ]
    return shown


@pytest.fixture
def detect(gateway, engine, acme_key):
    """`detect(url)`: a detection that names it."""

    def ask(url, text=ATTACK, **more):
        return gateway.post("/v1/detect", {"text": text, "webhook_url": url, **more}, key=acme_key)

    ask.key = acme_key
    return ask


def announce(workspace, url, **result):
    return publish(workspace, "detection.completed", result=result, deliver_to=url)


class TestTheEvent:
    def test_it_arrives_signed_and_as_the_catalogue_says(
        self, detect, receiver, per_request, acme_key
    ):
        r = detect(receiver.url("/named"), metadata={"a": {"b": None}})
        deliver_all()

        [got] = receiver.received
        body = got.verified_by(per_request["secret"])
        verdict = r.json()
        assert r.status_code == 200
        assert errors(body) == []
        assert got.path == "/named"
        assert body["type"] == "detection.completed"
        assert body["request_id"] == verdict["request_id"]
        assert body["api_key_id"] == str(acme_key.row.pk)
        assert body["data"]["metadata"] == {"a": {"b": None}}
        result = body["data"]["result"]
        assert result["endpoint"] == "/v1/detect"
        for name in ("is_malicious", "confidence", "threat_types", "decision", "source"):
            assert result[name] == verdict[name]
        assert ATTACK not in got.body.decode()

    def test_it_is_committed_before_the_answer(self, detect, receiver):
        detect(receiver.url())

        event = OutboxEvent.objects.get()
        assert (event.deliver_to, event.published_at) == (receiver.url(), None)

    def test_it_goes_there_alone_and_webhooks_hear_from_the_log(
        self, gateway, detect, receiver, make_webhook, per_request
    ):
        registered = make_webhook("/registered")
        detect(receiver.url("/named"))
        deliver_all()
        assert [got.path for got in receiver.received] == ["/named"]

        gateway.flush_usage()
        deliver_all()
        assert [got.path for got in receiver.received] == ["/named", "/registered"]
        assert receiver.received[1].verified_by(registered.secret)

    def test_without_the_database_there_is_no_verdict(self, detect, receiver, gateway):
        with patch.object(OutboxEvent, "save", side_effect=db.OperationalError("away")):
            problem(detect(receiver.url()), 503, "store_unavailable")
        gateway.flush_usage()

        assert not OutboxEvent.objects.exists()
        assert list(UsageLog.objects.values_list("http_status", "decision")) == [(503, "")]


class TestTheGuard:
    @pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "169.254.169.254", "::1"])
    def test_a_name_that_leads_to_us_is_refused_before_anything(
        self, detect, engine, gateway, address, name_server
    ):
        name_server.resolves("rebinding.example", address)
        r = detect("https://rebinding.example/hook")

        assert list(fields(r)) == ["webhook_url"]
        assert address not in r.text
        assert engine.asked == []
        assert not OutboxEvent.objects.exists()

    @pytest.mark.parametrize("hangs", [False, True], ids=["unknown", "hanging"])
    def test_a_name_that_is_not_found_is_looked_up_at_each_delivery(
        self, detect, per_request, hangs, receiver, settings, name_server, monkeypatch
    ):
        monkeypatch.setattr(names, "SECONDS_MAX", 0.1)
        settings.WEBHOOK_ALLOWED_NETWORKS = ()
        if hangs:
            name_server.hangs("later.example")
        assert detect("https://later.example/hook").status_code == 200
        name_server.forget()
        names._channel.cache_clear()  # as after ten seconds
        name_server.resolves("later.example", "10.1.2.3")
        monkeypatch.undo()
        deliver_all()

        delivery = WebhookDelivery.objects.get()
        assert "private or reserved" in delivery.error
        assert delivery.status == "pending"

    def test_names_that_hang_keep_no_other_workspace_waiting(
        self, gateway, detect, engine, globex_key, name_server
    ):
        """The answers come in another order than the questions were asked in."""
        name_server.resolves("quick.example", "8.8.8.8")
        hanging = [f"hangs-{n}.example" for n in range(2 * names.ASKER_MAX)]
        name_server.hangs(*hanging)
        order = []

        async def ask(http, key, name):
            body = {"text": ATTACK, "webhook_url": f"https://{name}/hook"}
            r = await http.post("/v1/detect", json=body, headers={"X-API-Key": key})
            order.append((name, r.status_code))

        async def all_at_once():
            async with gateway.http() as http:
                calls = [ask(http, detect.key, name) for name in hanging]
                await asyncio.gather(*calls, ask(http, globex_key, "quick.example"))

        gateway.run(all_at_once())

        assert order[0] == ("quick.example", 200)
        assert {status for _, status in order} == {200}


class TestDeliveries:
    def test_they_are_in_the_log_with_their_address(self, api, acme, receiver, per_request):
        announce(acme, receiver.url("/named?id=1"))
        deliver_all()

        [listed] = api("GET", f"/{per_request['id']}/deliveries").json()["results"]
        shown = api("GET", f"/deliveries/{listed['id']}").json()
        assert listed["url"] == shown["url"] == receiver.url("/named?id=1")
        assert shown["status"] == "delivered"
        assert shown["webhook_id"] == per_request["id"]
        health = api("GET", "/per-request").json()["health"]
        assert health == {"delivered": 1, "failed": 0, "pending": 0, "disabled_reason": None}

    def test_one_is_sent_again_to_its_address(self, api, acme, receiver, per_request):
        announce(acme, receiver.url("/named"))
        deliver_all()
        delivery = WebhookDelivery.objects.get()

        assert api("POST", f"/deliveries/{delivery.pk}/resend").status_code == 202
        deliver_all()

        first, second = receiver.at("/named")
        assert (first.body, first.event_id) == (second.body, second.event_id)

    def test_failures_and_410_end_nothing_but_themselves(self, acme, receiver):
        receiver.answers(500, path="/fails")
        receiver.answers(410, path="/gone")
        announce(acme, receiver.url("/gone"))
        announce(acme, receiver.url("/fails"))
        for days in range(11):  # nothing but failures, longer than others may have
            with time_machine.travel(timezone.now() + timedelta(days=days)):
                deliver_all()

        webhook = Webhook.objects.get()
        assert (len(receiver.at("/gone")), len(receiver.at("/fails"))) == (1, 10)
        assert (webhook.is_active, webhook.failing_since) == (True, None)
        assert not WebhookNotice.objects.exists()

    def test_a_suspended_workspace_is_sent_nothing_until_it_recovers(
        self, api, acme, receiver, per_request
    ):
        announce(acme, receiver.url("/before"))
        outbox.fan_out()
        moderation.suspend_workspace(acme, actor=ACTOR)
        deliver_all()
        announce(acme, receiver.url("/meanwhile"))
        deliver_all()
        assert receiver.received == []

        moderation.reinstate_workspace(acme, actor=ACTOR)
        since = {"since": "2026-01-01T00:00:00Z"}
        r = api("POST", f"/{per_request['id']}/recover", since)
        assert r.json() == {"deliveries": 2, "is_complete": True}
        deliver_all()
        assert {got.path for got in receiver.received} == {"/before", "/meanwhile"}

    def test_a_webhook_recovers_only_what_was_for_it(self, acme, receiver, webhook):
        announce(acme, receiver.url("/named"))
        deliver_all()

        since = timezone.now() - timedelta(hours=1)
        assert services.recover(webhook, since, None, actor=ACTOR) == (0, True)

    def test_one_slow_address_does_not_hold_another(self, acme, receiver, per_request):
        """What hangs is let go only when all others have arrived."""
        receiver.answers(Answer(hangs=True), path="/hangs")
        for number in range(50):
            announce(acme, receiver.url(f"/hangs?id={number}"))
        for number in range(30):
            announce(acme, receiver.url(f"/quick/{number % 3}"))
        hanging: list[int] = []
        done = threading.Event()

        def watch():
            while not done.wait(0.02):
                if len(receiver.received) - len(receiver.at("/hangs")) == 30:
                    hanging.append(len(receiver.at("/hangs")))
                    receiver.answers(200, path="/hangs")
                    receiver.release()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        deliver_all()
        done.set()
        watcher.join()

        assert hanging == [delivering.WINDOW_START]
        assert len(receiver.received) == 80

    def test_all_of_a_workspace_leave_places_to_others(self, acme, receiver, webhook):
        for number in range(30):
            announce(acme, receiver.url(f"/{number}"))
        publish(acme, "detection.completed", result={})
        outbox.fan_out()

        jobs = outbox.Claims().take(100, {}, 4, callbacks_default=10)

        assert [job.lane != "" for job in jobs].count(True) == 10
        assert [job.url for job in jobs if not job.lane] == [webhook.url]


class TestTheirWebhook:
    def test_there_is_one_and_no_list_shows_it(self, api, acme, per_request):
        assert api("GET", "/per-request").json()["id"] == per_request["id"]
        assert api("GET", "/list").json()["results"] == []
        assert Workspace.objects.get(pk=acme.pk).wanted_events == []
        assert not Webhook.objects.listed().exists()

    @pytest.mark.parametrize(("method", "body"), [("GET", None), ("PATCH", {}), ("DELETE", None)])
    def test_it_cannot_be_read_changed_or_deleted_as_others(self, api, per_request, method, body):
        problem(api(method, f"/{per_request['id']}", body), 404, "not_found")
        problem(api("POST", "/test", {"webhook_id": per_request["id"]}), 404, "not_found")
        assert Webhook.objects.count() == 1

    def test_it_counts_towards_no_maximum(self, api, receiver, per_request):
        Plan.objects.update(webhooks_max=1)

        first, second = [api("POST", "/register", {"url": receiver.url()}) for _ in "ab"]
        assert first.status_code == 201
        assert refusal(second) == (409, "conflict")

    def test_during_a_rotation_both_secrets_verify(self, api, acme, receiver, per_request):
        path = f"/{per_request['id']}/rotate-secret"
        new = api("POST", path, {"overlap_seconds": 3600})
        announce(acme, receiver.url())
        deliver_all()

        [got] = receiver.received
        assert new.headers["cache-control"] == "no-store, no-transform"
        assert got.verified_by(new.json()["secret"]) == got.verified_by(per_request["secret"])
        rotated = AuditEvent.objects.filter(action="webhook.secret_rotated")
        assert {event.target for event in rotated} == {per_request["id"]}

    def test_two_workspaces_have_secrets_of_their_own(self, acme, globex, receiver, per_request):
        announce(globex, receiver.url())
        deliver_all()

        [got] = receiver.received
        with pytest.raises(Exception, match="No matching signature"):
            got.verified_by(per_request["secret"])
        assert callbacks.of(globex.pk).pk != callbacks.of(acme.pk).pk

    def test_many_at_once_make_one(self, acme):
        if db.connection.vendor != "postgresql":
            pytest.skip("SQLite has one writer")
        made = []

        def make():
            made.append(callbacks.of(acme.pk).pk)
            db.connections.close_all()

        threads = [threading.Thread(target=make) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        webhook = Webhook.objects.get()
        assert made == [webhook.pk] * 8
        assert webhook.secrets.count() == 1
