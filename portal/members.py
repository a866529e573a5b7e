"""Who is in a page: the signed-in user, the workspace they work in, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial, wraps
from time import time
from typing import Any, Concatenate, ParamSpec, cast
from uuid import UUID

from allauth.account.adapter import get_adapter
from allauth.account.internal.flows.login import get_authentication_records
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponseBase
from django.shortcuts import redirect, render

from accounts import people
from accounts.adapter import actor_of
from accounts.events import audit
from accounts.models import ApiKey, ApiKeyQuerySet, Membership, User, Workspace
from accounts.services import Actor
from gateway_project.core.api.responses import SECRET_HEADERS
from gateway_project.core.context import context_of
from portal import seeing
from portal.posting import SAFE, signed_in

P = ParamSpec("P")


CURRENT = "workspace"
"""In the session: the id of the workspace that a person of several works in."""


@dataclass(frozen=True, slots=True)
class Member:
    """A user in one workspace; `others` are their places in others.

    `seen_until`: a member of staff who sees it as its members do, until then.
    """

    user: User
    membership: Membership
    others: Sequence[Membership] = ()
    seen_until: datetime | None = None

    @property
    def workspace(self) -> Workspace:
        return self.membership.workspace

    @property
    def role(self) -> str:
        return self.membership.role

    @property
    def can_change(self) -> bool:
        """Make, rotate and revoke keys, and the like; the other roles look."""
        return people.may(self.role, "change")

    @property
    def can_manage_people(self) -> bool:
        return people.may(self.role, "people")

    @property
    def can_manage_workspace(self) -> bool:
        return people.may(self.role, "workspace")

    @property
    def can_audit(self) -> bool:
        return people.may(self.role, "audit")

    @property
    def keys(self) -> ApiKeyQuerySet:
        """The workspace's keys, without those of playgrounds."""
        return ApiKey.objects.listed().filter(workspace=self.workspace)

    def key(self, key_id: UUID) -> ApiKey:
        """One of the workspace's; another's is the same 404 as none."""
        found = self.keys.filter(pk=key_id).first()
        if found is None:
            raise Http404
        found.workspace = self.workspace  # with its plan, which was read already
        return found

    def actor(self, request: HttpRequest) -> Actor:
        return actor_of(request, self.user.email)

    def must_change(self) -> None:
        self.must("change")

    def must(self, right: str) -> None:
        """Raise 403 unless the role has the right, as `people.MAY` names it."""
        if not people.may(self.role, right):
            raise PermissionDenied


def shows_secrets(view: Callable[P, HttpResponseBase]) -> Callable[P, HttpResponseBase]:
    """Its POSTs want a password that was entered within `ACCOUNT_REAUTHENTICATION_TIMEOUT`.

    Otherwise allauth asks for it, keeps the POST meanwhile, and goes on with it: nothing typed is
    lost. Its own decorator would also ask who has signed in just now.
    """

    @wraps(view)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> HttpResponseBase:
        request = cast(HttpRequest, args[0])
        if request.method == "POST" and request.user.is_authenticated:
            require_fresh_sign_in(request)
        return view(*args, **kwargs)

    return wrapped


def require_fresh_sign_in(request: HttpRequest) -> None:
    """Raise allauth's demand for one, unless the last was a short while ago.

    Who comes by single sign-on may have neither password nor second factor. There is nothing to
    ask them for, so they are let through, as allauth's own pages do.
    """
    user = cast(User, request.user)
    records = get_authentication_records(request, user)
    last = max((record["at"] for record in records), default=0.0)
    is_old = time() - last > settings.ACCOUNT_REAUTHENTICATION_TIMEOUT
    if is_old and get_adapter().get_reauthentication_methods(user):
        raise ReauthenticationRequired


def secretly(response: HttpResponseBase) -> HttpResponseBase:
    """An answer with a secret on it."""
    for name, value in SECRET_HEADERS.items():
        response[name] = value
    return response


