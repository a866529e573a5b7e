"""Bodies and answers about settings and scanners, in the names that Robin UI checks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from gateway_project.core.api.endpoint import Body
from gateway_project.core.api.fields import TimeText


class ConfigView(BaseModel):
    sections: dict[str, dict[str, Any]]
    fetchedAt: TimeText


class SaidView(BaseModel):
    """`missing` are sections that Robin does not show any more; `logged` what it complained of."""

    status: Literal["OK"] = "OK"
    message: str
    missing: list[str] = []
    logged: list[str] = []


class ScannerTestRequest(Body):
    """`config` has the fields of the scanner's document."""

    config: dict[str, Any]


class ScannerTestView(BaseModel):
    """`responseTime` is milliseconds."""

    success: bool
    status: Literal["UP", "DOWN", "TIMEOUT", "ERROR"]
    message: str
    responseTime: float
    details: dict[str, Any] | None = None


class ScannerStatusView(BaseModel):
    """The last four are Rspamd's; `uptime` is seconds. What is not known is left out."""

    status: Literal["UP", "DOWN", "UNKNOWN"]
    lastCheck: TimeText
    error: str | None = None
    version: str | None = None
    uptime: int | None = None
    scannedTotal: int | None = None
    spamCount: int | None = None
    hamCount: int | None = None
