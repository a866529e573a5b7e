"""What a page shows of a stretch of usage: sums and plots, from the roll-ups alone."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from accounts.usage import reports
from gateway_project.core import clock
from portal import plots


def since(subject: UUID, first: datetime, period: str) -> dict[str, Any]:
    """`{since, requests, flagged, errors, p95_ms, plots}` from the bucket at `first` until now.

    `p95_ms` is None without requests. One query.
    """
    rows = reports.timeline(subject, first, period)
    series = {row["at"]: row for row in rows}
    times = plots.buckets(first, clock.now(), period)
    total = Counter[str]()
    for row in rows:
        total.update({name: row[name] for name in ("requests", "flagged", "errors")})
    latency = [sum(counts) for counts in zip(*(row["latency"] for row in rows), strict=True)]
    return {
        "since": first,
        "requests": total["requests"],
        "flagged": total["flagged"],
        "errors": total["errors"],
        "p95_ms": reports.percentile(latency, 0.95) if latency else None,
        "plots": [
            plots.requests_plot(times, series, period),
            plots.latency_plot(times, series, period),
        ],
    }


def recent(subject: UUID, length: timedelta, period: str) -> dict[str, Any]:
    """`since`, of the stretch of `length` that ends now."""
    return since(subject, reports.floor(clock.now() - length, period), period)
