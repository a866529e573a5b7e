"""What is done to accounts and keys. Every function owns its transaction and is audited."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.text import slugify
from django.utils.translation import gettext_noop

from accounts import authentication, keys
from accounts.events import audit, changes_of
from accounts.models import (
    DEFAULT_SCOPES,
    DELETION_WAITS,
    ApiKey,
    Membership,
    Plan,
    User,
    Workspace,
    normal_email,
)
from gateway_project.core import clock, errors
from gateway_project.core.clock import utc_text
from gateway_project.core.context import RequestContext
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores.refused import each_alone
from gateway_project.core.stores.sweeps import Round, delete_rows, some_of
from gateway_project.core.telemetry.metrics import bound_reached

SESSION_KEY_LIFE = timedelta(minutes=15)
TEXTS_AT_ONCE = 10_000
DELETIONS_AT_ONCE = 50
SESSION_KEYS_MAX = 20
"""Of one person at once: as many tabs of the playground."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, for the audit trail: an e-mail, a key's prefix, or a command."""

    name: str
    client_ip: str | None = None
    request_id: str = ""

    @classmethod
    def of(cls, name: str, context: RequestContext) -> Actor:
        return cls(name, context.client_ip, context.request_id)

    def fields(self) -> dict[str, Any]:
        return {"actor": self.name, "client_ip": self.client_ip, "request_id": self.request_id}


@dataclass(frozen=True, slots=True)
class Registered:
    user: User
    workspace: Workspace
    key: ApiKey
    secret: str


def register(
    email: str,
    password: str,
    name: str = "",
    *,
    actor: Actor | None = None,
    within: Callable[[Registered], None] = lambda _: None,
) -> Registered:
    """Make a developer, a personal workspace and its first key; raise `EmailTaken` (409).

    `within` is called in the transaction that makes them.
    """
    user = new_user(email, password, name)
    actor = actor or Actor(user.email)
    with transaction.atomic():
        workspace = join(user, name, actor=actor)
        EmailAddress.objects.create(user=user, email=user.email, primary=True, verified=False)
        key, secret = issue_key(workspace, actor=actor)
        made = Registered(user, workspace, key, secret)
        within(made)
    return made


def new_user(email: str, password: str, name: str = "") -> User:
    """A user that is not stored yet. Argon2 takes its time on purpose: not in a transaction."""
    email = normal_email(email)
    if User.objects.filter(email=email).exists():
        raise errors.EmailTaken
    user = User(email=email, username=email, first_name=name[:150])
    user.set_password(password)
    return user


def join(user: User, name: str = "", *, actor: Actor) -> Workspace:
    """Store a new user with a personal workspace; raise `EmailTaken` (409)."""
    with transaction.atomic():
        try:
            with transaction.atomic():
                user.save(force_insert=True)
        except IntegrityError as exc:  # the same e-mail, at the same moment
            raise errors.EmailTaken from exc
        workspace = new_workspace(name or user.email.partition("@")[0])
        Membership.objects.create(user=user, workspace=workspace, role=Membership.Role.OWNER)
        audit("user.registered", workspace=workspace, target=user.pk, **actor.fields())
    return workspace


def new_workspace(name: str) -> Workspace:
    """Store one under a slug of its own; nobody is in it yet. Joins the caller's transaction."""
    base = slugify(name)[:40] or "workspace"
    slug = base
    while True:
        if not Workspace.objects.filter(slug=slug).exists():
            try:
                with transaction.atomic():
                    return Workspace.objects.create(slug=slug, name=name[:100])
            except IntegrityError:  # somebody of the same name, at the same moment
                pass
        slug = f"{base}-{secrets.token_hex(3)}"


def confirm_email(user: User, *, actor: Actor) -> None:
    """Take the user's address for theirs, and lift the trial's limits of their own workspaces."""
    with transaction.atomic():
        if user.email_confirmed_at is None or user.username != user.email:
            user.email_confirmed_at = clock.now()
            user.username = user.email
            user.save(update_fields=["email_confirmed_at", "username"])
        EmailAddress.objects.update_or_create(
            user=user, email=user.email, defaults={"verified": True, "primary": True}
        )
        owned = Membership.objects.filter(user=user, role=Membership.Role.OWNER)
        workspace_ids = set(owned.values_list("workspace", flat=True))
        Workspace.objects.filter(pk__in=workspace_ids).update(is_confirmed=True)
        audit("user.email_confirmed", target=user.pk, **actor.fields())
    for workspace_id in workspace_ids:
        authentication.forget_workspace(workspace_id)


