"""How the installation's parts did: samples by the minute, kept as sums of each day."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import NamedTuple

from django.db.models import F
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from gateway_project.core import clock
from portal.models import ComponentDay

DAYS = 90
KEPT = timedelta(days=400)
APART = timedelta(seconds=30)
"""Samples nearer than that are one: two schedulers, or a task that was sent twice."""
FRESH = timedelta(minutes=5)
State = ComponentDay.State
TITLES = {
    "api": _("Detection API"),
    "engine": _("Detection engine"),
    "batches": _("Batches"),
    "webhooks": _("Webhooks"),
    "mail": _("Mail server"),
}
MEANINGS = {
    "engine": _("While it is away the embedded detector answers, and says so."),
    "batches": _("Degraded: the oldest has been waiting for more than five minutes."),
    "webhooks": _("Degraded: the oldest delivery is more than five minutes late."),
}


class Day(NamedTuple):
    """`state` is the worst that was more than a moment; empty where nothing was measured."""

    day: date
    state: str
    description: str


class Component(NamedTuple):
    """`state` is empty when nobody looked lately. `available` is a share of 100; None: unknown."""

    name: str
    title: str
    meaning: str
    state: str
    available: float | None
    days: list[Day]


def record(states: Mapping[str, str]) -> int:
    """Add one sample for each component; returns of how many."""
    now = clock.now()
    added = 0
    for component, state in states.items():
        row, made = ComponentDay.objects.get_or_create(
            component=component,
            day=now.date(),
            defaults={"state": state, "sampled_at": now, str(state): 1},
        )
        if made:
            added += 1
            if added == 1:  # once a day, by whoever begins it
                ComponentDay.objects.filter(day__lt=now.date() - KEPT).delete()
            continue
        fresh = ComponentDay.objects.filter(pk=row.pk, sampled_at__lte=now - APART)
        added += fresh.update(state=state, sampled_at=now, **{str(state): F(str(state)) + 1})
    return added


def components() -> list[Component]:
    """Each part that was ever looked at in the last `DAYS` days, in the order of `TITLES`."""
    today = clock.now().date()
    first = today - timedelta(days=DAYS - 1)
    found: dict[str, dict[date, ComponentDay]] = {}
    for row in ComponentDay.objects.filter(day__gte=first).order_by("day"):
        found.setdefault(row.component, {})[row.day] = row
    return [
        _component(name, found[name], first)
        for name in [*TITLES, *sorted(set(found) - set(TITLES))]
        if name in found
    ]


def _component(name: str, rows: Mapping[date, ComponentDay], first: date) -> Component:
    down = sum(row.down for row in rows.values())
    total = sum(row.up + row.degraded + row.down for row in rows.values())
    latest = rows[max(rows)]
    is_fresh = latest.sampled_at >= clock.now() - FRESH
    return Component(
        name,
        str(TITLES.get(name, name)),
        str(MEANINGS.get(name, "")),
        latest.state if is_fresh else "",
        100 * (total - down) / total if total else None,
        list(_days(rows, first)),
    )


def _days(rows: Mapping[date, ComponentDay], first: date) -> Iterator[Day]:
    for number in range(DAYS):
        day = first + timedelta(days=number)
        row = rows.get(day)
        if row is None:
            yield Day(day, "", gettext("not measured"))
            continue
        state = State.DOWN if row.down else State.DEGRADED if row.degraded else State.UP
        parts = [
            gettext("%(n)s min down") % {"n": row.down} if row.down else "",
            gettext("%(n)s min degraded") % {"n": row.degraded} if row.degraded else "",
        ]
        yield Day(day, state, ", ".join(filter(None, parts)) or gettext("operational"))
