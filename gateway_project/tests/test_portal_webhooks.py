"""The pages of webhooks and the inbox: who may see and change what, and what they do."""

from __future__ import annotations

import pytest
from django.urls import reverse
from django.utils import timezone

from accounts import moderation
from accounts.events import publish
from accounts.tests.shapes import refusal
from webhooks import services, signing
from webhooks.delivery import callbacks, engine
from webhooks.models import InboxRequest, Webhook, WebhookDelivery
from webhooks.receiving import inbox
from webhooks.tests.conftest import ACTOR
from webhooks.tests.receiver import Answer

FORM = {"events": ["detection.completed"], "description": "", "retry_count": ""}
SECRET = "no-store, no-transform"
UGLY = {
    "half_a_pair": r'{"a": "\ud800"}',
    "named_by_half_a_pair": r'{"a": 1, "\ud800": 1, "id": "\udfff"}',
    "deep": "[" * 5_000,
    "deep_and_closed": "[" * 900 + "]" * 900,
    "wide_when_it_is_spread": "[" * 31 + "1," * 30_000 + "1" + "]" * 31,
    "digits": '{"a": ' + "9" * 5_000 + "}",
    "no_number": '{"a": NaN, "b": 1e999}',
    "marked": "\ufeff{}",
    "nul": '{"a": "\x00 \\u0000"}',
    "markup": '{"a": "</pre><script>"}',
}
"""JSON, or nearly, that some step between a receiver and a page cannot take."""


@pytest.fixture
def delivery(webhook):
    return services.test(webhook, "webhook.test")


@pytest.fixture
def own_inbox(acme):
    return inbox.of(acme)


def at(name, **ids):
    return reverse(f"portal-{name}", kwargs=ids)


def text_of(response):
    return response.content.decode()


class TestWebhooks:
    def test_it_makes_one_and_shows_the_secret_once(self, owner, acme, receiver):
        done = owner.post("/app/webhooks", {**FORM, "url": receiver.url()})
        r = owner.get(done["Location"])

        made = Webhook.objects.get(workspace=acme)
        assert "whsec_" in text_of(r)
        assert r["Cache-Control"] == SECRET
        assert made.url == receiver.url()
        assert "whsec_" not in text_of(owner.get("/app/webhooks"))
        assert "whsec_" not in text_of(owner.get(at("webhook", webhook_id=made.pk)))

    @pytest.mark.parametrize(
        "changes",
        [
            {"url": "https://169.254.169.254/"},
            {"events": []},
            {"events": ["x"]},
            {"retry_count": 10},
        ],
    )
    def test_it_refuses_what_the_api_refuses(self, owner, receiver, changes):
        r = owner.post("/app/webhooks", {**FORM, "url": receiver.url(), **changes})

        assert "errorlist" in text_of(r)
        assert not Webhook.objects.exists()

    def test_it_edits(self, owner, webhook):
        url = at("webhook-edit", webhook_id=webhook.pk)
        form = {**FORM, "url": webhook.url, "description": "ours", "retry_count": "3"}

        assert owner.post(url, form).status_code == 302
        webhook.refresh_from_db()
        assert (webhook.description, webhook.retry_count) == ("ours", 3)

        assert "errorlist" in text_of(owner.post(url, {**form, "url": "https://127.0.0.1.nip/ x"}))

    def test_pausing_and_enabling_tell_what_the_probe_met(self, owner, webhook, receiver):
        url = at("webhook-switch", webhook_id=webhook.pk)
        assert "Paused" in text_of(owner.post(url, {"to": "off"}, follow=True))

        receiver.answers(Answer(503))
        assert "HTTP 503" in text_of(owner.post(url, {"to": "on"}, follow=True))
        receiver.answers(Answer(200))
        assert "answered the probe" in text_of(owner.post(url, {"to": "on"}, follow=True))
        webhook.refresh_from_db()
        assert webhook.is_active

    def test_rotating_shows_the_new_secret_and_until_when_the_old_signs(self, owner, webhook):
        url = at("webhook-rotate", webhook_id=webhook.pk)

        r = owner.post(url, {"overlap_seconds": "3600"}, follow=True)

        assert "whsec_" in text_of(r)
        assert webhook.secret not in text_of(r)
        assert "Old secret" in text_of(r)
        assert r["Cache-Control"] == SECRET

    def test_recovering_sends_what_was_given_up(self, owner, webhook, acme, receiver):
        publish(acme, "detection.completed", result={})
        receiver.answers(Answer(410))
        engine.deliver_all()
        receiver.answers(Answer(200))
        owner.post(at("webhook-switch", webhook_id=webhook.pk), {"to": "on"})
        url = at("webhook-recover", webhook_id=webhook.pk)
        since = f"{timezone.now():%Y-%m-%dT00:00}"

        assert "1 delivery is on its way again." in text_of(
            owner.post(url, {"since": since}, follow=True)
        )
        engine.deliver_all()
        found = WebhookDelivery.objects.get(webhook=webhook, event_type="detection.completed")
        assert found.status == "delivered"

    def test_deleting(self, owner, webhook):
        owner.post(at("webhook-delete", webhook_id=webhook.pk))

        assert not Webhook.objects.exists()


