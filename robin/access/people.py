"""Who has a role at Robin, and who may change that.

Superusers give any role, others one that is not above their own. An administrator of Robin looks
after accounts that are for Robin alone: one that is also a developer's or staff's would be a way to
keys and rights that the administrator does not have.
"""

from __future__ import annotations

from uuid import UUID

from allauth.account.models import EmailAddress
from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from accounts.events import audit
from accounts.models import User, normal_email
from accounts.services import Actor, delete_user
from gateway_project.core import clock, errors
from robin.access.authentication import Member
from robin.access.sessions import find_user, revoke, revoke_all
from robin.models import RefreshFamily, RobinAccess
from robin.permissions import permissions_of

TAKEN = (
    "An account with this user name or e-mail exists. PUT /api/v1/users/{username} gives it a role."
)


def with_access() -> QuerySet[User]:
    """With `open_sessions`: how often each is signed in."""
    families = RefreshFamily.objects.filter(user=OuterRef("pk"), revoked_at=None)
    counted = families.filter(expires_at__gt=clock.now()).values("user").annotate(n=Count("*"))
    sessions = Coalesce(Subquery(counted.values("n")), 0)
    users = User.objects.filter(robin_access__isnull=False).select_related("robin_access")
    return users.annotate(open_sessions=sessions)


def sessions_of(username: str, *, by: Member) -> list[RefreshFamily]:
    """Where somebody is signed in, the latest first; raises as `change` does."""
    user = _get(username, by)
    mine = RefreshFamily.objects.filter(user=user, revoked_at=None, expires_at__gt=clock.now())
    return list(mine.order_by("-created_at")[: settings.SESSIONS_PER_USER_MAX])


def end_session(username: str, session_id: UUID, *, by: Member, actor: Actor) -> None:
    """Within a second, everywhere; raises 404 for one that is not theirs."""
    user = _get(username, by)
    if not RefreshFamily.objects.filter(pk=session_id, user=user).exists():
        raise errors.NotFound
    revoke(session_id, because="user", actor=actor)


def create(
    *,
    username: str,
    email: str,
    password: str,
    role: str,
    is_active: bool,
    by: Member,
    actor: Actor,
) -> User:
    """A new account with a role; raises 403 or `Conflict`."""
    _check_may_give(role, by)
    email = normal_email(email)
    if "@" in username and normal_email(username) != email:
        message = "a user name with '@' has to be the e-mail"
        raise errors.ValidationFailed(errors=[{"field": "username", "message": message}])
    if User.objects.filter(email=email).exists() or User.objects.filter(username=username).exists():
        raise errors.Conflict(TAKEN)
    user = User(username=username, email=email, is_active=is_active)
    user.set_password(password)  # Argon2 takes its time: not inside the transaction
    try:
        with transaction.atomic():
            user.save()
            RobinAccess.objects.create(user=user, role=role)
            audit("robin.user_created", target=user.pk, role=role, **actor.fields())
    except IntegrityError as exc:  # the same name, at the same moment
        raise errors.Conflict(TAKEN) from exc
    return user


