"""POST /auth/rotate-key"""

from __future__ import annotations

from datetime import timedelta
from unittest.mock import patch

import pytest
import time_machine
from django.db.models import QuerySet
from django.utils import timezone

from accounts import authentication
from accounts.keys import is_well_formed
from accounts.models import ApiKey, AuditEvent, OutboxEvent
from accounts.tests.shapes import KEY_FIELDS, fields, moment, problem, refusal


def rotate(gateway, key, **body):
    return gateway.post("/auth/rotate-key", body, key=key)


def works(gateway, key):
    """Whether the key is accepted by both planes."""
    planes = {gateway.get(path, key=key).status_code for path in ("/v1/limits", "/auth/profile")}
    assert planes in ({200}, {401})
    return planes == {200}


class TestTheAnswer:
    def test_it_has_the_fields_of_the_contract(self, gateway, acme_key):
        before = timezone.now()

        r = rotate(gateway, acme_key)

        body = r.json()
        successor = ApiKey.objects.exclude(pk=acme_key.row.pk).get()
        assert r.status_code == 201
        assert set(body) == {"api_key", "previous"}
        assert set(body["api_key"]) == KEY_FIELDS | {"key"}
        assert body["api_key"]["id"] == str(successor.pk)
        assert body["api_key"]["status"] == "active"
        assert is_well_formed(body["api_key"]["key"])
        assert body["api_key"]["key"] != acme_key
        assert set(body["previous"]) == {"id", "grace_until"}
        assert body["previous"]["id"] == str(acme_key.row.pk)
        grace = moment(body["previous"]["grace_until"]) - before
        assert timedelta(days=1) - timedelta(seconds=1) < grace < timedelta(days=1, minutes=1)

    def test_both_keys_work_in_the_grace(self, gateway, acme_key):
        new = rotate(gateway, acme_key).json()["api_key"]["key"]

        assert works(gateway, acme_key)
        assert works(gateway, new)

    def test_the_old_key_says_that_it_is_replaced(self, gateway, acme_key):
        body = rotate(gateway, acme_key).json()

        old = gateway.get("/auth/profile", key=acme_key).json()["api_key"]

        assert old["status"] == "grace"
        assert old["replaced_by"] == body["api_key"]["id"]
        assert old["grace_until"] == body["previous"]["grace_until"]

    def test_it_carries_everything_over(self, gateway, make_key):
        ends = timezone.now() + timedelta(days=3)
        key = make_key(
            name="robot",
            scopes=["detect", "keys:write"],
            allowed_cidrs=["127.0.0.0/8"],
            expires_at=ends,
            rate_limit_per_minute=7,
            rate_limit_per_day=70,
        )

        new = rotate(gateway, key).json()["api_key"]

        assert new["name"] == "robot"
        assert new["scopes"] == ["detect", "keys:write"]
        assert new["allowed_cidrs"] == ["127.0.0.0/8"]
        assert abs(moment(new["expires_at"]) - ends) < timedelta(milliseconds=1)
        assert (new["rate_limit_per_minute"], new["rate_limit_per_day"]) == (7, 70)

    def test_the_successor_goes_on_in_the_counters_of_its_line(self, gateway, make_key):
        key = make_key(rate_limit_per_minute=4)
        second = rotate(gateway, key).json()["api_key"]["key"]
        third = rotate(gateway, second).json()["api_key"]["key"]

        *taken, last = [gateway.get("/auth/profile", key=k) for k in (third, key, third)]

        assert [r.status_code for r in taken] == [200, 200]
        assert refusal(last) == (429, "rate_limited")

    def test_the_successor_keeps_what_its_detections_mean(self, gateway, acme_key):
        ApiKey.objects.update(detection_policy={"mode": "monitor"})

        rotate(gateway, acme_key)

        assert [key.detection_policy for key in ApiKey.objects.all()] == [{"mode": "monitor"}] * 2


