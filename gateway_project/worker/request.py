"""A message as the worker takes it."""

from __future__ import annotations

from typing import Any

from celery.worker import request
from celery.worker.state import revoked

from gateway_project.core import clock


class Request(request.Request):
    """Ends by the installation's clock, as its sender said it: Celery asks the host's."""

    def maybe_expire(self) -> Any:
        if self.expires is None or clock.now() <= self.expires:
            return False
        revoked.add(self.id)
        return True
