"""Django of the control plane: all of a request in one turn of its thread."""

from __future__ import annotations

from collections.abc import Callable

from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from servestatic.middleware import ServeStaticMiddleware

from gateway_project.server import hosts


class PagesHandler(ASGIHandler):
    """Middleware and views are synchronous. Django's own way with them is to come back to the event
    loop before the view, and for each middleware that looks at it: a dozen turns of thread and
    loop, which were a third of what a small request took."""

    request_class = hosts.Request  # links do not come from the caller

    def load_middleware(self, is_async: bool = False) -> None:
        super().load_middleware(is_async=False)

    async def get_response_async(self, request: HttpRequest) -> HttpResponseBase:
        return await sync_to_async(self.get_response, thread_sensitive=True)(request)


class StaticFiles:
    """`ServeStaticMiddleware`, which is asynchronous: pages do not go by way of it."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        self._serve = async_to_sync(ServeStaticMiddleware(sync_to_async(get_response)))

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        if request.path_info.startswith(settings.STATIC_URL):
            served: HttpResponseBase = self._serve(request)
            return served
        return self._get_response(request)
