"""The usage log at rest: rows in daily partitions, and what they add up to.

`write` takes batches of rows and is safe to call twice with the same batch: its id is stored in the
transaction of its rows. On PostgreSQL rows go in by `COPY`; elsewhere by batched inserts into one
plain table. Each batch also adds to the roll-ups per minute, hour and day, which is what pages and
profiles read: no page ever counts rows.

`drain` is the worker's side of the Redis stream that web processes send their batches to.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import date, datetime, timedelta
from functools import lru_cache
from operator import add, itemgetter
from types import MappingProxyType
from typing import Any, NamedTuple
from uuid import UUID

import orjson
from django.conf import settings
from django.db import DataError, IntegrityError, connection, transaction
from django.db.models import Max
from django.utils import timezone

from accounts import announcements
from accounts.models import (
    ApiKey,
    Plan,
    QuotaNotice,
    ScoreRollup,
    StoredText,
    UsageBatch,
    UsageLog,
    UsageRollup,
)
from gateway_project.core import encryption, redis
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import usage_dropped, usage_written

COLUMNS = (
    "request_id",
    "api_key_id",
    "workspace_id",
    "endpoint",
    "http_status",
    "error_code",
    "request_size",
    "response_time_ms",
    "upstream_ms",
    "status",
    "source",
    "decision",
    "is_malicious",
    "confidence",
    "cached",
    "created_at",
)
STREAM = "gw:usage"
ENTRIES_AT_ONCE = 100
DRAIN_LOCK = 163_990_420_092_417_732  # any number that nobody else on the database uses
LAST_USED_SECONDS = 60
PARTITIONS_AHEAD_DAYS = 7
BATCHES_REMEMBERED = timedelta(days=1)
ROLLUPS_KEPT = {"minute": timedelta(days=2), "hour": timedelta(days=95)}
SCORE_BINS = 100
Row = Sequence[Any]
NOTHING: Mapping[UUID, Mapping[str, Any]] = MappingProxyType({})
log = get_logger("gateway.usage")


class Batch(NamedTuple):
    """Rows as `COLUMNS` say, and the address each key was last used from.

    `extras` has, by request id, what the events of its rows tell and the log does not keep.
    """

    id: UUID
    rows: list[Row]
    addresses: Mapping[Any, str]
    extras: Mapping[Any, Mapping[str, Any]] = NOTHING

    def packed(self) -> bytes:
        parts: list[Any] = [self.rows, {str(k): v for k, v in self.addresses.items()}]
        if self.extras:
            parts.append({str(k): v for k, v in self.extras.items()})
        return orjson.dumps(parts)

    @classmethod
    def unpacked(cls, batch_id: UUID, content: bytes) -> Batch:
        """With ids and times as text: most of them go on into the database just so.

        Raises `ValueError` or the like when `content` is not a batch.
        """
        rows, addresses, *more = orjson.loads(content)
        if not all(len(row) == len(COLUMNS) and row[-1].endswith("+00:00") for row in rows):
            raise ValueError("not rows of the log, with times in UTC")
        return cls(batch_id, rows, dict(addresses), dict(*more))

    def plain(self) -> Batch:
        """As it would come out of the stream, which is what `write` takes."""
        return self.unpacked(self.id, self.packed())


# -- Writing --------------------------------------------------------------------------------------


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
        _add_up(stored)
        _tell(stored, fresh.values())
        _keep_texts(stored, fresh.values())
    refused = sum(len(batch.rows) for batch in fresh.values()) - len(stored)
    if refused:
        log.error("usage_rows_refused", rows=refused)
        usage_dropped.inc(refused)
    usage_written.inc(len(stored))
    # Apart: a key's row that somebody holds must not keep the log from being written.
    for batch in fresh.values():
        _touch(batch)
    return len(stored)


def _tell(stored: list[Row], batches: Iterable[Batch]) -> None:
    """Raise the events of these rows, where somebody listens."""
    wanted = announcements.wanted_by({UUID(row[2]) for row in stored})
    if not wanted:
        return
    extras = {UUID(key): value for batch in batches for key, value in batch.extras.items()}
    told = [row for row in stored if UUID(row[2]) in wanted]
    announcements.tell_of_usage(wanted, [_values(row) for row in told], extras)


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
        columns = ", ".join(COLUMNS)
        statement = f"COPY {UsageLog._meta.db_table} ({columns}) FROM STDIN"
        # Django does not wrap `copy`: without this, psycopg's own errors would get past everybody.
        with (
            connection.wrap_database_errors,
            connection.cursor() as cursor,
            cursor.copy(statement) as copy,
        ):
            for row in rows:
                copy.write_row(row)
    else:
        UsageLog.objects.bulk_create(
            [UsageLog(**dict(zip(COLUMNS, row, strict=True))) for row in rows], batch_size=500
        )


_touched: dict[str, datetime] = {}  # by the key's id
# A key that somebody holds is left for the next minute.
TOUCH = """
UPDATE accounts_apikey SET last_used_at = used.at, last_used_ip = used.ip
FROM unnest(%s::uuid[], %s::timestamptz[], %s::inet[]) AS used (id, at, ip)
WHERE accounts_apikey.id = used.id AND accounts_apikey.id IN (
    SELECT id FROM accounts_apikey WHERE id = ANY(%s) FOR NO KEY UPDATE SKIP LOCKED
)
"""


def _touch(batch: Batch) -> None:
    """Note when and from where keys were last used: once a minute each, so none is hammered."""
    last = {row[1]: row[-1] for row in sorted(batch.rows, key=itemgetter(-1))}
    latest = {key_id: datetime.fromisoformat(at) for key_id, at in last.items()}
    if len(_touched) > 50_000:
        _touched.clear()
    due = {
        key_id: at
        for key_id, at in latest.items()
        if key_id not in _touched or (at - _touched[key_id]).total_seconds() >= LAST_USED_SECONDS
    }
    if not due:
        return
    addresses = [batch.addresses.get(key_id) or None for key_id in due]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(TOUCH, [list(due), list(due.values()), addresses, list(due)])
    else:
        for (key_id, at), address in zip(due.items(), addresses, strict=True):
            ApiKey.objects.filter(pk=key_id).update(last_used_at=at, last_used_ip=address)
    _touched.update(due)


def drain() -> int:
    """Write what waits in the Redis stream; returns the rows stored.

    One drain runs at a time in the whole installation. An entry is deleted once its rows are
    committed: a worker that dies in between writes it again, which `write` notices.
    """
    client = redis.client()
    stored = 0
    with _only_drain() as is_ours:
        while is_ours:
            entries = client.xrange(STREAM, count=ENTRIES_AT_ONCE)
            stored += write(list(_batches(entries)))
            if entries:
                client.xdel(STREAM, *(entry_id for entry_id, _ in entries))
            if len(entries) < ENTRIES_AT_ONCE:
                break
    return stored


def _batches(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[Batch]:
    for entry_id, fields in entries:
        try:
            yield Batch.unpacked(UUID(fields[b"id"].decode()), fields[b"rows"])
        except (ValueError, KeyError, TypeError) as exc:
            log.error("usage_entry_unreadable", entry=entry_id.decode(), error=type(exc).__name__)
            usage_dropped.inc()


@contextmanager
def _only_drain() -> Iterator[bool]:
    if connection.vendor != "postgresql":
        yield True  # its transactions exclude each other anyway
        return
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(%s)", [DRAIN_LOCK])
        row = cursor.fetchone()
    is_ours = bool(row and row[0])
    try:
        yield is_ours
    finally:
        if is_ours:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [DRAIN_LOCK])


# -- Roll-ups -------------------------------------------------------------------------------------

LATENCY_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 30_000)
"""Upper bounds of the latency bins; the last bin holds everything above."""
LATENCY_COLUMNS = tuple(f"latency_{i:02}" for i in range(len(LATENCY_MS) + 1))
SUMS = (
    "requests",
    "flagged",
    "degraded",
    "cached",
    "request_bytes",
    "latency_ms_sum",
    *LATENCY_COLUMNS,
)
KEYS = ("period", "bucket", "subject_id", "endpoint", "http_status")
SCORE_KEYS = ("period", "bucket", "subject_id", "bin")
EVERYTHING = UUID(int=0)
"""The subject of the sums over the whole installation."""


def _add_up(rows: Iterable[Row]) -> None:
    # By minute and whatever else is told apart, so that the rest has few of them instead of rows.
    groups: dict[tuple[Any, ...], list[float]] = {}
    scores: dict[tuple[Any, ...], int] = defaultdict(int)
    first_bin = len(SUMS) - len(LATENCY_COLUMNS)
    for row in rows:
        _, key, workspace, endpoint, http_status, _, size, latency_ms, _, status, *rest = row
        _, _, is_malicious, confidence, cached, at = rest
        group = (at[:16], key, workspace, endpoint, http_status)
        total = groups.get(group)
        if total is None:
            total = groups[group] = [0] * len(SUMS)
        total[0] += 1
        total[1] += bool(is_malicious)
        total[2] += status == "degraded"
        total[3] += cached
        total[4] += size
        total[5] += latency_ms
        total[first_bin + bisect_left(LATENCY_MS, latency_ms)] += 1
        if confidence is not None:
            number = bin_of(confidence)
            scores[(at[:16], key, workspace, number)] += 1
    sums: dict[tuple[Any, ...], list[float]] = {}
    for (minute, key, workspace, endpoint, http_status), total in groups.items():
        for slot in _slots(minute, key, workspace):
            place = (*slot, endpoint, http_status)
            before = sums.get(place)
            sums[place] = total if before is None else [*map(add, before, total)]
    bins: dict[tuple[Any, ...], int] = defaultdict(int)
    for (minute, key, workspace, number), count in scores.items():
        for slot in _slots(minute, key, workspace):
            bins[(*slot, number)] += count
    _upsert(UsageRollup, KEYS, SUMS, [(*key, *total) for key, total in sums.items()])
    _upsert(ScoreRollup, SCORE_KEYS, ("count",), [(*key, count) for key, count in bins.items()])


def bin_of(score: float) -> int:
    """The hundredth that a score of 0 to 1 lies in; the last holds 1 as well."""
    return min(SCORE_BINS - 1, int(score * SCORE_BINS))


def _slots(minute: str, key: str, workspace: str) -> Iterator[tuple[str, datetime, str]]:
    """Period, bucket and subject of all sums that something of this `minute` belongs to."""
    for period, bucket in _buckets(minute):
        for subject in (key, workspace, str(EVERYTHING)):
            yield period, bucket, subject


@lru_cache(maxsize=64)
def _buckets(minute: str) -> tuple[tuple[str, datetime], ...]:
    """Of a time in UTC, cut after its minute."""
    at = datetime.fromisoformat(minute + ":00+00:00")
    hour = at.replace(minute=0)
    return ("minute", at), ("hour", hour), ("day", hour.replace(hour=0))


def _upsert(
    model: Any, keys: Sequence[str], sums: Sequence[str], rows: list[tuple[Any, ...]]
) -> None:
    if not rows:
        return
    table = model._meta.db_table
    fields = [model._meta.get_field(name) for name in (*keys, *sums)]
    insert = f"INSERT INTO {table} ({', '.join(field.column for field in fields)}) "
    add = f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET " + ", ".join(
        f"{name} = {table}.{name} + excluded.{name}" for name in sums
    )
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # One statement: for a thousand keys at once it would be six thousand. In order, so
            # that two writers take the rows' locks in the same one.
            columns = [field.column for field in fields]
            types = ", ".join(f"{field.column} {field.db_type(connection)}" for field in fields)
            cursor.execute(
                f"{insert} SELECT * FROM json_to_recordset(%s) AS added ({types}) "  # noqa: S608
                f"ORDER BY {', '.join(keys)} {add}",
                [orjson.dumps([dict(zip(columns, row, strict=True)) for row in rows]).decode()],
            )
        else:
            values = f"VALUES ({', '.join(['%s'] * len(fields))})"
            adapt = [field.get_db_prep_value for field in fields]
            cursor.executemany(
                insert + values + add,
                [
                    [prepare(value, connection) for prepare, value in zip(adapt, row, strict=True)]
                    for row in rows
                ],
            )


def rebuild_rollups() -> None:
    """Count the log anew (PostgreSQL), as far back as each period is kept.

    For when rows were put there by other means. Sums of days whose rows are dropped are lost.
    """
    bins = ", ".join(
        f"count(*) FILTER (WHERE width_bucket(response_time_ms, %(bounds)s) = {i})"
        for i in range(len(LATENCY_COLUMNS))
    )
    values: dict[str, Any] = {
        # `width_bucket` has inclusive lower bounds, ours are inclusive upper ones.
        "bounds": [bound + 1e-9 for bound in LATENCY_MS],
        "bins": SCORE_BINS,
        "everything": EVERYTHING,
    }
    bucket = "date_trunc(%(period)s, created_at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC'"
    with transaction.atomic(), connection.cursor() as cursor:
        for period in ("minute", "hour", "day"):
            values["period"] = period
            kept = ROLLUPS_KEPT.get(period, timedelta(days=36_500))
            values["since"] = (timezone.now() - kept).replace(minute=0, second=0, microsecond=0)
            for model in (UsageRollup, ScoreRollup):
                model.objects.filter(period=period).delete()
            for subject in ("api_key_id", "workspace_id", "%(everything)s::uuid"):
                cursor.execute(
                    f"INSERT INTO accounts_usagerollup ({', '.join((*KEYS, *SUMS))}) "  # noqa: S608
                    f"SELECT %(period)s, {bucket}, {subject}, endpoint, http_status, count(*), "
                    "count(*) FILTER (WHERE is_malicious), "
                    "count(*) FILTER (WHERE status = 'degraded'), count(*) FILTER (WHERE cached), "
                    f"sum(request_size), sum(response_time_ms), {bins} "
                    "FROM accounts_usagelog WHERE created_at >= %(since)s GROUP BY 2, 3, 4, 5",
                    values,
                )
                cursor.execute(
                    f"INSERT INTO accounts_scorerollup ({', '.join(SCORE_KEYS)}, count) "  # noqa: S608
                    f"SELECT %(period)s, {bucket}, {subject}, "
                    "least(%(bins)s - 1, floor(confidence * %(bins)s)::int), count(*) "
                    "FROM accounts_usagelog "
                    "WHERE confidence IS NOT NULL AND created_at >= %(since)s GROUP BY 2, 3, 4",
                    values,
                )


# -- Partitions and retention ---------------------------------------------------------------------

_days_known: set[date] = set()


def _partition(day: date) -> str:
    return f"{UsageLog._meta.db_table}_p{day:%Y%m%d}"


def ensure_partitions(days: Iterable[date]) -> None:
    """Make the partitions that rows of `days` (UTC) need, where the log has any."""
    missing = set(days) - _days_known
    if not missing or connection.vendor != "postgresql":
        return
    with connection.cursor() as cursor:
        for day in sorted(missing):
            cursor.execute("SELECT to_regclass(%s)", [_partition(day)])
            row = cursor.fetchone()
            if row and row[0] is None:
                cursor.execute(
                    f"CREATE TABLE IF NOT EXISTS {_partition(day)} "
                    f"PARTITION OF {UsageLog._meta.db_table} FOR VALUES "
                    f"FROM ('{day} 00:00+00') TO ('{day + timedelta(days=1)} 00:00+00')"
                )
    _days_known.update(missing)


def make_partitions_ahead() -> None:
    """So that midnight finds its partition there, without a lock in the middle of the traffic."""
    today = timezone.now().date()
    ensure_partitions(today + timedelta(days=n) for n in range(PARTITIONS_AHEAD_DAYS + 1))


def retention_days() -> int:
    """Of the installation: as set, else the longest that a plan promises."""
    longest = Plan.objects.aggregate(days=Max("log_days"))["days"] or 90
    return settings.USAGE_RETENTION_DAYS or longest


def prune() -> int:
    """Drop what is older than the retention; returns how many partitions or rows."""
    now = timezone.now()
    before = now - timedelta(days=retention_days())
    for period, kept in ROLLUPS_KEPT.items():
        for model in (UsageRollup, ScoreRollup):
            model.objects.filter(period=period, bucket__lt=now - kept).delete()
    UsageBatch.objects.filter(written_at__lt=now - BATCHES_REMEMBERED).delete()
    QuotaNotice.objects.filter(day__lt=before.date()).delete()
    StoredText.objects.filter(created_at__lt=before).delete()
    if connection.vendor != "postgresql":
        return UsageLog.objects.filter(created_at__lt=before).delete()[0]
    old = [day for day in partition_days() if day < before.date()]
    with connection.cursor() as cursor:
        for day in old:
            cursor.execute(f"DROP TABLE {_partition(day)}")
            _days_known.discard(day)
    return len(old)


def partition_days() -> list[date]:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = %s::regclass",
            [UsageLog._meta.db_table],
        )
        names = [row[0] for row in cursor.fetchall()]
    return sorted(datetime.strptime(name[-8:], "%Y%m%d").date() for name in names)  # noqa: DTZ007
