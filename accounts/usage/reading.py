"""Reading the usage log: newest first, page by page, of one workspace. Reads only.

Every query names the workspace and a span of time, so that an index on both serves it and
PostgreSQL opens only the partitions of that span. Rows older than the plan's days are not shown.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from django.db.models import Q
from django.utils import timezone

from accounts.models import UsageLog, Workspace

ROWS_ON_A_PAGE = 50
LONGEST_REQUEST = timedelta(minutes=5)
"""A row is written when its answer leaves, its id is made when the request comes."""


class Page(NamedTuple):
    """`older` is the cursor of the next page; None at the end."""

    rows: Sequence[UsageLog]
    older: str | None


def earliest(workspace: Workspace) -> datetime:
    """The log cannot be read before this."""
    return timezone.now() - timedelta(days=workspace.plan.log_days)


def class_of(digit: int) -> range:
    """The statuses of a class: 4 is all from 400 to 499."""
    return range(digit * 100, (digit + 1) * 100)


def page(
    workspace: Workspace,
    *,
    api_key_id: UUID | None = None,
    statuses: range | None = None,
    decision: str = "",
    since: datetime | None = None,
    until: datetime | None = None,
    cursor: str = "",
    size: int = ROWS_ON_A_PAGE,
) -> Page:
    """Rows of [since, until) that were answered with one of `statuses`, one query.

    A cursor that is not ours raises ValueError.
    """
    first = earliest(workspace)
    rows = UsageLog.objects.filter(
        workspace_id=workspace.pk, created_at__gte=max(since, first) if since else first
    )
    if until is not None:
        rows = rows.filter(created_at__lt=until)
    if api_key_id is not None:
        rows = rows.filter(api_key_id=api_key_id)
    if statuses is not None:
        rows = rows.filter(http_status__gte=statuses.start, http_status__lt=statuses.stop)
    if decision:
        rows = rows.filter(decision=decision)
    if cursor:
        at, last = _read_cursor(cursor)
        # The first condition follows from the second, but only it can use the index.
        rows = rows.filter(created_at__lte=at).filter(Q(created_at__lt=at) | Q(pk__lt=last))
    found = list(rows.order_by("-created_at", "-pk")[: size + 1])
    has_more = len(found) > size
    found = found[:size]
    return Page(found, _cursor_after(found[-1]) if has_more else None)


def get(workspace: Workspace, request_id: UUID, at: datetime | None = None) -> UsageLog | None:
    """One row, or None: another workspace's is as missing as one that never was.

    No index knows ids. `at` is when the answer left; without it the id tells when the request
    came, for it is a UUIDv7 (RFC 9562, §5.7).
    """
    margin = timedelta(seconds=1)
    if at is not None:
        begin, end = at, margin
    elif request_id.version == 7 and (request_id.int >> 80) / 1000 < timezone.now().timestamp():
        begin, end = datetime.fromtimestamp((request_id.int >> 80) / 1000, UTC), LONGEST_REQUEST
    else:
        return None
    first = earliest(workspace)
    if not first <= begin <= timezone.now():
        return None
    return UsageLog.objects.filter(
        workspace_id=workspace.pk,
        request_id=request_id,
        created_at__gte=max(first, begin - margin),
        created_at__lte=begin + end,
    ).first()


def _cursor_after(row: UsageLog) -> str:
    return urlsafe_b64encode(f"{row.created_at.isoformat()} {row.pk}".encode()).decode()


def _read_cursor(text: str) -> tuple[datetime, Any]:
    try:
        at, _, last = urlsafe_b64decode(text.encode()).decode().partition(" ")
        when = datetime.fromisoformat(at)
        number = int(last)
    except ValueError as exc:  # of base64, UTF-8, ISO 8601 and numbers alike
        raise ValueError("not a cursor of this log") from exc
    if when.tzinfo is None or not 0 <= number < 2**63:
        raise ValueError("not a cursor of this log")
    return when, number
