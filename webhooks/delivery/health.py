"""How the deliveries of webhooks ended, over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from django.db.models import Count
from django.db.models.functions import TruncHour

from webhooks.models import WebhookDelivery

Series = dict[datetime, dict[str, int]]


def by_hour(webhook_ids: Sequence[UUID], since: datetime) -> dict[UUID, Series]:
    """{webhook: {beginning of the hour: {status: deliveries made in it}}}; one query for all."""
    found: dict[UUID, Series] = defaultdict(lambda: defaultdict(dict))
    rows = (
        WebhookDelivery.objects.filter(webhook__in=webhook_ids, created_at__gte=since)
        .order_by()
        .annotate(hour=TruncHour("created_at", tzinfo=UTC))
        .values_list("webhook_id", "hour", "status")
        .annotate(count=Count("*"))  # not an id: the index has all that is asked for
    )
    for webhook_id, hour, status, count in rows:
        found[webhook_id][hour][status] = count
    return found
