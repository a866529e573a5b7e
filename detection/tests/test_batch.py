"""POST /v1/detect/batch, answered at once"""

from __future__ import annotations

from unittest.mock import patch
from uuid import UUID

import pytest

from accounts.models import UsageLog
from accounts.usage import stream
from detection.engines.engine import Engine
from detection.models import Job
from detection.tests.test_detect import ATTACK, HARMLESS, field, problem
from gateway_project.core.stores import database

PATH = "/v1/detect/batch"
FIELDS = {
    *("batch_id", "status", "results", "successful_count", "failed_count", "flagged_count"),
    "total_processing_time_ms",
}


def items(*texts):
    return [{"id": f"t{n}", "text": text} for n, text in enumerate(texts)]


def remaining(gateway, key):
    policies = gateway.get("/v1/limits", key=key).json()["policies"]
    return {policy["name"]: policy["remaining"] for policy in policies}


class TestTheAnswer:
    def test_it_has_the_fields_of_the_contract_in_the_callers_order(
        self, gateway, engine, acme_key
    ):
        r = gateway.post(PATH, {"requests": items(HARMLESS, ATTACK, HARMLESS)}, key=acme_key)
        body = r.json()

        assert r.status_code == 200
        assert set(body) == FIELDS
        UUID(body["batch_id"])
        assert body["status"] == "complete"
        assert [one["id"] for one in body["results"]] == ["t0", "t1", "t2"]
        assert [one["result"]["decision"] for one in body["results"]] == ["allow", "flag", "allow"]
        assert all(one["status"] == "ok" and one["error"] is None for one in body["results"])
        counts = ("successful_count", "failed_count", "flagged_count")
        assert [body[name] for name in counts] == [3, 0, 1]
        assert len({one["result"]["request_id"] for one in body["results"]}) == 3

    def test_each_item_is_judged_as_a_single_text_is(self, gateway, engine, acme_key):
        body = gateway.post(PATH, {"requests": items(ATTACK)}, key=acme_key).json()
        alone = gateway.detect(ATTACK, key=acme_key).json()

        own = {"request_id", "processing_time_ms", "cached", "cache_age_seconds"}
        verdict = body["results"][0]["result"]
        assert {k: v for k, v in verdict.items() if k not in own} == {
            k: v for k, v in alone.items() if k not in own
        }

    def test_an_items_config_goes_before_the_batchs(self, gateway, engine, acme_key):
        r = gateway.post(
            PATH,
            {
                "requests": [
                    {"id": "a", "text": ATTACK, "metadata": {"n": 1}},
                    {"id": "b", "text": ATTACK, "config": {"confidence_threshold": 1.0}},
                ],
                "config": {"confidence_threshold": 0.1, "mode": "monitor"},
                "metadata": {"run": 7},
            },
            key=acme_key,
        )
        a, b = (one["result"] for one in r.json()["results"])

        assert (a["threshold"], a["would_flag"], a["metadata"]) == (0.1, True, {"n": 1})
        assert (a["is_malicious"], a["decision"]) == (False, "allow")
        assert (b["threshold"], b["would_flag"]) == (1.0, False)
        assert "metadata" not in b
        assert r.json()["metadata"] == {"run": 7}

    @pytest.mark.parametrize("use_cache", [True, False])
    def test_equal_texts_are_asked_about_once(self, gateway, engine, acme_key, use_cache):
        body = {"requests": items(*[HARMLESS] * 100), "config": {"use_cache": use_cache}}
        r = gateway.post(PATH, body, key=acme_key)

        assert r.json()["successful_count"] == 100
        assert len(engine.asked) == 1

    def test_a_hundred_are_asked_about_together(self, gateway, engine, acme_key):
        engine.is_slow(0.3)
        most = now = 0
        ask = Engine._ask_one

        async def counted(*args):
            nonlocal most, now
            now += 1
            most = max(most, now)
            try:
                return await ask(*args)
            finally:
                now -= 1

        texts = [f"{HARMLESS} {n}" for n in range(100)]
        with patch.object(Engine, "_ask_one", counted):
            r = gateway.post(PATH, {"requests": items(*texts)}, key=acme_key)

        assert r.json()["successful_count"] == 100
        assert most > 50  # they begin one after the other

    def test_it_is_not_kept(self, gateway, engine, acme_key):
        body = gateway.post(PATH, {"requests": items(HARMLESS)}, key=acme_key).json()

        problem(gateway.get(f"{PATH}/{body['batch_id']}", key=acme_key), 404, "not_found")
        assert not Job.objects.exists()


