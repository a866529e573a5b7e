"""Which members of staff may do what. A role is a group of Django's, by name; superusers do all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied

from accounts import people

SUPPORT, FINANCE, OPERATOR = "support", "finance", "operator"
RIGHTS: Mapping[str, frozenset[str]] = {
    SUPPORT: frozenset({"look", "note", "see_as", "help", "revoke"}),
    FINANCE: frozenset({"look", "note", "limits"}),
    OPERATOR: frozenset({"look", "note", "see_as", "help", "revoke", "limits", "suspend", "run"}),
}
"""`help`: resend, extend, end sessions. `run`: breakers, incidents, announcements."""


def roles_of(user: Any) -> list[str]:
    """Of staff; superusers are operators. Nobody else has any."""
    if not (user.is_active and user.is_staff):
        return []
    if user.is_superuser:
        return [OPERATOR]
    return [name for name in user.groups.values_list("name", flat=True) if name in RIGHTS]


def rights_of(user: Any) -> frozenset[str]:
    return frozenset().union(*(RIGHTS[role] for role in roles_of(user)))


def must(user: Any, right: str) -> None:
    """Raise 403 unless a role of theirs has the right."""
    if right not in rights_of(user):
        raise PermissionDenied


def lacks_factor(user: Any) -> bool:
    """Whether they have to add a second factor before they see anything as staff."""
    return settings.STAFF_TWO_FACTORS and not people.has_second_factor(user)
