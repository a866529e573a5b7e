"""Kinds of fields that the models of all apps share."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import (
    PlainSerializer,
)

from gateway_project.core.clock import utc_text

Time = Annotated[
    datetime,
    PlainSerializer(utc_text, when_used="json"),
]


def holds_nul(value: Any) -> bool:
    """Whether a text anywhere in a JSON value holds NUL, which PostgreSQL's `jsonb` refuses."""
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, dict):
        return any(holds_nul(name) or holds_nul(inner) for name, inner in value.items())
    return isinstance(value, list) and any(map(holds_nul, value))


def without_nul(value: str) -> str:
    if "\x00" in value:  # PostgreSQL cannot keep it
        raise ValueError("must not hold NUL")
    return value
