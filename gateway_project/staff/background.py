"""Background work: what beat sends, and how each of it goes. Only read; the code has the schedule.

Of two queries over some thirty rows, and two trips to the cache, where workers leave what became of
each run (`worker/runs.py`) and how often in a row it failed (`core/telemetry/loops.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils.translation import gettext, ngettext
from django_celery_beat.models import PeriodicTask
from django_redis.exceptions import ConnectionInterrupted
from redis.exceptions import RedisError

from gateway_project.core import clock
from gateway_project.core.language import number
from gateway_project.core.stores import redis
from gateway_project.core.telemetry import loops
from gateway_project.staff import numbers
from gateway_project.worker import beat, runs
from gateway_project.worker.runs import Run
from portal.exports import Table

AWAY = (RedisError, ConnectionInterrupted, OSError)
OF_CELERY = "celery."
"""What django-celery-beat adds by itself."""
PATIENCE_SECONDS = 15.0
"""A task is late when it is over its time by more than its interval, and by more than this."""


@dataclass(frozen=True, slots=True)
class Work:
    """One periodic task.

    `every`: seconds from one run to the next; None: by the calendar. `sent_at`: when beat sent it
    last, as far as it has written that down. `overdue`: seconds past the time of the next run.
    """

    name: str
    task: str
    schedule: str
    every: float | None
    is_on: bool
    is_known: bool
    sent_at: datetime | None
    run: Run | None
    failures: int
    overdue: float | None

    @property
    def began(self) -> datetime | None:
        return datetime.fromtimestamp(self.run.began, UTC) if self.run is not None else None

    @property
    def took(self) -> str:
        if self.run is None or self.run.seconds is None:
            return ""
        seconds = self.run.seconds
        return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{number(seconds, '.1f')} s"

    @property
    def is_late(self) -> bool:
        return self.overdue is not None and self.overdue > max(self.every or 0.0, PATIENCE_SECONDS)

    @property
    def is_failing(self) -> bool:
        return self.failures >= loops.ROUNDS_MAX

    @property
    def state(self) -> tuple[str, str]:
        """A word (in files English), and how bad it is as badges have it."""
        if not self.is_on:
            return gettext("switched off"), "warn"
        if not self.is_known:
            return gettext("of another release"), ""
        if self.is_failing:
            return gettext("failing"), "bad"
        if self.is_late:
            return gettext("late"), "bad"
        if self.run is not None and not self.run.is_well:
            return gettext("failed"), "warn"
        is_seen = self.run is not None
        return (gettext("well"), "good") if is_seen else (gettext("not seen yet"), "")


def background() -> dict[str, Any]:
    """`work`, the troubled first; `others`: loops of web processes that failed of late."""
    found = list(PeriodicTask.objects.select_related("interval", "crontab", "solar", "clocked"))
    rows = [row for row in found if not row.task.startswith(OF_CELERY)]
    known, failed, is_known = _remembered(row.task for row in rows)
    now = clock.time()
    work = [_work(row, known.get(row.task), failed.get(row.task, 0), now) for row in rows]
    work.sort(key=lambda one: (-_weight(one), one.name))
    names = {one.task for one in work}
    missing = sorted(_scheduled() - names)
    return {
        "work": work,
        "missing": missing,
        "others": sorted((name, n) for name, n in failed.items() if name not in names),
        "is_remembered": is_known,
        "worker": numbers.worker() if is_known else None,
        "is_led": _is_led(),
        "troubled": sum(_weight(one) > 0 for one in work),
    }


def table(work: Sequence[Work]) -> Table:
    columns = (
        *("name", "task", "schedule", "state", "began_at", "seconds", "result"),
        *("overdue_seconds", "failures_in_a_row", "sent_at"),
    )
    return Table(columns, map(_row, work))


def _row(one: Work) -> tuple[Any, ...]:
    return (
        *(one.name, one.task, one.schedule, one.state[0], one.began),
        *(one.run.seconds if one.run else None, one.run.result if one.run else None),
        *(one.overdue, one.failures, one.sent_at),
    )


def _weight(one: Work) -> int:
    return {"bad": 2, "warn": 1}.get(one.state[1], 0)


def _scheduled() -> set[str]:
    return {str(entry["task"]) for entry in settings.CELERY_BEAT_SCHEDULE.values()}


def _work(row: PeriodicTask, run: Run | None, failures: int, now: float) -> Work:
    schedule: Any = row.schedule
    every = getattr(schedule, "run_every", None)
    seconds = every.total_seconds() if isinstance(every, timedelta) else None
    overdue = None
    if run is not None and seconds is not None and row.enabled:
        overdue = max(0.0, now - run.began - seconds)
    return Work(
        row.name,
        row.task,
        _duration(seconds) if seconds is not None else str(row.scheduler),
        seconds,
        row.enabled,
        row.task in _scheduled(),
        row.last_run_at,
        run,
        failures,
        overdue,
    )


def _duration(seconds: float) -> str:
    if seconds % 86400 == 0:
        n = int(seconds // 86400)
        return ngettext("every day", "every %(n)s days", n) % {"n": n}
    if seconds % 3600 == 0:
        n = int(seconds // 3600)
        return ngettext("every hour", "every %(n)s hours", n) % {"n": n}
    if seconds % 60 == 0:
        n = int(seconds // 60)
        return ngettext("every minute", "every %(n)s minutes", n) % {"n": n}
    if seconds == 1:
        return gettext("every second")
    return gettext("every %(n)s seconds") % {"n": number(seconds, "g")}


def _remembered(tasks: Iterable[str]) -> tuple[dict[str, Run], dict[str, int], bool]:
    try:
        return runs.last(tasks), loops.failed_rounds(), True
    except AWAY:
        return {}, {}, False


def _is_led() -> bool | None:
    """Whether some beat holds the lock; None: nobody can say, or no lock is needed."""
    if not settings.REDIS_URL:
        return None
    try:
        return bool(redis.client().exists(beat.LOCK))
    except AWAY:
        return None
