"""Batches and single texts that are judged behind their request. Shapes: `detection/schemas.py`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import perf_counter
from typing import Any
from uuid import UUID

import orjson
from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from drf_spectacular.utils import OpenApiParameter
from rest_framework.request import Request

from accounts import idempotency
from accounts.authentication import Caller
from accounts.viewsets import KeyedViewSet
from detection import tasks
from detection.jobs import judging, store
from detection.jobs.judging import Item, Origin
from detection.models import Job
from detection.policies import policy
from detection.schemas import (
    ITEMS_AT_ONCE_MAX,
    AsyncAccepted,
    AsyncRequest,
    AsyncView,
    BatchAccepted,
    BatchItem,
    BatchPage,
    BatchRequest,
    BatchResponse,
    BatchView,
    DetectConfig,
    ResultsQuery,
    Unfit,
)
from detection.views import StoringViewSet
from gateway_project.core import errors
from gateway_project.core.api.endpoint import Answer, asked, endpoint
from gateway_project.core.api.responses import JSON, NDJSON, ndjson, reply, wants
from gateway_project.core.clock import utc_text
from gateway_project.core.context import RequestContext

SCOPE = "batch"
TAGS = ("batches",)
RESPOND_ASYNC = re.compile(r"(?:^|[,;\s])respond-async(?:[,;\s]|$)", re.IGNORECASE)  # RFC 7240


class _Queueing(StoringViewSet):
    """What is stored before it is answered: 202, and each item will be a row of the log."""

    async def queue(self, order: store.Order, items: Sequence[Item]) -> HttpResponse:
        replay = await self.replayed(order.webhook_url or None)
        if replay is not None:
            return replay
        self.context.usage = None

        def make() -> HttpResponse:
            ahead = store.seconds_ahead(len(items), order.workspace_id)
            job, _ = store.create(order, items)
            transaction.on_commit(tasks.take_turns_behind)
            return self.accepted(job, ahead)

        return await self.once(make)

    def order(
        self, kind: Job.Kind, body: BatchRequest | AsyncRequest, job_id: UUID | None = None
    ) -> store.Order:
        context = self.context
        return store.Order(
            kind,
            self.principal.workspace_id,
            self.principal.key_id,
            context.request_id,
            webhook_url=body.webhook_url or "",
            metadata=body.metadata,
            correlation_id=context.correlation_id or "",
            traceparent=context.traceparent or "",
            client_ip=context.client_ip,
            job_id=job_id,
        )

    @staticmethod
    def accepted(job: Job, ahead: int) -> HttpResponse:
        raise NotImplementedError


class BatchViewSet(_Queueing):
    body: BatchRequest
    is_queued: bool

    def prefetch(self) -> None:
        self.day_cost = len(self.body.requests)
        wish = RESPOND_ASYNC.search(self.request.META.get("HTTP_PREFER", ""))
        body = self.body
        self.is_queued = bool(
            wish or body.webhook_url is not None or len(body.requests) > ITEMS_AT_ONCE_MAX
        )
        self._refuse_what_never_fits()

    def _refuse_what_never_fits(self) -> None:
        """A 429 would send the client away to wait for nothing."""
        for limit in self.principal.policies:
            if limit.is_daily and self.day_cost > limit.limit:
                raise errors.BatchOverLimit(
                    f"The batch has {self.day_cost} items, and the limit '{limit.name}' lets "
                    f"{limit.limit} a day through, so it would be refused on any day. Split it "
                    f"into batches of at most {limit.limit} and spread them over days, or ask for "
                    "a higher limit."
                )

    @endpoint(
        operation="detectBatch",
        summary="Are these texts attacks?",
        description=(
            "1 to 1,000 texts. Up to 100 are answered at once; more, or with `webhook_url` or "
            "`Prefer: respond-async`, are accepted (202) and worked on behind the request: "
            "`Location` says where progress and results are. An item that is not valid, or that "
            "gets no verdict, fails alone. Equal texts are judged once. A batch of n items "
            "costs 1 of the minute and n of the day; when n do not fit, nothing is taken (429)."
        ),
        tags=TAGS,
        body=BatchRequest,
        answer=BatchResponse,
        more_answers={
            202: Answer.of(BatchAccepted, headers=("Location", "Preference-Applied")),
        },
        scope=SCOPE,
        day_cost=1,
        problems=[errors.QuotaExceeded, errors.BatchOverLimit, *idempotency.PROBLEMS],
        parameters=[
            OpenApiParameter(
                "Prefer", str, OpenApiParameter.HEADER, description="`respond-async`: answer 202."
            ),
            idempotency.HEADER,
        ],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        body = self.body
        items = [_item(one, body.config) for one in body.requests]
        if self.is_queued:
            return await self.queue(self.order(Job.Kind.BATCH, body), items)
        budget = body.config.timeout_seconds or settings.DETECTION_ENGINE_TIMEOUT_SECONDS
        judged = await judging.judge(
            items,
            origin_of(self.principal, self.context),
            deadline_seconds=budget,
        )
        judging.log(judged, self.context)
        counts = judging.counts_of(judged)
        answer = {
            "batch_id": self.context.request_id,
            "status": store.status_of(counts.succeeded, counts.failed),
            "results": [orjson.Fragment(one.line) for one in judged],
            "successful_count": counts.succeeded,
            "failed_count": counts.failed,
            "flagged_count": counts.flagged,
            "total_processing_time_ms": round((perf_counter() - self.context.started) * 1000),
        }
        return reply(answer if body.metadata is None else {**answer, "metadata": body.metadata})

    @staticmethod
    def accepted(job: Job, ahead: int) -> HttpResponse:
        url = store.status_url(job)
        answer = BatchAccepted(
            batch_id=job.pk, total=job.total, status_url=url, estimated_completion_seconds=ahead
        )
        headers = {"Location": url, "Preference-Applied": "respond-async"}
        return reply(answer, status=202, headers=headers)


def origin_of(caller: Caller, context: RequestContext) -> Origin:
    return Origin(
        caller.key_id,
        caller.workspace_id,
        context.route,
        policy.in_force(caller.detection_policy),
        caller.wants_detections,
        context.client_ip,
        context.correlation_id,
        context.traceparent,
        context.user_agent,
        context.request_id,
    )


class AsyncViewSet(_Queueing):
    body: AsyncRequest

    def prefetch(self) -> None:
        if self.body.webhook_url is None and not self.principal.wants_detections:
            message = (
                "is needed, because no webhook of this workspace asks for detection.* events; "
                "POST /webhooks/register makes one"
            )
            raise errors.ValidationFailed(errors=[{"field": "webhook_url", "message": message}])

    @endpoint(
        operation="detectAsync",
        summary="Judge this text later",
        description=(
            "Accepts one text (202) and sends the outcome to `webhook_url`, and to the webhooks "
            "that ask for `detection.*` events; `Location` has it too. Costs one of the minute "
            "and one of the day."
        ),
        tags=TAGS,
        body=AsyncRequest,
        answer=AsyncAccepted,
        status=202,
        headers=["Location"],
        scope=SCOPE,
        day_cost=1,
        problems=[errors.QuotaExceeded, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    async def create(self, request: HttpRequest) -> HttpResponse:
        body, request_id = self.body, self.context.request_uuid
        item = Item.of(
            self.context.request_id, body.text, body.config, body.metadata, request_id=request_id
        )
        return await self.queue(self.order(Job.Kind.ASYNC, body, request_id), [item])

    @staticmethod
    def accepted(job: Job, ahead: int) -> HttpResponse:
        url = store.status_url(job)
        answer = AsyncAccepted(
            request_id=job.pk,
            estimated_completion_seconds=ahead,
            webhook_url=job.webhook_url or None,
            status_url=url,
        )
        return reply(answer, status=202, headers={"Location": url})


class JobViewSet(KeyedViewSet):
    """Jobs of the workspace; another's is as missing as one that never was."""

    def own(self, kind: Job.Kind, job_id: UUID) -> Job:
        job = store.of_workspace(self.principal.workspace_id).filter(kind=kind, pk=job_id).first()
        if job is None:
            raise errors.NotFound(
                "This workspace has no such job. Results are kept for "
                f"{settings.JOB_RETENTION_DAYS} days; a batch that was answered at once is not "
                "kept at all: send it with `Prefer: respond-async` to have it kept."
            )
        return job

    @endpoint(
        operation="getBatch",
        summary="Progress and results of a batch",
        description=(
            "Pages of results by `next`, up to the first unfinished item. With `Accept: "
            "application/x-ndjson` all finished ones, a line of JSON for each. Each call costs 1 "
            "of the minute."
        ),
        tags=TAGS,
        answer=BatchPage,
        media_types={NDJSON: str},
        scope=SCOPE,
        query=ResultsQuery,
        problems=[errors.NotFound],
    )
    def batch(self, request: Request, id: UUID) -> HttpResponse | StreamingHttpResponse:  # noqa: A002
        job = self.own(Job.Kind.BATCH, id)
        if 0 < wants(request, NDJSON) >= wants(request, JSON):
            return ndjson(store.all_results(job))
        query = asked(request._request, ResultsQuery)
        lines, following = store.results(job, query.cursor, query.limit)
        address = None
        if following is not None:
            rest = f"?limit={query.limit}&cursor={following}"
            address = request.build_absolute_uri(f"{request.path}{rest}")
        results = [orjson.Fragment(line) for line in lines]
        return reply({**_shown(job), "results": results, "next": address})

    @endpoint(
        operation="cancelBatch",
        summary="Cancel a batch",
        description=(
            "Within a second no more of it is judged. What is judged can still be read; the other "
            "texts are erased. 409 when it is finished. Costs nothing."
        ),
        tags=TAGS,
        answer=BatchView,
        scope=SCOPE,
        minute_cost=0,  # stopping what costs must never wait for a limit
        problems=[errors.NotFound, errors.Conflict, *idempotency.PROBLEMS],
        parameters=[idempotency.HEADER],
    )
    def cancel(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        def cancel() -> HttpResponse:
            return reply(_shown(store.cancel(self.own(Job.Kind.BATCH, id), actor=self.actor)))

        return self.once(cancel)

    @endpoint(
        operation="getAsyncResult",
        summary="Outcome of a text that was judged later",
        tags=TAGS,
        answer=AsyncView,
        scope=SCOPE,
        problems=[errors.NotFound],
    )
    def single(self, request: Request, id: UUID) -> HttpResponse:  # noqa: A002
        job = self.own(Job.Kind.ASYNC, id)
        lines, _ = store.results(job, 0, 1)
        outcome = orjson.loads(lines[0]) if lines else {"result": None, "error": None}
        shown = _shown(job)
        known = {name: shown[name] for name in AsyncView.model_fields if name in shown}
        found = {"result": outcome["result"], "error": outcome["error"]}
        return reply({"request_id": str(job.pk), **known, **found})


def _item(asked: BatchItem | Unfit, config: DetectConfig) -> Item:
    if isinstance(asked, Unfit):
        return judging.refused(asked.id, errors.from_pydantic(asked.error, BatchItem))
    own = asked.config
    if own is not None:
        config = config.model_copy(
            update={name: getattr(own, name) for name in own.model_fields_set}
        )
    return Item.of(asked.id, asked.text, config, asked.metadata)


def _shown(job: Job) -> dict[str, Any]:
    def time(at: Any) -> str | None:
        return utc_text(at) if at is not None else None

    return {
        "batch_id": str(job.pk),
        "status": job.status,
        "total": job.total,
        "successful_count": job.succeeded,
        "failed_count": job.failed,
        "flagged_count": job.flagged,
        "created_at": time(job.created_at),
        "started_at": time(job.started_at),
        "finished_at": time(job.finished_at),
        "expires_at": time(job.expires_at),
        "webhook_url": job.webhook_url or None,
        "metadata": job.metadata,
        "status_url": store.status_url(job),
    }
