"""Facts that accounts tell of: detections, a day's quota that is (nearly) used up, expiring keys.

Only workspaces with a webhook that asks for them are told (`Workspace.wanted_events`); for all
others the usage writer asks once in each write, whatever the number of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import F, Q, Sum

from accounts import parking
from accounts.events import NewEvent, event, publish, publish_all
from accounts.models import (
    ApiKey,
    QuotaNotice,
    UsageRollup,
    Workspace,
    effective_limits,
)
from gateway_project.core import clock
from gateway_project.core.clock import utc_text
from gateway_project.core.stores.refused import write_all_but
from gateway_project.core.stores.sweeps import Round

EXPIRY_AHEAD = timedelta(days=7)
PERCENTS = (80, 100)
LOOKED_AT_MAX = 1_000
DETECTIONS = frozenset({"detection.completed", "detection.flagged", "detection.failed"})
QUOTAS = frozenset(f"quota.{percent}" for percent in PERCENTS)
CHARGED = Q(http_status__lt=400) | Q(http_status__gte=499)
"""Requests that took one of the day: what is refused before the detection takes none."""
Values = Mapping[str, Any]


def wanted_by(workspace_ids: Iterable[UUID]) -> dict[UUID, frozenset[str]]:
    """What those of these workspaces want to hear of their usage that want anything."""
    rows = (
        Workspace.objects.filter(pk__in=set(workspace_ids))
        .exclude(wanted_events=[])
        .values_list("pk", "wanted_events")
    )
    wanted = {pk: (DETECTIONS | QUOTAS).intersection(names) for pk, names in rows}
    return {pk: names for pk, names in wanted.items() if names}


def tell_of_usage(
    wanted: Mapping[UUID, frozenset[str]],
    rows: Iterable[Values],
    extras: Mapping[UUID, Mapping[str, Any]],
) -> None:
    """Raise the events of usage rows of these workspaces, in the transaction that stores the rows.

    `rows` are usage rows by column; `extras` has, by request id, what the log does not keep.
    """
    events: list[NewEvent] = []
    days: dict[tuple[UUID, date], UUID] = {}
    for row in rows:
        names = wanted[row["workspace_id"]]
        for name, result in _detections(row, extras):
            if name in names:
                events.append(
                    event(
                        row["workspace_id"],
                        name,
                        result=result,
                        metadata=dict(extras.get(row["request_id"], {}).get("metadata") or {}),
                        request_id=str(row["request_id"]),
                        api_key_id=row["api_key_id"],
                        at=row["created_at"],
                    )
                )
        if names & QUOTAS:
            day = row["created_at"].astimezone(UTC).date()
            days[row["api_key_id"], day] = row["workspace_id"]
    if days:
        events += _quotas(wanted, days)
    publish_all(events)


def _detections(
    row: Values, extras: Mapping[UUID, Mapping[str, Any]]
) -> list[tuple[str, dict[str, Any]]]:
    if row["http_status"] >= 500:
        failure = {key: row[key] for key in ("http_status", "endpoint")}
        return [("detection.failed", {"code": row["error_code"], **failure})]
    if not row["decision"]:
        return []
    verdict = {
        key: row[key]
        for key in (
            *("is_malicious", "confidence", "decision", "status", "source", "cached", "endpoint"),
        )
    }
    verdict["threat_types"] = extras.get(row["request_id"], {}).get("threat_types") or []
    verdict["processing_time_ms"] = round(row["response_time_ms"], 2)
    names = ["detection.completed"]
    if row["decision"] == "flag":
        names.append("detection.flagged")
    return [(name, verdict) for name in names]


def _quotas(
    wanted: Mapping[UUID, frozenset[str]], days: Mapping[tuple[UUID, date], UUID]
) -> list[NewEvent]:
    """Those of quotas that were crossed; each is noted, so that it is told once a day and key.

    Keys that replaced each other share their counters, and so their telling.
    """
    keys = {
        key.pk: key
        for key in ApiKey.objects.filter(pk__in={key_id for key_id, _ in days}).select_related(
            "workspace__plan"
        )
    }
    subjects = {key.limit_subject or key.pk for key in keys.values()}
    members: dict[UUID, list[UUID]] = defaultdict(list)
    for pk, subject in ApiKey.objects.filter(
        Q(pk__in=subjects) | Q(limit_subject__in=subjects)
    ).values_list("pk", "limit_subject"):
        members[subject or pk].append(pk)
    told = set(
        QuotaNotice.objects.filter(
            subject_id__in=subjects, day__in={day for _, day in days}
        ).values_list("subject_id", "day", "percent")
    )
    events = []
    for (key_id, day), workspace_id in days.items():
        key = keys.get(key_id)
        if key is None:
            continue
        subject, limit = key.limit_subject or key.pk, effective_limits(key).day
        due = [
            percent
            for percent in PERCENTS
            if f"quota.{percent}" in wanted[workspace_id] and (subject, day, percent) not in told
        ]
        if not due:
            continue
        used = _used(members[subject], day)
        for percent in due:
            if used * 100 < limit * percent:
                continue
            told.add((subject, day, percent))
            _, is_first = QuotaNotice.objects.get_or_create(
                subject_id=subject, day=day, percent=percent
            )
            if is_first:
                result = {"percent": percent, "limit": limit, "used": used, "day": str(day)}
                events.append(
                    event(workspace_id, f"quota.{percent}", result=result, api_key_id=key_id)
                )
    return events


def _used(key_ids: list[UUID], day: date) -> int:
    bucket = datetime.combine(day, time(), UTC)
    sums = UsageRollup.objects.filter(
        CHARGED, period="day", bucket=bucket, subject_id__in=key_ids
    ).aggregate(used=Sum("requests"))
    return sums["used"] or 0


def announce_expiring_keys() -> int:
    """Tell of each key that expires within a week, once for each expiry; returns how many."""
    now, told, during = clock.now(), 0, Round()
    expiring = (
        ApiKey.objects.usable(now)
        .listed()
        .filter(expires_at__gt=now, expires_at__lte=now + EXPIRY_AHEAD, replaced_by=None)
        .exclude(expiry_told_for=F("expires_at"))
        .filter(workspace__wanted_events__icontains="key.expiring")
        .select_related("workspace")
    )
    for key in expiring.order_by("expires_at")[:LOOKED_AT_MAX]:
        if key.expires_at is None or during.is_over:
            break
        with transaction.atomic():
            # Compare-and-set: of two workers at once, one tells. One that cannot be told is not
            # tried again, and keeps nobody else's waiting.
            won = (
                ApiKey.objects.filter(pk=key.pk, expires_at=key.expires_at)
                .filter(Q(expiry_told_for=None) | ~Q(expiry_told_for=key.expires_at))
                .update(expiry_told_for=key.expires_at)
            )
            if won:
                told += len(write_all_but([key], _tell_of_expiry, _park_expiry))
    return told


def _tell_of_expiry(keys: Sequence[ApiKey]) -> None:
    for key in keys:
        publish(key.workspace, "key.expiring", api_key_id=key.pk, result=_expiry(key))


def _park_expiry(key: ApiKey, error: Exception) -> None:
    parking.park("accounts.expiry", key.pk, error, workspace_id=key.workspace_id)


def _expiry(key: ApiKey) -> dict[str, Any]:
    assert key.expires_at is not None  # noqa: S101 - asked for
    return {
        "prefix": key.prefix,
        "last4": key.last4,
        "name": key.name,
        "expires_at": utc_text(key.expires_at),
    }
