"""Signing in, staying and leaving. Each session is a family of refresh tokens, revoked as a whole.

A refresh token is good once. Shown again within `DOUBLE_SUBMIT_SECONDS` it gets the successor that
it got before (two tabs, a retried request); later it was copied, and the family ends.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import transaction
from rest_framework_simplejwt.exceptions import TokenError

from accounts import lockout
from accounts.events import audit
from accounts.models import User, normal_email
from accounts.services import Actor
from gateway_project.core import clock, errors
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import bound_reached
from robin.access.authentication import forget
from robin.access.tokens import Access, Refresh, digest, signing_keys
from robin.models import RefreshFamily, RefreshToken

DOUBLE_SUBMIT_SECONDS = 10
PASSWORD_AND_CODE = re.compile(r"(.+) ([0-9]{6})\Z", re.DOTALL)
"""What people with a second factor type in Robin UI, which has one field."""
CODES = (Authenticator.Type.TOTP, Authenticator.Type.RECOVERY_CODES)
"""Second factors that are typed; a passkey is not."""
log = get_logger("gateway.robin")


@dataclass(frozen=True, slots=True)
class Session:
    """What a sign-in or a refresh gives. `refresh` goes into the cookie and nowhere else."""

    user: User
    role: str | None
    access: str
    refresh: str


def sign_in(
    name: str, password: str, *, otp: str = "", actor: Actor, user_agent: str = ""
) -> Session:
    """Open a session for e-mail or user name.

    Raises `RateLimited`, or one and the same `SignInRefused` for an unknown name, a wrong password
    or code, an inactive user and one who has no access; all take one password hash. Only the right
    password without the code that it needs raises `SecondFactorRequired`.
    """
    address = actor.client_ip or ""
    lockout.begin(name, address)
    user = _find(name)
    # Asked for nobody, too: a name that is known must take no longer.
    has_second = Authenticator.objects.filter(user_id=(user or User()).pk).exists()
    if has_second and not otp and (both := PASSWORD_AND_CODE.match(password)):
        password, otp = both.groups()
    is_right = (user or User()).check_password(password)
    is_known = user is not None and is_right and _may_enter(user)
    if is_known and has_second and not otp:
        raise errors.SecondFactorRequired
    if user is None or not is_known or (has_second and not _is_code(user, otp)):
        lockout.note_failure(name, address)
        raise errors.SignInRefused
    now = clock.now()
    with transaction.atomic():
        family = _begin(user, now, actor, user_agent)
        text = _issue(family, parent=None, parent_text=None, at=now)
        # Not `save()`: nothing changed that other workers would have to hear of.
        User.objects.filter(pk=user.pk).update(last_login=now)
    user.last_login = now
    return _session(user, family.pk, text)


def of_page(user: User, known: UUID | None, *, actor: Actor, user_agent: str = "") -> UUID:
    """The session of somebody who signed in to the portal and watches there: `known`, or a new one.

    It has no refresh token, so nothing but a ticket comes of it. Raises `PermissionDenied`.
    """
    if not _may_enter(user):
        raise errors.PermissionDenied
    now = clock.now()
    if known is not None:
        mine = RefreshFamily.objects.filter(pk=known, user=user, expires_at__gt=now)
        family = mine.select_related("user__robin_access").first()
        if family is not None and _stands(family):
            return known
    with transaction.atomic():
        family = _begin(user, now, actor, user_agent)
    return family.pk


def _begin(user: User, now: datetime, actor: Actor, user_agent: str) -> RefreshFamily:
    family = RefreshFamily.objects.create(
        user=user,
        password_stamp=user.get_session_auth_hash(),
        client_ip=actor.client_ip or None,
        user_agent=user_agent[:200],
        created_at=now,
        expires_at=now + _lifetime(),
    )
    audit("session.started", target=family.pk, **actor.fields())
    standing = RefreshFamily.objects.filter(user=user, revoked_at=None, expires_at__gt=now)
    surplus = standing.order_by("-id").values_list("pk", flat=True)
    for oldest in list(surplus[settings.SESSIONS_PER_USER_MAX :]):
        bound_reached.labels("sessions").inc()
        revoke(oldest, because="surplus", actor=actor)
    return family


def _is_code(user: User, otp: str) -> bool:
    """Whether it is a code of their app, or a recovery code; either is good once."""
    with transaction.atomic():
        return any(
            authenticator.wrap().validate_code(otp)
            for authenticator in Authenticator.objects.filter(user=user, type__in=CODES)
        )


def refresh(text: str, *, actor: Actor) -> Session:
    """Exchange a refresh token for its successor and a new access token; raise `InvalidToken`."""
    try:
        Refresh(text)  # type: ignore[arg-type]  # simplejwt's annotation
    except (TokenError, ValueError, TypeError, AttributeError) as exc:
        raise errors.InvalidToken from exc
    row = (
        RefreshToken.objects.select_related("family__user__robin_access")
        .filter(digest=digest(text))
        .first()
    )
    if row is None or not _stands(row.family):
        raise errors.InvalidToken
    family, now = row.family, clock.now()
    with transaction.atomic():
        # Compare-and-set: of two refreshes at once the second waits here, and sees that it lost.
        won = RefreshToken.objects.filter(pk=row.pk, used_at=None).update(used_at=now)
        if won:
            successor = _issue(family, parent=row, parent_text=text, at=now)
            if not RefreshFamily.objects.filter(pk=family.pk, revoked_at=None).update(
                expires_at=now + _lifetime()
            ):
                raise errors.InvalidToken  # revoked at this very moment; nothing is kept
    if not won:
        successor = _same_successor(row, text, now, actor)
    return _session(family.user, family.pk, successor)


def sign_out(text: str, *, actor: Actor) -> None:
    """End the session of a refresh token; a token that is none of ours ends nothing."""
    family = RefreshFamily.objects.filter(tokens__digest=digest(text)).first()
    if family is not None:
        revoke(family.pk, because="sign_out", actor=actor)


def revoke(session_id: UUID, *, because: str, actor: Actor) -> None:
    """End a session everywhere within a second. Doing it twice is doing it once."""
    with transaction.atomic():
        revoked = RefreshFamily.objects.filter(pk=session_id, revoked_at=None).update(
            revoked_at=clock.now(), revoked_because=because
        )
        if revoked:
            audit(f"session.ended.{because}", target=session_id, **actor.fields())
        forget(session_id)


def revoke_all(user: User, *, because: str, actor: Actor) -> None:
    for family in RefreshFamily.objects.filter(user=user, revoked_at=None):
        revoke(family.pk, because=because, actor=actor)


def prune() -> int:
    """Delete sessions that ended by themselves a day ago; the audit trail keeps the facts."""
    old = clock.now() - timedelta(days=1)
    return Round().erase(RefreshFamily.objects.filter(expires_at__lt=old).order_by("expires_at"))


def find_user(name: str) -> User | None:
    """By e-mail first: a user name that looks like another's e-mail must not win."""
    users = User.objects.select_related("robin_access")
    return users.filter(email=normal_email(name)).first() or users.filter(username=name).first()


