"""Who did what in the workspace: the trail, its filters, and both as a file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django import forms
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils.translation import gettext_lazy
from rest_framework.request import Request

from accounts import audit
from accounts.models import AuditEvent
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.pagination import page
from portal import exports
from portal.forms import MomentField, SpanForm
from portal.labels import listed
from portal.members import Member, workspace_page

FAMILIES = [
    ("", gettext_lazy("Anything")),
    ("key.", gettext_lazy("Keys")),
    ("policy.", gettext_lazy("Policies")),
    ("webhook.", gettext_lazy("Webhooks")),
    ("member.", gettext_lazy("Members")),
    ("invitation.", gettext_lazy("Invitations")),
    ("person.", gettext_lazy("Sign-ins and accounts")),
    ("workspace.", gettext_lazy("The workspace")),
    ("access.", gettext_lazy("Refusals")),
]
COLUMNS = (
    *("number", "at", "action", "actor", "target", "client_ip", "request_id"),
    *("changes", "details", "digest"),
)


class AuditFilter(SpanForm):
    action = forms.ChoiceField(required=False, label=gettext_lazy("What"), choices=FAMILIES)
    actor = forms.CharField(required=False, max_length=254, label=gettext_lazy("Who"))
    target = forms.CharField(required=False, max_length=100, label=gettext_lazy("On what"))
    since = MomentField(required=False, label=gettext_lazy("Since"))
    until = MomentField(required=False, label=gettext_lazy("Until"), is_end=True)

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
    cells = ([_cell(name, row[name]) for name in COLUMNS] for row in rows)
    return exports.csv_file("audit.csv", COLUMNS, cells)


def _all(member: Member, wanted: audit.Wanted) -> Iterator[dict[str, Any]]:
    found = audit.of_workspace(member.workspace, wanted)
    return map(audit.shown, exports.newest_first(found, "at"))


def _cell(name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    arrow = name == "changes"  # what was, and what is
    return "; ".join(
        f"{one}: {' → '.join(map(listed, pair)) if arrow else listed(pair)}"
        for one, pair in value.items()
    )
