"""Telling an address that the request itself named (`webhook_url`) what became of its text."""

from __future__ import annotations

from typing import Any

from accounts import events
from accounts.authentication import Caller
from detection.schemas import Detection
from webhooks import catalogue


def result_of(verdict: Detection, endpoint: str) -> dict[str, Any]:
    """`data.result` of a `detection.completed`: what `webhooks/catalogue.py` says, never the text.

    `endpoint` is the path that was asked.
    """
    fields = verdict.model_dump(include=set(catalogue.Verdict.model_fields) - {"endpoint"})
    return catalogue.Verdict(**fields, endpoint=endpoint).model_dump(mode="json")


def tell(
    url: str, verdict: Detection, caller: Caller, endpoint: str, traceparent: str | None
) -> None:
    """Store the event: one INSERT, which joins the caller's transaction."""
    events.publish(
        caller.workspace_id,
        "detection.completed",
        result=result_of(verdict, endpoint),
        metadata=verdict.metadata,
        request_id=verdict.request_id,
        api_key_id=caller.key_id,
        deliver_to=url,
        traceparent=traceparent or "",
    )
