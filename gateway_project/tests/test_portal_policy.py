"""A key's policy in the portal, and choosing its threshold by looking"""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import UUID

import pytest
import time_machine
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.models import StoredText
from accounts.services import Actor, revoke_key
from accounts.tests.shapes import refusal
from detection.feedback import services
from detection.models import PolicyVersion
from detection.policies import policy
from detection.policies.policy import THREAT_TYPES
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.core import clock


@pytest.fixture
def at(acme_key):
    def at(page):
        return f"/app/keys/{acme_key.row.pk}/{page}"

    return at


def form(**changes):
    said = {
        "version": 0,
        "threshold_engine": "0.8",
        "threshold_fallback": "",
        "mode": "enforce",
        "on_unavailable": "fallback",
        "locked": ["mode"],
        "categories": [name for name in THREAT_TYPES if name != "jailbreak"],
        "allow_add": "",
        "deny_add": "",
    }
    return said | changes


def policy_of(key):
    key.row.refresh_from_db()
    return policy.of_key(key.row)


class TestTheForm:
    def test_it_is_saved_as_a_version_and_shown(self, owner, at, acme_key):
        r = owner.post(at("policy"), form(allow_add=f"{ATTACK}\n\n"), follow=True)
        found = policy_of(acme_key)

        assert "Version 1 is in force" in r.text
        assert (found.threshold_engine, found.threshold_fallback) == (0.8, None)
        assert found.locked == {"mode"}
        assert found.switched_off == {"jailbreak"}
        assert found.allow == {policy.digest_of(ATTACK)}
        assert ATTACK not in r.text
        assert policy.digest_of(ATTACK)[:16] in r.text

    def test_an_entry_is_taken_off(self, owner, at, acme_key):
        owner.post(at("policy"), form(deny_add=ATTACK))
        drop = [f"deny:{policy.digest_of(ATTACK)}"]
        owner.post(at("policy"), form(version=1, drop=drop))

        assert policy_of(acme_key).deny == frozenset()

    def test_who_saves_an_old_page_is_told(self, owner, at, acme_key):
        owner.post(at("policy"), form())
        r = owner.post(at("policy"), form(threshold_engine="0.2"))

        assert "somebody changed it meanwhile" in r.text
        assert policy_of(acme_key).threshold_engine == 0.8

    def test_what_is_wrong_is_said(self, owner, at, acme_key):
        r = owner.post(at("policy"), form(threshold_engine="2"))

        assert "less than or equal to 1" in r.text
        assert not PolicyVersion.objects.exists()

    def test_of_a_revoked_key_only_the_versions_are_shown(self, owner, at, acme_key):
        owner.post(at("policy"), form())
        revoke_key(acme_key.row, actor=Actor("test"))
        with time_machine.travel(clock.now() + timedelta(minutes=6)):
            assert policy.prune() == 1

        for page in (owner.get(at("policy")), owner.post(at("policy"), form(), follow=True)):
            assert page.status_code == 200
            assert "it never works again" in page.text
            assert "in force</span>" not in page.text
            assert "Save as a new version" not in page.text
        assert owner.get(at("calibrate")).status_code == 200
        r = owner.post(at("threshold"), {"threshold": "0.5"}, follow=True)
        assert "was revoked or replaced" in r.text
        assert [found.version for found in policy.versions_of(acme_key.row)] == [1]

    def test_viewers_read_it(self, viewer, at, acme_key):
        assert "Versions" in viewer.get(at("policy")).text
        assert viewer.post(at("policy"), form()).status_code == 403

    @pytest.mark.parametrize("page", ["policy", "calibrate"])
    def test_another_workspaces_key_is_missing(self, stranger, at, page):
        assert refusal(stranger.get(at(page))) == (404, "not_found")


