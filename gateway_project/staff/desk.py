"""The desk: one search box, one page for each customer, acts that ask a reason, and seeing as they.

In the portal's design, inside the admin's site: the same sign-in and the same second factor. Who
may do what is said by roles (`accounts/roles.py`); acts want a fresh sign-in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

from django import forms
from django.contrib import messages
from django.contrib.admin import AdminSite
from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import URLPattern, path, reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts import roles
from accounts.adapter import actor_of
from accounts.admin.lists import as_uuid
from accounts.events import audit
from accounts.models import User, Workspace
from gateway_project.core import errors
from gateway_project.core.api.forms import Form
from gateway_project.core.api.methods import require_http_methods, require_safe
from gateway_project.core.telemetry import loops
from gateway_project.staff import actions, background, board, customers, files, plans
from portal import exports, seeing
from portal.models import StaffNote
from portal.posting import is_first

View = Callable[..., HttpResponseBase]


class NoteForm(Form):
    text = forms.CharField(
        max_length=2000, label=_("Note"), widget=forms.Textarea(attrs={"rows": 2}), strip=True
    )


class SeeForm(Form):
    reason = forms.CharField(min_length=5, max_length=500, label=_("Why"))


def needs(right: str) -> Callable[[View], View]:
    """For members of staff with that right; others of staff get 403."""

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            roles.must(request.user, right)
            response = view(request, *args, **kwargs)
            response.setdefault("Cache-Control", "no-store")
            return response

        return wrapped

    return decorate


def no_action(view: View) -> View:
    """Its POSTs need no fresh sign-in (`StaffSite.admin_view`)."""
    view.is_no_action = True  # type: ignore[attr-defined]
    return view


def urls(site: AdminSite) -> list[URLPattern]:
    """For `AdminSite.get_urls`: each behind the site's sign-in and second factor."""
    return [
        path(route, site.admin_view(view), name=name)
        for route, view, name in (
            ("desk/", search, "desk"),
            ("desk/board/", business_board, "desk-board"),
            ("desk/background/", background_work, "desk-background"),
            ("desk/plans/", plan_changes, "desk-plans"),
            ("desk/stop-seeing/", stop_seeing, "desk-stop-seeing"),
            ("desk/<uuid:workspace_id>/", customer, "desk-customer"),
            ("desk/<uuid:workspace_id>/note/", note, "desk-note"),
            ("desk/<uuid:workspace_id>/see/", see_as, "desk-see"),
            ("desk/<uuid:workspace_id>/<slug:name>/", act, "desk-act"),
        )
    ]


@require_safe
@needs("look")
def search(request: HttpRequest) -> HttpResponseBase:
    """One customer is shown at once; of several, which."""
    word = request.GET.get("q", "").strip()
    found = customers.find(word)
    if len(found) == 1 and exports.NAME not in request.GET:
        [one] = found
        query = {"found": one.what, **({"request": one.request_id} if one.request_id else {})}
        url = reverse("admin:desk-customer", args=[one.workspace.pk])
        return redirect(f"{url}?{urlencode(query)}")
    facts = {
        "word": word,
        "results": found,
        "roles": roles.roles_of(request.user),
        "waiting": 0 if word else plans.waiting().count(),
    }
    return exports.page(request, "staff/desk.html", facts, files.of_search(found))


@require_safe
@needs("look")
def business_board(request: HttpRequest) -> HttpResponseBase:
    """How the business does, and who needs a look."""
    facts = {"board": board.board()}
    return exports.page(request, "staff/board.html", facts, files.of_board(facts["board"]))


@require_safe
@needs("look")
def background_work(request: HttpRequest) -> HttpResponseBase:
    """What runs by itself, and how it goes."""
    facts = {
        **background.background(),
        "patience": background.PATIENCE_SECONDS,
        "rounds_max": loops.ROUNDS_MAX,
    }
    table = {"background": lambda: background.table(facts["work"])}
    return exports.page(request, "staff/background.html", facts, table)


@require_http_methods(["GET", "HEAD", "POST"])
@needs("look")
def plan_changes(request: HttpRequest) -> HttpResponseBase:
    """Changes of plans that wait for a second person, and what became of the last ones."""
    user = cast(User, request.user)
    if request.method == "POST":
        roles.must(user, plans.RIGHT)
        _decide_on_plan(request, user)
        return redirect("admin:desk-plans")
    latest = plans.latest()
    facts = {
        "waiting": plans.waiting(),
        "latest": latest,
        "needs_two": plans.needs_two(),
        "may_decide": plans.RIGHT in roles.rights_of(user),
        "may_propose": user.is_superuser,
        "me": user.pk,
    }
    return exports.page(request, "staff/plans.html", facts, files.of_plans(latest))


