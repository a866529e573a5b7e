"""Queries and answers about the mail store, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from robin.schemas import Query


class PathQuery(Query):
    path: Annotated[str, Field(max_length=2000)] = "/"


class StoreEntryView(BaseModel):
    path: str
    name: str = Field(description="What is not printable is shown escaped; `path` has it as it is.")
    type: Literal["file", "directory"]
    size: int
    modified: int = Field(
        description=(
            "Milliseconds: the day in its name; of a directory the newest one listed below it. "
            "While nothing tells one, when the gateway saw it first."
        )
    )
    modifiedKnown: bool = Field(description="False where `modified` is when it was seen first.")
    openable: bool = Field(description="False for a name that Robin lists and does not open.")


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
    size: int = Field(description="Bytes, of the whole mail.")
    truncated: bool = Field(
        description="Whether `content` ends before the mail does: `/api/v1/storage/raw` has it all."
    )
