"""Robin's queue under `/api/v1/queue`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.http import HttpRequest, HttpResponse

from gateway_project.core import clock, errors
from gateway_project.core.api.endpoint import Answer, asked
from gateway_project.core.api.responses import reply
from gateway_project.core.clock import utc_text
from gateway_project.core.stores import database
from robin.access.authentication import TOKEN
from robin.access.repeats import changing
from robin.permissions import Permission
from robin.queue import jobs, services
from robin.queue.schemas import (
    ActQuery,
    QueueActionRequest,
    QueueDoneView,
    QueueItemView,
    QueueJobView,
    QueueMatchedView,
    QueueQuery,
    QueueTotalsView,
    QueueView,
)
from robin.queue.services import Done
from robin.upstream.viewset import UPSTREAM, RobinViewSet, endpoint, invalid

QUEUE = ("robin queue",)
ACTING = [*UPSTREAM, errors.NotFound, errors.Conflict]
NOT_HELD = (
    "Robin cannot pause an item of its queue, so none is paused. Retry it, bounce it or delete it."
)


class QueueViewSet(RobinViewSet):
    @endpoint(
        operation="listQueue",
        summary="A page of the queue",
        description=(
            "Without `state`: what waits (`READY,CLAIMED`). From what was read last, of `asOf`; "
            "Robin is asked anew only as often as leaves its mail alone. Of a long queue not all "
            "may be known yet: then `complete` is false. Robin's list shows five recipients of an "
            "item, so a search finds no others."
        ),
        tags=QUEUE,
        answer=QueueView,
        scope=Permission.VIEW_QUEUE,
        problems=UPSTREAM,
        query=QueueQuery,
        headers=["Age"],
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        return await self._page(asked(request, QueueQuery), services.WAITING)

    @endpoint(
        operation="listQueueJson",
        summary="A page of the queue, with the dead",
        description="As `/api/v1/queue`, but without `state` all items are shown. Robin UI's.",
        tags=QUEUE,
        answer=QueueView,
        scope=Permission.VIEW_QUEUE,
        problems=UPSTREAM,
        query=QueueQuery,
        headers=["Age"],
    )
    async def list_all(self, request: HttpRequest) -> HttpResponse:
        return await self._page(asked(request, QueueQuery), services.ALL)

    async def _page(self, query: QueueQuery, default: services.Filter) -> HttpResponse:
        which = query.filter()
        which = which if which.states else replace(which, states=default.states)
        found = await services.page(which, number=query.page, size=query.size)
        age = max(0, round(clock.time() - found.as_of))
        return reply(
            {
                "items": found.items,
                "totalCount": found.total,
                "pageSize": query.size,
                "pageNumber": query.page,
                "asOf": utc_text(datetime.fromtimestamp(found.as_of, UTC)),
                "complete": found.is_complete,
                "knownCount": found.known,
            },
            headers={"Age": str(age)},
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

    @changing(
        operation="retryQueueItem",
        summary="Try to deliver an item now",
        description=(
            "Also one that is dead. It uses up one of the item's tries; one that has none left is "
            "dead at once when this one fails, and `warnings` says so. What is being delivered is "
            "409, unless `force=true`: it would go out twice."
        ),
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.MANAGE_QUEUE,
        problems=ACTING,
        query=ActQuery,
    )
    async def retry(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one(request, "retry", uid)

    @changing(
        operation="bounceQueueItem",
        summary="Give an item up",
        description=(
            "It becomes dead. No mail tells the sender. What is being delivered is 409, unless "
            "`force=true`: it may go out all the same."
        ),
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.MANAGE_QUEUE,
        problems=ACTING,
        query=ActQuery,
    )
    async def bounce(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one(request, "bounce", uid)

    @changing(
        operation="deleteQueueItem",
        summary="Delete an item",
        description=(
            "What is being delivered is 409, unless `force=true`: it may go out all the same."
        ),
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.DELETE_QUEUE_ITEMS,
        problems=ACTING,
        query=ActQuery,
    )
    async def destroy(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one(request, "delete", uid)

    async def _act_on_one(
        self, request: HttpRequest, action: services.Action, uid: str
    ) -> HttpResponse:
        is_forced = asked(request, ActQuery).force
        self._check_force(is_forced)
        (uid,) = services.unique([uid])
        async with self._noted(action, uid, requested=1, forced=is_forced) as result:
            found = await services.act_on_one(action, uid, is_forced=is_forced)
            result(found)
        return _done(action, found)

    @changing(
        operation="actOnQueue",
        summary="Retry, delete or bounce many",
        description=(
            "By `uids`, or by a `filter`. A filter first answers `{matched, confirm}` and does "
            "nothing; sent again with `confirm` it acts on exactly what it matched then. More than "
            "25 are done behind: then the answer is 202, and `Location` says how far it is; so "
            "does `/ws/queue`. What is being delivered is left out, unless `force` is true. A "
            "problem that Robin made says how many are `done`, and of how many nobody knows."
        ),
        tags=QUEUE,
        body=QueueActionRequest,
        answer=QueueDoneView | QueueMatchedView,
        more_answers={202: Answer.of(QueueJobView, headers=("Location",))},
        scope=Permission.MANAGE_QUEUE,
        problems=ACTING,
    )
    async def actions(self, request: HttpRequest) -> HttpResponse:
        body: QueueActionRequest = self.body
        self._check_delete(body.action)
        self._check_force(body.force)
        if (body.uids is None) == (body.filter is None):
            raise invalid("", "send uids or a filter, one of them")
        details: dict[str, Any] = {"forced": body.force}
        if body.uids is not None:
            uids = services.unique(body.uids)
        else:
            assert body.filter is not None  # noqa: S101
            which = body.filter.filter()
            if which == services.Filter():
                raise invalid("filter", "must not be empty: that would be the whole queue")
            me = str(self.principal.user_id)
            if body.confirm is None:
                found = await services.propose(body.action, which, by=me)
                return reply(
                    QueueMatchedView(
                        matched=found.matched,
                        confirm=found.confirm,
                        claimed=found.claimed,
                        lastTry=found.last_try,
                        complete=found.is_complete,
                    )
                )
            uids = await services.confirm(body.action, which, body.confirm, by=me)
            details["filter"] = body.filter.model_dump(exclude_defaults=True)
        details |= {"requested": len(uids), "uids": uids[: services.UIDS_AUDITED_MAX]}
        if len(uids) > services.AT_ONCE_MAX:
            with services.counting(len(uids)):
                job = await database.run(
                    jobs.begin,
                    body.action,
                    uids,
                    by=self.principal.user_id,
                    is_forced=body.force,
                    trail=self._who(),
                    details=details,
                    last_try=await services.last_tries(body.action, uids),
                )
            headers = {"Location": f"/api/v1/queue/actions/{job.pk}"}
            return reply(jobs.shown(job), status=202, headers=headers)
        async with self._noted(body.action, f"{len(uids)} items", **details) as result:
            done = await services.act(body.action, uids, is_forced=body.force)
            result(done)
        return _done(body.action, done)

    @endpoint(
        operation="getQueueAction",
        summary="How far an action on many is",
        tags=QUEUE,
        answer=QueueJobView,
        scope=Permission.VIEW_QUEUE,
        problems=[errors.NotFound],
    )
    async def job(self, request: HttpRequest, job_id: UUID) -> HttpResponse:
        found = await database.read(jobs.find, job_id)
        if found is None:
            raise errors.NotFound(
                "There is no such action. Check its id; it is forgotten after 30 days."
            )
        return reply(jobs.shown(found))

    @changing(
        operation="cancelQueueAction",
        summary="Stop an action on many",
        description="What was done stays done; the rest is not begun.",
        tags=QUEUE,
        answer=QueueJobView,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotFound],
    )
    async def cancel(self, request: HttpRequest, job_id: UUID) -> HttpResponse:
        found = await database.run(jobs.cancel, job_id, trail=self._who())
        if found is None:
            raise errors.NotFound(
                "There is no such action. Check its id; it is forgotten after 30 days."
            )
        return reply(jobs.shown(found))

    @asynccontextmanager
    async def _noted(
        self, action: services.Action, target: str, *, requested: int, **details: Any
    ) -> AsyncIterator[Callable[[Done], None]]:
        """Noted before it is done; and behind the answer what became of it, whatever happens."""
        name = f"robin.queue.{action}"
        with services.counting(requested):
            await self.audit_first(name, target=target, requested=requested, **details)
        found: list[Done] = []
        more: dict[str, Any] = {}
        try:
            yield found.append
        except errors.GatewayError as error:
            more = {"error": error.code, **error.more}
            raise
        finally:
            if found:
                more = {"done": found[0].done, "requested": found[0].requested}
                more |= {"unknown": found[0].unknown, "left_out": found[0].left_out}
            self.audit_behind(f"{name}.result", target=target, **more)

    def _check_force(self, is_forced: bool) -> None:
        """What may send a mail twice takes the most that one may do to the queue."""
        if is_forced and Permission.DELETE_QUEUE_ITEMS not in self.principal.scopes:
            raise TOKEN.denied(TOKEN.denied_detail.format(Permission.DELETE_QUEUE_ITEMS))

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


def _done(action: services.Action, found: Done) -> HttpResponse:
    return reply(
        QueueDoneView(
            done=found.done,
            requested=found.requested,
            unknown=found.unknown,
            leftOut=found.left_out,
            warnings=services.warnings(action, found.last_try, found.is_in_doubt),
        )
    )
