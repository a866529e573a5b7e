"""JSON for staff with a role. To who is not staff these addresses do not exist."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404
from rest_framework.authentication import SessionAuthentication
from rest_framework.request import Request

from accounts import roles
from accounts.admin.lists import KEY_PREFIX
from accounts.admin.people import named
from accounts.models import ApiKey, User
from accounts.usage import reports
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Credential, asked
from gateway_project.core.api.endpoint import endpoint as core_endpoint
from gateway_project.core.api.fields import IdText
from gateway_project.core.api.pagination import page
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet
from gateway_project.core.context import RequestContext
from gateway_project.core.ratelimit import Policy, per_minute
from gateway_project.staff import numbers
from gateway_project.staff.schemas import (
    KeyUsage,
    Range,
    StaffUserList,
    StaffUserView,
    Stats,
    UsageQuery,
    UsersQuery,
)
from robin.access.authentication import StaffJWTAuthentication, read

STAFF = Credential(
    errors.NotFound,
    errors.NotFound,
    "",
    (errors.InvalidToken,),
    {
        "AdminSession": {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME},
        "StaffToken": {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT of a member of staff",
        },
    },
)
endpoint = partial(
    core_endpoint,
    tags=("staff",),
    credential=STAFF,
    problems=[errors.NotFound, errors.PermissionDenied, errors.ValidationFailed],
)


@dataclass(frozen=True, slots=True)
class StaffSession:
    """A member of staff in the admin, as a principal of `ControlPlaneViewSet`."""

    policies: tuple[Policy, ...]
    scopes: frozenset[str] = frozenset()

    def begin_usage(self, context: RequestContext, request_bytes: int) -> None:
        """Usage is what API keys have."""


class AdminSession(SessionAuthentication):
    """The cookie of a member of staff who is signed in."""

    def authenticate(self, request: Request) -> tuple[Any, StaffSession] | None:
        found = super().authenticate(request)
        if found is None or not found[0].is_staff:
            return None
        user = found[0]
        # The name 'minute' is what `@endpoint(minute_cost=…)` speaks of.
        limit = per_minute("minute", f"{{user:{user.pk}}}", settings.RATE_LIMIT_PER_MINUTE)
        return user, StaffSession((limit,) if settings.RATE_LIMIT_ENABLED else ())


class StaffToken(StaffJWTAuthentication):
    """An access token of a member of staff; an API key in its place is not a token at all."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        try:
            text = read(request.META)
        except errors.MissingToken:
            return None
        return None if text.startswith(KEY_PREFIX) else super().authenticate(request)


class StaffViewSet(ControlPlaneViewSet):
    authentication_classes = [AdminSession, StaffToken]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        if request.auth is None:
            raise errors.NotFound  # also before a wrong method is said to be one
        super().initial(request, *args, **kwargs)

    def check_permissions(self, request: Request) -> None:
        """What the desk wants of whoever looks there: a second factor, and a role."""
        person = get_object_or_404(User, pk=request.user.pk)
        if roles.lacks_factor(person):
            raise errors.PermissionDenied(
                "Staff need a second factor: add a passkey or an app at /accounts/2fa/."
            )
        roles.must(person, "look")
        super().check_permissions(request)

    @endpoint(
        operation="getStats",
        summary="The installation in numbers",
        description=(
            "Read from roll-ups. `since` counts from the beginning of its hour (of its day when "
            "the range is longer than a fortnight). `active_keys`, what waits of `webhooks`, "
            "`jobs` and `breakers` are of this moment whatever the range."
        ),
        answer=Stats,
        query=Range,
    )
    def stats(self, request: Request) -> HttpResponse:
        since, until = asked(request._request, Range).bounds(timedelta(days=1))
        return reply(Stats(**numbers.stats(since, until)))

    @endpoint(
        operation="listUsers",
        summary="People and what they use",
        answer=StaffUserList,
        query=UsersQuery,
    )
    def users(self, request: Request) -> HttpResponse:
        query = asked(request._request, UsersQuery)
        found = User.objects.all()
        if term := query.search.strip():
            found = named(found, term)
        # Ids are UUIDv7: by id is by the time of joining, and has an index.
        ordering = query.ordering.replace("date_joined", "id")
        people, following = page(request, found, ordering=(ordering,))
        theirs = numbers.belongings(person.pk for person in people)
        nothing = {"workspaces": 0, "keys": 0, "requests_30d": 0}
        rows = [
            StaffUserView(
                id=person.pk,
                email=person.email,
                confirmed=person.email_confirmed_at is not None,
                is_active=person.is_active,
                last_login_at=person.last_login,
                **theirs.get(person.pk, nothing),
            )
            for person in people
        ]
        return reply(StaffUserList(results=rows, next=following))

    @endpoint(
        operation="getKeyUsage",
        summary="What one key was used for",
        description=(
            "By hour up to a fortnight (hours are kept for 95 days), by day beyond, or as `period` "
            "says. The range begins with the whole bucket that `since` lies in."
        ),
        answer=KeyUsage,
        query=UsageQuery,
    )
    def usage(self, request: Request, api_key_id: IdText) -> HttpResponse:
        query = asked(request._request, UsageQuery)
        key = _key(api_key_id)
        if key is None:
            raise errors.NotFound(
                "There is no such key. Look for its id in /admin/accounts/apikey/."
            )
        since, until = query.bounds(timedelta(days=30))
        period = query.period or numbers.period_of(since, until)
        since = reports.floor(since, period)
        found = numbers.usage_of(key.pk, since, until, period)
        return reply(
            KeyUsage(
                api_key_id=key.pk,
                workspace_id=key.workspace_id,
                since=since,
                until=until,
                period=period,
                **found,
            )
        )


def _key(key_id: str) -> ApiKey | None:
    """The path takes any text: the admin would take what is no UUID for a page of its own."""
    try:
        return ApiKey.objects.filter(pk=UUID(key_id)).first()
    except ValueError:
        return None
