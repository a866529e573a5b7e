"""What staff do to people, workspaces, plans and breakers: the acts that the API does not have.

Keys are issued, changed and revoked through `accounts.services`, like everybody's. Each act owns
its transaction, is audited with what it changed, and reaches every worker within a second. Doing
one twice is doing it once: the second time nothing is written, and the answer is False.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from django.db import InterfaceError, OperationalError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.expressions import Combinable
from django.db.models.functions import Least

from accounts import authentication, services
from accounts.events import audit
from accounts.models import (
    DELETION_WAITS,
    ApiKey,
    Membership,
    Plan,
    User,
    Workspace,
    normal_email,
)
from accounts.services import Actor
from gateway_project.core import clock, errors
from gateway_project.core.stores import database
from gateway_project.core.upstream import breaker

# -- People ---------------------------------------------------------------------------------------


def add_user(user: User, password: str, *, actor: Actor) -> None:
    """Store a person whose address the actor vouches for: a colleague, without a workspace."""
    user.email = normal_email(user.email)
    user.username = user.email
    user.set_password(password)  # takes its time on purpose: not in the transaction
    with transaction.atomic():
        user.save(force_insert=True)
        audit("user.created", target=user.pk, is_staff=user.is_staff, **actor.fields())
        services.confirm_email(user, actor=actor)


def change_user(user: User, changes: Mapping[str, Any], *, actor: Actor) -> bool:
    """Change names and rights; `changes` by field."""
    with transaction.atomic():
        changed = _changed(user, changes)
        if changed:
            audit("user.changed", target=user.pk, changes=changed, **actor.fields())
    return bool(changed)


def is_last_superuser(user: User) -> bool:
    """Locks the superusers inside a transaction, so that two cannot suspend each other at once."""
    superusers = User.objects.filter(is_superuser=True, is_staff=True, is_active=True)
    if connection.in_atomic_block:
        superusers = superusers.select_for_update(no_key=True)
    return [other.pk for other in superusers] == [user.pk]


def suspend_user(user: User, *, actor: Actor) -> bool:
    """Refuse sign-in and end sessions. Keys belong to workspaces and work on.

    Raises 409 for the last active superuser: nobody could undo it.
    """
    with transaction.atomic():
        if user.is_superuser and is_last_superuser(user):
            raise errors.Conflict("This is the last active superuser. Make another one first.")
        suspended = User.objects.filter(pk=user.pk, is_active=True).update(is_active=False)
        if suspended:
            audit("user.suspended", target=user.pk, **actor.fields())
    return bool(suspended)


def reinstate_user(user: User, *, actor: Actor) -> bool:
    with transaction.atomic():
        reinstated = User.objects.filter(pk=user.pk, is_active=False).update(is_active=True)
        if reinstated:
            audit("user.reinstated", target=user.pk, **actor.fields())
    return bool(reinstated)


# -- Workspaces -----------------------------------------------------------------------------------


SINCE_DELETION = F("deletes_at") - DELETION_WAITS
"""Since when a workspace is suspended by its owner, who asked for the deletion; else NULL."""


def suspend_workspace(workspace: Workspace, *, actor: Actor) -> bool:
    """Refuse all its keys with 403 `workspace_suspended`, also once its owner takes back that it
    be deleted."""
    free = Q(suspended_at=None) | Q(suspended_at=SINCE_DELETION)
    running = Workspace.objects.filter(free, pk=workspace.pk)
    return _set_suspended(workspace, running, clock.now(), "workspace.suspended", actor)


def reinstate_workspace(workspace: Workspace, *, actor: Actor) -> bool:
    """Let its keys work again; those of one that waits for its deletion stay refused."""
    by_staff = Q(deletes_at=None) | ~Q(suspended_at=SINCE_DELETION)
    stopped = Workspace.objects.filter(by_staff, pk=workspace.pk, suspended_at__isnull=False)
    return _set_suspended(workspace, stopped, SINCE_DELETION, "workspace.reinstated", actor)


def _set_suspended(
    workspace: Workspace,
    unless_done: models.QuerySet[Workspace],
    at: datetime | Combinable,
    action: str,
    actor: Actor,
) -> bool:
    with transaction.atomic():
        done = unless_done.update(suspended_at=at)  # of two at once, one wins and is audited
        if done:
            audit(action, workspace=workspace, target=workspace.pk, **actor.fields())
        authentication.forget_workspace(workspace.pk)
    return bool(done)


def add_workspace(workspace: Workspace, *, actor: Actor) -> None:
    with transaction.atomic():
        workspace.save(force_insert=True)
        audit("workspace.created", workspace=workspace, target=workspace.pk, **actor.fields())


def change_workspace(workspace: Workspace, changes: Mapping[str, Any], *, actor: Actor) -> bool:
    """Change name, slug, plan, day quota or confirmation; `changes` by field."""
    with transaction.atomic():
        changed = _changed(workspace, changes)
        if changed:
            audit(
                "workspace.changed",
                workspace=workspace,
                target=workspace.pk,
                changes=changed,
                **actor.fields(),
            )
        authentication.forget_workspace(workspace.pk)
    return bool(changed)


def change_plan(workspace: Workspace, plan: Plan, *, actor: Actor, fit_keys: bool) -> int:
    """Put a workspace on `plan`; returns how many keys were lowered to it (with `fit_keys`).

    Keys that are below the plan stay as they are: their owners raise them as they need.
    """
    lowered = 0
    with transaction.atomic():
        change_workspace(workspace, {"plan": plan}, actor=actor)
        if fit_keys:
            minute, day = plan.rate_limit_per_minute, plan.rate_limit_per_day
            lowered = (
                ApiKey.objects.usable()
                .filter(workspace=workspace)
                .exclude(rate_limit_per_minute__lte=minute, rate_limit_per_day__lte=day)
                .update(
                    rate_limit_per_minute=Least(F("rate_limit_per_minute"), minute),
                    rate_limit_per_day=Least(F("rate_limit_per_day"), day),
                )
            )
        if lowered:
            audit(
                "workspace.keys_lowered",
                workspace=workspace,
                target=workspace.pk,
                plan=plan.name,
                keys=lowered,
                **actor.fields(),
            )
    return lowered


def add_member(workspace: Workspace, user: User, role: str, *, actor: Actor) -> Membership:
    """Raises `IntegrityError` when the person is a member already."""
    with transaction.atomic():
        member = Membership.objects.create(workspace=workspace, user=user, role=role)
        audit(
            "member.added", workspace=workspace, target=user.pk, role=member.role, **actor.fields()
        )
    return member


def remove_member(member: Membership, *, actor: Actor) -> None:
    with transaction.atomic():
        audit(
            "member.removed",
            workspace=member.workspace,
            target=member.user_id,
            role=member.role,
            **actor.fields(),
        )
        member.delete()


# -- Plans ----------------------------------------------------------------------------------------


def save_plan(plan: Plan, changes: Mapping[str, Any], *, actor: Actor) -> None:
    """Make a plan, or change its limits for everybody who is on it."""
    with transaction.atomic():
        if plan._state.adding:
            for field, value in changes.items():
                setattr(plan, field, value)
            plan.save(force_insert=True)
            audit("plan.created", target=plan.pk, **actor.fields())
        elif changed := _changed(plan, changes):
            audit("plan.changed", target=plan.pk, changes=changed, **actor.fields())
        authentication.forget_all()


# -- Breakers -------------------------------------------------------------------------------------


def force_breaker(name: str, state: Literal["open", "closed", "auto"], *, actor: Actor) -> None:
    """Hold a breaker in every process, or let it decide again (`auto`).

    Raises redis-py's errors when nobody knows whether it was; it is audited only when it is known.
    """
    is_forced = False
    try:
        with transaction.atomic():
            audit("breaker.forced", target=name, state=state, **actor.fields())
            breaker.force_everywhere(name, None if state == "auto" else state)
            is_forced = True
    except (OperationalError, InterfaceError) as exc:
        if not is_forced:
            raise
        raise errors.StoreUnavailable(database.UNKNOWN) from exc


def _changed(row: models.Model, changes: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Write those `changes` that are any; returns `{field: [before, after]}` as JSON takes it."""
    before = type(row)._default_manager.get(pk=row.pk)
    changed = {
        field: [_plain(getattr(before, field)), _plain(value)]
        for field, value in changes.items()
        if getattr(before, field) != value
    }
    for field, value in changes.items():
        setattr(row, field, value)
    if changed:
        row.save(update_fields=list(changed))
    return changed


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(value)
