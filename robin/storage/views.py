"""Robin's mail store under `/api/v1/storage`."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.utils.http import content_disposition_header

from gateway_project.core import errors
from gateway_project.core.api.endpoint import asked
from gateway_project.core.api.responses import reply
from robin.permissions import Permission
from robin.storage import translate
from robin.storage.schemas import MailView, PathQuery, StoreView
from robin.upstream.client import TEXT, robin
from robin.upstream.viewset import DOWNLOAD, UPSTREAM, RobinViewSet, endpoint, invalid, parameters

MAIL = "message/rfc822"
STORAGE = ("robin storage",)


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
            raise invalid("path", "is a mail, not a directory; see /api/v1/storage/file")
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
        raise invalid("path", str(exc)) from None
