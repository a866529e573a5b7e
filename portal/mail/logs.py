"""Robin's log: filters, a live tail, and what the filters leave as a file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django import forms
from django.http import Http404, HttpRequest, HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext_lazy

from accounts.events import audit
from gateway_project.core import clock
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.responses import streamed
from gateway_project.core.clock import utc_text
from portal.forms import SpanForm, moment_input
from portal.mail.entry import Operator, mail_page, show, show_or_file, tried
from portal.mail.queue import page_number, table_of_lines
from robin.logs import search
from robin.logs.parsing import LEVELS, Filter
from robin.permissions import Permission
from robin.upstream.client import from_thread

SHOWN = 100
EXPORTED_MAX = 10_000
LIVE = timedelta(minutes=15)
"""So far back a live tail looks: it asks again and again."""
LEVEL_CHOICES = (
    ("", gettext_lazy("Any level")),
    ("ERROR", gettext_lazy("Errors")),
    ("ERROR,WARN", gettext_lazy("Errors and warnings")),
    *((level, level.capitalize()) for level in LEVELS[1:]),
)


class LogFilter(SpanForm):
    search = forms.CharField(
        required=False,
        max_length=200,
        label=gettext_lazy("Text, or an id"),
        help_text="",
    )
    level = forms.ChoiceField(required=False, choices=LEVEL_CHOICES, label=gettext_lazy("Level"))
    logger = forms.CharField(required=False, max_length=200, label=gettext_lazy("Logger"))
    since = forms.DateTimeField(required=False, label=gettext_lazy("Since"), widget=moment_input())
    until = forms.DateTimeField(required=False, label=gettext_lazy("Until"), widget=moment_input())

    def wanted(self, until: datetime | None = None) -> Filter:
        given = self.cleaned_data
        levels = frozenset(filter(None, given["level"].split(",")))
        return Filter(
            levels, given["search"].strip(), given["logger"].strip(), given["since"],
            until or given["until"],
        )  # fmt: skip


@mail_page(Permission.VIEW_LOGS)
@require_safe
def log(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    """Newest first. Of a long log as much is read as a page takes; it says how far back that is."""
    form = LogFilter(request.GET)
    is_live = request.GET.get("live") == "1"
    number = page_number(request.GET.get("page", "1"))
    facts: dict[str, Any] = {"at": "logs", "form": form, "is_live": is_live}
    if form.is_valid():
        offset = (number - 1) * SHOWN
        which = form.wanted(_moment(request.GET.get("before", "")))
        if is_live and which.since is None:
            which = replace(which, since=clock.now() - LIVE)
        found, error = tried(search.page(which, offset=offset, limit=SHOWN))
        facts |= {"found": found, "error": error, "number": number}
        facts["is_filtered"] = any(request.GET.get(name) for name in form.fields)
        facts["live_link"] = _with(request, live=None if is_live else "1", page=None, before=None)
        facts["export_query"] = _with(request, live=None, page=None)
        if found is not None:
            is_more = offset + len(found.entries) < found.total
            facts["following"] = _with(request, page=str(number + 1), live=None) if is_more else ""
            is_older = not is_more and not found.is_complete
            before = utc_text(found.since)
            facts["older"] = _with(request, before=before, page=None, live=None) if is_older else ""
    files = {"log": lambda: table_of_lines(_exported(request, operator, form).entries)}
    if request.headers.get("HX-Request"):
        return show(request, operator, "log_lines", files=files, **facts)
    return show_or_file(request, operator, "logs", files, **facts)


def _exported(request: HttpRequest, operator: Operator, form: LogFilter) -> search.Found:
    """The newest `EXPORTED_MAX` lines that the filters leave, with a line in the audit trail."""
    if not form.is_valid():
        raise Http404
    which = form.wanted(_moment(request.GET.get("before", "")))
    found = from_thread(search.page(which, offset=0, limit=EXPORTED_MAX))
    fields = operator.actor(request).fields()
    audit("robin.log_exported", lines=len(found.entries), search=which.search, **fields)
    return found


@mail_page(Permission.VIEW_LOGS)
@require_safe
def export(request: HttpRequest, operator: Operator) -> HttpResponseBase:
    """As text."""
    found = _exported(request, operator, LogFilter(request.GET))

    def lines() -> Iterator[bytes]:
        for start in range(0, len(found.entries), 500):
            part = found.entries[start : start + 500]
            yield "".join(f"{entry.line()}\n" for entry in part).encode()
        if not found.is_complete or found.total > len(found.entries):
            last = found.entries[-1].at if found.entries else found.since
            yield f"-- There may be more: nothing before {utc_text(last)} is in here.\n".encode()

    name = 'attachment; filename="robin-log.txt"'
    kind = "text/plain; charset=utf-8"
    return streamed(lines(), content_type=kind, **{"Content-Disposition": name})


def _moment(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if timezone.is_aware(found) else None


def _with(request: HttpRequest, **changes: str | None) -> str:
    """This page's query with other values; None takes one out."""
    given = {name: value for name, value in request.GET.items() if name not in changes}
    given |= {name: value for name, value in changes.items() if value is not None}
    return "?" + urlencode(given)
