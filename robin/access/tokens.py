"""The tokens of a session, on djangorestframework-simplejwt: what they say and how they follow.

Both kinds name their session (`sid`), which is what gets revoked. A refresh token's successor can
be computed again from the token itself and the stored row, so that a double submit gets the same
one although the database holds digests only.

Times are the installation's (`core/clock.py`). A token may begin `JWT_LEEWAY_SECONDS` from now: a
host may not have been told them yet. A new signing key is known everywhere, as a fallback, before
any host signs with it.
"""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any
from uuid import UUID

import jwt
from django.conf import settings
from rest_framework_simplejwt.backends import TokenBackend
from rest_framework_simplejwt.exceptions import TokenBackendError, TokenError
from rest_framework_simplejwt.tokens import AccessToken, RefreshToken, Token
from rest_framework_simplejwt.utils import datetime_from_epoch

from accounts.models import User
from gateway_project.core import clock
from robin.permissions import permissions_of

UNTIMED = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}  # `_OnClock` looks


class _Backend(TokenBackend):
    """simplejwt's with any of `keys`, the first of which signs; it leaves times to the token."""

    def __init__(self, algorithm: str, keys: tuple[str, ...]) -> None:
        super().__init__(algorithm, keys[0])
        self._keys = keys

    def decode(self, token: Any, verify: bool = True) -> dict[str, Any]:
        options: Any = {**UNTIMED, "verify_aud": False, "verify_signature": verify}
        for key in self._keys:
            try:
                return jwt.decode(token, key, algorithms=[self.algorithm], options=options)
            except jwt.InvalidSignatureError:
                continue
            except jwt.InvalidTokenError as exc:
                raise TokenBackendError("Token is invalid") from exc
        raise TokenBackendError("Token is invalid")


@lru_cache(maxsize=4)
def _backend(algorithm: str, keys: tuple[str, ...]) -> _Backend:
    return _Backend(algorithm, keys)


def signing_keys() -> tuple[str, ...]:
    """The one that signs first."""
    return (settings.JWT_SECRET, *settings.JWT_SECRET_FALLBACKS)


class _OnClock(Token):
    """Begins and ends by the installation's clock."""

    signed_with = ""  # another signing key than the one in front

    def get_token_backend(self) -> TokenBackend:
        keys = (self.signed_with,) if self.signed_with else signing_keys()
        return _backend(settings.JWT_ALGORITHM, keys)

    def verify(self) -> None:
        self.current_time = clock.now()
        super().verify()
        soon = self.current_time + timedelta(seconds=settings.JWT_LEEWAY_SECONDS)
        for claim in ("iat", "nbf"):
            begins = self.payload.get(claim)
            if begins is not None and datetime_from_epoch(begins) > soon:
                raise TokenError("Token is of the future")


class Access(_OnClock, AccessToken):
    """Half an hour of `/api/v1`. Name, role and permissions are for the UI: the server looks up."""

    @classmethod
    def of(cls, user: User, role: str | None, session_id: UUID) -> Access:
        token, now = cls(), clock.now()
        token.set_iat(at_time=now)
        token.set_exp(from_time=now)
        token["sub"] = str(user.pk)
        token["sid"] = str(session_id)
        token["username"] = user.username
        token["roles"] = [role] if role is not None else []
        token["permissions"] = sorted(permissions_of(role))
        return token


class Refresh(_OnClock, RefreshToken):  # type: ignore[misc]  # of its own bases
    """Good for one refresh. `jti` of the first is random, of each other derived from its parent."""

    @classmethod
    def of(
        cls,
        user_id: UUID,
        session_id: UUID,
        *,
        parent: str | None,
        at: datetime,
        signed_with: str = "",
    ) -> Refresh:
        token = cls()
        token.signed_with = signed_with
        token.set_iat(at_time=at)
        token.set_exp(from_time=at)
        token["sub"] = str(user_id)
        token["sid"] = str(session_id)
        if parent is not None:
            key = (signed_with or settings.JWT_SECRET).encode()
            token["jti"] = hmac.digest(key, b"successor:" + parent.encode(), "sha256").hex()
        return token


def digest(token: Any) -> str:
    """What is stored and remembered of a token: it is long and random, so no pepper is needed."""
    return hashlib.sha256(str(token).encode()).hexdigest()
