"""Who works in a workspace: invitations, roles, leaving, handing over, domains.

Each act owns its transaction, is audited, and is refused with a sentence that says what to do. Acts
on one workspace take place one after the other, so that of two at once none removes the other's
last owner.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

from allauth.mfa.models import Authenticator
from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop

from accounts import authentication, services
from accounts.addresses import why_undeliverable
from accounts.events import audit
from accounts.models import (
    Invitation,
    Membership,
    User,
    Workspace,
    WorkspaceDomain,
    normal_email,
)
from accounts.services import Actor
from gateway_project.core import clock, errors
from gateway_project.core.ratelimit import get_limiter, per_day, per_hour
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import database
from gateway_project.core.telemetry.metrics import bound_reached

Role = Membership.Role
INVITATION_LIFE = timedelta(days=7)
INVITATIONS_MAX = 100
"""Open ones of a workspace at once."""
INVITATIONS_A_DAY = 200
"""That one person may send, whatever is withdrawn again: each is a mail to an address that they
name, with a name in it that they chose."""
MEMBERS_MAX = 1_000
DOMAINS_MAX = 20
WORKSPACES_MAX = 20
"""That one person may make; they may be invited to more."""
WORKSPACES_AUDITED_MAX = 50
REFUSALS_AN_HOUR = 30
MAY: dict[str, frozenset[str]] = {
    Role.OWNER: frozenset({"change", "people", "workspace", "audit"}),
    Role.ADMIN: frozenset({"change", "people", "audit"}),
    Role.MEMBER: frozenset({"change"}),
    Role.VIEWER: frozenset(),
    Role.AUDITOR: frozenset({"audit"}),
}
"""Beyond reading. `change`: keys, webhooks, policies; `people`: invite, change, remove;
`workspace`: its name, two factors, domains, handing it over; `audit`: who did what."""
ROLE_HELP = {
    Role.OWNER: _("Everything, and the only one who hands the workspace over"),
    Role.ADMIN: _("Keys, webhooks and people; not other owners"),
    Role.MEMBER: _("Keys, webhooks and policies"),
    Role.VIEWER: _("Looks, and changes nothing"),
    Role.AUDITOR: _("Looks, reads and exports who did what"),
}
DOMAIN_RECORD = "gateway-verification"


def may(role: str, right: str) -> bool:
    return right in MAY.get(role, frozenset())


def grantable(role: str) -> list[Role]:
    """What somebody with `role` may give to others, the least first: never more than they have."""
    roles = [Role.VIEWER, Role.AUDITOR, Role.MEMBER, Role.ADMIN, Role.OWNER]
    return roles if role == Role.OWNER else roles[:-1]


def workspaces_of(user: User) -> list[Membership]:
    """Oldest first; the first is where they land."""
    return list(
        Membership.objects.filter(user=user, workspace__deleted_at=None)
        .select_related("workspace__plan")
        .defer("workspace__detection_policy")  # few pages show it, and it may be large
        .order_by("created_at", "pk")
    )


def make_workspace(user: User, name: str, *, actor: Actor) -> Workspace:
    """Raises 409 beyond `WORKSPACES_MAX`, and for who has one on trial."""
    with transaction.atomic():
        User.objects.select_for_update(no_key=True).get(pk=user.pk)
        owned = Membership.objects.filter(user=user, role=Role.OWNER).count()
        if Membership.objects.filter(
            user=user, role=Role.OWNER, workspace__is_confirmed=False
        ).exists():
            # Each has the limits of a trial of its own.
            raise errors.Conflict(
                gettext_noop("Confirm your address first: the link is in the mail we sent.")
            )
        if owned >= WORKSPACES_MAX:
            raise errors.TooMany(
                Sentence(
                    gettext_noop(
                        "You own %(owned)s workspaces, as many as one person may make. Hand one "
                        "over first."
                    ),
                    owned=str(owned),
                )
            )
        workspace = services.new_workspace(name)
        if user.email_confirmed_at is not None:
            workspace.is_confirmed = True
            workspace.save(update_fields=["is_confirmed"])
        Membership.objects.create(user=user, workspace=workspace, role=Role.OWNER)
        audit("workspace.created", workspace=workspace, target=workspace.pk, **actor.fields())
    return workspace


def change_workspace(workspace: Workspace, *, actor: Actor, **changes: object) -> None:
    """Its name, and whether its members need two factors."""
    before = {name: getattr(workspace, name) for name in changes}
    changed = {name: [before[name], new] for name, new in changes.items() if new != before[name]}
    if not changed:
        return
    for name, value in changes.items():
        setattr(workspace, name, value)
    with transaction.atomic():
        workspace.save(update_fields=list(changed))
        audit(
            "workspace.changed",
            workspace=workspace,
            target=workspace.pk,
            changes=changed,
            **actor.fields(),
        )
    authentication.forget_workspace(workspace.pk)


def has_second_factor(user: User) -> bool:
    kinds = (Authenticator.Type.TOTP, Authenticator.Type.WEBAUTHN)
    return bool(Authenticator.objects.filter(user=user, type__in=kinds).exists())


def is_open_to(user: User, workspace: Workspace) -> bool:
    """Whether its member sees anything of it: not without the second factor that it wants."""
    return not workspace.requires_two_factors or has_second_factor(user)


def is_worth_telling(what: str, who: object) -> bool:
    """Whether a refusal is one of the first `REFUSALS_AN_HOUR` of somebody: whoever asks and asks
    fills nobody's trail."""
    name = hashlib.sha256(f"{what} {who}".encode()).hexdigest()[:32]
    limit = per_hour("told", f"{{told:{name}}}", REFUSALS_AN_HOUR)
    return not get_limiter().check_sync((limit,), (1,)).denied


