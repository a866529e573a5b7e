"""What views for API keys stand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from rest_framework.request import Request

from accounts import idempotency, services
from accounts.authentication import Caller, ended_caller
from accounts.idempotency import Repeat, Sender
from accounts.models import ApiKey, ApiKeyQuerySet, Workspace
from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import ControlPlaneViewSet, DataPlaneViewSet
from gateway_project.core.context import context_of


class OnceViewSet(DataPlaneViewSet):
    """Endpoints of the data plane whose requests are done once under an `Idempotency-Key`."""

    principal: Caller

    def repeat(self, request: HttpRequest) -> Repeat:
        return Repeat(self.sender)

    @property
    def sender(self) -> Sender:
        caller = self.principal
        return Sender(caller.workspace_id, caller.key_id, self.request)


class KeyedViewSet(ControlPlaneViewSet):
    """Endpoints of a signed-in key, all inside its own workspace."""

    principal: Caller

    @property
    def actor(self) -> Actor:
        return Actor.of(f"key {self.principal.key_prefix}…", context_of(self.request))

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        try:
            super().initial(request, *args, **kwargs)
        except errors.InvalidAPIKey:
            again = self._done_by_a_key_that_ended(request)
            if again is None:
                raise
            setattr(self, str(request.method).lower(), lambda *_, **__: again)

    def _done_by_a_key_that_ended(self, request: Request) -> HttpResponse | None:
        """A lost answer of what ended the key itself, rotating or revoking it, locks nobody out.

        Only for an `Idempotency-Key` that nobody guesses, who may have found the old key.
        """
        sent = request._request
        if sent.method not in idempotency.METHODS or not idempotency.is_unguessable(sent):
            return None
        caller = ended_caller(sent)
        if caller is None:
            return None
        return idempotency.answered(Sender(caller.workspace_id, caller.key_id, sent))

    def once(
        self,
        effect: Callable[[], HttpResponse],
        *,
        prepare: Callable[[], None] = lambda: None,
    ) -> HttpResponse:
        """`effect`'s answer; with an `Idempotency-Key` it takes place once.

        `effect` is in a transaction; `prepare`, which may take its time, is before it.
        """
        return idempotency.once(self.sender, effect, prepare=prepare)

    @property
    def sender(self) -> Sender:
        caller = self.principal
        return Sender(caller.workspace_id, caller.key_id, self.request._request)

    def workspace(self) -> Workspace:
        """With its plan."""
        return Workspace.objects.select_related("plan").get(pk=self.principal.workspace_id)

    def own_keys(self) -> ApiKeyQuerySet:
        """The workspace's; of those that playgrounds hold none but the caller itself."""
        known = Q(is_session=False) | Q(pk=self.principal.key_id)
        return ApiKey.objects.filter(
            known, workspace_id=self.principal.workspace_id
        ).select_related("workspace__plan")

    def get_own_key(self, key_id: UUID) -> ApiKey:
        """The key, or 404: another tenant's is as missing as one that never was."""
        key = self.own_keys().filter(pk=key_id).first()
        if key is None:
            raise errors.NotFound("This workspace has no such key. GET /v1/keys lists its keys.")
        return key

    def revoked(self, key_id: UUID) -> HttpResponse:
        services.revoke_key(self.get_own_key(key_id), actor=self.actor)
        return reply(None, status=204)

    def calling_key(self) -> ApiKey:
        return self.get_own_key(self.principal.key_id)
