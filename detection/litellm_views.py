"""`POST /beta/litellm_basic_guardrail_api`: this gateway as a guardrail of a LiteLLM proxy.

The contract is LiteLLM's "generic guardrail API" (docs.litellm.ai, adding a guardrail): texts in,
an action out. It grows without notice, so what we do not know is ignored here, and nowhere else.
"""

from __future__ import annotations

from typing import Annotated, Literal

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from accounts.authentication import Caller
from detection.jobs import judging
from detection.jobs.judging import Item, Judged
from detection.jobs.views import origin_of
from detection.models import TEXT_CHARS_MAX
from detection.schemas import ITEMS_AT_ONCE_MAX, DetectConfig, is_text
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Asked, endpoint
from gateway_project.core.api.responses import reply
from gateway_project.core.api.viewsets import DataPlaneViewSet

# An empty text is what LiteLLM sends for a message without words.
Text = Annotated[str, StringConstraints(max_length=TEXT_CHARS_MAX), AfterValidator(is_text)]


class GuardrailRequest(Asked):
    model_config = ConfigDict(extra="ignore", strict=True)

    texts: Annotated[list[Text], Field(max_length=ITEMS_AT_ONCE_MAX)]
    input_type: Literal["request", "response"] = "request"


class GuardrailResponse(BaseModel):
    action: Literal["BLOCKED", "NONE"]
    blocked_reason: str | None = Field(None, description="Threat types, and never a text.")


class GuardrailViewSet(DataPlaneViewSet):
    body: GuardrailRequest
    principal: Caller
    day_cost_min = 0

    def prefetch(self) -> None:
        self.texts = [text for text in self.body.texts if text]
        self.day_cost = len(self.texts)

    @endpoint(
        operation="guardLiteLLM",
        summary="Guardrail of a LiteLLM proxy",
        description=(
            "Blocks when a text is flagged and the key's policy enforces. Fields that are not "
            "listed are ignored. Costs 1 of the minute and 1 of the day for each text. When no "
            "verdict can be given and the policy fails closed, it answers 503 or 504: LiteLLM then "
            "does what it is configured to do without its guardrail."
        ),
        tags=["detection"],
        body=GuardrailRequest,
        answer=GuardrailResponse,
        scope="detect",
        day_cost=1,
        problems=[errors.QuotaExceeded, errors.DetectionUnavailable, errors.DetectionTimeout],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        kind = "user_input" if self.body.input_type == "request" else "model_output"
        config = DetectConfig(content_type=kind)  # type: ignore[arg-type]
        items = [Item.of(str(number), text, config) for number, text in enumerate(self.texts)]
        judged = await judging.judge(
            items,
            origin_of(self.principal, self.context),
            deadline_seconds=settings.DETECTION_ENGINE_TIMEOUT_SECONDS,
        )
        judging.log(judged, self.context)
        return reply(_action(judged), exclude_none=True)


def _action(judged: list[Judged]) -> GuardrailResponse:
    """The worst of them. Raises what kept any of them from a verdict, unless another blocks."""
    flagged = [one.verdict for one in judged if one.verdict is not None and one.is_flagged]
    if flagged:
        worst = max(flagged, key=lambda verdict: verdict.confidence)
        kinds = ", ".join(worst.threat_types) or "a text on this key's deny list"
        return GuardrailResponse(action="BLOCKED", blocked_reason=f"Prompt injection: {kinds}")
    for one in judged:
        if one.error is not None:
            known = errors.registered().get(one.error["code"], errors.DetectionTimeout)
            raise known(one.error["message"], headers={"Retry-After": "5"})
    return GuardrailResponse(action="NONE")
