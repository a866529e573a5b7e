"""DRF's default permission here: an action says by `@endpoint` who may call it."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request


class IsDeclared(BasePermission):
    """Any other view of DRF's is refused until it names `permission_classes` of its own."""

    def has_permission(self, request: Request, view: Any) -> bool:
        return hasattr(getattr(view, getattr(view, "action", None) or "", None), "endpoint")