class TestNamedInRequests:
    @pytest.fixture
    def named(self, acme, receiver):
        publish(acme, "detection.completed", result={}, deliver_to=receiver.url("/named"))
        engine.deliver_all()
        return callbacks.of(acme.pk)

    def test_its_page_has_the_log_with_the_addresses(self, owner, viewer, named, receiver):
        for person in (owner, viewer):
            page = text_of(person.get("/app/webhooks/per-request"))
            assert receiver.url("/named") in page
            assert "Pause or delete" not in page
            assert "Send a test" not in page
        found = WebhookDelivery.objects.get()
        shown = text_of(owner.get(at("delivery", delivery_id=found.pk)))
        assert receiver.url("/named") in shown
        assert "webhook_url" in text_of(owner.get("/app/webhooks"))
        assert "No webhook yet" in text_of(owner.get("/app/webhooks"))

    def test_its_secret_is_shown_once_when_it_rotates(self, owner, viewer, named):
        url = at("webhook-rotate", webhook_id=named.pk)
        assert viewer.post(url, {"overlap_seconds": "3600"}).status_code == 403

        r = owner.post(url, {"overlap_seconds": "3600"}, follow=True)

        assert "whsec_" in text_of(r)
        assert "Old secret" in text_of(r)
        assert r["Cache-Control"] == SECRET
        assert "whsec_" not in text_of(owner.get("/app/webhooks/per-request"))

    @pytest.mark.parametrize("name", ["edit", "switch", "test", "delete"])
    def test_it_cannot_be_changed(self, owner, named, name):
        assert owner.post(at(f"webhook-{name}", webhook_id=named.pk)).status_code == 404
        assert Webhook.objects.get().is_active

    def test_another_workspaces_is_404(self, stranger, named):
        assert refusal(stranger.get(at("webhook", webhook_id=named.pk))) == (404, "not_found")


class TestLog:
    def test_filters_and_pages(self, owner, webhook):
        made = [services.test(webhook, "webhook.test").pk for _ in range(55)]
        quota = services.test(webhook, "quota.80")
        url = at("webhook", webhook_id=webhook.pk)

        seen, where = [], url
        while where:
            r = owner.get(where)
            seen += [row.pk for row in r.context["rows"]]
            where = r.context["older"]
        assert sorted(seen) == sorted([*made, quota.pk])
        only = owner.get(url, {"event": "quota.80"}).context["rows"]
        assert [row.pk for row in only] == [quota.pk]
        assert owner.get(url, {"status": "delivered"}).context["rows"] == []
        assert "errorlist" in text_of(owner.get(url, {"status": "odd"}))
        assert owner.get(url, {"cursor": "nonsense"}).status_code == 404

    def test_a_delivery_shows_both_sides_and_is_sent_again(self, owner, delivery, receiver):
        receiver.answers(Answer(500, body=b"<b>broken</b>"))
        engine.deliver_all()

        shown = text_of(owner.get(at("delivery", delivery_id=delivery.pk)))
        assert "&lt;b&gt;broken" in shown
        assert str(delivery.event_id) in shown
        assert ">failed<" in shown

        receiver.answers(Answer(200))
        owner.post(at("delivery-resend", delivery_id=delivery.pk))
        engine.deliver_all()
        delivery.refresh_from_db()
        assert delivery.status == "delivered"

    def test_queries_do_not_grow(self, owner, webhook, django_assert_max_num_queries):
        for _ in range(30):
            services.test(webhook, "webhook.test")
        with django_assert_max_num_queries(11):
            owner.get(at("webhook", webhook_id=webhook.pk))


