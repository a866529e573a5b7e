"""What each periodic task did last: when, how long, and what came of it.

In the cache beside the count of its failures (`core/telemetry/loops.py`): one value for a task,
written when a run ends, so a task of each second costs no row. Without Redis that is the memory of
the one process. A store that is away, or was emptied, knows none: beat's own tables still say when
it sent the task.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from django.core.cache import cache

from gateway_project.core.telemetry.logging import get_logger

KEPT_SECONDS = 7 * 24 * 3600
RESULT_CHARS_MAX = 60
log = get_logger("gateway.tasks")


class Run(NamedTuple):
    """`began`: unix seconds, by the installation's clock. `seconds` is None when its process was
    lost. `result`: the number it returned, or the kind of error."""

    began: float
    seconds: float | None
    is_well: bool
    result: str


def note(task: str, began: float, seconds: float | None, outcome: object) -> None:
    """Remember a run that ended with this value, or with this exception. Never raises."""
    is_well = not isinstance(outcome, BaseException)
    is_number = isinstance(outcome, int) and not isinstance(outcome, bool)
    result = (str(outcome) if is_number else "") if is_well else type(outcome).__name__
    run = Run(began, seconds, is_well, result[:RESULT_CHARS_MAX])
    try:
        # As a plain tuple: processes of another release read it, too.
        cache.set(_key(task), tuple(run), KEPT_SECONDS)
    except Exception as exc:  # noqa: BLE001 - the store is away, which is its own alert
        log.warning("run_unnoted", task=task, error=type(exc).__name__)


def last(tasks: Iterable[str]) -> dict[str, Run]:
    """Of those tasks whose last run is known; one trip. Raises what the cache does."""
    keys = {_key(task): task for task in tasks}
    found: dict[str, Any] = cache.get_many(keys)
    return {keys[key]: Run(*value) for key, value in found.items()}


def _key(task: str) -> str:
    return f"run:{task}"