def ask_deletion(user: User, *, actor: Actor) -> datetime:
    """Have the account deleted after `DELETION_WAITS`; returns when.

    The workspaces that nobody else owns are suspended at once, so that nothing is judged, sent or
    billed for them meanwhile. `undo_deletion` brings all of it back.
    """
    with transaction.atomic():
        held = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        if held.deletes_at is None:
            now = clock.now()
            held.deletes_at = now + DELETION_WAITS
            held.save(update_fields=["deletes_at"])
            owned = Workspace.objects.filter(pk__in=_own(held))
            for workspace in owned.select_for_update(no_key=True):
                workspace.deletes_at = held.deletes_at
                workspace.suspended_at = workspace.suspended_at or now
                workspace.save(update_fields=["deletes_at", "suspended_at"])
                authentication.forget_workspace(workspace.pk)
                audit("workspace.deletion_asked", workspace=workspace, **actor.fields())
            audit("user.deletion_asked", target=held.pk, **actor.fields())
    user.deletes_at = held.deletes_at
    return held.deletes_at


def undo_deletion(user: User, *, actor: Actor) -> bool:
    """Keep the account, and let its workspaces work again; False: nothing was asked."""
    with transaction.atomic():
        held = User.objects.select_for_update(no_key=True).get(pk=user.pk)
        if held.deletes_at is None:
            return False
        _reinstate(held.deletes_at, [m.workspace_id for m in held.memberships.all()], actor)
        held.deletes_at = None
        held.save(update_fields=["deletes_at"])
        audit("user.deletion_undone", target=held.pk, **actor.fields())
    user.deletes_at = None
    return True


def _reinstate(deletes_at: datetime, workspace_ids: Iterable[UUID], actor: Actor) -> None:
    """Those that were suspended for that deletion; what operators suspended stays so."""
    waiting = Workspace.objects.filter(pk__in=list(workspace_ids), deletes_at=deletes_at)
    for workspace in waiting.select_for_update(no_key=True):
        workspace.deletes_at = None
        if workspace.suspended_at == deletes_at - DELETION_WAITS:
            workspace.suspended_at = None
        workspace.save(update_fields=["deletes_at", "suspended_at"])
        authentication.forget_workspace(workspace.pk)
        audit("workspace.deletion_undone", workspace=workspace, **actor.fields())


def carry_out_deletions() -> int:
    """Delete the accounts whose time has come; returns how many."""
    due = User.objects.filter(deletes_at__lte=clock.now()).order_by("deletes_at")
    return len(each_alone(Round().each(due[:DELETIONS_AT_ONCE]), _carry_out_deletion))


def _carry_out_deletion(user: User) -> None:
    places = list(user.memberships.values_list("workspace", flat=True))
    with transaction.atomic():
        delete_account(user, actor=Actor(user.email))
        if user.deletes_at is not None:  # those that somebody else owns by now
            _reinstate(user.deletes_at, places, Actor("gateway"))
        User._base_manager.filter(pk=user.pk).update(deletes_at=None)


def _own(user: User) -> set[UUID]:
    """The workspaces that nobody else owns."""
    owners = Membership.objects.filter(role=Membership.Role.OWNER)
    owned = set(owners.filter(user=user).values_list("workspace", flat=True))
    shared = owners.filter(workspace__in=owned).exclude(user=user)
    return owned - set(shared.values_list("workspace", flat=True))