class TestWhatItCosts:
    def test_one_of_the_minute_and_one_of_the_day_for_each_item(self, gateway, engine, acme_key):
        before = remaining(gateway, acme_key)
        r = gateway.post(PATH, {"requests": items(*[HARMLESS] * 7)}, key=acme_key)
        after = remaining(gateway, acme_key)

        assert {name: before[name] - after[name] for name in before} == {
            "minute": 1,
            "day": 7,
            "workspace_day": 7,
            "workspace_minute": 1,
        }
        assert f'"day";r={after["day"]};' in r.headers["ratelimit"]

    def test_all_or_nothing(self, gateway, engine, make_key):
        key = make_key(rate_limit_per_day=10)
        gateway.post(PATH, {"requests": items(*[HARMLESS] * 4)}, key=key)
        asked = len(engine.asked)
        r = gateway.post(PATH, {"requests": items(*[ATTACK] * 7)}, key=key)

        problem(r, 429, "quota_exceeded")
        assert len(engine.asked) == asked
        assert remaining(gateway, key)["day"] == 6
        r = gateway.post(PATH, {"requests": items(*[ATTACK] * 6)}, key=key)
        assert r.status_code == 200
        assert remaining(gateway, key)["day"] == 0

    @pytest.mark.parametrize("headers", [{}, {"Prefer": "respond-async"}])
    def test_a_batch_beyond_a_days_quota_is_not_asked_to_retry(
        self, gateway, engine, make_key, headers
    ):
        key = make_key(rate_limit_per_day=10)
        r = gateway.post(PATH, {"requests": items(*[ATTACK] * 11)}, key=key, headers=headers)

        problem(r, 422, "batch_over_limit")
        assert "retry-after" not in r.headers
        assert "11 items" in r.json()["detail"]
        assert "'day' lets 10 a day through" in r.json()["detail"]
        assert remaining(gateway, key)["day"] == 10
        assert not Job.objects.exists()

    def test_each_verdict_is_a_row_of_the_log(self, gateway, engine, acme_key):
        body = gateway.post(PATH, {"requests": items(HARMLESS, ATTACK)}, key=acme_key).json()
        gateway.flush_usage()
        stream.drain()

        rows = {str(row.request_id): row for row in UsageLog.objects.all()}
        assert set(rows) == {one["result"]["request_id"] for one in body["results"]}
        assert {row.endpoint for row in rows.values()} == {PATH}
        assert sorted(row.is_malicious for row in rows.values()) == [False, True]


