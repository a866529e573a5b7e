"""Finding a customer by whatever staff were told, and all that there is to know of one.

Every look-up has an index: the beginning of a name, an address or a slug, a key as lists show it
or whole, or an id of anything. Nothing is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from allauth.mfa.models import Authenticator
from allauth.usersessions.models import UserSession
from django.db.models import F, Q
from django.utils.text import slugify
from django.utils.translation import gettext, gettext_noop

from accounts.admin.lists import KEY_PREFIX, as_uuid, keys_like
from accounts.keys import is_well_formed
from accounts.models import (
    ApiKey,
    AuditEvent,
    Invitation,
    LogExport,
    Membership,
    UsageLog,
    User,
    Workspace,
    WorkspaceDomain,
    normal_email,
)
from accounts.usage import reading, reports
from detection.models import FalseAlarmBudget, Feedback, Job
from gateway_project.core import clock
from gateway_project.core.language import dated
from gateway_project.core.storable import unstorable
from portal.labels import listed, translated
from portal.models import StaffAct, StaffNote
from webhooks.models import Inbox, Webhook, WebhookDelivery

FOUND_MAX = 20
SHOWN_MAX, TRAIL_MAX = 10, 25
WORD_CHARS_MAX = 300
LONGEST_REQUEST = timedelta(minutes=5)
OTHERS: Mapping[Any, str] = {
    Invitation: gettext_noop("an invitation"),
    WorkspaceDomain: gettext_noop("a domain of theirs"),
    LogExport: gettext_noop("a file of the log"),
    Feedback: gettext_noop("feedback on a verdict"),
    FalseAlarmBudget: gettext_noop("a budget of false alarms"),
    Inbox: gettext_noop("their inbox"),
}
"""What else has an id that a page or an answer shows to a customer."""


class Found(NamedTuple):
    """A customer, and what of them the word named. `request_id`: the page shows that request."""

    workspace: Workspace
    what: str
    request_id: UUID | None = None


def find(word: str) -> list[Found]:
    """Whose it is, each customer once. A whole key that somebody pasted goes no further."""
    word = word.strip()[:WORD_CHARS_MAX]
    if not word or unstorable(word):
        return []
    found: dict[UUID, Found] = {}
    for one in _found(word):
        found.setdefault(one.workspace.pk, one)
        if len(found) >= FOUND_MAX:
            break
    return list(found.values())


def _found(word: str) -> Iterator[Found]:
    wanted = as_uuid(word)
    if wanted is not None:
        yield from _by_id(wanted)
    elif word.startswith(KEY_PREFIX):
        yield from _by_key(word)
    elif "@" in word:
        yield from _by_address(normal_email(word))
    else:
        for workspace in _workspaces(name__istartswith=word):
            yield Found(workspace, gettext("its name"))
        # Also of a name that it had when it was made.
        for workspace in _workspaces(slug__startswith=slugify(word) or word.lower()):
            yield Found(workspace, gettext("its slug"))
        yield from _by_address(normal_email(word))
        domain = word.lower().removeprefix("www.")
        for claimed in WorkspaceDomain.objects.filter(domain=domain).select_related("workspace"):
            yield Found(
                claimed.workspace, gettext("its domain %(domain)s") % {"domain": claimed.domain}
            )


def _workspaces(**conditions: Any) -> Iterable[Workspace]:
    found = Workspace.objects.select_related("plan").filter(**conditions)
    return found.order_by("-id")[:FOUND_MAX]


def _by_address(address: str) -> Iterator[Found]:
    if address.startswith("@"):
        for claimed in WorkspaceDomain.objects.filter(domain=address[1:]):
            yield Found(
                claimed.workspace, gettext("its domain %(domain)s") % {"domain": claimed.domain}
            )
        return
    people = User.objects.filter(email__startswith=address).order_by("email")[:FOUND_MAX]
    for place in Membership.objects.filter(user__in=list(people)).select_related(
        "workspace", "user"
    )[:FOUND_MAX]:
        yield Found(place.workspace, f"{place.user.email}: {place.get_role_display()}")
    for invitation in Invitation.objects.filter(
        email=address, accepted_at=None, withdrawn_at=None
    ).select_related("workspace")[:FOUND_MAX]:
        yield Found(
            invitation.workspace, gettext("%(email)s, invited") % {"email": invitation.email}
        )


def _by_key(word: str) -> Iterator[Found]:
    keys = keys_like(word)
    if is_well_formed(word):
        keys = keys.filter(last4=word[-4:])
    for key in keys.select_related("workspace").without_policies()[:FOUND_MAX]:  # type: ignore[attr-defined]
        yield Found(key.workspace, _key(key))


def _by_id(wanted: UUID) -> Iterator[Found]:
    """Any id that a customer, an answer, a mail or a page of ours names."""
    for workspace in _workspaces(pk=wanted):
        yield Found(workspace, gettext("its id"))
    for place in Membership.objects.filter(user_id=wanted).select_related("workspace", "user"):
        yield Found(place.workspace, f"{place.user.email}: {place.get_role_display()}")
    key = ApiKey.objects.without_policies().select_related("workspace").filter(pk=wanted).first()
    if key is not None:
        yield Found(key.workspace, _key(key))
    row = _request(wanted)
    if row is not None:
        for workspace in _workspaces(pk=row.workspace_id):
            facts = {"at": dated(row.created_at, "minute of year"), "status": row.http_status}
            what = gettext("request of %(at)s UTC, answered %(status)s") % facts
            yield Found(workspace, what, wanted)
    for job in Job.objects.filter(pk=wanted).select_related("workspace"):
        facts = {"kind": translated(job.kind), "status": translated(job.status)}
        yield Found(job.workspace, gettext("job (%(kind)s), %(status)s") % facts)
    for hook in Webhook.objects.filter(pk=wanted).select_related("workspace"):
        yield Found(hook.workspace, gettext("webhook %(url)s") % {"url": hook.url})
    deliveries = WebhookDelivery.objects.filter(Q(pk=wanted) | Q(event_id=wanted))
    for delivery in deliveries.select_related("webhook__workspace")[:FOUND_MAX]:
        facts = {"event": delivery.event_type, "status": translated(delivery.status)}
        what = gettext("delivery of %(event)s, %(status)s") % facts
        yield Found(delivery.webhook.workspace, what)
    for act in AuditEvent.objects.filter(pk=wanted, workspace_id__isnull=False):
        for workspace in _workspaces(pk=act.workspace_id):
            facts = {"action": act.action, "name": act.actor}
            yield Found(workspace, gettext("%(action)s by %(name)s") % facts)
    for model, what in OTHERS.items():
        for one in model._default_manager.filter(pk=wanted).select_related("workspace"):
            yield Found(one.workspace, gettext(what))


def _key(key: ApiKey) -> str:
    facts = {
        "name": key.name,
        "shown": f"{key.prefix}…{key.last4}",
        "status": translated(key.status),
    }
    return gettext("key “%(name)s” %(shown)s, %(status)s") % facts


def _request(wanted: UUID) -> UsageLog | None:
    """No index knows a request's id, but it says when the request came (RFC 9562, §5.7)."""
    seconds = (wanted.int >> 80) / 1000
    if wanted.version != 7 or seconds > clock.time():
        return None
    began = datetime.fromtimestamp(seconds, UTC)
    return UsageLog.objects.filter(
        request_id=wanted,
        created_at__gte=began - timedelta(seconds=1),
        created_at__lte=began + LONGEST_REQUEST,
    ).first()


