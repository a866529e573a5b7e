"""Kinds of fields that the models of all apps share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from gateway_project.core.clock import utc_text

DATE_TIME = WithJsonSchema({"type": "string", "format": "date-time"})
Time = Annotated[datetime, PlainSerializer(utc_text, when_used="json"), DATE_TIME]
TimeText = Annotated[str, DATE_TIME]
"""A time that is text already, as `utc_text` writes it."""
IdText = Annotated[str, WithJsonSchema({"type": "string", "format": "uuid"})]
"""A UUID that is text already."""


def _is_written_out(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip("+-").replace(".", "", 1).isdigit():
        raise ValueError("is a number; send a time such as 2026-05-01T00:00:00Z")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_is_written_out), Field(strict=False)]
"""A time that somebody asks by, with its offset; not seconds of an epoch, which Pydantic takes."""
