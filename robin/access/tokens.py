"""The tokens of a session, on djangorestframework-simplejwt: what they say and how they follow.

Both kinds name their session (`sid`), which is what gets revoked. A refresh token's successor can
be computed again from the token itself and the stored row, so that a double submit gets the same
one although the database holds digests only.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Any
from uuid import UUID

from django.conf import settings
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken

from accounts.models import User
from robin.permissions import permissions_of


class Access(AccessToken):
    """Half an hour of `/api/v1`. Name, role and permissions are for the UI: the server looks up."""

    @classmethod
    def of(cls, user: User, role: str | None, session_id: UUID) -> Access:
        token = cls()
        token["sub"] = str(user.pk)
        token["sid"] = str(session_id)
        token["username"] = user.username
        token["roles"] = [role] if role is not None else []
        token["permissions"] = sorted(permissions_of(role))
        return token


class Refresh(RefreshToken):
    """Good for one refresh. `jti` of the first is random, of each other derived from its parent."""

    @classmethod
    def of(cls, user_id: UUID, session_id: UUID, *, parent: str | None, at: datetime) -> Refresh:
        token = cls()
        token.set_iat(at_time=at)
        token.set_exp(from_time=at)
        token["sub"] = str(user_id)
        token["sid"] = str(session_id)
        if parent is not None:
            key = settings.JWT_SECRET.encode()
            token["jti"] = hmac.digest(key, b"successor:" + parent.encode(), "sha256").hex()
        return token


def digest(token: Any) -> str:
    """What is stored and remembered of a token: it is long and random, so no pepper is needed."""
    return hashlib.sha256(str(token).encode()).hexdigest()
