"""Keys and the account behind them. Shapes: `accounts/schemas.py`."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from accounts import audit, idempotency, services
from accounts.adapter import send_confirmation
from accounts.idempotency import Sender
from accounts.models import (
    AUDIT_SCOPE,
    DEFAULT_SCOPES,
    Membership,
    User,
    Workspace,
    normal_email,
)
from accounts.schemas import (
    AuditQuery,
    AuditRecord,
    AuditRecords,
    KeyList,
    KeyPatch,
    KeyRequest,
    KeyView,
    Limits,
    NewKeyView,
    PlanView,
    PolicyState,
    PreviousKey,
    Profile,
    RegisterRequest,
    Registration,
    RevokeQuery,
    RotateRequest,
    Rotation,
    Usage,
    UserView,
    WindowUsage,
    WorkspaceView,
)
from accounts.services import Actor
from accounts.usage import reports
from accounts.viewsets import KeyedViewSet
from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked, endpoint
from gateway_project.core.api.pagination import Paging, page
from gateway_project.core.api.responses import SECRET_HEADERS, reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet, DataPlaneViewSet
from gateway_project.core.context import context_of
from gateway_project.core.ratelimit import State, address_subject, per_hour

REGISTRATIONS_PER_HOUR = 5
ACCOUNT = ("account",)
KEYS = ("keys",)
AUDIT = ("audit",)


class RegistrationViewSet(ControlPlaneViewSet):
    authentication_classes = []

    @endpoint(
        operation="register",
        summary="Register a developer",
        description=(
            "Makes the account, a workspace and its first key. The key is shown this once. Until "
            "the link in our mail confirms the address it works at 10 calls a minute and 100 a day."
        ),
        tags=ACCOUNT,
        body=RegisterRequest,
        answer=Registration,
        status=201,
        public=True,
        problems=[errors.EmailTaken, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def create(self, request: Request) -> HttpResponse:
        body = self.parsed(RegisterRequest)
        context = context_of(request)
        before = self._made_before(body)
        if before is not None:
            return before
        # Counted only once the body is right: five typing errors must not cost an hour.
        subject = address_subject(context.client_ip)
        self.limit((per_hour("register", subject, REGISTRATIONS_PER_HOUR),), 1)
        answers = []

        def answer(made: services.Registered) -> None:
            shown = Registration(
                user=UserView.of(made.user),
                workspace=WorkspaceView.of(made.workspace),
                api_key=NewKeyView.of(made.key, key=made.secret),
            )
            answers.append(reply(shown, status=201, headers=SECRET_HEADERS))
            sender = self._sender(body, made.workspace)
            if sender.key is not None:
                idempotency.remember(sender, answers[0])

        try:
            made = services.register(
                body.email,
                body.password,
                body.name or "",
                actor=Actor.of(body.email, context),
                within=answer,
            )
        except errors.EmailTaken:
            before = self._made_before(body)  # at the same moment
            if before is None:
                raise
            return before
        send_confirmation(request._request, made.user)
        return answers[0]

    def _sender(self, body: RegisterRequest, workspace: Workspace) -> Sender:
        # Not the password: of what is remembered it could be guessed at leisure.
        content = f"{normal_email(body.email)}\n{body.name or ''}".encode()
        return Sender(workspace.pk, "register", self.request._request, content=content)

    def _made_before(self, body: RegisterRequest) -> HttpResponse | None:
        """What this very request was answered, to somebody who knows the password as well."""
        if idempotency.key_of(self.request._request) is None:
            return None
        user = User.objects.filter(email=normal_email(body.email)).first()
        workspace = Workspace.objects.filter(
            memberships__user=user, memberships__role=Membership.Role.OWNER
        ).first()
        if user is None or workspace is None:
            return None
        before = idempotency.answered(self._sender(body, workspace))
        return before if before is not None and user.check_password(body.password) else None


class AccountViewSet(KeyedViewSet):
    @endpoint(
        operation="getProfile",
        summary="The calling key, its workspace, limits and usage",
        tags=ACCOUNT,
        answer=Profile,
    )
    def profile(self, request: Request) -> HttpResponse:
        key = self.calling_key()
        states = {state.name: state for state in self.states}
        return reply(
            Profile(
                api_key=KeyView.of(key),
                workspace=WorkspaceView.of(key.workspace),
                plan=PlanView.of(key.workspace.plan),
                usage=Usage(
                    minute=_window(states.get("minute")),
                    day=_window(states.get("day")),
                    last_30_days=reports.per_day(key.pk),
                ),
            )
        )

    @endpoint(
        operation="rotateKey",
        summary="Replace the calling key",
        description=(
            "The successor has the same scopes, networks, limits and expiry; the old key works on "
            "for `grace_seconds`. The new key is shown this once."
        ),
        tags=ACCOUNT,
        body=RotateRequest,
        answer=Rotation,
        status=201,
        problems=[errors.Conflict, errors.TooMany, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def rotate(self, request: Request) -> HttpResponse:
        body = self.parsed(RotateRequest)
        return self.once(partial(self._rotate, body))

    def _rotate(self, body: RotateRequest) -> HttpResponse:
        old = self.calling_key()
        successor, text = services.rotate_key(
            old, grace_seconds=body.grace_seconds, actor=self.actor
        )
        answer = Rotation(
            api_key=NewKeyView.of(successor, key=text),
            previous=PreviousKey(id=old.pk, grace_until=old.grace_until),
        )
        return reply(answer, status=201, headers=SECRET_HEADERS)

    @endpoint(
        operation="revokeKey",
        summary="Revoke a key",
        description="The calling key, or with the scope `keys:write` another of the workspace.",
        tags=ACCOUNT,
        status=204,
        minute_cost=0,  # closing a leak must never wait for a limit
        query=RevokeQuery,
        problems=[errors.NotFound, errors.ScopeDenied, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def revoke(self, request: Request) -> HttpResponse:
        key_id = asked(request._request, RevokeQuery).key_id or self.principal.key_id
        if key_id != self.principal.key_id and "keys:write" not in self.principal.scopes:
            raise errors.ScopeDenied(
                "Revoking another key needs the scope 'keys:write', which this key lacks. Use a "
                "key that has it; the portal makes one (/app/keys)."
            )
        return self.once(partial(self.revoked, key_id))


class KeyViewSet(KeyedViewSet):
    """Keys of the calling key's workspace."""

    @endpoint(
        operation="listKeys",
        summary="List keys",
        tags=KEYS,
        answer=KeyList,
        scope="keys:write",
        query=Paging,
        problems=[errors.NotFound],  # of a broken cursor
    )
    def list(self, request: Request) -> HttpResponse:
        found = self.own_keys().listed().without_policies()
        keys, following = page(request, found, ordering=("-created_at", "-id"))
        return reply(KeyList(results=[KeyView.of(key) for key in keys], next=following))

    @endpoint(
        operation="createKey",
        summary="Make a key",
        description="Limits never exceed the plan's. The key is shown this once.",
        tags=KEYS,
        body=KeyRequest,
        answer=NewKeyView,
        status=201,
        headers=["Location"],
        scope="keys:write",
        problems=[errors.TooMany, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def create(self, request: Request) -> HttpResponse:
        body = self.parsed(KeyRequest)
        return self.once(partial(self._create, body))

    def _may_give(self, scopes: Iterable[str] | None) -> None:
        if AUDIT_SCOPE in (scopes or ()) and AUDIT_SCOPE not in self.principal.scopes:
            raise errors.ScopeDenied(
                "Giving a key the scope 'audit:read' needs a key that has it. Use one; the portal "
                "makes one for owners and admins (/app/keys)."
            )

    def _create(self, body: KeyRequest) -> HttpResponse:
        self._may_give(body.scopes)
        workspace = self.calling_key().workspace
        services.check_within_plan(
            workspace.plan, per_minute=body.rate_limit_per_minute, per_day=body.rate_limit_per_day
        )
        key, text = services.issue_key(
            workspace,
            actor=self.actor,
            name=body.name,
            scopes=body.scopes or DEFAULT_SCOPES,
            allowed_cidrs=body.allowed_cidrs,
            expires_at=body.expires_at,
            rate_limit_per_minute=body.rate_limit_per_minute,
            rate_limit_per_day=body.rate_limit_per_day,
            tags=body.tags,
            owner=body.owner,
            is_test=body.is_test,
            within_plan=True,
        )
        return reply(
            NewKeyView.of(key, key=text),
            status=201,
            headers={**SECRET_HEADERS, "Location": f"/v1/keys/{key.pk}"},
        )

    @endpoint(
        operation="getKey",
        summary="One key",
        tags=KEYS,
        answer=KeyView,
        scope="keys:write",
        problems=[errors.NotFound],
    )
    def retrieve(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002 - the URL's name
        return reply(KeyView.of(self.get_own_key(id)))

    @endpoint(
        operation="updateKey",
        summary="Change a key",
        tags=KEYS,
        body=KeyPatch,
        answer=KeyView,
        scope="keys:write",
        problems=[errors.NotFound, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def partial_update(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        body = self.parsed(KeyPatch)
        changes: dict[str, Any] = body.model_dump(exclude_unset=True)
        # Only an expiry can be taken away; null elsewhere means "leave it".
        changes = {k: v for k, v in changes.items() if v is not None or k == "expires_at"}
        return self.once(partial(self._change, id, changes))

    def _change(self, key_id: UUID, changes: dict[str, Any]) -> HttpResponse:
        key = self.get_own_key(key_id)
        if AUDIT_SCOPE not in key.scopes:
            self._may_give(changes.get("scopes"))
        if changes:
            services.update_key(key, changes, actor=self.actor)
        return reply(KeyView.of(key))

    @endpoint(
        operation="deleteKey",
        summary="Revoke a key",
        tags=KEYS,
        status=204,
        scope="keys:write",
        minute_cost=0,
        problems=[errors.NotFound, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def destroy(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        return self.once(partial(self.revoked, id))


class AuditViewSet(KeyedViewSet):
    @endpoint(
        operation="listAudit",
        summary="Who did what in the workspace, newest first",
        description=(
            "Of as many days as the plan keeps: keys, policies, webhooks, people, sign-ins, and "
            "what the operators of this gateway did to the workspace."
        ),
        tags=AUDIT,
        answer=AuditRecords,
        scope="audit:read",
        query=AuditQuery,
        problems=[errors.NotFound],  # of a broken cursor
    )
    def list(self, request: Request) -> HttpResponse:
        query = asked(request._request, AuditQuery)
        wanted = audit.Wanted(query.action, query.actor, query.target, query.since, query.until)
        among = audit.of_workspace(self.workspace())
        found = audit.of_workspace(self.workspace(), wanted)
        rows, following = page(request, found, ordering=("-at", "-id"), among=among)
        results = [AuditRecord(**audit.shown(row)) for row in rows]
        return reply(AuditRecords(results=results, next=following))


class LimitsViewSet(DataPlaneViewSet):
    @endpoint(
        operation="getLimits",
        summary="What is left of the calling key's limits",
        description="Costs nothing.",
        tags=ACCOUNT,
        answer=Limits,
        minute_cost=0,
    )
    async def retrieve(self, request: HttpRequest) -> HttpResponse:
        return reply(Limits(policies=[_state(state) for state in self.states]))


def _state(state: State) -> PolicyState:
    return PolicyState(
        name=state.name,
        limit=state.limit,
        remaining=state.remaining,
        reset_seconds=state.reset_seconds,
        window_seconds=state.window_seconds,
    )


def _window(state: State | None) -> WindowUsage | None:
    if state is None:
        return None
    return WindowUsage(
        limit=state.limit, remaining=state.remaining, reset_seconds=state.reset_seconds
    )
