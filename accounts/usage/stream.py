"""The worker's side of the Redis stream: from entries to rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from uuid import UUID

import orjson
from redis.exceptions import LockError

from accounts import parking
from accounts.models import Parked
from accounts.usage.log import write
from accounts.usage.rows import Batch
from gateway_project.core.stores import redis
from gateway_project.core.stores.sweeps import Round

STREAM = "gw:usage"
ENTRIES_AT_ONCE = 100
ROWS_AT_ONCE = 5_000
LOCK = "gw:usage:drain"
LOCK_SECONDS = 10.0
UNREADABLE = "usage.entry"
VERSION = b"1"
"""Of an entry and the columns of its rows; one without it is of this version."""
Fields = dict[bytes, bytes]


class LaterVersion(ValueError):
    """An entry whose rows have other columns than ours."""


def drain() -> int:
    """Write what waits in the Redis stream, for a round; returns the rows stored.

    One drain runs at a time in the whole installation, by a lock in Redis: a session's lock in
    PostgreSQL would be another client's behind a pooler. Two at once (a lock ends when its holder
    is silent for `LOCK_SECONDS`) do no harm. Entries are deleted once their rows are committed,
    `ROWS_AT_ONCE` at a time: a worker that dies in between writes them again, which `write`
    notices. What cannot be read, such as an entry of a later version, is parked whole; where there
    is no room for more of that it stays in the stream, for a worker that can.
    """
    client = redis.client()
    lock = client.lock(LOCK, timeout=LOCK_SECONDS)
    if not lock.acquire(blocking=False):
        return 0
    stored, during, first = 0, Round(), b"-"
    try:
        while True:
            entries = client.xrange(STREAM, min=first, count=ENTRIES_AT_ONCE)
            for some in _pieces(entries):
                stored += write([batch for _, batch in some if batch is not None])
                client.xdel(STREAM, *(entry_id for entry_id, _ in some))
                if during.is_over:
                    return stored
                lock.reacquire()
            if len(entries) < ENTRIES_AT_ONCE:
                return stored
            first = b"(" + entries[-1][0]
    except LockError:  # it took too long, or Redis was flushed: whoever has it now goes on
        return stored
    finally:
        with suppress(LockError):
            lock.release()


Read = tuple[bytes, Batch | None]


def _pieces(entries: Iterable[tuple[bytes, Fields]]) -> Iterator[list[Read]]:
    """Entries with their batches, each time with as many rows as a transaction should have."""
    some: list[Read] = []
    rows = 0
    for entry_id, fields in entries:
        found = _readable(fields)
        if isinstance(found, Exception) and not _is_parked(entry_id, fields, found):
            continue
        batch = None if isinstance(found, Exception) else found
        size = len(batch.rows) if batch is not None else 0
        if some and rows + size > ROWS_AT_ONCE:
            yield some
            some, rows = [], 0
        some.append((entry_id, batch))
        rows += size
    if some:
        yield some


def _readable(fields: Fields) -> Batch | Exception:
    try:
        return _batch(fields)
    except Exception as exc:  # noqa: BLE001 - whatever it holds, it is this entry's alone
        return exc


def _is_parked(entry_id: bytes, fields: Fields, error: Exception) -> bool:
    name = entry_id.decode()
    known = Parked.objects.filter(kind=UNREADABLE, origin=name)
    return known.exists() or parking.park(UNREADABLE, name, error, payload=packed(fields))


def _batch(fields: Fields) -> Batch:
    if fields.get(b"v", VERSION) != VERSION:
        raise LaterVersion
    return Batch.unpacked(UUID(fields[b"id"].decode()), fields[b"rows"])


def packed(fields: Fields) -> bytes:
    """An entry of whatever version, byte for byte (Latin-1 has a letter for each)."""
    return orjson.dumps({n.decode("latin-1"): v.decode("latin-1") for n, v in fields.items()})


def rerun(content: bytes) -> None:
    """Write an entry that was parked. Raises what is still wrong with it."""
    fields = orjson.loads(content)
    write([_batch({n.encode("latin-1"): v.encode("latin-1") for n, v in fields.items()})])
