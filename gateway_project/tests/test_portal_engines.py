"""`/app/keys/{id}/engines`: who judges for a key, and how a shadow compares"""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile

from accounts.models import new_id
from accounts.services import Actor
from accounts.tests.shapes import refusal
from detection.models import Disagreement, EngineDay
from detection.policies import policy as policies
from detection.tests.test_detect import ATTACK, HARMLESS
from gateway_project.core import clock
from portal.tests.furnished import bytes_of

NAMES = "judge=openai+http://127.0.0.1:1/v1?model=m rules=embedded:"


@pytest.fixture(autouse=True)
def _named(settings):
    settings.DETECTION_ENGINES = NAMES


@pytest.fixture
def at(acme_key):
    return lambda page: f"/app/keys/{acme_key.row.pk}/{page}"


def form(version=0, **more):
    known = {"version": version, "first": "default", "second": "", "shadow": "", "least": "0.3"}
    return {**known, "most": "0.8", "share": "10", **more}


def policy_of(key):
    key.row.refresh_from_db()
    return policies.of_key(key.row)


class TestChoosing:
    def test_it_makes_a_version_and_leaves_the_rest(self, owner, at, acme_key):
        policies.save(acme_key.row, {"mode": "monitor"}, actor=Actor("test"))

        r = owner.post(
            at("engines"),
            form(1, first="rules", second="judge", least="0.2", shadow="default", share="25"),
            follow=True,
        )
        found = policy_of(acme_key)

        assert "Version 2 is in force." in r.text
        assert (found.route.first, found.mode) == ("rules", "monitor")
        assert found.route.second == ("judge", 0.2, 0.8)
        assert found.shadow == ("default", 0.25)

    def test_the_other_form_keeps_them(self, owner, at, acme_key):
        document = {
            "engines": {"first": "rules"},
            "threshold": {"content_types": {"tool_output": {"engine": 0.9}}},
        }
        policies.save(acme_key.row, document, actor=Actor("test"))
        owner.post(
            at("policy"),
            {
                "version": 1,
                "threshold_engine": "0.7",
                "mode": "enforce",
                "on_unavailable": "fallback",
            },
        )
        found = policy_of(acme_key)

        assert (found.threshold_engine, found.route.first) == (0.7, "rules")
        assert found.threshold("engine", None, "tool_output")[0] == 0.9

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ({"second": "default"}, "first engine already"),
            ({"second": "judge", "least": "0.9", "most": "0.1"}, "above the other end"),
            ({"shadow": "judge", "share": "0"}, "above 0"),
            ({"first": "unknown"}, "not one of the available choices"),
            ({"version": 7}, "somebody changed it"),
        ],
    )
    def test_mistakes_are_named(self, owner, at, acme_key, more, says):
        r = owner.post(at("engines"), form(**more))

        assert says in r.text
        assert acme_key.row.policy_versions.count() == 0

    def test_viewers_read_it(self, viewer, at):
        assert "Save as a new version" not in viewer.get(at("engines")).text
        assert viewer.post(at("engines"), form()).status_code == 403

    def test_another_workspaces_key_is_missing(self, stranger, at):
        assert refusal(stranger.get(at("engines"))) == (404, "not_found")


