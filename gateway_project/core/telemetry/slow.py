"""Where the time of a slow request went: a line of the log for those alone that were slow.

What a process does beside its requests is measured as it happens, in sums that only grow. A request
notes them as it begins, and of one that is slow the difference is what it waited for meanwhile.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gateway_project.core.telemetry.logging import get_logger

if TYPE_CHECKING:
    from gateway_project.core.context import RequestContext

log = get_logger("gateway.request")


class _Beside:
    """Seconds in which this process did something else, since it began."""

    def __init__(self) -> None:
        self.collector = 0.0
        self.usage = 0.0
        self._collecting_since = 0.0
        gc.callbacks.append(self._note_collection)

    def _note_collection(self, phase: str, _: dict[str, Any]) -> None:
        if phase == "start":
            self._collecting_since = perf_counter()
        else:
            self.collector += perf_counter() - self._collecting_since

    @contextmanager
    def sending_usage(self) -> Iterator[None]:
        began = perf_counter()
        try:
            yield
        finally:
            self.usage += perf_counter() - began


beside = _Beside()


def begun() -> tuple[float, float]:
    """What a request notes as it begins."""
    return beside.collector, beside.usage


def say(context: RequestContext, *, status: int, seconds: float) -> None:
    """Log it. `queued_ms` is from the end of its head to its first turn, and not in `duration_ms`;
    `other_ms` is its own work and that of whoever shared its process, its cores or its wait."""
    collector, usage = beside.collector - context.beside[0], beside.usage - context.beside[1]
    queued = max(0.0, context.started - context.came) if context.came else 0.0
    known = context.limiter_seconds + context.upstream_seconds
    log.warning(
        "slow_request",
        request_id=context.request_id,
        route=context.route,
        status=status,
        duration_ms=round(seconds * 1000, 2),
        queued_ms=round(queued * 1000, 2),
        limiter_ms=round(context.limiter_seconds * 1000, 2),
        upstream_ms=round(context.upstream_seconds * 1000, 2),
        collector_ms=round(collector * 1000, 2),
        usage_ms=round(usage * 1000, 2),
        other_ms=round(max(0.0, seconds - known) * 1000, 2),
    )
