"""The usage log's beginning: requests append to a buffer, a flusher sends it on behind them.

With Redis the buffer goes into a stream once in `FLUSH_SECONDS`, from which a worker writes the
table (`accounts/usage/log.py`); without Redis this process writes it.

Loss bound: nothing on a graceful stop; on `kill -9` at most the rows of the last `FLUSH_SECONDS`.
While the store is away the rows wait, in `USAGE_BUFFER_BYTES_MAX` that workspaces share: none can
fill it for the others. Texts to be stored (`store_text`) have half of it, so that no row is lost
for them. Rows that do not fit are counted in `gateway_usage_dropped_total`, as is what is left when
the process has to end.

They leave in pieces of `BATCH_BYTES_MAX`, because the event loop and Redis are everybody's; the
connection is not.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import Error as DatabaseError
from redis.exceptions import ResponseError

from accounts.usage import log as usage_log
from accounts.usage import stream, why
from accounts.usage.rows import Batch, Row
from accounts.usage.why import Verdict
from gateway_project.core import clock
from gateway_project.core.context import RequestContext
from gateway_project.core.sharing import SharedBudget
from gateway_project.core.stores import database, redis
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.loops import Loop
from gateway_project.core.telemetry.metrics import (
    bound_reached,
    usage_buffered,
    usage_dropped,
    usage_texts_dropped,
)
from gateway_project.core.telemetry.slow import beside

FLUSH_SECONDS = 0.5
ROW_BYTES = 1000  # of one in memory; packed it is a third of that
WHY_BYTES = 1500  # of address, agent, threat types, reason or fields at fault
EXTRA_BYTES = 4000  # of metadata, which is 1 kB as JSON, and threat types
BATCH_ROWS_MAX = 100  # so many are packed in half a millisecond, for which requests wait
BATCH_BYTES_MAX = 512 << 10
log = get_logger("gateway.usage")
_loop = Loop("usage.flush")
Unavailable = (redis.RedisUnavailable, ResponseError, DatabaseError)


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
        "why",
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
        # What its event tells beyond the row (`metadata`, `threat_types`), and the `traceparent`
        # that goes with it. Empty: nobody listens.
        self.extra: dict[str, Any] = {}
        # What can be said of the request without its text; `accounts/usage/why.py` has the names.
        self.why: dict[str, Any] = {}

    def note(self, verdict: Verdict) -> None:
        """What was found out, and why; in monitor mode as well: with `decision` "allow" it was
        that."""
        self.why = why.of_verdict(verdict)
        self.status = verdict.status
        self.source = verdict.source
        self.decision = verdict.decision
        self.is_malicious = verdict.is_malicious or bool(verdict.would_flag)
        self.confidence = verdict.confidence
        self.cached = verdict.cached

    def finished(self, context: RequestContext, http_status: int, seconds: float) -> None:
        extra = {**self.extra, why.NAME: self.explanation(context)}
        buffer.append(self.row(context, http_status, seconds), context.client_ip, extra)

    def explanation(self, context: RequestContext) -> dict[str, Any]:
        """What `why` of the log's row will be."""
        return {**self.why, **why.of_context(context)}

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
        # Half for rows, half for texts: who has many of these does not lose rows for them.
        self._for_rows = SharedBudget(settings.USAGE_BUFFER_BYTES_MAX // 2)
        self._for_texts = SharedBudget(settings.USAGE_BUFFER_BYTES_MAX // 2)
        self._addresses: dict[UUID, str] = {}
        self._extras: dict[UUID, dict[str, Any]] = {}
        # Made and perhaps sent, but not confirmed: sent again under the same id.
        self._batches: deque[Batch] = deque()
        self._sizes: deque[tuple[Counter[UUID], Counter[UUID]]] = deque()  # of each of them
        self._flusher: asyncio.Task[None] | None = None
        self._sending = asyncio.Lock()

    def append(self, row: Row, client_ip: str, extra: dict[str, Any] | None = None) -> None:
        if not self._for_rows.take(row[2], _row_bytes(extra)):
            bound_reached.labels("usage_buffer").inc()
            usage_dropped.inc()
            return
        if extra and "text" in extra and not self._for_texts.take(row[2], _text_bytes(extra)):
            bound_reached.labels("usage_texts").inc()
            usage_texts_dropped.inc()
            extra = {name: value for name, value in extra.items() if name != "text"}
        self._rows.append(row)
        self._addresses[row[1]] = client_ip
        if extra:
            self._extras[row[0]] = extra

    def __len__(self) -> int:
        return len(self._rows) + sum(len(batch.rows) for batch in self._batches)

    def clear(self) -> None:
        self._rows.clear()
        self._batches.clear()
        self._sizes.clear()
        self._addresses.clear()
        self._extras.clear()
        self._for_rows.clear()
        self._for_texts.clear()
        self._show()

    def start(self) -> None:
        rounds = _loop.every(FLUSH_SECONDS, self.flush, logged=Unavailable)
        self._flusher = asyncio.create_task(rounds, name="usage-flusher")

    async def stop(self) -> None:
        """Wait for a flush under way, then send what is left; to the database if Redis is away."""
        if self._flusher is not None:
            self._flusher.cancel()
            await asyncio.gather(self._flusher, return_exceptions=True)
            self._flusher = None
        with suppress(*Unavailable):
            await self.flush()
        if not len(self):
            return
        while self._rows:
            self._make_batch()
        try:
            await database.run_behind(usage_log.write, [b.plain() for b in self._batches])
        except DatabaseError as exc:
            log.error("usage_rows_lost", rows=len(self), error=type(exc).__name__)
            usage_dropped.inc(len(self))
        self.clear()

    async def flush(self) -> None:
        """Send the buffer. Raises one of `Unavailable` when the store is away, or full; then the
        rows stay for the next time."""
        async with self._sending:
            left = len(self._rows)  # what comes meanwhile is for the next time
            self._show()
            try:
                while self._batches or left > 0:
                    if not self._batches:
                        with beside.sending_usage():
                            left -= self._make_batch()
                    await self._send(self._batches[0])
                    self._forget_first()
            except Unavailable as exc:
                log.error("usage_write_failed", rows=len(self), error=type(exc).__name__)
                raise
            finally:
                self._show()

    def _make_batch(self) -> int:
        """Of the oldest rows; returns how many."""
        rows: list[Row] = []
        extras: dict[UUID, dict[str, Any]] = {}
        sizes = Counter[UUID](), Counter[UUID]()  # of rows and of texts, by workspace
        size = 0
        while self._rows and len(rows) < BATCH_ROWS_MAX and size < BATCH_BYTES_MAX:
            row = self._rows.popleft()
            rows.append(row)
            extra = self._extras.pop(row[0], None)
            if extra is not None:
                extras[row[0]] = extra
            of_row, of_text = _row_bytes(extra), _text_bytes(extra)
            sizes[0][row[2]] += of_row
            sizes[1][row[2]] += of_text
            size += of_row + of_text
        addresses = {row[1]: self._addresses.get(row[1], "") for row in rows}
        self._batches.append(Batch(clock.new_id(), rows, addresses, _packable(extras)))
        self._sizes.append(sizes)
        if not self._rows:
            self._addresses.clear()
        return len(rows)

    def _forget_first(self) -> None:
        """It is in a store."""
        self._batches.popleft()
        sizes = self._sizes.popleft()
        for budget, of_workspaces in zip((self._for_rows, self._for_texts), sizes, strict=True):
            for workspace_id, size in of_workspaces.items():
                budget.give_back(workspace_id, size)

    def _show(self) -> None:
        usage_buffered.set(self._for_rows.used + self._for_texts.used)

    @staticmethod
    async def _send(batch: Batch) -> None:
        if not settings.REDIS_URL:
            await database.run_behind(usage_log.write, [batch.plain()])
            return
        with beside.sending_usage():
            addition = stream.addition(batch)
        if not await redis.bulk_connection().submit(addition):
            bound_reached.labels("usage_stream").inc()
            raise redis.RedisUnavailable("the stream is full: is a worker running?")


def _row_bytes(extra: Mapping[str, Any] | None) -> int:
    """About what a row, why it is as it is, and what its event tells, take of the memory."""
    if not extra:
        return ROW_BYTES
    return ROW_BYTES + WHY_BYTES + (EXTRA_BYTES if len(extra) > (why.NAME in extra) else 0)


def _text_bytes(extra: Mapping[str, Any] | None) -> int:
    return len(extra["text"]) if extra and "text" in extra else 0


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
