"""The worker's side of the Redis stream: from entries to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from uuid import UUID

from redis.exceptions import LockError

from accounts.usage.log import write
from accounts.usage.rows import Batch
from gateway_project.core.stores import redis
from gateway_project.core.stores.sweeps import Round
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.telemetry.metrics import usage_dropped

STREAM = "gw:usage"
ENTRIES_AT_ONCE = 100
ROWS_AT_ONCE = 5_000
LOCK = "gw:usage:drain"
LOCK_SECONDS = 10.0
log = get_logger("gateway.usage")


def drain() -> int:
    """Write what waits in the Redis stream, for a round; returns the rows stored.

    One drain runs at a time in the whole installation, by a lock in Redis: a session's lock in
    PostgreSQL would be another client's behind a pooler. Two at once (a lock ends when its holder
    is silent for `LOCK_SECONDS`) do no harm. Entries are deleted once their rows are committed,
    `ROWS_AT_ONCE` at a time: a worker that dies in between writes them again, which `write`
    notices.
    """
    client = redis.client()
    lock = client.lock(LOCK, timeout=LOCK_SECONDS)
    if not lock.acquire(blocking=False):
        return 0
    stored, during = 0, Round()
    try:
        while True:
            entries = client.xrange(STREAM, count=ENTRIES_AT_ONCE)
            for some in _pieces(entries):
                stored += write([batch for _, batch in some if batch is not None])
                client.xdel(STREAM, *(entry_id for entry_id, _ in some))
                if during.is_over:
                    return stored
                lock.reacquire()
            if len(entries) < ENTRIES_AT_ONCE:
                return stored
    except LockError:  # it took too long, or Redis was flushed: whoever has it now goes on
        return stored
    finally:
        with suppress(LockError):
            lock.release()


Read = tuple[bytes, Batch | None]


def _pieces(entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> Iterator[list[Read]]:
    """Entries with their batches, each time with as many rows as a transaction should have."""
    some: list[Read] = []
    rows = 0
    for entry_id, fields in entries:
        batch = _batch(entry_id, fields)
        size = len(batch.rows) if batch is not None else 0
        if some and rows + size > ROWS_AT_ONCE:
            yield some
            some, rows = [], 0
        some.append((entry_id, batch))
        rows += size
    if some:
        yield some


def _batch(entry_id: bytes, fields: dict[bytes, bytes]) -> Batch | None:
    """None: it cannot be read."""
    try:
        return Batch.unpacked(UUID(fields[b"id"].decode()), fields[b"rows"])
    except (ValueError, KeyError, TypeError) as exc:
        log.error("usage_entry_unreadable", entry=entry_id.decode(), error=type(exc).__name__)
        usage_dropped.inc()
        return None
