"""`POST /v1/guardrails/agentgateway/request` and `…/response`: agentgateway's guardrail webhook.

Contract: https://agentgateway.dev/docs/standalone/latest/llm/guardrails/, the OpenAPI document of
https://docs.solo.io/gateway/latest/ai/guardrail-api/openapi-spec/, and
`crates/agentgateway/src/llm/policy/webhook.rs`. An answer holds one `action`; which one it is, is
told by its fields: `body` and `status_code` reject, a `reason` alone passes. What it cannot read,
such as an error, is by default a refusal there (`failureMode`).
"""

from __future__ import annotations

from typing import Any

import orjson
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

REJECTED_STATUS = 403


class Prompt(GuardrailBody):
    messages: list[dict[str, Any]] = Field(
        default_factory=list, description="Each with `role` and `content`."
    )


class PromptRequest(GuardrailBody):
    body: Prompt


class Choices(GuardrailBody):
    choices: list[dict[str, Any]] = Field(
        default_factory=list, description="Each with a `message` of `role` and `content`."
    )


class ChoicesRequest(GuardrailBody):
    body: Choices


class Pass(BaseModel):
    reason: str


class Reject(BaseModel):
    body: str = Field(description="What the client is told: JSON, in OpenAI's form of an error.")
    status_code: int
    reason: str = Field(description="Where, and threat types; never a text of the chat.")


class AgentgatewayResponse(BaseModel):
    action: Reject | Pass


class AgentgatewayViewSet(ChatGuardrailViewSet):
    body: PromptRequest | ChoicesRequest

    def chat(self) -> Chat:
        content = self.body.body
        if isinstance(content, Choices):
            return reading.of_answer({"choices": content.choices})
        return reading.of_request({"messages": content.messages})

    @endpoint(
        operation="guardAgentgatewayRequest",
        summary="Guardrail of agentgateway: a prompt",
        description=f"For agentgateway's guardrail webhook. {DESCRIPTION}",
        tags=["detection"],
        body=PromptRequest,
        answer=AgentgatewayResponse,
        scope="detect",
        day_cost=1,
        problems=PROBLEMS,
        parameters=PARAMETERS,
    )
    async def prompt(self, request: HttpRequest) -> HttpResponse:
        return await self.judge()

    @endpoint(
        operation="guardAgentgatewayResponse",
        summary="Guardrail of agentgateway: an answer",
        description=f"For agentgateway's guardrail webhook. {DESCRIPTION}",
        tags=["detection"],
        body=ChoicesRequest,
        answer=AgentgatewayResponse,
        scope="detect",
        day_cost=1,
        problems=PROBLEMS,
        parameters=PARAMETERS,
    )
    async def choices(self, request: HttpRequest) -> HttpResponse:
        return await self.judge()

    def answered(self, outcome: Outcome) -> HttpResponse:
        worst = outcome.worst()
        if worst is not None:
            return _reject(f"{worst.reason} (request {worst.request_id})")
        reason = "nothing found"
        if outcome.unjudged:
            reason = f"no verdict on {len(outcome.unjudged)} texts: the key's policy fails open"
        return reply(AgentgatewayResponse(action=Pass(reason=reason)))

    def refused_for_size(self, reason: str) -> HttpResponse:
        return _reject(reason)


def _reject(reason: str) -> HttpResponse:
    error = {"message": reason, "type": "invalid_request_error", "code": "prompt_injection"}
    body = orjson.dumps({"error": error}).decode()
    action = Reject(body=body, status_code=REJECTED_STATUS, reason=reason)
    return reply(AgentgatewayResponse(action=action))
