"""What people say of verdicts, and how it becomes labelled data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from uuid import UUID

import orjson
from django.conf import settings
from django.db import transaction
from django.utils.translation import gettext_noop

from accounts.events import audit
from accounts.models import StoredText, UsageLog, Workspace
from accounts.services import Actor
from accounts.usage import reading
from detection.models import Feedback
from gateway_project.core import clock, encryption, errors
from gateway_project.core.stores.sweeps import Round

NOTE_CHARS_MAX = 1000
TEXTS_AT_ONCE = 200


def judged(workspace: Workspace, request_id: UUID, at: datetime | None = None) -> UsageLog:
    """The verdict of which something is to be said; waits for one of this very moment.

    `at`: when the request was answered, if its id does not tell. Raises 404 when the log has no
    such request, 422 for one that ended without a verdict. Not inside a transaction.
    """
    row = reading.find(workspace, request_id, at)
    if row is None:
        raise errors.NotFound(
            gettext_noop(
                "The log has no such request of this workspace. Take the `request_id` of the "
                "answer; it is kept for the days of the plan."
            )
        )
    if row.is_malicious is None or row.confidence is None:
        message = "ended without a verdict, so there is nothing to say of one"
        raise errors.ValidationFailed(errors=[{"field": "request_id", "message": message}])
    return row


def give(
    workspace: Workspace, row: UsageLog, verdict: str, note: str = "", *, actor: Actor
) -> tuple[Feedback, bool]:
    """Say what a verdict of the workspace was; returns the word, and whether it is the first.

    A second word replaces the first.
    """
    values = {
        "api_key_id": row.api_key_id,
        "verdict": verdict,
        "note": note,
        "confidence": row.confidence,
        "is_malicious": row.is_malicious,
        "decision": row.decision,
        "source": row.source,
        "content_type": row.why.get("type", "user_input"),
        "created_at": clock.now(),
    }
    with transaction.atomic():
        feedback, is_first = Feedback.objects.update_or_create(
            workspace=workspace, request_id=row.request_id, defaults=values
        )
        audit(
            "feedback.given",
            workspace=workspace,
            target=row.request_id,
            verdict=verdict,
            **actor.fields(),
        )
    return feedback, is_first


def texts_of(request_ids: Iterable[UUID]) -> dict[UUID, str]:
    """The texts of these requests, as far as they are stored (`store_text` of a key's policy)."""
    found = {}
    for row in StoredText.objects.filter(pk__in=list(request_ids)):
        with suppress(encryption.Undecryptable):
            found[row.pk] = encryption.decrypt(row.encrypted)
    return found


def jsonl(rows: Sequence[Feedback]) -> Iterator[bytes]:
    """`{"text", "label", "source"}` for each row whose text is stored: what `evaluate` reads.

    In pieces of some lines, so that few texts are in memory at a time; a piece may be empty.
    """
    for some in _pieces(rows):
        found = texts_of([row.request_id for row in some])
        yield b"".join(
            orjson.dumps(
                {
                    "text": found[row.request_id],
                    "label": row.label,
                    "source": f"feedback {row.verdict}",
                },
                option=orjson.OPT_APPEND_NEWLINE,
            )
            for row in some
            if row.request_id in found
        )


def count_stored(rows: Sequence[Feedback]) -> int:
    """How many lines `jsonl` would have."""
    return sum(len(texts_of([row.request_id for row in some])) for some in _pieces(rows))


def prune() -> int:
    """Forget feedback past `FEEDBACK_RETENTION_DAYS`; returns how much."""
    if not settings.FEEDBACK_RETENTION_DAYS:
        return 0
    begins = clock.now() - timedelta(days=settings.FEEDBACK_RETENTION_DAYS)
    return Round().delete(Feedback.objects.filter(created_at__lt=begins).order_by("created_at"))


def _pieces(rows: Sequence[Feedback]) -> Iterator[Sequence[Feedback]]:
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        yield rows[start : start + TEXTS_AT_ONCE]
