"""Who is in a page of the mail server: somebody with a role at Robin, with or without a workspace.

The permissions are the API's, and so is the limit: a page costs one of the calls that a person has
in a minute under `/api/v1`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils.translation import gettext_noop

from accounts import people
from accounts.adapter import actor_of
from accounts.events import audit
from accounts.models import User
from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.core.api.error_pages import refuse
from gateway_project.core.ratelimit import get_limiter, per_minute
from portal import exports
from portal.members import Member, place_of
from portal.posting import signed_in
from robin.permissions import Permission, permissions_of
from robin.upstream.client import from_thread

T = TypeVar("T")
NOT_HIS = gettext_noop(
    "Your role at the mail server does not show this. An administrator of Robin can give you one "
    "that does."
)


@dataclass(frozen=True, slots=True)
class Operator:
    """A user with a role at Robin; `member` is their place in a workspace, if they have one."""

    user: User
    role: str
    permissions: frozenset[str]
    member: Member | None

    @property
    def can_act(self) -> bool:
        return Permission.MANAGE_QUEUE in self.permissions

    @property
    def can_delete(self) -> bool:
        """And so may force what is being delivered: it takes the most that one may do."""
        return Permission.DELETE_QUEUE_ITEMS in self.permissions

    @property
    def can_read_log(self) -> bool:
        return Permission.VIEW_LOGS in self.permissions

    @property
    def can_read_mail(self) -> bool:
        return Permission.VIEW_STORAGE in self.permissions

    @property
    def can_see_charts(self) -> bool:
        return Permission.VIEW_METRICS in self.permissions

    def actor(self, request: HttpRequest) -> Actor:
        return actor_of(request, self.user.email)


View = Callable[..., HttpResponseBase]
Files = Mapping[str, Callable[[], exports.Table]]


def mail_page(permission: Permission) -> Callable[[View], View]:
    """A page for who has that permission; to people without a role it is not there."""

    def decorate(view: View) -> View:
        @wraps(view)
        def wrapped(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            user = cast(User, request.user)
            access = getattr(user, "robin_access", None)
            if access is None:
                raise Http404
            role = str(access.role)
            operator = Operator(user, role, permissions_of(role), place_of(request, user))
            try:
                if permission not in operator.permissions:
                    _tell(request, operator, permission)
                    raise errors.PermissionDenied(NOT_HIS)
                _count(user)
                response = view(request, operator, *args, **kwargs)
            except errors.GatewayError as error:
                return refuse(request, error)
            response.setdefault("Cache-Control", "no-store")
            return response

        wrapped.permission = permission  # type: ignore[attr-defined]  # for tests of all pages
        return signed_in(wrapped)

    return decorate


def _count(user: User) -> None:
    if settings.RATE_LIMIT_ENABLED:
        limit = per_minute("minute", f"{{user:{user.pk}}}", settings.RATE_LIMIT_PER_MINUTE)
        get_limiter().check_sync((limit,), (1,)).raise_if_denied()


def _tell(request: HttpRequest, operator: Operator, permission: Permission) -> None:
    if people.is_worth_telling("robin-access", operator.user.pk):
        fields = operator.actor(request).fields()
        audit("access.refused", target=permission, role=operator.role, **fields)


def show(
    request: HttpRequest, operator: Operator, template: str, *, status: int = 200, **facts: Any
) -> HttpResponse:
    """`templates/portal/mail/{template}.html`."""
    known = {
        "operator": operator,
        "member": operator.member,
        "has_no_workspace": operator.member is None,
        "is_configured": bool(settings.ROBIN_CLIENT_API_URL),
    }
    return render(request, f"portal/mail/{template}.html", {**known, **facts}, status=status)


def show_or_file(
    request: HttpRequest, operator: Operator, template: str, files: Files, **facts: Any
) -> HttpResponseBase:
    """The same page, or that one of its `files` that the query names (`portal/exports.py`): with
    its filters, and for whoever the page is for."""
    if exports.NAME in request.GET:
        return exports.page(request, "", {}, files)
    return show(request, operator, template, files=files, **facts)


def tried(work: Coroutine[Any, Any, T]) -> tuple[T | None, errors.GatewayError | None]:
    """What came of it, or why nothing did: the page is shown all the same, and says so."""
    try:
        return from_thread(work), None
    except errors.GatewayError as error:
        return None, error
