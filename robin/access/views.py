"""Sign-in, and the people who may. Shapes: `robin/access/schemas.py`."""

from __future__ import annotations

from functools import partial
from uuid import UUID

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from accounts.models import User
from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.core.api.endpoint import endpoint as core_endpoint
from gateway_project.core.api.pagination import Paging, page
from gateway_project.core.api.responses import SECRET_HEADERS, reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet
from gateway_project.core.context import context_of
from gateway_project.core.storable import cleaned
from robin.access import people, sessions, tickets
from robin.access.authentication import (
    TOKEN,
    JWTAuthentication,
    Member,
    check,
    expiry_of,
    is_own_origin,
    read,
)
from robin.access.repeats import MemberViewSet, changing
from robin.access.schemas import (
    LoginRequest,
    LoginView,
    NewUserRequest,
    RefreshView,
    RobinUserView,
    TicketView,
    UserList,
    UserPatch,
    UserSessionList,
    UserSessionView,
    VerifyView,
)
from robin.permissions import Permission

COOKIE = "refreshToken"
COOKIE_PATH = "/api/v1/auth"
SIGN_IN = ("robin sign-in",)
USERS = ("robin users",)
endpoint = partial(core_endpoint, credential=TOKEN)


class SignInViewSet(ControlPlaneViewSet):
    """What needs no access token: it is how one gets, renews and gives up one."""

    authentication_classes = []

    @endpoint(
        operation="login",
        summary="Sign in",
        description=(
            "By e-mail or user name. The access token lasts 30 minutes; the refresh token comes "
            "as an HttpOnly cookie, lasts 7 days and is good once. Five attempts a minute for an "
            "address; whoever has no role is answered like a wrong password."
        ),
        tags=SIGN_IN,
        body=LoginRequest,
        answer=LoginView,
        headers=["Set-Cookie"],
        public=True,
        problems=[errors.SignInRefused, errors.SecondFactorRequired, errors.PermissionDenied],
    )
    def login(self, request: Request) -> HttpResponse:
        _refuse_foreign(request)
        body = self.parsed(LoginRequest)
        session = sessions.sign_in(
            body.username,
            body.password,
            otp=body.otp,
            actor=_actor(request, body.username),
            user_agent=cleaned(request.headers.get("user-agent", "")),
        )
        answer = LoginView.of(session, _expires_in())
        return _with_cookie(reply(answer, headers=SECRET_HEADERS), session.refresh)

    @endpoint(
        operation="refreshToken",
        summary="Exchange the refresh cookie for a new access token",
        description=(
            "The cookie is rotated. One that was used before ends the session, unless it was "
            "within the last 10 seconds: then the same successor comes again."
        ),
        tags=SIGN_IN,
        answer=RefreshView,
        headers=["Set-Cookie"],
        public=True,
        problems=[errors.NoSession, errors.InvalidToken, errors.PermissionDenied],
    )
    def refresh(self, request: Request) -> HttpResponse:
        _refuse_foreign(request)
        text = request.COOKIES.get(COOKIE)
        if not text:
            raise errors.NoSession
        session = sessions.refresh(text, actor=_actor(request, "refresh"))
        answer = RefreshView(accessToken=session.access, expiresIn=_expires_in())
        return _with_cookie(reply(answer, headers=SECRET_HEADERS), session.refresh)

    @endpoint(
        operation="logout",
        summary="Sign out",
        description="Ends the session of the cookie, of the access token, or both. Never fails.",
        tags=SIGN_IN,
        status=204,
        headers=["Set-Cookie"],
        public=True,
        problems=[errors.PermissionDenied],
    )
    def logout(self, request: Request) -> HttpResponse:
        _refuse_foreign(request)
        text = request.COOKIES.get(COOKIE)
        if text:
            sessions.sign_out(text, actor=_actor(request, "sign-out"))
        member = _bearer(request)
        if member is not None:
            actor = _actor(request, member.email)
            sessions.revoke(member.session_id, because="sign_out", actor=actor)
        response = reply(None, status=204)
        response.delete_cookie(COOKIE, path=COOKIE_PATH, samesite="Strict")
        return response

    @endpoint(
        operation="verifyToken",
        summary="Is the access token good?",
        description="Public: without a token the answer is `false`, not 401.",
        tags=SIGN_IN,
        answer=VerifyView,
        public=True,
    )
    def verify(self, request: Request) -> HttpResponse:
        return reply(VerifyView(valid=_bearer(request) is not None))


class SessionViewSet(ControlPlaneViewSet):
    authentication_classes = [JWTAuthentication]
    principal: Member

    @endpoint(operation="getMe", summary="Who am I?", tags=SIGN_IN, answer=RobinUserView)
    def me(self, request: Request) -> HttpResponse:
        user = User.objects.filter(pk=self.principal.user_id).first()
        if user is None:
            raise errors.InvalidToken
        return reply(RobinUserView.of(user, self.principal.role))

    @endpoint(
        operation="createWebSocketTicket",
        summary="A ticket for one WebSocket",
        description="Good once, for 30 seconds: `/ws/queue?ticket=…`.",
        tags=SIGN_IN,
        answer=TicketView,
        scope=Permission.VIEW_QUEUE,
    )
    def ws_ticket(self, request: Request) -> HttpResponse:
        ticket = tickets.issue(self.principal.session_id, expiry_of(read(request.META)))
        answer = TicketView(ticket=ticket, expiresIn=tickets.SECONDS)
        return reply(answer, headers=SECRET_HEADERS)


