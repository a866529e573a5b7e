"""Reading the usage log: newest first, page by page, of one workspace. Reads only.

Every query names the workspace and a span of time, so that an index on both serves it and
PostgreSQL opens only the partitions of that span. Rows older than the plan's days are not shown.

With a filter that few rows match, or none, a page looks back over `LOOKED_AT_MAX` rows and no
further: it may have few rows, or none, and a cursor that goes on from there. Of errors the sums
tell the hour in which the next of them lie, so nothing else is looked at.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from time import monotonic, sleep
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Q

from accounts.models import UsageLog, UsageRollup, Workspace
from accounts.usage import stream, why
from accounts.usage.reports import floor
from accounts.usage.rollups import ROLLUPS_KEPT, latest_aside
from accounts.usage.rows import COLUMNS, Row
from gateway_project.core import clock
from gateway_project.core.stores import database

ROWS_ON_A_PAGE = 50
LOOKED_AT_MAX = 15_000
HOUR = timedelta(hours=1)
INSTANT = timedelta(microseconds=1)
LAST_INSTANT = datetime.max.replace(tzinfo=UTC)
"""Of the calendar: nothing comes after it."""
LONGEST_REQUEST = timedelta(minutes=5)
"""A row is written when its answer leaves, its id is made when the request comes."""
FRESH = timedelta(seconds=30)
WAIT_SECONDS = 1.2
LOOK_SECONDS = 0.1


class Page(NamedTuple):
    """`older` is the cursor of the next page; None at the end."""

    rows: Sequence[UsageLog]
    older: str | None


def earliest(workspace: Workspace) -> datetime:
    """The log cannot be read before this."""
    return clock.now() - timedelta(days=workspace.plan.log_days)


def class_of(digit: int) -> range:
    """The statuses of a class: 4 is all from 400 to 499."""
    return range(digit * 100, (digit + 1) * 100)


def page(
    workspace: Workspace,
    *,
    api_key_id: UUID | None = None,
    statuses: range | None = None,
    decision: str = "",
    error_code: str = "",
    threat: str = "",
    batch: str = "",
    correlation: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str = "",
    size: int = ROWS_ON_A_PAGE,
) -> Page:
    """Rows of [since, until) that were answered with one of `statuses`, one query.

    A cursor that is not ours raises ValueError.
    """
    first = earliest(workspace)
    begin, end = max(since, first) if since else first, until
    last = None
    if cursor:
        at, last = _read_cursor(cursor)
        end = at + INSTANT if end is None else min(end, at + INSTANT)
    subject = api_key_id or workspace.pk
    if statuses is not None:
        end = _end_of_hour_with(subject, statuses, begin, end)
        if end is None:
            return Page([], None)
    rows = UsageLog.objects.filter(workspace_id=workspace.pk, created_at__gte=begin)
    if end is not None:
        rows = rows.filter(created_at__lt=end)
    if api_key_id is not None:
        rows = rows.filter(api_key_id=api_key_id)
    if cursor:
        rows = rows.filter(Q(created_at__lt=at) | Q(pk__lt=last))
    stopped_at = None
    if statuses is not None or decision or error_code or threat or batch or correlation:
        times = rows.order_by("-created_at").values_list("created_at", flat=True)
        stopped_at = next(iter(times[LOOKED_AT_MAX : LOOKED_AT_MAX + 1]), None)
        if stopped_at is not None:
            rows = rows.filter(created_at__gte=stopped_at)
    if statuses is not None:
        rows = rows.filter(http_status__gte=statuses.start, http_status__lt=statuses.stop)
    if decision:
        rows = rows.filter(decision=decision)
    if error_code:
        rows = rows.filter(error_code=error_code)
    if threat:
        rows = rows.filter(why__threats__icontains=f'"{threat}"')
    if batch:
        rows = rows.filter(why__batch=batch)
    if correlation:
        rows = rows.filter(why__correlation=correlation)
    found = list(rows.order_by("-created_at", "-pk")[: size + 1])
    if len(found) > size:
        found = found[:size]
        return Page(found, cursor_of(found[-1]))
    return Page(found, None if stopped_at is None else _cursor_of(stopped_at, 0))


def _end_of_hour_with(
    subject_id: UUID, statuses: range, begin: datetime, end: datetime | None
) -> datetime | None:
    """Until when to look for the newest row of one of `statuses`; None when there is none.

    That is the end of its hour, or `end`. A row is in the sums, or put aside for them; those are
    asked first, for they go over into the sums.
    """
    now = clock.now()
    fits = Q(http_status__gte=statuses.start, http_status__lt=statuses.stop)
    before = Q(created_at__lt=end) if end is not None else Q()
    aside = latest_aside(subject_id, begin, fits & before)
    counted = UsageRollup.objects.filter(
        fits, period="hour", subject_id=subject_id, bucket__gt=begin - HOUR
    )
    if end is not None:
        counted = counted.filter(bucket__lt=end)
    hour = counted.order_by("-bucket").values_list("bucket", flat=True).first()
    latest = max((at for at in (aside, hour) if at is not None), default=None)
    if latest is not None:
        latest = floor(latest, "hour") + HOUR
        return latest if end is None else min(end, latest)
    # Older hours are not kept.
    if begin < now - ROLLUPS_KEPT["hour"]:
        return now if end is None else end
    return None


def get(workspace: Workspace, request_id: UUID, at: datetime | None = None) -> UsageLog | None:
    """One row, or None: another workspace's is as missing as one that never was.

    No index knows ids. `at` is when the answer left; without it the id tells when the request came.
    """
    margin = timedelta(seconds=1)
    begin, end = (at, margin) if at is not None else (_time_of(request_id), LONGEST_REQUEST)
    first = earliest(workspace)
    if begin is None or not first <= begin <= clock.now():
        return None
    return UsageLog.objects.filter(
        workspace_id=workspace.pk,
        request_id=request_id,
        created_at__gte=max(first, begin - margin),
        created_at__lte=begin + end,
    ).first()


def find(workspace: Workspace, request_id: UUID, at: datetime | None = None) -> UsageLog | None:
    """As `get`, of a request of this very moment too, whose row is on its way into the log.

    Such a row lies for up to a second in the process that answered, and then in the stream until a
    worker takes it. So both are looked at again and again for `WAIT_SECONDS`, without a connection
    of the database in between.
    """
    row = get(workspace, request_id, at)
    began = at or _time_of(request_id)
    if row is not None or began is None or abs(clock.now() - began) > FRESH:
        return row
    search = stream.Search(workspace.pk, request_id, began)
    until = monotonic() + WAIT_SECONDS
    while row is None and monotonic() < until:
        database.let_go()
        sleep(LOOK_SECONDS)
        # In this order: it is in the log before it leaves the stream.
        found = search.look()
        row = get(workspace, request_id, at) if found is None else _of_stream(*found)
    return row


def _time_of(request_id: UUID) -> datetime | None:
    """When the request came: its id is a UUIDv7 (RFC 9562, §5.7); None: it does not say."""
    seconds = (request_id.int >> 80) / 1000
    if request_id.version != 7 or seconds >= clock.now().timestamp():
        return None
    return datetime.fromtimestamp(seconds, UTC)


def _of_stream(row: Row, extra: Mapping[str, Any]) -> UsageLog:
    """An instance that is not in the database yet."""
    fields = {field.name: field for field in UsageLog._meta.concrete_fields}
    values = zip(COLUMNS, row, strict=True)
    explanation = extra.get(why.NAME) or {}
    return UsageLog(
        **{name: fields[name].to_python(value) for name, value in values}, why=explanation
    )


def cursor_of(row: UsageLog) -> str:
    """Where the rows after this one begin."""
    return _cursor_of(row.created_at, row.pk)


def _cursor_of(at: datetime, last: int) -> str:
    """Of the row `last` at that time, or of all rows at that time (0): older ones follow."""
    return urlsafe_b64encode(f"{at.isoformat()} {last}".encode()).decode()


def _read_cursor(text: str) -> tuple[datetime, Any]:
    try:
        at, _, last = urlsafe_b64decode(text.encode()).decode().partition(" ")
        when = datetime.fromisoformat(at)
        number = int(last)
    except ValueError as exc:  # of base64, UTF-8, ISO 8601 and numbers alike
        raise ValueError("not a cursor of this log") from exc
    if when.tzinfo != UTC or when >= LAST_INSTANT or not 0 <= number < 2**63:
        raise ValueError("not a cursor of this log")
    return when, number
