"""Beat's scheduler: the database's, without its restlessness."""

from __future__ import annotations

from time import monotonic

from django_celery_beat.schedulers import DatabaseScheduler

LOOK_SECONDS = 5.0
LATE_SECONDS = 0.002


class Scheduler(DatabaseScheduler):  # type: ignore[misc]  # untyped
    """Wakes when a task is due, and looks every five seconds whether the schedule was edited.

    Celery wakes 10 ms before a task is due and then turns without sleeping until it is, a hundred
    times for each task; django-celery-beat asks the database at each turn.
    """

    _look_at = 0.0

    def adjust(self, n: float, drift: float = LATE_SECONDS) -> float:
        adjusted: float = super().adjust(n, drift)
        return adjusted

    def schedule_changed(self) -> bool:
        if monotonic() < self._look_at:
            return False
        self._look_at = monotonic() + LOOK_SECONDS
        changed: bool = super().schedule_changed()
        return changed
