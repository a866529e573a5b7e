"""The endpoints under /webhooks: shapes, refusals, and who may do what to whom."""

from __future__ import annotations

from datetime import timedelta
from itertools import permutations
from uuid import UUID, uuid4

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from accounts import moderation
from accounts.audit import RECORDED, seal
from accounts.events import publish
from accounts.models import AUDIT_SCOPE, AuditEvent, OutboxEvent, Plan, Workspace
from accounts.tests.shapes import fields, moment, problem, refusal
from gateway_project.core import clock, encryption, errors
from gateway_project.core.stores import deletion
from webhooks import catalogue, services
from webhooks.delivery import engine, outbox
from webhooks.models import Webhook, WebhookDelivery, WebhookNotice, WebhookSecret
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer

WEBHOOK_FIELDS = {
    *("id", "url", "events", "description", "retry_count", "is_active", "created_at", "health")
}
DELIVERY_FIELDS = {
    *("id", "webhook_id", "event_id", "event", "url", "status", "created_at", "finished_at"),
    *("next_attempt_at", "http_status", "error", "attempts"),
}
ATTEMPT_FIELDS = {
    *("at", "http_status", "response_body", "error", "duration_ms", "next_attempt_at")
}


@pytest.mark.hostile
class TestTheAuditTrail:
    """Whose key may not read it does not hear of it, by whatever way."""

    DENIED = (403, "scope_denied")

    @pytest.fixture
    def theirs(self, make_webhook):
        return make_webhook("/theirs", [RECORDED, "quota.80"])

    def test_it_is_sent_nowhere_new(self, api, receiver, theirs, webhook):
        url = receiver.url("/mine")
        for method, path, body in (
            ("POST", "/register", {"url": url, "events": [RECORDED]}),
            ("PATCH", f"/{webhook.pk}", {"events": ["quota.80", RECORDED]}),
            ("PATCH", f"/{theirs.pk}", {"url": url}),
            ("PATCH", f"/{theirs.pk}", {"events": [RECORDED]}),
            ("PATCH", f"/{theirs.pk}", {"events": ["quota.80"]}),
            ("PATCH", f"/{theirs.pk}", {"url": url, "events": ["quota.80"]}),
        ):
            assert refusal(api(method, path, body)) == self.DENIED, (method, path)
        assert api("PATCH", f"/{theirs.pk}", {"description": "ours"}).status_code == 200

    @pytest.mark.parametrize("status", [200, 503, 410], ids=["sent", "waiting", "given_up"])
    @pytest.mark.parametrize("is_ended", [False, True], ids=["asked", "ended"])
    def test_no_acts_together_bring_it_to_another_address(
        self, api, receiver, theirs, status, is_ended, is_in_turn
    ):
        """`is_ended`: its owner takes the event away, and somebody else then has the address."""
        mine, since = receiver.url("/mine"), clock.now() - timedelta(hours=1)
        receiver.answers(status, path="/theirs")
        seal()
        engine.deliver_all()
        old = WebhookDelivery.objects.filter(event_type=RECORDED)
        assert old.exists()
        if is_ended:
            services.update(theirs, {"events": ["quota.80"]}, can_audit=True, actor=ACTOR)
        acts = [
            ("PATCH", f"/{theirs.pk}", {"events": ["quota.80"]}),
            ("PATCH", f"/{theirs.pk}", {"url": mine}),
            ("PATCH", f"/{theirs.pk}", {"url": mine, "events": ["quota.80"]}),
            ("PATCH", f"/{theirs.pk}", {"is_active": True}),
            ("POST", f"/{theirs.pk}/recover", {"since": since.isoformat()}),
            *(("POST", f"/deliveries/{one.pk}/resend", None) for one in old),
            ("POST", f"/{theirs.pk}/rotate-secret", {}),
        ]
        for first, second in permutations(acts, 2):
            if not is_in_turn():
                continue
            api(*first), api(*second)
            WebhookDelivery.objects.filter(status="pending").update(next_attempt_at=clock.now())
            seal()
            engine.deliver_all()

        assert [one.json["type"] for one in receiver.at("/mine")].count(RECORDED) == 0
        theirs.refresh_from_db()
        assert (theirs.url == mine) is is_ended

    def test_who_listens_no_more_is_not_sent_it_again(self, api, receiver, theirs):
        receiver.answers(503, path="/theirs")
        seal()
        engine.deliver_all()
        services.update(theirs, {"events": ["quota.80"]}, can_audit=True, actor=ACTOR)
        waiting = WebhookDelivery.objects.filter(event_type=RECORDED, status="pending")
        waiting.update(next_attempt_at=clock.now())
        ids, sent = list(waiting.values_list("pk", flat=True)), len(receiver.received)
        engine.deliver_all()

        assert ids
        assert len(receiver.received) == sent
        assert not waiting.exists()
        since = {"since": (clock.now() - timedelta(hours=1)).isoformat()}
        assert api("POST", f"/{theirs.pk}/recover", since).json()["deliveries"] == 0
        assert refusal(api("POST", f"/deliveries/{ids[0]}/resend")) == (409, "conflict")

        services.update(theirs, {"events": [RECORDED]}, can_audit=True, actor=ACTOR)
        assert api("POST", f"/deliveries/{ids[0]}/resend").status_code == 202

    def test_an_answer_that_repeats_it_is_not_shown(self, gateway, api, receiver, theirs, make_key):
        reader = make_key(scopes=["webhooks", AUDIT_SCOPE])
        receiver.answers(Answer(body=b"echoed"), path="/theirs")
        seal()
        engine.deliver_all()

        assert "echoed" not in api("GET", f"/{theirs.pk}/deliveries").text
        assert "echoed" in gateway.get(f"/webhooks/{theirs.pk}/deliveries", key=reader).text

    def test_no_delivery_shows_it(self, gateway, api, theirs, make_key):
        reader = make_key(scopes=["webhooks", AUDIT_SCOPE])
        seal()
        engine.deliver_all()
        delivery = WebhookDelivery.objects.filter(event_type=RECORDED).first()

        assert refusal(api("GET", f"/deliveries/{delivery.pk}")) == self.DENIED
        assert gateway.get(f"/webhooks/deliveries/{delivery.pk}", key=reader).json()["body"]
        assert api("GET", f"/{theirs.pk}/deliveries").status_code == 200  # without bodies

    def test_who_may_read_it_may_have_it_sent(self, gateway, receiver, make_key):
        reader = make_key(scopes=["webhooks", AUDIT_SCOPE])
        body = {"url": receiver.url(), "events": [RECORDED]}

        made = gateway.post("/webhooks/register", body, key=reader).json()

        assert made["events"] == [RECORDED]


