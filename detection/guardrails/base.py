"""What the doors for other gateways share: a chat is judged as they send it, whatever its size.

As with LiteLLM, whatever a chat can bring about by itself, such as its size, is a verdict, so that
nobody passes unseen where the caller's operator lets errors pass; and whatever keeps us from a
verdict is an error, about which that operator decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, NamedTuple

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from pydantic import ConfigDict, field_validator

from accounts import idempotency
from accounts.viewsets import OnceViewSet
from detection.guardrails.pieces import Piece, items_of, logged, reason_of, units
from detection.guardrails.reading import Chat, Path
from detection.jobs import judging
from detection.jobs.judging import Item, Judged
from detection.jobs.views import origin_of
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Asked

TOO_LARGE = "Too large to be looked at."
PROBLEMS = (errors.DetectionUnavailable, errors.DetectionTimeout, *idempotency.PROBLEMS)
PARAMETERS = (idempotency.HEADER,)
DESCRIPTION = (
    "Texts of any length and number are judged in portions of 10,000 characters, each as what it "
    "is: what the user says, documents, what tools return, definitions and calls of tools, "
    "answers of the model. Instructions (`system`, `developer`) and pictures are not judged. A "
    "chat of more than `GUARDRAIL_BYTES_MAX` is refused as an attack is. Costs 1 of the minute, "
    "and 1 of the day for each portion. Fields that are not listed are ignored, or read as parts "
    "of the chat."
)


class GuardrailBody(Asked):
    """Somebody else's contract, which grows without notice. Nothing of it is stored as it is."""

    model_config = ConfigDict(extra="ignore", strict=True)

    @field_validator("*")
    @classmethod
    def _is_storable(cls, value: Any) -> Any:
        return value


class Part(NamedTuple):
    """A text, all its places, and what of it is asked."""

    piece: Piece
    paths: Sequence[Path]
    items: list[Item]

    @property
    def units(self) -> int:
        return units(len(self.piece.text))


class Finding(NamedTuple):
    """What one portion of a text was found to be."""

    part: Part
    judged: Judged

    @property
    def confidence(self) -> float:
        return self.judged.verdict.confidence if self.judged.verdict is not None else 0.0

    @property
    def request_id(self) -> str:
        """Of its row in the log."""
        return self.judged.verdict.request_id if self.judged.verdict is not None else ""

    @property
    def reason(self) -> str:
        return reason_of(self.part.piece, self.judged)


class Outcome(NamedTuple):
    """Of a chat. The surest first."""

    flagged: list[Finding]
    would_flag: list[Finding]
    """That the key's policy only monitors."""
    unjudged: list[Finding]
    """Failed, or passed without a verdict, because the policy fails open."""
    chat: Chat

    def worst(self) -> Finding | None:
        """The surest that is flagged; None: nothing is. Then it raises what kept a text from its
        verdict."""
        if self.flagged:
            return self.flagged[0]
        self._raise_for_errors()
        return None

    def _raise_for_errors(self) -> None:
        for finding in self.unjudged:
            error = finding.judged.error
            if error is not None:
                known = errors.registered().get(error["code"], errors.DetectionTimeout)
                raise known(error["message"], headers={"Retry-After": "5"})


class ChatGuardrailViewSet(OnceViewSet):
    """`chat` reads the body, and `answered` says what came of it in the caller's words."""

    day_cost_min = 0
    parts: list[Part]

    def chat(self) -> Chat:
        raise NotImplementedError

    def answered(self, outcome: Outcome) -> HttpResponse:
        raise NotImplementedError

    def refused_for_size(self, reason: str) -> HttpResponse:
        raise NotImplementedError

    def read(self, request: HttpRequest, model: type[Asked]) -> Any:
        refusal: errors.GatewayError | None = getattr(request, "refusal", None)
        if refusal is not None:
            raise refusal
        return super().read(request, model)

    def prefetch(self) -> None:
        self.read_chat = self.chat()
        self.parts = [
            Part(piece, paths, items_of(piece)) for piece, paths in self.read_chat.texts.items()
        ]
        self.day_cost = sum(part.units for part in self.parts)

    async def judge(self) -> HttpResponse:
        judged = await judging.judge(
            [item for part in self.parts for item in part.items],
            origin_of(self.principal, self.context),
            deadline_seconds=settings.DETECTION_ENGINE_TIMEOUT_SECONDS,
        )
        rest = iter(judged)
        by_part = [(part, [next(rest) for _ in part.items]) for part in self.parts]
        rows = (one for part, found in by_part for one in logged(part.units, found))
        judging.log(rows, self.context)
        findings = [Finding(part, one) for part, found in by_part for one in found]
        findings.sort(key=lambda finding: finding.confidence, reverse=True)
        return self.answered(
            Outcome(
                [one for one in findings if one.judged.is_flagged],
                [one for one in findings if one.judged.verdict and one.judged.verdict.would_flag],
                [one for one in findings if _is_unjudged(one.judged)],
                self.read_chat,
            )
        )

    async def _refuse(self, request: HttpRequest, error: errors.GatewayError) -> HttpResponse:
        if isinstance(error, errors.BodyTooLarge):
            self.context.usage = None
            await asyncio.gather(*self._count_unread())
            answer = self.refused_for_size(f"{TOO_LARGE} {error.detail}")
            answer.headers["Connection"] = "close"
            return answer
        if error.status_code == 429:
            # A body that was read for nothing; what it would have cost is known only now.
            await asyncio.gather(*self._count_unread())
        return await super()._refuse(request, error)


def _is_unjudged(judged: Judged) -> bool:
    return judged.verdict is None or judged.verdict.source == "none"
