"""Plots as plain shapes of SVG, which the style sheet colours.

The bars stretch with the page; words stand beside them as text, so that none shrinks. No script is
needed: a bar says what it is by its `<title>`. With `plots.js` the same words stand over the plot.
Bars lead to the rows that they count, where `links` says how.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from html import escape
from typing import Any

from django.utils import timezone
from django.utils.safestring import SafeString, mark_safe
from django.utils.text import slugify
from django.utils.translation import gettext, gettext_noop

from accounts.usage.reports import percentile
from gateway_project.core.clock import utc_text
from gateway_project.core.language import dated, number, numbers
from portal.clocks import shown_twice, zone_name
from portal.exports import Table

WIDTH, HEIGHT = 1000, 100
GAP = 0.8
MARKS = 5
LEGENDS = {
    gettext_noop("Requests"): (
        ("clean", gettext_noop("clean")),
        ("flagged", gettext_noop("flagged")),
        ("errors", gettext_noop("errors")),
    ),
    gettext_noop("Deliveries"): (
        ("clean", gettext_noop("delivered")),
        ("flagged", gettext_noop("on their way")),
        ("errors", gettext_noop("failed")),
    ),
    gettext_noop("Agreement"): (
        ("clean", gettext_noop("alike")),
        ("flagged", gettext_noop("malicious by the shadow alone")),
        ("errors", gettext_noop("malicious by the answer alone")),
    ),
    gettext_noop("Latency p95"): (("latency", gettext_noop("p95 in ms")),),
    gettext_noop("Items in the queue"): (
        ("clean", gettext_noop("waiting")),
        ("errors", gettext_noop("dead")),
    ),
    gettext_noop("Mails in"): (("clean", gettext_noop("accepted")),),
    gettext_noop("Mails out"): (
        ("clean", gettext_noop("delivered")),
        ("errors", gettext_noop("given up")),
    ),
    gettext_noop("Bounce share"): (("errors", gettext_noop("given up, of what left")),),
    gettext_noop("Age of the oldest"): (("latency", gettext_noop("minutes")),),
}
"""By the name of a plot, in English as the file of it has both."""
STEPS = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": timedelta(days=1)}
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
    slug: str = ""
    columns_of_file: Sequence[str] = ()
    times_of_file: Sequence[datetime] = ()
    values_of_file: Sequence[Sequence[float]] = ()
    width: int = WIDTH
    height: int = HEIGHT

    @property
    def shapes(self) -> SafeString:
        """The columns as SVG. Not by a template: a week's hours took it a tenth of a second."""
        return mark_safe("".join(map(self._shape, self.columns)))  # noqa: S308 - titles and links are escaped

    def _shape(self, column: Column) -> str:
        across = f'x="{column.x}" width="{column.width}"'
        link = f' data-url="{escape(column.url)}"' if column.url else ""
        pieces = (
            f'<rect class="{piece.kind}" {across} y="{piece.y}" height="{piece.height}"/>'
            for piece in column.pieces
        )
        hit = f'<rect class="hit" {across} y="0" height="{self.height}"/>'
        return f"<g{link}><title>{escape(column.title)}</title>{''.join(pieces)}{hit}</g>"

    @property
    def is_empty(self) -> bool:
        return not any(column.pieces for column in self.columns)

    def as_table(self) -> Table:
        """A row for each column of the plot: when it begins, and the values it shows."""
        return Table(self.columns_of_file, self.rows_of_file)

    @property
    def rows_of_file(self) -> Iterator[tuple[Any, ...]]:
        for at, values in zip(self.times_of_file, self.values_of_file, strict=True):
            yield utc_text(at), *(round(value, 2) for value in values)


def files(*drawn: Plot) -> dict[str, Callable[[], Table]]:
    """As `portal.exports.page` takes them."""
    return {plot.slug: plot.as_table for plot in drawn}


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
    marks: Sequence[str] = (),
) -> Plot:
    """Clean, flagged and failed requests, one on the other. `marks`: of the times, if written."""
    rows, write = [], numbers()
    sentence = gettext("%(at)s: %(requests)s requests, %(flagged)s flagged, %(errors)s errors")
    for at, mark in zip(times, marks or marked(times, period), strict=True):
        sums = series.get(at, {"requests": 0, "flagged": 0, "errors": 0})
        clean = max(0, sums["requests"] - sums["flagged"] - sums["errors"])
        title = sentence % {
            "at": mark,
            **{name: write(sums[name], ",") for name in ("requests", "flagged", "errors")},
        }
        rows.append(
            (title, (("clean", clean), ("flagged", sums["flagged"]), ("errors", sums["errors"])))
        )
    return _plot("Requests", times, rows, period, "", link)


def latency_plot(
    times: Sequence[datetime],
    series: Mapping[datetime, Any],
    period: str,
    link: Link | None = None,
    marks: Sequence[str] = (),
) -> Plot:
    """The 95th percentile of each bucket, in ms. `marks`: of the times, if written."""
    rows, write, nothing = [], numbers(), gettext("no requests")
    for at, mark in zip(times, marks or marked(times, period), strict=True):
        value = percentile(series[at]["latency"], 0.95) if at in series else None
        caption = nothing if value is None else f"p95 {write(value, ',.1f')} ms"
        rows.append((f"{mark}: {caption}", (("latency", value or 0),)))
    return _plot("Latency p95", times, rows, period, " ms", link)


