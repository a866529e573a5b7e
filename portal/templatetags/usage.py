"""Limits and changes, as pages say them."""

from __future__ import annotations

from collections.abc import Mapping

from django import template
from django.utils.translation import gettext

from gateway_project.core.language import number
from gateway_project.core.ratelimit import State

register = template.Library()
PERCENT = "\u00a0%"
"""With a space that no line ends at."""
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
        return f"0{PERCENT}"
    percent = 100 * part / whole
    return gettext("under 1 %") if percent < 1 else f"{percent:.0f}{PERCENT}"


@register.filter
def percent(part: float) -> str:
    """`0.1 %`, `12 %`: of a share, 0 to 1."""
    value = 100 * part
    is_round = value >= 10 or value == round(value)
    return f"{number(value, '.0f' if is_round else '.1f')}{PERCENT}"


@register.filter
def change(now: float | None, before: float | None) -> str:
    """How much more or less than in the period before: `+12 %`, `-3 %`, `new`."""
    if not before or now is None:
        return gettext("new") if now else ""
    percent = round(100 * (now - before) / before)
    if percent == 0:
        return f"±0{PERCENT}"
    return f"+{number(percent)}{PERCENT}" if percent > 0 else f"-{number(-percent)}{PERCENT}"
