"""One finished request: its counters and its line in the log."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from prometheus_client import Counter, Histogram

from gateway_project.core.telemetry.logging import Together
from gateway_project.core.telemetry.metrics import request_duration, requests_total

if TYPE_CHECKING:
    from gateway_project.core.context import RequestContext

request_log = Together("gateway.request")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@lru_cache(maxsize=4096)
def _request_series(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    # `labels()` formats and locks; the series of a route are few, so remember the children.
    return (
        requests_total.labels(method, route, str(status)),
        request_duration.labels(method, route),
    )


def observe(context: RequestContext, *, method: str, status: int, seconds: float) -> None:
    """Count one finished request and write its log line; called in the event loop."""
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