def _find(name: str) -> User | None:
    return None if "\x00" in name else find_user(name)  # PostgreSQL has no text with NUL


def _may_enter(user: User) -> bool:
    return user.is_active and (user.is_staff or hasattr(user, "robin_access"))


def _stands(family: RefreshFamily) -> bool:
    user = family.user
    return family.revoked_at is None and _may_enter(user) and family.is_of_current_password


def _lifetime() -> timedelta:
    return timedelta(days=settings.REFRESH_TOKEN_EXPIRE_DAYS)


def _issue(
    family: RefreshFamily, *, parent: RefreshToken | None, parent_text: str | None, at: datetime
) -> str:
    text = str(Refresh.of(family.user_id, family.pk, parent=parent_text, at=at))
    RefreshToken.objects.create(
        family=family,
        digest=digest(text),
        parent=parent,
        issued_at=at,
        expires_at=at + _lifetime(),
    )
    return text


def _same_successor(row: RefreshToken, text: str, now: datetime, actor: Actor) -> str:
    row = RefreshToken.objects.select_related("successor").get(pk=row.pk)
    if row.used_at is None or now - row.used_at > timedelta(seconds=DOUBLE_SUBMIT_SECONDS):
        log.warning("refresh_token_reused", session=str(row.family_id))
        revoke(row.family_id, because="reuse", actor=actor)
        raise errors.InvalidToken
    for key in signing_keys():  # another host may have another one in front
        again = Refresh.of(
            row.family.user_id,
            row.family_id,
            parent=text,
            at=row.successor.issued_at,
            signed_with=key,
        )
        if digest(again) == row.successor.digest:
            return str(again)
    raise errors.InvalidToken


def _session(user: User, session_id: UUID, refresh_text: str) -> Session:
    access = getattr(user, "robin_access", None)
    role = access.role if access is not None else None
    return Session(user, role, str(Access.of(user, role, session_id)), refresh_text)
