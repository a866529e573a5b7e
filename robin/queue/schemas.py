"""Queries, bodies and answers about the queue, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gateway_project.core.api.endpoint import Body
from gateway_project.core.api.fields import TimeText
from robin.queue import scan, services
from robin.schemas import NUMBER_MAX, Query, Text, upper_words

COMPLETE = (
    "Whether the whole queue is known. A long one is read in parts: it is false, too, while items "
    "pass from one part into another."
)
States = Annotated[list[scan.State], BeforeValidator(upper_words)]


class QueueQuery(Query):
    page: int = Field(0, ge=0, le=NUMBER_MAX, description="From 0.")
    size: int = Field(50, ge=1, le=services.PAGE_ITEMS_MAX)
    state: States = []
    protocol: Text = ""
    search: Text = ""
    retryMin: int | None = Field(None, ge=0, le=NUMBER_MAX)
    retryMax: int | None = Field(None, ge=0, le=NUMBER_MAX)

    def filter(self) -> services.Filter:
        return services.Filter(
            tuple(s for s in scan.STATES if s in self.state),
            self.protocol,
            self.search,
            self.retryMin,
            self.retryMax,
        )


class ActQuery(Query):
    force: bool = Field(False, description="Also what is being delivered at this moment.")


class QueueFilter(Body):
    """At least one of them: an empty filter would mean the whole queue."""

    state: list[scan.State] = []
    protocol: Text = ""
    search: Text = ""
    retryMin: int | None = Field(None, ge=0, le=NUMBER_MAX)
    retryMax: int | None = Field(None, ge=0, le=NUMBER_MAX)

    def filter(self) -> services.Filter:
        states = tuple(s for s in scan.STATES if s in self.state)
        return services.Filter(states, self.protocol, self.search, self.retryMin, self.retryMax)


class QueueActionRequest(Body):
    """`uids`, or a `filter`: that first answers how many it matches, and the token to `confirm`."""

    action: services.Action
    uids: Annotated[list[str], Field(min_length=1, max_length=services.UIDS_MAX)] | None = None
    filter: QueueFilter | None = None
    confirm: Annotated[str, Field(max_length=100)] | None = None
    force: bool = Field(False, description="Also what is being delivered at this moment.")


class QueueItemView(BaseModel):
    uid: str
    protocol: str
    mailbox: str = Field(description="The first recipient.")
    retryCount: int
    maxRetryCount: int
    createTime: int = Field(
        description="Milliseconds: as `firstSeenTime`, since Robin does not tell. For Robin UI."
    )
    firstSeenTime: int = Field(
        description="Milliseconds: when this gateway first saw it. It may have waited before."
    )
    lastRetryTime: int = Field(description="Milliseconds; 0: never.")
    recipients: list[str] = Field(description="The first five.")
    recipientsTotal: int
    recipientsCut: bool = Field(description="Whether there are more than are shown.")
    envelopes: int
    files: list[str]
    sessionUid: str | None = None
    state: scan.State | None = Field(None, description="Left out while it is not known.")


class QueueView(BaseModel):
    items: list[QueueItemView]
    totalCount: int
    pageSize: int
    pageNumber: int
    asOf: str = Field(description="Of when this is; the header `Age` has the seconds since.")
    complete: bool = Field(description=COMPLETE)
    knownCount: int = Field(description="How many items are.")


class QueueTotalsView(BaseModel):
    total: int
    ready: int
    claimed: int
    dead: int


class QueueDoneView(BaseModel):
    status: Literal["OK"] = "OK"
    done: int
    requested: int
    unknown: int = Field(0, description="Robin was asked, and did not say what became of these.")
    leftOut: int = Field(0, description="Being delivered at that moment: these were left.")
    warnings: list[str] = Field([], description="For people.")


class QueueMatchedView(BaseModel):
    """What a filter matches, of what is known of the queue."""

    matched: int
    confirm: str = Field(description="Good once, for two minutes.")
    claimed: int = Field(description="Of these, being delivered when they were looked at.")
    lastTry: int = Field(description="Of these, dead at once when this retry fails.")
    complete: bool = Field(description=COMPLETE)


class QueueJobView(BaseModel):
    """How far an action on many is: of `requested`, `sent` were tried by now."""

    id: str
    action: services.Action
    state: Literal["queued", "processing", "complete", "partial", "cancelled"]
    requested: int
    sent: int
    done: int
    unknown: int = Field(description="Robin was asked, and did not say what became of these.")
    leftOut: int = Field(description="Being delivered at that moment.")
    createdAt: TimeText
    finishedAt: TimeText | None = None
    warnings: list[str] = Field([], description="For people; more may come while it runs.")
    message: str | None = None
