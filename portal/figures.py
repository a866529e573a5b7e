"""What a page shows of a stretch of usage: sums and plots, from the roll-ups alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from urllib.parse import quote
from uuid import UUID

from accounts.usage import reports
from gateway_project.core import clock
from portal import plots
from portal.clocks import in_query


def since(
    subject: UUID, first: datetime, period: str, *, log: str = "", before: datetime | None = None
) -> dict[str, Any]:
    """`{since, requests, flagged, refused, failed, errors, p95_ms, plots, before}` of the buckets
    from `first` until now.

    `p95_ms` is None without requests. `before` has the same sums of the buckets from `before` to
    `first`. `log` is the address of the request log, filtered to the subject, that the figures
    lead to. One query, and one for `before`.
    """
    now = reports.timeline(subject, first, period)
    times = plots.buckets(first, clock.now(), period)
    series = {row["at"]: row for row in now}

    # Once for two plots: a week has 168 hours.
    marks = plots.marked(times, period)
    links = _links(log, times, plots.STEPS[period]) if log else {}

    def link(begin: datetime, _: datetime) -> str:
        return links[begin]

    return {
        "since": first,
        **_sums(now),
        "plots": [
            plots.requests_plot(times, series, period, link if log else None, marks),
            plots.latency_plot(times, series, period, link if log else None, marks),
        ],
        "before": _sums(reports.total(subject, before, first, period) if before else []),
        "log": f"{_begun(log)}since={quote(in_query(first), '')}" if log else "",
    }


def _sums(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    total = Counter[str]()
    for row in rows:
        total.update({name: row[name] for name in ("requests", "flagged", "errors", "failed")})
    latency = [sum(counts) for counts in zip(*(row["latency"] for row in rows), strict=True)]
    return {
        **{name: total[name] for name in ("requests", "flagged", "errors", "failed")},
        "refused": total["errors"] - total["failed"],
        "p95_ms": reports.percentile(latency, 0.95) if latency else None,
    }


def _links(log: str, times: Sequence[datetime], step: timedelta) -> dict[datetime, str]:
    """The log of each bucket: one ends where the next begins."""
    begun, ends = _begun(log), [quote(in_query(at), "") for at in (*times, times[-1] + step)]
    pairs = zip(times, pairwise(ends), strict=True)
    return {at: f"{begun}since={begin}&until={end}" for at, (begin, end) in pairs}


def _begun(log: str) -> str:
    return f"{log}{'&' if '?' in log else '?'}"


def recent(subject: UUID, length: timedelta, period: str, *, log: str = "") -> dict[str, Any]:
    """`since`, of the stretch of `length` that ends now, and of the one before it."""
    now = clock.now()
    first = reports.floor(now - length, period)
    return since(subject, first, period, log=log, before=first - length)
