"""What is a person's own: the archive of everything, and which mails they get."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from django.test import Client

from accounts import mailing, people, services
from accounts.models import AuditEvent, User
from accounts.services import Actor
from detection.evaluation import budget
from detection.evaluation.budget import Fitted
from detection.policies import policy as policies
from detection.tests.test_detect import ATTACK
from portal.tests.furnished import bytes_of
from webhooks import services as webhooks
from webhooks.receiving import inbox

ACTOR = Actor("test")


def unpacked(answer) -> dict[str, bytes]:
    archive = zipfile.ZipFile(io.BytesIO(bytes_of(answer)))
    assert archive.testzip() is None
    return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def full(engine, gateway, acme, acme_key, name_server):
    """A workspace that has something of everything; returns its secrets."""
    policies.save(acme_key.row, {"store_text": True}, actor=ACTOR)
    gateway.detect(ATTACK, key=acme_key)
    gateway.flush_usage()
    name_server.resolves("receiver.example", "93.184.216.34")
    _, secret = webhooks.register(
        acme.pk, "https://receiver.example/", ["webhook.test"], actor=ACTOR
    )
    return [str(acme_key), secret]


class TestArchive:
    URL = "/app/settings/archive"

    def test_it_holds_everything_and_no_secret(self, owner, alice, acme, acme_key, full):
        answer = owner.post(self.URL)
        found = unpacked(answer)
        folder = acme.slug
        account = json.loads(found["account.json"])
        whole = b"".join(found.values()).decode()

        assert answer["Content-Type"] == "application/zip"
        assert account["email"] == alice.email
        assert {"workspace.json", "keys.csv", "policies.json", "budgets.csv", "usage.csv",
                "webhooks.json", "deliveries.csv", "inbox.ndjson", "jobs.csv", "feedback.csv",
                "requests.ndjson", "texts.ndjson",
                "audit.jsonl"} == {n.partition("/")[2] for n in found if "/" in n}  # fmt: skip
        assert acme_key.row.last4 in found[f"{folder}/keys.csv"].decode()
        assert json.loads(found[f"{folder}/texts.ndjson"])["text"] == ATTACK
        assert json.loads(found[f"{folder}/requests.ndjson"])["decision"] == "flag"
        assert not [secret for secret in full if secret in whole]
        assert "password" not in json.dumps(account)
        assert AuditEvent.objects.filter(action="person.archive_taken").exists()

    def test_it_has_what_hangs_on_an_account_and_a_workspace(self, owner, alice, acme, acme_key):
        SocialAccount.objects.create(user=alice, provider="sso", uid="17")
        Authenticator.objects.create(user=alice, type="webauthn", data={"name": "Blue key"})
        Authenticator.objects.create(user=alice, type="totp", data={"secret": "sealed"})
        services.confirm_email(alice, actor=ACTOR)
        place = acme.memberships.get(user=alice)
        people.invite(acme, "eva@initech.example", "viewer", by=place, actor=ACTOR)
        people.add_domain(acme, domain="acme.example", role="viewer", actor=ACTOR)
        budget.keep(acme_key.row, "document", Fitted(0.01, 0.8, 1, 200, 9, 10), "uploaded")
        inbox.receive(inbox.of(acme).pk, {"user-agent": "x"}, b'{"type": "webhook.test"}')

        found = unpacked(owner.post(self.URL))
        account = json.loads(found["account.json"])
        workspace = json.loads(found[f"{acme.slug}/workspace.json"])

        assert account["linked_sign_ons"][0]["uid"] == "17"
        factors = {one["type"]: one["name"] for one in account["second_factors"]}
        assert factors == {"webauthn": "Blue key", "totp": ""}
        assert "sealed" not in found["account.json"].decode()
        assert workspace["invitations"][0]["email"] == "eva@initech.example"
        assert workspace["domains"][0]["domain"] == "acme.example"
        assert '"document"' in found[f"{acme.slug}/budgets.csv"].decode()
        assert json.loads(found[f"{acme.slug}/inbox.ndjson"])["body"] == '{"type": "webhook.test"}'

    def test_who_may_not_read_the_audit_gets_none_of_it(self, viewer, acme, full):
        inbox.receive(inbox.of(acme).pk, {}, b'{"type": "audit.recorded", "data": "of others"}')
        found = unpacked(viewer.post(self.URL))
        workspace = json.loads(found[f"{acme.slug}/workspace.json"])

        assert json.loads(found[f"{acme.slug}/inbox.ndjson"])["body"] is None
        assert (workspace["invitations"], workspace["domains"]) == ([], [])
        assert f"{acme.slug}/audit.jsonl" not in found
        assert f"{acme.slug}/keys.csv" in found

    def test_nothing_of_another_workspace(self, stranger, acme, full):
        found = unpacked(stranger.post(self.URL))

        assert not [name for name in found if name.startswith(f"{acme.slug}/")]

    def test_it_asks_for_the_password_again(self, alice, acme):
        client = Client()
        client.force_login(alice, backend="django.contrib.auth.backends.ModelBackend")

        assert "/accounts/reauthenticate/" in client.post(self.URL)["Location"]


class TestMails:
    URL = "/app/settings/mails"

    def test_they_are_chosen(self, owner, alice):
        owner.post(self.URL, {"kinds": ["keys"]})
        user = User.objects.get(pk=alice.pk)

        assert [kind for kind in mailing.KINDS if mailing.wants(user, kind)] == ["keys"]
        page = owner.get(self.URL).content.decode()
        assert page.count("checked") == 1

    def test_one_click_of_a_mail_is_enough(self, alice, settings):
        settings.PUBLIC_URL = "https://gateway.example"
        path = mailing.off_link(alice, "digest").removeprefix(settings.PUBLIC_URL)
        anybody = Client(enforce_csrf_checks=True)
        looked = anybody.get(path)
        alice.refresh_from_db()
        kept = mailing.wants(alice, "digest")
        done = anybody.post(path, {"List-Unsubscribe": "One-Click"})
        alice.refresh_from_db()

        assert (looked.status_code, done.status_code) == (200, 200)
        assert kept  # a mail program that only looks changes nothing
        assert not mailing.wants(alice, "digest")

    def test_a_link_that_is_none_of_ours_is_a_page(self, gateway):
        answer = Client().get("/accounts/mails/nonsense", HTTP_ACCEPT="text/html")

        assert answer.status_code == 404
        assert b"<html" in answer.content
