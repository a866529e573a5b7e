"""The line of the log that says where the time of a slow request went."""

from __future__ import annotations

import gc
import json

import pytest

from gateway_project.core.telemetry.slow import beside


@pytest.fixture
def slow_from(gateway, monkeypatch):
    """`slow_from(0.1)`: what takes longer is slow, in seconds."""
    return lambda seconds: monkeypatch.setattr(gateway.application, "slow_seconds", seconds)


def lines(capsysbinary):
    out = capsysbinary.readouterr().out.splitlines()
    return [json.loads(line) for line in out if b'"slow_request"' in line]


def test_it_says_where_the_time_went_and_nothing_of_the_caller(
    gateway, engine, acme_key, slow_from, capsysbinary
):
    slow_from(0.0)
    r = gateway.detect("Mallory's launch code", key=acme_key)

    [line] = lines(capsysbinary)
    assert line["request_id"] == r.json()["request_id"]
    assert (line["route"], line["status"]) == ("/v1/detect", 200)
    parts = [line[name] for name in ("limiter_ms", "upstream_ms", "other_ms")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(line["duration_ms"], abs=0.05)
    assert "Mallory" not in str(line)


def test_who_is_quick_leaves_none(gateway, engine, acme_key, slow_from, capsysbinary):
    slow_from(60.0)
    gateway.detect("hello", key=acme_key)

    assert lines(capsysbinary) == []


def test_what_a_process_does_beside_is_measured():
    collector, usage = beside.collector, beside.usage

    gc.collect()
    with beside.sending_usage():
        pass

    assert beside.collector > collector
    assert beside.usage > usage
