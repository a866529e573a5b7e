"""Words of the pages where a library's own are not ours."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.conf import settings
from django.forms import BoundField
from django.urls import reverse
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from accounts import devices
from gateway_project.core.clock import new_id
from portal import clocks

register = template.Library()

LABELS = {
    "Email": "E-mail",
    "Remember Me": "Stay signed in on this device",
    "Authenticator code": "Code from your app",
    "Code": "Code from your app, or a recovery code",
    "Password (again)": "Repeat password",
    "New Password": "New password",
    "New Password (again)": "Repeat password",
    "Current Password": "Current password",
}


@register.filter
def label(field: BoundField) -> str:
    text = str(field.label).removesuffix(":")
    return LABELS.get(text, text)


@register.filter
def plain(field: BoundField) -> SafeString:
    """The input without a placeholder, which repeats the label and vanishes when it is needed."""
    attrs = field.field.widget.attrs
    attrs.pop("placeholder", None)
    if not help(field):  # nothing stands below it that would describe it
        field.help_text = ""
    return field.as_widget()


@register.filter
def help(field: BoundField) -> str | SafeString:  # noqa: A001 - its name in templates
    if field.name == "password1":
        return "At least 10 characters; not a well-known password, and not digits alone."
    if field.name == "password":  # its page has the link to the reset beside the button
        return ""
    return mark_safe(field.help_text)  # noqa: S308 - from a form class, never from people


@register.filter
def device(user_agent: str) -> str:
    return devices.name_of(user_agent)


@register.inclusion_tag("portal/room_link.html", takes_context=True)
def room_link(context: Any, name: str, label: str, icon: str, *signs: str) -> dict[str, Any]:
    """A link of the navigation; current in its own view, and where a sign begins a view's name."""
    at = context["at"]
    is_here = at == name or any(at.startswith(sign) for sign in signs)
    return {"url": reverse(name), "label": label, "icon": icon, "is_here": is_here}


@register.simple_tag
def when(at: datetime | str | None, form: str = "minute") -> str | SafeString:
    """A moment in the zone of the page, with UTC on hover. Forms: `portal.clocks.FORMS`."""
    moment = parse_datetime(at) if isinstance(at, str) else at
    if moment is None:
        return ""
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        moment.isoformat(),
        clocks.in_utc(moment),
        clocks.written(moment, form),
    )


@register.filter
def utc(at: datetime) -> str:
    """For mails, whose readers' zones are not known."""
    return clocks.in_utc(at)


@register.simple_tag
def single_sign_on() -> str:
    """What people sign in with elsewhere; empty: nothing is set."""
    return settings.OIDC_NAME if settings.OIDC_ISSUER else ""


@register.simple_tag
def zone() -> str:
    return clocks.zone_name()


@register.simple_tag
def once() -> SafeString:
    """Marks a form, so that what it makes is made once (`portal.posting.is_first`)."""
    return format_html('<input type="hidden" name="once" value="{}">', new_id())
