"""What views for API keys stand on."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.http import HttpResponse

from accounts import idempotency
from accounts.authentication import Caller
from accounts.models import ApiKey, ApiKeyQuerySet, Workspace
from accounts.services import Actor
from gateway_project.core import errors
from gateway_project.core.api.viewsets import ControlPlaneViewSet
from gateway_project.core.context import context_of


class KeyedViewSet(ControlPlaneViewSet):
    """Endpoints of a signed-in key, all inside its own workspace."""

    principal: Caller

    @property
    def actor(self) -> Actor:
        return Actor.of(f"key {self.principal.key_prefix}…", context_of(self.request))

    def once(self, effect: Callable[[], HttpResponse]) -> HttpResponse:
        """`effect`'s answer; with an `Idempotency-Key` it takes place once."""
        request = self.request._request
        return idempotency.once(self.principal.workspace_id, request, effect)

    def workspace(self) -> Workspace:
        """With its plan."""
        return Workspace.objects.select_related("plan").get(pk=self.principal.workspace_id)

    def own_keys(self) -> ApiKeyQuerySet:
        return ApiKey.objects.filter(workspace_id=self.principal.workspace_id).select_related(
            "workspace__plan"
        )

    def get_own_key(self, key_id: UUID) -> ApiKey:
        """The key, or 404: another tenant's is as missing as one that never was."""
        key = self.own_keys().filter(pk=key_id).first()
        if key is None:
            raise errors.NotFound("This workspace has no such key. GET /v1/keys lists its keys.")
        return key

    def calling_key(self) -> ApiKey:
        return self.get_own_key(self.principal.key_id)
