"""The sign-ups of a month as bars."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from gateway_project.core.language import dated, number

register = template.Library()
HEIGHT = 60


@register.simple_tag
def sign_up_bars(days: Sequence[tuple[date, int]]) -> SafeString:
    """A picture whose name has its sum and its best day."""
    most = max((count for _, count in days), default=0)
    best = max(days, key=lambda one: one[1])
    facts = {
        "sum": number(sum(count for _, count in days)),
        "day": dated(best[0], "long day"),
        "most": number(most),
    }
    summary = gettext("%(sum)s in 30 days, most of them on %(day)s: %(most)s")
    summary = (summary if most else gettext("%(sum)s in 30 days")) % facts
    bars = format_html_join(
        "",
        '<rect class="series-1" x="{}" y="{}" width="8" height="{}"><title>{}: {}</title></rect>',
        (
            (10 * n, HEIGHT - height, height, dated(day, "short day"), number(count))
            for n, (day, count) in enumerate(days)
            for height in [round(HEIGHT * count / most) if most else 0]
        ),
    )
    return format_html(
        '<svg class="sign-ups" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" '
        'aria-label="{}">{}</svg>',
        10 * len(days) - 2,
        HEIGHT,
        summary,
        bars,
    )
