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
from accounts.usage.rollups import CHARGED, requests_aside
from accounts.usage.rows import COLUMNS, Row
from gateway_project.core import clock
from gateway_project.core.clock import utc_text
from gateway_project.core.stores.refused import write_all_but
from gateway_project.core.stores.sweeps import Round

EXPIRY_AHEAD = timedelta(days=7)
PERCENTS = (80, 100)
LOOKED_AT_MAX = 1_000
DETECTIONS = frozenset({"detection.completed", "detection.flagged", "detection.failed"})
QUOTAS = frozenset(f"quota.{percent}" for percent in PERCENTS)
HTTP_STATUS, DECISION = COLUMNS.index("http_status"), COLUMNS.index("decision")


def wanted_by(workspace_ids: Iterable[str]) -> dict[str, frozenset[str]]:
    """What those of these workspaces want to hear of their usage that want anything."""
    rows = (
        Workspace.objects.filter(pk__in=set(workspace_ids))
        .exclude(wanted_events=[])
        .values_list("pk", "wanted_events")
    )
    wanted = {str(pk): (DETECTIONS | QUOTAS).intersection(names) for pk, names in rows}
    return {pk: names for pk, names in wanted.items() if names}


def tell_of_usage(rows: Iterable[Row], extras: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise the events of usage rows, in the transaction that stores the rows.

    `rows` have ids and times as text (`Batch.unpacked`), and stay so on their way into the outbox;
    `extras` has, by request id, what the log does not keep.
    """
    rows = list(rows)
    wanted = wanted_by({row[2] for row in rows})
    events: list[NewEvent] = []
    days: dict[tuple[str, str], str] = {}
    for row in rows:
        names = wanted.get(row[2])
        if names is None:
            continue
        request_id, key_id, workspace_id, *_, at = row
        announced = [name for name in _names(row) if name in names]
        if announced:
            extra = extras.get(request_id) or {}
            result = _result(row, extra)
            metadata = dict(extra.get("metadata") or {})
            events += [
                event(
                    workspace_id,
                    name,
                    result=result,
                    metadata=metadata,
                    request_id=request_id,
                    api_key_id=key_id,
                    at=datetime.fromisoformat(at),
                    traceparent=extra.get("traceparent") or "",
                )
                for name in announced
            ]
        if names & QUOTAS:
            days[key_id, at[:10]] = workspace_id
    if days:
        events += _quotas(
            wanted,
            {(UUID(key), date.fromisoformat(day)): its for (key, day), its in days.items()},
        )
    publish_all(events)


def _names(row: Row) -> tuple[str, ...]:
    if row[HTTP_STATUS] >= 500:
        return ("detection.failed",)
    if not row[DECISION]:
        return ()
    if row[DECISION] == "flag":
        return ("detection.completed", "detection.flagged")
    return ("detection.completed",)


def _result(row: Row, extra: Mapping[str, Any]) -> dict[str, Any]:
    _, _, _, endpoint, http_status, code, _, latency_ms, _, status, source, decision, *rest = row
    if http_status >= 500:
        return {"code": code, "http_status": http_status, "endpoint": endpoint}
    is_malicious, confidence, cached, _ = rest
    # As it was answered: only in monitor mode is an attack allowed.
    would_flag = is_malicious and decision == "allow"
    return {
        "is_malicious": is_malicious and not would_flag,
        **({"would_flag": True} if would_flag else {}),
        "confidence": confidence,
        "decision": decision,
        "status": status,
        "source": source,
        "cached": cached,
        "endpoint": endpoint,
        "threat_types": extra.get("threat_types") or [],
        "processing_time_ms": round(latency_ms, 2),
    }


def _quotas(
    wanted: Mapping[str, frozenset[str]], days: Mapping[tuple[UUID, date], str]
) -> list[NewEvent]:
    """Those of quotas that were crossed; each is noted, so that it is told once a day and key.

    Keys that replaced each other share their counters, and so their telling.
    """
    keys = {
        key.pk: key
        for key in ApiKey.objects.without_policies()
        .filter(pk__in={key_id for key_id, _ in days})
        .select_related("workspace__plan")
    }
    subjects = {key.limit_subject or key.pk for key in keys.values()}
    announced = set(
        QuotaNotice.objects.filter(
            subject_id__in=subjects, day__in={day for _, day in days}
        ).values_list("subject_id", "day", "percent")
    )
    due: dict[tuple[UUID, date], list[int]] = {}
    for (key_id, day), workspace_id in days.items():
        key = keys.get(key_id)
        if key is not None:
            subject = key.limit_subject or key.pk
            due[key_id, day] = [
                percent
                for percent in PERCENTS
                if f"quota.{percent}" in wanted[workspace_id]
                and (subject, day, percent) not in announced
            ]
    asked = {key_id: keys[key_id] for (key_id, _), percents in due.items() if percents}
    used = _used({key.limit_subject or key.pk for key in asked.values()}, {day for _, day in due})
    events = []
    for (key_id, day), percents in due.items():
        key = keys[key_id]
        subject, limit = key.limit_subject or key.pk, effective_limits(key).day
        for percent in percents:
            so_far = used[subject, day]
            if so_far * 100 < limit * percent:
                continue
            _, is_first = QuotaNotice.objects.get_or_create(
                subject_id=subject, day=day, percent=percent
            )
            if is_first:
                result = {"percent": percent, "limit": limit, "used": so_far, "day": str(day)}
                events.append(
                    event(
                        days[key_id, day], f"quota.{percent}", result=result, api_key_id=str(key_id)
                    )
                )
    return events


def _used(subjects: set[UUID], days: set[date]) -> dict[tuple[UUID, date], int]:
    """What the keys that share the counters of a subject have used of each of these days."""
    used: dict[tuple[UUID, date], int] = defaultdict(int)
    if not subjects:
        return used
    subject_of = {pk: pk for pk in subjects}
    successors = ApiKey.objects.filter(limit_subject__in=subjects)
    for pk, subject in successors.values_list("pk", "limit_subject"):
        subject_of[pk] = subject or pk
    sums = (
        UsageRollup.objects.filter(
            CHARGED,
            period="day",
            bucket__in=[datetime.combine(day, time(), UTC) for day in days],
            subject_id__in=list(subject_of),
        )
        .order_by()
        .values_list("subject_id", "bucket")
        .annotate(used=Sum("requests"))
    )
    for key_id, bucket, requests in sums:
        used[subject_of[key_id], bucket.date()] += requests
    for key_id, day, requests in requests_aside(CHARGED, subject_of):
        used[subject_of[key_id], day] += requests
    return used


def announce_expiring_keys() -> int:
    """Tell of each key that expires within a week, once for each expiry; returns how many."""
    now, announced, during = clock.now(), 0, Round()
    expiring = (
        ApiKey.objects.usable(now)
        .listed()
        .without_policies()
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
                announced += len(write_all_but([key], _tell_of_expiry, _park_expiry))
    return announced


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
