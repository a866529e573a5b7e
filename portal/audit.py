"""Who did what in the workspace: the trail, its filters, and both as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from rest_framework.request import Request

from accounts import audit
from accounts.models import AuditEvent
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.pagination import page
from portal import exports
from portal.forms import SpanForm, moment_input
from portal.members import Member, workspace_page

FAMILIES = [
    ("", "Anything"),
    ("key.", "Keys"),
    ("policy.", "Policies"),
    ("webhook.", "Webhooks"),
    ("member.", "Members"),
    ("invitation.", "Invitations"),
    ("person.", "Sign-ins and accounts"),
    ("workspace.", "The workspace"),
    ("access.", "Refusals"),
]
COLUMNS = (
    *("number", "at", "action", "actor", "target", "client_ip", "request_id"),
    *("changes", "details", "digest"),
)


class AuditFilter(SpanForm):
    action = forms.ChoiceField(required=False, label="What", choices=FAMILIES)
    actor = forms.CharField(required=False, max_length=254, label="Who")
    target = forms.CharField(required=False, max_length=100, label="On what")
    since = forms.DateTimeField(required=False, label="Since", widget=moment_input())
    until = forms.DateTimeField(required=False, label="Until", widget=moment_input())

    def wanted(self) -> audit.Wanted:
        return audit.Wanted(**self.cleaned_data)


@require_safe
@workspace_page
def trail(request: HttpRequest, member: Member) -> HttpResponse:
    member.must("audit")
    form = AuditFilter(request.GET)
    rows: list[AuditEvent] = []
    older = None
    if form.is_valid():
        found = audit.of_workspace(member.workspace, form.wanted())
        among = audit.of_workspace(member.workspace)
        try:
            rows, older = page(Request(request), found, ordering=("-at", "-id"), among=among)
        except errors.NotFound:
            raise Http404 from None
    query = request.GET.copy()
    query.pop("cursor", None)
    facts = {
        "member": member,
        "form": form,
        "rows": [(row, audit.shown(row)) for row in rows],
        "older": older,
        "query": query.urlencode(),
        "is_filtered": any(request.GET.get(name) for name in form.fields),
        "has_cursor": "cursor" in request.GET,
    }
    return render(request, "portal/pages/audit.html", facts)


@require_safe
@workspace_page
def export(request: HttpRequest, member: Member) -> HttpResponseBase:
    """All that the filters leave, as `?format=csv` or `jsonl`."""
    member.must("audit")
    form = AuditFilter(request.GET)
    if not form.is_valid():
        raise Http404
    rows = _all(member, form.wanted())
    if request.GET.get("format") == "jsonl":
        return exports.json_lines_file("audit.jsonl", rows)
    cells = ([_cell(row[name]) for name in COLUMNS] for row in rows)
    return exports.csv_file("audit.csv", COLUMNS, cells)


def _all(member: Member, wanted: audit.Wanted) -> Iterator[dict[str, Any]]:
    found = audit.of_workspace(member.workspace, wanted).order_by("-at", "-id")
    after = Q()
    for _ in range(exports.ROWS_MAX // exports.ROWS_A_PIECE):
        rows = list(found.filter(after)[: exports.ROWS_A_PIECE])
        yield from map(audit.shown, rows)
        if len(rows) < exports.ROWS_A_PIECE:
            return
        last = rows[-1]
        after = Q(at__lt=last.at) | Q(at=last.at, pk__lt=last.pk)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_said(one)}" for name, one in value.items())
    return value


def _said(value: Any) -> str:
    return " → ".join(map(str, value)) if isinstance(value, list) else str(value)
