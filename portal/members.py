"""Who is in a room: the signed-in user, the workspace they work in, and what they may do there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Concatenate, ParamSpec, cast

from django.contrib.auth.decorators import login_required
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from accounts.models import Membership, User, Workspace
from accounts.services import Actor
from gateway_project.core.middleware import context_of

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

    def must_change(self) -> None:
        if not self.can_change:
            raise PermissionDenied


def room(
    view: Callable[Concatenate[HttpRequest, Member, P], HttpResponse],
) -> Callable[..., HttpResponse]:
    """A page of `/app/…`: for signed-in members, never kept by a cache."""

    @wraps(view)
    def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        user = cast(User, request.user)
        found = (
            Membership.objects.filter(user=user)
            .select_related("workspace__plan")
            .order_by("created_at", "pk")
            .first()
        )
        if found is None:
            return render(request, "portal/rooms/no_workspace.html", status=404)
        response = view(request, Member(user, found.workspace, found.role), *args, **kwargs)
        response["Cache-Control"] = "no-store"
        return response

    return cast(Callable[..., HttpResponse], login_required(wrapped))


def actor(request: HttpRequest, member: Member) -> Actor:
    context = context_of(request)
    return Actor(member.user.email, context.client_ip, context.request_id)