class TestRegister:
    def test_it_has_the_fields_of_the_contract(self, api, receiver, acme):
        r = api("POST", "/register", {"url": receiver.url()})

        body = r.json()
        webhook = Webhook.objects.get()
        assert r.status_code == 201
        assert r.headers["location"] == f"/webhooks/{webhook.pk}"
        assert set(body) == WEBHOOK_FIELDS | {"secret"}
        assert body["secret"].startswith("whsec_")
        assert body["url"] == receiver.url()
        assert body["events"] == ["detection.completed"]
        assert body["is_active"] is True
        assert body["health"] == {
            "delivered": 0,
            "failed": 0,
            "pending": 0,
            "disabled_reason": None,
        }
        assert UUID(body["id"]).version == 7
        moment(body["created_at"])
        assert webhook.workspace == acme

    def test_it_takes_every_field_and_the_plans_name_of_an_event(self, api, receiver):
        r = api(
            "POST",
            "/register",
            {
                "url": receiver.url(),
                "events": ["detection_complete", "quota.80", "detection.completed"],
                "description": "  ours ",
                "retry_count": 3,
            },
        )

        body = r.json()
        assert body["events"] == ["detection.completed", "quota.80"]
        assert (body["description"], body["retry_count"]) == ("ours", 3)

    def test_the_secret_is_shown_this_once_and_stored_encrypted(self, api, receiver):
        made = api("POST", "/register", {"url": receiver.url()}).json()

        later = api("GET", "/list").text + api("GET", f"/{made['id']}").text
        assert made["secret"] not in later
        assert "whsec_" not in later
        stored = WebhookSecret.objects.get().encrypted
        assert made["secret"] not in repr([*WebhookSecret.objects.values()])
        assert encryption.decrypt(stored) == made["secret"]
        assert made["secret"] not in repr([*AuditEvent.objects.values()])

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"url": "https://example.com", "secret": "x"},
            {"url": "https://example.com", "events": []},
            {"url": "https://example.com", "events": ["detection.maybe"]},
            {"url": "https://example.com", "events": "detection.completed"},
            {"url": "https://example.com", "retry_count": -1},
            {"url": "https://example.com", "retry_count": 10},
            {"url": "https://example.com", "description": "x" * 201},
            {"url": "https://example.com", "description": "nul\x00"},
        ],
        ids=str,
    )
    def test_it_names_a_bad_field_and_makes_nothing(self, api, body):
        r = api("POST", "/register", body)

        assert fields(r)
        assert not Webhook.objects.exists()

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.com/",
            "https://127.0.0.1/",
            "https://localhost/",
            "https://10.0.0.1/",
            "https://2130706433/",
            "https://[::ffff:127.0.0.1]/",
            "https://user:pw@example.com/",
            "https://example.com:22/",
        ],
    )
    def test_an_address_of_ours_is_422(self, api, url):
        assert list(fields(api("POST", "/register", {"url": url}))) == ["url"]
        assert not Webhook.objects.exists()

    def test_a_name_that_does_not_resolve_yet_is_accepted(self, api):
        r = api("POST", "/register", {"url": "https://later.example/hook"})

        assert r.json()["url"] == "https://later.example/hook"

    def test_there_is_an_end_to_them(self, api, receiver):
        Plan.objects.update(webhooks_max=2)
        *taken, last = [api("POST", "/register", {"url": receiver.url()}) for _ in range(3)]

        assert [r.status_code for r in taken] == [201, 201]
        assert refusal(last) == (409, "conflict")

    def test_the_workspace_knows_what_is_wanted(self, acme, make_webhook):
        def wanted():
            return Workspace.objects.get(pk=acme.pk).wanted_events

        one = make_webhook(events=["quota.80", "detection.flagged"])
        other = make_webhook(events=["quota.80"])
        assert wanted() == ["detection.flagged", "quota.80"]

        services.update(one, {"events": ["key.expiring"]}, actor=ACTOR)
        assert wanted() == ["key.expiring", "quota.80"]

        services.delete(other, actor=ACTOR)
        assert wanted() == ["key.expiring"]

        services.update(one, {"is_active": False}, actor=ACTOR)
        assert wanted() == []

    def test_it_is_audited(self, api, receiver, acme_key):
        made = api("POST", "/register", {"url": receiver.url()}).json()

        event = AuditEvent.objects.get(action="webhook.created", target=made["id"])
        assert event.actor == f"key {acme_key[:12]}…"


