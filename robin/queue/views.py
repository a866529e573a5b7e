"""Robin's queue under `/api/v1/queue`."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from robin.access.authentication import TOKEN
from robin.permissions import Permission
from robin.queue import services
from robin.queue.schemas import (
    QueueActionRequest,
    QueueDoneView,
    QueueItemView,
    QueueMatchedView,
    QueueQuery,
    QueueTotalsView,
    QueueView,
)
from robin.upstream.viewset import UPSTREAM, RobinViewSet, endpoint, invalid

UIDS_AUDITED_MAX = 50
QUEUE = ("robin queue",)
NOT_HELD = (
    "Robin cannot pause an item of its queue, so none is paused. Retry it, bounce it or delete it."
)


class QueueViewSet(RobinViewSet):
    @endpoint(
        operation={
            "/api/v1/queue": "listQueue",
            "/api/v1/queue/json": "listQueueJson",
        },
        summary="A page of the queue",
        description="Without `state`: what waits (`READY,CLAIMED`). A search reads all of it.",
        tags=QUEUE,
        answer=QueueView,
        scope=Permission.VIEW_QUEUE,
        problems=[*UPSTREAM, errors.Conflict],
        query=QueueQuery,
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, QueueQuery)
        found = await services.page(query.filter(), number=query.page, size=query.size)
        return reply(
            {
                "items": found.items,
                "totalCount": found.total,
                "pageSize": query.size,
                "pageNumber": query.page,
            }
        )

    @endpoint(
        operation="getQueueStats",
        summary="How many items are in which state",
        tags=QUEUE,
        answer=QueueTotalsView,
        scope=Permission.VIEW_QUEUE,
        problems=UPSTREAM,
    )
    async def stats(self, request: HttpRequest) -> HttpResponse:
        return reply(await services.totals())

    @endpoint(
        operation="getQueueItem",
        summary="One item",
        tags=QUEUE,
        answer=QueueItemView,
        scope=Permission.VIEW_QUEUE,
        problems=[*UPSTREAM, errors.NotFound, errors.Conflict],
    )
    async def item(self, request: HttpRequest, uid: str) -> HttpResponse:
        return reply(await services.find(uid))

    @endpoint(
        operation="retryQueueItem",
        summary="Try to deliver an item now",
        description="Also one that is dead. It uses up one of the item's retries.",
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.MANAGE_QUEUE,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def retry(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one("retry", uid)

    @endpoint(
        operation="bounceQueueItem",
        summary="Give an item up",
        description="It becomes dead. No mail tells the sender.",
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.MANAGE_QUEUE,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def bounce(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one("bounce", uid)

    @endpoint(
        operation="deleteQueueItem",
        summary="Delete an item",
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.DELETE_QUEUE_ITEMS,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def destroy(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one("delete", uid)

    async def _act_on_one(self, action: services.Action, uid: str) -> HttpResponse:
        await services.act_on_one(action, uid)
        await self.audit(f"robin.queue.{action}", target=uid)
        return reply(QueueDoneView(done=1, requested=1))

    @endpoint(
        operation="actOnQueue",
        summary="Retry, delete or bounce many",
        description=(
            "By `uids`, or by a `filter`. A filter first answers `{matched, confirm}` and does "
            "nothing; sent again with `confirm` it acts on exactly what it matched then."
        ),
        tags=QUEUE,
        body=QueueActionRequest,
        answer=QueueDoneView | QueueMatchedView,
        scope=Permission.MANAGE_QUEUE,
        problems=[*UPSTREAM, errors.NotFound, errors.Conflict],
    )
    async def actions(self, request: HttpRequest) -> HttpResponse:
        body: QueueActionRequest = self.body
        self._check_delete(body.action)
        if (body.uids is None) == (body.filter is None):
            raise invalid("", "send uids or a filter, one of them")
        if body.uids is not None:
            uids, details = services.unique(body.uids), {}
        else:
            assert body.filter is not None  # noqa: S101
            which = body.filter.filter()
            if which == services.Filter():
                raise invalid("filter", "must not be empty: that would be the whole queue")
            me = str(self.principal.user_id)
            if body.confirm is None:
                matched, token = await services.propose(body.action, which, by=me)
                return reply({"matched": matched, "confirm": token})
            uids = await services.confirm(body.action, which, body.confirm, by=me)
            details = {"filter": body.filter.model_dump(exclude_defaults=True)}
        done = await services.act(body.action, uids)
        await self.audit(
            f"robin.queue.{body.action}",
            target=f"{done} items",
            requested=len(uids),
            uids=uids[:UIDS_AUDITED_MAX],
            **details,
        )
        return reply(QueueDoneView(done=done, requested=len(uids)))

    def _check_delete(self, action: services.Action) -> None:
        if action == "delete" and Permission.DELETE_QUEUE_ITEMS not in self.principal.scopes:
            raise TOKEN.denied(TOKEN.denied_detail.format(Permission.DELETE_QUEUE_ITEMS))

    @endpoint(
        operation={
            "/api/v1/queue/pause": "pauseQueue",
            "/api/v1/queue/resume": "resumeQueue",
        },
        summary="Pause or resume: not possible",
        description="Robin has no way to hold its queue. Always 501, never 200.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible],
    )
    async def hold(self, request: HttpRequest) -> HttpResponse:
        raise errors.NotPossible(
            "Robin cannot pause its queue or resume it. Retry, bounce or delete items."
        )

    @endpoint(
        operation="pauseQueueItem",
        summary="Pause an item: not possible",
        description="Robin has no way to hold an item. Always 501, never 200.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible, errors.NotFound],
    )
    async def pause_item(self, request: HttpRequest, uid: str) -> HttpResponse:
        services.checked_uid(uid)
        raise errors.NotPossible(NOT_HELD)

    @endpoint(
        operation="resumeQueueItem",
        summary="Resume an item: not possible",
        description="Robin has no way to hold an item. Always 501, never 200.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible, errors.NotFound],
    )
    async def resume_item(self, request: HttpRequest, uid: str) -> HttpResponse:
        services.checked_uid(uid)
        raise errors.NotPossible(NOT_HELD)
