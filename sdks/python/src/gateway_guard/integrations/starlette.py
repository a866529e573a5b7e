"""Middleware for FastAPI, Starlette and every other ASGI application.

app.add_middleware(GuardMiddleware, guard=AsyncGuard(), paths=("/chat",))
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, MutableMapping, Sequence
from typing import Any, Callable, Optional

from gateway_guard.guard import AsyncGuard
from gateway_guard.integrations._http import (
    BODY_BYTES_MAX,
    FAILED_OPEN,
    FIELDS,
    HEADER,
    MULTIPART,
    REFUSED,
    URLENCODED,
    Extract,
    Refusal,
    Unreadable,
    body_of,
    fields,
    form_of,
    has_failed_open,
    is_meant,
    kind_of,
    text_of,
    with_json,
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class GuardMiddleware:
    """Checks bodies before the application sees them: JSON, forms, and bare texts.

    What is flagged is answered 403, and without a verdict 503, as problem+json; unless the guard
    fails open: then the answer says `gateway-guard: failed-open`. Verdicts are in
    `request.state.gateway_guard`. A body above `bytes_max` is 413; one that the application may
    read otherwise than the guard is 400 or 415 (JSON that is none, other encodings than UTF-8).

    `paths`: where it looks, with all below them; default: everywhere. `extract` takes the texts of
    a body: a mapping, with what has no fields under the name `""`. Default: the usual fields, and
    all in them is what the user says, whatever roles a chat in them gives.
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
        self.guard = AsyncGuard.needed(guard, "GuardMiddleware")
        self._paths = tuple(paths)
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
        try:
            found = await self.guard.check_all(self._extract(await _body(scope, content)))
        except REFUSED as error:
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
        """A router looks at what stands behind `root_path`."""
        path: str = scope["path"]
        return is_meant(self._paths, path, path.removeprefix(scope.get("root_path", "")))


async def _body(scope: Scope, content: bytes) -> Mapping[str, Any]:
    kind = kind_of(_header(scope, b"content-type"), _header(scope, b"content-encoding"))
    if content and kind in (URLENCODED, MULTIPART):
        try:
            return with_json(await _form(scope, content, kind), content)
        except Unreadable:
            if found := with_json({}, content):
                return found
            raise
    return body_of(content, kind)


def _header(scope: Scope, wanted: bytes) -> str:
    """The first of that name, as applications read it."""
    found = (value.decode("latin-1") for name, value in scope["headers"] if name.lower() == wanted)
    return next(found, "")


async def _form(scope: Scope, content: bytes, kind: str) -> Mapping[str, list[Any]]:
    """Read by the application's own parser: two of them never agree on everything."""
    try:
        from starlette.requests import Request
    except ImportError:
        if kind == URLENCODED:
            return form_of(content)
        raise Unreadable(415, "A form of several parts is not read here.") from None

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    found: dict[str, list[Any]] = {}
    try:
        async with Request({**scope}, receive).form() as form:
            for name, value in form.multi_items():
                text = value if isinstance(value, str) else text_of(await value.read())
                found.setdefault(name, []).extend([] if text is None else [text])
    except AssertionError:  # it needs python-multipart
        raise Unreadable(415, "A form is not read here.") from None
    except Exception as error:  # of either parser, at what a stranger wrote
        raise Unreadable(400, "The form cannot be read.") from error
    return found


async def _refuse(send: Send, refusal: Refusal) -> None:
    headers = [
        (b"content-type", b"application/problem+json"),
        (b"content-length", str(len(refusal.content)).encode()),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.content})