def tell(user: User, action: str, actor: Actor, **details: Any) -> None:
    """Audit what a person did to their own account: once in each workspace that they are in."""
    places = workspaces_of(user)[:WORKSPACES_AUDITED_MAX]
    with transaction.atomic():
        affected: list[Workspace | None] = [place.workspace for place in places]
        for workspace in affected or [None]:
            audit(action, workspace=workspace, target=user.email, **details, **actor.fields())


# -- Invitations ----------------------------------------------------------------------------------


def invite(
    workspace: Workspace, email: str, role: str, *, by: Membership, actor: Actor
) -> tuple[Invitation, str]:
    """Make or renew the invitation of an address; returns it with the token of its link.

    Raises 409 for who is a member already, or while nobody has confirmed an address of the
    workspace (mails to others would be anybody's), and 403 for a role that the inviter may not
    give.
    """
    if not workspace.is_confirmed:
        raise errors.Conflict(
            gettext_noop("Confirm your own address first: the link is in the mail we sent.")
        )
    email = normal_email(email)
    if reason := why_undeliverable(email):
        raise errors.ValidationFailed(errors=[{"field": "email", "message": reason}])
    if role not in grantable(by.role):
        raise errors.PermissionDenied(
            gettext_noop("You cannot give a role that is above your own. Ask somebody who has it.")
        )
    _count_invitation(by)
    token = secrets.token_urlsafe(32)
    now = clock.now()
    with _holding(workspace):
        if workspace.memberships.filter(user__email=email).exists():
            raise errors.Conflict(
                Sentence(
                    gettext_noop("%(email)s is a member already. Change the role below instead."),
                    email=email,
                )
            )
        waiting = workspace.invitations.filter(accepted_at=None, withdrawn_at=None)
        known = waiting.filter(email=email).first()
        if known is None and waiting.count() >= INVITATIONS_MAX:
            raise errors.TooMany(
                Sentence(
                    gettext_noop(
                        "%(most)s invitations are open already. Withdraw those that nobody needs."
                    ),
                    most=INVITATIONS_MAX,
                )
            )
        values = {
            "role": role,
            "token_hash": _digest(token),
            "invited_by": actor.name,
            "sent_at": now,
            "expires_at": now + INVITATION_LIFE,
        }
        found, is_new = Invitation.objects.update_or_create(
            workspace=workspace,
            email=email,
            accepted_at=None,
            withdrawn_at=None,
            defaults=values,
        )
        audit(
            "member.invited" if is_new else "invitation.resent",
            workspace=workspace,
            target=email,
            role=role,
            **actor.fields(),
        )
    return found, token


