"""Robin's queue, storage, log, settings and health under `/api/v1`. Shapes: `robin/schemas.py`."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import orjson
import pydantic
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.utils.http import content_disposition_header
from drf_spectacular.utils import OpenApiParameter, extend_schema

from accounts.events import audit, utc_text
from gateway_project.core import database, errors
from gateway_project.core.caching import SingleFlight, TTLCache
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.views import DataPlaneViewSet, asked, reply
from gateway_project.core.views import endpoint as core_endpoint
from robin import documents, log_search, queue, settings_page, translate
from robin.authentication import TOKEN, JWTAuthentication, Member
from robin.client import JSON, TEXT, Port, is_open, robin
from robin.permissions import Permission
from robin.schemas import (
    ConfigView,
    LogExportQuery,
    LogQuery,
    LogView,
    MailView,
    PathQuery,
    QueueActionRequest,
    QueueDoneView,
    QueueItemView,
    QueueQuery,
    QueueTotalsView,
    QueueView,
    RobinHealthView,
    SaidView,
    StoreView,
)

UPSTREAM = (errors.UpstreamUnavailable, errors.UpstreamTimedOut, errors.UpstreamUnexpected)
UIDS_AUDITED_MAX = 50
HEALTH_SECONDS = 3.0
MAIL = "message/rfc822"
# Whoever may look may also keep looking: a mail or a log is not for shared caches.
DOWNLOAD = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
log = get_logger("gateway.robin")
endpoint = partial(core_endpoint, credential=TOKEN)
QUEUE, STORAGE, LOGS = ("robin queue",), ("robin storage",), ("robin log",)
CONFIG, HEALTH = ("robin settings",), ("robin health",)


def parameters(model: type[pydantic.BaseModel]) -> list[OpenApiParameter]:
    """The query of an address, for the API's document."""
    found = []
    for name, about in model.model_json_schema()["properties"].items():
        schema = {k: v for k, v in about.items() if k not in ("title", "description")}
        found.append(OpenApiParameter(name, type=schema, description=about.get("description", "")))
    return found


class RobinViewSet(DataPlaneViewSet):
    authentication_classes = [JWTAuthentication]
    principal: Member

    async def audit(self, action: str, *, target: str = "", **details: Any) -> None:
        """Note what was done. A database that is away is no reason to say that it was not."""
        context = self.context
        try:
            await database.run(
                audit,
                action,
                actor=self.principal.email,
                target=target[:100],
                client_ip=context.client_ip,
                request_id=context.request_id,
                **details,
            )
        except (errors.StoreUnavailable, DatabaseError) as exc:
            log.error("audit_failed", action=action, target=target, error=type(exc).__name__)


