"""Queries and answers about Robin's figures, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from gateway_project.core.api.fields import TimeText
from robin.schemas import Query, When


class MetricsQuery(Query):
    start: When | None = Field(None, description="An hour before `end`, unless given.")
    end: When | None = Field(None, description="Now, unless given.")
    names: Literal["robin-ui", "plain"] = Field(
        "robin-ui",
        description=(
            "`plain`: ACCEPTED for MESSAGES_RECEIVED, DELIVERED for MESSAGES_SENT; Robin UI takes "
            "no name but its own."
        ),
    )


class MetricsExportQuery(MetricsQuery):
    format: Literal["csv", "json"] = "csv"


class MetricPointView(BaseModel):
    timestamp: TimeText
    value: float


class MetricSeriesView(BaseModel):
    metric: Literal[
        "QUEUE_SIZE",
        "MESSAGES_SENT",
        "MESSAGES_RECEIVED",
        "DELIVERED",
        "ACCEPTED",
        "CONNECTIONS",
        "CPU_USAGE",
        "MEMORY_USAGE",
    ]
    unit: str
    dataPoints: list[MetricPointView]


class MetricsView(BaseModel):
    series: list[MetricSeriesView]
    startTime: TimeText
    endTime: TimeText


class SystemStatsView(BaseModel):
    timestamp: TimeText
    cpu: dict[str, Any]
    memory: dict[str, Any]
    uptime: int = Field(description="Milliseconds.")


class QueueStatsView(BaseModel):
    timestamp: TimeText
    queueSize: int
    processing: int
    failed: int
    completed: int = Field(description="`delivered` by Robin UI's name; 0 where it is not known.")
    accepted: int | None = Field(None, description="Mails that Robin took since it started.")
    delivered: int | None = Field(
        None,
        description=(
            "Left the queue since Robin started, and did not die: delivered, or deleted. Left out "
            "where more wait than were accepted since: they waited before."
        ),
    )
    connections: int | None = Field(None, description="To its SMTP ports, since it started.")
    throughput: float | None = Field(
        None,
        description="Mails that Robin took in a minute, of the last ten; left out without samples.",
    )