class TestCosts:
    """Tokens and costs of all keys, on the page of usage, as a file of it and by the API."""

    @pytest.fixture(autouse=True)
    def _spent(self, acme_key, make_key, globex):
        today = clock.now().date()
        for key in (acme_key.row, make_key().row, make_key(globex).row):
            for days in (0, 40):
                EngineDay.objects.create(
                    api_key_id=key.pk, workspace_id=key.workspace_id, engine="judge", role="paid",
                    day=today - timedelta(days=days), calls=2, tokens_in=800, tokens_out=120,
                    cost=0.5,
                )  # fmt: skip

    def test_stand_on_the_page_of_usage_and_in_its_file(self, owner):
        page = owner.get("/app/usage").text
        table = bytes_of(owner.get("/app/usage?csv=costs")).decode()

        assert "What engines cost" in page
        assert table.splitlines()[1] == '"judge",4,1600,240,1.0'

    @pytest.mark.parametrize(
        ("query", "calls"),
        [("", 4), ("?first_day=2020-01-01", 8), ("?last_day=2020-01-01", 0), ("?key={key}", 2)],
    )
    def test_are_answered_by_day_and_key(self, gateway, make_key, acme_key, query, calls):
        reader = make_key(scopes=["usage:read"])

        r = gateway.get(f"/v1/engines/costs{query.format(key=acme_key.row.pk)}", key=reader)

        wanted = {"engine": "judge", "calls": calls, "tokens_in": calls * 400,
                  "tokens_out": calls * 60, "cost": calls / 4}  # fmt: skip
        assert r.json()["results"] == ([wanted] if calls else [])

    @pytest.mark.parametrize(
        "query", ["first_day=0", "first_day=2026-02-30", "first_day=2026-02-02&last_day=2026-02-01"]
    )
    def test_days_that_are_none_are_refused(self, gateway, make_key, query):
        r = gateway.get(f"/v1/engines/costs?{query}", key=make_key(scopes=["usage:read"]))

        assert refusal(r) == (422, "validation_error")


class TestComparing:
    @pytest.fixture
    def figures(self, acme_key):
        key = acme_key.row
        ids = {
            "api_key_id": key.pk,
            "workspace_id": key.workspace_id,
            "engine": "judge",
            "compared_to": "default",
        }
        today = clock.now().date()
        for days in range(3):
            EngineDay.objects.create(
                **ids, role="shadow", day=today - timedelta(days=days), calls=120, failed=10,
                skipped=5, agreed=100, only_own=3, only_shadow=7, milliseconds=110 * 420.0,
                own_milliseconds=110 * 4.0, tokens_in=48_000, tokens_out=7_000, cost=0.22,
            )  # fmt: skip
        rows = [
            Disagreement(**ids, request_id=new_id(), content_type="tool_output", own_score=0.2,
                         shadow_score=0.91, is_malicious=False)
            for _ in range(2)
        ]  # fmt: skip
        Disagreement.objects.bulk_create(rows)
        return rows

    def test_it_says_how_often_both_agree_what_not_and_what_it_costs(
        self, owner, at, figures
    ):  # fmt: skip
        page = owner.get(at("engines")).text

        assert "300 of 330" in page
        assert "21 malicious by judge alone, 9 by default alone" in page
        assert "420.0 ms" in page
        assert "4.0 ms" in page
        assert 'class="flagged"' in page
        assert all(str(row.request_id) in page for row in figures)
        assert "144,000" in page  # tokens read

    def test_without_a_shadow_it_says_what_to_do(self, owner, at):
        assert "choose a shadow" in owner.get(at("engines")).text

    def test_with_one_engine_it_says_who_can_name_more(self, owner, at, settings):
        settings.DETECTION_ENGINES = ""

        assert "This installation has one engine." in owner.get(at("engines")).text


class TestCalibratingAType:
    def test_the_texts_are_scored_as_that_type_and_its_threshold_is_set(
        self, owner, at, acme_key, engine
    ):  # fmt: skip
        rows = [{"text": ATTACK, "label": 1}, {"text": HARMLESS, "label": 0}]
        upload = SimpleUploadedFile("mine.jsonl", "\n".join(map(json.dumps, rows)).encode())

        page = owner.post(at("calibrate"), {"file": upload, "content_type": "tool_output"}).text
        owner.post(at("threshold"), {"threshold": "0.72", "content_type": "tool_output"})
        found = policy_of(acme_key)

        assert "threshold for tool_output" in page
        assert {asked["content_type"] for asked in engine.asked} == {"tool_output"}
        assert found.threshold("engine", None, "tool_output")[0] == 0.72
        assert found.threshold("engine", None, "user_input")[0] == 0.6
