"""The usage log at rest: rows in daily partitions, and what they add up to.

`write` takes batches of rows and is safe to call twice with the same batch: its id is stored in the
transaction of its rows. On PostgreSQL rows go in by `COPY`; elsewhere by batched inserts into one
plain table. Each batch also adds to the roll-ups per minute, hour and day, which is what pages and
profiles read: no page ever counts rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import date, datetime
from threading import Lock
from typing import Any
from uuid import UUID

from cachetools import LRUCache
from django.db import DataError, IntegrityError, connection, transaction

from accounts.models import (
    ApiKey,
    StoredText,
    UsageBatch,
    UsageLog,
)
from accounts.usage import events
from accounts.usage.partitions import ensure_partitions
from accounts.usage.rollups import add_up
from accounts.usage.rows import COLUMNS, Batch, Row
from gateway_project.core import encryption
from gateway_project.core.stores.bulk import copy_in
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import usage_dropped, usage_written

LAST_USED_SECONDS = 60
log = get_logger("gateway.usage")


def write(batches: Sequence[Batch]) -> int:
    """Store the rows of unpacked batches and add them up, each once; returns the rows stored.

    Rows that the table refuses are counted in `gateway_usage_dropped_total` and keep no other row
    out. Raises Django's `OperationalError` or `InterfaceError` when the database is away; nothing
    is stored then.
    """
    days = {row[-1][:10] for batch in batches for row in batch.rows}
    ensure_partitions(date.fromisoformat(day) for day in days)
    with transaction.atomic():
        known = set(
            UsageBatch.objects.filter(pk__in=[b.id for b in batches]).values_list("pk", flat=True)
        )
        fresh = {batch.id: batch for batch in batches if batch.id not in known}
        UsageBatch.objects.bulk_create([UsageBatch(id=batch_id) for batch_id in fresh])
        stored = list(_store([row for batch in fresh.values() for row in batch.rows]))
        add_up(stored)
        try:
            with transaction.atomic():
                _tell(stored, fresh.values())
        except (DataError, IntegrityError) as exc:
            # Nobody's rows may be lost for what one customer's events hold.
            log.error("usage_events_refused", rows=len(stored), error=type(exc).__name__)
        _keep_texts(stored, fresh.values())
    refused = sum(len(batch.rows) for batch in fresh.values()) - len(stored)
    if refused:
        log.error("usage_rows_refused", rows=refused)
        usage_dropped.inc(refused)
    usage_written.inc(len(stored))
    # Apart: a key's row that somebody holds must not keep the log from being written.
    _touch(fresh.values())
    return len(stored)


def _tell(stored: list[Row], batches: Iterable[Batch]) -> None:
    """Raise the events of these rows, where somebody listens."""
    wanted = events.wanted_by({UUID(row[2]) for row in stored})
    if not wanted:
        return
    extras = {UUID(key): value for batch in batches for key, value in batch.extras.items()}
    chosen = [row for row in stored if UUID(row[2]) in wanted]
    events.tell_of_usage(wanted, [_values(row) for row in chosen], extras)


def _keep_texts(stored: list[Row], batches: Iterable[Batch]) -> None:
    """Of the rows whose keys' policies ask for it; encrypted already."""
    texts = {
        request_id: extra["text"]
        for batch in batches
        for request_id, extra in batch.extras.items()
        if "text" in extra
    }
    if texts:
        StoredText.objects.bulk_create(
            [
                StoredText(
                    request_id=row[0],
                    workspace_id=row[2],
                    encrypted=texts[row[0]],
                    created_at=datetime.fromisoformat(row[-1]),
                )
                for row in stored
                if row[0] in texts
            ],
            ignore_conflicts=True,
        )


def text_of(request_id: UUID, workspace_id: UUID) -> str | None:
    """The stored text of a request of the workspace."""
    found = StoredText.objects.filter(pk=request_id, workspace_id=workspace_id).first()
    if found is None:
        return None
    try:
        return encryption.decrypt(found.encrypted)
    except encryption.Undecryptable:
        log.error("stored_text_undecryptable", request_id=str(request_id))
        return None


def _values(row: Row) -> dict[str, Any]:
    """By column, with ids and times as such."""
    request, key, workspace, *rest, at = row
    ids = (UUID(request), UUID(key), UUID(workspace))
    return dict(zip(COLUMNS, (*ids, *rest, datetime.fromisoformat(at)), strict=True))


def _store(rows: list[Row]) -> Iterator[Row]:
    """Insert `rows`; yields those that the table took. Halves until a bad row stands alone."""
    if not rows:
        return
    try:
        with transaction.atomic():
            _insert(rows)
    except (DataError, IntegrityError) as exc:
        if len(rows) == 1:
            log.error("usage_row_refused", error=type(exc).__name__)
            return
        middle = len(rows) // 2
        yield from _store(rows[:middle])
        yield from _store(rows[middle:])
    else:
        yield from rows


def _insert(rows: list[Row]) -> None:
    if connection.vendor == "postgresql":
        copy_in(UsageLog._meta.db_table, COLUMNS, rows)
    else:
        UsageLog.objects.bulk_create(
            [UsageLog(**dict(zip(COLUMNS, row, strict=True))) for row in rows], batch_size=500
        )


# When a key was last noted as used, by its id. Whoever falls out is noted once too often.
_touched: LRUCache[str, datetime] = LRUCache(50_000)
_touching = Lock()
# A key that somebody holds is left for the next minute.
TOUCH = """
UPDATE accounts_apikey SET last_used_at = used.at, last_used_ip = used.ip
FROM unnest(%s::uuid[], %s::timestamptz[], %s::inet[]) AS used (id, at, ip)
WHERE accounts_apikey.id = used.id AND accounts_apikey.id IN (
    SELECT id FROM accounts_apikey WHERE id = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED
)
"""


def _touch(batches: Iterable[Batch]) -> None:
    """Note when and from where keys were last used: once a minute each, so none is hammered."""
    used = [(row[-1], row[1]) for batch in batches for row in batch.rows]
    last = {key_id: at for at, key_id in sorted(used)}
    addresses_of = {key: ip for batch in batches for key, ip in batch.addresses.items()}
    latest = {key_id: datetime.fromisoformat(at) for key_id, at in last.items()}
    with _touching:
        before = {key_id: _touched.get(key_id) for key_id in latest}
    due = {
        key_id: at
        for key_id, at in latest.items()
        if (last_at := before[key_id]) is None
        or (at - last_at).total_seconds() >= LAST_USED_SECONDS
    }
    if not due:
        return
    addresses = [addresses_of.get(key_id) or None for key_id in due]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(TOUCH, [list(due), list(due.values()), addresses, list(due)])
    else:
        for (key_id, at), address in zip(due.items(), addresses, strict=True):
            ApiKey.objects.filter(pk=key_id).update(last_used_at=at, last_used_ip=address)
    with _touching:
        _touched.update(due)
