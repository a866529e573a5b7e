"""What a role may not do or read, by each way there is: none of them is a detour."""

from __future__ import annotations

import json
import re

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import transaction
from django.urls import reverse

from accounts import audit, events, moderation, people, services
from accounts.models import ApiKey, AuditEvent, Membership
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.evaluation import calibration
from gateway_project.core import clock, errors
from portal.tests.furnished import bytes_of, furnish
from portal.urls import urlpatterns
from webhooks import services as webhooks
from webhooks.models import Webhook
from webhooks.receiving import inbox

ACTOR = Actor("test")
MADE_BY = "somebody-in-the-trail"
HOOK = {"url": "https://198.41.0.4/hook", "description": "", "retry_count": ""}
ROLES = Membership.Role.values


def found(answer):
    return bytes_of(answer) if answer.streaming else answer.content


MAY_POST = {"portal-webhook-debugger", "portal-request-find", "portal-requests-files"}
"""Who only reads as well: they find and check, and ask for the log as a file."""


@pytest.mark.hostile
def test_who_only_reads_posts_nothing(viewer, acme, name_server):
    """Every form of a workspace, by the address that it is sent to."""
    of, done = furnish(acme), {}
    for pattern in urlpatterns:
        wanted = re.findall(r"<\w+:(\w+)>", str(pattern.pattern))
        if not hasattr(pattern.callback, "of_workspace") or not set(wanted) <= set(of._fields):
            continue
        name = pattern.name
        path = reverse(name, kwargs={one: getattr(of, one) for one in wanted})
        answer = viewer.post(path)
        if name not in MAY_POST and answer.status_code not in (403, 405):
            done[name] = answer.status_code

    assert done == {}


class TestCalibrating:
    """It judges texts and uses the quota, as a call of the key does."""

    def score(self, client, key):
        upload = SimpleUploadedFile("texts.csv", b"label,text\nharmless,hello\n")
        return client.post(f"/app/keys/{key.row.pk}/calibrate", {"file": upload})

    @pytest.mark.parametrize("refused", ["revoked", "suspended"])
    def test_not_with_a_key_that_is_refused(self, owner, acme, acme_key, engine, refused):
        if refused == "revoked":
            services.revoke_key(acme_key.row, actor=ACTOR)
        else:
            moderation.suspend_workspace(acme, actor=ACTOR)

        assert "This key is refused" in self.score(owner, acme_key).content.decode()
        assert engine.asked == []

    def test_what_a_limit_says_stands_at_the_file(self, owner, acme_key, monkeypatch):
        def limited(*_, **__):
            raise errors.RateLimited("Too many texts at once. Try again in a minute.")

        monkeypatch.setattr(calibration, "compare", limited)

        assert "Too many texts at once" in self.score(owner, acme_key).content.decode()


class TestAudit:
    @pytest.fixture
    def trail(self, acme):
        """A key and a webhook that owners made for it, and a record."""
        key, _ = services.issue_key(acme, actor=ACTOR, name="siem", scopes=["audit:read"])
        hook, _ = webhooks.register(acme.pk, HOOK["url"], ["audit.recorded"], actor=ACTOR)
        acme.refresh_from_db()
        with transaction.atomic():
            events.audit("key.created", workspace=acme, target=key.pk, actor=MADE_BY)
        return key, hook

    def page(self, client, trail):
        return MADE_BY.encode() in client.get("/app/audit").content

    def file(self, client, trail):
        return MADE_BY.encode() in found(client.get("/app/audit/export"))

    def new_key(self, client, trail):
        client.post("/app/keys", {"name": "mine", "scopes": ["audit:read"]})
        return ApiKey.objects.filter(name="mine").exists()

    def changed_key(self, client, trail):
        key, _ = services.issue_key(trail[0].workspace, actor=ACTOR, name="mine")
        limits = {"rate_limit_per_minute": 5, "rate_limit_per_day": 50}
        form = {"name": "mine", "scopes": ["detect", "audit:read"], **limits}
        client.post(reverse("portal-key-edit", args=[key.pk]), form)
        key.refresh_from_db()
        return "audit:read" in key.scopes

    def rotated_key(self, client, trail):
        client.post(reverse("portal-key-rotate", args=[trail[0].pk]), {"grace_seconds": 0})
        return ApiKey.objects.filter(pk=trail[0].pk, replaced_by__isnull=False).exists()

    def new_webhook(self, client, trail):
        client.post("/app/webhooks", {**HOOK, "events": ["audit.recorded"]})
        return Webhook.objects.filter(events=["audit.recorded"]).count() == 2

    def changed_webhook(self, client, trail):
        events = ["audit.recorded", "webhook.test"]
        form = {**HOOK, "url": "https://198.41.0.4/other", "events": events}
        client.post(reverse("portal-webhook-edit", args=[trail[1].pk]), form)
        trail[1].refresh_from_db()
        return trail[1].url != HOOK["url"]

    def delivery(self, client, trail):
        sent = webhooks.test(trail[1], "audit.recorded")
        page = client.get(reverse("portal-delivery", args=[sent.pk]))
        return b"&quot;actor&quot;" in page.content

    def answer(self, client, trail):
        sent = webhooks.test(trail[1], "audit.recorded")
        sent.attempts.create(at=clock.now(), http_status=200, response_body="echoed", duration_ms=1)
        page = client.get(reverse("portal-delivery", args=[sent.pk]))
        return b"echoed" in page.content

    def inbox(self, client, trail):
        found = inbox.of(trail[0].workspace)
        [record] = [audit.shown(row) for row in AuditEvent.objects.filter(actor=MADE_BY)]
        event = events.event(trail[0].workspace_id, "audit.recorded", result=record)
        inbox.receive(found.pk, {}, json.dumps(event.body).encode())
        page = (
            client.get("/app/inbox").content
            + client.get("/app/inbox", headers={"HX-Request": "true"}).content
        )
        return MADE_BY.encode() in page

    def archive(self, client, trail):
        return b"audit.jsonl" in found(client.post("/app/settings/archive"))

    READS = ("page", "file", "delivery", "answer", "inbox", "archive")
    CHANGES = ("new_key", "changed_key", "rotated_key", "new_webhook", "changed_webhook")

    @pytest.mark.hostile
    @pytest.mark.parametrize("role", ROLES)
    @pytest.mark.parametrize("way", [*READS, *CHANGES])
    def test_who_may_not_read_it_has_no_way_to_it(
        self, acme, bob, enter, trail, name_server, way, role
    ):
        Membership.objects.filter(user=bob, workspace=acme).update(role=role)
        may = people.may(role, "audit") and (way in self.READS or people.may(role, "change"))

        assert getattr(self, way)(enter(bob), trail) is may

    @pytest.mark.hostile
    @pytest.mark.parametrize("scopes", [["keys:write"], ["keys:write", "audit:read"]])
    def test_a_key_gives_it_to_others_if_it_has_it(self, gateway, make_key, scopes):
        mine, other = make_key(scopes=scopes), make_key(scopes=["detect"])
        asked = {"name": "new", "scopes": ["audit:read"]}
        made = gateway.post("/v1/keys", json=asked, key=mine)
        changed = gateway.patch(f"/v1/keys/{other.row.pk}", json=asked, key=mine)

        if "audit:read" in scopes:
            assert (made.status_code, changed.status_code) == (201, 200)
        else:
            assert refusal(made) == refusal(changed) == (403, "scope_denied")
