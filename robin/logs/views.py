"""Robin's log under `/api/v1/logs`."""

from __future__ import annotations

import asyncio

import orjson
from django.http import HttpRequest, HttpResponse
from django.utils.http import content_disposition_header

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from robin.logs import search
from robin.logs.schemas import LogExportQuery, LogQuery, LogView
from robin.permissions import Permission
from robin.upstream.client import JSON
from robin.upstream.viewset import DOWNLOAD, UPSTREAM, RobinViewSet, endpoint, parameters

LOGS = ("robin log",)


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
        found = await search.search(query.filter())
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
        found = await search.search(LogQuery().filter())
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
        found = await search.search(query.filter())
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