class TestDebugger:
    def test_it_knows_what_was_sent(self, owner, webhook, delivery, receiver):
        engine.deliver_all()
        [got] = receiver.received
        headers = "\n".join(f"{name}: {value}" for name, value in got.headers.items())
        url = at("webhook-debugger", webhook_id=webhook.pk)

        right = owner.post(url, {"headers": headers, "body": got.body.decode()})
        assert right.context["verdict"].is_valid
        body = got.body.decode().replace("webhook.test", "webhook.toast")
        wrong = owner.post(url, {"headers": headers, "body": body})
        assert "type is not what we sent" in text_of(wrong)
        other = owner.post(
            url,
            {"headers": headers, "body": got.body.decode(), "secret": signing.make_secret()},
        )
        assert "Wrong secret" in text_of(other)

    @pytest.mark.parametrize("ugly", UGLY.values(), ids=UGLY)
    def test_whatever_is_pasted_is_a_page(self, owner, webhook, delivery, receiver, ugly):
        engine.deliver_all()
        [got] = receiver.received
        headers = "\n".join(f"{name}: {value}" for name, value in got.headers.items())
        url = at("webhook-debugger", webhook_id=webhook.pk)
        pasted = {"headers": headers, "body": got.body.decode()}
        within = pasted["body"].replace("{", r'{"\ud800": 1, ', 1)

        for form in (
            *({**pasted, name: ugly} for name in ("headers", "body", "secret")),
            {**pasted, "body": within},
        ):
            assert owner.post(url, form).context["webhook"] == webhook


class TestWho:
    POSTS = (
        "webhook-switch",
        "webhook-rotate",
        "webhook-test",
        "webhook-recover",
        "webhook-delete",
    )

    def test_viewers_look_and_change_nothing(self, viewer, webhook, delivery):
        ids = {"webhook_id": webhook.pk}
        for page in ("/app/webhooks", "/app/inbox", at("webhook", **ids)):
            assert viewer.get(page).status_code == 200
        assert viewer.get(at("delivery", delivery_id=delivery.pk)).status_code == 200
        assert refusal(viewer.get(at("webhook-edit", **ids))) == (403, "permission_denied")
        for name in self.POSTS:
            assert refusal(viewer.post(at(name, **ids))) == (403, "permission_denied")
        for path in ("/app/webhooks", "/app/inbox/webhook", "/app/inbox/clear"):
            assert refusal(viewer.post(path)) == (403, "permission_denied")
        r = viewer.post(at("delivery-resend", delivery_id=delivery.pk))
        assert refusal(r) == (403, "permission_denied")

    def test_anothers_is_as_missing_as_none(self, stranger, webhook, delivery):
        ids = {"webhook_id": webhook.pk}
        for name in ("webhook", "webhook-edit", "webhook-debugger"):
            assert refusal(stranger.get(at(name, **ids))) == (404, "not_found")
        for name in self.POSTS:
            assert refusal(stranger.post(at(name, **ids))) == (404, "not_found")
        assert refusal(stranger.get(at("delivery", delivery_id=delivery.pk))) == (404, "not_found")
        r = stranger.post(at("delivery-resend", delivery_id=delivery.pk))
        assert refusal(r) == (404, "not_found")

    def test_a_suspended_workspace_sees_why(self, owner, acme, webhook):
        moderation.suspend_workspace(acme, actor=ACTOR)

        assert "was suspended" in text_of(owner.get("/app/webhooks"))
        url = at("webhook-test", webhook_id=webhook.pk)
        r = owner.post(url, {"event": "webhook.test"}, follow=True)
        assert "nothing is sent" in text_of(r)


