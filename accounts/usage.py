"""The usage log's writer: requests only append to a buffer; a flusher writes it behind them.

Loss bound: nothing on a graceful stop; on `kill -9` at most the rows of the last
`FLUSH_SECONDS`. When the database is away the rows wait, at most `ROWS_MAX` of them; what does not
fit is counted in `gateway_usage_dropped_total`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import DataError, connection, transaction
from django.db import Error as DatabaseError
from django.db.models import Count, Q
from django.db.models.functions import TruncDate
from django.utils import timezone

from accounts.models import ApiKey, UsageLog
from gateway_project.core import database
from gateway_project.core.middleware import RequestContext
from gateway_project.core.observability import get_logger, usage_dropped

FLUSH_SECONDS = 1.0
ROWS_MAX = 100_000
LAST_USED_SECONDS = 60

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
    "created_at",
)
log = get_logger("gateway.usage")


class Record:
    """One row in the making; `finished` is called when the answer has left."""

    __slots__ = (
        "api_key_id",
        "confidence",
        "decision",
        "is_malicious",
        "request_bytes",
        "source",
        "status",
        "workspace_id",
    )

    def __init__(self, api_key_id: UUID, workspace_id: UUID, request_bytes: int) -> None:
        self.api_key_id = api_key_id
        self.workspace_id = workspace_id
        self.request_bytes = request_bytes
        self.status = ""
        self.source = ""
        self.decision = ""
        self.is_malicious: bool | None = None
        self.confidence: float | None = None

    def finished(self, context: RequestContext, http_status: int, seconds: float) -> None:
        buffer.append(
            (
                context.request_uuid,
                self.api_key_id,
                self.workspace_id,
                context.route,
                http_status,
                context.error_code,
                self.request_bytes,
                seconds * 1000,
                context.upstream_seconds * 1000,
                self.status,
                self.source,
                self.decision,
                self.is_malicious,
                self.confidence,
                datetime.now(UTC),
            ),
            context.client_ip,
        )


class Buffer:
    """Rows of this process that are not in the database yet."""

    def __init__(self) -> None:
        self._rows: deque[tuple[Any, ...]] = deque()
        self._last_ip: dict[UUID, str] = {}
        self._last_used: dict[UUID, datetime] = {}
        self._flusher: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()

    def append(self, row: tuple[Any, ...], client_ip: str) -> None:
        if len(self._rows) >= ROWS_MAX:
            usage_dropped.inc()
            return
        self._rows.append(row)
        self._last_ip[row[1]] = client_ip

    def __len__(self) -> int:
        return len(self._rows)

    def start(self) -> None:
        self._flusher = asyncio.create_task(self._run(), name="usage-flusher")

    async def stop(self) -> None:
        """Wait for a write under way, then write what is left."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
            self._flusher = None
        await self.flush()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await asyncio.shield(self.flush())
            except Exception as exc:
                log.error("usage_flush_failed", error=type(exc).__name__, exc_info=exc)

    async def flush(self) -> None:
        """Write the buffer; on a database error the rows stay for the next time."""
        async with self._writing:
            await self._flush()

    async def _flush(self) -> None:
        if not self._rows:
            return
        rows = [self._rows.popleft() for _ in range(len(self._rows))]
        used = self._to_touch(rows)
        try:
            await database.run_behind(_write, rows, used)
        except DataError as exc:
            # Rows that the table cannot hold would keep all later ones out for ever.
            log.error("usage_rows_refused", rows=len(rows), error=type(exc).__name__)
            usage_dropped.inc(len(rows))
        except DatabaseError as exc:
            log.error("usage_write_failed", rows=len(rows), error=type(exc).__name__)
            self._rows.extendleft(reversed(rows))
            for key_id, _, client_ip in used:
                self._last_used.pop(key_id, None)
                self._last_ip.setdefault(key_id, client_ip)

    def _to_touch(self, rows: Iterable[tuple[Any, ...]]) -> list[tuple[UUID, datetime, str]]:
        """Keys whose last-used time is due: once a minute each, so that no row is hammered."""
        latest = {row[1]: row[-1] for row in rows}
        due = []
        for key_id, at in latest.items():
            before = self._last_used.get(key_id)
            if before is None or at - before >= timedelta(seconds=LAST_USED_SECONDS):
                self._last_used[key_id] = at
                due.append((key_id, at, self._last_ip.pop(key_id, "")))
        if len(self._last_used) > 50_000:
            self._last_used.clear()
        return due


buffer = Buffer()


@transaction.atomic  # all or nothing: on an error the same rows are written again
def _write(rows: list[tuple[Any, ...]], used: list[tuple[UUID, datetime, str]]) -> None:
    if connection.vendor == "postgresql":
        columns = ", ".join(COLUMNS)
        table = UsageLog._meta.db_table
        statement = f"COPY {table} ({columns}) FROM STDIN"
        # Django does not wrap `copy`: without this, psycopg's own errors would get past `_flush`.
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
    for key_id, at, client_ip in used:
        ApiKey.objects.filter(pk=key_id).update(last_used_at=at, last_used_ip=client_ip or None)


def per_day(api_key_id: UUID, *, days: int = 30) -> list[dict[str, Any]]:
    """`[{date, requests, flagged, errors}]` of one key, days without requests left out.

    `errors` are answers of 400 and above; `flagged` are verdicts that were malicious.
    """
    since = timezone.now() - timedelta(days=days)
    rows = (
        UsageLog.objects.filter(api_key_id=api_key_id, created_at__gte=since)
        .annotate(date=TruncDate("created_at", tzinfo=UTC))
        .values("date")
        .annotate(
            requests=Count("id"),
            flagged=Count("id", filter=Q(is_malicious=True)),
            errors=Count("id", filter=Q(http_status__gte=400)),
        )
        .order_by("date")
    )
    return [dict(row) for row in rows]


def prune(*, before: datetime | None = None) -> int:
    """Delete rows older than the longest plan allows; returns how many."""
    before = before or timezone.now() - timedelta(days=settings.USAGE_RETENTION_DAYS)
    deleted, _ = UsageLog.objects.filter(created_at__lt=before).delete()
    return deleted
