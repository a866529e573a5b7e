"""Batches and single texts that are judged behind their request. No text is shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect
from django.utils.translation import gettext
from rest_framework.request import Request

from detection.jobs import store
from detection.models import Job
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.pagination import page
from gateway_project.core.api.responses import ndjson
from portal import exports
from portal.members import Member, workspace_page
from portal.posting import posts_for
from portal.views import base_url

RESULTS_ON_A_PAGE = 50
RESULT = (
    *("id", "request_id", "decision", "confidence", "threat_types", "source"),
    *("error_code", "error"),
)


@require_safe
@workspace_page
def job_list(request: HttpRequest, member: Member) -> HttpResponseBase:
    found = store.of_workspace(member.workspace.pk)
    try:
        rows, older = page(Request(request), found, ordering=("-created_at", "-id"))
    except errors.NotFound:
        raise Http404 from None
    facts = {
        "member": member,
        "rows": rows,
        "older": older,
        "has_cursor": "cursor" in request.GET,
        "base_url": base_url(request),
    }
    files = {"jobs": lambda: _table(exports.newest_first(found))}
    return exports.page(request, "portal/pages/jobs.html", facts, files)


def _table(rows: Iterable[Job]) -> exports.Table:
    columns = (
        *("id", "kind", "status", "total", "succeeded", "flagged", "failed"),
        *("created_at", "finished_at", "expires_at", "webhook_url"),
    )
    return exports.table(columns, rows)


def _is_flagged(row: dict[str, Any]) -> bool:
    return (row.get("result") or {}).get("decision") == "flag"


def _is_failed(row: dict[str, Any]) -> bool:
    return row.get("result") is None


ONLY = {"flagged": _is_flagged, "failed": _is_failed}
"""What a page of results may be narrowed to; a batch is small enough to be read whole."""


def _results(found: Job) -> exports.Table:
    """All of them, a chunk at a time."""
    return exports.Table(RESULT, (_cells(line) for line in _lines(found)))


def _lines(found: Job) -> Iterator[dict[str, Any]]:
    for piece in store.all_results(found):
        yield from (json.loads(line) for line in piece.splitlines() if line)


def _cells(row: dict[str, Any]) -> list[Any]:
    verdict, error = row.get("result") or {}, row.get("error") or {}
    return [
        *(row.get("id"), verdict.get("request_id"), verdict.get("decision")),
        *(verdict.get("confidence"), ", ".join(verdict.get("threat_types", ()))),
        *(verdict.get("source"), error.get("code"), error.get("message")),
    ]


@require_safe
@workspace_page
def job(request: HttpRequest, member: Member, job_id: UUID) -> HttpResponseBase:
    """Progress, asked for again while it runs, and a page of results."""
    found = _job(member, job_id)
    first = request.GET.get("from", "0")
    if not (first.isascii() and first.isdigit() and len(first) <= 6):
        raise Http404
    only = request.GET.get("only", "")
    if only in ONLY:
        rows = [row for row in _lines(found) if ONLY[only](row)]
        following = None
    else:
        lines, following = store.results(found, int(first), RESULTS_ON_A_PAGE)
        rows, only = [json.loads(line) for line in lines], ""
    facts = {
        "member": member,
        "job": found,
        "key": member.keys.filter(pk=found.api_key_id).first(),
        "rows": rows,
        "only": only,
        "first": int(first),
        "following": following,
        "metadata": json.dumps(found.metadata, indent=2) if found.metadata else "",
    }
    is_poll = bool(request.headers.get("HX-Request"))
    template = f"portal/pages/job{'_state' if is_poll else ''}.html"
    return exports.page(request, template, facts, {"results": lambda: _results(found)})


@require_safe
@workspace_page
def download(request: HttpRequest, member: Member, job_id: UUID) -> HttpResponseBase:
    found = _job(member, job_id)
    headers = {"Content-Disposition": f'attachment; filename="{found.pk}.ndjson"'}
    return ndjson(store.all_results(found), **headers)


@posts_for("portal-job")
@workspace_page
def cancel(request: HttpRequest, member: Member, job_id: UUID) -> HttpResponse:
    member.must_change()
    found = _job(member, job_id)
    try:
        store.cancel(found, actor=member.actor(request))
    except errors.Conflict as exc:
        messages.error(request, exc.for_people())
    else:
        messages.success(
            request, gettext("Cancelled. What was judged stays; the other texts are erased.")
        )
    return redirect("portal-job", job_id=found.pk)


def _job(member: Member, job_id: UUID) -> Job:
    """One of the member's workspace; another's is the same 404 as none."""
    found = store.of_workspace(member.workspace.pk).filter(pk=job_id).first()
    if found is None:
        raise Http404
    return found
