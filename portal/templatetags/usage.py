"""Limits and changes, as pages say them."""

from __future__ import annotations

from collections.abc import Mapping

from django import template

from gateway_project.core.ratelimit import State

register = template.Library()
NEARLY = 0.8
"""From this share on a limit is shown as nearly used up; `quota.80` tells of it as well."""


@register.filter
def used(state: State) -> int:
    return max(0, state.limit - state.remaining)


@register.filter
def nearly(state: State) -> int:
    return int(state.limit * NEARLY)


@register.filter
def scarcest(states: Mapping[str, State]) -> State | None:
    """Of a key's minute and day, the one of which the smaller share is left."""
    own = [states[name] for name in ("minute", "day") if name in states]
    return min(own, key=lambda state: state.remaining / (state.limit or 1), default=None)


@register.filter
def share(part: int, whole: int) -> str:
    """`24 %`; `under 1 %` rather than nothing at all."""
    if not whole or not part:
        return "0 %"
    percent = 100 * part / whole
    return "under 1 %" if percent < 1 else f"{percent:.0f} %"


@register.filter
def change(now: float | None, before: float | None) -> str:
    """How much more or less than in the period before: `+12 %`, `-3 %`, `new`."""
    if not before or now is None:
        return "new" if now else ""
    percent = round(100 * (now - before) / before)
    if percent == 0:
        return "±0 %"
    return f"+{percent:,} %" if percent > 0 else f"-{-percent:,} %"
