"""`/v1/feedback`: what the workspace's people and programs say of its verdicts."""

from __future__ import annotations

from typing import Annotated, Literal, cast
from uuid import UUID

from django.http import HttpResponse
from pydantic import BaseModel, Field, StringConstraints
from rest_framework.request import Request

from accounts import idempotency
from accounts.viewsets import KeyedViewSet
from detection.feedback import services
from detection.models import Feedback
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Body, endpoint
from gateway_project.core.api.fields import Time
from gateway_project.core.api.responses import reply

Verdict = Literal["false_positive", "false_negative", "correct"]
Note = Annotated[str, StringConstraints(strip_whitespace=True, max_length=services.NOTE_CHARS_MAX)]


class FeedbackRequest(Body):
    request_id: Annotated[UUID, Field(strict=False)] = Field(
        description="Of the answer; any key of the workspace may have asked."
    )
    verdict: Verdict = Field(description="`false_positive` is a false alarm.")
    note: Note | None = Field(None, description="For people; at most 1,000 characters.")


class FeedbackView(BaseModel):
    id: UUID
    request_id: UUID
    verdict: Verdict
    note: str | None
    confidence: float = Field(description="The score that the verdict was given for.")
    created_at: Time

    @classmethod
    def of(cls, row: Feedback) -> FeedbackView:
        return cls(
            id=row.pk,
            request_id=row.request_id,
            verdict=cast(Verdict, row.verdict),
            note=row.note or None,
            confidence=row.confidence,
            created_at=row.created_at,
        )


class FeedbackViewSet(KeyedViewSet):
    @endpoint(
        operation="giveFeedback",
        summary="Say whether a verdict was right",
        description=(
            "201 for the first word on a request; a later one replaces it and is 200, with the "
            "same id. The request must be in the log (GET /v1/requests/{request_id}), where it is "
            "found at once after its answer. Costs one of the minute."
        ),
        tags=["detection"],
        body=FeedbackRequest,
        answer=FeedbackView,
        status=201,
        more_answers={200: FeedbackView},
        scope="detect",
        problems=[errors.NotFound, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def create(self, request: Request) -> HttpResponse:
        body = self.parsed(FeedbackRequest)
        workspace = self.workspace()
        judged = services.judged(workspace, body.request_id)

        def give() -> HttpResponse:
            row, is_first = services.give(
                workspace, judged, body.verdict, body.note or "", actor=self.actor
            )
            return reply(FeedbackView.of(row), status=201 if is_first else 200)

        return self.once(give)