def delete_account(user: User, *, actor: Actor) -> None:
    """Delete the user, and the workspaces that nobody else owns with all their keys.

    They are gone at once, stored texts as well; what else they own, and of texts what is beyond
    `TEXTS_AT_ONCE`, is erased behind (`core/stores/deletion.py`).
    """
    with transaction.atomic():
        own = _own(user)
        for workspace in Workspace.objects.filter(pk__in=own):
            audit("workspace.deleted", target=workspace.pk, slug=workspace.slug, **actor.fields())
            _delete_workspace(workspace)
        audit("user.deleted", target=user.pk, **actor.fields())
        delete_user(user)
    for workspace_id in own:
        authentication.forget_workspace(workspace_id)


def _delete_workspace(workspace: Workspace) -> None:
    """Its name is free again, its keys are refused, nothing is sent or worked on for it."""
    now = clock.now()
    workspace.memberships.all().delete()
    for rows in workspace.loose_ends():
        delete_rows(rows.model, some_of(rows.order_by("workspace_id"), TEXTS_AT_ONCE))
    workspace.slug, workspace.name = f"deleted-{workspace.pk.hex}", ""
    workspace.wanted_events = []
    workspace.suspended_at = workspace.deleted_at = now
    workspace.save(update_fields=["slug", "name", "wanted_events", "suspended_at", "deleted_at"])


def delete_user(user: User) -> None:
    """Delete a person: their address is free again, and they are signed in nowhere.

    Joins the caller's transaction. What else is theirs is erased behind.
    """
    user.memberships.all().delete()
    EmailAddress.objects.filter(user=user).delete()
    Authenticator.objects.filter(user=user).delete()
    user.username = user.pk.hex
    user.email = f"{user.pk.hex}@deleted.invalid"
    user.first_name = user.last_name = ""
    user.set_unusable_password()
    user.is_active = user.is_staff = user.is_superuser = False
    user.deleted_at = clock.now()
    user.save()


def issue_key(
    workspace: Workspace,
    *,
    actor: Actor,
    name: str = "Default key",
    scopes: Iterable[str] = DEFAULT_SCOPES,
    allowed_cidrs: Iterable[str] = (),
    expires_at: datetime | None = None,
    rate_limit_per_minute: int | None = None,
    rate_limit_per_day: int | None = None,
    limit_subject: UUID | None = None,
    detection_policy: dict[str, Any] | None = None,
    is_session: bool = False,
    is_test: bool = False,
    tags: Iterable[str] = (),
    owner: str = "",
    within_plan: bool = False,
) -> tuple[ApiKey, str]:
    """Make a key. Returns it with its text, which is shown this once and stored nowhere.

    Limits default to the plan's; whether more is allowed is for the caller to check
    (`check_within_plan`). `within_plan`: raise 409 when the workspace has as many keys as its plan
    gives; operators may go beyond.
    """
    text = keys.make_key(keys.TEST_PREFIX if is_test else keys.PREFIX)
    plan = workspace.plan
    with transaction.atomic():
        if within_plan:
            _require_room(workspace, replaced_by=None)
        key = ApiKey.objects.create(
            workspace=workspace,
            name=name,
            prefix=text[:12],
            last4=text[-4:],
            key_hash=settings.KEY_PEPPERS.digest(text),
            pepper_version=settings.KEY_PEPPERS.current_version,
            scopes=list(scopes),
            allowed_cidrs=list(allowed_cidrs),
            expires_at=expires_at,
            rate_limit_per_minute=rate_limit_per_minute or plan.rate_limit_per_minute,
            rate_limit_per_day=rate_limit_per_day or plan.rate_limit_per_day,
            limit_subject=limit_subject,
            detection_policy=detection_policy or {},
            is_session=is_session,
            is_test=is_test,
            tags=list(tags),
            owner=owner,
        )
        audit(
            "key.created",
            workspace=workspace,
            target=key.pk,
            key_name=name,
            prefix=key.prefix,
            last4=key.last4,
            scopes=key.scopes,
            **actor.fields(),
        )
    return key, text


