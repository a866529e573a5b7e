"""`POST /v1/guardrails/kong`: for Kong's plugins `ai-custom-guardrail` and `request-callout`.

Contract: https://developer.konghq.com/plugins/ai-custom-guardrail/ (3.14 and later) and
https://developer.konghq.com/plugins/request-callout/. There whoever configures the plugin says what
is sent and how the answer is read; docs/guardrails.md has both for this door. `content` is the text
that the plugin took out of a chat; with `request-callout` the whole body comes as it is, a chat or
JSON-RPC of MCP.
"""

from __future__ import annotations

from typing import Literal

from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel, ConfigDict, Field

from detection.content_types import ContentType
from detection.guardrails import reading
from detection.guardrails.base import (
    DESCRIPTION,
    PARAMETERS,
    PROBLEMS,
    ChatGuardrailViewSet,
    GuardrailBody,
    Outcome,
)
from detection.guardrails.reading import Chat
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.responses import reply


class KongRequest(GuardrailBody):
    model_config = ConfigDict(extra="allow", strict=True)

    content: str | None = Field(None, description="`$(content)`. Without it the body is the chat.")
    source: Literal["INPUT", "OUTPUT"] = Field("INPUT", description="`$(source)`.")
    content_type: ContentType | None = Field(
        None, description="Of `content`. Default: as `source` says, `user_input` or `model_output`."
    )


class KongResponse(BaseModel):
    """For `$(resp.block)` and `$(resp.block_message)`."""

    block: bool
    block_message: str = Field(description="Empty unless blocked; never a text of the chat.")
    confidence: float | None = None
    request_id: str | None = Field(None, description="Of the flagged text, in the log.")
    unjudged: int | None = Field(
        None, description="Texts without a verdict, because the key's policy fails open."
    )


class KongViewSet(ChatGuardrailViewSet):
    body: KongRequest

    def chat(self) -> Chat:
        body = self.body
        is_answer = body.source == "OUTPUT"
        if body.content is not None:
            kind = body.content_type or ("model_output" if is_answer else "user_input")
            return reading.of_text(body.content, kind)
        read = reading.of_answer if is_answer else reading.of_request
        return read(body.model_extra or {})

    @endpoint(
        operation="guardKong",
        summary="Guardrail of Kong",
        description=(
            f"For Kong's `ai-custom-guardrail` and `request-callout`. {DESCRIPTION} `block` and "
            "`block_message` are in every answer below 400, and in no other."
        ),
        tags=["detection"],
        body=KongRequest,
        answer=KongResponse,
        scope="detect",
        day_cost=1,
        problems=PROBLEMS,
        parameters=PARAMETERS,
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        return await self.judge()

    def answered(self, outcome: Outcome) -> HttpResponse:
        worst = outcome.worst()
        answer = KongResponse(
            block=worst is not None,
            block_message=worst.reason if worst else "",
            confidence=worst.confidence if worst else None,
            request_id=worst.request_id if worst else None,
            unjudged=len(outcome.unjudged) or None,
        )
        return reply(answer, exclude_none=True)

    def refused_for_size(self, reason: str) -> HttpResponse:
        return reply(KongResponse(block=True, block_message=reason), exclude_none=True)
