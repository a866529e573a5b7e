"""Kinds of fields that the models of all apps share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import (
    PlainSerializer,
)

from gateway_project.core.clock import utc_text

Time = Annotated[
    datetime,
    PlainSerializer(utc_text, when_used="json"),
]


def without_nul(value: str) -> str:
    if "\x00" in value:  # PostgreSQL cannot keep it
        raise ValueError("must not hold NUL")
    return value