def _require_room(workspace: Workspace, **which: Any) -> None:
    """Raise 409 unless one more key of those may be in use. Joins the caller's transaction."""
    # Of two at once, both would take the last place.
    Workspace.objects.select_for_update(no_key=True).get(pk=workspace.pk)
    most = workspace.plan.keys_max
    used = ApiKey.objects.usable().listed().filter(workspace=workspace, **which)
    if used.count() >= most:
        bound_reached.labels("keys").inc()
        raise errors.TooMany(
            Sentence(
                gettext_noop(
                    "The plan '%(name)s' gives a workspace %(most)s keys in use, and as "
                    "many again that were rotated and still work. Revoke one that is not "
                    "needed (DELETE /v1/keys/{id}), rotate with grace_seconds 0, or ask for "
                    "another plan."
                ),
                name=workspace.plan.name,
                most=str(most),
            )
        )


def session_key(
    workspace: Workspace,
    user: User,
    *,
    detection_policy: dict[str, Any] | None = None,
    actor: Actor,
) -> tuple[ApiKey, str]:
    """A key for the playground of `user`: 15 minutes, for verdicts alone, hidden from lists.

    It follows the workspace's policy, or has that of another key for its time.

    All of a user's share one set of counters, so that opening the page again buys no new minute.
    Those that ended an hour ago are removed on the way, and all but the latest
    `SESSION_KEYS_MAX`.
    """
    now = clock.now()
    with transaction.atomic():
        mine = ApiKey.objects.filter(
            workspace=workspace, limit_subject=user.pk, is_session=True
        ).order_by("-id")
        mine.filter(expires_at__lt=now - timedelta(hours=1)).delete()
        surplus = list(mine.values_list("pk", flat=True)[SESSION_KEYS_MAX - 1 :])
        if surplus:
            bound_reached.labels("session_keys").inc(len(surplus))
            ApiKey.objects.filter(pk__in=surplus).delete()
            for key_id in surplus:
                authentication.forget(key_id)
        return issue_key(
            workspace,
            actor=actor,
            name="Playground",
            scopes=["detect", "batch"],
            detection_policy=detection_policy,
            expires_at=now + SESSION_KEY_LIFE,
            limit_subject=user.pk,
            is_session=True,
        )


def operator_key(
    slug: str,
    *,
    name: str,
    scopes: Iterable[str],
    per_minute: int | None,
    per_day: int | None,
    actor: Actor,
) -> str:
    """A key made by whoever operates the gateway; returns its text.

    It may exceed the plan, and lifts the workspace's day quota to its own. The workspace is made
    when it is missing, and is confirmed from then on.
    """
    with transaction.atomic():
        workspace, _ = Workspace.objects.get_or_create(
            slug=slug, defaults={"name": slug, "is_confirmed": True}
        )
        before = (workspace.is_confirmed, workspace.rate_limit_per_day)
        workspace.is_confirmed = True  # the operator vouches for it
        if per_day is not None and per_day > workspace.day_quota:
            workspace.rate_limit_per_day = per_day
        if (workspace.is_confirmed, workspace.rate_limit_per_day) != before:
            workspace.save(update_fields=["is_confirmed", "rate_limit_per_day"])
            audit(
                "workspace.raised",
                workspace=workspace,
                target=workspace.pk,
                rate_limit_per_day=workspace.rate_limit_per_day,
                **actor.fields(),
            )
        _, text = issue_key(
            workspace,
            actor=actor,
            name=name,
            scopes=scopes,
            rate_limit_per_minute=per_minute,
            rate_limit_per_day=per_day,
        )
    return text


def check_within_plan(plan: Plan, *, per_minute: int | None, per_day: int | None) -> None:
    """Raise 422 when a limit is above what the plan gives."""
    asked = {
        "rate_limit_per_minute": (per_minute, plan.rate_limit_per_minute),
        "rate_limit_per_day": (per_day, plan.rate_limit_per_day),
    }
    wrong = [
        {"field": field, "message": f"at most {most} on the plan '{plan.name}'"}
        for field, (value, most) in asked.items()
        if value is not None and value > most
    ]
    if wrong:
        raise errors.ValidationFailed(errors=wrong)


