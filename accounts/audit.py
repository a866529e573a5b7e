"""Who did what: sealing the audit trail into a chain for each workspace, reading it, checking it.

`accounts.events.audit` writes a row in the transaction of the act. `seal` gives rows their numbers
behind the acts, so that no act waits for another's. Each row's digest covers the row and the
digest before it: nothing can be changed, put in or left out without `verify` seeing it. On
PostgreSQL a trigger refuses to change a sealed row, and to delete one of the last 30 days. Rows
past `AUDIT_RETENTION_DAYS` go from the beginning (`forget`), and the chain says how far.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from django.db import transaction
from django.db.models import QuerySet

from accounts import parking
from accounts.events import NewEvent, event, publish_all
from accounts.models import AuditChain, AuditEvent, Workspace
from gateway_project.core import clock
from gateway_project.core.clock import utc_text
from gateway_project.core.stores import advisory, bulk
from gateway_project.core.stores.refused import write_all_but
from gateway_project.core.stores.sweeps import delete_rows, some_of

NOBODYS = UUID(int=0)
"""The chain of rows that belong to no workspace: acts of staff and of Robin's people."""
RECORDED, UNSENT = "audit.recorded", "accounts.audit"
ROWS_A_ROUND = 1_000
ROUNDS_MAX = 20


def seal() -> int:
    """Number what is committed and not sealed yet, and tell who listens; returns how many."""
    sealed = 0
    for _ in range(ROUNDS_MAX):
        done = _seal_some()
        sealed += done
        if done < ROWS_A_ROUND:
            break
    return sealed


def _seal_some() -> int:
    with transaction.atomic():
        if not advisory.try_to_hold("audit.seal"):
            return 0
        rows = list(AuditEvent.objects.filter(number=None).order_by("id")[:ROWS_A_ROUND])
        if not rows:
            return 0
        ids = {row.workspace_id or NOBODYS for row in rows}
        known = AuditChain.objects.in_bulk(ids)
        chains = {chain_id: known.get(chain_id) or AuditChain(id=chain_id) for chain_id in ids}
        for row in rows:
            chain = chains[row.workspace_id or NOBODYS]
            chain.number += 1
            chain.digest = digest_of(row, chain.number, chain.digest)
            row.number, row.digest = chain.number, chain.digest
        bulk.update_each(rows, ["number", "digest"])
        AuditChain.objects.bulk_create(
            chains.values(),
            update_conflicts=True,
            unique_fields=["id"],
            update_fields=["number", "digest"],
        )
        write_all_but(rows, lambda some: publish_all(_events(some)), _park)
    return len(rows)


def digest_of(row: AuditEvent, number: int, before: str) -> str:
    """Of what the row says, as the database has it."""
    fields = [
        before,
        number,
        str(row.pk),
        row.at.isoformat(),
        row.action,
        row.actor,
        str(row.workspace_id or ""),
        row.target,
        row.client_ip or "",
        row.request_id,
        row.details,
    ]
    try:
        packed = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # numbers beyond 64 bits, which nothing of ours writes: jsonb takes them
        packed = json.dumps(fields, sort_keys=True).encode()
    return hashlib.sha256(packed).hexdigest()


def _park(row: AuditEvent, error: Exception) -> None:
    parking.park(UNSENT, row.pk, error, workspace_id=row.workspace_id)


def _events(rows: Sequence[AuditEvent]) -> list[NewEvent]:
    ids = {row.workspace_id for row in rows if row.workspace_id}
    wanting = {
        pk
        for pk, wanted in Workspace.objects.filter(pk__in=ids).values_list("pk", "wanted_events")
        if RECORDED in wanted
    }
    return [
        event(row.workspace_id, RECORDED, result=shown(row), at=row.at)
        for row in rows
        if row.workspace_id in wanting
    ]


def shown(row: AuditEvent) -> dict[str, Any]:
    """The row as the API, exports and events show it."""
    details = dict(row.details)
    return {
        "id": str(row.pk),
        "number": row.number,
        "at": utc_text(row.at),
        "action": row.action,
        "actor": row.actor,
        "target": row.target,
        "client_ip": row.client_ip,
        "request_id": row.request_id or None,
        "changes": details.pop("changes", {}),
        "details": details,
        "digest": row.digest,
    }