def deliveries_plot(
    times: Sequence[datetime],
    series: Mapping[datetime, Mapping[str, int]],
    period: str,
    link: Link | None = None,
) -> Plot:
    """How the events of each bucket fared with one webhook."""
    rows = []
    for at, mark in zip(times, marked(times, period), strict=True):
        counts = series.get(at, {})
        delivered, pending, failed = (
            counts.get(status, 0) for status in ("delivered", "pending", "failed")
        )
        title = gettext(
            "%(at)s: %(delivered)s delivered, %(pending)s on their way, %(failed)s failed"
        ) % {
            "at": mark,
            "delivered": number(delivered),
            "pending": number(pending),
            "failed": number(failed),
        }
        rows.append((title, (("clean", delivered), ("flagged", pending), ("errors", failed))))
    return _plot("Deliveries", times, rows, period, "", link)


def comparison_plot(
    times: Sequence[datetime], series: Mapping[datetime, Mapping[str, int]], engine: str
) -> Plot:
    """How a shadow engine judged the texts of each day, beside the answers."""
    rows = []
    for at, mark in zip(times, marked(times, "day"), strict=True):
        counts = series.get(at, {})
        agreed, own, shadow = (
            counts.get(name, 0) for name in ("agreed", "only_own", "only_shadow")
        )
        title = gettext(
            "%(at)s: %(agreed)s judged alike, %(shadow)s malicious by %(engine)s alone, %(own)s by "
            "the answer alone"
        ) % {
            "at": mark,
            "agreed": number(agreed),
            "shadow": number(shadow),
            "engine": engine,
            "own": number(own),
        }
        rows.append((title, (("clean", agreed), ("flagged", shadow), ("errors", own))))
    return replace(_plot("Agreement", times, rows, "day", ""), slug=f"agreement-{slugify(engine)}")


def figures_plot(
    label: str,
    times: Sequence[datetime],
    series: Mapping[datetime, Sequence[float]],
    period: str,
    *,
    unit: str = "",
) -> Plot:
    """Figures of each bucket, one on the other, in the order of the label's legend."""
    kinds = LEGENDS[label]
    rows = []
    for at, mark in zip(times, marked(times, period), strict=True):
        values = series.get(at)
        parts = list(zip(kinds, values or [0.0] * len(kinds), strict=True))
        caption = gettext("not known")
        if values is not None:
            names = [gettext(name) for _, name in kinds]
            caption = ", ".join(
                f"{number(value, ',.4g')}{unit} {word}"
                for word, (_, value) in zip(names, parts, strict=True)
            )
        title = f"{mark}: {caption}"
        rows.append((title, tuple((kind, value) for (kind, _), value in parts)))
    return _plot(label, times, rows, period, unit)


def marked(times: Sequence[datetime], period: str) -> list[str]:
    """`29 Nov 12:00 UTC` in the page's zone; a day is UTC's, wherever the reader is."""
    there, name = _there(times, period), zone_name()
    if period == "day":
        return [f"{_label(at, period)} (UTC)" for at in there]
    return [f"{_label(at, period)} {shown_twice(at) or name}" for at in there]


def _there(times: Sequence[datetime], period: str) -> list[datetime]:
    zone = UTC if period == "day" else timezone.get_current_timezone()
    return [at.astimezone(zone) for at in times]


def _label(there: datetime, period: str) -> str:
    if period == "minute":
        return f"{there:%H:%M}"
    return dated(there, "day" if period == "day" else "minute")


def _plot(
    label: str,
    times: Sequence[datetime],
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]],
    period: str,
    unit: str,
    link: Link | None = None,
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
        at = times[index]
        url = link(at, at + STEPS[period]) if link is not None and pieces else ""
        columns.append(Column(round(index * step, 2), round(step * 0.82, 2), title, pieces, url))
    levels = [
        Tick(
            round((1 - share) * HEIGHT, 2),
            f"{number(top * share, ',.4g' if top * share < 1000 else ',.0f')}{unit}",
        )
        for share in (1, 0.5, 0)
    ]
    last = len(times) - 1
    shown = times if last < MARKS else [times[round(last * n / (MARKS - 1))] for n in range(MARKS)]
    marks = [_label(at, period) for at in _there(shown, period)]
    legend = LEGENDS[label]
    return Plot(
        gettext(label),
        columns,
        levels,
        marks,
        [(kind, gettext(name)) for kind, name in legend],
        "UTC" if period == "day" else zone_name(),
        slug=slugify(label),
        columns_of_file=("from", *(name for _, name in legend)),
        times_of_file=times,
        values_of_file=[[value for _, value in parts] for _, parts in rows],
    )


def _round_up(value: float, factors: Sequence[int]) -> float:
    """The next of 1, 2, 5, 10, 20 … (or of other `factors`) that holds `value`."""
    size = 1.0
    while True:
        for factor in factors:
            if value <= factor * size:
                return factor * size
        size *= 10
