"""Everything that the gateway has of a person and their workspaces, as one ZIP, made as it is read.

No secret is in it: no key, no secret of a webhook, no password, no code. Of each workspace it has
what the person's role may see.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import orjson
from allauth.account.models import EmailAddress
from allauth.mfa.models import Authenticator
from allauth.socialaccount.models import SocialAccount
from allauth.usersessions.models import UserSession
from django.forms.models import model_to_dict

from accounts import audit, people
from accounts.models import ApiKey, Membership, StoredText, User, Workspace
from accounts.usage import exports as log_exports
from accounts.usage import reading, reports
from detection.jobs import store
from detection.models import FalseAlarmBudget, Feedback, PolicyVersion
from gateway_project.core import clock, encryption
from gateway_project.core.clock import utc_text
from portal import exports
from portal.exports import Table
from portal.usage import SUMS
from webhooks.models import Inbox, Webhook, WebhookDelivery
from webhooks.receiving import inbox

README = """\
What this gateway has of you and of your workspaces, as of {at}.

account.json    you: addresses, sessions, linked sign-ons, second factors by name, workspaces
<workspace>/    a folder for each of your workspaces:
    workspace.json (with invitations and domains for those who manage them), keys.csv,
    policies.json, budgets.csv, usage.csv, webhooks.json, deliveries.csv, inbox.ndjson, jobs.csv,
    results/ (of jobs), feedback.csv, requests.ndjson (the log), texts.ndjson (those that a policy
    keeps), audit.jsonl (for owners, admins and auditors)

Of each list the newest {most:,} rows. Times are UTC, durations milliseconds. No key and no secret
is in it: those are shown once, and stored so that nobody can read them.
"""
CLOSED = """\
This workspace asks its members for a second factor. Set one up in the portal (Settings, Security),
and ask for the archive again.
"""
KEY_COLUMNS = (
    *("id", "name", "prefix", "last4", "scopes", "allowed_cidrs", "tags", "owner", "is_test"),
    *("rate_limit_per_minute", "rate_limit_per_day", "created_at", "last_used_at", "expires_at"),
    *("grace_until", "revoked_at"),
)
DELIVERY_COLUMNS = (
    *("id", "created_at", "event_type", "url", "status", "attempts_made", "http_status", "error"),
)
JOB_COLUMNS = (
    *("id", "kind", "status", "total", "succeeded", "flagged", "failed", "created_at"),
    *("finished_at", "expires_at", "webhook_url"),
)
FEEDBACK_COLUMNS = (
    *("created_at", "request_id", "api_key_id", "verdict", "confidence", "decision", "note"),
)
INVITATION = ("email", "role", "invited_by", "created_at", "accepted_at", "withdrawn_at")
DOMAIN = ("domain", "role", "created_at", "verified_at")
BUDGET_COLUMNS = (
    *("api_key_id", "content_type", "budget", "threshold", "basis", "harmless", "alarms"),
    *("created_at", "drifted_at"),
)
Entry = tuple[str, Iterable[bytes]]


class _Sink(io.RawIOBase):
    """Keeps what is written until it is taken."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        found = b"".join(self._parts)
        self._parts.clear()
        return found


def pieces(user: User) -> Iterator[bytes]:
    """The ZIP, a piece at a time: at no moment is more than one of them in memory."""
    sink = _Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in _entries(user):
            with archive.open(name, "w", force_zip64=True) as entry:
                for piece in content:
                    entry.write(piece)
                    if ready := sink.taken():
                        yield ready
    yield sink.taken()


def _entries(user: User) -> Iterator[Entry]:
    readme = README.format(at=utc_text(clock.now()), most=exports.ROWS_MAX)
    yield "README.txt", [readme.encode()]
    yield "account.json", _json(_account(user))
    for place in people.workspaces_of(user):
        folder = place.workspace.slug
        if not people.is_open_to(user, place.workspace):
            yield f"{folder}/README.txt", [CLOSED.encode()]
            continue
        for name, content in _of_workspace(place):
            yield f"{folder}/{name}", content


def _account(user: User) -> dict[str, Any]:
    addresses = EmailAddress.objects.filter(user=user).values("email", "verified", "primary")
    sessions = UserSession.objects.filter(user=user)
    factors = Authenticator.objects.filter(user=user)
    return {
        "id": user.pk,
        "email": user.email,
        "name": user.first_name,
        "language": user.language,
        "joined_at": user.date_joined,
        "confirmed_at": user.email_confirmed_at,
        "addresses": list(addresses),
        "sessions": [
            {"ip": one.ip, "agent": one.user_agent, "since": one.created_at} for one in sessions
        ],
        "linked_sign_ons": list(
            SocialAccount.objects.filter(user=user).values("provider", "uid", "date_joined")
        ),
        "second_factors": [
            {"type": one.type, "name": _name(one), "since": one.created_at} for one in factors
        ],
        "mails_off": user.mails_off,
        "workspaces": [
            {"slug": one.workspace.slug, "role": one.role, "since": one.created_at}
            for one in people.workspaces_of(user)
        ],
    }


def _name(factor: Authenticator) -> str:
    """That a passkey was given; of an app or of recovery codes there is none."""
    return str(factor.data.get("name", "")) if factor.type == Authenticator.Type.WEBAUTHN else ""