class TestInbox:
    def test_a_signed_event_arrives_without_a_socket_or_an_exception(
        self, owner, acme, own_inbox, settings
    ):
        settings.WEBHOOK_ALLOWED_NETWORKS = ()
        r = owner.post("/app/inbox/webhook", follow=True)
        assert "whsec_" in text_of(r)
        assert r["Cache-Control"] == SECRET
        made = Webhook.objects.get(inbox=own_inbox)
        assert "already" in text_of(owner.post("/app/inbox/webhook", follow=True))

        url = at("webhook-test", webhook_id=made.pk)
        assert owner.post(url, {"event": "webhook.test", "back": "inbox"}).status_code == 302
        publish(acme, "detection.completed", result={})
        engine.deliver_all()

        assert {row.status for row in made.deliveries.all()} == {"delivered"}
        got = owner.get("/app/inbox").context["received"]
        assert [row.is_valid for row in got] == [True, True]
        assert "webhook-signature" in got[0].headers

    def test_htmx_gets_the_list_only_when_it_is_new(self, owner, own_inbox):
        live = {"HTTP_HX_REQUEST": "true"}
        assert owner.get("/app/inbox?seen=", **live).status_code == 204
        inbox.receive(own_inbox.pk, {}, b"{}")
        r = owner.get("/app/inbox?seen=", **live)
        assert r.status_code == 200
        assert "<html" not in text_of(r)

    def test_an_address_that_is_changed_is_dialled_and_guarded(self, owner, own_inbox, settings):
        settings.WEBHOOK_ALLOWED_NETWORKS = ()
        owner.post("/app/inbox/webhook")
        made = Webhook.objects.get()
        services.update(made, {"url": "https://127.0.0.1/"}, actor=ACTOR)
        publish(made.workspace, "detection.completed", result={})
        engine.deliver_all()

        assert made.deliveries.get().attempts.get().error.startswith("The address lies in")
        assert not InboxRequest.objects.exists()

    def test_anybody_may_post_there_and_it_stays_bounded(self, gateway, own_inbox, settings):
        settings.RATE_LIMIT_ENABLED = False
        url = f"/inbox/{own_inbox.token}"
        for number in range(inbox.KEPT_MAX + 3):
            r = gateway.request(
                "POST", url, content=b"%d" % number, headers={"Authorization": "Bearer x"}
            )
            assert r.status_code == 202
        kept = inbox.received(own_inbox)
        assert own_inbox.requests.count() == len(kept) == inbox.KEPT_MAX
        assert kept[0].body == str(inbox.KEPT_MAX + 2)
        assert not kept[0].is_valid
        assert kept[0].headers["authorization"] == "(not kept)"

        assert gateway.request("POST", url, content=b"x" * 70_000).status_code == 413
        assert gateway.request("POST", "/inbox/nonsense", content=b"").status_code == 404
        assert gateway.request("GET", url).status_code == 405

    @pytest.mark.hostile
    @pytest.mark.parametrize("ugly", UGLY.values(), ids=UGLY)
    def test_nothing_that_is_posted_there_breaks_its_page(self, owner, gateway, own_inbox, ugly):
        url = f"/inbox/{own_inbox.token}"
        assert gateway.request("POST", url, content=ugly.encode()).status_code == 202

        for live in ({}, {"HTTP_HX_REQUEST": "true"}):
            page = owner.get("/app/inbox", **live)
            assert page.status_code == 200
            assert len(page.content) < 10 * inbox.BODY_BYTES_MAX
            assert "<script>" not in text_of(page).partition("</pre>")[0].rpartition("<pre")[2]

    def test_it_is_limited(self, gateway, own_inbox, monkeypatch):
        monkeypatch.setattr(inbox, "PER_MINUTE", 2)
        *taken, last = [gateway.request("POST", f"/inbox/{own_inbox.token}") for _ in "abc"]

        assert [r.status_code for r in taken] == [202, 202]
        assert refusal(last) == (429, "rate_limited")

    def test_another_workspace_has_another(self, owner, stranger, acme, globex, own_inbox):
        inbox.receive(own_inbox.pk, {}, b"mine")

        assert "mine" in text_of(owner.get("/app/inbox"))
        assert "mine" not in text_of(stranger.get("/app/inbox"))
        assert inbox.of(globex).token != own_inbox.token
