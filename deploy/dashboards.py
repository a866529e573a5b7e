"""The dashboards under deploy/monitoring/grafana: `python -m deploy.dashboards` writes them.

A panel is a title, a unit and queries with their legends; a test asks each of a real Prometheus
that scraped a real gateway. Import the files in Grafana, or mount them for its provisioning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

FOLDER = Path(__file__).resolve().parent / "monitoring/grafana"
RATE = "$__rate_interval"


class Panel(NamedTuple):
    """`queries`: PromQL and legend. Units are Grafana's (`reqps`, `s`, `percentunit`, `bytes`)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def rate(metric: str, *by: str, where: str = "") -> str:
    return f"sum by ({', '.join(by)}) (rate({metric}{{{where}}}[{RATE}]))"


def quantile(q: float, metric: str, *by: str, where: str = "") -> str:
    labels = ", ".join(("le", *by))
    return f"histogram_quantile({q}, sum by ({labels}) (rate({metric}_bucket{{{where}}}[{RATE}])))"


def share(part: str, whole: str, where: str = "") -> str:
    return f"sum(rate({whole}{{{part}}}[{RATE}])) / sum(rate({whole}{{{where}}}[{RATE}]))"


def upstream(name: str) -> Panel:
    where = f'upstream="{name}"'
    metric = "gateway_upstream_duration_seconds"
    queries = tuple((quantile(q, metric, where=where), f"p{int(q * 100)}") for q in (0.5, 0.95))
    return Panel(f"Time of {name}", "s", queries)


