"""Times as the gateway writes them."""

from __future__ import annotations

from datetime import UTC, datetime


def utc_text(at: datetime) -> str:
    """`2026-05-01T12:00:00.000Z`: how every answer and event of ours says a time."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
