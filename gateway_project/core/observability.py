"""What an operator sees of this process: metrics and log lines.

Prometheus runs in multiprocess mode whenever `PROMETHEUS_MULTIPROC_DIR` is set (`serve` and `run`
set it for their web processes), so `/metrics` adds up all processes that share the folder
(core/multiprocess.py). Labels are route templates, methods, statuses, upstreams and tasks; never
ids, addresses or raw paths.
"""

from __future__ import annotations

import logging
import os
import sys
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import orjson
import structlog
from prometheus_client import Counter, Gauge, Histogram

from gateway_project.core import multiprocess

if TYPE_CHECKING:
    from structlog.typing import EventDict, WrappedLogger

    from gateway_project.core.middleware import RequestContext

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
policy_matches = Counter(
    "gateway_policy_matches_total", "Texts that stand on a list of their key's policy.", ["list"]
)
key_cache_total = Counter(
    "gateway_key_cache_total", "Look-ups in the cache of verified keys.", ["result"]
)
cache_requests = Counter(
    "gateway_cache_requests_total", "Look-ups in a cache of answers.", ["cache", "result"]
)
usage_dropped = Counter(
    "gateway_usage_dropped_total", "Usage rows lost: no room, refused, or no store at the stop."
)
usage_written = Counter("gateway_usage_written_total", "Usage rows written to the log.")
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
    "Deliveries tried: delivered, failed (another status), timeout, error or refused.",
    ["outcome"],
)
webhook_oldest_pending = Gauge(
    "gateway_webhook_oldest_pending_seconds",
    "How long the oldest event or delivery that is due has been waiting.",
    multiprocess_mode="mostrecent",
)


@lru_cache(maxsize=4096)
def _request_series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    # `labels()` formats and locks; the series of a route are few, so remember the children.
    return (
        requests_total.labels(method, route, str(status)),
        request_duration.labels(method, route),
    )


METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def observe(context: RequestContext, *, method: str, status: int, seconds: float) -> None:
    """Count one finished request and write its log line."""
    if method not in METHODS:
        method = "OTHER"
    counter, histogram = _request_series(method, context.route, status)
    counter.inc()
    histogram.observe(seconds)
    request_log.info(
        "request",
        request_id=context.request_id,
        correlation_id=context.correlation_id,
        method=method,
        route=context.route,
        status=status,
        duration_ms=round(seconds * 1000, 2),
        workspace=context.workspace,
        key_prefix=context.key_prefix,
        upstream_ms=round(context.upstream_seconds * 1000, 2),
    )


def configure_logging(*, level: str, format: str) -> None:  # noqa: A002 - the setting's name
    """Send structlog and the standard library's loggers to standard output, one line an event.

    `format` is "json" (one object a line) or "console" (for people).
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: Any = (
        structlog.processors.JSONRenderer(serializer=_dumps)
        if format == "json"
        else _console_renderer()
    )
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, renderer]
        if format == "json"
        else [*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=(
            structlog.BytesLoggerFactory(cast(BinaryIO, _StandardOutput()))
            if format == "json"
            else structlog.PrintLoggerFactory()
        ),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _add_component],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer() if format == "json" else _console_renderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # One "request" event of ours says all that these do, with a request id and without the path.
    for noisy in ("uvicorn.access", "httpx", "aiohttp.access"):
        logging.getLogger(noisy).setLevel("CRITICAL")
    # Three lines a second for tasks that ended well, one with what the task returned;
    # `gateway_tasks_total` counts them.
    for noisy in ("celery.beat", "celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel("WARNING")
    for refusals in ("django.request", "django.security.csrf"):
        logging.getLogger(refusals).setLevel("ERROR")
    # The server brings handlers of its own, which do not write JSON.
    for name in ("uvicorn", "uvicorn.error"):
        server = logging.getLogger(name)
        server.handlers.clear()
        server.propagate = True


def _console_renderer() -> Any:
    # Plain on purpose: rich tracebacks print local variables, and those hold keys and texts.
    return structlog.dev.ConsoleRenderer(
        colors=sys.stdout.isatty(), exception_formatter=structlog.dev.plain_traceback
    )


def _add_component(logger: Any, name: str, event: EventDict) -> EventDict:
    # What a library says has the fields of what we say.
    event["component"] = event["_record"].name
    return event


class _StandardOutput:
    """Today's `sys.stdout`, not the one of import time: what redirects it sees the log too."""

    def write(self, line: bytes) -> int:
        return sys.stdout.buffer.write(line)

    def flush(self) -> None:
        sys.stdout.buffer.flush()


def _dumps(event: EventDict, **_: Any) -> bytes:
    return orjson.dumps(event, default=str)


def get_logger(name: str) -> Any:
    """A structlog logger whose events carry `component=name`."""
    return structlog.get_logger(component=name)


request_log: WrappedLogger = get_logger("gateway.request")
