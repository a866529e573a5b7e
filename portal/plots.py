"""Plots as plain shapes: the template draws them as SVG, the style sheet colours them.

No script is needed: a bar says what it is by its `<title>`, and lights up under the pointer. With
`plots.js` the same words stand under the plot.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from accounts.usage.reports import percentile

WIDTH, HEIGHT = 720, 180
LEFT, BOTTOM, TOP = 48, 22, 10
LEGENDS = {
    "Requests": (("clean", "clean"), ("flagged", "flagged"), ("errors", "errors")),
    "Deliveries": (("clean", "delivered"), ("flagged", "on their way"), ("errors", "given up")),
    "Latency p95": (("latency", "p95 in ms"),),
}
STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
LABELS = {"minute": "%H:%M", "hour": "%d %b %H:%M", "day": "%d %b"}


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


@dataclass(frozen=True, slots=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    label: str
    columns: Sequence[Column]
    levels: Sequence[Tick]
    times: Sequence[Tick]
    legend: Sequence[tuple[str, str]]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    foot: int = HEIGHT - 6


def buckets(since: datetime, until: datetime, period: str) -> list[datetime]:
    """The beginnings of all buckets of [since, until], also of those without requests."""
    step, at = STEPS[period], since.astimezone(UTC)
    found = []
    while at <= until:
        found.append(at)
        at += step
    return found


def requests_plot(times: Sequence[datetime], series: Mapping[datetime, Any], period: str) -> Plot:
    """Clean, flagged and failed requests, one on the other."""
    rows = []
    for at in times:
        sums = series.get(at, {"requests": 0, "flagged": 0, "errors": 0})
        clean = max(0, sums["requests"] - sums["flagged"] - sums["errors"])
        title = (
            f"{at:{LABELS[period]}} UTC: {sums['requests']:,} requests, "
            f"{sums['flagged']:,} flagged, {sums['errors']:,} errors"
        )
        rows.append(
            (title, (("clean", clean), ("flagged", sums["flagged"]), ("errors", sums["errors"])))
        )
    return _plot("Requests", times, rows, period, "")


def latency_plot(times: Sequence[datetime], series: Mapping[datetime, Any], period: str) -> Plot:
    """The 95th percentile of each bucket, in ms."""
    rows = []
    for at in times:
        value = percentile(series[at]["latency"], 0.95) if at in series else None
        label = "no requests" if value is None else f"p95 {value:,.1f} ms"
        rows.append((f"{at:{LABELS[period]}} UTC: {label}", (("latency", value or 0),)))
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
            f"{at:{LABELS[period]}} UTC: {delivered:,} delivered, {pending:,} on their way, "
            f"{failed:,} given up"
        )
        rows.append((title, (("clean", delivered), ("flagged", pending), ("errors", failed))))
    return _plot("Deliveries", times, rows, period, "")


def _plot(
    label: str,
    times: Sequence[datetime],
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    period: str,
    unit: str,
) -> Plot:
    top = _round_up(max((sum(v for _, v in parts) for _, parts in rows), default=0))
    workspace_page, ground = HEIGHT - BOTTOM - TOP, HEIGHT - BOTTOM
    step = (WIDTH - LEFT) / max(1, len(times))
    columns = []
    for index, (title, parts) in enumerate(rows):
        pieces, y = [], float(ground)
        for kind, value in parts:
            height = value / top * workspace_page
            y -= height
            if height:
                pieces.append(Piece(kind, round(y, 2), round(height, 2)))
        columns.append(Column(round(LEFT + index * step, 2), round(step * 0.82, 2), title, pieces))
    levels = [
        Tick(
            round(ground - share * workspace_page, 2),
            f"{top * share:,.4g}{unit}" if top * share < 1000 else f"{top * share:,.0f}{unit}",
        )
        for share in (0, 0.5, 1)
    ]
    every = max(1, len(times) // 4)
    marks = [
        Tick(round(LEFT + index * step, 2), f"{times[index]:{LABELS[period]}}")
        for index in range(0, len(times), every)
        if index + every / 2 <= len(times)
    ]
    return Plot(label, columns, levels, marks, LEGENDS[label])


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20 … that holds `value`."""
    size = 1.0
    while True:
        for factor in (1, 2, 5):
            if value <= factor * size:
                return factor * size
        size *= 10
