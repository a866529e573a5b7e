"""Rules, alerts and dashboards: each alert fires when it should, and each has a page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import dashboards

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/monitoring"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
DAY = 24 * 60
needs = {
    name: pytest.mark.skipif(
        shutil.which(name) is None, reason=f"{name} is missing: apt-get install {package}"
    )
    for name, package in {"promtool": "prometheus", "amtool": "prometheus-alertmanager"}.items()
}
CALLS = 'gateway_requests_total{endpoint="/v1/detect",status="%s"}'
SLOW = 'gateway_request_duration_seconds_bucket{endpoint="/v1/detect",le="%s"}'
LAG = 'gateway_event_loop_lag_seconds_bucket{le="%s"}'
HEARTBEAT = 'gateway_tasks_total{task="accounts.tasks.record_heartbeat",outcome="success"}'
# Of each alert: series (promtool's notation, a value each minute) that make it fire, and that do
# not, and after how many minutes it is looked at.
Series = dict[str, str]
CASES: dict[str, tuple[int, Series, Series]] = {
    "GatewayDown": (10, {'up{job="gateway"}': "0x20"}, {'up{job="gateway"}': "1x20"}),
    "GatewayErrorBudgetBurnsFast": (
        90,
        {CALLS % 200: "0+98x100", CALLS % 503: "0+2x100"},
        {CALLS % 200: "0+1000x100", CALLS % 503: "0+1x100"},
    ),
    "GatewayErrorBudgetBurns": (
        400,
        {CALLS % 200: "0+990x420", CALLS % 503: "0+10x420"},
        {CALLS % 200: "0+999x420", CALLS % 503: "0+1x420"},
    ),
    "GatewayErrorBudgetBurnsSlowly": (
        500,
        {CALLS % 200: "0+998x520", CALLS % 503: "0+2x520"},
        {CALLS % 200: "0+10000x520", CALLS % 503: "0+1x520"},
    ),
    "GatewaySlow": (
        30,
        {SLOW % "1": "0+90x40", SLOW % "2.5": "0+100x40", SLOW % "+Inf": "0+100x40"},
        {SLOW % "1": "0+99x40", SLOW % "+Inf": "0+100x40"},
    ),
    "GatewayVerdictsDegraded": (
        20,
        {
            'gateway_detections_total{source="fallback"}': "0+10x30",
            'gateway_detections_total{source="engine"}': "0+90x30",
        },
        {
            'gateway_detections_total{source="fallback"}': "0+1x30",
            'gateway_detections_total{source="engine"}': "0+99x30",
        },
    ),
    "GatewayBreakerOpen": (
        5,
        {'gateway_circuit_breaker_state{service="engine"}': "2x10"},
        {'gateway_circuit_breaker_state{service="engine"}': "1x10"},
    ),
    "GatewayLimitsDegraded": (
        15,
        {'gateway_ratelimit_degraded_total{policy="minute"}': "0+5x20"},
        {'gateway_ratelimit_degraded_total{policy="minute"}': "7x20"},
    ),
    "GatewayBusLost": (10, {"gateway_bus_connected": "0x20"}, {"gateway_bus_connected": "2x20"}),
    "GatewayWorkerMissing": (10, {HEARTBEAT: "5x20"}, {HEARTBEAT: "0+4x20"}),
    "GatewayQueueGrows": (
        20,
        {'gateway_celery_queue_length{queue="mail"}': "2000x30"},
        {'gateway_celery_queue_length{queue="mail"}': "20x30"},
    ),
    "GatewayJobsWait": (
        20,
        {"gateway_jobs_oldest_queued_seconds": "900x30"},
        {"gateway_jobs_oldest_queued_seconds": "30x30"},
    ),
    "GatewayWebhooksLate": (
        20,
        {"gateway_webhook_oldest_pending_seconds": "400x30"},
        {"gateway_webhook_oldest_pending_seconds": "3x30"},
    ),
    "GatewayLoopFails": (
        5,
        {'gateway_loop_failed_rounds{loop="x"}': "5x10"},
        {'gateway_loop_failed_rounds{loop="x"}': "4x10"},
    ),
    "GatewayParked": (
        5,
        {'gateway_parked{kind="usage.row"}': "1x10"},
        {'gateway_parked{kind="usage.row"}': "0x10"},
    ),
    "GatewayUsageLost": (
        12,
        {"gateway_usage_dropped_total": "0 0 0 0 0 0 9x20"},
        {"gateway_usage_dropped_total": "9x30"},
    ),
    "GatewayUsageWaits": (
        10,
        {"gateway_usage_stream_bytes": "60e6x20"},
        {"gateway_usage_stream_bytes": "1e6x20"},
    ),
    "GatewayDatabaseWaits": (
        5,
        {'gateway_database_waiting{pool="data"}': "3x10"},
        {'gateway_database_waiting{pool="data"}': "0x10"},
    ),
    "GatewayLoopBlocked": (
        30,
        {LAG % "0.25": "0+50x40", LAG % "1": "0+60x40", LAG % "+Inf": "0+60x40"},
        {LAG % "0.25": "0+60x40", LAG % "1": "0+60x40", LAG % "+Inf": "0+60x40"},
    ),
    "GatewayMemoryGrows": (
        DAY + 120,
        {'gateway_process_memory_bytes{role="worker"}': f"1e9x{DAY} 2e9x200"},
        {'gateway_process_memory_bytes{role="worker"}': f"1e9x{DAY} 1.2e9x200"},
    ),
    "GatewayBoundReached": (
        15,
        {'gateway_bound_reached_total{bound="usage"}': "0+100x20"},
        {'gateway_bound_reached_total{bound="usage"}': "0+1x20"},
    ),
    "GatewayLogLinesLost": (
        15,
        {"gateway_log_lines_dropped_total": "0+1x20"},
        {"gateway_log_lines_dropped_total": "3x20"},
    ),
    "GatewayMigrationsMissing": (
        15,
        {"django_migrations_unapplied_total": "1x20"},
        {"django_migrations_unapplied_total": "0x20"},
    ),
    "GatewayBackupOld": (
        28 * 60,
        {"gateway_backup_last_timestamp_seconds": "0x2000"},
        {"gateway_backup_last_timestamp_seconds": "90000x2000"},
    ),
}


def alerts() -> dict[str, dict[str, Any]]:
    loaded = yaml.safe_load((FOLDER / "rules/alerts.yml").read_text())
    return {rule["alert"]: rule for group in loaded["groups"] for rule in group["rules"]}


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs["promtool"]
def test_prometheus_takes_rules_and_example() -> None:
    run("promtool", "check", "rules", *RULES)
    run("promtool", "check", "config", FOLDER / "prometheus.yml")


@needs["amtool"]
def test_alertmanager_takes_the_example() -> None:
    config = FOLDER / "alertmanager.yml"
    run("amtool", "check-config", config)
    for severity, receiver in (("page", "pager"), ("ticket", "tickets")):
        found = run("amtool", "config", "routes", "test", f"--config.file={config}",
                    f"severity={severity}")  # fmt: skip
        assert found.strip() == receiver


def test_each_alert_has_a_case_a_severity_and_a_page() -> None:
    page = (ROOT / "docs/runbooks.md").read_text()
    assert set(alerts()) == set(CASES)
    for name, rule in alerts().items():
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        # Not the gateway's own address: it may be what is down. The chart puts the installation's.
        url = f"https://runbooks.example/runbooks.md#{name.lower()}"
        assert rule["annotations"]["runbook_url"] == url
        assert f"\n## {name}\n" in page, f"say in docs/runbooks.md what to do about {name}"
    assert set(re.findall(r"^## (Gateway\w+)$", page, re.M)) == set(CASES)


def case(series: Series, minutes: int, alert: str, *, fires: bool) -> dict[str, Any]:
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})',
                "eval_time": f"{minutes}m",
                "exp_samples": [{"labels": "{}", "value": 1}] if fires else [],
            }
        ],
    }


@pytest.mark.slow
@needs["promtool"]
def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    tests = [
        case(series, minutes, alert, fires=fires)
        for alert, (minutes, wrong, right) in CASES.items()
        for series, fires in ((wrong, True), (right, False))
    ]
    file = tmp_path / "tests.yml"
    file.write_text(yaml.safe_dump({"rule_files": [str(path) for path in RULES], "tests": tests}))
    run("promtool", "test", "rules", file)


def test_the_dashboards_are_those_of_the_code() -> None:
    for name, text in dashboards.rendered().items():
        assert (dashboards.FOLDER / name).read_text() == text, "python -m deploy.dashboards"
    assert {path.name for path in dashboards.FOLDER.glob("*.json")} == set(dashboards.rendered())
    for text in dashboards.rendered().values():
        assert json.loads(text)["panels"]


def test_queries_name_only_series_that_exist() -> None:
    from gateway_project.tests.test_metrics import NAMES

    looked_up = set(
        re.findall(r'"(gateway_\w+)"', (ROOT / "gateway_project/system/backlog.py").read_text())
    )
    recorded = {
        rule["record"]
        for group in yaml.safe_load((FOLDER / "rules/recording.yml").read_text())["groups"]
        for rule in group["rules"]
    }
    known = {*NAMES, *looked_up, *recorded}
    texts = [
        query for panels in dashboards.DASHBOARDS.values() for p in panels for query, _ in p.queries
    ]
    texts += [path.read_text().split("annotations")[0] for path in RULES]
    texts += [rule["expr"] for rule in alerts().values()]
    for text in texts:
        for name in re.findall(r"\bgateway[_:][a-z0-9_:]+", text):
            bare = re.sub(r"_(bucket|sum|count)$", "", name)
            assert bare in known or name in known, f"{name} in {text[:80]}"