def _count_invitation(by: Membership) -> None:
    limit = per_day("invitations", f"{{user:{by.user_id}}}", INVITATIONS_A_DAY)
    if settings.RATE_LIMIT_ENABLED and get_limiter().check_sync((limit,), (1,)).denied:
        bound_reached.labels("invitations").inc()
        raise errors.TooMany(
            Sentence(
                gettext_noop(
                    "You sent %(most)s invitations today, as many as one person may. Go on "
                    "tomorrow, or have your domain's people join by themselves (Domains, below)."
                ),
                most=INVITATIONS_A_DAY,
            )
        )


def withdraw(workspace: Workspace, invitation_id: UUID, *, actor: Actor) -> Invitation:
    """Raises 404 for none of theirs, 409 for one that was accepted meanwhile."""
    with _holding(workspace):
        found = workspace.invitations.filter(pk=invitation_id).first()
        if found is None:
            raise errors.NotFound(
                gettext_noop(
                    "This workspace has no such invitation. Look for it among those that are open."
                )
            )
        if found.accepted_at is not None:
            raise errors.Conflict(
                Sentence(
                    gettext_noop("%(email)s has accepted already. Remove the member instead."),
                    email=found.email,
                )
            )
        if found.withdrawn_at is None:
            found.withdrawn_at = clock.now()
            found.save(update_fields=["withdrawn_at"])
            audit("invitation.withdrawn", workspace=workspace, target=found.email, **actor.fields())
    return found


def by_token(token: str) -> Invitation | None:
    """Whatever became of it; None for a link that never was ours."""
    found = Invitation.objects.filter(token_hash=_digest(token), workspace__deleted_at=None)
    return found.select_related("workspace").first()


def waiting_for(user: User) -> list[Invitation]:
    """Open invitations of an address that is confirmed as theirs."""
    if user.email_confirmed_at is None:
        return []
    found = Invitation.objects.filter(
        email=user.email,
        accepted_at=None,
        withdrawn_at=None,
        expires_at__gt=clock.now(),
        workspace__deleted_at=None,
    )
    return list(found.select_related("workspace").order_by("-id")[:20])


def accept(invitation: Invitation, user: User, *, actor: Actor) -> Membership:
    """Join as invited. Raises 403 for another address, 409 for one that is not open any more.

    Accepting twice is accepting once.
    """
    workspace = invitation.workspace
    if user.email != invitation.email or user.email_confirmed_at is None:
        raise errors.PermissionDenied(
            Sentence(
                gettext_noop(
                    "This invitation is for %(email)s. Sign in with that address to accept it."
                ),
                email=invitation.email,
            )
        )
    with _holding(workspace):
        invitation.refresh_from_db()
        known = workspace.memberships.filter(user=user).first()
        if known is not None and invitation.accepted_at is not None:
            return known
        if not invitation.is_open:
            raise errors.Conflict(_why_closed(invitation))
        invitation.accepted_at = clock.now()
        invitation.save(update_fields=["accepted_at"])
        if known is not None:
            return known
        member = _join(workspace, user, invitation.role)
        audit(
            "member.joined",
            workspace=workspace,
            target=user.email,
            role=member.role,
            invited_by=invitation.invited_by,
            **actor.fields(),
        )
    return member


def _why_closed(invitation: Invitation) -> str:
    if invitation.accepted_at is not None:
        return gettext_noop("This invitation was used already. Ask for a new one to join again.")
    if invitation.withdrawn_at is not None:
        return gettext_noop("This invitation was withdrawn. Ask whoever invited you for a new one.")
    return gettext_noop(
        "This invitation is older than seven days. Ask whoever invited you to send it again."
    )


