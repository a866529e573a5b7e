"""The data plane: one coroutine from the socket to the answer.

Django's `ASGIHandler` hops to a thread for its request signals, for closing the response and for
every middleware written for WSGI; with those it gives a tenth of what this gives (docs/decisions/
0001). `DataPlaneHandler` keeps what the data plane needs of it: Django's request, its URLconf, the
view. It never runs sessions, CSRF, messages or the admin, and no view behind it may run SQL except
through `core.database.run`.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.http import HttpResponseBase
from django.urls import Resolver404, ResolverMatch, get_resolver

from gateway_project.core import errors
from gateway_project.core.api.bodies import ClientGone, drain, read_body
from gateway_project.core.api.middleware import send_problem
from gateway_project.core.context import Message, Receive, RequestContext, Scope, Send

ROUTES_REMEMBERED_MAX = 256
DRAINED_BYTES_MAX = 64 << 20  # nobody knows yet who sends it


class DataPlaneHandler:
    """Serves the views of the data plane. See the module's paragraph.

    `body_bytes_max` maps a path to its limit in bytes, `None` is for all others;
    `body_seconds_max` bounds how long a body may take to arrive. Views of `refusal_paths` answer
    also when their body could not be read: `request.refusal` says why, and the body is empty.
    """

    def __init__(
        self,
        *,
        body_bytes_max: dict[str | None, int],
        body_seconds_max: float = 10.0,
        refusal_paths: frozenset[str] = frozenset(),
    ) -> None:
        self._body_bytes_max = body_bytes_max
        self._body_seconds_max = body_seconds_max
        self._refusal_paths = refusal_paths
        self._resolver = get_resolver()
        self._fixed_routes: dict[str, tuple[ResolverMatch, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        context: RequestContext = scope["gateway"]
        try:
            match, context.route = self._resolve(path)
            bytes_max = self._body_bytes_max.get(path) or self._body_bytes_max[None]
            if path in self._refusal_paths:
                await self._answer_any_body(scope, receive, send, match, bytes_max)
                return
            body = await read_body(
                scope, receive, bytes_max=bytes_max, seconds_max=self._body_seconds_max
            )
        except errors.GatewayError as error:
            await send_problem(send, error, scope)
            return
        except ClientGone:
            return
        await self._answer(scope, send, match, body)

    async def _answer_any_body(
        self, scope: Scope, receive: Receive, send: Send, match: ResolverMatch, bytes_max: int
    ) -> None:
        """Raises `ClientGone`."""
        refusal: errors.GatewayError | None = None
        seconds, has_more = self._body_seconds_max, True

        async def receive_and_note() -> Message:
            nonlocal has_more
            message = await receive()
            has_more = message.get("more_body", False)
            return message

        try:
            body = await read_body(
                scope, receive_and_note, bytes_max=bytes_max, seconds_max=seconds
            )
        except errors.GatewayError as error:
            refusal, body = error, b""
            if has_more and isinstance(error, errors.BodyTooLarge):
                await drain(receive, bytes_max=DRAINED_BYTES_MAX, seconds_max=seconds)
        await self._answer(scope, send, match, body, refusal)

    async def _answer(
        self,
        scope: Scope,
        send: Send,
        match: ResolverMatch,
        body: bytes,
        refusal: errors.GatewayError | None = None,
    ) -> None:
        request = ASGIRequest(scope, BytesIO(body))
        request._body = body
        request.resolver_match = match
        if refusal is not None:
            request.refusal = refusal  # type: ignore[attr-defined]
        response: HttpResponseBase = await match.func(request, *match.args, **match.kwargs)
        await self._send(response, send, head=request.method == "HEAD")

    def _resolve(self, path: str) -> tuple[ResolverMatch, str]:
        found = self._fixed_routes.get(path)
        if found is None:
            try:
                match = self._resolver.resolve(path)
            except Resolver404 as exc:
                raise errors.NotFound from exc
            found = (match, route_template(match))
            # Only paths without parts of the caller's: those are as many as there are routes.
            if not match.kwargs and len(self._fixed_routes) < ROUTES_REMEMBERED_MAX:
                self._fixed_routes[path] = found
        return found

    @staticmethod
    async def _send(response: Any, send: Send, *, head: bool) -> None:
        headers = [
            (name.encode("latin-1").lower(), value.encode("latin-1"))
            for name, value in response.items()
        ]
        if response.streaming:
            await _send_parts(response, headers, send, head=head)
            return
        content: bytes = response.content
        headers.append((b"content-length", b"%d" % len(content)))
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        await send({"type": "http.response.body", "body": b"" if head else content})


async def _send_parts(
    response: Any, headers: list[tuple[bytes, bytes]], send: Send, *, head: bool
) -> None:
    """An answer that is longer than what should be held; cut short, without an end, if it fails.

    The first part is waited for: what fails before it can still be a problem.
    """
    parts = aiter(response.streaming_content)
    try:
        part = await anext(parts, b"")
        await send(
            {"type": "http.response.start", "status": response.status_code, "headers": headers}
        )
        while part and not head:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            part = await anext(parts, b"")
        await send({"type": "http.response.body", "body": b""})
    finally:
        await parts.aclose()


def route_template(match: ResolverMatch) -> str:
    """`/v1/keys/<uuid:id>` as `/v1/keys/{id}`: the label of metrics and logs."""
    parts = []
    for part in match.route.split("/"):
        if part.startswith("<") and part.endswith(">"):
            part = "{" + part[1:-1].rpartition(":")[2] + "}"
        parts.append(part)
    return "/" + "/".join(parts)
