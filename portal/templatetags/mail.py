"""What pages of the mail server say: ages, states, ids in lines of the log."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from django import template
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext, gettext_noop

from gateway_project.core.language import dated, number

register = template.Library()
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
STATES = {
    "READY": (gettext_noop("ready"), ""),
    "CLAIMED": (gettext_noop("in delivery"), "good"),
    "DEAD": (gettext_noop("dead"), "bad"),
}
STEPS = (
    (60, gettext_noop("%(n)s s")),
    (60, gettext_noop("%(n)s min")),
    (24, gettext_noop("%(n)s h")),
)


@register.filter
def age(seconds: float | None) -> str:
    """`12 s`, `3 min`, `2 h`, `4 d`."""
    value = max(0.0, float(seconds or 0))
    for size, unit in STEPS:
        if value < size:
            return gettext(unit) % {"n": f"{value:.0f}"}
        value /= size
    return gettext("%(n)s d") % {"n": number(value, ",.0f")}


@register.filter
def state(name: str | None) -> SafeString:
    """A badge; of an item whose state has not been read yet it says so."""
    text, kind = STATES.get(name or "", (gettext_noop("not known yet"), "warn"))
    return format_html('<span class="badge {}">{}</span>', kind, gettext(text))


@register.filter
def with_ids(text: str) -> SafeString:
    """A line of the log, each id in it leading to what else the log says of it."""
    parts: list[SafeString] = []
    at = 0
    url = reverse("portal-mail-logs")
    for found in ID.finditer(text):
        parts.append(format_html("{}", text[at : found.start()]))
        parts.append(format_html('<a href="{}?search={}">{}</a>', url, found[0], found[0]))
        at = found.end()
    parts.append(format_html("{}", text[at:]))
    return mark_safe("".join(parts))  # noqa: S308 - each part is escaped above


@register.filter
def day(ms: int) -> str:
    """Of a mail's name, which has the day alone."""
    return dated(datetime.fromtimestamp(ms / 1000, UTC), "day of year")


@register.filter
def size(count: int) -> str:
    """`12 B`, `3.4 kB`, `2.1 MB`."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{number(value, '.1f')} {unit}"
        value /= 1000
    return f"{number(value, '.1f')} GB"
