"""The usage log's beginning: requests append to a buffer, a flusher sends it on behind them.

With Redis the buffer goes into a stream once in `FLUSH_SECONDS`, from which a worker writes the
table (`accounts/usage/log.py`); without Redis this process writes it.

Loss bound: nothing on a graceful stop; on `kill -9` at most the rows of the last `FLUSH_SECONDS`.
While the store is away the rows wait, at most `ROWS_MAX` of them; what does not fit, and what is
left when the process has to end meanwhile, is counted in `gateway_usage_dropped_total`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Protocol
from uuid import UUID

import orjson
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import ResponseError

from accounts.usage import log as usage_log
from accounts.usage.rows import Batch, Row
from accounts.usage.stream import STREAM, VERSION
from gateway_project.core import clock
from gateway_project.core.context import RequestContext
from gateway_project.core.stores import database, redis
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from gateway_project.core.telemetry.metrics import usage_dropped

FLUSH_SECONDS = 1.0
ROWS_MAX = 100_000
BATCH_ROWS_MAX = 1000
STREAM_ENTRIES_MAX = 20_000
"""A stream that no worker empties must not fill Redis: beyond this, rows wait here."""
log = get_logger("gateway.usage")
_loop = Loop("usage.flush")
Unavailable = (redis.RedisUnavailable, ResponseError, DatabaseError)


class Verdict(Protocol):
    """What the log keeps of `detection.schemas.DetectResponse`."""

    @property
    def status(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def decision(self) -> str: ...
    @property
    def is_malicious(self) -> bool: ...
    @property
    def confidence(self) -> float: ...
    @property
    def cached(self) -> bool: ...


class Record:
    """One row in the making; `finished` is called when the answer has left."""

    __slots__ = (
        "api_key_id",
        "cached",
        "confidence",
        "decision",
        "extra",
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
        self.cached = False
        # What its event tells beyond the row: `metadata` and `threat_types`. Empty: nobody listens.
        self.extra: dict[str, Any] = {}

    def note(self, verdict: Verdict) -> None:
        """What was found out."""
        self.status = verdict.status
        self.source = verdict.source
        self.decision = verdict.decision
        self.is_malicious = verdict.is_malicious
        self.confidence = verdict.confidence
        self.cached = verdict.cached

    def finished(self, context: RequestContext, http_status: int, seconds: float) -> None:
        buffer.append(self.row(context, http_status, seconds), context.client_ip, self.extra)

    def row(self, context: RequestContext, http_status: int, seconds: float) -> Row:
        """As `usage_log.COLUMNS` say; answered now."""
        return (
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
            self.cached,
            clock.now(),
        )


class Buffer:
    """Rows of this process that are not in a store yet."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque()
        self._addresses: dict[UUID, str] = {}
        self._extras: dict[UUID, dict[str, Any]] = {}
        # Made and perhaps sent, but not confirmed: sent again under the same id.
        self._batches: deque[Batch] = deque()
        self._flusher: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    def append(self, row: Row, client_ip: str, extra: dict[str, Any] | None = None) -> None:
        if len(self) >= ROWS_MAX:
            usage_dropped.inc()
            return
        self._rows.append(row)
        self._addresses[row[1]] = client_ip
        if extra:
            self._extras[row[0]] = extra

    def __len__(self) -> int:
        return len(self._rows) + sum(len(batch.rows) for batch in self._batches)

    def clear(self) -> None:
        self._rows.clear()
        self._batches.clear()
        self._addresses.clear()
        self._extras.clear()

    def start(self) -> None:
        self._flusher = asyncio.create_task(self._run(), name="usage-flusher")

    async def stop(self) -> None:
        """Wait for a flush under way, then send what is left; to the database if Redis is away."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
            self._flusher = None
        await self.flush()
        if not len(self):
            return
        try:
            await database.run_behind(usage_log.write, [b.plain() for b in self._batches])
        except DatabaseError as exc:
            log.error("usage_rows_lost", rows=len(self), error=type(exc).__name__)
            usage_dropped.inc(len(self))
        self.clear()

    async def _run(self) -> None:
        has_failed = False
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await asyncio.shield(self.flush())
            except Exception as exc:
                log.error("usage_flush_failed", error=type(exc).__name__, exc_info=exc)
                await _loop.afailed(exc)
                has_failed = True
            else:
                if has_failed:
                    await _loop.asucceeded()
                has_failed = False

    async def flush(self) -> None:
        """Send the buffer; when the store is away the rows stay for the next time."""
        async with self._sending:
            self._make_batches()
            try:
                while self._batches:
                    await self._send(self._batches[0])
                    self._batches.popleft()
            except Unavailable as exc:
                log.error("usage_write_failed", rows=len(self), error=type(exc).__name__)

    def _make_batches(self) -> None:
        while self._rows:
            size = min(BATCH_ROWS_MAX, len(self._rows))
            rows = [self._rows.popleft() for _ in range(size)]
            addresses = {row[1]: self._addresses.get(row[1], "") for row in rows}
            extras = {row[0]: self._extras[row[0]] for row in rows if row[0] in self._extras}
            self._batches.append(Batch(clock.new_id(), rows, addresses, _packable(extras)))
        self._addresses.clear()
        self._extras.clear()

    @staticmethod
    async def _send(batch: Batch) -> None:
        if not settings.REDIS_URL:
            await database.run_behind(usage_log.write, [batch.plain()])
            return
        connection = redis.connection()
        if await connection.submit(redis.pack("XLEN", STREAM)) >= STREAM_ENTRIES_MAX:
            raise redis.RedisUnavailable("the stream is full: is a worker running?")
        entry: tuple[Any, ...] = ("v", VERSION, "id", str(batch.id), "rows", batch.packed())
        await connection.submit(redis.pack("XADD", STREAM, "*", *entry))


def _packable(extras: dict[UUID, dict[str, Any]]) -> dict[UUID, dict[str, Any]]:
    """Those that can be sent: one that cannot would keep all rows of this process waiting."""
    try:
        orjson.dumps([[*extras.values()]])  # as deep as in a batch
    except TypeError:
        pass
    else:
        return extras
    found = {}
    for request_id, extra in extras.items():
        try:
            orjson.dumps([[extra]])
        except TypeError as exc:
            log.error("usage_extra_refused", request_id=str(request_id), error=str(exc), alert=True)
        else:
            found[request_id] = extra
    return found


buffer = Buffer()
