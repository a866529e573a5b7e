"""Robin's log under `/api/v1/logs`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from time import monotonic

import orjson
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from gateway_project.core.clock import utc_text
from robin.logs import search
from robin.logs.parsing import Entry
from robin.logs.schemas import LogEntryView, LogExportQuery, LogQuery, LogView
from robin.permissions import Permission
from robin.upstream.client import JSON
from robin.upstream.viewset import DOWNLOAD, UPSTREAM, RobinViewSet, endpoint

LOGS = ("robin log",)
NAMES = list[str]  # in the class `list` is an action
ENTRIES = list[LogEntryView]
ENTRIES_AT_ONCE = 500


class LogViewSet(RobinViewSet):
    @endpoint(
        operation="listLogEntries",
        summary="Robin's log of today and yesterday, newest first",
        description=(
            "One line of Robin is one entry; what is not printable is shown escaped. Credentials "
            "and the lines about our own reading are left out. Of a long log as much is read as a "
            "page takes: then `complete` is false, `total` is what was seen, and nothing before "
            "`searchedSince` was; an `endTime` before it goes on from there. Where Robin wrote "
            "more in a millisecond than can be read, or where Robin stops at a byte that is not "
            "UTF-8, an entry without a logger says so."
        ),
        tags=LOGS,
        answer=LogView,
        scope=Permission.VIEW_LOGS,
        problems=UPSTREAM,
        query=LogQuery,
    )
    async def list(self, request: HttpRequest) -> HttpResponse:
        query = asked(request, LogQuery)
        limit = query.lines or query.limit
        found = await search.page(query.filter(), offset=query.offset, limit=limit)
        seen = query.offset + len(found.entries)
        return reply(
            {
                "entries": [entry.shown() for entry in found.entries],
                "total": found.total,
                "hasMore": seen < found.total or not found.is_complete,
                "complete": found.is_complete,
                "searchedSince": utc_text(found.since),
            }
        )

    @endpoint(
        operation="listLoggers",
        summary="The loggers that wrote to it",
        description="Of a long log, those that wrote of late.",
        tags=LOGS,
        answer=NAMES,
        scope=Permission.VIEW_LOGS,
        problems=UPSTREAM,
    )
    async def loggers(self, request: HttpRequest) -> HttpResponse:
        names: set[str] = set()
        began = monotonic()
        async for entries, _ in search.walk(LogQuery().filter()):
            names |= {entry.logger for entry in entries if entry.logger}
            if monotonic() - began > search.SEARCH_SECONDS:
                break
        return HttpResponse(orjson.dumps(sorted(names)), content_type=JSON)

    @endpoint(
        operation="exportLog",
        summary="What the filters let through, as a file",
        description=(
            "Newest first, as it is read: a file that ends without its end was cut off, because "
            "Robin did not answer any more."
        ),
        tags=LOGS,
        media_types={"text/plain": str, JSON: ENTRIES},
        headers=["Content-Disposition"],
        scope=Permission.VIEW_LOGS,
        problems=UPSTREAM,
        query=LogExportQuery,
    )
    async def export(self, request: HttpRequest) -> HttpResponseBase:
        query = asked(request, LogExportQuery)
        parts = _as_json if query.format == "json" else _as_text
        name = content_disposition_header(True, f"robin-log.{query.format}")
        headers = {**DOWNLOAD, "Content-Disposition": str(name)}
        kind = JSON if query.format == "json" else "text/plain; charset=utf-8"
        found = search.walk(query.filter())
        await self.audit("robin.log_exported", format=query.format, search=query.search)
        return StreamingHttpResponse(parts(found), content_type=kind, headers=headers)

    @endpoint(
        operation="deleteLog",
        summary="Deleting the log: not possible",
        description="Robin has no way to do that. Always 501, never 200.",
        tags=LOGS,
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=[errors.NotPossible],
    )
    async def destroy(self, request: HttpRequest) -> HttpResponse:
        raise errors.NotPossible(
            "Robin cannot delete its log. Remove the file of a day on its machine."
        )


Slices = AsyncIterator[tuple[list[Entry], datetime]]


async def _as_json(found: Slices) -> AsyncIterator[bytes]:
    between = b"["
    async for entries, _ in found:
        for start in range(0, len(entries), ENTRIES_AT_ONCE):
            rows = [entry.shown() for entry in entries[start : start + ENTRIES_AT_ONCE]]
            yield between + (await asyncio.to_thread(orjson.dumps, rows))[1:-1]
            between = b","
    yield b"[]" if between == b"[" else b"]"


async def _as_text(found: Slices) -> AsyncIterator[bytes]:
    async for entries, _ in found:
        for start in range(0, len(entries), ENTRIES_AT_ONCE):
            yield "".join(
                f"{e.line()}\n" for e in entries[start : start + ENTRIES_AT_ONCE]
            ).encode()
