"""Who is in a page: the signed-in user, the workspace they work in, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from time import time
from typing import Any, Concatenate, ParamSpec, cast
from uuid import UUID

from allauth.account.internal.flows.login import get_authentication_records
from allauth.core.exceptions import ReauthenticationRequired
from django.conf import settings
from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render

from accounts.adapter import actor_of
from accounts.models import ApiKey, ApiKeyQuerySet, Membership, User, Workspace
from accounts.services import Actor
from gateway_project.core.api.responses import SECRET_HEADERS

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Member:
    """A user in one workspace."""

    user: User
    workspace: Workspace
    role: str

    @property
    def can_change(self) -> bool:
        """Viewers read; everybody else may make, rotate and revoke keys."""
        return self.role != Membership.Role.VIEWER

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
        if not self.can_change:
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
            records = get_authentication_records(request, request.user)
            last = max((record["at"] for record in records), default=0.0)
            if time() - last > settings.ACCOUNT_REAUTHENTICATION_TIMEOUT:
                raise ReauthenticationRequired
        return view(*args, **kwargs)

    return wrapped


def secretly(response: HttpResponse) -> HttpResponse:
    """An answer with a secret on it."""
    for name, value in SECRET_HEADERS.items():
        response[name] = value
    return response


def workspace_page(
    view: Callable[Concatenate[HttpRequest, Member, P], HttpResponseBase],
) -> Callable[..., HttpResponseBase]:
    """A page of `/app/…`: for signed-in members, never kept by a cache."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        user = cast(User, request.user)
        found = (
            Membership.objects.filter(user=user)
            .select_related("workspace__plan")
            .order_by("created_at", "pk")
            .first()
        )
        if found is None:
            # After signing in this is where one lands; any other page is really not there.
            is_landing = request.path == settings.LOGIN_REDIRECT_URL
            status = 200 if is_landing else 404
            return render(request, "portal/pages/no_workspace.html", status=status)
        response = view(request, Member(user, found.workspace, found.role), *args, **kwargs)
        response.setdefault("Cache-Control", "no-store")  # an answer with a secret says more
        return response

    return cast(Callable[..., HttpResponseBase], login_required(wrapped))
