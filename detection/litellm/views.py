"""`POST /beta/litellm_basic_guardrail_api`: what LiteLLM's `generic_guardrail_api` asks.

The contract is read from LiteLLM's own source and from recordings of its proxy
(`detection/tests/litellm_requests/`). It grows without notice, so what we do not know is ignored
here, and nowhere else. LiteLLM reads three things of an answer: `action`, `blocked_reason`, and
whether the status is 502, 503 or 504, for which its operator may have chosen to fail open. So
whatever keeps us from a verdict is 503 or 504 here, and whatever a chat can bring about by itself,
such as its size, is a verdict.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from pydantic import BaseModel, ConfigDict, Field, field_validator

from accounts import idempotency
from accounts.viewsets import OnceViewSet
from detection.guardrails.pieces import Piece, items_of, logged, reason_of, units
from detection.jobs import judging
from detection.jobs.judging import Item, Judged
from detection.jobs.views import origin_of
from detection.litellm import reading
from detection.litellm.calls import Call, Known
from detection.policies import policy
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Asked, endpoint
from gateway_project.core.api.responses import reply


class GuardrailRequest(Asked):
    model_config = ConfigDict(extra="ignore", strict=True)

    texts: list[str] | None = Field(None, description="Any number, of any length.")
    input_type: Literal["request", "response"] = "request"
    structured_messages: list[Any] | None = Field(None, description="Who says each text.")
    tools: list[Any] | None = Field(None, description="Definitions.")
    tool_calls: list[Any] | None = None
    images: list[Any] | None = Field(None, description="Counted, and not looked at.")
    litellm_call_id: str | None = Field(
        None, description="What was judged under it already costs nothing more."
    )

    @field_validator("*")
    @classmethod
    def _is_storable(cls, value: Any) -> Any:
        return value  # nothing of it is stored as it is


class Skipped(BaseModel):
    images: int | None = None
    instructions: int | None = Field(None, description="Texts of the roles system and developer.")


class GuardrailResponse(BaseModel):
    action: Literal["BLOCKED", "NONE"]
    blocked_reason: str | None = Field(
        None, description="Where, and threat types; never a text of the chat."
    )
    skipped: Skipped | None = Field(None, description="How many were not judged.")


class _Part(NamedTuple):
    """A text, what of it was judged before, and what is left of it."""

    piece: Piece
    known: Known
    items: list[Item]

    @property
    def units(self) -> int:
        return units(len(self.piece.text)) - units(self.known.chars)


class GuardrailViewSet(OnceViewSet):
    body: GuardrailRequest
    minute_cost_min = day_cost_min = 0

    def read(self, request: HttpRequest, model: type[Asked]) -> Any:
        refusal: errors.GatewayError | None = getattr(request, "refusal", None)
        if refusal is not None:
            raise refusal
        return super().read(request, model)

    async def prefetch(self) -> None:
        body = self.body
        call_id = body.litellm_call_id
        self.call = None
        if call_id:
            ref = policy.in_force(self.principal.detection_policy).ref()
            self.call = Call(
                self.principal.key_id, f"{ref.id} {ref.version}", body.input_type, call_id
            )
            await self.call.recall()
        self.parts = [self._part(piece) for piece in dict.fromkeys(_pieces(body))]
        self.day_cost = sum(part.units for part in self.parts)
        if self.call is not None:
            self.minute_cost = self.call.minute_cost(part.known for part in self.parts)

    def _part(self, piece: Piece) -> _Part:
        known = Known(0, "") if self.call is None else self.call.known_of(piece)
        if known.blocked is not None or known.chars == len(piece.text):
            return _Part(piece, known, [])
        return _Part(piece, known, items_of(piece, known.chars))

    @endpoint(
        operation="guardLiteLLM",
        summary="Guardrail of a LiteLLM proxy",
        description=(
            "For LiteLLM's `generic_guardrail_api`. Blocks when a text, a tool's definition or a "
            "tool call is flagged and the key's policy enforces. Texts of any length and number "
            "are judged in portions of 10,000 characters. Fields that are not listed are ignored. "
            "Costs 1 of the minute, and 1 of the day for each portion; what was judged under the "
            "same `litellm_call_id` costs nothing again. When no verdict can be given, limits "
            "included, it answers 503 or 504: LiteLLM then does what its `unreachable_fallback` "
            "says."
        ),
        tags=["detection"],
        body=GuardrailRequest,
        answer=GuardrailResponse,
        scope="detect",
        day_cost=1,
        problems=[
            errors.GuardrailUnavailable,
            errors.DetectionUnavailable,
            errors.DetectionTimeout,
            *idempotency.PROBLEMS,
        ],
        parameters=[idempotency.HEADER],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        items = [item for part in self.parts for item in part.items]
        judged = await judging.judge(
            items,
            origin_of(self.principal, self.context),
            deadline_seconds=settings.DETECTION_ENGINE_TIMEOUT_SECONDS,
        )
        rest = iter(judged)
        by_part = [(part, [next(rest) for _ in part.items]) for part in self.parts]
        rows = (one for part, found in by_part for one in logged(part.units, found))
        judging.log(rows, self.context)
        if self.call is not None:
            _remember(self.call, by_part)
        return reply(self._action(by_part), exclude_none=True)

    def _action(self, by_part: list[tuple[_Part, list[Judged]]]) -> GuardrailResponse:
        """The worst of them. Raises what kept any of them from a verdict, unless another blocks."""
        reasons = [
            (one.verdict.confidence, reason_of(part.piece, one))
            for part, found in by_part
            for one in found
            if one.is_flagged and one.verdict is not None
        ]
        reasons += [(1.0, part.known.blocked) for part, _ in by_part if part.known.blocked]
        if reasons:
            return self._answer("BLOCKED", max(reasons)[1])
        for _, found in by_part:
            for one in found:
                if one.error is not None:
                    known = errors.registered().get(one.error["code"], errors.DetectionTimeout)
                    raise known(one.error["message"], headers={"Retry-After": "5"})
        return self._answer("NONE")

    def _answer(
        self, action: Literal["BLOCKED", "NONE"], reason: str | None = None
    ) -> GuardrailResponse:
        body = self.body
        images = len(body.images or ())
        instructions = 0
        if body.input_type == "request":
            rows = body.structured_messages or ()
            instructions = reading.instructions_in(body.texts or (), rows)
        skipped = None
        if images or instructions:
            skipped = Skipped(images=images or None, instructions=instructions or None)
        return GuardrailResponse(action=action, blocked_reason=reason, skipped=skipped)

    async def _refuse(self, request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
        if isinstance(error, errors.BodyTooLarge):
            # Whoever writes a chat must not be able to have it pass unseen by its size.
            reason = f"Too large to be looked at. {error.detail}"
            headers = {"Connection": "close"}
            self.context.usage = None
            await asyncio.gather(*self._count_unread())
            return reply(
                GuardrailResponse(action="BLOCKED", blocked_reason=reason),
                exclude_none=True,
                headers=headers,
            )
        if error.status_code == 429:
            # A body that was read for nothing; what it would have cost is known only now.
            await asyncio.gather(*self._count_unread())
        if error.status_code in (408, 429) or isinstance(error, errors.InternalError):
            headers = {"Retry-After": "5", **error.headers}
            error = errors.GuardrailUnavailable(str(error.detail), headers=headers)
        return await super()._refuse(request, error)


def _pieces(body: GuardrailRequest) -> Iterable[Piece]:
    rows = body.structured_messages or ()
    yield from reading.of_texts(body.texts or (), rows, is_answer=body.input_type == "response")
    yield from reading.of_tools(body.tools or ())
    yield from reading.of_calls(body.tool_calls or ())


def _remember(call: Call, by_part: list[tuple[_Part, list[Judged]]]) -> None:
    for part, found in by_part:
        flagged = next((one for one in found if one.is_flagged), None)
        if flagged is not None:
            call.note(part.piece, blocked=reason_of(part.piece, flagged))
        elif part.known.blocked is None and all(map(_is_judged, found)):
            call.note(part.piece)
    call.keep()


def _is_judged(one: Judged) -> bool:
    return one.verdict is not None and one.verdict.source != "none"