class UserViewSet(MemberViewSet):
    """People with a role at Robin. Nobody gives a role above their own."""

    @endpoint(
        operation="listRobinUsers",
        summary="Users with a role",
        tags=USERS,
        answer=UserList,
        query=Paging,
        scope=Permission.MANAGE_USERS,
        problems=[errors.NotFound],  # of a broken cursor
    )
    def list(self, request: Request) -> HttpResponse:
        found = people.with_access()
        users, following = page(request, found, ordering=("-date_joined", "-id"))
        results = [
            RobinUserView.of(
                user, user.robin_access.role, sessions=getattr(user, "open_sessions", 0)
            )
            for user in users
        ]
        return reply(UserList(results=results, next=following))

    @changing(
        operation="createRobinUser",
        summary="Make a user with a role",
        tags=USERS,
        body=NewUserRequest,
        answer=RobinUserView,
        status=201,
        scope=Permission.MANAGE_USERS,
        problems=[errors.Conflict],
    )
    def create(self, request: Request) -> HttpResponse:
        body = self.parsed(NewUserRequest)
        user = people.create(
            username=body.username,
            email=body.email,
            password=body.password,
            role=body.roles[0],
            is_active=body.isActive,
            by=self.principal,
            actor=_actor(request, self.principal.email),
        )
        return reply(RobinUserView.of(user, body.roles[0]), status=201)

    @changing(
        operation="updateRobinUser",
        summary="Change a user",
        tags=USERS,
        body=UserPatch,
        answer=RobinUserView,
        scope=Permission.MANAGE_USERS,
        problems=[errors.NotFound, errors.Conflict],
    )
    def update(self, request: Request, username: str) -> HttpResponse:
        body = self.parsed(UserPatch)
        user = people.change(
            username,
            email=body.email,
            password=body.password,
            role=body.roles[0] if body.roles else None,
            is_active=body.isActive,
            by=self.principal,
            actor=_actor(request, self.principal.email),
        )
        return reply(RobinUserView.of(user, user.robin_access.role))

    @changing(
        operation="deleteRobinUser",
        summary="Take a user's role away",
        description="The account itself goes too, when it was only for Robin.",
        tags=USERS,
        status=204,
        scope=Permission.MANAGE_USERS,
        problems=[errors.NotFound, errors.Conflict],
    )
    def destroy(self, request: Request, username: str) -> HttpResponse:
        actor = _actor(request, self.principal.email)
        people.remove(username, by=self.principal, actor=actor)
        return reply(None, status=204)


class UserSessionViewSet(MemberViewSet):
    """Where somebody is signed in."""

    @endpoint(
        operation="listRobinUserSessions",
        summary="Where a user is signed in",
        tags=USERS,
        answer=UserSessionList,
        scope=Permission.MANAGE_USERS,
        problems=[errors.NotFound],
    )
    def sessions(self, request: Request, username: str) -> HttpResponse:
        found = people.sessions_of(username, by=self.principal)
        return reply(UserSessionList(results=[UserSessionView.of(one) for one in found]))

    @changing(
        operation="endRobinUserSession",
        summary="End a session of a user",
        description="Everywhere, within a second.",
        tags=USERS,
        status=204,
        scope=Permission.MANAGE_USERS,
        problems=[errors.NotFound],
    )
    def end(self, request: Request, username: str, session_id: UUID) -> HttpResponse:
        actor = _actor(request, self.principal.email)
        people.end_session(username, session_id, by=self.principal, actor=actor)
        return reply(None, status=204)


def _actor(request: Request, name: str) -> Actor:
    return Actor.of(name, context_of(request))


def _expires_in() -> int:
    return int(settings.ACCESS_TOKEN_EXPIRE_MINUTES * 60)


def _bearer(request: Request) -> Member | None:
    """Whose access token it is; None when there is none, or none that is good."""
    try:
        return check(read(request.META), context_of(request).client_ip)
    except (errors.MissingToken, errors.InvalidToken):
        return None


def _refuse_foreign(request: HttpRequest | Request) -> None:
    """Cookies need no form token here: a page of another site may not call at all."""
    origin = request.headers.get("origin")
    if origin is not None and not is_own_origin(origin, request.headers.get("host", "")):
        raise errors.PermissionDenied(
            "Pages of this origin may not call. Who runs the gateway can add it to CORS_ORIGINS."
        )


def _with_cookie(response: HttpResponse, refresh: str) -> HttpResponse:
    response.set_cookie(
        COOKIE,
        refresh,
        max_age=settings.REFRESH_TOKEN_EXPIRE_DAYS * 86_400,
        path=COOKIE_PATH,
        secure=settings.HTTPS_ONLY,
        httponly=True,
        samesite="Strict",
    )
    return response