class TestRead:
    def test_a_list_has_each_with_its_health(self, api, acme, receiver, make_webhook):
        quiet, busy = make_webhook("/a", ["quota.80"]), make_webhook("/b")
        receiver.answers(500)
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        body = api("GET", "/list").json()

        assert set(body) == {"results", "next"}
        assert [each["id"] for each in body["results"]] == [str(busy.pk), str(quiet.pk)]
        assert [set(each) for each in body["results"]] == [WEBHOOK_FIELDS] * 2
        assert body["results"][0]["health"]["pending"] == 1
        assert api("GET", f"/{busy.pk}").json() == body["results"][0]

    def test_next_leads_through_all(self, api, make_webhook):
        for n in range(5):
            make_webhook(f"/{n}")
        seen, path = [], "/list?limit=2"
        while path:
            body = api("GET", path).json()
            seen += [each["id"] for each in body["results"]]
            path = (body["next"] or "").removeprefix("http://testserver/webhooks")

        assert len(seen) == len(set(seen)) == 5

    def test_a_list_costs_the_same_sql_however_long(
        self, api, make_webhook, django_assert_max_num_queries
    ):
        from webhooks.schemas import WebhookView

        rows = [make_webhook(f"/{n}") for n in range(5)]

        with django_assert_max_num_queries(2):
            counts = services.counts_of(rows)
            assert len([WebhookView.of(row, counts.get(row.pk, {})) for row in rows]) == 5

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/{id}"),
            ("PATCH", "/{id}"),
            ("DELETE", "/{id}"),
            ("POST", "/{id}/rotate-secret"),
            ("GET", "/{id}/deliveries"),
            ("POST", "/{id}/recover"),
        ],
    )
    def test_a_strangers_is_as_missing_as_one_that_never_was(
        self, api, make_webhook, globex, method, path
    ):
        theirs = make_webhook(workspace=globex)
        json = {"PATCH": {"description": "mine"}, "POST": {}}.get(method)
        if "recover" in path:
            json = {"since": "2026-01-01T00:00:00Z"}

        one = api(method, path.format(id=theirs.pk), json)
        other = api(method, path.format(id=uuid4()), json)

        assert problem(one, 404, "not_found")["detail"] == other.json()["detail"]
        theirs.refresh_from_db()
        assert theirs.description == ""


