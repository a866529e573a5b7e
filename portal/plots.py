"""Plots as plain shapes: the template draws them as SVG, the style sheet colours them.

The bars stretch with the page; words stand beside them as text, so that none shrinks. No script is
needed: a bar says what it is by its `<title>`. With `plots.js` the same words stand over the plot.
Bars lead to the rows that they count, where `links` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone

from accounts.usage.reports import percentile
from portal.clocks import zone_name

WIDTH, HEIGHT = 1000, 100
GAP = 0.8
MARKS = 5
LEGENDS = {
    "Requests": (("clean", "clean"), ("flagged", "flagged"), ("errors", "errors")),
    "Deliveries": (("clean", "delivered"), ("flagged", "on their way"), ("errors", "failed")),
    "Agreement": (
        ("clean", "alike"),
        ("flagged", "malicious by the shadow alone"),
        ("errors", "malicious by the answer alone"),
    ),
    "Latency p95": (("latency", "p95 in ms"),),
}
STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
LABELS = {"minute": "%H:%M", "hour": "%d %b %H:%M", "day": "%d %b"}
Link = Callable[[datetime, datetime], str]
"""The address of what happened in [first, second)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One rectangle; `kind` is its class in the style sheet."""

    kind: str
    y: float
    height: float


@dataclass(frozen=True, slots=True)
class Column:
    x: float
    width: float
    title: str
    pieces: Sequence[Piece]
    url: str = ""


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """`levels` from the top down; `times` from the left, evenly spread."""

    label: str
    columns: Sequence[Column]
    levels: Sequence[Tick]
    times: Sequence[str]
    legend: Sequence[tuple[str, str]]
    zone: str
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def is_empty(self) -> bool:
        return not any(column.pieces for column in self.columns)


def buckets(since: datetime, until: datetime, period: str) -> list[datetime]:
    """The beginnings of all buckets of [since, until], also of those without requests."""
    step, at = STEPS[period], since.astimezone(UTC)
    found = []
    while at <= until:
        found.append(at)
        at += step
    return found


def requests_plot(
    times: Sequence[datetime],
    series: Mapping[datetime, Any],
    period: str,
    link: Link | None = None,
) -> Plot:
    """Clean, flagged and failed requests, one on the other."""
    rows = []
    for at in times:
        sums = series.get(at, {"requests": 0, "flagged": 0, "errors": 0})
        clean = max(0, sums["requests"] - sums["flagged"] - sums["errors"])
        title = (
            f"{marked(at, period)}: {sums['requests']:,} requests, "
            f"{sums['flagged']:,} flagged, {sums['errors']:,} errors"
        )
        rows.append(
            (title, (("clean", clean), ("flagged", sums["flagged"]), ("errors", sums["errors"])))
        )
    plot = _plot("Requests", times, rows, period, "")
    if link is None:
        return plot
    step = STEPS[period]
    leading = [
        replace(column, url=link(at, at + step)) if column.pieces else column
        for at, column in zip(times, plot.columns, strict=True)
    ]
    return replace(plot, columns=leading)


def latency_plot(times: Sequence[datetime], series: Mapping[datetime, Any], period: str) -> Plot:
    """The 95th percentile of each bucket, in ms."""
    rows = []
    for at in times:
        value = percentile(series[at]["latency"], 0.95) if at in series else None
        label = "no requests" if value is None else f"p95 {value:,.1f} ms"
        rows.append((f"{marked(at, period)}: {label}", (("latency", value or 0),)))
    return _plot("Latency p95", times, rows, period, " ms")


def deliveries_plot(
    times: Sequence[datetime], series: Mapping[datetime, Mapping[str, int]], period: str
) -> Plot:
    """How the events of each bucket fared with one webhook."""
    rows = []
    for at in times:
        counts = series.get(at, {})
        delivered, pending, failed = (
            counts.get(status, 0) for status in ("delivered", "pending", "failed")
        )
        title = (
            f"{marked(at, period)}: {delivered:,} delivered, {pending:,} on their way, "
            f"{failed:,} failed"
        )
        rows.append((title, (("clean", delivered), ("flagged", pending), ("errors", failed))))
    return _plot("Deliveries", times, rows, period, "")


def comparison_plot(
    times: Sequence[datetime], series: Mapping[datetime, Mapping[str, int]], engine: str
) -> Plot:
    """How a shadow engine judged the texts of each day, beside the answers."""
    rows = []
    for at in times:
        counts = series.get(at, {})
        agreed, own, shadow = (
            counts.get(name, 0) for name in ("agreed", "only_own", "only_shadow")
        )
        title = (
            f"{marked(at, 'day')}: {agreed:,} judged alike, {shadow:,} malicious by {engine} "
            f"alone, {own:,} by the answer alone"
        )
        rows.append((title, (("clean", agreed), ("flagged", shadow), ("errors", own))))
    return _plot("Agreement", times, rows, "day", "")


def marked(at: datetime, period: str) -> str:
    """`29 Nov 12:00 UTC` in the page's zone; a day is UTC's, wherever the reader is."""
    if period == "day":
        return f"{at.astimezone(UTC):{LABELS['day']}} (UTC)"
    return f"{timezone.localtime(at):{LABELS[period]}} {zone_name()}"


def _label(at: datetime, period: str) -> str:
    here = at.astimezone(UTC) if period == "day" else timezone.localtime(at)
    return f"{here:{LABELS[period]}}"


def _plot(
    label: str,
    times: Sequence[datetime],
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    period: str,
    unit: str,
) -> Plot:
    # Of counts also the half of the scale is a whole number.
    factors = (1, 2, 5) if unit else (2, 4, 10)
    top = _round_up(max((sum(v for _, v in parts) for _, parts in rows), default=0), factors)
    step = WIDTH / max(1, len(times))
    columns = []
    for index, (title, parts) in enumerate(rows):
        pieces, y = [], float(HEIGHT)
        for kind, value in parts:
            height = value / top * HEIGHT
            y -= height
            if height:
                # A gap keeps neighbours apart where their colours do not.
                pieces.append(Piece(kind, round(y, 2), round(max(height - GAP, 0.6), 2)))
        columns.append(Column(round(index * step, 2), round(step * 0.82, 2), title, pieces))
    levels = [
        Tick(
            round((1 - share) * HEIGHT, 2),
            f"{top * share:,.4g}{unit}" if top * share < 1000 else f"{top * share:,.0f}{unit}",
        )
        for share in (1, 0.5, 0)
    ]
    last = len(times) - 1
    marks = [_label(times[round(last * n / (MARKS - 1))], period) for n in range(MARKS)]
    if last < MARKS:
        marks = [_label(at, period) for at in times]
    zone = "UTC" if period == "day" else zone_name()
    return Plot(label, columns, levels, marks, LEGENDS[label], zone)


def _round_up(value: float, factors: Sequence[int]) -> float:
    """The next of 1, 2, 5, 10, 20 … (or of other `factors`) that holds `value`."""
    size = 1.0
    while True:
        for factor in factors:
            if value <= factor * size:
                return factor * size
        size *= 10