class TestTheGrace:
    def test_the_old_key_works_within_it_and_not_after(self, gateway, acme_key):
        new = rotate(gateway, acme_key, grace_seconds=600).json()["api_key"]["key"]
        start = timezone.now()

        with time_machine.travel(start + timedelta(seconds=590)):
            within = works(gateway, acme_key)
        with time_machine.travel(start + timedelta(seconds=601)):
            after, successor = works(gateway, acme_key), works(gateway, new)

        assert within
        assert not after
        assert successor

    def test_a_remembered_key_ends_with_it_too(self, gateway, acme_key):
        rotate(gateway, acme_key, grace_seconds=600)
        assert works(gateway, acme_key)

        with (
            patch.object(ApiKey.objects, "usable", autospec=True) as look_up,
            time_machine.travel(timezone.now() + timedelta(seconds=601)),
        ):
            after = works(gateway, acme_key)

        assert not after
        assert not look_up.called

    def test_none_ends_the_old_key_at_once(self, gateway, acme_key):
        assert works(gateway, acme_key)

        rotate(gateway, acme_key, grace_seconds=0)

        assert not works(gateway, acme_key)

    def test_a_week_is_the_most(self, gateway, acme_key):
        before = timezone.now() - timedelta(milliseconds=1)  # what is answered is rounded

        previous = rotate(gateway, acme_key, grace_seconds=604_800).json()["previous"]

        assert moment(previous["grace_until"]) >= before + timedelta(days=7)

    def test_it_never_outlives_the_expiry(self, gateway, make_key):
        ends = timezone.now() + timedelta(hours=1)
        key = make_key(expires_at=ends)

        body = rotate(gateway, key, grace_seconds=86_400).json()

        assert abs(moment(body["previous"]["grace_until"]) - ends) < timedelta(milliseconds=1)
        assert body["previous"]["grace_until"] == body["api_key"]["expires_at"]

    @pytest.mark.parametrize("value", [-1, 604_801, "soon", 1.5, None, True, "60"])
    def test_it_must_be_seconds_up_to_a_week(self, gateway, acme_key, value):
        r = rotate(gateway, acme_key, grace_seconds=value)

        assert set(fields(r)) == {"grace_seconds"}
        assert ApiKey.objects.count() == 1


class TestTwice:
    def test_a_second_rotation_of_the_old_key_is_a_conflict_and_makes_no_key(
        self, gateway, acme_key
    ):
        rotate(gateway, acme_key)

        r = rotate(gateway, acme_key)

        problem(r, 409, "conflict")
        assert ApiKey.objects.count() == 2
        assert AuditEvent.objects.filter(action="key.rotated").count() == 1

    def test_the_successor_can_be_rotated(self, gateway, acme_key):
        new = rotate(gateway, acme_key).json()["api_key"]["key"]

        r = rotate(gateway, new)

        assert r.status_code == 201
        assert ApiKey.objects.count() == 3

    def test_a_key_revoked_meanwhile_gets_no_successor(self, gateway, acme_key):
        gateway.get("/auth/profile", key=acme_key)

        # Revoked by another worker, which this one's memory of the key does not know of yet.
        ApiKey.objects.filter(pk=acme_key.row.pk).update(revoked_at=timezone.now())
        r = rotate(gateway, acme_key)

        problem(r, 409, "conflict")
        assert ApiKey.objects.count() == 1


class TestWhatItLeaves:
    def test_it_is_audited(self, gateway, acme_key):
        r = rotate(gateway, acme_key)

        event = AuditEvent.objects.get(action="key.rotated")
        assert event.target == str(acme_key.row.pk)
        assert event.actor == f"key {acme_key[:12]}…"
        assert event.workspace_id == acme_key.row.workspace_id
        assert event.request_id == r.headers["x-request-id"]
        assert event.details["successor"] == r.json()["api_key"]["id"]
        assert not OutboxEvent.objects.exists()

    def test_it_leaves_nothing_when_the_old_key_cannot_be_marked(self, gateway, acme_key):
        with patch.object(QuerySet, "update", autospec=True, side_effect=RuntimeError("boom")):
            r = rotate(gateway, acme_key)

        problem(r, 500, "internal_error")
        assert ApiKey.objects.count() == 1

    def test_it_stores_and_logs_no_text_of_a_key(self, gateway, acme_key, capsys, caplog):
        text = rotate(gateway, acme_key).json()["api_key"]["key"]

        rows = repr([*ApiKey.objects.values(), *AuditEvent.objects.values()])
        output = capsys.readouterr().out + caplog.text
        for secret in (text, acme_key, text.split("_")[2], acme_key.split("_")[2]):
            assert secret not in rows
            assert secret not in output


def test_it_lists_the_known_fields_beside_an_unknown_one(gateway, acme_key):
    r = rotate(gateway, acme_key, grace=5)

    assert fields(r) == {"grace": "unknown field; known here: grace_seconds"}


def test_it_drops_the_old_key_from_the_memory(gateway, acme_key):
    gateway.get("/v1/limits", key=acme_key)

    rotate(gateway, acme_key)

    assert len(authentication._memory.known) == 0