class TestChange:
    @pytest.mark.parametrize(
        ("field", "value"),
        [("description", "new"), ("events", ["quota.80"]), ("retry_count", 2)],
    )
    def test_it_changes_the_named_field_alone(self, api, webhook, field, value):
        before = api("GET", f"/{webhook.pk}").json()

        r = api("PATCH", f"/{webhook.pk}", {field: value})

        assert r.status_code == 200
        assert r.json() == before | {field: value}
        assert api("GET", f"/{webhook.pk}").json() == r.json()

    @pytest.mark.parametrize("field", ["url", "events", "description", "is_active"])
    def test_null_leaves_a_field_as_it_is(self, api, webhook, field):
        before = api("GET", f"/{webhook.pk}").json()

        assert api("PATCH", f"/{webhook.pk}", {field: None}).json() == before

    def test_null_brings_the_default_of_retries_back(self, api, webhook):
        api("PATCH", f"/{webhook.pk}", {"retry_count": 2})

        assert api("PATCH", f"/{webhook.pk}", {"retry_count": None}).json()["retry_count"] is None
        assert Webhook.objects.get().retry_count is None

    def test_its_address_is_checked_again(self, api, webhook, receiver):
        assert "url" in fields(api("PATCH", f"/{webhook.pk}", {"url": "https://10.0.0.1/"}))
        assert api("PATCH", f"/{webhook.pk}", {"url": receiver.url("/b")}).status_code == 200

        webhook.refresh_from_db()
        assert webhook.url == receiver.url("/b")

    def test_a_pause_gives_up_what_is_on_its_way(self, api, acme, webhook, receiver):
        receiver.answers(500)
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        r = api("PATCH", f"/{webhook.pk}", {"is_active": False})

        assert r.json()["is_active"] is False
        assert r.json()["health"]["disabled_reason"] == "paused"
        assert WebhookDelivery.objects.get().status == "failed"
        assert not WebhookNotice.objects.exists()

    def test_enabling_probes_first_and_stays_off_when_that_fails(self, api, webhook, receiver):
        api("PATCH", f"/{webhook.pk}", {"is_active": False})
        receiver.answers(500)

        r = api("PATCH", f"/{webhook.pk}", {"is_active": True})

        assert "HTTP 500" in problem(r, 409, "conflict")["detail"]
        assert [got.json["type"] for got in receiver.received] == ["webhook.test"]
        assert api("GET", f"/{webhook.pk}").json()["is_active"] is False

    def test_enabling_with_an_answer_lets_events_through_again(self, api, acme, webhook, receiver):
        api("PATCH", f"/{webhook.pk}", {"is_active": False})

        r = api("PATCH", f"/{webhook.pk}", {"is_active": True})

        assert r.status_code == 200
        assert r.json()["is_active"] is True
        assert r.json()["health"]["disabled_reason"] is None
        assert WebhookNotice.objects.get().kind == "enabled"
        assert Workspace.objects.get(pk=acme.pk).wanted_events == ["detection.completed"]
        publish(acme, "detection.completed", result={})
        engine.deliver_all()
        assert len(receiver.received) == 2

    def test_enabling_what_is_enabled_sends_nothing(self, api, webhook, receiver):
        assert api("PATCH", f"/{webhook.pk}", {"is_active": True}).status_code == 200
        assert receiver.received == []


