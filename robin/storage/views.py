"""Robin's mail store under `/api/v1/storage`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO

from django.conf import settings
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.utils.http import content_disposition_header

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from robin.permissions import Permission
from robin.storage import translate
from robin.storage.schemas import MailView, PathQuery, StoreView
from robin.upstream.client import HTML, TEXT, robin
from robin.upstream.http import Stream
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
        parts = _parts(request)
        url = translate.store_url(parts)
        if parts and translate.is_mail(parts[-1]) and not await _is_directory(url):
            raise invalid("path", "is a mail, not a directory; see /api/v1/storage/file")
        found = await robin().client.get_json(url)
        try:
            return reply(translate.store_listing(found, parts))
        except ValueError:
            raise errors.NotFound(
                "There is no such directory in the store. GET /api/v1/storage lists the first ones."
            ) from None

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
        parts = _mail_parts(request)
        most = settings.ROBIN_MAIL_TEXT_BYTES_MAX
        content = bytearray()
        async with _mail(parts) as mail:
            async for part in mail.parts:
                content += part
                if len(content) > most:
                    break
            size = len(content) if mail.length is None else mail.length
        is_cut = len(content) < size or len(content) > most
        text = translate.mail_text(bytes(content[:most]), is_cut=is_cut)
        answer = {"path": "/" + "/".join(parts), "content": text, "mimeType": MAIL}
        return reply({**answer, "size": size, "truncated": is_cut})

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
        parts = _mail_parts(request)
        # Robin does nothing else while somebody reads slowly, so it is emptied first, onto a disk.
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by who reads it
        try:
            async with _mail(parts) as mail:
                size = await _emptied(mail, file)
        except BaseException:
            file.close()
            raise
        name = content_disposition_header(True, parts[-1])
        headers = {**DOWNLOAD, "Content-Disposition": str(name), "Content-Length": str(size)}
        return StreamingHttpResponse(_pieces(file), content_type=MAIL, headers=headers)


@asynccontextmanager
async def _mail(parts: list[str]) -> AsyncIterator[Stream]:
    """A mail, whose body is still to come. Raises 404 where there is none of that name."""
    url = translate.store_url(parts)
    # As text, since Robin hangs up over mails that are no UTF-8 when JSON is wanted.
    async with robin().client.stream(url, TEXT, HTML) as found:
        if found.content_type != HTML:
            yield found
            return
    # A directory is answered with a page; so is everything, by what is no mail store.
    await robin().client.get_json(url)
    raise errors.NotFound(
        "There is no such mail in the store: that is a directory. GET /api/v1/storage lists it."
    )


async def _is_directory(url: str) -> bool:
    async with robin().client.stream(url, TEXT, HTML) as found:
        return found.content_type == HTML


async def _emptied(mail: Stream, file: IO[bytes]) -> int:
    """Its bytes, all of them, into the file; how many there were."""
    most, size = settings.ROBIN_MAIL_BYTES_MAX, mail.length or 0
    written = 0
    if not most or size <= most:
        async for part in mail.parts:
            written += len(part)
            size = max(size, written)
            if most and size > most:
                break
            await asyncio.to_thread(file.write, part)
    if most and size > most:
        raise errors.PermissionDenied(
            f"This mail is larger than the {most} bytes that ROBIN_MAIL_BYTES_MAX lets through. "
            "Who runs the gateway can allow more."
        )
    await asyncio.to_thread(file.seek, 0)
    return written


async def _pieces(file: IO[bytes]) -> AsyncIterator[bytes]:
    with file:
        while piece := await asyncio.to_thread(file.read, PIECE_BYTES):
            yield piece


def _mail_parts(request: HttpRequest) -> list[str]:
    parts = _parts(request)
    if not parts or not translate.is_mail(parts[-1]):
        raise errors.NotFound(
            "There is no such mail in the store. GET /api/v1/storage lists what is there."
        )
    return parts


def _parts(request: HttpRequest) -> list[str]:
    try:
        return translate.store_parts(asked(request, PathQuery).path)
    except ValueError as exc:
        raise invalid("path", str(exc)) from None
