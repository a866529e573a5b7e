"""The log of requests and a page for each, with its text where a policy keeps it."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.views.decorators.http import require_safe

from accounts.models import UsageLog
from accounts.usage import log, reading
from portal import feedback
from portal.forms import RequestFilter
from portal.members import Member, workspace_page


@require_safe
@workspace_page
def requests(request: HttpRequest, member: Member) -> HttpResponse:
    """Newest first. With wrong filters nothing is shown but what is wrong."""
    keys = {key.pk: key for key in member.keys.without_policies()}
    form = RequestFilter(keys.values(), request.GET)
    found = reading.Page([], None)
    if form.is_valid():
        wanted = form.cleaned_data
        try:
            found = reading.page(
                member.workspace,
                api_key_id=wanted["key"],
                statuses=wanted["status"] and reading.class_of(wanted["status"]),
                decision=wanted["decision"],
                since=wanted["since"],
                until=wanted["until"],
                cursor=request.GET.get("cursor", ""),
            )
        except ValueError:
            raise Http404 from None
    facts = {
        "member": member,
        "form": form,
        "rows": [(row, keys.get(row.api_key_id)) for row in found.rows],
        "older": _link(request, found.older),
        "newest": _link(request, ""),
        "is_filtered": any(request.GET.get(name) for name in form.fields),
        "has_cursor": "cursor" in request.GET,
    }
    return render(request, "portal/pages/requests.html", facts)


def _link(request: HttpRequest, cursor: str | None) -> str | None:
    """This page's filters from another place on; an empty cursor is the newest."""
    if cursor is None:
        return None
    query = request.GET.copy()
    query.pop("cursor", None)
    if cursor:
        query["cursor"] = cursor
    return "?" + query.urlencode()


@require_safe
@workspace_page
def one(request: HttpRequest, member: Member, request_id: UUID) -> HttpResponse:
    """`?at=` (ISO 8601) spares the search where the id does not tell the time."""
    row = reading.find(member.workspace, request_id, _moment(request.GET.get("at", "")))
    if row is None:
        raise Http404
    facts = {
        "member": member,
        "row": row,
        "key": member.keys.filter(pk=row.api_key_id).first(),
        "timing": _split(row),
        "text": log.text_of(row.request_id, member.workspace.pk),
        **feedback.facts(member, row),
    }
    return render(request, "portal/pages/request.html", facts)


def _moment(text: str) -> datetime | None:
    try:
        found = parse_datetime(text)
    except ValueError:  # well-formed, but no such day
        return None
    if found is None or timezone.is_aware(found):
        return found
    return timezone.make_aware(found)


def _split(row: UsageLog) -> list[dict[str, Any]]:
    """Who took how long, as parts of a bar that is 100 wide."""
    upstream = min(row.upstream_ms, row.response_time_ms)
    ours = row.response_time_ms - upstream
    whole = row.response_time_ms or 1
    return [
        {"name": "Gateway", "ms": ours, "x": 0, "width": 100 * ours / whole},
        {
            "name": "Engine",
            "ms": upstream,
            "x": 100 * ours / whole,
            "width": 100 * upstream / whole,
        },
    ]