# -- One customer ---------------------------------------------------------------------------------


class Person(NamedTuple):
    place: Membership
    factors: int
    sessions: list[UserSession]


def customer(workspace: Workspace, request_id: UUID | None = None) -> dict[str, Any]:
    """All of one: some twenty small queries, each of an index and of a few rows.

    `asked` is the request of that id, when it is theirs.
    """
    asked = _request(request_id) if request_id else None
    month = clock.now() - timedelta(days=30)
    keys = list(
        workspace.keys.listed()
        .without_policies()
        .order_by(F("last_used_at").desc(nulls_last=True), "-id")[:SHOWN_MAX]
    )
    for key in keys:
        key.workspace = workspace
    sums = reports.by_subject([workspace.pk, *(key.pk for key in keys)], month, "day")
    today = reports.charged(workspace.pk, reports.floor(clock.now(), "day"), clock.now())
    hooks = list(Webhook.objects.filter(workspace=workspace)[:SHOWN_MAX])
    trail = AuditEvent.objects.filter(workspace_id=workspace.pk).order_by("-at", "-id")
    return {
        "workspace": workspace,
        "asked": asked if asked and asked.workspace_id == workspace.pk else None,
        "people": list(_people(workspace)),
        "invitations": workspace.invitations.filter(accepted_at=None, withdrawn_at=None)[
            :SHOWN_MAX
        ],
        "domains": workspace.domains.all()[:SHOWN_MAX],
        "keys": [(key, sums.get(key.pk)) for key in keys],
        "usage": sums.get(workspace.pk) or {"requests": 0, "flagged": 0, "errors": 0},
        "today": sum(row["units"] for row in today),
        "errors": _last_errors(workspace),
        "webhooks": hooks,
        "deliveries": list(_last_failed(hooks)),
        "jobs": Job.objects.filter(workspace=workspace).order_by("-created_at")[:5],
        "notes": StaffNote.objects.filter(workspace=workspace)[:SHOWN_MAX],
        "acts": StaffAct.objects.filter(workspace=workspace)[:SHOWN_MAX],
        "trail": [(row, list(_described(row.details))) for row in trail[:TRAIL_MAX]],
    }