class QueueViewSet(RobinViewSet):
    @endpoint(
        summary="A page of the queue",
        description="Without `state`: what waits (`READY,CLAIMED`). A search reads all of it.",
        tags=QUEUE,
        answer=QueueView,
        scope=Permission.VIEW_QUEUE,
        problems=[*UPSTREAM, errors.ValidationFailed, errors.Conflict],
        parameters=parameters(QueueQuery),
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, QueueQuery)
        found = await queue.page(query.filter(), number=query.page, size=query.size)
        return reply(
            {
                "items": found.items,
                "totalCount": found.total,
                "pageSize": query.size,
                "pageNumber": query.page,
            }
        )

    @endpoint(
        summary="How many items are in which state",
        tags=QUEUE,
        answer=QueueTotalsView,
        scope=Permission.VIEW_QUEUE,
        problems=UPSTREAM,
    )
    async def stats(self, request: HttpRequest) -> HttpResponse:
        return reply(await queue.totals())

    @endpoint(
        summary="One item",
        tags=QUEUE,
        answer=QueueItemView,
        scope=Permission.VIEW_QUEUE,
        problems=[*UPSTREAM, errors.NotFound, errors.Conflict],
    )
    async def item(self, request: HttpRequest, uid: str) -> HttpResponse:
        return reply(await queue.find(uid))

    @endpoint(
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
        summary="Delete an item",
        tags=QUEUE,
        answer=QueueDoneView,
        scope=Permission.DELETE_QUEUE_ITEMS,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def destroy(self, request: HttpRequest, uid: str) -> HttpResponse:
        return await self._act_on_one("delete", uid)

    async def _act_on_one(self, action: queue.Action, uid: str) -> HttpResponse:
        await queue.act_on_one(action, uid)
        await self.audit(f"robin.queue.{action}", target=uid)
        return reply(QueueDoneView(done=1, requested=1))

    @endpoint(
        summary="Retry, delete or bounce many",
        description=(
            "By `uids`, or by a `filter`. A filter first answers `{matched, confirm}` and does "
            "nothing; sent again with `confirm` it acts on exactly what it matched then."
        ),
        tags=QUEUE,
        body=QueueActionRequest,
        answer=QueueDoneView,
        scope=Permission.MANAGE_QUEUE,
        problems=[*UPSTREAM, errors.NotFound, errors.Conflict],
    )
    async def actions(self, request: HttpRequest) -> HttpResponse:
        body: QueueActionRequest = self.body
        self._check_delete(body.action)
        if (body.uids is None) == (body.filter is None):
            raise _wrong("", "send uids or a filter, one of them")
        if body.uids is not None:
            uids, details = queue.unique(body.uids), {}
        else:
            assert body.filter is not None  # noqa: S101
            which = body.filter.filter()
            if which == queue.Filter():
                raise _wrong("filter", "must not be empty: that would be the whole queue")
            me = str(self.principal.user_id)
            if body.confirm is None:
                matched, token = await queue.propose(body.action, which, by=me)
                return reply({"matched": matched, "confirm": token})
            uids = await queue.confirm(body.action, which, body.confirm, by=me)
            details = {"filter": body.filter.model_dump(exclude_defaults=True)}
        done = await queue.act(body.action, uids)
        await self.audit(
            f"robin.queue.{body.action}",
            target=f"{done} items",
            requested=len(uids),
            uids=uids[:UIDS_AUDITED_MAX],
            **details,
        )
        return reply(QueueDoneView(done=done, requested=len(uids)))

    def _check_delete(self, action: queue.Action) -> None:
        if action == "delete" and Permission.DELETE_QUEUE_ITEMS not in self.principal.scopes:
            raise TOKEN.denied(TOKEN.denied_detail.format(Permission.DELETE_QUEUE_ITEMS))

    @endpoint(
        summary="Pause or resume: not possible",
        description="Robin has no way to hold its queue. Always 501.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible],
    )
    async def hold(self, request: HttpRequest) -> HttpResponse:
        raise errors.NotPossible("Robin cannot pause its queue or resume it.")

    @extend_schema(operation_id="queue_item_pause")
    @endpoint(
        summary="Pause an item: not possible",
        description="Robin has no way to hold an item. Always 501.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible, errors.NotFound],
    )
    async def pause_item(self, request: HttpRequest, uid: str) -> HttpResponse:
        queue.checked_uid(uid)
        raise errors.NotPossible("Robin cannot pause an item of its queue.")

    @extend_schema(operation_id="queue_item_resume")
    @endpoint(
        summary="Resume an item: not possible",
        description="Robin has no way to hold an item. Always 501.",
        tags=QUEUE,
        scope=Permission.MANAGE_QUEUE,
        problems=[errors.NotPossible, errors.NotFound],
    )
    async def resume_item(self, request: HttpRequest, uid: str) -> HttpResponse:
        queue.checked_uid(uid)
        raise errors.NotPossible("Robin cannot pause an item of its queue, so none is paused.")


class StorageViewSet(RobinViewSet):
    @endpoint(
        summary="A directory of the mail store",
        tags=STORAGE,
        answer=StoreView,
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound, errors.ValidationFailed],
        parameters=parameters(PathQuery),
    )
    async def browse(self, request: HttpRequest) -> HttpResponse:
        parts = _parts(request)
        if parts and parts[-1].endswith(".eml"):
            raise _wrong("path", "is a mail, not a directory; see /api/v1/storage/file")
        found = await robin().client.get_json(translate.store_url(parts))
        try:
            return reply(translate.store_listing(found, parts))
        except ValueError:
            raise errors.NotFound("There is no such directory in the store.") from None

    @endpoint(
        summary="A mail as text",
        tags=STORAGE,
        answer=MailView,
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound, errors.ValidationFailed],
        parameters=parameters(PathQuery),
    )
    async def file(self, request: HttpRequest) -> HttpResponse:
        path, content = await self._mail(request)
        text = translate.mail_text(content)
        answer = {"path": path, "content": text, "mimeType": MAIL, "size": len(content)}
        return reply(answer)

    @endpoint(
        summary="A mail as it is, to download",
        tags=STORAGE,
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound, errors.ValidationFailed],
        parameters=parameters(PathQuery),
    )
    async def raw(self, request: HttpRequest) -> HttpResponse:
        path, content = await self._mail(request)
        name = content_disposition_header(True, path.rpartition("/")[2])
        headers = {**DOWNLOAD, "Content-Disposition": str(name)}
        return HttpResponse(content, content_type=MAIL, headers=headers)

    async def _mail(self, request: HttpRequest) -> tuple[str, bytes]:
        parts = _parts(request)
        # Robin answers a directory with a page: nothing else than a mail may be asked for as text.
        if not parts or not parts[-1].endswith(".eml"):
            raise errors.NotFound("There is no such mail in the store.")
        # As text, since Robin hangs up over mails that are no UTF-8 when JSON is wanted.
        content = await robin().client.get(translate.store_url(parts), TEXT, bytes)
        return "/" + "/".join(parts), content