class Wanted(NamedTuple):
    """Filters of the trail; empty ones leave nothing out. `action` is one, or the beginning of
    several (`key.`)."""

    action: str = ""
    actor: str = ""
    target: str = ""
    since: datetime | None = None
    until: datetime | None = None


def of_workspace(workspace: Workspace, wanted: Wanted = Wanted()) -> QuerySet[AuditEvent]:  # noqa: B008 - it is immutable
    """What a workspace may read: of the days of its plan."""
    first = clock.now() - timedelta(days=workspace.plan.audit_days)
    begin = max(first, wanted.since) if wanted.since else first
    rows = AuditEvent.objects.filter(workspace_id=workspace.pk, at__gte=begin)
    if wanted.until:
        rows = rows.filter(at__lt=wanted.until)
    if wanted.action:
        is_family = wanted.action.endswith(".")
        rows = rows.filter(**{f"action{'__startswith' if is_family else ''}": wanted.action})
    if wanted.actor:
        rows = rows.filter(actor=wanted.actor)
    if wanted.target:
        rows = rows.filter(target=wanted.target)
    return rows


class Verdict(NamedTuple):
    """`wrong` is None for an unbroken chain; else what is wrong, and `at` which number."""

    chain: UUID
    first: int
    last: int
    wrong: str | None = None
    at: int | None = None


def verify(chain_id: UUID) -> Verdict:
    """Work the chain out anew, from where retention has left it."""
    rows = AuditEvent.objects.filter(number__isnull=False)
    rows = rows.filter(workspace=None) if chain_id == NOBODYS else rows.filter(workspace=chain_id)
    is_sealed = rows.exists()  # asked first: what is sealed meanwhile has its chain by then
    chain = AuditChain.objects.filter(pk=chain_id).first()
    if chain is None:
        wrong = ("what says where its chain ends is missing", 1) if is_sealed else ()
        return Verdict(chain_id, 0, 0, *wrong)
    found = _worked_out(chain, rows)
    now = AuditChain.objects.filter(pk=chain_id).first()
    if found.wrong and now is not None and now.forgotten > chain.forgotten:
        return verify(chain_id)  # rows went past their time while they were read
    return found


def _worked_out(chain: AuditChain, rows: QuerySet[AuditEvent]) -> Verdict:
    first = chain.forgotten + 1
    last, before = chain.forgotten, chain.forgotten_digest
    rows = rows.filter(number__gt=chain.forgotten, number__lte=chain.number).order_by("number")
    for row in rows.iterator(chunk_size=1_000):
        number = row.number or 0
        if number != last + 1:
            return Verdict(chain.pk, first, last, "rows are missing", last + 1)
        if row.digest != digest_of(row, number, before):
            return Verdict(chain.pk, first, last, "the row was changed", number)
        last, before = number, row.digest
    if (last, before) != (chain.number, chain.digest):
        return Verdict(chain.pk, first, last, "rows are missing at the end", last + 1)
    return Verdict(chain.pk, first, last)


def chains() -> list[UUID]:
    """Of all that have one, or should."""
    sealed = AuditEvent.objects.filter(number__isnull=False).order_by()
    owners = sealed.values_list("workspace_id", flat=True).distinct()
    known = set(AuditChain.objects.values_list("pk", flat=True))
    return sorted(known | {owner or NOBODYS for owner in owners})


def forget(before: datetime, size: int) -> int:
    """Delete `size` rows of before then, in one transaction with where their chains begin now."""
    with transaction.atomic():
        if not advisory.try_to_hold("audit.seal"):
            return 0  # for the next round
        ids = some_of(AuditEvent.objects.filter(at__lt=before).order_by("at"), size)
        gone = AuditEvent.objects.filter(pk__in=ids, number__isnull=False).order_by("number")
        last = {row.workspace_id or NOBODYS: row for row in gone}
        moved = []
        for chain in AuditChain.objects.filter(pk__in=last):
            row = last[chain.pk]
            if row.number and row.number > chain.forgotten:  # times are not quite in its order
                chain.forgotten, chain.forgotten_digest = row.number, row.digest
                moved.append(chain)
        bulk.update_each(moved, ["forgotten", "forgotten_digest"])
        return delete_rows(AuditEvent, ids)
