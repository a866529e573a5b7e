"""The detection API. Fields: `detection/schemas.py`; life of a request: `docs/request-life.md`."""

from __future__ import annotations

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from accounts import idempotency
from accounts.usage.buffer import Record
from accounts.viewsets import OnceViewSet
from detection import callbacks, services
from detection.policies import policy as policies
from detection.policies.effects import say_of_text
from detection.schemas import Detection, DetectRequest, ScoreRequest, Scores
from gateway_project.core import encryption, errors
from gateway_project.core.api.endpoint import endpoint
from gateway_project.core.api.responses import reply
from webhooks.delivery.callbacks import vetted


class StoringViewSet(OnceViewSet):
    """What is stored before it is answered, and remembered there beyond the hour of a verdict."""

    async def replayed(self, webhook_url: str | None) -> HttpResponse | None:
        """What this very request was answered before; then it costs nothing of the day.

        Raises the 422 of an address that we do not send to. It asks a name server and the
        database, and so comes after the limits.
        """
        if webhook_url is not None:
            await vetted(webhook_url)
        return await self._paid_before(await idempotency.aanswered(self.sender))

    async def once(self, effect: Callable[[], HttpResponse]) -> HttpResponse:
        """`effect`'s answer, or the one that was stored for the same request before."""
        answer = await idempotency.aonce(self.sender, effect)
        if idempotency.REPLAYED in answer:
            await self._paid_before(answer)
        return answer

    async def _paid_before(self, replay: HttpResponse | None) -> HttpResponse | None:
        if replay is not None:
            await self.give_back_the_day()
            self.context.usage = None  # it is a row already
        return replay


class DetectViewSet(StoringViewSet):
    body: DetectRequest

    def prefetch(self) -> None:
        # Leaves in one trip with the limiter's script.
        self.policy = policies.in_force(self.principal.detection_policy)
        self.asked = services.start_look_ups(self.body, self.principal.workspace_id, self.policy)

    @endpoint(
        operation="detect",
        summary="Is this text an attack?",
        description=(
            "Asks the detection engine, unless it scored the same text for this workspace in the "
            "last five minutes (`cached`). Of `messages` each untrusted one is judged as what its "
            "role says, and the answer is about the worst. When the engine is away an older score "
            "or the embedded detector answers, and the answer says so (`status: degraded`). With "
            "`webhook_url` the event that tells it there is stored before the answer leaves. Costs "
            "1 of the minute and 1 of the day."
        ),
        tags=["detection"],
        body=DetectRequest,
        answer=Detection,
        scope="detect",
        day_cost=1,
        problems=[
            errors.QuotaExceeded,
            errors.FailOpenForbidden,
            errors.DetectionUnavailable,
            errors.DetectionTimeout,
            *idempotency.PROBLEMS,
        ],
        parameters=[idempotency.HEADER],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        if self.body.webhook_url is not None:
            replay = await self.replayed(self.body.webhook_url)
            if replay is not None:
                return replay
        row = self.context.usage
        if isinstance(row, Record) and self.principal.wants_detections:
            row.extra["metadata"] = self.body.metadata
            row.extra["traceparent"] = self.context.traceparent
        if isinstance(row, Record) and self.policy.store_text:
            row.extra["text"] = encryption.encrypt(self.body.whole_text)
        verdict = await services.detect_all(
            self.body,
            self.context,
            policy=self.policy,
            asked=self.asked,
            api_key_id=self.principal.key_id,
        )
        answer = await self._answer(verdict)
        if isinstance(row, Record):
            if self.principal.wants_detections:
                row.extra["threat_types"] = verdict.threat_types
            row.note(verdict)
            say_of_text(
                row,
                self.body.whole_text,
                self.body.config.content_type,
                is_one=self.body.text is not None,
            )
        return answer

    async def _answer(self, verdict: Detection) -> HttpResponse:
        """With an address to tell, only once that is stored."""
        url = self.body.webhook_url
        if url is None:
            return reply(verdict, exclude_none=True)

        def tell() -> HttpResponse:
            context = self.context  # a thread of the data plane has none of its own
            callbacks.tell(url, verdict, self.principal, context.route, context.traceparent)
            return reply(verdict, exclude_none=True)

        return await self.once(tell)


class ScoreViewSet(OnceViewSet):
    body: ScoreRequest

    def prefetch(self) -> None:
        self.context.usage = None  # for calibrating: no traffic, neither logged nor summed
        self.looked_up = services.start_look_up(
            self.body.text,
            self.body.content_type,
            self.principal.workspace_id,
            policy=policies.in_force(self.principal.detection_policy),
        )

    @endpoint(
        operation="score",
        summary="How sure is the detector?",
        description=(
            "Scores by category without threshold, policy or decision, for choosing a threshold. "
            "Costs 1 of the minute and nothing of the day, and is no row of the log."
        ),
        tags=["detection"],
        body=ScoreRequest,
        answer=Scores,
        scope="detect",
        problems=idempotency.PROBLEMS,
        parameters=[idempotency.HEADER],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        found = await services.score(self.body, self.context, looked_up=self.looked_up)
        return reply(found, exclude_none=True)
