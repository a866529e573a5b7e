"""Queries and answers about the mail store, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from robin.schemas import Query


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
