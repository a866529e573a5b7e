"""`POST /v1/guardrails/portkey`: what Portkey's webhook guardrail asks.

Contract: https://portkey.ai/docs/integrations/guardrails/bring-your-own-guardrails, and
`plugins/default/webhook.ts` with `src/middlewares/hooks/index.ts` of Portkey-AI/gateway, which it
is of. Portkey sends the provider's own bodies, and reads `verdict` and `data`. Every status above
299 and every timeout is an error there, and passes unless the check says `failOnError`.
"""

from __future__ import annotations

from typing import Any, Literal

from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel, Field

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


class PortkeySide(GuardrailBody):
    json_: dict[str, Any] | None = Field(None, alias="json", description="The provider's body.")
    text: Any = Field(None, description="Read where there is no `json`.")


class PortkeyRequest(GuardrailBody):
    request: PortkeySide | None = None
    response: PortkeySide | None = None
    eventType: Literal["beforeRequestHook", "afterRequestHook"] = Field(  # noqa: N815
        description="Which side is judged: what goes to the model, or its answer."
    )


class PortkeyData(BaseModel):
    reason: str | None = Field(None, description="Where, and threat types; never a text.")
    confidence: float | None = None
    request_id: str | None = Field(None, description="Of the flagged text, in the log.")
    unjudged: int | None = Field(
        None, description="Texts without a verdict, because the key's policy fails open."
    )
    skipped_images: int | None = None
    skipped_instructions: int | None = None


class PortkeyResponse(BaseModel):
    verdict: bool = Field(description="False: flagged.")
    data: PortkeyData = Field(description="Shown in Portkey's log.")


class PortkeyViewSet(ChatGuardrailViewSet):
    body: PortkeyRequest

    def chat(self) -> Chat:
        is_answer = self.body.eventType == "afterRequestHook"
        side = self.body.response if is_answer else self.body.request
        if side is None:
            return Chat()
        read = reading.of_answer if is_answer else reading.of_request
        return read(side.json_ or {"text": side.text})

    @endpoint(
        operation="guardPortkey",
        summary="Guardrail of Portkey",
        description=f"For Portkey's webhook guardrail. {DESCRIPTION}",
        tags=["detection"],
        body=PortkeyRequest,
        answer=PortkeyResponse,
        scope="detect",
        day_cost=1,
        problems=PROBLEMS,
        parameters=PARAMETERS,
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        return await self.judge()

    def answered(self, outcome: Outcome) -> HttpResponse:
        worst = outcome.worst()
        data = PortkeyData(
            reason=worst.reason if worst else None,
            confidence=worst.confidence if worst else None,
            request_id=worst.request_id if worst else None,
            unjudged=len(outcome.unjudged) or None,
            skipped_images=outcome.chat.images or None,
            skipped_instructions=outcome.chat.instructions or None,
        )
        return reply(PortkeyResponse(verdict=worst is None, data=data), exclude_none=True)

    def refused_for_size(self, reason: str) -> HttpResponse:
        data = PortkeyData(reason=reason)
        return reply(PortkeyResponse(verdict=False, data=data), exclude_none=True)