def workspace_page(
    view: Callable[Concatenate[HttpRequest, Member, P], HttpResponseBase],
) -> Callable[..., HttpResponseBase]:
    """A page of `/app/…`: for signed-in members, never kept by a cache.

    The role is read anew for each request: one that is taken away ends with the next click. A form
    acts in the workspace that its page showed (`{% here %}`), whatever another tab has switched to
    meanwhile; the page that it leads to is of that one, too.
    """

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        user = cast(User, request.user)
        seen = seeing.current(request)
        if seen is not None:
            return _as_seen(request, seen, partial(view, **kwargs))
        found = people.workspaces_of(user)
        if not found:
            return _without_workspace(request, user)
        current = _current(request, found)
        context_of(request).workspace = str(current.workspace_id)
        if request.POST.get("workspace", str(current.workspace_id)) != str(current.workspace_id):
            # Its page showed a workspace that this person is not in any more.
            raise PermissionDenied
        if "workspace" in request.POST:
            request.session[CURRENT] = request.POST["workspace"]
        member = Member(user, current, [place for place in found if place != current])
        if not people.is_open_to(user, current.workspace):
            return render(request, "portal/pages/second_factor.html", {"member": member})
        try:
            response = view(request, member, *args, **kwargs)
        except PermissionDenied:
            if people.is_worth_telling("access", current.pk):
                audit(
                    "access.refused",
                    workspace=member.workspace,
                    target=request.resolver_match.view_name if request.resolver_match else "",
                    role=member.role,
                    **member.actor(request).fields(),
                )
            raise
        response.setdefault("Cache-Control", "no-store")  # an answer with a secret says more
        return response

    wrapped.of_workspace = True  # type: ignore[attr-defined]  # a test asks every form
    return signed_in(wrapped)


def place_of(request: HttpRequest, user: User) -> Member | None:
    """Where somebody works who looks at a page that is of no workspace; None: nowhere, or where
    they see nothing without a second factor."""
    found = people.workspaces_of(user)
    if not found:
        return None
    current = _current(request, found)
    if not people.is_open_to(user, current.workspace):
        return None
    return Member(user, current, [place for place in found if place != current])


def _as_seen(
    request: HttpRequest, seen: seeing.Seen, show: Callable[..., HttpResponseBase]
) -> HttpResponseBase:
    """The page as a member who only reads has it; nothing is done, and no file leaves."""
    name = request.resolver_match.view_name if request.resolver_match else ""
    if request.method not in SAFE or any(word in name for word in seeing.NOT_SHOWN):
        raise PermissionDenied
    user = cast(User, request.user)
    place = Membership(user=user, workspace=seen.workspace, role=Membership.Role.VIEWER)
    response = show(request, Member(user, place, seen_until=seen.until))
    if "Content-Disposition" in response:  # a table of a page (`?csv=`): none was read yet
        raise PermissionDenied
    response.setdefault("Cache-Control", "no-store")
    return response


def _current(request: HttpRequest, found: Sequence[Membership]) -> Membership:
    """Of the form's, else of the session's workspace, else the first."""
    by_id = {str(place.workspace_id): place for place in found}
    for name in (request.POST.get("workspace", ""), request.session.get(CURRENT, "")):
        if name in by_id:
            return by_id[name]
    return found[0]


def _without_workspace(request: HttpRequest, user: User) -> HttpResponseBase:
    # After signing in this is where one lands; any other page is really not there.
    is_landing = request.path == settings.LOGIN_REDIRECT_URL
    invitations, domains = people.waiting_for(user), people.joinable(user)
    is_robins = hasattr(user, "robin_access")
    if is_landing and is_robins and not (user.is_staff or invitations or domains):
        return redirect("portal-mail-queue")
    facts = {"invitations": invitations, "domains": domains, "has_no_workspace": True}
    return render(
        request, "portal/pages/no_workspace.html", facts, status=200 if is_landing else 404
    )
