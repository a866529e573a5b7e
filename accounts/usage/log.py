"""The usage log at rest: rows in daily partitions, and what they add up to.

`write` takes batches of rows and is safe to call twice with the same batch: its id is stored in the
transaction of its rows. On PostgreSQL rows go in by `COPY`; elsewhere by batched inserts into one
plain table. Each batch also adds to the roll-ups per minute, hour and day, which is what pages and
profiles read: no page ever counts rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from functools import partial
from threading import Lock
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from cachetools import LRUCache
from django.db import connection, transaction

from accounts import parking
from accounts.models import (
    ApiKey,
    StoredText,
    UsageBatch,
    UsageLog,
    Workspace,
    new_id,
)
from accounts.usage import events, why
from accounts.usage.partitions import PARTITIONS_AHEAD_DAYS, ensure_partitions
from accounts.usage.rollups import add_up, add_up_types, put_aside
from accounts.usage.rows import COLUMNS, Batch, Row
from gateway_project.core import clock, encryption
from gateway_project.core.stores.bulk import copy_in
from gateway_project.core.stores.refused import reason, write_all_but
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import usage_written

LAST_USED_SECONDS = 60
# A row of another time would make a partition that nothing ever reads or drops.
FIRST_DAY = date(2000, 1, 1)
DAYS_AHEAD = timedelta(days=PARTITIONS_AHEAD_DAYS)
DURATIONS = COLUMNS.index("response_time_ms"), COLUMNS.index("upstream_ms")
MILLISECONDS_MAX = 1e9
"""Of a request: eleven days. The columns take more, and their sums would not."""
log = get_logger("gateway.usage")


class Entry(NamedTuple):
    """A row of a batch, the address it came from, and what its batch says beside the columns."""

    row: Row
    address: str
    extra: Mapping[str, Any]

    def packed(self) -> bytes:
        """As a batch of its own, to be parked."""
        extras = {str(self.row[0]): self.extra} if self.extra else {}
        return Batch(new_id(), [self.row], {str(self.row[1]): self.address}, extras).packed()


Park = Callable[[str, Entry, Exception], object]


def park(kind: str, entry: Entry, error: Exception) -> None:
    """Put aside what was refused of `entry`: `kind` is `row`, `event` or `text`."""
    request_id, _, workspace_id = entry.row[:3]
    parking.park(
        f"usage.{kind}", request_id, error, payload=entry.packed(), workspace_id=workspace_id
    )


def write(batches: Sequence[Batch], *, park: Park = park, sums_later: bool = False) -> int:
    """Store the rows of unpacked batches and add them up, each once; returns the rows stored.

    With `sums_later` the caller calls `rollups.add_up_aside` soon.

    What a row, its event or its text holds keeps no other out: that one alone is handed to `park`,
    in the same transaction. Raises Django's `OperationalError` or `InterfaceError` when the
    database is away; nothing is stored then.
    """
    ensure_partitions(_days(batches))
    with transaction.atomic():
        known = set(
            UsageBatch.objects.filter(pk__in=[b.id for b in batches]).values_list("pk", flat=True)
        )
        fresh = {batch.id: batch for batch in batches if batch.id not in known}
        UsageBatch.objects.bulk_create([UsageBatch(id=batch_id) for batch_id in fresh])
        stored = store(_entries(fresh.values()), park, sums_later=sums_later)
        tell(stored, park)
        keep_texts(stored, park)
    usage_written.inc(len(stored))
    # Apart: a key's row that somebody holds must not keep the log from being written.
    _touch(stored)
    return len(stored)


def _days(batches: Iterable[Batch]) -> set[date]:
    return {
        day
        for text in {row[-1][:10] for batch in batches for row in batch.rows if _is_time(row)}
        if (day := _day(text)) is not None
    }


def _is_time(row: Row) -> bool:
    return isinstance(row[-1], str) and row[-1].endswith("+00:00")


def _day(text: str) -> date | None:
    """None for what is no day, or so far away that no row of ours is of it."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        return None
    return day if FIRST_DAY <= day <= clock.now().date() + DAYS_AHEAD else None


def _entries(batches: Iterable[Batch]) -> list[Entry]:
    return [
        Entry(row, _of(batch.addresses, row[1]) or "", _of(batch.extras, row[0]) or {})
        for batch in batches
        for row in batch.rows
    ]


def _of(known: Mapping[Any, Any], name: Any) -> Any:
    return known.get(name) if isinstance(name, str) else None


def write_again(kind: str, content: bytes, batch_id: UUID) -> None:
    """Do what was refused of a packed entry; raises what is still wrong with it.

    `kind` as `park` was given it. A row under the same `batch_id` is written once.
    """
    batch = Batch.unpacked(batch_id, content)
    if kind == "row":
        write([batch], park=_raise)
        return
    with transaction.atomic():
        (tell if kind == "event" else keep_texts)(_entries([batch]), _raise)


