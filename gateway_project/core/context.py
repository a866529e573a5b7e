"""The request's context, and the shapes of ASGI. Imports the clock alone, so that anything may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from time import perf_counter
from typing import Any, Protocol, cast
from uuid import UUID

from gateway_project.core.clock import new_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

current: ContextVar[RequestContext | None] = ContextVar("gateway_request", default=None)


class Trace(Protocol):
    def end(self, context: RequestContext, status: int, seconds: float) -> None: ...


class UsageRecord(Protocol):
    def finished(self, context: RequestContext, http_status: int, seconds: float) -> None: ...


class RequestContext:
    """What is known of the request in hand; one per request, in `scope["gateway"]`.

    Seconds are floats of `perf_counter`. `headers` are added to the answer as it leaves.
    `route` is the template of the URL, the only form of a path that metrics and logs see.
    `host` is what the caller takes this gateway's name for, with its port: never put into a link.
    """

    __slots__ = (
        "client_ip",
        "correlation_id",
        "error_code",
        "headers",
        "host",
        "key_prefix",
        "let_go",
        "limiter_seconds",
        "request_id",
        "request_uuid",
        "route",
        "started",
        "trace",
        "traceparent",
        "upstream_seconds",
        "usage",
        "user_agent",
        "workspace",
        "wrong",
    )

    def __init__(self, client_ip: str, correlation_id: str | None, traceparent: str | None) -> None:
        self.request_uuid: UUID = new_id()
        self.request_id = str(self.request_uuid)
        self.correlation_id = correlation_id
        self.traceparent = traceparent
        self.client_ip = client_ip
        self.started = perf_counter()
        self.trace: Trace | None = None
        self.route = "unmatched"
        self.host = ""
        self.workspace: str | None = None
        self.key_prefix: str | None = None
        self.limiter_seconds = 0.0
        self.upstream_seconds = 0.0
        self.error_code = ""
        # Of a refusal: its sentence and fields, for the log; no value that was sent.
        self.wrong: tuple[str, Sequence[Mapping[str, str]]] | None = None
        self.user_agent = ""
        self.usage: UsageRecord | None = None
        self.headers: list[tuple[bytes, bytes]] = []
        # Called from any thread, before a wait for somebody outside: gives back what is shared.
        self.let_go: Callable[[], None] | None = None


def context_of(request: Any) -> RequestContext:
    """The request's context, also for requests that did not come through our ASGI application."""
    http_request = getattr(request, "_request", request)
    scope = getattr(http_request, "scope", None)
    if scope is not None and "gateway" in scope:
        return cast(RequestContext, scope["gateway"])
    context: RequestContext | None = getattr(http_request, "gateway_context", None)
    if context is None:
        context = RequestContext(http_request.META.get("REMOTE_ADDR", ""), None, None)
        http_request.gateway_context = context
    return context