def _join(workspace: Workspace, user: User, role: str) -> Membership:
    if workspace.memberships.count() >= MEMBERS_MAX:
        raise errors.TooMany(
            Sentence(
                gettext_noop(
                    "A workspace has at most %(most)s members. Remove one who needs it no more."
                ),
                most=MEMBERS_MAX,
            )
        )
    return Membership.objects.create(workspace=workspace, user=user, role=role)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


# -- Members --------------------------------------------------------------------------------------


def change_role(member: Membership, role: str, *, by: Membership, actor: Actor) -> None:
    """Raises 403 for a role above the actor's own, 409 for the last owner's."""
    with _holding(member.workspace):
        member, by = _as_now(member), _as_now(by)
        _must_outrank(by, member, role)
        before = member.role
        if role == before:
            return
        if before == Role.OWNER:
            _must_not_be_last(member)
        member.role = role
        member.save(update_fields=["role"])
        audit(
            "member.changed",
            workspace=member.workspace,
            target=member.user.email,
            changes={"role": [before, role]},
            **actor.fields(),
        )


def remove(member: Membership, *, by: Membership, actor: Actor) -> None:
    """Take somebody out, oneself included (`leave`). Raises 409 for the last owner."""
    is_leaving = by.pk == member.pk
    with _holding(member.workspace):
        member, by = _as_now(member), _as_now(by)
        if not is_leaving:
            _must_outrank(by, member, member.role)
        if member.role == Role.OWNER:
            _must_not_be_last(member)
        audit(
            "member.left" if is_leaving else "member.removed",
            workspace=member.workspace,
            target=member.user.email,
            role=member.role,
            **actor.fields(),
        )
        member.delete()


def hand_over(member: Membership, *, by: Membership, actor: Actor) -> None:
    """Make `member` an owner, and the owner who does it an admin."""
    if by.pk == member.pk:
        raise errors.Conflict(gettext_noop("You own it already. Choose somebody else."))
    with _holding(member.workspace):
        member, by = _as_now(member), _as_now(by)
        if by.role != Role.OWNER:
            raise errors.PermissionDenied(
                gettext_noop("Only an owner hands the workspace over. Ask one.")
            )
        for row, role in ((member, Role.OWNER), (by, Role.ADMIN)):
            row.role = role
            row.save(update_fields=["role"])
        audit(
            "workspace.handed_over",
            workspace=member.workspace,
            target=member.user.email,
            **actor.fields(),
        )


def _as_now(member: Membership) -> Membership:
    """Whom an act that held the workspace before may have changed; raises 404 if they are gone."""
    found = Membership.objects.select_related("user", "workspace").filter(pk=member.pk).first()
    if found is None:
        raise errors.NotFound(
            gettext_noop("Somebody was removed meanwhile. Reload the page to see who is here.")
        )
    return found


def _must_outrank(by: Membership, member: Membership, role: str) -> None:
    if not may(by.role, "people"):
        raise errors.PermissionDenied(
            gettext_noop("Your role does not change who works here. Ask an owner.")
        )
    if by.role != Role.OWNER and Role.OWNER in (member.role, role):
        raise errors.PermissionDenied(
            gettext_noop("Only an owner changes who owns this workspace. Ask one.")
        )


def _must_not_be_last(member: Membership) -> None:
    others = member.workspace.memberships.filter(role=Role.OWNER).exclude(pk=member.pk)
    if not others.exists():
        raise errors.Conflict(
            gettext_noop(
                "This is the only owner. Hand the workspace over, or make somebody else an owner "
                "first."
            )
        )


@contextmanager
def _holding(workspace: Workspace) -> Iterator[None]:
    """A transaction that holds the workspace against other acts on its people."""
    with transaction.atomic():
        held = Workspace.objects.select_for_update(no_key=True).filter(pk=workspace.pk)
        if held.first() is None:
            raise errors.NotFound(gettext_noop("This workspace was deleted. Choose another one."))
        yield


