"""Ninety days as a row of bars."""

from __future__ import annotations

from django import template
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from gateway_project.core.language import dated
from portal.availability import Component

register = template.Library()


@register.simple_tag
def day_bars(component: Component) -> SafeString:
    """A picture with one bar a day; its name says what was not well, in words."""
    troubled = [day for day in component.days if day.state in ("degraded", "down")]
    days = "; ".join(f"{dated(day.day, 'long day')}: {day.description}" for day in troubled)
    bars = format_html_join(
        "",
        '<rect class="{}" x="{}" width="3" height="28" rx="1"><title>{}: {}</title></rect>',
        (
            (day.state or "unknown", 4 * n, dated(day.day, "short day"), day.description)
            for n, day in enumerate(component.days)
        ),
    )
    return format_html(
        '<svg class="days" viewBox="0 0 {} 28" preserveAspectRatio="none" role="img" '
        'aria-label="{}: {}">{}</svg>',
        4 * len(component.days) - 1,
        component.title,
        days or gettext("no trouble seen"),
        bars,
    )
