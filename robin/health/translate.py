"""Robin's health as Robin UI reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PASSED_ON = ("uptime", "metricsCron", "botPool", "lmtpPool")


def health(
    service: Any,
    *,
    is_up: bool,
    totals: Mapping[str, int] | None = None,
    retries: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """The UI's health from the service port's, None when that did not answer.

    `totals` and `retries` are what the gateway read of the queue itself: Robin's count of dead
    items is never lowered by a retry. Without either there is no `queue`: the UI takes 0 for good.
    The UI knows `UP` and `DOWN` only, and reads `scheduler.cron` without looking whether it is
    there: without Robin's `service` or `cron` the whole scheduler is left out.
    """
    answer: dict[str, Any] = {"status": "UP" if is_up else "DOWN", "listeners": []}
    queue = service.get("queue") if isinstance(service, dict) else None
    if isinstance(queue, dict) and isinstance(queue.get("size"), int):
        answer["queue"] = {n: value for n, value in queue.items() if n != "dead"}
    elif totals is not None:
        size = totals["ready"] + totals["claimed"]
        answer["queue"] = {"size": size, "ready": totals["ready"], "claimed": totals["claimed"]}
    if "queue" in answer:
        if totals is not None:
            answer["queue"]["dead"] = totals["dead"]
        answer["queue"].setdefault("retryHistogram", dict(retries or {}))
    if not isinstance(service, dict):
        return {**answer, "uptime": "unknown"}
    answer |= {name: service[name] for name in PASSED_ON if service.get(name) is not None}
    answer.setdefault("uptime", "unknown")
    if isinstance(service.get("listeners"), list):
        answer["listeners"] = service["listeners"]
    scheduler = service.get("scheduler")
    if isinstance(scheduler, dict) and isinstance(cron := _cron(scheduler), dict):
        answer["scheduler"] = {**scheduler, "cron": cron}
    return answer


def _cron(scheduler: Mapping[str, Any]) -> Any:
    service = scheduler.get("service")
    if scheduler.get("cron") is not None or not isinstance(service, dict):
        return scheduler.get("cron")
    return {
        "initialDelaySeconds": service.get("startDelaySeconds", 0),
        "periodSeconds": service.get("housekeepingIntervalSeconds", 0),
        "lastExecutionEpochSeconds": service.get("lastHousekeepingEpochSeconds", 0),
        "nextExecutionEpochSeconds": service.get("nextHousekeepingEpochSeconds", 0),
    }