# -- Domains --------------------------------------------------------------------------------------

Records = Callable[[str], list[str]]
"""The TXT records of a name; raises `OSError` when they cannot be had."""


def add_domain(workspace: Workspace, domain: str, role: str, *, actor: Actor) -> WorkspaceDomain:
    """Say that a domain is the workspace's; it counts once `verify_domain` has seen the proof."""
    with _holding(workspace):
        if workspace.domains.count() >= DOMAINS_MAX:
            raise errors.TooMany(
                Sentence(
                    gettext_noop(
                        "A workspace has at most %(most)s domains. Remove one that is not needed."
                    ),
                    most=DOMAINS_MAX,
                )
            )
        try:
            with transaction.atomic():
                made = WorkspaceDomain.objects.create(
                    workspace=workspace, domain=domain, role=role, token=secrets.token_hex(16)
                )
        except IntegrityError:
            raise errors.Conflict(
                Sentence(
                    gettext_noop(
                        "%(domain)s is on the list already. Remove it first, to add it with "
                        "another role."
                    ),
                    domain=domain,
                )
            ) from None
        audit("domain.added", workspace=workspace, target=domain, role=role, **actor.fields())
    return made


def verify_domain(found: WorkspaceDomain, records: Records, *, actor: Actor) -> None:
    """Look for the TXT record. Raises 409 with what is missing, and where it was looked for."""
    wanted = f"{DOMAIN_RECORD}={found.token}"
    try:
        database.let_go()
        known = records(found.domain)
    except OSError:
        raise errors.Conflict(
            Sentence(
                gettext_noop(
                    "The name servers of %(domain)s did not answer. Try again in some minutes."
                ),
                domain=found.domain,
            )
        ) from None
    if wanted not in known:
        raise errors.Conflict(
            Sentence(
                gettext_noop(
                    "%(domain)s has no TXT record “%(wanted)s” yet. A new one can take an "
                    "hour to show."
                ),
                domain=found.domain,
                wanted=wanted,
            )
        )
    with transaction.atomic():
        try:
            with transaction.atomic():
                done = WorkspaceDomain.objects.filter(pk=found.pk, verified_at=None).update(
                    verified_at=clock.now()
                )
        except IntegrityError:
            raise errors.Conflict(
                Sentence(
                    gettext_noop(
                        "Another workspace has verified %(domain)s. Ask its owners to remove it "
                        "there."
                    ),
                    domain=found.domain,
                )
            ) from None
        if done:
            audit(
                "domain.verified", workspace=found.workspace, target=found.domain, **actor.fields()
            )


def remove_domain(found: WorkspaceDomain, *, actor: Actor) -> None:
    with _holding(found.workspace):
        audit("domain.removed", workspace=found.workspace, target=found.domain, **actor.fields())
        found.delete()


def joinable(user: User) -> list[WorkspaceDomain]:
    """Workspaces that own the domain of the user's confirmed address, and do not have them yet."""
    if user.email_confirmed_at is None:
        return []
    domain = user.email.rpartition("@")[2]
    found = WorkspaceDomain.objects.filter(
        domain=domain, verified_at__isnull=False, workspace__deleted_at=None
    )
    return list(found.exclude(workspace__memberships__user=user).select_related("workspace"))


def join_by_domain(found: WorkspaceDomain, user: User, *, actor: Actor) -> Membership:
    """A second time changes nothing. Raises 409 when the domain was taken off."""
    with _holding(found.workspace):
        known = found.workspace.memberships.filter(user=user).first()
        if known is not None:
            return known
        if not found.workspace.domains.filter(pk=found.pk, verified_at__isnull=False).exists():
            raise errors.Conflict(
                gettext_noop("This domain does not let you in any more. Ask for an invitation.")
            )
        member = _join(found.workspace, user, found.role)
        audit(
            "member.joined",
            workspace=found.workspace,
            target=user.email,
            role=member.role,
            domain=found.domain,
            **actor.fields(),
        )
    return member