def _of_workspace(place: Membership) -> Iterator[Entry]:
    workspace = place.workspace
    yield "workspace.json", _json(_workspace(place))
    keys = ApiKey.objects.listed().filter(workspace=workspace)
    yield "keys.csv", _csv(KEY_COLUMNS, exports.newest_first(keys.without_policies()))
    yield "policies.json", _json(_policies(workspace))
    budgets = FalseAlarmBudget.objects.filter(workspace=workspace)
    yield "budgets.csv", _csv(BUDGET_COLUMNS, exports.newest_first(budgets))
    yield "usage.csv", exports.csv_pieces(*_usage(workspace))
    webhooks = Webhook.objects.filter(workspace=workspace)
    fields = ("id", "url", "events", "description", "is_active", "retry_count", "created_at")
    yield (
        "webhooks.json",
        _json([{name: getattr(one, name) for name in fields} for one in webhooks]),
    )
    deliveries = WebhookDelivery.objects.filter(webhook__in=[one.pk for one in webhooks])
    yield "deliveries.csv", _csv(DELIVERY_COLUMNS, exports.newest_first(deliveries))
    yield "inbox.ndjson", _inbox(place)
    jobs = store.of_workspace(workspace.pk)
    yield "jobs.csv", _csv(JOB_COLUMNS, exports.newest_first(jobs))
    for job in exports.newest_first(jobs):
        yield f"results/{job.pk}.ndjson", store.all_results(job)
    feedback = Feedback.objects.filter(workspace=workspace)
    yield "feedback.csv", _csv(FEEDBACK_COLUMNS, exports.newest_first(feedback))
    yield "requests.ndjson", _log(workspace)
    yield "texts.ndjson", _texts(workspace)
    if people.may(place.role, "audit"):
        rows = exports.newest_first(audit.of_workspace(workspace), "at")
        yield "audit.jsonl", (_line(audit.shown(row)) for row in rows)


def _workspace(place: Membership) -> dict[str, Any]:
    workspace = place.workspace
    invitations = workspace.invitations.all() if people.may(place.role, "people") else ()
    domains = workspace.domains.all() if people.may(place.role, "workspace") else ()
    members = workspace.memberships.select_related("user").order_by("created_at", "pk")
    return {
        "id": workspace.pk,
        "slug": workspace.slug,
        "name": workspace.name,
        "created_at": workspace.created_at,
        "plan": model_to_dict(workspace.plan),
        "members": [
            {"email": one.user.email, "role": one.role, "since": one.created_at} for one in members
        ],
        "invitations": [
            {name: getattr(one, name) for name in INVITATION}
            for one in invitations[: exports.ROWS_A_PIECE]
        ],
        "domains": [{name: getattr(one, name) for name in DOMAIN} for one in domains],
    }


def _policies(workspace: Workspace) -> dict[str, Any]:
    keys = ApiKey.objects.listed().filter(workspace=workspace).exclude(detection_policy={})
    versions = PolicyVersion.objects.filter(api_key__workspace=workspace)
    versions |= PolicyVersion.objects.filter(workspace=workspace)
    fields = ("subject_id", "version", "actor", "created_at", "policy")
    return {
        "workspace": workspace.detection_policy,
        "keys": {str(key.pk): key.detection_policy for key in keys},
        "versions": list(versions.order_by("-created_at").values(*fields)[: exports.ROWS_A_PIECE]),
    }


def _usage(workspace: Workspace) -> Table:
    rows = reports.charged(workspace.pk, workspace.created_at, clock.now())
    cells = ([f"{row['at']:%Y-%m-%d}", row["endpoint"], *(row[n] for n in SUMS)] for row in rows)
    return Table(("day", "endpoint", *SUMS), cells)


def _log(workspace: Workspace) -> Iterator[bytes]:
    cursor = ""
    for _ in range(exports.ROWS_MAX // exports.ROWS_A_PIECE):
        found = reading.page(workspace, cursor=cursor, size=exports.ROWS_A_PIECE)
        yield b"".join(map(log_exports.line_of, found.rows))
        if found.older is None:
            return
        cursor = found.older


def _inbox(place: Membership) -> Iterator[bytes]:
    """Without the bodies of records of the audit trail, where the role may not read that."""
    can_audit = people.may(place.role, "audit")
    found = Inbox.objects.filter(workspace=place.workspace).first()
    for row in inbox.received(found) if found is not None else ():
        body = row.body if can_audit or not inbox.is_of_audit(row) else None
        yield _line({"at": row.at, "headers": row.headers, "body": body, "is_valid": row.is_valid})


def _texts(workspace: Workspace) -> Iterator[bytes]:
    found = StoredText.objects.filter(workspace_id=workspace.pk)
    for row in exports.newest_first(found):
        try:
            text = encryption.decrypt(row.encrypted)
        except encryption.Undecryptable:
            continue
        yield _line({"request_id": row.pk, "text": text})


def _csv(columns: Sequence[str], rows: Iterable[Any]) -> Iterator[bytes]:
    return exports.csv_pieces(*exports.table(columns, rows))


def _json(value: Any) -> list[bytes]:
    return [orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z)]


def _line(value: Mapping[str, Any]) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_UTC_Z)
