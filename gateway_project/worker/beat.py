"""What wakes the workers: beat's scheduler, of which any number may run, or none apart.

Each worker has one (`SpareBeat`), and `celery beat` is one more. Whoever holds the lock in Redis
sends, the others look every `LOOK_SECONDS` whether it is free: so all goes on when a beat dies, and
two of them send no more than one. Without Redis there is one process, and it sends.
"""

from __future__ import annotations

from datetime import datetime
from time import monotonic
from typing import Any

from celery import bootsteps
from django.conf import settings
from django.db import Error as DatabaseError
from django_celery_beat.schedulers import DatabaseScheduler, ModelEntry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import LockError, LockNotOwnedError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from accounts.usage import stream
from gateway_project.core.stores import database, redis
from gateway_project.core.stores.silence import of_postgresql
from gateway_project.core.telemetry import saturation
from gateway_project.core.telemetry.logging import get_logger

LOOK_SECONDS = 2.0
LEASE_SECONDS = 6.0
EDITED_SECONDS = 5.0
LATE_SECONDS = 0.002
STREAM_SECONDS = 0.25
DRAIN = "drain-usage"
LOCK = "gw:beat"
SILENT = (RedisConnectionError, RedisTimeoutError)
log = get_logger("gateway.beat")


class Entry(ModelEntry):  # type: ignore[misc]  # untyped
    def _default_now(self) -> datetime:
        """By the installation's clock, as the schedule itself: whoever sends next reads it."""
        now: datetime = self.app.now()
        return now


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # untyped
    """The database's, without its restlessness, and only while it leads.

    It wakes when a task is due, and looks every five seconds whether the schedule was edited.
    Celery wakes 10 ms before a task is due and then turns without sleeping until it is, a hundred
    times for each task; django-celery-beat asks the database at each turn.
    """

    Entry = Entry
    role = "beat"
    is_leading = False
    ends_when_silent = False
    _look_at = 0.0
    _edited_at = 0.0
    _stream_at = 0.0
    _lock: Any = None

    def tick(self, *args: Any, **kwargs: Any) -> float:
        was_leading = self.is_leading
        if monotonic() >= self._look_at:
            self._look_at = monotonic() + LOOK_SECONDS
            saturation.weigh(self.role)
            self.is_leading = self._acquire()
        if not self.is_leading:
            return max(0.0, self._look_at - monotonic())
        if not was_leading:
            log.info("beat_leads")
            super().setup_schedule()
            self._edited_at = 0.0
            self._last_timestamp = None  # what another sent meanwhile is read again
        wait: float = super().tick(*args, **kwargs)
        return min(wait, LOOK_SECONDS, self._drain_soon())

    def _drain_soon(self) -> float:
        """Let the usage that waits be written, and say when to look again.

        Asking Redis costs a twentieth of a task that finds nothing, so nobody waits a second for
        the next one, and an idle installation sends hardly any.
        """
        if not settings.REDIS_URL:  # it goes straight to the database
            return LOOK_SECONDS
        if monotonic() >= self._stream_at:
            self._stream_at = monotonic() + STREAM_SECONDS
            try:
                entry = self.schedule.get(DRAIN)
                if entry is not None and stream.asks_for_drain():
                    self.apply_entry(entry, producer=self.producer)
            except (RedisError, OSError):
                self._look_at = 0.0  # at the lock: whether it is silent
        return max(0.0, self._stream_at - monotonic())

    def _acquire(self) -> bool:
        if not settings.REDIS_URL:
            return True
        try:
            try:
                return self._look()
            except SILENT:  # that connection may have stalled, or be of a host that is gone
                return self._look()
        except LockNotOwnedError:
            self._look_at = monotonic()  # it took too long, and another may have sent: begin again
            return False
        except (RedisError, OSError) as exc:
            if self.is_leading:
                log.warning("beat_lock_lost", error=type(exc).__name__)
            if self.ends_when_silent and isinstance(exc, SILENT):
                raise
            return False

    def _look(self) -> bool:
        if self.is_leading:
            return bool(self._lock.reacquire())
        self._lock = redis.client().lock(LOCK, timeout=LEASE_SECONDS, thread_local=False)
        return bool(self._lock.acquire(blocking=False))

    def setup_schedule(self) -> None:
        """When it begins to lead: two that start at once would write the same rows."""

    def close(self) -> None:
        super().close()
        if self.is_leading and self._lock is not None:
            self.is_leading = False
            try:
                self._lock.release()
            except (LockError, RedisError, OSError) as exc:
                log.info("beat_lock_not_released", error=type(exc).__name__)

    # The schedule is read from the database, whose connection is given back before the broker is
    # waited for.
    def _ensure_connected(self) -> Any:
        database.let_go()
        return super()._ensure_connected()

    def apply_async(self, *args: Any, **kwargs: Any) -> Any:
        database.let_go()
        return super().apply_async(*args, **kwargs)

    def adjust(self, n: float, drift: float = LATE_SECONDS) -> float:
        adjusted: float = super().adjust(n, drift)
        return adjusted

    def schedule_changed(self) -> bool:
        if monotonic() < self._edited_at:
            return False
        self._edited_at = monotonic() + EDITED_SECONDS
        before = self._last_timestamp
        changed: bool = super().schedule_changed()
        # Also by a host whose clock is behind that of the one that edited it before.
        return changed or before != self._last_timestamp


class _WorkersScheduler(Scheduler):
    role = "worker"
    ends_when_silent = True

    def _ensure_connected(self) -> Any:
        database.let_go()  # the worker's loop waits for this: not for ever
        return self.connection.ensure_connection(max_retries=1)


class SpareBeat(bootsteps.StartStopStep):
    """A worker's scheduler, in the turns of its own timer: no thread of it is there at a fork."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **_: Any) -> None:
        self._scheduler: Scheduler | None = None
        self._next: Any = None

    def start(self, consumer: Any) -> None:
        """Again after each loss of the broker, which ends all that the timer had."""
        self._scheduler = _WorkersScheduler(consumer.app, lazy=True)
        self._next = consumer.timer.call_after(0.1, self._turn, (consumer.timer,))

    def _turn(self, timer: Any) -> None:
        wait = LOOK_SECONDS
        try:
            if self._scheduler is not None:
                wait = self._scheduler.tick()
        except SILENT as exc:
            # Its Redis is the broker: the worker's loop ends by this and connects anew, with all
            # that it has of both stores, since what takes one may have taken the other.
            log.warning("beat_turn_failed", error=type(exc).__name__)
            database.forget_connections()
            of_postgresql.note()  # for the children: a look at each of theirs is cheap
            raise
        except (DatabaseError, RedisError, OSError) as exc:
            log.warning("beat_turn_failed", error=type(exc).__name__)
        finally:
            if self._scheduler is not None:
                self._next = timer.call_after(max(wait, 0.001), self._turn, (timer,))

    def stop(self, consumer: Any) -> None:
        scheduler, self._scheduler = self._scheduler, None
        if self._next is not None:
            self._next.cancel()
        if scheduler is not None:
            scheduler.close()
