"""Words of the pages where a library's own are not ours."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django import template
from django.conf import settings
from django.forms import BoundField
from django.urls import reverse
from django.utils import translation
from django.utils.dateparse import parse_datetime
from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts import devices
from gateway_project.core.clock import new_id
from portal import clocks, exports

register = template.Library()

# allauth's, by what they are in English; of ours none is like these.
LABELS = {
    "Email": _("E-mail"),
    "Remember Me": _("Stay signed in on this device"),
    "Authenticator code": _("Code from your app"),
    "Code": _("Code from your app, or a recovery code"),
    "Password (again)": _("Repeat password"),
    "New Password": _("New password"),
    "New Password (again)": _("Repeat password"),
    "Current Password": _("Current password"),
}


@register.filter
def label(field: BoundField) -> str:
    with translation.override("en"):
        text = str(field.label).removesuffix(":")
    return str(LABELS[text]) if text in LABELS else str(field.label).removesuffix(":")


@register.filter
def plain(field: BoundField) -> SafeString:
    """The input without a placeholder, which repeats the label and vanishes when it is needed."""
    attrs = field.field.widget.attrs
    attrs.pop("placeholder", None)
    if not help(field):  # nothing stands below it that would describe it
        field.help_text = ""
    return SafeString(field)  # and what the page showed, where the form sends that back


@register.filter
def help(field: BoundField) -> str | SafeString:  # noqa: A001 - its name in templates
    if field.name == "password1":
        return gettext("At least 10 characters; not a well-known password, and not digits alone.")
    if field.name == "password":  # its page has the link to the reset beside the button
        return ""
    return mark_safe(field.help_text)  # noqa: S308 - from a form class, never from people


@register.filter
def device(user_agent: str) -> str:
    return devices.translated_name_of(user_agent)


@register.inclusion_tag("portal/page_link.html", takes_context=True)
def page_link(context: Any, name: str, label: str, icon: str, *signs: str) -> dict[str, Any]:
    """A link of the navigation; current in its own view, and where a sign begins a view's name."""
    at = context["at"]
    is_here = at == name or any(at.startswith(sign) for sign in signs)
    return {"url": reverse(name), "label": label, "icon": icon, "is_here": is_here}


@register.simple_tag
def when(at: datetime | str | None, form: str = "minute") -> str | SafeString:
    """A moment in the zone of the page, with UTC on hover. Forms: those of
    `gateway_project.core.language.DATES`."""
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


@register.simple_tag(takes_context=True)
def csv(context: Any, name: str, of: str = "") -> SafeString:
    """A link to a table or chart of the page as a file, as `portal.exports.page` has it; none for
    staff who see the page as its members do."""
    if name not in context["files"]:
        raise LookupError(f"the page has no file {name!r}")
    if getattr(context.get("member"), "seen_until", None):
        return SafeString()
    query = context["request"].GET.copy()
    for gone in ("cursor", "page", "live"):
        query.pop(gone, None)
    query[exports.NAME] = name
    return format_html(
        '<a class="button small quiet" href="?{}" download>{}</a>',
        query.urlencode(),
        format_html(gettext('CSV<span class="sr">: {what}</span>'), what=of or name),
    )


@register.simple_tag
def zone() -> str:
    return clocks.zone_name()


@register.simple_tag
def once() -> SafeString:
    """Marks a form, so that what it makes is made once (`portal.posting.is_first`)."""
    return format_html('<input type="hidden" name="once" value="{}">', new_id())


@register.simple_tag(takes_context=True)
def here(context: Any) -> SafeString:
    """Names the workspace that the page of a form shows (`portal.members.workspace_page`)."""
    at = context["member"].workspace.pk
    return format_html('<input type="hidden" name="workspace" value="{}">', at)