def update_key(
    key: ApiKey, changes: dict[str, Any], *, actor: Actor, within_plan: bool = True
) -> ApiKey:
    """Change name, scopes, networks, expiry or limits.

    Raises 422 beyond the plan's limits, unless the actor may go there (`within_plan=False`).
    """
    if within_plan:
        check_within_plan(
            key.workspace.plan,
            per_minute=changes.get("rate_limit_per_minute"),
            per_day=changes.get("rate_limit_per_day"),
        )
    changed = changes_of(key, changes)
    for field, value in changes.items():
        setattr(key, field, value)
    with transaction.atomic():
        key.save(update_fields=list(changes))
        audit(
            "key.changed",
            workspace=key.workspace,
            target=key.pk,
            changes=changed,
            **actor.fields(),
        )
    authentication.forget(key.pk)
    return key


def rotate_key(key: ApiKey, *, grace_seconds: int, actor: Actor) -> tuple[ApiKey, str]:
    """Give `key` a successor with its scopes, networks, limits and expiry.

    The old key works on for `grace_seconds`, never beyond its own expiry. A key that already has a
    successor cannot be rotated again (409): two clients would otherwise each hold a "new" key. Nor
    can more keys of a workspace be in their grace than it may have (409), nor a playground's key
    outlive its quarter of an hour (409).
    """
    if key.is_session:
        raise errors.Conflict(
            gettext_noop(
                "The playground's key has no successor: it ends by itself. Make a key of your own "
                "(/app/keys)."
            )
        )
    with transaction.atomic():
        if grace_seconds:
            _require_room(key.workspace, replaced_by__isnull=False)
        successor, text = issue_key(
            key.workspace,
            actor=actor,
            name=key.name,
            scopes=key.scopes,
            allowed_cidrs=key.allowed_cidrs,
            expires_at=key.expires_at,
            rate_limit_per_minute=key.rate_limit_per_minute,
            rate_limit_per_day=key.rate_limit_per_day,
            limit_subject=key.limit_subject or key.pk,
            detection_policy=key.detection_policy,
            is_test=key.is_test,
            tags=key.tags,
            owner=key.owner,
        )
        grace_until = clock.now() + timedelta(seconds=grace_seconds)
        if key.expires_at is not None:
            grace_until = min(grace_until, key.expires_at)
        # Compare-and-set: of two rotations at once, the second sees a successor and loses.
        won = ApiKey.objects.filter(pk=key.pk, replaced_by=None, revoked_at=None).update(
            replaced_by=successor, grace_until=grace_until
        )
        if not won:
            raise errors.Conflict(
                gettext_noop(
                    "This key was rotated or revoked already. Use its successor, or make a new key."
                )
            )
        audit(
            "key.rotated",
            workspace=key.workspace,
            target=key.pk,
            successor=str(successor.pk),
            key_name=key.name,
            grace_until=utc_text(grace_until),
            **actor.fields(),
        )
    key.refresh_from_db()
    authentication.forget(key.pk)
    return successor, text


def extend_grace(key: ApiKey, seconds: int, *, actor: Actor) -> datetime:
    """Let a rotated key work so much longer, never beyond its own expiry; returns until when.

    Raises 409 when it has stopped: a key that was refused once is not brought back.
    """
    with transaction.atomic():
        held = ApiKey.objects.select_for_update(no_key=True).get(pk=key.pk)
        if held.status != "grace" or held.grace_until is None:
            raise errors.Conflict(
                gettext_noop("This key is not in its grace any more. Use its successor.")
            )
        until = held.grace_until + timedelta(seconds=seconds)
        if held.expires_at is not None:
            until = min(until, held.expires_at)
        ApiKey.objects.filter(pk=key.pk).update(grace_until=until)
        audit(
            "key.grace_extended",
            workspace=key.workspace,
            target=key.pk,
            changes={"grace_until": [utc_text(held.grace_until), utc_text(until)]},
            **actor.fields(),
        )
    authentication.forget(key.pk)
    return until


def revoke_key(key: ApiKey, *, actor: Actor) -> None:
    """Refuse the key from now on. Doing it twice is doing it once."""
    with transaction.atomic():
        revoked = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=clock.now())
        if revoked:
            audit(
                "key.revoked",
                workspace=key.workspace,
                target=key.pk,
                key_name=key.name,
                prefix=key.prefix,
                last4=key.last4,
                **actor.fields(),
            )
    authentication.forget(key.pk)
