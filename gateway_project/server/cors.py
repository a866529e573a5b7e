"""Pages of other origins at `/api/v1`: django-cors-headers' answer, for both planes.

As a Django middleware it would reach neither the data plane nor what the server layer refuses by
itself, and a page that may not read a refusal cannot say what is wrong.
"""

from __future__ import annotations

from io import BytesIO

from corsheaders.middleware import CorsMiddleware
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponse

from gateway_project.core.context import ASGIApp, Message, Receive, Scope, Send

OWN = ("content-type", "content-length")


class CrossOrigin:
    """Answers preflights and adds the headers that `CORS_ORIGINS` allows."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._cors = CorsMiddleware(lambda request: HttpResponse())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not any(name == b"origin" for name, _ in scope["headers"]):
            headers, is_preflight = [(b"vary", b"origin")], False
        else:
            headers, is_preflight = self._decide(scope)
        if is_preflight:
            scope["gateway"].route = "preflight"
            headers = [(b"content-length", b"0"), *headers]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], *headers]}
            await send(message)

        await self.app(scope, receive, send_with_headers)

    def _decide(self, scope: Scope) -> tuple[list[tuple[bytes, bytes]], bool]:
        request = ASGIRequest(scope, BytesIO())
        preflight = self._cors.check_preflight(request)
        response = preflight or HttpResponse()
        self._cors.add_response_headers(request, response)
        headers = [
            (name.lower().encode(), value.encode())
            for name, value in response.items()
            if name.lower() not in OWN
        ]
        return headers, preflight is not None
