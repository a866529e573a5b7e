"""What we write to people of our own accord, and what each of them does not want.

Mails about one's own account (a password, an address, a new browser) are none of these: they go to
everybody. Each of these ends with how to get no more of its kind, without signing in (RFC 8058).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

from django.conf import settings
from django.core import signing
from django.core.mail import EmailMessage
from django.urls import reverse
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from accounts.models import Membership, User, Workspace
from gateway_project.core import mails
from gateway_project.core.language import speaking

KINDS = {
    "digest": _("The week: what your workspaces asked, how much was flagged, what needs a look"),
    "keys": _("Keys: one that expires within a week; a rotated one that is called and ends soon"),
    "usage": _("Usage: the workspace has used 80 or 100 % of its day"),
    "webhooks": _("Webhooks: one that fails, was disabled, or is enabled again"),
    "news": _("News: what whoever runs this gateway announces"),
    "quality": _("Quality: the traffic of a key is not what its threshold was fitted on"),
}
Written = Callable[[], tuple[str, str]]
"""Subject and text, in the language that is spoken when it is called."""
Role = Membership.Role
RUNNING = (Role.OWNER, Role.ADMIN)
"""Who looks after a workspace, and is written to for it."""
SALT = "accounts.mailing"


def wants(user: User, kind: str) -> bool:
    return kind not in user.mails_off


def people_of(
    workspace: Workspace, kind: str, roles: Collection[Role] = RUNNING, also: str = ""
) -> list[User]:
    """Members of these roles who want such mails, `also` the one with that address, whatever their
    role is. An address that nobody confirmed may be a stranger's."""
    members = User.objects.filter(
        memberships__workspace=workspace, is_active=True, email_confirmed_at__isnull=False
    )
    chosen = members.filter(memberships__workspace=workspace, memberships__role__in=roles)
    found = {user.pk: user for user in chosen.distinct()}
    if also:
        found |= {user.pk: user for user in members.filter(email=also.strip().lower())}
    return sorted((u for u in found.values() if wants(u, kind)), key=lambda user: user.email)


def to_workspace(
    workspace: Workspace,
    kind: str,
    written: Written,
    *,
    also: str = "",
    left: Collection[str] | None = None,
) -> mails.Sent:
    """A mail to each who wants it, in their language; `left`: only to these addresses, which were
    to have it `later`."""
    people = people_of(workspace, kind, also=also)
    return to_people([u for u in people if left is None or u.email in left], kind, written)


def to_people(people: Iterable[User], kind: str, written: Written) -> mails.Sent:
    """As `mails.send_each`: who gets theirs `later` is for the caller to keep."""
    known = {user.email: user for user in people}
    return mails.send_each(list(known), lambda email: message_to(known[email], kind, written))


def message_to(user: User, kind: str, written: Written, ours: str | None = None) -> EmailMessage:
    """Such a mail in their language, with how to get no more of its kind; `ours` as of
    `mails.message`."""
    with speaking(user.language):
        subject, text = written()
        mail = mails.message(subject, f"{text}\n{foot(user, kind)}", [user.email], ours=ours)
    if link := off_link(user, kind):
        mail.extra_headers |= {
            "List-Unsubscribe": f"<{link}>",
            "List-Unsubscribe-Post": "List-Unsubscribe=One-Click",
        }
    return mail


def foot(user: User, kind: str) -> str:
    """`-- ` and why it came, with where to say otherwise."""
    link = off_link(user, kind)
    if not link:
        hint = gettext("Your settings in the portal say which of these mails you get.")
        return f"\n-- \n{hint}\n"
    return "\n-- \n{}\n".format(gettext("No more of these: %(link)s") % {"link": link})


def off_link(user: User, kind: str) -> str:
    """Where one click says so; empty: nobody told us our own address (`PUBLIC_URL`)."""
    if not settings.PUBLIC_URL:
        return ""
    token = signing.dumps([str(user.pk), kind], salt=SALT)
    return settings.PUBLIC_URL.rstrip("/") + reverse("portal-mails-off", args=[token])


def of_token(token: str) -> tuple[User, str] | None:
    """Whose link it is, and of what kind; None: it is none of ours, or they are gone."""
    try:
        user_id, kind = signing.loads(token, salt=SALT)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    user = User.objects.filter(pk=user_id).first()
    return (user, kind) if user is not None and kind in KINDS else None


def choose(user: User, kinds: Collection[str]) -> None:
    """Only these from now on."""
    user.mails_off = [kind for kind in KINDS if kind not in kinds]
    user.save(update_fields=["mails_off"])


def turn_off(user: User, kind: str) -> None:
    choose(user, [one for one in KINDS if wants(user, one) and one != kind])
