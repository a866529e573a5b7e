"""Queries and answers about the log, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

from gateway_project.core.api.fields import TimeText
from robin.logs import parsing
from robin.schemas import NUMBER_MAX, Query, Text, When, upper_words

Levels = Annotated[
    list[Literal["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]], BeforeValidator(upper_words)
]


class LogQuery(Query):
    level: Levels = []
    search: Text = Field("", description="As it stands in the log, with its capitals.")
    logger: Text = ""
    startTime: When | None = None
    endTime: When | None = None
    limit: int = Field(100, ge=1, le=1000)
    lines: int | None = Field(None, ge=1, le=1000, description="Another name of `limit`.")
    offset: int = Field(0, ge=0, le=NUMBER_MAX)

    def filter(self) -> parsing.Filter:
        return parsing.Filter(
            frozenset(self.level), self.search, self.logger, self.startTime, self.endTime
        )


class LogExportQuery(LogQuery):
    format: Literal["txt", "json"] = "txt"


class LogEntryView(BaseModel):
    id: str
    timestamp: TimeText
    level: Literal["ERROR", "WARN", "INFO", "DEBUG", "TRACE"]
    logger: str
    message: str
    thread: str | None = None
    context: dict[str, str] | None = None


class LogView(BaseModel):
    entries: list[LogEntryView]
    total: int = Field(description="Of what was seen.")
    hasMore: bool
    complete: bool = Field(description="Whether all of today and yesterday was seen.")
    searchedSince: TimeText
