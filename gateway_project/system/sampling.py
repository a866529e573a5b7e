"""How the parts of the installation do at this moment, in the words of the status page.

Seen from a worker: that it looks at all says that worker, scheduler and database work.
"""

from __future__ import annotations

from django.conf import settings
from redis.exceptions import RedisError

from detection.jobs import store
from gateway_project.core.upstream import breaker
from gateway_project.system import presence
from portal.availability import State
from webhooks.delivery import outbox

LATE_SECONDS, STUCK_SECONDS = 300.0, 3600.0


def states() -> dict[str, str]:
    """By component (`portal.availability.TITLES`). The mail server's only where there is one."""
    reports = breaker.ask_everywhere().worst()
    robins = {name: one["state"] for name, one in reports.items() if name.startswith("robin")}
    engines = {name: one["state"] for name, one in reports.items() if name not in robins}
    found = {
        "api": State.UP if _is_served() else State.DOWN,
        # Without an engine verdicts are still given: by the embedded detector.
        "engine": State.UP if set(engines.values()) <= {"closed"} else State.DEGRADED,
        "batches": _of_age(store.backlog().oldest_queued_seconds or 0.0),
        "webhooks": _of_age(outbox.oldest_pending_seconds()),
    }
    if settings.ROBIN_CLIENT_API_URL:
        trouble = [state for state in robins.values() if state != "closed"]
        is_gone = bool(trouble) and len(trouble) == len(robins)
        found["mail"] = State.DOWN if is_gone else State.DEGRADED if trouble else State.UP
    return {name: str(state) for name, state in found.items()}


def _is_served() -> bool:
    if not settings.REDIS_URL:
        return True  # this very process serves
    try:
        return any(process.role == "web" for process in presence.living())
    except (RedisError, OSError):
        return False


def _of_age(seconds: float) -> State:
    if seconds < LATE_SECONDS:
        return State.UP
    return State.DEGRADED if seconds < STUCK_SECONDS else State.DOWN
