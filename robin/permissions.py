"""Who may do what with Robin: four roles, each with what the one before it has, and more.

Names are those of Robin UI, which refuses a sign-in that holds one it does not know. The server
checks them on every route (`@endpoint(permission, …)`); what the UI shows is only convenience.
"""

from __future__ import annotations

from django.conf import settings
from django.db.models import TextChoices


class Permission(TextChoices):
    VIEW_DASHBOARD = "VIEW_DASHBOARD"
    VIEW_QUEUE = "VIEW_QUEUE"
    MANAGE_QUEUE = "MANAGE_QUEUE"
    DELETE_QUEUE_ITEMS = "DELETE_QUEUE_ITEMS"
    VIEW_STORAGE = "VIEW_STORAGE"
    MANAGE_STORAGE = "MANAGE_STORAGE"
    VIEW_SECURITY = "VIEW_SECURITY"
    MANAGE_SECURITY = "MANAGE_SECURITY"
    VIEW_ROUTING = "VIEW_ROUTING"
    MANAGE_ROUTING = "MANAGE_ROUTING"
    VIEW_METRICS = "VIEW_METRICS"
    VIEW_LOGS = "VIEW_LOGS"
    VIEW_SETTINGS = "VIEW_SETTINGS"
    MANAGE_SERVER_CONFIG = "MANAGE_SERVER_CONFIG"
    MANAGE_USERS = "MANAGE_USERS"
    VIEW_DOMAINS = "VIEW_DOMAINS"
    MANAGE_DOMAINS = "MANAGE_DOMAINS"


class Role(TextChoices):
    READONLY = "ROLE_READONLY", "read only"
    USER = "ROLE_USER", "user"
    OPERATOR = "ROLE_OPERATOR", "operator"
    ADMIN = "ROLE_ADMIN", "administrator"


_READONLY = frozenset(
    {
        Permission.VIEW_DASHBOARD,
        Permission.VIEW_QUEUE,
        Permission.VIEW_STORAGE,
        Permission.VIEW_METRICS,
    }
)
_USER = _READONLY | {
    Permission.VIEW_ROUTING,
    Permission.VIEW_SECURITY,
    Permission.VIEW_DOMAINS,
    Permission.VIEW_SETTINGS,
    Permission.VIEW_LOGS,
}
_OPERATOR = _USER | {
    Permission.MANAGE_QUEUE,
    Permission.DELETE_QUEUE_ITEMS,
    Permission.MANAGE_STORAGE,
}
PERMISSIONS: dict[str, frozenset[Permission]] = {
    Role.READONLY: _READONLY,
    Role.USER: _USER,
    Role.OPERATOR: _OPERATOR,
    Role.ADMIN: frozenset(Permission),
}


def permissions_of(role: str | None) -> frozenset[Permission]:
    """None is nobody's role: no permission.

    Who reads the log sees who mails whom, so that is given by itself (`ROBIN_LOG_ROLES`).
    """
    if role is None:
        return frozenset()
    logs = {Permission.VIEW_LOGS}
    may_read = role in settings.ROBIN_LOG_ROLES
    return PERMISSIONS[role] | logs if may_read else PERMISSIONS[role] - logs
