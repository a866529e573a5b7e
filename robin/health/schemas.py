"""Answers about Robin's health, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class PortView(BaseModel):
    status: Literal["UP", "DOWN"]
    breaker: Literal["closed", "half-open", "open"]
    reason: Literal["busy", "away", "refused"] | None = None


class RobinHealthView(BaseModel):
    """Robin's own facts, as it gives them, and how its two servers stand."""

    model_config = ConfigDict(extra="allow")

    status: Literal["UP", "DOWN"]
    uptime: str
    listeners: list[dict[str, Any]]
    queue: dict[str, Any] | None = None
    robinClientApi: PortView
    robinServiceApi: PortView
