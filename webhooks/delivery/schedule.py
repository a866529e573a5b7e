"""When a delivery is tried again. Pure: seconds in, seconds out."""

from __future__ import annotations

from random import uniform

MINUTE, HOUR = 60.0, 3600.0
DELAYS = (0, 5, 5 * MINUTE, *(hours * HOUR for hours in (0.5, 2, 5, 10, 14, 20, 24)))
"""Seconds before each attempt, counted from the one before."""
ATTEMPTS_MAX = len(DELAYS)
JITTER = 0.2
OVERLOADED_SECONDS_MIN = 60.0


def steps_max(retry_count: int | None) -> int:
    """How many attempts there are in all, the first included."""
    return ATTEMPTS_MAX if retry_count is None else min(retry_count + 1, ATTEMPTS_MAX)


def delay_seconds(step: int, *, is_overloaded: bool, retry_after_seconds: float | None) -> float:
    """From attempt `step` (the first is 1) to the next, which must exist.

    `is_overloaded`: it answered 429 or not in time. `retry_after_seconds` is what the receiver asks
    for: it may double the wait, not more, or it could park an event for a year.
    """
    scheduled = DELAYS[step] * uniform(1 - JITTER, 1 + JITTER)
    if is_overloaded:
        scheduled = max(scheduled, OVERLOADED_SECONDS_MIN)
    if retry_after_seconds is None:
        return scheduled
    return min(max(retry_after_seconds, scheduled), 2 * scheduled)
