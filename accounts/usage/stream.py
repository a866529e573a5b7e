"""The Redis stream between the web processes and the worker: entries in, rows out.

A stream that no worker empties must not fill Redis, which also counts the limits. So the bytes in
it are counted beside it, by the same scripts that add and remove entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta
from time import monotonic
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from redis.exceptions import LockError, RedisError

from accounts import parking
from accounts.models import Parked
from accounts.usage.log import write
from accounts.usage.rollups import add_up_aside
from accounts.usage.rows import Batch, Row
from gateway_project.core.stores import redis
from gateway_project.core.stores.sweeps import Round

STREAM = "gw:usage"
BYTES = "{gw:usage}:bytes"  # in the stream's slot of a cluster
ENTRIES_AT_ONCE = 100
ROWS_AT_ONCE = 5_000
ROUND_SECONDS = 2.0
"""Of writing; then follow the sums."""
LOCK = "gw:usage:drain"
LOCK_SECONDS = 10.0
REST_SECONDS = 1.0
"""After a round that failed: the lock is kept for so long."""
SENT = "gw:usage:sent"
SENT_MS = 5_000
"""One is on its way; or what waits is for others (`Left`)."""
SLACK_SECONDS = 10.0
LEFT_SECONDS = 60.0
UNREADABLE = "usage.entry"
VERSION = b"1"
"""Of an entry and the columns of its rows; one without it is of this version."""
Fields = dict[bytes, bytes]
OVERHEAD = 100  # bytes that Redis itself needs for an entry
ADD = """
if redis.call('XLEN', KEYS[1]) == 0 then redis.call('SET', KEYS[2], 0) end
local size = tonumber(ARGV[2])
for i = 3, #ARGV do size = size + #ARGV[i] end
if tonumber(redis.call('GET', KEYS[2]) or 0) + size > tonumber(ARGV[1]) then return 0 end
redis.call('XADD', KEYS[1], '*', unpack(ARGV, 3))
redis.call('INCRBY', KEYS[2], size)
return 1
"""
REMOVE = """
local gone = 0
for i = 2, #ARGV do
  local found = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])
  if #found > 0 then
    gone = gone + tonumber(ARGV[1])
    for _, value in ipairs(found[1][2]) do gone = gone + #value end
    redis.call('XDEL', KEYS[1], ARGV[i])
  end
