"""POST /v1/feedback, and the data that becomes of it"""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import pytest
from django.utils import timezone

from accounts.models import AuditEvent, UsageLog, new_id
from accounts.tests.shapes import fields, moment, problem, refusal
from accounts.usage import partitions
from detection.evaluation import report
from detection.feedback import services
from detection.models import Feedback
from detection.tests.test_detect import ATTACK

PATH = "/v1/feedback"


def log(key, **more):
    values = {
        "request_id": new_id(), "api_key_id": key.row.pk, "workspace_id": key.row.workspace_id,
        "endpoint": "/v1/detect", "http_status": 200, "request_size": 10, "response_time_ms": 3.5,
        "status": "complete", "source": "engine", "decision": "flag", "is_malicious": True,
        "confidence": 0.9, "created_at": timezone.now(),
    }  # fmt: skip
    partitions.ensure_partitions([more.get("created_at", timezone.now()).date()])
    return UsageLog.objects.create(**{**values, **more})


@pytest.fixture
def say(gateway, acme_key):
    def call(request_id, verdict="false_positive", *, key=acme_key, **more):
        body = {"request_id": str(request_id), "verdict": verdict, **more}
        return gateway.post(PATH, body, key=key)

    return call


class TestOneWord:
    def test_of_a_detection(self, gateway, engine, acme_key, say):
        answer = gateway.detect(ATTACK, key=acme_key).json()
        gateway.flush_usage()

        r = say(answer["request_id"], note="  from our manual ")

        body, row = r.json(), Feedback.objects.get()
        assert r.status_code == 201
        moment(body.pop("created_at"))
        assert body == {
            "id": str(row.pk),
            "request_id": answer["request_id"],
            "verdict": "false_positive",
            "note": "from our manual",
            "confidence": answer["confidence"],
        }
        assert (row.is_malicious, row.decision, row.source) == (True, "flag", "engine")
        assert row.api_key_id == acme_key.row.pk

    def test_any_key_of_the_workspace_may_say_it_of_any(self, acme_key, make_key, say):
        asked = log(acme_key)

        assert say(asked.request_id, key=make_key(name="other")).status_code == 201
        assert Feedback.objects.get().api_key_id == acme_key.row.pk

    def test_it_is_audited_without_the_note(self, acme_key, say):
        asked = log(acme_key)
        say(asked.request_id, note="a private word")

        event = AuditEvent.objects.get(action="feedback.given")
        assert (event.target, event.details) == (
            str(asked.request_id),
            {"verdict": "false_positive"},
        )
        assert event.actor.startswith("key gw_")

    def test_it_costs_one_of_the_minute(self, gateway, acme_key, say):
        asked = log(acme_key)

        def left():
            policies = gateway.get("/v1/limits", key=acme_key).json()["policies"]
            return {policy["name"]: policy["remaining"] for policy in policies}

        before = left()
        say(asked.request_id)
        after = left()
        assert {name: before[name] - after[name] for name in before} == {
            "minute": 1, "day": 0, "workspace_day": 0, "workspace_minute": 1,
        }  # fmt: skip


class TestASecondWord:
    def test_it_replaces_the_first(self, acme_key, say):
        asked = log(acme_key)
        first = say(asked.request_id, "false_positive", note="hm")
        second = say(asked.request_id, "correct")

        assert (first.status_code, second.status_code) == (201, 200)
        assert second.json()["id"] == first.json()["id"]
        assert (second.json()["verdict"], second.json()["note"]) == ("correct", None)
        assert Feedback.objects.get().verdict == "correct"


class TestNotFound:
    def test_anothers_is_as_missing_as_none(self, acme_key, globex_key, say):
        asked = log(acme_key)

        theirs = problem(say(asked.request_id, key=globex_key), 404, "not_found")
        none = problem(say(new_id()), 404, "not_found")
        assert theirs["detail"] == none["detail"]
        assert not Feedback.objects.exists()

    def test_beyond_the_plans_days(self, acme_key, say):
        at = timezone.now() - timedelta(days=8)
        request_id = new_id()
        old = log(acme_key, request_id=request_id, created_at=at)

        assert refusal(say(old.request_id)) == (404, "not_found")
        assert refusal(say(uuid4())) == (404, "not_found")


class TestWrong:
    @pytest.mark.parametrize(
        ("body", "name"),
        [
            ({"verdict": "correct"}, "request_id"),
            ({"request_id": "x", "verdict": "correct"}, "request_id"),
            ({"request_id": str(uuid4())}, "verdict"),
            ({"request_id": str(uuid4()), "verdict": "wrong"}, "verdict"),
            ({"request_id": str(uuid4()), "verdict": "correct", "note": "x" * 1001}, "note"),
            ({"request_id": str(uuid4()), "verdict": "correct", "note": "\x00"}, "note"),
            ({"request_id": str(uuid4()), "verdict": "correct", "a": 1}, "a"),
        ],
    )
    def test_it_is_named(self, gateway, acme_key, body, name):
        assert list(fields(gateway.post(PATH, body, key=acme_key))) == [name]

    def test_a_request_without_a_verdict(self, acme_key, say):
        refused = log(
            acme_key, http_status=503, is_malicious=None, confidence=None, decision="", source=""
        )

        assert list(fields(say(refused.request_id))) == ["request_id"]
        assert not Feedback.objects.exists()


class TestExport:
    @pytest.mark.parametrize(
        ("verdict", "is_malicious", "label"),
        [
            ("false_positive", True, 0),
            ("false_negative", False, 1),
            ("correct", True, 1),
            ("correct", False, 0),
        ],
    )
    def test_labels(self, verdict, is_malicious, label):
        assert Feedback(verdict=verdict, is_malicious=is_malicious).label == label

    def test_evaluate_reads_what_is_stored(self, acme_key, say, monkeypatch, tmp_path):
        texts = {}
        for number in range(7):
            asked = log(acme_key)
            say(asked.request_id, "correct" if number % 2 else "false_positive")
            if number < 5:
                texts[asked.request_id] = f"text {number}\u2028 ä"
        monkeypatch.setattr(services, "TEXTS_AT_ONCE", 2)
        monkeypatch.setattr(
            services, "texts_of", lambda ids: {key: texts[key] for key in ids if key in texts}
        )
        rows = list(Feedback.objects.order_by("id"))

        assert services.count_stored(rows) == 5
        path = tmp_path / "feedback.jsonl"
        path.write_bytes(b"".join(services.jsonl(rows)))

        samples = list(report.read(path, "feedback"))
        assert [(s.text, s.label) for s in samples] == [
            (f"text {number}\u2028 ä", number % 2) for number in range(5)
        ]
        assert samples[0].source == "feedback false_positive"
        for line in path.read_bytes().splitlines():
            assert set(json.loads(line)) == {"text", "label", "source"}
