"""Robin's figures under `/api/v1/metrics`: now, and over time. Shapes: `robin/schemas.py`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import orjson
from django.http import HttpRequest, HttpResponse
from django.utils.http import content_disposition_header

from gateway_project.core import clock, errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from gateway_project.core.clock import utc_text
from gateway_project.core.stores import database
from robin.metrics import sampling
from robin.metrics.schemas import (
    MetricSeriesView,
    MetricsExportQuery,
    MetricsQuery,
    MetricsView,
    QueueStatsView,
    SystemStatsView,
)
from robin.permissions import Permission
from robin.queue import services as queue
from robin.upstream.client import JSON, TEXT, robin
from robin.upstream.viewset import DOWNLOAD, UPSTREAM, RobinViewSet, endpoint

METRICS = ("robin metrics",)
SERIES = list[MetricSeriesView]  # in the class `list` is an action
DAYS_MAX = sampling.KEEP_DAYS


class MetricsViewSet(RobinViewSet):
    @endpoint(
        operation="getRobinMetrics",
        summary="Series of samples, one a minute",
        description="Counters as what came since the point before; at most 500 points each.",
        tags=METRICS,
        answer=MetricsView,
        scope=Permission.VIEW_METRICS,
        query=MetricsQuery,
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, MetricsQuery)
        start, end = _span(query)
        samples = await database.read(sampling.between, start, end)
        answer = {"series": sampling.series(samples, is_plain=query.names == "plain")}
        return reply({**answer, "startTime": utc_text(start), "endTime": utc_text(end)})

    @endpoint(
        operation="exportRobinMetrics",
        summary="The same as a file",
        tags=METRICS,
        media_types={"text/csv": str, JSON: SERIES},
        headers=["Content-Disposition"],
        scope=Permission.VIEW_METRICS,
        query=MetricsExportQuery,
    )
    async def export(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, MetricsExportQuery)
        samples = await database.read(sampling.between, *_span(query))
        found = sampling.series(samples, is_plain=query.names == "plain")
        is_csv = query.format == "csv"
        content = sampling.as_csv(found).encode() if is_csv else orjson.dumps(found)
        name = content_disposition_header(True, f"robin-metrics.{query.format}")
        return HttpResponse(
            content,
            content_type="text/csv; charset=utf-8" if is_csv else JSON,
            headers={**DOWNLOAD, "Content-Disposition": str(name)},
        )

    @endpoint(
        operation="getRobinSystem",
        summary="Robin's processor, memory and uptime",
        tags=METRICS,
        answer=SystemStatsView,
        scope=Permission.VIEW_METRICS,
        problems=UPSTREAM,
    )
    async def system(self, request: HttpRequest) -> HttpResponse:
        port = robin().service
        values = await port.get("/metrics/prometheus", TEXT, sampling.prometheus)
        health = await port.get_json("/health")
        return reply(sampling.system_stats(values, health, now=clock.now()))

    @endpoint(
        operation="getRobinQueueMetrics",
        summary="Robin's queue in figures",
        tags=METRICS,
        answer=QueueStatsView,
        scope=Permission.VIEW_METRICS,
        problems=UPSTREAM,
    )
    async def queue(self, request: HttpRequest) -> HttpResponse:
        values, totals, per_minute = await asyncio.gather(
            robin().service.get("/metrics/prometheus", TEXT, sampling.prometheus),
            queue.totals(),
            database.read(sampling.throughput),
        )
        found = sampling.queue_stats(values, totals, now=clock.now(), per_minute=per_minute)
        return reply(found)


def _span(query: MetricsQuery) -> tuple[datetime, datetime]:
    try:
        end = (query.end or clock.now()).astimezone(UTC)
        start = query.start.astimezone(UTC) if query.start else end - timedelta(hours=1)
    except OverflowError:
        raise errors.ValidationFailed(
            errors=[{"field": "end", "message": "is no time that can be meant"}]
        ) from None
    if not timedelta() <= end - start <= timedelta(days=DAYS_MAX + 1):
        message = f"must be before end, by {DAYS_MAX} days at most"
        raise errors.ValidationFailed(errors=[{"field": "start", "message": message}])
    return start, end