class TestDelete:
    def test_it_goes_with_its_log(self, api, acme, webhook, receiver):
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        r = api("DELETE", f"/{webhook.pk}")

        assert (r.status_code, r.content) == (204, b"")
        assert api("GET", f"/{webhook.pk}").status_code == 404
        deletion.erase()
        assert not WebhookDelivery.objects.exists()
        assert AuditEvent.objects.filter(action="webhook.deleted").exists()


class TestRotate:
    def test_it_shows_the_new_secret_once(self, api, webhook):
        r = api("POST", f"/{webhook.pk}/rotate-secret", {"overlap_seconds": 60})

        assert set(r.json()) == {"secret", "previous_valid_until"}
        assert r.json()["secret"] != webhook.secret
        left = moment(r.json()["previous_valid_until"]) - timezone.now()
        assert timedelta(seconds=0) < left <= timedelta(seconds=60)
        assert r.json()["secret"] not in api("GET", f"/{webhook.pk}").text

    def test_old_secrets_have_an_end(self, api, webhook):
        for _ in range(15):
            api("POST", f"/{webhook.pk}/rotate-secret")

        assert webhook.secrets.count() == 10
        assert webhook.secrets.filter(expires_at=None).count() == 1

    def test_without_overlap_the_old_one_ends_now(self, api, acme, webhook, receiver):
        new = api("POST", f"/{webhook.pk}/rotate-secret", {"overlap_seconds": 0}).json()["secret"]
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        [got] = receiver.received
        assert got.verified_by(new)
        assert " " not in got.headers["webhook-signature"]


class TestTest:
    @pytest.mark.parametrize("name", catalogue.BY_NAME)
    def test_it_sends_the_example_of_an_event_once(self, api, webhook, receiver, name):
        receiver.answers(500)

        r = api("POST", "/test", {"webhook_id": str(webhook.pk), "event": name})
        engine.deliver_all()

        assert r.status_code == 202
        delivery = api("GET", f"/deliveries/{r.json()['delivery_id']}").json()
        assert (delivery["status"], delivery["event"]) == ("failed", name)
        [got] = receiver.received
        assert got.json["type"] == name
        assert got.json["data"]["metadata"] == {"test": True}
        assert got.json["data"]["result"] == catalogue.BY_NAME[name].example

    def test_it_goes_to_this_webhook_alone(self, api, make_webhook, receiver):
        make_webhook("/other", list(catalogue.BY_NAME))
        mine = make_webhook("/mine")

        api("POST", "/test", {"webhook_id": str(mine.pk)})
        engine.deliver_all()

        assert [got.path for got in receiver.received] == ["/mine"]

    def test_a_disabled_one_is_409(self, api, webhook):
        services.update(webhook, {"is_active": False}, actor=ACTOR)

        problem(api("POST", "/test", {"webhook_id": str(webhook.pk)}), 409, "conflict")

    def test_the_guard_is_asked_here_too(self, api, webhook, settings, receiver):
        settings.WEBHOOK_ALLOWED_NETWORKS = ()

        r = api("POST", "/test", {"webhook_id": str(webhook.pk)})

        assert "private or reserved" in fields(r)["webhook_id"]
        assert "WEBHOOK_ALLOWED_NETWORKS" in fields(r)["webhook_id"]
        assert receiver.received == []