DASHBOARDS: dict[str, tuple[Panel, ...]] = {
    "traffic": (
        Panel("Requests", "reqps", ((rate("gateway_requests_total", "status"), "{{status}}"),)),
        Panel(
            "Requests by endpoint",
            "reqps",
            ((rate("gateway_requests_total", "endpoint"), "{{endpoint}}"),),
        ),
        Panel(
            "Time of a detection",
            "s",
            tuple(
                (
                    quantile(q, "gateway_request_duration_seconds", where='endpoint="/v1/detect"'),
                    f"p{int(q * 100)}",
                )
                for q in (0.5, 0.95, 0.99)
            ),
        ),
        Panel(
            "Time by endpoint (p95)",
            "s",
            ((quantile(0.95, "gateway_request_duration_seconds", "endpoint"), "{{endpoint}}"),),
        ),
        Panel(
            "Refused by limits",
            "reqps",
            ((rate("gateway_rate_limit_exceeded_total", "policy"), "{{policy}}"),),
        ),
        Panel(
            "Faults of ours (objective: 0.1 %)",
            "percentunit",
            (
                ("gateway:slo_errors:ratio_rate5m", "5 m"),
                ("gateway:slo_errors:ratio_rate1h", "1 h"),
            ),
        ),
    ),
    "detection": (
        Panel(
            "Verdicts", "reqps", ((rate("gateway_detections_total", "decision"), "{{decision}}"),)
        ),
        Panel(
            "Verdicts by source",
            "reqps",
            ((rate("gateway_detections_total", "source"), "{{source}}"),),
        ),
        upstream("engine"),
        Panel("Breakers", "short", (("gateway_circuit_breaker_state", "{{service}}"),)),
        Panel(
            "Found in caches",
            "percentunit",
            (
                (
                    f'sum by (cache) (rate(gateway_cache_requests_total{{result="hit"}}[{RATE}]))'
                    f" / sum by (cache) (rate(gateway_cache_requests_total[{RATE}]))",
                    "{{cache}}",
                ),
            ),
        ),
        Panel(
            "Look-ups of keys", "ops", ((rate("gateway_key_cache_total", "result"), "{{result}}"),)
        ),
    ),
    "webhooks": (
        Panel(
            "Attempts", "ops", ((rate("gateway_webhook_attempts_total", "outcome"), "{{outcome}}"),)
        ),
        Panel(
            "Delivered",
            "percentunit",
            ((share('outcome="delivered"', "gateway_webhook_attempts_total"), "delivered"),),
        ),
        Panel(
            "The oldest that is due", "s", (("gateway_webhook_oldest_pending_seconds", "waiting"),)
        ),
        Panel(
            "Messages that wait",
            "short",
            (('gateway_celery_queue_length{queue=~"webhooks|mail"}', "{{queue}}"),),
        ),
    ),
    "jobs": (
        Panel("Jobs that wait", "short", (("gateway_jobs_queued", "jobs"),)),
        Panel("The oldest of them", "s", (("gateway_jobs_oldest_queued_seconds", "waiting"),)),
        Panel("Chunks under way", "short", (("gateway_job_chunks_in_flight", "chunks"),)),
        Panel("Queues", "short", (("gateway_celery_queue_length", "{{queue}}"),)),
        Panel("Tasks", "ops", ((rate("gateway_tasks_total", "outcome"), "{{outcome}}"),)),
        Panel(
            "Time of tasks (p95)",
            "s",
            ((quantile(0.95, "gateway_task_duration_seconds", "task"), "{{task}}"),),
        ),
    ),
    "robin": (
        upstream("robin_client"),
        upstream("robin_service"),
        Panel(
            "Breakers",
            "short",
            (('gateway_circuit_breaker_state{service=~"robin.*"}', "{{service}}"),),
        ),
        Panel("Who watches the queue", "short", (("gateway_live_clients", "sockets"),)),
        Panel(
            "Times that Robin was asked for it",
            "ops",
            ((f"rate(gateway_live_polls_total[{RATE}])", "polls"),),
        ),
        Panel(
            "Calls of Robin UI",
            "reqps",
            (
                (
                    rate("gateway_requests_total", "endpoint", where='endpoint=~"/api/v1/.*"'),
                    "{{endpoint}}",
                ),
            ),
        ),
    ),
    "saturation": (
        Panel(
            "Lag of the event loop",
            "s",
            tuple(
                (quantile(q, "gateway_event_loop_lag_seconds"), f"p{int(q * 100)}")
                for q in (0.5, 0.99)
            ),
        ),
        Panel("Memory", "bytes", (("gateway_process_memory_bytes", "{{role}}"),)),
        Panel(
            "Database connections",
            "short",
            (("gateway_database_connections", "{{pool}} {{state}}"),),
        ),
        Panel("Waiting for one", "short", (("gateway_database_waiting", "{{pool}}"),)),
        Panel(
            "Redis",
            "short",
            (("gateway_redis_waiting_commands", "commands that wait"),),
        ),
        Panel(
            "Processes on the bus, messages of the channel layer",
            "short",
            (
                ("gateway_bus_connected", "processes"),
                ("gateway_channel_layer_waiting_messages", "messages"),
            ),
        ),
        Panel(
            "Usage that waits",
            "bytes",
            (("gateway_usage_buffer_bytes", "processes"), ("gateway_usage_stream_bytes", "Redis")),
        ),
        Panel("Caches", "bytes", (("gateway_cache_bytes", "{{cache}}"),)),
        Panel(
            "Statements (p95)",
            "s",
            ((quantile(0.95, "django_db_query_duration_seconds", "vendor"), "{{vendor}}"),),
        ),
        Panel(
            "Last backup",
            "dateTimeAsIso",
            (("gateway_backup_last_timestamp_seconds * 1000", "made"),),
        ),
    ),
}


def document(name: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    """As Grafana 10 and newer import it; the data source is a variable."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    return {
        "uid": f"gateway-{name}",
        "title": f"Gateway: {name}",
        "tags": ["gateway"],
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {
            "list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
        },
        "panels": [
            {
                "id": n + 1,
                "type": "timeseries",
                "title": panel.title,
                "datasource": source,
                "gridPos": {"h": 8, "w": 12, "x": 12 * (n % 2), "y": 8 * (n // 2)},
                "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
                "targets": [
                    {
                        "refId": chr(ord("A") + i),
                        "expr": query,
                        "legendFormat": legend,
                        "datasource": source,
                    }
                    for i, (query, legend) in enumerate(panel.queries)
                ],
            }
            for n, panel in enumerate(panels)
        ],
    }


def rendered() -> dict[str, str]:
    """File name and content of each dashboard."""
    return {
        f"{name}.json": json.dumps(document(name, panels), indent=2) + "\n"
        for name, panels in DASHBOARDS.items()
    }


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, text in rendered().items():
        (FOLDER / name).write_text(text)