end
local left = tonumber(redis.call('GET', KEYS[2]) or 0) - gone
redis.call('SET', KEYS[2], math.max(left, 0))
return gone
"""


def addition(batch: Batch) -> bytes:
    """The command that adds the batch: 1, or 0 when `USAGE_STREAM_BYTES_MAX` are in the stream."""
    fields = ("v", VERSION, "id", str(batch.id), "rows", batch.packed())
    most = settings.USAGE_STREAM_BYTES_MAX
    return redis.pack("EVAL", ADD, 2, STREAM, BYTES, most, OVERHEAD, *fields)


def asks_for_drain() -> bool:
    """Whether entries wait that nobody writes now, and nobody was sent for; then the caller sends.

    One trip, and another when the answer is yes.
    """
    client = redis.client()
    waiting, taken = client.pipeline(transaction=False).xlen(STREAM).exists(LOCK, SENT).execute()
    return bool(waiting) and not taken and bool(client.set(SENT, 1, nx=True, px=SENT_MS))


def remove(entry_ids: Iterable[bytes]) -> None:
    """Delete entries that are written."""
    redis.client().eval(REMOVE, 2, STREAM, BYTES, OVERHEAD, *entry_ids)


def size() -> tuple[int, int]:
    """How many entries wait, and their bytes."""
    client = redis.client()
    return int(client.xlen(STREAM)), int(client.get(BYTES) or 0)


class Search:
    """For the row of one request. Each `look` reads what was added since the last one.

    An entry is opened only when the id stands in it, so a look costs the bytes of a second or two.
    """

    def __init__(self, workspace_id: UUID, request_id: UUID, since: datetime) -> None:
        self._wanted = str(request_id), str(workspace_id)
        began = since - timedelta(seconds=SLACK_SECONDS)  # between Redis' clock and PostgreSQL's
        self._first = f"{int(began.timestamp() * 1000)}-0".encode()

    def look(self) -> tuple[Row, Mapping[str, Any]] | None:
        """The row and what else its batch says of it. None: it is not there, or Redis is away."""
        if not settings.REDIS_URL:
            return None
        try:
            entries = redis.client().xrange(STREAM, min=self._first, count=ENTRIES_AT_ONCE)
        except (RedisError, OSError):
            return None
        for entry_id, fields in entries:
            self._first = b"(" + entry_id
            if self._wanted[0].encode() not in fields.get(b"rows", b""):
                continue
            found = _readable(fields)
            if not isinstance(found, Batch):
                continue
            for row in found.rows:
                if (row[0], row[2]) == self._wanted:
                    return row, found.extras.get(row[0], {})
        return None


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
    client.delete(SENT)
    stored, is_well = 0, False
    try:
        for piece in _read(client, Round(ROUND_SECONDS)):
            stored += write([batch for _, batch in piece if batch is not None], sums_later=True)
            remove(entry_id for entry_id, _ in piece)
            lock.reacquire()
        add_up_aside()
        if left.has_any:
            client.set(SENT, 1, px=SENT_MS)
        is_well = True
        return stored
    except LockError:  # it took too long, or Redis was flushed: whoever has it now goes on
        return stored
    finally:
        with suppress(LockError):
            if is_well:
                lock.release()
            else:
                lock.extend(REST_SECONDS, replace_ttl=True)


Read = tuple[bytes, Batch | None]


class Left:
    """Entries that can neither be read here nor be parked, for want of room.

    They are passed over for `LEFT_SECONDS`: no drain looks at all of them again. Of one process.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self._until, self._first = 0.0, b"-"

    @property
    def has_any(self) -> bool:
        return monotonic() < self._until

    def first(self) -> bytes:
        """Where a drain begins."""
        if not self.has_any:
            self.forget()
        return self._first

    def begin(self) -> None:
        """No room was found."""
        self._until = monotonic() + LEFT_SECONDS

    def pass_over(self, entry_id: bytes) -> None:
        """All up to this one are written, or left."""
        self._first = b"(" + entry_id


left = Left()


def _read(client: Any, during: Round) -> Iterator[list[Read]]:
    """What waits, in pieces, until the round is over; at least one, where one can be read."""
    first, is_all = left.first(), False
    while not is_all:
        entries = client.xrange(STREAM, min=first, count=ENTRIES_AT_ONCE)
        is_all = len(entries) < ENTRIES_AT_ONCE
        for piece in _pieces(entries):
            yield piece
            if during.is_over:
                return
        if during.is_over:
            return
        if entries:
            first = b"(" + entries[-1][0]


def _pieces(entries: Iterable[tuple[bytes, Fields]]) -> Iterator[list[Read]]:
    """Entries with their batches, each time with as many rows as a transaction should have."""
    some: list[Read] = []
    rows, last_left = 0, b""
    for entry_id, fields in entries:
        found = _readable(fields)
        if isinstance(found, Exception) and not _is_parked(entry_id, fields, found):
            last_left = entry_id
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
    if last_left:
        left.pass_over(last_left)


def _readable(fields: Fields) -> Batch | Exception:
    try:
        return _batch(fields)
    except Exception as exc:  # noqa: BLE001 - whatever it holds, it is this entry's alone
        return exc


def _is_parked(entry_id: bytes, fields: Fields, error: Exception) -> bool:
    if left.has_any:  # a moment ago there was no room
        return False
    name = entry_id.decode()
    known = Parked.objects.filter(kind=UNREADABLE, origin=name)
    if known.exists() or parking.park(UNREADABLE, name, error, payload=packed(fields)):
        return True
    left.begin()
    return False


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
