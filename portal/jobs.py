"""Batches and single texts that are judged behind their request. No text is shown."""

from __future__ import annotations

import json
from uuid import UUID

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import redirect, render
from rest_framework.request import Request

from detection.jobs import store
from detection.models import Job
from gateway_project.core import errors
from gateway_project.core.api.methods import require_safe
from gateway_project.core.api.pagination import page
from gateway_project.core.api.responses import ndjson
from portal.members import Member, workspace_page
from portal.posting import posts_for
from portal.views import base_url

RESULTS_ON_A_PAGE = 50


@require_safe
@workspace_page
def job_list(request: HttpRequest, member: Member) -> HttpResponse:
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
    return render(request, "portal/pages/jobs.html", facts)


@require_safe
@workspace_page
def job(request: HttpRequest, member: Member, job_id: UUID) -> HttpResponse:
    """Progress, asked for again while it runs, and a page of results."""
    found = _job(member, job_id)
    first = request.GET.get("from", "0")
    if not (first.isascii() and first.isdigit() and len(first) <= 6):
        raise Http404
    lines, following = store.results(found, int(first), RESULTS_ON_A_PAGE)
    facts = {
        "member": member,
        "job": found,
        "key": member.keys.filter(pk=found.api_key_id).first(),
        "rows": [json.loads(line) for line in lines],
        "first": int(first),
        "following": following,
        "metadata": json.dumps(found.metadata, indent=2) if found.metadata else "",
    }
    is_poll = bool(request.headers.get("HX-Request"))
    return render(request, f"portal/pages/job{'_state' if is_poll else ''}.html", facts)


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
        messages.error(request, str(exc.detail))
    else:
        messages.success(request, "Cancelled. What was judged stays; the other texts are erased.")
    return redirect("portal-job", job_id=found.pk)


def _job(member: Member, job_id: UUID) -> Job:
    """One of the member's workspace; another's is the same 404 as none."""
    found = store.of_workspace(member.workspace.pk).filter(pk=job_id).first()
    if found is None:
        raise Http404
    return found
