"""Questions, bodies and answers about Robin, in the names and forms that Robin UI checks.

Answers are made by `robin/translate.py`; the models here describe them in the API's document.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from gateway_project.core.views import Body
from robin import logs, queue

NUMBER_MAX = 1_000_000


def _commas(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip().upper() for part in value.split(",") if part.strip()]
    return value


def _one_line(text: str) -> str:
    if text and not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


States = Annotated[list[queue.State], BeforeValidator(_commas)]
Levels = Annotated[
    list[Literal["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]], BeforeValidator(_commas)
]
Text = Annotated[str, Field(max_length=200), AfterValidator(_one_line)]
When = Annotated[datetime, AfterValidator(_aware)]


class Query(BaseModel):
    """Of an address. Names that are not known are ignored, as Robin UI may send more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


# -- Queue ----------------------------------------------------------------------------------------


class QueueQuery(Query):
    page: int = Field(0, ge=0, le=NUMBER_MAX, description="From 0.")
    size: int = Field(50, ge=1, le=queue.PAGE_ITEMS_MAX)
    state: States = []
    protocol: Text = ""
    search: Text = ""
    retryMin: int | None = Field(None, ge=0, le=NUMBER_MAX)
    retryMax: int | None = Field(None, ge=0, le=NUMBER_MAX)

    def filter(self) -> queue.Filter:
        return queue.Filter(
            tuple(s for s in queue.STATES if s in self.state),
            self.protocol,
            self.search,
            self.retryMin,
            self.retryMax,
        )


class QueueFilter(Body):
    """At least one of them: an empty filter would mean the whole queue."""

    state: list[queue.State] = []
    protocol: Text = ""
    search: Text = ""
    retryMin: int | None = Field(None, ge=0, le=NUMBER_MAX)
    retryMax: int | None = Field(None, ge=0, le=NUMBER_MAX)

    def filter(self) -> queue.Filter:
        states = tuple(s for s in queue.STATES if s in self.state)
        return queue.Filter(states, self.protocol, self.search, self.retryMin, self.retryMax)


class QueueActionRequest(Body):
    """`uids`, or a `filter`: that first answers how many it matches, and the token to `confirm`."""

    action: queue.Action
    uids: Annotated[list[str], Field(min_length=1, max_length=queue.UIDS_MAX)] | None = None
    filter: QueueFilter | None = None
    confirm: Annotated[str, Field(max_length=100)] | None = None


class QueueItemView(BaseModel):
    uid: str
    protocol: str
    mailbox: str = Field(description="The first recipient.")
    retryCount: int
    maxRetryCount: int
    createTime: int = Field(description="Milliseconds.")
    lastRetryTime: int = Field(description="Milliseconds; 0: never.")
    recipients: list[str] = Field(description="The first five.")
    recipientsTotal: int
    envelopes: int
    files: list[str]
    sessionUid: str | None = None
    state: queue.State | None = Field(None, description="When it was asked for.")


class QueueView(BaseModel):
    items: list[QueueItemView]
    totalCount: int
    pageSize: int
    pageNumber: int


class QueueTotalsView(BaseModel):
    total: int
    ready: int
    claimed: int
    dead: int


class QueueDoneView(BaseModel):
    status: Literal["OK"] = "OK"
    done: int
    requested: int


class QueueMatchedView(BaseModel):
    matched: int
    confirm: str = Field(description="Good once, for two minutes.")


# -- Storage --------------------------------------------------------------------------------------


class PathQuery(Query):
    path: Annotated[str, Field(max_length=2000)] = "/"


class StoreEntryView(BaseModel):
    path: str
    name: str
    type: Literal["file", "directory"]
    size: int
    modified: int = Field(description="Milliseconds, of the day in its name; 0: not known.")


class CrumbView(BaseModel):
    name: str
    path: str


class StoreView(BaseModel):
    path: str
    items: list[StoreEntryView]
    breadcrumbs: list[CrumbView]


class MailView(BaseModel):
    path: str
    content: str = Field(description="What is no UTF-8 is read as Latin-1.")
    mimeType: str
    size: int = Field(description="Bytes.")


# -- Log ------------------------------------------------------------------------------------------


class LogQuery(Query):
    level: Levels = []
    search: Text = Field("", description="As it stands in the log, with its capitals.")
    logger: Text = ""
    startTime: When | None = None
    endTime: When | None = None
    limit: int = Field(100, ge=1, le=1000)
    lines: int | None = Field(None, ge=1, le=1000, description="Another name of `limit`.")
    offset: int = Field(0, ge=0, le=NUMBER_MAX)

    def filter(self) -> logs.Filter:
        return logs.Filter(
            frozenset(self.level), self.search, self.logger, self.startTime, self.endTime
        )


class LogExportQuery(LogQuery):
    format: Literal["txt", "json"] = "txt"


class LogEntryView(BaseModel):
    id: str
    timestamp: str
    level: Literal["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]
    logger: str
    message: str
    thread: str | None = None
    context: dict[str, str] | None = None


class LogView(BaseModel):
    entries: list[LogEntryView]
    total: int
    hasMore: bool


# -- Settings, health -----------------------------------------------------------------------------


class ConfigView(BaseModel):
    sections: dict[str, dict[str, Any]]
    fetchedAt: str


class SaidView(BaseModel):
    status: Literal["OK"] = "OK"
    message: str


class ScannerTestRequest(Body):
    """`config` has the fields of the scanner's document."""

    config: dict[str, Any]


class ScannerTestView(BaseModel):
    """`responseTime` is milliseconds."""

    success: bool
    status: Literal["UP", "DOWN", "TIMEOUT", "ERROR"]
    message: str
    responseTime: float
    details: dict[str, Any] | None = None


class ScannerStatusView(BaseModel):
    """The last four are Rspamd's; `uptime` is seconds. What is not known is left out."""

    status: Literal["UP", "DOWN", "UNKNOWN"]
    lastCheck: str
    error: str | None = None
    version: str | None = None
    uptime: int | None = None
    scannedTotal: int | None = None
    spamCount: int | None = None
    hamCount: int | None = None


class PortView(BaseModel):
    status: Literal["UP", "DOWN"]
    breaker: Literal["closed", "half-open", "open"]


class RobinHealthView(BaseModel):
    """Robin's own facts, as it gives them, and how its two servers stand."""

    model_config = ConfigDict(extra="allow")

    status: Literal["UP", "DOWN"]
    uptime: str
    listeners: list[dict[str, Any]]
    queue: dict[str, Any]
    robinClientApi: PortView
    robinServiceApi: PortView


# -- Figures --------------------------------------------------------------------------------------


class MetricsQuery(Query):
    start: When | None = Field(None, description="An hour before `end`, unless given.")
    end: When | None = Field(None, description="Now, unless given.")


class MetricsExportQuery(MetricsQuery):
    format: Literal["csv", "json"] = "csv"


class PointView(BaseModel):
    timestamp: str
    value: float


class SeriesView(BaseModel):
    metric: Literal[
        "QUEUE_SIZE",
        "MESSAGES_SENT",
        "MESSAGES_RECEIVED",
        "CONNECTIONS",
        "CPU_USAGE",
        "MEMORY_USAGE",
    ]
    unit: str
    dataPoints: list[PointView]


class MetricsView(BaseModel):
    series: list[SeriesView]
    startTime: str
    endTime: str


class SystemStatsView(BaseModel):
    timestamp: str
    cpu: dict[str, Any]
    memory: dict[str, Any]
    uptime: int = Field(description="Milliseconds.")


class QueueStatsView(BaseModel):
    timestamp: str
    queueSize: int
    processing: int
    failed: int
    completed: int
