"""Kinds of fields that the models of all apps share."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from gateway_project.core.clock import utc_text

DATE_TIME = WithJsonSchema({"type": "string", "format": "date-time"})
Time = Annotated[datetime, PlainSerializer(utc_text, when_used="json"), DATE_TIME]
TimeText = Annotated[str, DATE_TIME]
"""A time that is text already, as `utc_text` writes it."""
IdText = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
"""A UUID that is text already."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""Of an integer in a body: `1.0` is one as well, as JSON Schema has it and some languages write it.
Stands behind its bounds."""


NOT_ONE_LINE = "must be one line; take out the line breaks"


def is_broken(text: str) -> bool:
    """Whether it has a second line, by any character that ends one."""
    return len(text.splitlines()) > 1


def _one_line(value: str) -> str:
    if is_broken(value):
        raise ValueError(NOT_ONE_LINE)
    return value


ONE_LINE = AfterValidator(_one_line)
"""Of names: they stand in the middle of lines of mails, logs and files."""


def is_written_out(value: Any) -> Any:
    """For fields of times, which Pydantic would read from seconds of an epoch as well, or from
    milliseconds where they are many."""
    if isinstance(value, int | float) or (isinstance(value, str) and _is_number(value)):
        raise ValueError("is a number; send a time such as 2026-05-01T00:00:00Z")
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


Moment = Annotated[AwareDatetime, BeforeValidator(is_written_out), Field(strict=False)]
"""A time that somebody asks by, with its offset; not seconds of an epoch, which Pydantic takes."""


def _is_day(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value):
        raise ValueError("send a day such as 2026-05-01")
    return value


Day = Annotated[date, BeforeValidator(_is_day), Field(strict=False)]
"""A day that somebody asks by; nor is the time of one a day."""