class TestDeliveries:
    @pytest.fixture
    def log(self, acme, make_webhook, receiver):
        webhook = make_webhook(events=["detection.completed", "quota.80"], retry_count=0)
        receiver.answers(Answer(200, body=b"fine"), 500, 200)
        for kind in ("detection.completed", "quota.80", "quota.80"):
            publish(acme, kind, result={})
            engine.deliver_all()
        return webhook

    def test_they_have_the_fields_of_the_contract(self, api, log):
        body = api("GET", f"/{log.pk}/deliveries").json()

        assert set(body) == {"results", "next"}
        newest, failed, oldest = body["results"]
        assert {frozenset(each) for each in body["results"]} == {frozenset(DELIVERY_FIELDS)}
        assert (oldest["status"], oldest["event"]) == ("delivered", "detection.completed")
        assert (failed["status"], failed["http_status"]) == ("failed", 500)
        [attempt] = oldest["attempts"]
        assert set(attempt) == ATTEMPT_FIELDS
        assert (attempt["http_status"], attempt["response_body"]) == (200, "fine")
        moment(attempt["at"])
        assert newest["status"] == "delivered"

    def test_one_has_the_body_too(self, api, log):
        listed = api("GET", f"/{log.pk}/deliveries").json()["results"][0]

        one = api("GET", f"/deliveries/{listed['id']}").json()

        event = OutboxEvent.objects.get(pk=listed["event_id"])
        assert one == listed | {"body": event.body}

    def test_a_list_has_the_answer_of_the_newest_attempt_alone(
        self, api, acme, webhook, receiver, monkeypatch
    ):
        receiver.answers(*(Answer(500, body=body) for body in (b"one", b"two", b"three")))
        publish(acme, "detection.completed", result={})
        for _ in range(3):
            WebhookDelivery.objects.update(next_attempt_at=timezone.now())
            engine.deliver_all()

        read_later = []

        def newest_answers(rows, find=services.newest_answers):
            read_later.extend(a.get_deferred_fields() for row in rows for a in row.attempts.all())
            return find(rows)

        monkeypatch.setattr(services, "newest_answers", newest_answers)
        [listed] = api("GET", f"/{webhook.pk}/deliveries").json()["results"]
        one = api("GET", f"/deliveries/{listed['id']}").json()

        def bodies(delivery):
            return [attempt["response_body"] for attempt in delivery["attempts"]]

        assert bodies(listed) == ["", "", "three"]
        assert bodies(one) == ["", "two", "three"]
        assert read_later == [{"response_body"}] * 3

    @pytest.mark.parametrize(
        ("query", "count"),
        [
            ("status=delivered", 2),
            ("status=failed", 1),
            ("status=pending", 0),
            ("event=quota.80", 2),
            ("event=detection_complete", 1),
            ("event=quota.80&status=failed", 1),
            ("since=2020-01-01T00:00:00Z", 3),
            ("since=2999-01-01T00:00:00Z", 0),
        ],
    )
    def test_they_can_be_filtered(self, api, log, query, count):
        assert len(api("GET", f"/{log.pk}/deliveries?{query}").json()["results"]) == count

    @pytest.mark.parametrize(
        "query", ["status=maybe", "event=x", "since=yesterday", "since=2026-01-01T00:00:00"]
    )
    def test_a_senseless_filter_is_422(self, api, log, query):
        assert list(fields(api("GET", f"/{log.pk}/deliveries?{query}"))) == [query.split("=")[0]]

    @pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/resend")])
    def test_a_strangers_is_missing(self, api, make_webhook, globex, method, path):
        theirs = services.test(make_webhook(workspace=globex), "webhook.test")

        problem(api(method, f"/deliveries/{theirs.pk}{path}"), 404, "not_found")


