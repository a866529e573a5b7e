"""Words that stand in rows and answers for programs, as a page says them to people.

What a machine reads stays English wherever it is: in the database, in answers, files, addresses and
the classes of a style sheet. Only where it is shown it goes through `translated`.
"""

from __future__ import annotations

import re

from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext, gettext_noop

from accounts.models import ApiKey

LABELS = (
    # of keys
    gettext_noop("active"),
    gettext_noop("expired"),
    gettext_noop("grace"),
    gettext_noop("revoked"),
    # of jobs and actions
    gettext_noop("async"),
    gettext_noop("batch"),
    gettext_noop("queued"),
    gettext_noop("processing"),
    gettext_noop("complete"),
    gettext_noop("partial"),
    gettext_noop("failed"),
    gettext_noop("cancelled"),
    gettext_noop("retry"),
    gettext_noop("bounce"),
    gettext_noop("delete"),
    # of verdicts
    gettext_noop("allow"),
    gettext_noop("review"),
    gettext_noop("flag"),
    gettext_noop("degraded"),
    gettext_noop("error"),
    gettext_noop("engine"),
    gettext_noop("cache"),
    gettext_noop("fallback"),
    gettext_noop("none"),
    # of webhooks and deliveries
    gettext_noop("disabled"),
    gettext_noop("paused"),
    gettext_noop("failing"),
    gettext_noop("gone"),
    gettext_noop("pending"),
    gettext_noop("delivered"),
    gettext_noop("partly delivered"),
    gettext_noop("under way"),
    # of members
    gettext_noop("owner"),
    gettext_noop("admin"),
    gettext_noop("member"),
    gettext_noop("viewer"),
    gettext_noop("auditor"),
    gettext_noop("ended"),
    # of breakers
    gettext_noop("closed"),
    gettext_noop("half-open"),
    gettext_noop("open"),
    gettext_noop("auto"),
)


NO_ANSWER = re.compile(r"no answer within (\S+) s")


def fault(text: str) -> str:
    """What went wrong with a delivery, which is kept in English, as the reader says it."""
    if found := NO_ANSWER.fullmatch(text):
        return gettext("no answer within %(seconds)s s") % {"seconds": found[1]}
    return translated(text)


def listed(value: object) -> str:
    """Of what is kept as JSON: `detect, batch`, and not as a program writes a list."""
    if isinstance(value, list | tuple):
        return ", ".join(map(listed, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}: {listed(one)}" for name, one in value.items())
    return "none" if value is None else str(value)


def translated(word: str) -> str:
    """`complete` as the reader says it; a word that nobody listed stays as it is."""
    return gettext(word) if word else ""


def named(key: ApiKey) -> str:
    """Its name in a list of choices, where no badge can stand (`test_mark.html`)."""
    return gettext("%(name)s (test)") % {"name": key.name} if key.is_test else key.name


def coded(text: str) -> SafeString:
    """A sentence of ours for a page: `names` in it are code."""
    return mark_safe(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))  # noqa: S308 - escaped
