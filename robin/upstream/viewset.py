"""What every view of Robin's API stands on: who asks, and the audit of what was done."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from django.db import Error as DatabaseError
from django.http import HttpRequest

from accounts import idempotency
from accounts.events import audit
from gateway_project.core import errors
from gateway_project.core.api.endpoint import endpoint as core_endpoint
from gateway_project.core.api.viewsets import DataPlaneViewSet
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from robin.access.authentication import TOKEN, JWTAuthentication, Member
from robin.access.repeats import sender_of

UPSTREAM = (errors.UpstreamUnavailable, errors.UpstreamTimedOut, errors.UpstreamUnexpected)
# Whoever may look may also keep looking: a mail or a log is not for shared caches.
DOWNLOAD = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = get_logger("gateway.robin")
_behind: set[asyncio.Task[None]] = set()
endpoint = partial(core_endpoint, credential=TOKEN)


class RobinViewSet(DataPlaneViewSet):
    authentication_classes = [JWTAuthentication]
    principal: Member

    def repeat(self, request: HttpRequest) -> idempotency.Repeat:
        return idempotency.Repeat(sender_of(self.principal, request))

    async def audit_first(self, action: str, *, target: str = "", **details: Any) -> None:
        """Note what is about to be done; raises `StoreUnavailable`, and then nothing is done."""
        await database.run(audit, action, **self._trail(target), **details)

    def audit_behind(self, action: str, *, target: str = "", **details: Any) -> None:
        """Note what became of it, without letting anybody wait."""
        task = asyncio.ensure_future(self.audit(action, target=target, **details))
        _behind.add(task)
        task.add_done_callback(_behind.discard)

    def _who(self) -> dict[str, Any]:
        return {
            "actor": self.principal.email,
            "client_ip": self.context.client_ip,
            "request_id": self.context.request_id,
        }

    def _trail(self, target: str) -> dict[str, Any]:
        return {**self._who(), "target": target[:100]}

    async def audit(self, action: str, *, target: str = "", **details: Any) -> None:
        """Note what was done. A database that is away is no reason to say that it was not."""
        try:
            await database.run(audit, action, **self._trail(target), **details)
        except (errors.StoreUnavailable, DatabaseError) as exc:
            log.error("audit_failed", action=action, target=target, error=type(exc).__name__)


def invalid(field: str, message: str) -> errors.ValidationFailed:
    return errors.ValidationFailed(errors=[{"field": field, "message": message}])
