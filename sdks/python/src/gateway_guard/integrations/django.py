"""Middleware for Django.

MIDDLEWARE = [..., "gateway_guard.integrations.django.GuardMiddleware"]
GATEWAY_GUARD = {"paths": ["/chat"]}  # all may be left out
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Callable, Optional

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse

from gateway_guard._async_client import AsyncClient
from gateway_guard._client import Client
from gateway_guard.errors import GatewayError
from gateway_guard.guard import AsyncGuard, Guard
from gateway_guard.integrations._http import (
    BODY_BYTES_MAX,
    FAILED_OPEN,
    FIELDS,
    HEADER,
    Refusal,
    body_of,
    fields,
    has_failed_open,
)

WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class GuardMiddleware:
    """Checks bodies (JSON, forms) before a view sees them, synchronously or not as Django runs it.

    What is flagged is answered 403, and without a verdict 503, as problem+json; unless it fails
    open: then the answer says `gateway-guard: failed-open`. Verdicts are in
    `request.gateway_guard`. The setting `GATEWAY_GUARD`: `url`, `api_key` (default: GATEWAY_URL and
    GATEWAY_API_KEY), `fail_open`, `timeout`, `config`; `paths`: where it looks, with all below
    them; `fields`: which it reads; `extract`: a function instead; `bytes_max`: 413 above.
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
        self._paths = tuple(path.rstrip("/") for path in own.get("paths", ()))
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
            except GatewayError as error:
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
            except GatewayError as error:
                return _answer(Refusal.of(error))
        request.gateway_guard = found  # type: ignore[attr-defined]
        return _marked(await self.get_response(request), found)

    def _is_meant(self, request: HttpRequest) -> bool:
        if request.method not in WITH_BODY:
            return False
        path = request.path
        return not self._paths or any(
            path == one or path.startswith(f"{one}/") for one in self._paths
        )

    def _too_large(self, request: HttpRequest) -> Optional[HttpResponse]:
        """A file that is uploaded is not read here, so that the view can."""
        if not self._is_meant(request) or request.content_type == "multipart/form-data":
            return None
        try:
            is_too_large = len(request.body) > self._bytes_max
        except RequestDataTooBig:
            is_too_large = True
        return _answer(Refusal.too_large(self._bytes_max)) if is_too_large else None

    def _texts(self, request: HttpRequest) -> Any:
        if request.content_type == "multipart/form-data":
            return self._extract({name: request.POST.getlist(name) for name in request.POST})
        return self._extract(body_of(request.body, request.META.get("CONTENT_TYPE", "")))


def _answer(refusal: Refusal) -> HttpResponse:
    return HttpResponse(
        refusal.content, status=refusal.status, content_type="application/problem+json"
    )


def _marked(response: Any, found: list[Any]) -> Any:
    if has_failed_open(found):
        response.headers[HEADER] = FAILED_OPEN
    return response