def _parts(request: HttpRequest) -> list[str]:
    try:
        return translate.store_parts(asked(request, PathQuery).path)
    except ValueError as exc:
        raise _wrong("path", str(exc)) from None


def _wrong(field: str, message: str) -> errors.ValidationFailed:
    return errors.ValidationFailed(errors=[{"field": field, "message": message}])


class LogViewSet(RobinViewSet):
    @endpoint(
        summary="Robin's log of today and yesterday, newest first",
        tags=LOGS,
        answer=LogView,
        scope=Permission.VIEW_LOGS,
        problems=[*UPSTREAM, errors.ValidationFailed],
        parameters=parameters(LogQuery),
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, LogQuery)
        found = await log_search.search(query.filter())
        limit = query.lines or query.limit
        shown = found[query.offset : query.offset + limit]
        return reply(
            {
                "entries": [entry.shown() for entry in shown],
                "total": len(found),
                "hasMore": query.offset + len(shown) < len(found),
            }
        )

    @endpoint(
        summary="The loggers that wrote to it",
        tags=LOGS,
        scope=Permission.VIEW_LOGS,
        problems=UPSTREAM,
    )
    async def loggers(self, request: HttpRequest) -> HttpResponse:
        found = await log_search.search(LogQuery().filter())
        names = sorted({entry.logger for entry in found if entry.logger})
        return HttpResponse(orjson.dumps(names), content_type=JSON)

    @endpoint(
        summary="What the filters let through, as a file",
        tags=LOGS,
        scope=Permission.VIEW_LOGS,
        problems=[*UPSTREAM, errors.ValidationFailed],
        parameters=parameters(LogExportQuery),
    )
    async def export(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, LogExportQuery)
        found = await log_search.search(query.filter())
        if query.format == "json":
            content = await asyncio.to_thread(lambda: orjson.dumps([e.shown() for e in found]))
        else:
            text = await asyncio.to_thread(lambda: "".join(f"{e.line()}\n" for e in found))
            content = text.encode()
        name = content_disposition_header(True, f"robin-log.{query.format}")
        headers = {**DOWNLOAD, "Content-Disposition": str(name)}
        kind = JSON if query.format == "json" else "text/plain; charset=utf-8"
        return HttpResponse(content, content_type=kind, headers=headers)

    @endpoint(
        summary="Deleting the log: not possible",
        description="Robin has no way to do that. Always 501.",
        tags=LOGS,
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=[errors.NotPossible],
    )
    async def destroy(self, request: HttpRequest) -> HttpResponse:
        raise errors.NotPossible("Robin cannot delete its log; it keeps a file for each day.")