def _people(workspace: Workspace) -> Iterator[Person]:
    places = list(
        workspace.memberships.select_related("user").order_by("created_at", "pk")[: 2 * SHOWN_MAX]
    )
    ids = [place.user_id for place in places]
    factors: dict[UUID, int] = {}
    codes = Authenticator.Type.RECOVERY_CODES
    for user_id in (
        Authenticator.objects.filter(user__in=ids)
        .exclude(type=codes)
        .values_list("user_id", flat=True)
    ):
        factors[user_id] = factors.get(user_id, 0) + 1
    sessions: dict[UUID, list[UserSession]] = {}
    for session in UserSession.objects.filter(user__in=ids).order_by("-last_seen_at")[:50]:
        sessions.setdefault(session.user_id, []).append(session)
    for place in places:
        yield Person(
            place, factors.get(place.user_id, 0), sessions.get(place.user_id, [])[:SHOWN_MAX]
        )


def _described(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The details of an act as words: what was changed with both of its values."""
    for name, value in details.items():
        if name == "changes" and isinstance(value, Mapping):
            for field, (before, after) in value.items():
                yield field, f"{listed(before)} → {listed(after)}"
        else:
            yield name, listed(value)


def _last_failed(hooks: Iterable[Webhook]) -> Iterator[WebhookDelivery]:
    """The last two of some webhooks that fail just now, each found by its own index."""
    failed = WebhookDelivery.objects.filter(status=WebhookDelivery.Status.FAILED)
    for hook in [hook for hook in hooks if hook.failing_since][:3]:
        yield from failed.filter(webhook=hook).order_by("-created_at")[:2]


def _last_errors(workspace: Workspace) -> list[UsageLog]:
    rows: list[UsageLog] = []
    for digit in (5, 4):
        rows += reading.page(workspace, statuses=reading.class_of(digit), size=SHOWN_MAX).rows
    return sorted(rows, key=lambda row: row.created_at, reverse=True)[:SHOWN_MAX]
