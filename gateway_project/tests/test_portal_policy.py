"""A key's policy in the portal, and choosing its threshold by looking"""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from threading import Event
from uuid import UUID

import pytest
import time_machine
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.models import ApiKey, StoredText, UsageLog
from accounts.services import Actor, revoke_key
from accounts.tests.shapes import refusal
from detection.evaluation import calibration
from detection.evaluation.budget import Fitted
from detection.feedback import services
from detection.models import FalseAlarmBudget, PolicyVersion
from detection.policies import policy
from detection.policies.policy import THREAT_TYPES
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.core import clock
from portal import calibrate


@pytest.fixture
def at(acme_key):
    def at(page):
        return f"/app/keys/{acme_key.row.pk}/{page}"

    return at


def form(**changes):
    fields = {
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
    return fields | changes


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

    def test_saving_an_old_page_is_a_conflict(self, owner, at, acme_key):
        owner.post(at("policy"), form())
        r = owner.post(at("policy"), form(threshold_engine="0.2"))

        assert "somebody changed it meanwhile" in r.text
        assert policy_of(acme_key).threshold_engine == 0.8

    def test_what_is_wrong_is_reported(self, owner, at, acme_key):
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

    def test_they_cost_of_the_day_and_none_is_judged_beyond_it(
        self, gateway, owner, engine, at, acme_key
    ):
        lines = "\n".join(json.dumps({"text": f"{n}", "label": 0}) for n in range(3)).encode()
        day = {"rate_limit_per_day": 5}
        type(acme_key.row).objects.filter(pk=acme_key.row.pk).update(**day)

        def upload():
            return owner.post(at("calibrate"), {"file": SimpleUploadedFile("mine.jsonl", lines)})

        assert "0 of 3 harmless ones" in upload().text
        asked = len(engine.asked)
        assert "used up" in upload().text
        assert len(engine.asked) == asked
        policies = gateway.get("/v1/limits", key=acme_key).json()["policies"]
        assert [found["remaining"] for found in policies if found["name"] == "day"] == [2]

    def test_when_it_takes_too_long_the_engine_is_asked_no_more(
        self, owner, engine, at, monkeypatch
    ):
        has_ended = Event()

        async def never(*_):
            try:
                await asyncio.Event().wait()
            finally:
                has_ended.set()

        monkeypatch.setattr(calibration, "_score", never)
        monkeypatch.setattr(calibration, "SECONDS_MAX", 0.2)
        upload = SimpleUploadedFile("mine.jsonl", b'{"text": "hello", "label": "harmless"}\n')

        page = owner.post(at("calibrate"), {"file": upload}).text

        assert "The detector took too long" in page
        assert has_ended.wait(10)

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


class TestOfTheWorkspace:
    URL = "/app/policy"

    def test_keys_without_their_own_follow_it_at_once(
        self, owner, engine, gateway, acme_key, make_key
    ):
        own = make_key(name="own")
        policy.save(own.row, {"threshold": {"engine": 0.5}}, actor=Actor("test"))
        before = gateway.detect(ATTACK, key=acme_key).json()
        owner.post(self.URL, form(mode="monitor", locked=[], threshold_engine="0.5"))
        followed = gateway.detect(ATTACK, key=acme_key).json()

        assert before["policy"]["id"] == "default"
        assert followed["decision"] == "allow"
        assert followed["would_flag"] is True
        assert followed["policy"] == {"id": str(acme_key.row.workspace_id), "version": 1}
        assert gateway.detect(ATTACK, key=own).json()["policy"]["id"] == str(own.row.pk)

    def test_a_key_leaves_it_by_a_policy_of_its_own_and_comes_back(self, owner, at, acme_key):
        owner.post(self.URL, form(threshold_engine="0.3"))
        assert "follows the" in owner.get(at("policy")).text

        owner.post(at("policy"), form(threshold_engine="0.9"))
        assert policy_of(acme_key).threshold_engine == 0.9
        owner.post(at("policy/follow"))

        assert policy_of(acme_key).threshold_engine == 0.3
        assert [one.version for one in policy.versions_of(acme_key.row)] == [1]  # its own stay

    def test_its_form_is_filled_from_what_the_key_follows(self, owner, at, acme_key):
        owner.post(self.URL, form(threshold_engine="0.3", allow_add=ATTACK))
        owner.post(at("policy"), form(threshold_engine="0.4"))

        assert policy_of(acme_key).allow == {policy.digest_of(ATTACK)}

    def test_another_keys_policy_is_copied_with_its_lists(self, owner, at, acme_key, make_key):
        other = make_key(name="other")
        policy.save(
            other.row,
            {"threshold": {"engine": 0.2}, "deny": [{"digest": "a" * 64, "note": "x"}]},
            actor=Actor("test"),
        )
        page = owner.get(f"{at('policy')}?like={other.row.pk}")
        assert page.context["form"].initial["threshold_engine"] == 0.2
        owner.post(at("policy"), form(threshold_engine="0.2", like=str(other.row.pk)))

        assert policy_of(acme_key).deny == {"a" * 64}

    def test_jobs_are_judged_by_it(self, owner, acme_key):
        owner.post(self.URL, form(threshold_engine="0.3"))
        found = ApiKey.objects.select_related("workspace").get(pk=acme_key.row.pk)

        assert policy.of_key(found).threshold_engine == 0.3

    def test_the_api_says_whose_it_is(self, owner, gateway, acme_admin_key):
        owner.post(self.URL, form(threshold_engine="0.3"))
        got = gateway.get("/v1/policy", key=acme_admin_key)
        put = gateway.request(
            "PUT",
            "/v1/policy",
            json={"mode": "monitor"},
            key=acme_admin_key,
            headers={"If-Match": got.headers["etag"]},
        )

        assert got.json()["id"] == str(acme_admin_key.row.workspace_id)
        assert got.headers["etag"] == '"0"'
        assert put.status_code == 200

    def test_who_only_reads_changes_nothing(self, viewer, acme):
        assert viewer.post(self.URL, form()).status_code == 403
        acme.refresh_from_db()
        assert acme.detection_policy == {}

    def test_two_tabs_do_not_overwrite_each_other(self, owner, acme):
        owner.post(self.URL, form(threshold_engine="0.3"))
        page = owner.post(self.URL, form(threshold_engine="0.9"))  # of version 0 still
        acme.refresh_from_db()

        assert "somebody changed it meanwhile" in page.text
        assert policy.of_owner(acme).threshold_engine == 0.3


class TestWhatItWouldHaveChanged:
    @pytest.fixture
    def calls(self, engine, gateway, acme_key):
        for text in (ATTACK, f"{ATTACK} Now.", HARMLESS):
            gateway.detect(text, key=acme_key)
        gateway.flush_usage()

    def preview(self, owner, at, **changes):
        page = owner.post(at("policy"), form(preview="1", locked=[], **changes))
        assert page.status_code == 200
        return page.context["effect"]

    def test_nothing_is_saved_and_nothing_changes_when_nothing_does(self, owner, at, calls):
        effect = self.preview(owner, at, threshold_engine="0.6", categories=list(THREAT_TYPES))

        assert (effect.looked_at, effect.changed) == (3, 0)
        assert not PolicyVersion.objects.exists()

    def test_of_a_threshold(self, owner, at, calls):
        assert self.preview(owner, at, threshold_engine="1").fewer == 2
        assert self.preview(owner, at, threshold_engine="0").more == 1

    def test_of_the_mode(self, owner, at, calls):
        assert self.preview(owner, at, mode="monitor").fewer == 2

    def test_of_a_text_that_is_allowed(self, owner, at, calls):
        everything = list(THREAT_TYPES)
        effect = self.preview(
            owner, at, threshold_engine="0.6", allow_add=ATTACK, categories=everything
        )

        assert effect.fewer == 1
        assert [is_flagged for _, is_flagged in effect.examples] == [False]

    def test_of_a_version_that_may_be_restored(self, owner, at, calls):
        owner.post(at("policy"), form(threshold_engine="1", locked=[]))
        owner.post(at("policy"), form(threshold_engine="0.6", locked=[], version=1))
        page = owner.get(f"{at('policy')}?like=1")

        assert page.context["effect"].fewer == 2
        assert page.context["form"].initial["threshold_engine"] == 1

    def test_what_the_request_set_itself_stays(self, owner, at, engine, gateway, acme_key):
        gateway.detect(ATTACK, key=acme_key, confidence_threshold=0.1)
        gateway.flush_usage()

        assert self.preview(owner, at, threshold_engine="1").changed == 0


class TestBudget:
    def test_it_is_fitted_used_and_watched(self, owner, at, acme, acme_key, engine, gateway):
        harmless = [{"text": f"{HARMLESS} {n}", "label": 0} for n in range(20)]
        lines = "\n".join(json.dumps(one) for one in [*harmless, {"text": ATTACK, "label": 1}])
        file = SimpleUploadedFile("texts.jsonl", lines.encode())
        page = owner.post(at("calibrate"), {"file": file, "content_type": "tool_output"})
        budget, fitted, token = page.context["budgets"][2]
        owner.post(at("budget"), {"fitted": token})
        kept = FalseAlarmBudget.objects.get()

        assert page.context["basis"] == "uploaded"
        assert (budget, fitted.harmless, fitted.attacks) == (0.01, 20, 1)
        assert policy_of(acme_key).threshold("engine", None, "tool_output")[0] == fitted.threshold
        assert (kept.content_type, kept.basis) == ("tool_output", "uploaded")
        assert "is being watched" in owner.get("/app/quality").text

    def test_one_of_another_key_or_made_up_is_refused(self, owner, at, acme_key, make_key):
        other = make_key(name="other")
        fitted = Fitted(0.01, 0.4, 0, 10, 0, 0)
        for token in ("nonsense", calibrate._token(other.row, "user_input", "reported", fitted)):
            owner.post(at("budget"), {"fitted": token})

        assert not FalseAlarmBudget.objects.exists()
        assert not PolicyVersion.objects.exists()

    def test_on_what_was_reported(self, owner, at, acme, acme_key, engine, gateway):
        for text in (ATTACK, HARMLESS):
            gateway.detect(text, key=acme_key)
        gateway.flush_usage()
        for row in UsageLog.objects.all():
            verdict = "false_positive" if row.is_malicious else "correct"
            services.give(acme, row, verdict, actor=Actor("test"))
        page = owner.get(at("calibrate"))

        assert page.context["basis"] == "reported"
        assert page.context["harmless"] == 2
        assert owner.get(f"{at('calibrate')}?basis=traffic").context["basis"] == "traffic"

    def test_each_type_of_text_is_fitted_and_watched_by_itself(
        self, owner, at, acme, acme_key, engine, gateway
    ):
        for n in range(3):
            gateway.detect(f"{HARMLESS} {n}", key=acme_key, content_type="tool_output")
        gateway.detect(ATTACK, key=acme_key)
        gateway.flush_usage()
        for row in UsageLog.objects.all():
            services.give(acme, row, "correct", actor=Actor("test"))

        def shown(kind, basis):
            page = owner.get(f"{at('calibrate')}?content_type={kind}&basis={basis}")
            found = page.context
            return found["harmless"], found["total"], sum(found["data"]["missed"]), found["budgets"]

        for basis in ("reported", "traffic"):
            assert shown("tool_output", basis)[:3] == (3, 3, 0)
            assert shown("user_input", basis)[:3] == (0, 1, 0)
            assert shown("document", basis)[:3] == (0, 0, 0)
        *_, (_, _, token) = shown("tool_output", "reported")[3]
        held = owner.post(at("budget"), {"fitted": token})
        assert held.headers["location"].endswith("?content_type=tool_output")
        assert sum(FalseAlarmBudget.objects.get().baseline) == 3


class TestStaff:
    ADD = "/admin/detection/policyversion/add/"

    def test_they_put_a_version_in_force(self, root, acme_key):
        fields = {"api_key": str(acme_key.row.pk), "policy": '{"mode": "monitor"}'}
        root.post(self.ADD, **fields)

        assert policy_of(acme_key).mode == "monitor"
        assert PolicyVersion.objects.get().actor == "root@gateway.example"
        assert "root@gateway.example" in root.get("/admin/detection/policyversion/").text

    def test_a_revoked_key_gets_none(self, root, acme_key):
        revoke_key(acme_key.row, actor=Actor("test"))
        fields = {"api_key": str(acme_key.row.pk), "policy": '{"mode": "monitor"}'}

        assert "it never works again" in root.post(self.ADD, **fields).text
        assert not PolicyVersion.objects.exists()

    def test_what_is_wrong_is_said_and_nothing_changed(self, root, acme_key):
        fields = {"api_key": str(acme_key.row.pk), "policy": '{"mod": "monitor"}'}
        page = root.post(self.ADD, **fields).text

        assert "unknown field" in page
        assert not PolicyVersion.objects.exists()
