"""Robin's health as Robin UI reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PASSED_ON = ("uptime", "metricsCron", "botPool", "lmtpPool")


def health(service: Any, *, client_is_up: bool) -> dict[str, Any]:
    """The UI's health from the service port's, None when that did not answer.

    The UI knows `UP` and `DOWN` only, and reads `scheduler.cron` without looking whether it is
    there: without Robin's `service` or `cron` the whole scheduler is left out.
    """
    is_up = client_is_up and isinstance(service, dict) and service.get("status") == "UP"
    answer: dict[str, Any] = {"status": "UP" if is_up else "DOWN", "listeners": []}
    answer["queue"] = {"size": 0, "retryHistogram": {}}
    if not isinstance(service, dict):
        return {**answer, "uptime": "unknown"}
    answer |= {name: service[name] for name in PASSED_ON if service.get(name) is not None}
    answer.setdefault("uptime", "unknown")
    if isinstance(service.get("listeners"), list):
        answer["listeners"] = service["listeners"]
    if isinstance(service.get("queue"), dict):
        answer["queue"] |= service["queue"]
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
