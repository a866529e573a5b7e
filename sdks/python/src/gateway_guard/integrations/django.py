"""Middleware for Django.

MIDDLEWARE = [..., "gateway_guard.integrations.django.GuardMiddleware"]
GATEWAY_GUARD = {"paths": ["/chat"]}  # all may be left out
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from typing import Any, Callable, Optional

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse, QueryDict

from gateway_guard._async_client import AsyncClient
from gateway_guard._client import Client
from gateway_guard.guard import AsyncGuard, Guard
from gateway_guard.integrations._http import (
    BODY_BYTES_MAX,
    FAILED_OPEN,
    FIELDS,
    HEADER,
    MULTIPART,
    REFUSED,
    URLENCODED,
    Refusal,
    body_of,
    fields,
    has_failed_open,
    is_meant,
    kind_of,
    text_of,
    with_json,
)


class GuardMiddleware:
    """Checks bodies (JSON, forms, bare texts) before a view sees them, synchronously or not as
    Django runs it.

    What is flagged is answered 403, and without a verdict 503, as problem+json; unless it fails
    open: then the answer says `gateway-guard: failed-open`. What a view may read otherwise than the
    guard is 400 or 415. Verdicts are in `request.gateway_guard`. The setting `GATEWAY_GUARD`:
    `url`, `api_key` (default: GATEWAY_URL and GATEWAY_API_KEY), `fail_open`, `timeout`, `config`;
    `paths`: where it looks, with all below them; `fields`: which it reads, all in them as what the
    user says; `extract`: a function instead, of a mapping with what has no fields under the name
    `""`; `bytes_max`: 413 above.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        own: Mapping[str, Any] = getattr(settings, "GATEWAY_GUARD", {})
        unknown = {*own} - {
            *("url", "api_key", "fail_open", "timeout", "config"),
            *("paths", "fields", "extract", "bytes_max"),
        }
        if unknown:
            raise ValueError(f"GATEWAY_GUARD knows no {', '.join(sorted(unknown))}.")
        self._paths = tuple(own.get("paths", ()))
        self._extract = own.get("extract") or fields(*own.get("fields", FIELDS))
        self._bytes_max: int = own.get("bytes_max", BODY_BYTES_MAX)
        self._is_async = iscoroutinefunction(get_response)
        options = {"base_url": own.get("url"), "timeout": own.get("timeout", 10.0)}
        checks = {"fail_open": own.get("fail_open", False), "config": own.get("config")}
        self._guard: Any
        if self._is_async:
            markcoroutinefunction(self)
            self._guard = AsyncGuard(AsyncClient(own.get("api_key"), **options), **checks)
        else:
            self._guard = Guard(Client(own.get("api_key"), **options), **checks)

    def __call__(self, request: HttpRequest) -> Any:
        if self._is_async:
            return self._acall(request)
        refused = self._too_large(request)
        if refused is not None:
            return refused
        found: list[Any] = []
        if self._is_meant(request):
            try:
                found = self._guard.check_all(self._texts(request))
            except REFUSED as error:
                return _answer(Refusal.of(error))
        request.gateway_guard = found  # type: ignore[attr-defined]
        return _marked(self.get_response(request), found)

    async def _acall(self, request: HttpRequest) -> Any:
        refused = self._too_large(request)
        if refused is not None:
            return refused
        found: list[Any] = []
        if self._is_meant(request):
            try:
                found = await self._guard.check_all(self._texts(request))
            except REFUSED as error:
                return _answer(Refusal.of(error))
        request.gateway_guard = found  # type: ignore[attr-defined]
        return _marked(await self.get_response(request), found)

    def _is_meant(self, request: HttpRequest) -> bool:
        """URLs are resolved by what stands behind the script's name."""
        return is_meant(self._paths, request.path, request.path_info)

    def _too_large(self, request: HttpRequest) -> Optional[HttpResponse]:
        """A large file that is uploaded is not read here, so that the view can."""
        if not self._is_meant(request):
            return None
        if self._is_streamed(request):
            return None
        try:
            is_too_large = len(request.body) > self._bytes_max
        except RequestDataTooBig:
            is_too_large = True
        return _answer(Refusal.too_large(self._bytes_max)) if is_too_large else None

    def _is_streamed(self, request: HttpRequest) -> bool:
        """Django itself reads no forms but those of a POST."""
        length = request.META.get("CONTENT_LENGTH") or ""
        is_short = length.isascii() and length.isdigit() and int(length) <= self._bytes_max
        is_form = request.method == "POST" and request.content_type == MULTIPART
        return is_form and not is_short

    def _texts(self, request: HttpRequest) -> Any:
        meta = request.META
        kind = kind_of(meta.get("CONTENT_TYPE", ""), meta.get("HTTP_CONTENT_ENCODING", ""))
        if kind in (URLENCODED, MULTIPART):
            form = self._form(request, kind)
            is_read = not self._is_streamed(request)
            return self._extract(with_json(form, request.body) if is_read else form)
        return self._extract(body_of(request.body, kind))

    def _form(self, request: HttpRequest, kind: str) -> Mapping[str, list[Any]]:
        """Other libraries than Django read those of each method."""
        files: Any = {}
        if request.method == "POST":
            sent, files = request.POST, request.FILES
        elif kind == MULTIPART:
            sent, files = request.parse_file_upload(request.META, BytesIO(request.body))
        else:
            sent = QueryDict(request.body)
        found: dict[str, list[Any]] = {name: [*sent.getlist(name)] for name in sent}
        for name in files:
            for one in files.getlist(name):
                if one.size <= self._bytes_max and (text := text_of(one.read())) is not None:
                    found.setdefault(name, []).append(text)
                one.seek(0)
        return found


def _answer(refusal: Refusal) -> HttpResponse:
    return HttpResponse(
        refusal.content, status=refusal.status, content_type="application/problem+json"
    )


def _marked(response: Any, found: list[Any]) -> Any:
    if has_failed_open(found):
        response.headers[HEADER] = FAILED_OPEN
    return response