def _raise(kind: str, entry: Entry, error: Exception) -> None:
    raise error


def store(entries: Sequence[Entry], park: Park, *, sums_later: bool = False) -> list[Entry]:
    """Insert the rows and add them up; returns those that the tables took."""
    return write_all_but(entries, partial(_store, sums_later=sums_later), partial(park, "row"))


def _store(entries: Sequence[Entry], *, sums_later: bool = False) -> None:
    rows = [entry.row for entry in entries]
    if not (all(map(_is_time, rows)) and all(map(_day, {row[-1][:10] for row in rows}))):
        raise ValueError("a row of no time in UTC, or of no time near ours")
    if not all(abs(row[at]) <= MILLISECONDS_MAX for row in rows for at in DURATIONS):
        raise ValueError("a duration that is none: no sum would hold it")
    _insert(entries)
    if not (sums_later and put_aside(rows)):
        add_up(rows)
    add_up_types(
        [(entry.row, content_type) for entry in entries if (content_type := _type_of(entry))]
    )


def _type_of(entry: Entry) -> str:
    """Of its text, where that is not a user's: `why.py`."""
    content_type = (entry.extra.get(why.NAME) or {}).get("type")
    return content_type if isinstance(content_type, str) else ""


def tell(entries: Sequence[Entry], park: Park) -> list[Entry]:
    """Raise the events of these rows, where somebody listens."""
    return write_all_but(entries, _tell, partial(park, "event"))


def _tell(entries: Sequence[Entry]) -> None:
    extras = {entry.row[0]: entry.extra for entry in entries if entry.extra}
    events.tell_of_usage([entry.row for entry in entries], extras)


def keep_texts(entries: Sequence[Entry], park: Park) -> list[Entry]:
    """Of the rows whose keys' policies ask for it; encrypted already."""
    with_text = [entry for entry in entries if "text" in entry.extra]
    return write_all_but(with_text, _keep_texts, partial(park, "text"))


def _keep_texts(entries: Sequence[Entry]) -> None:
    # Nothing would erase what comes after its workspace went.
    living = {
        str(pk)
        for pk in Workspace.objects.filter(pk__in={e.row[2] for e in entries}).values_list(
            "pk", flat=True
        )
    }
    StoredText.objects.bulk_create(
        [
            StoredText(
                request_id=entry.row[0],
                workspace_id=entry.row[2],
                encrypted=entry.extra["text"],
                created_at=datetime.fromisoformat(entry.row[-1]),
            )
            for entry in entries
            if str(entry.row[2]) in living
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


def _insert(entries: Sequence[Entry]) -> None:
    reasons = [entry.extra.get(why.NAME) or {} for entry in entries]
    if connection.vendor == "postgresql":
        rows = (
            (*entry.row, orjson.dumps(reason).decode())
            for entry, reason in zip(entries, reasons, strict=True)
        )
        copy_in(UsageLog._meta.db_table, (*COLUMNS, why.NAME), rows)
    else:
        UsageLog.objects.bulk_create(
            [
                UsageLog(**dict(zip(COLUMNS, entry.row, strict=True)), why=reason)
                for entry, reason in zip(entries, reasons, strict=True)
            ],
            batch_size=500,
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


def _touch(entries: Sequence[Entry]) -> None:
    """Note when and from where keys were last used: once a minute each, so none is hammered."""
    last = {entry.row[1]: entry for entry in sorted(entries, key=lambda entry: entry.row[-1])}
    uses = [
        Use(key_id, datetime.fromisoformat(entry.row[-1]), entry.address or None)
        for key_id, entry in last.items()
    ]
    with _touching:
        before = {use.key_id: _touched.get(use.key_id) for use in uses}
    due = [
        use
        for use in uses
        if (last_at := before[use.key_id]) is None
        or (use.at - last_at).total_seconds() >= LAST_USED_SECONDS
    ]
    write_all_but(due, _note_uses, _note_unfit)
    with _touching:
        _touched.update({use.key_id: use.at for use in due})


class Use(NamedTuple):
    key_id: str
    at: datetime
    address: str | None


def _note_uses(uses: Sequence[Use]) -> None:
    if connection.vendor == "postgresql":
        ids, times, addresses = zip(*uses, strict=True)
        with connection.cursor() as cursor:
            cursor.execute(TOUCH, [list(ids), list(times), list(addresses), list(ids)])
    else:
        for key_id, at, address in uses:
            ApiKey.objects.filter(pk=key_id).update(last_used_at=at, last_used_ip=address)


def _note_unfit(use: Use, error: Exception) -> None:
    # The next use says more than this one would, so it is not worth a place among the parked.
    log.error("key_use_refused", key_id=use.key_id, error=reason(error))
