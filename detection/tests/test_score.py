"""POST /v1/detect/score"""

from __future__ import annotations

import pytest

from accounts.models import UsageLog
from accounts.usage import stream
from detection.tests.test_detect import ATTACK, HARMLESS, field, problem

PATH = "/v1/detect/score"


def test_it_says_what_the_engine_thinks(gateway, engine, acme_key):
    r = gateway.post(PATH, {"text": ATTACK}, key=acme_key)
    verdict = gateway.detect(ATTACK, key=acme_key, detailed_response=True).json()

    assert r.status_code == 200
    assert set(r.json()) == {"confidence", "categories", "threat_types", "source", "detector"}
    assert r.json()["confidence"] == verdict["confidence"]
    assert r.json()["threat_types"] == verdict["threat_types"]
    assert r.json()["source"] == "engine"
    shown = [(one["type"], one["score"]) for one in r.json()["categories"]]
    assert shown == [(c["type"], c["score"]) for c in verdict["details"]["categories"]]
    assert shown == sorted(shown, key=lambda one: -one[1])


def test_it_knows_what_a_detection_found_out(gateway, engine, acme_key):
    gateway.detect(HARMLESS, key=acme_key)
    asked = len(engine.asked)
    r = gateway.post(PATH, {"text": HARMLESS}, key=acme_key)

    assert r.json()["confidence"] < 0.6
    assert len(engine.asked) == asked


def test_the_embedded_detector_stands_in(gateway, engine, acme_key):
    engine.is_down()
    r = gateway.post(PATH, {"text": ATTACK}, key=acme_key)

    assert r.json()["source"] == "fallback"
    assert r.json()["confidence"] >= 0.6
    assert r.json()["detector"]["weights_sha256"]
    assert r.json()["categories"]


def test_it_costs_the_minute_and_not_the_day_and_is_no_traffic(gateway, engine, make_key):
    key = make_key()
    before = {
        p["name"]: p["remaining"] for p in gateway.get("/v1/limits", key=key).json()["policies"]
    }
    gateway.post(PATH, {"text": HARMLESS}, key=key)
    after = {
        p["name"]: p["remaining"] for p in gateway.get("/v1/limits", key=key).json()["policies"]
    }
    gateway.flush_usage()
    stream.drain()

    assert {name: before[name] - after[name] for name in before} == {
        "minute": 1, "day": 0, "workspace_day": 0, "workspace_minute": 1,
    }  # fmt: skip
    assert not UsageLog.objects.filter(endpoint=PATH).exists()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        *(({}, "text"), ({"text": ""}, "text"), ({"text": "x" * 10_001}, "text")),
        *(({"text": "x", "content_type": "mail"}, "content_type"), ({"text": "x", "a": 1}, "a")),
    ],
)
def test_what_is_wrong_is_named(gateway, acme_key, body, name):
    r = gateway.post(PATH, body, key=acme_key)

    assert field(problem(r, 422, "validation_error")) == name
