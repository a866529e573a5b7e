"""Middleware for FastAPI, Starlette and every other ASGI application.

app.add_middleware(GuardMiddleware, guard=AsyncGuard(), paths=("/chat",))
"""

from __future__ import annotations

from collections.abc import Awaitable, MutableMapping, Sequence
from typing import Any, Callable, Optional

from gateway_guard.errors import GatewayError
from gateway_guard.guard import AsyncGuard
from gateway_guard.integrations._http import (
    BODY_BYTES_MAX,
    FAILED_OPEN,
    FIELDS,
    HEADER,
    Extract,
    Refusal,
    body_of,
    fields,
    has_failed_open,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
WITH_BODY = frozenset({"POST", "PUT", "PATCH"})


class GuardMiddleware:
    """Checks bodies (JSON, forms) before the application sees them.

    What is flagged is answered 403, and without a verdict 503, as problem+json; unless the guard
    fails open: then the answer says `gateway-guard: failed-open`. Verdicts are in
    `request.state.gateway_guard`. `paths`: where it looks, with all below them; default:
    everywhere. `extract` takes the texts of a body; default: the usual fields, chats included. A
    body above `bytes_max` is 413.
    """

    def __init__(
        self,
        app: Any,
        guard: Optional[AsyncGuard] = None,
        *,
        paths: Sequence[str] = (),
        extract: Optional[Extract] = None,
        bytes_max: int = BODY_BYTES_MAX,
    ) -> None:
        self.app = app
        self.guard = guard or AsyncGuard()
        self._paths = tuple(path.rstrip("/") for path in paths)
        self._extract = extract or fields(*FIELDS)
        self._bytes_max = bytes_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._is_meant(scope):
            await self.app(scope, receive, send)
            return
        read: list[Message] = []
        content = b""
        more = True
        while more:
            message = await receive()
            read.append(message)
            content += message.get("body", b"")
            more = message.get("more_body", False)
            if len(content) > self._bytes_max:
                await _refuse(send, Refusal.too_large(self._bytes_max))
                return
        headers = {name.lower(): value for name, value in scope["headers"]}
        media_type = headers.get(b"content-type", b"").decode("latin-1")
        try:
            found = await self.guard.check_all(self._extract(body_of(content, media_type)))
        except GatewayError as error:
            await _refuse(send, Refusal.of(error))
            return
        scope.setdefault("state", {})["gateway_guard"] = found

        async def again() -> Message:
            return read.pop(0) if read else await receive()

        async def say(message: Message) -> None:
            if message["type"] == "http.response.start" and has_failed_open(found):
                pair = (HEADER.encode(), FAILED_OPEN.encode())
                message = {**message, "headers": [*message.get("headers", ()), pair]}
            await send(message)

        await self.app(scope, again, say)

    def _is_meant(self, scope: Scope) -> bool:
        if scope["method"] not in WITH_BODY:
            return False
        path = scope["path"]
        return not self._paths or any(
            path == one or path.startswith(f"{one}/") for one in self._paths
        )


async def _refuse(send: Send, refusal: Refusal) -> None:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(refusal.content)).encode()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.content})
