"""What rows and programs say in English, in the language of the page."""

from __future__ import annotations

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from gateway_project.core.language import number, spoken
from portal import labels
from webhooks.services import COUNTED_MAX

register = template.Library()


@register.filter
def translated(word: str) -> str:
    return labels.translated(word)


@register.filter
def listed(value: object) -> str:
    return labels.listed(value)


@register.filter
def fault(text: str) -> str:
    return labels.fault(text)


@register.filter
def in_english(text: str | None) -> str | SafeString:
    """What an engine or the API said, which no page translates; a page in another language marks
    it, so that it is read out as what it is."""
    if not text or spoken() == "en":
        return text or ""
    return format_html('<span lang="en">{}</span>', text)


@register.filter
def capped(count: int | None) -> str:
    """Of deliveries: `1,234`; `10,000 or more` where the count stops."""
    found = count or 0
    if found < COUNTED_MAX:
        return number(found)
    return gettext("%(number)s or more") % {"number": number(found)}
