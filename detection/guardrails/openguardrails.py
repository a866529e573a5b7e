"""`POST /v1/guardrails/openguardrails/v1/evaluate`: a detector of the OpenGuardrails protocol.

Contract: https://openguardrails.com/api/docs/, with `specification/runtime-api.md`,
`schema/guard-event.schema.json` and `schema/verdict.schema.json` of openguardrails/openguardrails
(v0.8). The base URL of an integration is `…/v1/guardrails/openguardrails`. Of the runtime's other
endpoints there are none: sessions and fleets are not kept here.
"""

from __future__ import annotations

from typing import Any, Literal

import orjson
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel, Field

from detection.guardrails import reading
from detection.guardrails.base import (
    DESCRIPTION,
    PARAMETERS,
    PROBLEMS,
    ChatGuardrailViewSet,
    Finding,
    GuardrailBody,
    Outcome,
)
from detection.guardrails.reading import Chat
from gateway_project.core import errors
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.responses import reply

PROVIDER = "gateway"
INJECTION = "security.prompt_injection"
CATEGORIES = {
    "jailbreak": "security.jailbreak",
    "data_extraction": "security.data_exfiltration",
}
"""Of our threat types; all others are `INJECTION`."""
FINDINGS_MAX = 100
ERRORS = {400: "invalid_event", 401: "unauthorized", 429: "rate_limited"}


class GuardEvent(GuardrailBody):
    """All eight are required; empty strings say that there is nothing to say."""

    kind: Literal["step/request", "step/response"]
    step_id: str = Field(min_length=1)
    agent_id: str
    agent_type: str
    agent_workspace: str
    agent_user: str
    llm_protocol: Literal["openai.chat", "openai.responses", "anthropic.messages", "canonical"]
    payload: dict[str, Any] = Field(description="The provider's body, as it is.")


class OGRFinding(BaseModel):
    category: str
    path: str = Field(description="Where it stands in the body, from `payload`.")
    score: float
    detector: str


class OGRVerdict(BaseModel):
    event_id: str = Field(description="Of the surest finding in the log, else of this call.")
    provider: str
    decision: Literal["allow", "block"]
    findings: list[OGRFinding] = Field(
        description="With `allow`: what the key's policy only monitors. At most 100."
    )
    unjudged: list[str] | None = Field(
        None, description="Paths without a verdict; `payload`: too large to be read."
    )


class OpenGuardrailsViewSet(ChatGuardrailViewSet):
    body: GuardEvent

    def chat(self) -> Chat:
        payload = {name: value for name, value in self.body.payload.items() if name != "timing"}
        if self.body.kind == "step/response":
            return reading.of_answer(payload)
        return reading.of_request(payload)

    @endpoint(
        operation="guardOpenGuardrails",
        summary="Detector of OpenGuardrails",
        description=(
            f"One GuardEvent in, one Verdict out. {DESCRIPTION} What has no verdict although the "
            "key's policy does not fail open is `block`, and named in `unjudged`. Errors are "
            "problems with the protocol's own `error` beside; a body that is not valid is 400."
        ),
        tags=["detection"],
        body=GuardEvent,
        answer=OGRVerdict,
        scope="detect",
        day_cost=1,
        problems=PROBLEMS,
        parameters=PARAMETERS,
    )
    async def evaluate(self, request: HttpRequest) -> HttpResponse:
        return await self.judge()

    def answered(self, outcome: Outcome) -> HttpResponse:
        failed = [one for one in outcome.unjudged if one.judged.error is not None]
        found = outcome.flagged or outcome.would_flag
        findings = [one for finding in found for one in _findings(finding)]
        unjudged = [_path(path) for one in outcome.unjudged for path in one.part.paths]
        return self._verdict(
            "block" if outcome.flagged or failed else "allow",
            event_id=next((one.request_id for one in found), ""),
            findings=findings[:FINDINGS_MAX],
            unjudged=[*dict.fromkeys(unjudged)] or None,
        )

    def refused_for_size(self, reason: str) -> HttpResponse:
        return self._verdict("block", findings=[], unjudged=["payload"])

    def _verdict(
        self, decision: Literal["allow", "block"], *, event_id: str = "", **more: Any
    ) -> HttpResponse:
        verdict = OGRVerdict(
            event_id=event_id or self.context.request_id,
            provider=PROVIDER,
            decision=decision,
            **more,
        )
        return reply(verdict, exclude_none=True)

    async def _refuse(self, request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
        if isinstance(error, errors.ValidationFailed):
            error = errors.BadRequest(str(error.detail), errors=error.errors)
            error.more["details"] = error.errors
        answer = await super()._refuse(request, error)
        if answer.status_code >= 400:
            problem = orjson.loads(answer.content)
            problem["error"] = ERRORS.get(answer.status_code, problem["code"])
            if answer.status_code == 429 and self.states:
                problem["limit"] = min(self.states, key=lambda state: state.remaining).limit
            answer.content = orjson.dumps(problem)
        return answer


def _findings(finding: Finding) -> list[OGRFinding]:
    verdict = finding.judged.verdict
    if verdict is None:
        return []
    kinds = [CATEGORIES.get(kind, INJECTION) for kind in verdict.threat_types] or [INJECTION]
    if finding.part.piece.kind == "tool_definition":
        kinds = ["security.tool_poisoning"]
    return [
        OGRFinding(
            category=kind, path=_path(path), score=verdict.confidence, detector=verdict.source
        )
        for kind in dict.fromkeys(kinds)
        for path in finding.part.paths
    ]


def _path(path: reading.Path) -> str:
    return f"payload.{path}"
