"""False alarms: listed, counted by key, and settled by a rule that says what else it changes."""

from __future__ import annotations

import pytest

from accounts.models import UsageLog
from accounts.services import Actor, revoke_key
from detection.feedback import services
from detection.models import Feedback
from detection.policies import policy
from detection.tests.test_detect import ATTACK, HARMLESS

URL = "/app/quality"
ACTOR = Actor("test")


@pytest.fixture
def flagged(engine, gateway, acme, acme_key):
    """Of one text twice, and of another once."""
    texts = [ATTACK, f"  {ATTACK.upper()} ", f"{ATTACK} Now."]
    ids = [gateway.detect(text, key=acme_key).json()["request_id"] for text in texts]
    gateway.flush_usage()
    rows = {str(row.request_id): row for row in UsageLog.objects.all()}
    return [rows[one] for one in ids]


def allow_page(row):
    return f"/app/requests/{row.request_id}/allow"


class TestList:
    def test_false_alarms_and_misses_with_the_rate_of_their_key(self, owner, acme, flagged):
        services.give(acme, flagged[0], "false_positive", "a manual", actor=ACTOR)
        services.give(acme, flagged[1], "correct", actor=ACTOR)
        page = owner.get(URL)
        [(key, counts)] = page.context["rates"]

        assert [row.verdict for row, _, _ in page.context["rows"]] == ["false_positive"]
        assert (key.workspace_id, counts["flagged"], counts["false_alarms"]) == (acme.pk, 3, 1)
        assert counts["rate"] == pytest.approx(1 / 3, abs=0.001)
        assert counts["right"] == 1
        assert b"a manual" in page.content

    def test_filters(self, owner, acme, acme_key, flagged):
        for row, verdict in zip(flagged, ("false_positive", "correct", "correct"), strict=True):
            services.give(acme, row, verdict, actor=ACTOR)

        def count(query):
            return len(owner.get(f"{URL}?{query}").context["rows"])

        assert count("verdict=correct") == 2
        assert count(f"key={acme_key.row.pk}") == 1
        assert count("key=nonsense&verdict=nonsense") == 1  # what is wrong is left out

    def test_nobody_elses(self, stranger, acme, flagged):
        services.give(acme, flagged[0], "false_positive", actor=ACTOR)

        assert stranger.get(URL).context["rows"] == []
        assert stranger.get(URL).context["rates"] == []


class TestAllow:
    def test_what_else_it_would_change_is_shown_first(self, owner, flagged):
        page = owner.post(allow_page(flagged[0]), {"text": ATTACK, "where": "key", "preview": "1"})

        assert page.status_code == 200
        assert page.context["is_its_text"] is True
        assert page.context["here"] == 2  # of the same words, however they are written
        assert not Feedback.objects.exists()

    def test_it_is_in_force_at_once_and_noted(self, owner, gateway, acme_key, flagged):
        answer = owner.post(
            allow_page(flagged[0]), {"text": ATTACK, "note": "our manual", "where": "key"}
        )
        allowed = gateway.detect(ATTACK, key=acme_key).json()
        longer = gateway.detect(f"{ATTACK} Now.", key=acme_key).json()

        assert answer.status_code == 302
        assert (allowed["decision"], allowed["policy"]["matched"]) == ("allow", "allow")
        assert longer["decision"] == "flag"  # of a text that only contains it nothing changes
        assert Feedback.objects.get().verdict == "false_positive"

    def test_sent_twice_it_is_once(self, owner, acme_key, flagged):
        for _ in range(2):
            owner.post(allow_page(flagged[0]), {"text": ATTACK, "where": "key"})
        acme_key.row.refresh_from_db()

        assert policy.version_of(acme_key.row) == 1

    def test_another_text_is_not_taken_for_it(self, owner, acme_key, flagged):
        page = owner.post(allow_page(flagged[0]), {"text": HARMLESS, "where": "key"})
        acme_key.row.refresh_from_db()

        assert b"This is not the text of that request" in page.content
        assert acme_key.row.detection_policy == {}

    def test_it_may_stand_in_the_policy_of_the_workspace(self, owner, gateway, acme, acme_key,
                                                         flagged):  # fmt: skip
        assert owner.get(allow_page(flagged[0])).context["form"]["where"].initial == "workspace"
        owner.post(allow_page(flagged[0]), {"text": ATTACK, "where": "workspace"})
        acme.refresh_from_db()

        assert policy.of_owner(acme).allow == {policy.digest_of(ATTACK)}
        assert gateway.detect(ATTACK, key=acme_key).json()["decision"] == "allow"

    def test_a_text_on_the_deny_list_is_named(self, owner, acme_key, flagged):
        denied = {"deny": [{"digest": policy.digest_of(ATTACK), "note": ""}]}
        policy.save(acme_key.row, denied, actor=ACTOR)
        page = owner.post(allow_page(flagged[0]), {"text": ATTACK, "where": "key"})

        assert b"stands on the deny list" in page.content

    def test_where_texts_are_kept_nothing_has_to_be_typed(self, owner, engine, gateway, acme_key):
        policy.save(acme_key.row, {"store_text": True}, actor=ACTOR)
        gateway.detect(ATTACK, key=acme_key)
        gateway.flush_usage()
        page = owner.get(allow_page(UsageLog.objects.get()))

        assert page.context["form"].initial["text"] == ATTACK
        assert page.context["here"] == 1

    def test_who_only_reads_changes_nothing(self, viewer, acme_key, flagged):
        viewer.post(allow_page(flagged[0]), {"text": ATTACK, "where": "key"})
        acme_key.row.refresh_from_db()

        assert acme_key.row.detection_policy == {}

    def test_what_cannot_be_settled_is_not_found_or_explained(
        self, owner, stranger, acme_key, flagged
    ):
        row = flagged[0]
        assert stranger.get(allow_page(row)).status_code == 404
        UsageLog.objects.filter(pk=row.pk).update(is_malicious=False)
        shown = owner.get(allow_page(row), follow=True).content.decode()
        assert "This request was not flagged" in shown
        UsageLog.objects.filter(pk=row.pk).update(is_malicious=True)
        revoke_key(acme_key.row, actor=ACTOR)
        assert owner.get(allow_page(row)).status_code == 302


def test_the_log_tells_equal_texts_and_no_text(flagged, acme, globex):
    first, second, third = (row.why["text"] for row in flagged)
    digest = policy.digest_of(ATTACK)

    assert first == second != third
    assert first not in digest
    assert policy.mark_of(globex.pk, digest) != first  # no workspace learns of another's
