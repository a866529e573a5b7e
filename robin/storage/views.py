"""Robin's mail store under `/api/v1/storage`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import IO

from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from robin.permissions import Permission
from robin.storage import services, translate
from robin.storage.schemas import MailView, PathQuery, StoreView
from robin.upstream.viewset import DOWNLOAD, UPSTREAM, RobinViewSet, endpoint, invalid

MAIL = "message/rfc822"
PIECE_BYTES = 64 << 10
STORAGE = ("robin storage",)


class StorageViewSet(RobinViewSet):
    @endpoint(
        operation="browseStorage",
        summary="A directory of the mail store",
        tags=STORAGE,
        answer=StoreView,
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound],
        query=PathQuery,
    )
    async def browse(self, request: HttpRequest) -> HttpResponse:
        try:
            return reply(await services.browse(_parts(request)))
        except services.IsMail:
            raise invalid("path", "is a mail, not a directory; see /api/v1/storage/file") from None

    @endpoint(
        operation="readMail",
        summary="A mail as text",
        description="Of a large one the beginning.",
        tags=STORAGE,
        answer=MailView,
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound],
        query=PathQuery,
    )
    async def file(self, request: HttpRequest) -> HttpResponse:
        parts = _parts(request)
        mail = await services.beginning(parts)
        await self._note("robin.mail_read", parts)
        text = translate.mail_text(mail.content, is_cut=mail.is_cut)
        answer = {"path": "/" + "/".join(parts), "content": text, "mimeType": MAIL}
        return reply({**answer, "size": mail.size, "truncated": mail.is_cut})

    @endpoint(
        operation="downloadMail",
        summary="A mail as it is, to download",
        description="Of any size, unless ROBIN_MAIL_BYTES_MAX says otherwise.",
        tags=STORAGE,
        media_types={MAIL: bytes},
        headers=["Content-Disposition"],
        scope=Permission.VIEW_STORAGE,
        problems=[*UPSTREAM, errors.NotFound, errors.PermissionDenied],
        query=PathQuery,
    )
    async def raw(self, request: HttpRequest) -> HttpResponseBase:
        parts = _parts(request)
        file, size = await services.copy(parts)
        await self._note("robin.mail_downloaded", parts)
        name = content_disposition_header(True, parts[-1])
        headers = {**DOWNLOAD, "Content-Disposition": str(name), "Content-Length": str(size)}
        return StreamingHttpResponse(_pieces(file), content_type=MAIL, headers=headers)

    async def _note(self, action: str, parts: list[str]) -> None:
        await self.audit(action, target=parts[-1], path="/" + "/".join(parts))


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


def _parts(request: HttpRequest) -> list[str]:
    try:
        return translate.store_parts(asked(request, PathQuery).path)
    except ValueError as exc:
        raise invalid("path", str(exc)) from None