class TestAgain:
    def fail(self, acme, webhook, receiver, count):
        receiver.answers(500)
        ids = [publish(acme, "detection.completed", result={}).pk for _ in range(count)]
        engine.deliver_all()
        WebhookDelivery.objects.update(status="failed", next_attempt_at=None)
        receiver.received.clear()
        receiver.answers(200)
        return {str(each) for each in ids}

    def test_resend_begins_anew_with_the_same_id(self, api, acme, webhook, receiver):
        [event_id] = self.fail(acme, webhook, receiver, 1)
        delivery = WebhookDelivery.objects.get()

        r = api("POST", f"/deliveries/{delivery.pk}/resend")
        engine.deliver_all()

        assert (r.status_code, r.json()) == (202, {"delivery_id": str(delivery.pk)})
        assert [got.event_id for got in receiver.received] == [event_id]
        delivery.refresh_from_db()
        assert (delivery.status, delivery.attempts_made) == ("delivered", 2)

    def test_what_arrived_can_be_sent_again_too(self, api, acme, webhook, receiver):
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        api("POST", f"/deliveries/{WebhookDelivery.objects.get().pk}/resend")
        engine.deliver_all()

        assert len(receiver.received) == 2

    def test_recover_sends_what_failed_since(self, api, acme, webhook, receiver):
        old = self.fail(acme, webhook, receiver, 2)
        OutboxEvent.objects.update(created_at=timezone.now() - timedelta(days=2))
        new = self.fail(acme, webhook, receiver, 3)
        since = (timezone.now() - timedelta(hours=1)).isoformat()

        r = api("POST", f"/{webhook.pk}/recover", {"since": since})
        engine.deliver_all()

        assert (r.status_code, r.json()) == (202, {"deliveries": 3, "is_complete": True})
        assert receiver.ids == new
        until = {"since": "2020-01-01T00:00:00Z", "until": since}
        assert api("POST", f"/{webhook.pk}/recover", until).json()["deliveries"] == 2
        engine.deliver_all()
        assert receiver.ids == new | old

    def test_recover_sends_what_it_missed_while_disabled(self, api, acme, make_webhook, receiver):
        make_webhook("/other")
        mine = make_webhook("/mine")
        services.update(mine, {"is_active": False}, actor=ACTOR)
        event = publish(acme, "detection.completed", result={})
        publish(acme, "quota.80", result={})
        engine.deliver_all()
        services.enable(mine, actor=ACTOR)
        receiver.received.clear()

        r = api("POST", f"/{mine.pk}/recover", {"since": "2020-01-01T00:00:00Z"})
        engine.deliver_all()

        assert r.json()["deliveries"] == 1
        assert [(got.path, got.event_id) for got in receiver.received] == [("/mine", str(event.pk))]

    def test_recover_sends_no_test_again(self, api, webhook, receiver):
        receiver.answers(500)
        services.test(webhook, "quota.100")
        engine.deliver_all()
        services.update(webhook, {"is_active": False}, actor=ACTOR)
        for _ in "12":
            assert api("PATCH", f"/{webhook.pk}", {"is_active": True}).status_code == 409
        receiver.answers(200)
        services.enable(webhook, actor=ACTOR)
        receiver.received.clear()

        r = api("POST", f"/{webhook.pk}/recover", {"since": "2020-01-01T00:00:00Z"})
        engine.deliver_all()

        assert r.json() == {"deliveries": 0, "is_complete": True}
        assert receiver.received == []

    def test_recover_says_when_there_is_more(self, api, acme, webhook, receiver, monkeypatch):
        monkeypatch.setattr(services, "RECOVERED_MAX", 2)
        self.fail(acme, webhook, receiver, 3)
        body = {"since": "2020-01-01T00:00:00Z"}

        answers = [api("POST", f"/{webhook.pk}/recover", body).json() for _ in range(2)]

        assert answers == [
            {"deliveries": 2, "is_complete": False},
            {"deliveries": 1, "is_complete": True},
        ]

    @pytest.mark.parametrize("body", [{}, {"since": "yesterday"}, {"since": "2026-01-01T00:00:00"}])
    def test_recover_wants_a_time(self, api, webhook, body):
        assert "since" in fields(api("POST", f"/{webhook.pk}/recover", body))


