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