async def current_document(name: str) -> dict[str, Any]:
    """What is kept, or what it begins with; also while Robin is away."""
    content = await database.run(documents.stored, name)
    if content is None:
        try:
            sections = (await settings_page.read()).sections
        except UPSTREAM:
            sections = {}
        content = documents.seeded(name, sections)
    return content


class ConfigViewSet(RobinViewSet):
    @endpoint(
        summary="Robin's settings, without their secrets",
        description=(
            "Remembered for five minutes, and for up to an hour while Robin does not answer; "
            "`fetchedAt` says of when they are."
        ),
        tags=CONFIG,
        answer=ConfigView,
        scope=Permission.VIEW_SETTINGS,
        problems=UPSTREAM,
    )
    async def show(self, request: HttpRequest) -> HttpResponse:
        found = await settings_page.read()
        return reply({"sections": found.sections, "fetchedAt": utc_text(found.fetched_at)})

    @endpoint(
        summary="Let Robin read its settings again",
        tags=CONFIG,
        answer=SaidView,
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=UPSTREAM,
    )
    async def reload(self, request: HttpRequest) -> HttpResponse:
        said = await settings_page.reload()
        await self.audit("robin.config.reload")
        return reply(SaidView(message=said))

    @extend_schema(operation_id="config_section")
    @endpoint(
        summary="One section of the settings",
        description=(
            "`dovecot`, `clamav` and `rspamd` are the documents of Robin UI: they are stored here "
            "and not applied to Robin (`X-Gateway-Notice`). All others are Robin's own."
        ),
        tags=CONFIG,
        scope=Permission.VIEW_SETTINGS,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def section(self, request: HttpRequest, section: str) -> HttpResponse:
        if section not in documents.KINDS:
            found = (await settings_page.read()).sections.get(section)
            if found is None:
                raise errors.NotFound("Robin's settings have no such section.")
            return reply(found)
        content = await current_document(section)
        return reply(documents.shown(content), headers=documents.NOTICE)

    @endpoint(
        summary="Keep a document of Robin UI",
        description="JSON, under whatever media type. Stored here, not applied to Robin.",
        tags=CONFIG,
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=[errors.NotFound, errors.NotPossible, errors.ValidationFailed, errors.InvalidJSON],
    )
    async def save(self, request: HttpRequest, section: str) -> HttpResponse:
        if section not in documents.KINDS:
            raise errors.NotPossible("Robin offers no way to write its settings over HTTP.")
        content = documents.parsed(section, request.body)
        keep = partial(documents.save, section, content, by=self.principal.email)
        saved = await database.run(keep)
        await self.audit("robin.document.saved", target=section)
        return reply(documents.shown(saved), headers=documents.NOTICE)


_health: TTLCache[str, dict[str, Any]] = TTLCache(1)
_looks: SingleFlight[str, dict[str, Any]] = SingleFlight()


class RobinHealthViewSet(DataPlaneViewSet):
    """Public, since Robin UI asks it without a token: so it is remembered for a moment."""

    authentication_classes = []

    @endpoint(
        summary="How Robin is",
        description="Always 200; `status` says it. The two servers are asked beside each other.",
        tags=HEALTH,
        answer=RobinHealthView,
        public=True,
    )
    async def health(self, request: HttpRequest) -> HttpResponse:
        known = _health.get("")
        return reply(known if known is not None else await _looks.do("", _look))


async def _look() -> dict[str, Any]:
    if not is_open():
        down = {"status": "DOWN", "breaker": "closed"}
        answer = translate.health(None, client_is_up=False)
        return {**answer, "robinClientApi": down, "robinServiceApi": down}
    ports = robin()
    client, service = await asyncio.gather(ports.client.peek(), ports.service.peek())
    answer = translate.health(service, client_is_up=_is_up(client))
    answer["robinClientApi"] = _port(ports.client, client)
    answer["robinServiceApi"] = _port(ports.service, service)
    _health.put("", answer, seconds=HEALTH_SECONDS)
    return answer


def _is_up(said: Any) -> bool:
    return isinstance(said, dict) and said.get("status") == "UP"


def _port(port: Port, said: Any) -> dict[str, str]:
    return {"status": "UP" if _is_up(said) else "DOWN", "breaker": port.breaker.state}


def forget_health() -> None:
    _health.clear()
