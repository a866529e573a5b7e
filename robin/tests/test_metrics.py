"""Robin's figures: now, and as the series that Robin itself does not keep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from django.utils import timezone

from accounts.tests.shapes import refusal
from robin import tasks
from robin.metrics import sampling
from robin.models import MetricSample
from robin.tests import contracts
from robin.tests.contracts import holds

AT = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)


@pytest.fixture
def ada(member, robin):
    return member("ROLE_READONLY", by_hand=True)


@pytest.mark.parametrize("profile", ["stock", "legacy", "ui-fork"])
def test_as_they_are_now(ada, robin, profile):
    robin.turn_into(profile)

    system = ada.get("/api/v1/metrics/system")
    queue = ada.get("/api/v1/metrics/queue")

    holds(contracts.SYSTEM, system.json())
    assert system.json()["cpu"]["cores"] == 4
    holds(contracts.QUEUE_STATS, queue.json())
    stats = queue.json()
    assert (stats["queueSize"], stats["processing"], stats["failed"]) == (112, 8, 8)
    assert stats["accepted"] > 4980
    assert stats["completed"] == stats["delivered"] == stats["accepted"] - 112 - 8
    assert stats["connections"] > stats["accepted"]
    assert "throughput" not in stats  # without a sample


def test_what_is_not_known_is_left_out():
    totals = {"ready": 90, "claimed": 5, "dead": 5}
    right = {"timestamp": "2026-11-23T09:00:00.000Z", "queueSize": 95, "processing": 5, "failed": 5}
    assert sampling.queue_stats({}, totals, now=AT) == {**right, "completed": 0}
    # Robin was started anew, and its queue was kept.
    values = {sampling.ACCEPTED: [({}, 30.0)]}
    found = sampling.queue_stats(values, totals, now=AT, per_minute=3.0)
    assert found == {**right, "completed": 0, "accepted": 30, "throughput": 3.0}
    assert sampling.system_stats({}, {}, now=AT)["cpu"] == {}
    assert sampling.figures({}, {}) == {}


def test_the_page_of_charts_is_not_taken_for_figures(ada, robin):
    robin.service.contexts["/metrics/prometheus"] = robin.service.contexts["/metrics"]
    assert ada.get("/api/v1/metrics/system").status_code == 502
    assert tasks.sample_metrics() is False


@pytest.mark.parametrize(
    ("text", "ms"),
    [("4d 2h 7m 5s", 353_225_000), ("0d 0h 0m 0s", 0), ("5s", 5000), ("soon", 0), (None, 0)],
)
def test_uptime(text, ms):
    assert sampling.uptime_ms(text) == ms


def test_samples_become_series(ada, robin):
    old = MetricSample.objects.create(at=timezone.now() - timedelta(days=31), figures={})
    assert [tasks.sample_metrics() for _ in "123"] == [True] * 3
    assert sampling.prune() == 1
    assert not MetricSample.objects.filter(pk=old.pk).exists()

    r = ada.get("/api/v1/metrics")

    holds(contracts.METRICS, r.json())
    series = {one["metric"]: one["dataPoints"] for one in r.json()["series"]}
    assert [point["value"] for point in series["QUEUE_SIZE"]] == [112] * 3
    # Two were accepted, over three connections; none waits for longer, so that two have left.
    assert [point["value"] for point in series["MESSAGES_RECEIVED"]] == [2, 2]
    assert [point["value"] for point in series["MESSAGES_SENT"]] == [2, 2]
    assert ada.get("/api/v1/metrics/queue").json()["throughput"] == 2.0
    assert [point["value"] for point in series["CONNECTIONS"]] == [4] * 3
    csv = ada.get("/api/v1/metrics/export?format=csv")
    assert csv.headers["content-type"].startswith("text/csv")
    assert csv.text.splitlines()[0] == "metric,unit,timestamp,value"
    assert len(csv.text.splitlines()) == 1 + 3 + 2 + 2 + 3 + 3 + 3
    plain = {one["metric"]: one for one in ada.get("/api/v1/metrics?names=plain").json()["series"]}
    assert plain["ACCEPTED"]["dataPoints"] == series["MESSAGES_RECEIVED"]
    assert plain["DELIVERED"]["dataPoints"] == series["MESSAGES_SENT"]
    assert not {*sampling.PLAIN} & {*plain}
    assert "DELIVERED,messages," in ada.get("/api/v1/metrics/export?names=plain").text


def test_a_counter_that_began_anew():
    values = [100, 130, 10, 15]
    for name in ("accepted", "sent"):  # also as earlier versions noted it
        rows = [(AT + timedelta(minutes=n), {name: v}) for n, v in enumerate(values)]
        series = {one["metric"]: one["dataPoints"] for one in sampling.series(rows)}
        assert [point["value"] for point in series["MESSAGES_RECEIVED"]] == [30, 10, 5]
        assert series["MESSAGES_SENT"] == []


def test_what_was_delivered_is_what_was_accepted_and_is_gone():
    figures = [(100, 10, 0), (130, 15, 2), (140, 5, 3)]
    rows = [
        (AT + timedelta(minutes=n), {"accepted": a, "queue_size": q, "dead": d})
        for n, (a, q, d) in enumerate(figures)
    ]
    series = {one["metric"]: one["dataPoints"] for one in sampling.series(rows)}
    assert [point["value"] for point in series["MESSAGES_SENT"]] == [23, 19]


@pytest.mark.slow
def test_many_samples_are_thinned_out(db):
    MetricSample.objects.bulk_create(
        MetricSample(at=AT + timedelta(seconds=n), figures={"queue_size": n}) for n in range(1201)
    )
    found = sampling.between(AT, AT + timedelta(hours=1))
    assert 300 <= len(found) <= sampling.POINTS_MAX
    assert found[-1][1] == {"queue_size": 1200}


@pytest.mark.parametrize(
    "query",
    ["start=x", "start=2026-01-02T00:00:00Z&end=2026-01-01T00:00:00Z", "start=0001-01-01T00:00:00Z",
     "end=0001-01-01T00:00:00%2B14:00", "end=0001-01-01T00:00:00Z"],
)  # fmt: skip
def test_a_span_that_makes_no_sense(ada, query):
    r = ada.get(f"/api/v1/metrics?{query}")
    assert refusal(r) == (422, "validation_error")
    holds(contracts.PROBLEM, r.json())


def test_no_answer_is_no_sample(robin, settings):
    robin.run(robin.service.stop())
    assert tasks.sample_metrics() is False
    settings.ROBIN_SERVICE_API_URL = ""
    assert tasks.sample_metrics() is False
    assert not MetricSample.objects.exists()