class TestCatalogue:
    def test_everybody_may_read_it(self, gateway):
        r = gateway.get("/webhooks/events")

        assert r.status_code == 200
        assert [set(event) for event in r.json()] == [
            {"name", "description", "schema", "example"}
        ] * len(catalogue.TYPES)
        assert {event["name"] for event in r.json()} >= {
            *("detection.completed", "detection.flagged", "detection.failed", "batch.completed"),
            *("batch.failed", "quota.80", "quota.100", "key.expiring", "webhook.test"),
            *("queue.spike", "queue.item_dead"),
        }


@pytest.mark.parametrize("path", ["/register", "/list", "/test"])
def test_it_needs_the_scope(gateway, acme_admin_key, path):
    method = "GET" if path == "/list" else "POST"
    r = gateway.request(method, f"/webhooks{path}", key=acme_admin_key)

    assert "'webhooks'" in problem(r, 403, "scope_denied")["detail"]


def test_secrets_survive_a_new_key(webhook, settings):
    new = "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
    settings.FIELD_ENCRYPTION_KEYS = [new, *django_settings.FIELD_ENCRYPTION_KEYS]
    stored = WebhookSecret.objects.get().encrypted

    assert encryption.decrypt(stored) == webhook.secret
    settings.FIELD_ENCRYPTION_KEYS = [new]
    with pytest.raises(encryption.Undecryptable):
        encryption.decrypt(stored)


class TestSecretsAreNotKept:
    def test_no_cache_and_no_compressor_may_touch_them(self, api, receiver):
        made = api("POST", "/register", {"url": receiver.url()})
        rotated = api("POST", f"/{made.json()['id']}/rotate-secret", {})

        for r in (made, rotated):
            assert "whsec_" in r.text
            assert r.headers["cache-control"] == "no-store, no-transform"


class TestSuspension:
    """What operators stop is not sent, and can be recovered afterwards."""

    def test_nothing_leaves_and_it_says_why(self, acme, webhook, receiver):
        waiting = publish(acme, "detection.completed", result={})
        outbox.fan_out()
        moderation.suspend_workspace(acme, actor=ACTOR)
        publish(acme, "detection.completed", result={})

        engine.deliver_all()

        assert receiver.received == []
        delivery = webhook.deliveries.get()
        assert (delivery.event_id, delivery.status) == (waiting.pk, "failed")
        assert delivery.error == "the workspace is suspended"

        moderation.reinstate_workspace(acme, actor=ACTOR)
        since = waiting.created_at
        assert services.recover(webhook, since, None, actor=ACTOR) == (2, True)
        engine.deliver_all()
        assert len(receiver.received) == 2

    def test_nobody_sends_by_hand(self, acme, webhook, receiver):
        delivery = services.test(webhook, "webhook.test")
        moderation.suspend_workspace(acme, actor=ACTOR)

        for act in (
            lambda: services.test(webhook, "webhook.test"),
            lambda: services.resend(delivery, actor=ACTOR),
            lambda: services.enable(webhook, actor=ACTOR),
            lambda: services.recover(webhook, delivery.created_at, None, actor=ACTOR),
        ):
            with pytest.raises(errors.Conflict, match="suspended"):
                act()
        assert receiver.received == []