def _decide_on_plan(request: HttpRequest, user: User) -> None:
    wanted, decision = as_uuid(request.POST.get("proposal", "")), request.POST.get("decision")
    decide = {"confirm": plans.confirm, "decline": plans.decline}.get(decision or "")
    if wanted is None or decide is None:
        messages.error(
            request, gettext("There is no such proposal or decision. Nothing was changed.")
        )
        return
    try:
        found = decide(wanted, by=user, actor=actor_of(request, user.email))
    except errors.GatewayError as exc:
        messages.error(request, exc.for_people())
        return
    if decision == "confirm":
        message = gettext("“%(plan)s” is changed: it counts from the next call on.")
    else:
        message = gettext("Declined: “%(plan)s” stays as it is.")
    messages.success(request, message % {"plan": found.plan_id})


@require_safe
@needs("look")
def customer(request: HttpRequest, workspace_id: UUID) -> HttpResponseBase:
    workspace = _workspace(workspace_id)
    rights = roles.rights_of(request.user)
    facts = {
        **customers.customer(workspace, as_uuid(request.GET.get("request", ""))),
        "found": request.GET.get("found", ""),
        "rights": rights,
        "offered": [
            one
            for one in actions.ACTIONS.values()
            if one.right in rights and one.applies(workspace)
        ],
        "note_form": NoteForm(),
        "see_form": SeeForm(),
    }
    return exports.page(request, "staff/customer.html", facts, files.of_customer(facts))


@require_http_methods(["GET", "HEAD", "POST"])
@needs("look")
def act(request: HttpRequest, workspace_id: UUID, name: str) -> HttpResponse:
    """Its page says what it means and asks why; its form does it."""
    workspace, wanted = _workspace(workspace_id), actions.ACTIONS.get(name)
    if wanted is None:
        raise Http404
    roles.must(request.user, wanted.right)
    form = wanted.form(workspace, request.POST if request.method == "POST" else None)
    if request.method == "POST" and form.is_valid():
        if not is_first(request):
            return redirect("admin:desk-customer", workspace_id=workspace.pk)
        actor = actor_of(request, cast(User, request.user).email)
        try:
            done = actions.do(wanted, actions.Call(workspace, form.cleaned_data, actor, request))
        except errors.GatewayError as exc:
            form.add_error(None, exc.for_people())
        else:
            messages.success(request, done.message)
            return redirect("admin:desk-customer", workspace_id=workspace.pk)
    facts = {"workspace": workspace, "act": wanted, "form": form}
    return render(request, "staff/act.html", facts)


@no_action
@require_http_methods(["GET", "HEAD", "POST"])
@needs("note")
def note(request: HttpRequest, workspace_id: UUID) -> HttpResponse:
    workspace, form = _workspace(workspace_id), NoteForm(request.POST)
    if request.method == "POST" and form.is_valid() and is_first(request):
        StaffNote.objects.create(
            workspace=workspace,
            text=form.cleaned_data["text"],
            written_by=cast(User, request.user).email,
        )
    elif request.method == "POST" and not form.is_valid():
        messages.error(request, gettext("The note is empty, or has more than 2,000 characters."))
    return redirect("admin:desk-customer", workspace_id=workspace.pk)


@require_http_methods(["GET", "HEAD", "POST"])
@needs("see_as")
def see_as(request: HttpRequest, workspace_id: UUID) -> HttpResponse:
    """For a quarter of an hour the portal is that workspace's, read-only."""
    workspace, form = _workspace(workspace_id), SeeForm(request.POST)
    if request.method != "POST":
        return redirect("admin:desk-customer", workspace_id=workspace.pk)
    if not form.is_valid():
        messages.error(
            request, gettext("Say why, in five characters or more: the customer reads it.")
        )
        return redirect("admin:desk-customer", workspace_id=workspace.pk)
    if not is_first(request):
        return redirect("portal-overview")
    actor = actor_of(request, cast(User, request.user).email)
    with transaction.atomic():
        audit(
            "staff.saw",
            workspace=workspace,
            target=workspace.pk,
            reason=form.cleaned_data["reason"],
            minutes=int(seeing.LASTS.total_seconds() // 60),
            **actor.fields(),
        )
    seeing.begin(request, workspace)
    return redirect("portal-overview")


@no_action
@require_http_methods(["GET", "HEAD", "POST"])
def stop_seeing(request: HttpRequest) -> HttpResponse:
    workspace_id = seeing.end(request) if request.method == "POST" else None
    if workspace_id is None:
        return redirect("admin:desk")
    return redirect("admin:desk-customer", workspace_id=workspace_id)


def _workspace(workspace_id: UUID) -> Workspace:
    found: Workspace = get_object_or_404(Workspace.objects.select_related("plan"), pk=workspace_id)
    return found
