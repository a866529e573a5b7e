"""Queries, bodies and answers about the queue, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gateway_project.core.api.endpoint import Body
from robin.queue import services
from robin.schemas import NUMBER_MAX, Query, Text, upper_words

States = Annotated[list[services.State], BeforeValidator(upper_words)]


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
            tuple(s for s in services.STATES if s in self.state),
            self.protocol,
            self.search,
            self.retryMin,
            self.retryMax,
        )


class QueueFilter(Body):
    """At least one of them: an empty filter would mean the whole queue."""

    state: list[services.State] = []
    protocol: Text = ""
    search: Text = ""
    retryMin: int | None = Field(None, ge=0, le=NUMBER_MAX)
    retryMax: int | None = Field(None, ge=0, le=NUMBER_MAX)

    def filter(self) -> services.Filter:
        states = tuple(s for s in services.STATES if s in self.state)
        return services.Filter(states, self.protocol, self.search, self.retryMin, self.retryMax)


class QueueActionRequest(Body):
    """`uids`, or a `filter`: that first answers how many it matches, and the token to `confirm`."""

    action: services.Action
    uids: Annotated[list[str], Field(min_length=1, max_length=services.UIDS_MAX)] | None = None
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
    state: services.State | None = Field(None, description="When it was asked for.")


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