class TestCalibrating:
    @pytest.fixture
    def traffic(self, gateway, engine, acme_key):
        """Two attacks, of which one was a false alarm, and a harmless text."""
        ids = [
            gateway.detect(text, key=acme_key).json()
            for text in (ATTACK, f"{ATTACK} Now!", HARMLESS)
        ]
        gateway.flush_usage()
        workspace = acme_key.row.workspace
        judged = services.judged(workspace, UUID(ids[0]["request_id"]))
        services.give(workspace, judged, "false_positive", actor=Actor("test"))
        return ids

    def test_it_says_what_a_threshold_would_have_flagged(self, owner, at, traffic):
        low, high = (owner.get(at(f"calibrate?threshold={t}")).text for t in ("0.00", "1.00"))

        assert "3 of 3 flagged in 30 days, 1 of them reported as false alarms." in low
        assert "0 of 3 flagged in 30 days, 0 of them" in high
        assert 'class="clean' in low
        assert ATTACK not in low

    def test_one_click_puts_it_in_force_and_leaves_the_rest(self, owner, at, acme_key):
        owner.post(at("policy"), form(mode="monitor"))
        r = owner.post(at("threshold"), {"threshold": "0.72"}, follow=True)
        found = policy_of(acme_key)

        assert "0.72 is in force, as version 2" in r.text
        assert (found.threshold_engine, found.mode) == (0.72, "monitor")
        assert (
            "Choose a threshold"
            in owner.post(at("threshold"), {"threshold": "7"}, follow=True).text
        )

    def test_labelled_texts_are_compared_and_not_kept(self, owner, engine, at):
        rows = [
            {"text": ATTACK, "label": 1},
            {"text": HARMLESS, "label": 0},
            {"text": "no label"},
        ]
        lines = "\n".join(map(json.dumps, rows)).encode()
        upload = SimpleUploadedFile("mine.jsonl", lines)
        page = owner.post(at("calibrate"), {"file": upload}).text

        assert "1 of 1 attacks flagged, 0 of 1 harmless ones" in page
        assert "1 rows were left out" in page
        assert ATTACK not in page

    def test_a_file_that_is_too_large(self, owner, at):
        upload = SimpleUploadedFile("mine.jsonl", b"x" * ((1 << 20) + 1))

        assert "larger than 1 MiB" in owner.post(at("calibrate"), {"file": upload}).text

    def test_viewers_look_and_change_nothing(self, viewer, at, acme_key):
        assert "Use this threshold" not in viewer.get(at("calibrate")).text
        assert viewer.post(at("threshold"), {"threshold": "0.5"}).status_code == 403


class TestStoredTexts:
    def test_they_are_kept_where_the_policy_says_so(self, gateway, engine, owner, acme_key):
        before = gateway.detect(HARMLESS, key=acme_key).json()["request_id"]
        policy.save(acme_key.row, {"store_text": True}, actor=Actor("test"))
        after = gateway.detect(ATTACK, key=acme_key).json()["request_id"]
        body = {"requests": [{"id": "1", "text": f"{ATTACK} Again."}]}
        r = gateway.post("/v1/detect/batch", body, key=acme_key)
        item = r.json()["results"][0]["result"]["request_id"]
        gateway.flush_usage()

        assert "Its text is not stored" in owner.get(f"/app/requests/{before}").text
        assert ATTACK in owner.get(f"/app/requests/{after}").text
        assert f"{ATTACK} Again." in owner.get(f"/app/requests/{item}").text
        assert not StoredText.objects.filter(encrypted__contains="Ignore").exists()
        assert StoredText.objects.count() == 2

    def test_feedback_on_them_becomes_labelled_data(self, gateway, engine, acme_key):
        policy.save(acme_key.row, {"store_text": True}, actor=Actor("test"))
        request_id = gateway.detect(ATTACK, key=acme_key).json()["request_id"]
        gateway.flush_usage()
        workspace = acme_key.row.workspace
        judged = services.judged(workspace, UUID(request_id))
        row, _ = services.give(workspace, judged, "correct", actor=Actor("test"))
        [line] = b"".join(services.jsonl([row])).splitlines()

        assert json.loads(line) == {"text": ATTACK, "label": 1, "source": "feedback correct"}


class TestStaff:
    ADD = "/admin/detection/policyversion/add/"

    def test_they_put_a_version_in_force(self, root, acme_key):
        said = {"api_key": str(acme_key.row.pk), "policy": '{"mode": "monitor"}'}
        root.post(self.ADD, **said)

        assert policy_of(acme_key).mode == "monitor"
        assert PolicyVersion.objects.get().actor == "root@gateway.example"
        assert "root@gateway.example" in root.get("/admin/detection/policyversion/").text

    def test_a_revoked_key_gets_none(self, root, acme_key):
        revoke_key(acme_key.row, actor=Actor("test"))
        said = {"api_key": str(acme_key.row.pk), "policy": '{"mode": "monitor"}'}

        assert "it never works again" in root.post(self.ADD, **said).text
        assert not PolicyVersion.objects.exists()

    def test_what_is_wrong_is_said_and_nothing_changed(self, root, acme_key):
        said = {"api_key": str(acme_key.row.pk), "policy": '{"mod": "monitor"}'}
        page = root.post(self.ADD, **said).text

        assert "unknown field" in page
        assert not PolicyVersion.objects.exists()
