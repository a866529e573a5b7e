"""Robin's queue, storage, log, settings and health under `/api/v1`. Shapes: `robin/schemas.py`."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.http import HttpRequest, HttpResponse

from gateway_project.core import clock, errors
from gateway_project.core.api.responses import JSON, reply
from gateway_project.core.clock import utc_text
from gateway_project.core.stores import database
from robin.access.repeats import changing
from robin.config import documents, settings_page
from robin.config.schemas import ConfigView, SaidView
from robin.logs import search
from robin.logs.parsing import Filter
from robin.permissions import Permission
from robin.upstream.viewset import UPSTREAM, RobinViewSet, endpoint

CONFIG = ("robin settings",)
ABOUT = re.compile(r"config|reload|json5?|read", re.IGNORECASE)


async def current_document(name: str) -> dict[str, Any]:
    """What is kept, or what it begins with; also while Robin is away."""
    content = await database.read(documents.stored, name)
    if content is None:
        try:
            sections = (await settings_page.read()).sections
        except UPSTREAM:
            sections = {}
        content = documents.seeded(name, sections)
    return content


async def _logged_since(began: datetime) -> list[str]:
    """What Robin complained of while it read its files: it tells nobody else."""
    search.forget()  # somebody may have asked for the same a second ago
    since = began - timedelta(seconds=1)
    which = Filter(levels=frozenset({"WARN", "ERROR"}), since=since)
    try:
        found = await search.page(which, offset=0, limit=20)
    except UPSTREAM:
        return []
    return [entry.message[:300] for entry in found.entries if ABOUT.search(entry.searched())]


class ConfigViewSet(RobinViewSet):
    @endpoint(
        operation="getConfig",
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

    @changing(
        operation="reloadConfig",
        summary="Let Robin read its settings again",
        tags=CONFIG,
        answer=SaidView,
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=UPSTREAM,
    )
    async def reload(self, request: HttpRequest) -> HttpResponse:
        began = clock.now()
        await self.audit("robin.config.reload")  # Robin may do it and not come to answer
        found = await settings_page.reload()
        await self.audit("robin.config.reload.result", missing=found.missing)
        logged = await _logged_since(began)
        message = found.message
        if logged and not found.missing:
            message = "Robin read its files again, and had something to say. See `logged`."
        return reply(SaidView(message=message, missing=found.missing, logged=logged))

    @endpoint(
        operation="getConfigSection",
        summary="One section of the settings",
        description=(
            "`dovecot`, `clamav` and `rspamd` are the documents of Robin UI: they are stored here "
            "and not applied to Robin (`X-Gateway-Notice`). All others are Robin's own."
        ),
        tags=CONFIG,
        answer=dict[str, Any],
        headers=["X-Gateway-Notice"],
        scope=Permission.VIEW_SETTINGS,
        problems=[*UPSTREAM, errors.NotFound],
    )
    async def section(self, request: HttpRequest, section: str) -> HttpResponse:
        if section not in documents.KINDS:
            found = (await settings_page.read()).sections.get(section)
            if found is None:
                raise errors.NotFound(
                    "Robin's settings have no such section. GET /api/v1/config shows all."
                )
            return reply(found)
        content = await current_document(section)
        return reply(documents.shown(content), headers=documents.NOTICE)

    @changing(
        operation="saveConfigSection",
        summary="Keep a document of Robin UI",
        description="JSON, under whatever media type. Stored here, not applied to Robin.",
        tags=CONFIG,
        takes={JSON: dict[str, Any]},
        answer=dict[str, Any],
        headers=["X-Gateway-Notice"],
        scope=Permission.MANAGE_SERVER_CONFIG,
        problems=[errors.NotFound, errors.NotPossible],
    )
    async def save(self, request: HttpRequest, section: str) -> HttpResponse:
        if section not in documents.KINDS:
            raise errors.NotPossible(
                "Robin offers no way to write its settings over HTTP. Change them on its machine, "
                "then POST /api/v1/config/reload."
            )
        content = documents.parsed(section, request.body)
        keep = partial(documents.save, section, content, by=self.principal.email)
        saved, changes = await database.run(keep)
        await self.audit("robin.document.saved", target=section, changes=changes)
        return reply(documents.shown(saved), headers=documents.NOTICE)