class TestOneBadItem:
    def test_it_fails_and_the_rest_run(self, gateway, engine, acme_key):
        requests = [
            {"id": "long", "text": "x" * 10_001},
            {"id": "good", "text": HARMLESS},
            {"id": "typo", "text": HARMLESS, "confg": {}},
            {"id": "open", "text": HARMLESS, "config": {"on_unavailable": "fail_open"}},
        ]
        r = gateway.post(PATH, {"requests": requests}, key=acme_key)
        body = r.json()
        by_id = {one["id"]: one for one in body["results"]}

        assert r.status_code == 200
        assert body["status"] == "partial"
        assert [one["id"] for one in body["results"]] == ["long", "good", "typo", "open"]
        assert (body["successful_count"], body["failed_count"]) == (1, 3)
        assert by_id["good"]["result"]["decision"] == "allow"
        assert by_id["long"]["error"]["code"] == "validation_error"
        assert "10,000 characters" in by_id["long"]["error"]["message"]
        assert "known here: config, id, metadata, text" in by_id["typo"]["error"]["message"]
        assert by_id["open"]["error"]["code"] == "fail_open_forbidden"
        assert by_id["long"]["result"] is None

    def test_what_the_engine_cannot_answer_in_time(self, gateway, engine, acme_key):
        engine.is_slow(5)
        requests = [
            {"id": "patient", "text": HARMLESS, "config": {"timeout_seconds": 20}},
            {"id": "quick", "text": ATTACK},
        ]
        body = {"requests": requests, "config": {"timeout_seconds": 0.2}}
        found = gateway.post(PATH, body, key=acme_key).json()
        patient, quick = found["results"]

        assert patient["error"]["code"] == "deadline"
        assert quick["result"]["degraded_reason"] == "timeout"
        assert found["status"] == "partial"

    def test_the_engine_is_down(self, gateway, engine, acme_key):
        engine.is_down()
        requests = [
            {"id": "closed", "text": HARMLESS, "config": {"on_unavailable": "fail_closed"}},
            {"id": "falls", "text": ATTACK},
        ]
        closed, falls = gateway.post(PATH, {"requests": requests}, key=acme_key).json()["results"]

        assert closed["error"]["code"] == "detection_unavailable"
        assert falls["result"]["source"] == "fallback"
        assert falls["result"]["decision"] == "flag"


class TestTheWholeIsRefused:
    def test_ids_that_stand_twice_are_named(self, gateway, engine, acme_key):
        requests = [{"id": name, "text": HARMLESS} for name in ("a", "b", "a", "c", "b")]
        body = problem(
            gateway.post(PATH, {"requests": requests}, key=acme_key), 422, "validation_error"
        )

        assert field(body) == "requests"
        assert body["errors"][0]["message"].endswith("more than once: a, b")
        assert not engine.asked

    def test_also_of_an_item_that_is_not_valid(self, gateway, engine, acme_key):
        requests = [{"id": "a", "text": HARMLESS}, {"id": "a", "text": ""}]
        r = gateway.post(PATH, {"requests": requests}, key=acme_key)

        problem(r, 422, "validation_error")

    @pytest.mark.parametrize("count", [0, 1001])
    def test_too_few_or_too_many(self, gateway, engine, acme_key, count):
        r = gateway.post(PATH, {"requests": items(*[HARMLESS] * count)}, key=acme_key)

        assert field(problem(r, 422, "validation_error")) == "requests"
        assert remaining(gateway, acme_key)["day"] == 10_000

    @pytest.mark.parametrize(
        "item", [{"text": "no id"}, {"id": "", "text": "x"}, {"id": 5, "text": "x"}, "words"]
    )
    def test_an_item_without_an_id_to_answer_under(self, gateway, engine, acme_key, item):
        requests = [{"id": "a", "text": HARMLESS}, item]
        r = gateway.post(PATH, {"requests": requests}, key=acme_key)

        body = problem(r, 422, "validation_error")
        assert body["errors"][0]["field"].startswith("requests.1")

    def test_the_scope_is_missing(self, gateway, engine, make_key):
        r = gateway.post(PATH, {"requests": items(HARMLESS)}, key=make_key(scopes=["detect"]))

        problem(r, 403, "scope_denied")

    def test_a_body_beyond_its_limit(self, gateway, engine, acme_key):
        r = gateway.post(PATH, content=b"x" * ((4 << 20) + 1), key=acme_key)

        problem(r, 413, "body_too_large")

    def test_four_megabytes_are_taken(self, gateway, engine, acme_key, monkeypatch):
        # On a busy machine they take longer than a request waits for the database.
        monkeypatch.setattr(database, "DEADLINE_SECONDS", 30.0)
        requests = [{"id": str(n), "text": f"{n} " + "so " * 3300} for n in range(400)]
        r = gateway.post(PATH, {"requests": requests}, key=acme_key)

        assert r.status_code == 202
        assert Job.objects.get(pk=r.json()["batch_id"]).total == 400