def change(
    username: str,
    *,
    email: str | None,
    password: str | None,
    role: str | None,
    is_active: bool | None,
    by: Member,
    actor: Actor,
) -> User:
    """Change what is not None; a superuser's `role` for one who has none gives access.

    Raises 404, 403 or `Conflict`. A new password or a shut account ends all sessions.
    """
    user = _get(username, by)
    email = None if email is None else normal_email(email)
    if password is not None or email not in (None, user.email):
        _check_own_credentials(user, by)
    before = getattr(user, "robin_access", None)
    if role is not None and (before is None or before.role != role):
        _check_may_give(role, by)
        _check_not_oneself(user, by, "role")
    elif before is None:
        raise errors.NotFound
    if is_active is False:
        _check_not_oneself(user, by, "account")
    # Whatever else was changed while the password was hashed stays.
    columns = []
    was, was_active = user.email, user.is_active
    if email is not None:
        user.email = email
        columns.append("email")
        if email != was and not by.is_superuser:
            user.email_confirmed_at = None  # nobody has shown that it is theirs
            columns.append("email_confirmed_at")
        if user.username == was:  # or nobody else could ever have the old one
            user.username = user.email
            columns.append("username")
    if password is not None:
        user.set_password(password)
        columns.append("password")
    if is_active is not None:
        user.is_active = is_active
        columns.append("is_active")
    try:
        with transaction.atomic():
            user.save(update_fields=columns)
            if user.email != was:
                _move_address(user)
            if role is not None:
                RobinAccess.objects.update_or_create(user=user, defaults={"role": role})
            if password is not None or is_active is False:
                revoke_all(user, because="user", actor=actor)
            given = {"email": email, "password": password, "role": role, "is_active": is_active}
            fields = sorted(name for name, value in given.items() if value is not None)
            had = {"email": was, "role": before and before.role, "is_active": was_active}
            changes = {
                name: [old, given[name]]
                for name, old in had.items()
                if given[name] not in (None, old)
            }
            audit(
                "robin.user_changed",
                target=user.pk,
                fields=fields,
                changes=changes,
                **actor.fields(),
            )
    except IntegrityError as exc:
        raise errors.Conflict(
            "Another account has this e-mail. Choose another one, or change that account."
        ) from exc
    return with_access().get(pk=user.pk)


def _move_address(user: User) -> None:
    """In the portal, too: whoever has the old address neither signs in nor gets a new password."""
    mine = EmailAddress.objects.filter(user=user)
    if mine.exists():
        mine.delete()
        is_known = user.email_confirmed_at is not None
        EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=is_known)


def remove(username: str, *, by: Member, actor: Actor) -> None:
    """Take the role away, and the account with it when it was only for Robin."""
    user = _get(username, by)
    if not hasattr(user, "robin_access"):
        raise errors.NotFound
    _check_not_oneself(user, by, "account")
    with transaction.atomic():
        audit("robin.user_removed", target=user.pk, role=user.robin_access.role, **actor.fields())
        revoke_all(user, because="user", actor=actor)
        if _is_only_for_robin(user):
            delete_user(user)
        user.robin_access.delete()


def _get(username: str, by: Member) -> User:
    """The user, whom `by` may look after; another is 404 to those who may not see, else 403."""
    user = find_user(username)
    if user is None or not (by.is_superuser or hasattr(user, "robin_access")):
        raise errors.NotFound
    if by.is_superuser or user.pk == by.user_id:
        return user
    if not _is_only_for_robin(user):
        raise errors.PermissionDenied(
            "This account is more than a user of Robin: only a superuser may change it. Ask one."
        )
    _check_may_give(user.robin_access.role, by)
    return user


def _is_only_for_robin(user: User) -> bool:
    return not (user.is_staff or user.is_superuser or user.memberships.exists())


def _check_may_give(role: str, by: Member) -> None:
    """Nobody looks after, or makes, what is above their own role."""
    if by.is_superuser:
        return
    if by.role is None or not permissions_of(role) <= permissions_of(by.role):
        raise errors.PermissionDenied(
            "That role is above your own. Ask who has it, or a superuser."
        )


def _check_own_credentials(user: User, by: Member) -> None:
    """The portal asks for the password before it changes one's own; a session here has none to
    show, and would be a way to sign in there for good."""
    if user.pk == by.user_id and not _is_only_for_robin(user):
        raise errors.PermissionDenied(
            "This account is more than a user of Robin: change its password and its e-mail in the "
            "portal, at /accounts/password/change/ and /accounts/email/."
        )


def _check_not_oneself(user: User, by: Member, what: str) -> None:
    if user.pk == by.user_id:
        raise errors.Conflict(
            f"Nobody changes the {what} they are signed in with. Ask another administrator."
        )
