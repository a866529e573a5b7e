"""Feedback in the admin and in the portal: found, exported, said."""

from __future__ import annotations

import json

import pytest
from django.urls import reverse

from accounts.models import AuditEvent, User, new_id
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.feedback import services
from detection.models import Feedback
from detection.tests.test_feedback import log
from gateway_project.tests.test_admin import signed_in

LIST = "/admin/detection/feedback/"


@pytest.fixture
def asked(acme_key):
    return log(acme_key)


@pytest.fixture
def report(acme, asked):
    row, _ = services.give(acme, asked, "false_positive", "our manual", actor=Actor("test"))
    return row


class TestAdmin:
    def test_it_is_listed_and_found(self, root, report, acme_key):
        shown = str(report.request_id)

        assert shown in root.get(LIST).text
        for term in (shown, "acme", str(acme_key.row.pk)):
            assert shown in root.get(f"{LIST}?q={term}").text
        for query in ("q=globex", f"q={new_id()}", "verdict=correct", "until=2026-01-01T00:00"):
            assert shown not in root.get(f"{LIST}?{query}").text
        assert shown in root.get(f"{LIST}?verdict=false_positive&range=last+24+hours").text
        assert "our manual" in root.get(f"{LIST}{report.pk}/change/").text

    def test_the_export_leaves_out_and_counts_what_has_no_text(
        self, root, report, acme, acme_key, monkeypatch
    ):
        other = log(acme_key)
        services.give(acme, other, "correct", actor=Actor("test"))
        texts = {report.request_id: "How do I reset it?"}
        monkeypatch.setattr(
            services, "texts_of", lambda ids: {key: texts[key] for key in ids if key in texts}
        )
        rows = [str(pk) for pk in Feedback.objects.values_list("pk", flat=True)]

        r = root.post(LIST, _selected_action=rows, action="export")

        assert r.headers["content-disposition"] == 'attachment; filename="feedback.jsonl"'
        assert [json.loads(line) for line in r.text.splitlines()] == [
            {"text": "How do I reset it?", "label": 0, "source": "feedback false_positive"}
        ]
        assert "Exported 1 of 2. Of 1 no text is stored" in root.get(LIST).text
        event = AuditEvent.objects.get(action="feedback.exported")
        assert (event.actor, event.details) == ("root@gateway.example", {"rows": 1})

    def test_without_texts_there_is_no_file(self, root, report):
        r = root.post(LIST, _selected_action=str(report.pk), action="export")

        assert r.status_code == 302
        assert "Exported 0 of 1" in root.get(LIST).text

    def test_only_superusers_export(self, gateway, report):
        from gateway_project.tests.test_staff_admin import viewer_of

        staff = viewer_of(gateway, Feedback)

        assert str(report.request_id) in staff.get(LIST).text
        staff.post(LIST, _selected_action=str(report.pk), action="export")
        assert not AuditEvent.objects.filter(action="feedback.exported").exists()

    def test_others_see_nothing(self, gateway, report):
        person = signed_in(
            gateway, User.objects.create_user("staff@gateway.example", is_staff=True)
        )

        assert refusal(person.get(LIST)) == (403, "permission_denied")


class TestPortal:
    def at(self, name, row):
        return reverse(f"portal-{name}", kwargs={"request_id": row.request_id})

    def form(self, row, verdict="false_negative", **more):
        return {"at": row.created_at.isoformat(), "verdict": verdict, "note": "", **more}

    def test_a_member_says_it_and_sees_it(self, owner, asked):
        page = owner.get(self.at("request", asked)).content.decode()
        for words in ("Right", "False alarm", "Missed attack"):
            assert f">{words}</button>" in page

        r = owner.post(
            self.at("request-feedback", asked), self.form(asked, note="<b>hm</b>"), follow=True
        )

        assert r.status_code == 200
        assert r.context["feedback_label"] == "Missed attack"
        assert "&lt;b&gt;hm&lt;/b&gt;" in r.content.decode()
        event = AuditEvent.objects.get(action="feedback.given")
        assert event.actor == "alice@acme.example"

    def test_the_last_word_counts(self, owner, asked, report):
        owner.post(self.at("request-feedback", asked), self.form(asked, "correct"))

        assert Feedback.objects.get().verdict == "correct"

    def test_a_viewer_only_sees_it(self, viewer, asked, report):
        page = viewer.get(self.at("request", asked)).content.decode()

        assert "False alarm" in page
        assert "</textarea>" not in page
        form = self.form(asked)
        assert viewer.post(self.at("request-feedback", asked), form).status_code == 403
        assert Feedback.objects.get().verdict == "false_positive"

    def test_anothers_is_404(self, stranger, asked):
        r = stranger.post(self.at("request-feedback", asked), self.form(asked))

        assert r.status_code == 404
        assert not Feedback.objects.exists()

    @pytest.mark.parametrize("changes", [{"verdict": "maybe"}, {"at": "soon"}, {"at": ""}], ids=str)
    def test_what_nobody_typed_is_404(self, owner, asked, changes):
        r = owner.post(self.at("request-feedback", asked), self.form(asked, **changes))

        assert refusal(r) == (404, "not_found")

    def test_a_long_note_is_refused(self, owner, asked):
        form = self.form(asked, note="x" * 1001)
        r = owner.post(self.at("request-feedback", asked), form, follow=True)

        assert "at most 1000" in r.content.decode()
        assert not Feedback.objects.exists()

    def test_without_a_verdict_there_is_nothing_to_say(self, owner, acme_key):
        row = log(acme_key, is_malicious=None, confidence=None, decision="", http_status=422)

        assert "Was the verdict right" not in owner.get(self.at("request", row)).content.decode()
