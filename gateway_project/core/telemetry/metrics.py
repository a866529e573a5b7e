"""Every Prometheus series of the gateway.

Prometheus runs in multiprocess mode whenever `PROMETHEUS_MULTIPROC_DIR` is set (`serve` and `run`
set it for their web processes), so `/metrics` adds up all processes that share the folder
(core/telemetry/multiprocess.py). Labels are route templates, methods, statuses, upstreams and
tasks; never ids, addresses or raw paths.
"""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import Counter, Gauge, Histogram

from gateway_project.core.telemetry import multiprocess
from gateway_project.core.telemetry.logging import StandardOutput

# Before the first metric: each opens its file as it is declared.
if _folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
    multiprocess.join(Path(_folder))

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

requests_total = Counter(
    "gateway_requests_total", "Requests answered.", ["method", "endpoint", "status"]
)
request_duration = Histogram(
    "gateway_request_duration_seconds",
    "Time from the first byte read to the last byte sent.",
    ["method", "endpoint"],
    buckets=SECONDS,
)
breaker_state = Gauge(
    "gateway_circuit_breaker_state",
    "0 closed, 1 half-open, 2 open; the worst of all processes.",
    ["service"],
    multiprocess_mode="livemax",
)
rate_limit_exceeded = Counter(
    "gateway_rate_limit_exceeded_total", "Requests refused by a limit.", ["policy"]
)
bound_reached = Counter(
    "gateway_bound_reached_total",
    "Times that something was refused or dropped because a bound was reached.",
    ["bound"],
)
rate_limit_degraded = Counter(
    "gateway_ratelimit_degraded_total",
    "Limit decisions taken without Redis, by the failure policy.",
    ["policy"],
)
upstream_duration = Histogram(
    "gateway_upstream_duration_seconds",
    "Time an upstream took to answer or fail.",
    ["upstream"],
    buckets=SECONDS,
)
detections_total = Counter("gateway_detections_total", "Verdicts given.", ["source", "decision"])
engine_tokens = Counter(
    "gateway_engine_tokens_total",
    "Tokens that an engine of a language model says it read (in) and wrote (out).",
    ["engine", "direction"],
)
shadow_total = Counter(
    "gateway_shadow_total",
    "Texts for a shadow engine: agreed or disagreed with the answer, failed, or skipped because "
    "there was enough to do.",
    ["engine", "outcome"],
)
policy_matches = Counter(
    "gateway_policy_matches_total", "Texts that stand on a list of their key's policy.", ["list"]
)
key_cache_total = Counter(
    "gateway_key_cache_total", "Look-ups in the cache of verified keys.", ["result"]
)
cache_bytes = Gauge(
    "gateway_cache_bytes",
    "About what a cache in memory holds, of all processes.",
    ["cache"],
    multiprocess_mode="livesum",
)
cache_requests = Counter(
    "gateway_cache_requests_total", "Look-ups in a cache of answers.", ["cache", "result"]
)
usage_dropped = Counter(
    "gateway_usage_dropped_total", "Usage rows lost: no room, or no store at the stop."
)
parked_total = Counter(
    "gateway_parked_total", "What a store refused and was put aside, by what it is.", ["kind"]
)
usage_texts_dropped = Counter(
    "gateway_usage_texts_dropped_total",
    "Texts to be stored that were left out because the buffer was full; their rows were not.",
)
usage_buffered = Gauge(
    "gateway_usage_buffer_bytes",
    "About the bytes of usage rows that wait in the web processes.",
    multiprocess_mode="livesum",
)
usage_written = Counter("gateway_usage_written_total", "Usage rows written to the log.")
log_lines_dropped = Counter(
    "gateway_log_lines_dropped_total",
    "Lines of the log that could not be written: disk full, or nobody reads the pipe.",
)
StandardOutput.when_dropped = log_lines_dropped.inc
loop_lag = Histogram(
    "gateway_event_loop_lag_seconds",
    "How late a timer of the event loop was, each second: what blocked it.",
    buckets=SECONDS,
)
process_memory = Gauge(
    "gateway_process_memory_bytes",
    "Memory (RSS) of all processes, by role: web, worker (with its children), beat. What forked "
    "processes share is counted in each.",
    ["role"],
    multiprocess_mode="livesum",
)
database_connections = Gauge(
    "gateway_database_connections",
    "Connections of all web processes' pools, by pool and whether in use.",
    ["pool", "state"],
    multiprocess_mode="livesum",
)
database_waiting = Gauge(
    "gateway_database_waiting",
    "Who waits for a connection of a pool.",
    ["pool"],
    multiprocess_mode="livesum",
)
redis_waiting = Gauge(
    "gateway_redis_waiting_commands",
    "Commands that wait for Redis, sent or not yet.",
    multiprocess_mode="livesum",
)
redis_waiting_bytes = Gauge(
    "gateway_redis_waiting_bytes",
    "Bytes of those that are not sent yet.",
    multiprocess_mode="livesum",
)
bus_connected = Gauge(
    "gateway_bus_connected",
    "Web processes that hear of revoked and changed keys at once.",
    multiprocess_mode="livesum",
)
channel_layer_waiting = Gauge(
    "gateway_channel_layer_waiting_messages",
    "Messages for the live queue that came and were not sent on yet.",
    multiprocess_mode="livesum",
)
live_clients = Gauge("gateway_live_clients", "Clients of /ws/queue.", multiprocess_mode="livesum")
live_polls = Counter("gateway_live_polls_total", "Times that Robin was asked for the live queue.")
tasks_total = Counter(
    "gateway_tasks_total",
    "Runs of tasks that ended: success, failure, retry, ignored or rejected.",
    ["task", "outcome"],
)
task_duration = Histogram(
    "gateway_task_duration_seconds", "Time a run of a task took.", ["task"], buckets=SECONDS
)
webhook_attempts = Counter(
    "gateway_webhook_attempts_total",
    "Deliveries tried: delivered, failed (another status), timeout, error, refused or deferred "
    "(trouble of our own).",
    ["outcome"],
)
webhook_oldest_pending = Gauge(
    "gateway_webhook_oldest_pending_seconds",
    "How long the oldest event or delivery that is due has been waiting.",
    multiprocess_mode="mostrecent",
)
