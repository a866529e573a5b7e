"""The outermost layer: what every answer of either plane gets, in plain ASGI.

It mints the request id, finds the client's address, starts the clock, and on the way out adds
the headers, compresses, counts and logs. Nothing here knows Django, so that a refusal by the
server layer, a page of the admin and a verdict all leave in the same way.
"""

from __future__ import annotations

import ipaddress
import math
import re
import traceback
import zlib
from collections.abc import Callable
from time import perf_counter
from urllib.parse import unquote

from gateway_project.core import errors
from gateway_project.core.context import (
    ASGIApp,
    Message,
    Receive,
    RequestContext,
    Scope,
    Send,
    current,
)
from gateway_project.core.storable import unstorable
from gateway_project.core.telemetry import slow, tracing
from gateway_project.core.telemetry.access_log import observe
from gateway_project.core.telemetry.logging import get_logger

CORRELATION_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{7,127}\Z")
TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")

WHOLE_BODY = "gateway.whole_body"
"""In a scope: gives the body if all of it is here already (`server/exchange.py`), else None."""
CAME = "gateway.came"
"""In a scope: when the request's head was read, in seconds of `perf_counter`."""
LAST_BYTE = "gateway.last_byte"
"""In a scope: gives how many seconds ago the connection's last byte came to this machine."""
API_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"x-frame-options", b"DENY"),
    (b"cache-control", b"no-store"),
]
PAGE_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'none'"
)
PAGE_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", PAGE_POLICY.encode()),
]
OWN = frozenset(name for name, _ in (*API_HEADERS, *PAGE_HEADERS)) | {b"strict-transport-security"}
GZIP_WINDOW = 16 + zlib.MAX_WBITS
# RFC 9110 §12.5.3: `gzip;q=0` says that it is not acceptable.
GZIP_ACCEPTED = re.compile(rb"\bgzip\b(?!\s*;\s*q=0(?:\.0*)?\s*(?:,|$))", re.IGNORECASE)
OF_A_TYPE = (
    "'Content-Type' has a parameter with '*' (RFC 2231), which is not read there. Send it plain: "
    "'application/json', or 'multipart/form-data; boundary=…'."
)
NOT_IN_AN_ADDRESS = "must not hold NUL (U+0000), or half of a surrogate pair; take it out"
BELIEVE = (
    "A proxy, or a caller, sent X-Forwarded-For. Set TRUSTED_PROXY_HOPS if it is a proxy of yours: "
    "now all who come through it count as one address, and share its limits."
)
NO_TRANSFORM = b"no-transform"  # RFC 9111 §5.2.2.6: how an answer says that it holds a secret
COMPRESSIBLE = (b"application/json", b"application/problem+json", b"text/", b"application/yaml")
log = get_logger("gateway.middleware")


def accepts_gzip(accept_encoding: str) -> bool:
    """For a view that has its answer compressed already."""
    return GZIP_ACCEPTED.search(accept_encoding.encode("latin-1", "replace")) is not None


def client_address(peer: str, forwarded_for: str, trusted_hops: int) -> str:
    """The caller's address behind `trusted_hops` proxies of our own.

    Each trusted proxy appends the address it saw to `X-Forwarded-For`, so only that many entries,
    counted from the right, were written by somebody we trust; with fewer, the peer stands.
    """
    if trusted_hops:
        entries = [entry.strip() for entry in forwarded_for.split(",") if entry.strip()]
        if len(entries) >= trusted_hops:
            return _address_in(entries[-trusted_hops]) or peer
    return peer


def _address_in(entry: str) -> str:
    """Without the port that some proxies write behind it: `192.0.2.7:50123`, `[2001:db8::7]:443`.
    Empty for what is no address."""
    if entry.startswith("["):
        entry = entry[1:].partition("]")[0]
    elif entry.count(":") == 1:
        entry = entry.partition(":")[0]
    return entry if _is_address(entry) else ""


def _is_address(text: str) -> bool:
    # What is taken here ends in limits, logs and a column of the database: nothing but an address.
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return getattr(address, "scope_id", None) is None  # `fe80::1%eth0`: PostgreSQL has no zones


def _unfit(scope: Scope) -> errors.GatewayError | None:
    """The refusal of a path, query or header that no store takes, or no library on the way to a
    view reads: here no view can forget it."""
    where = ""
    if unstorable(scope["path"]):
        where = "path"
    elif b"%00" in scope["query_string"]:
        found = (part for part in scope["query_string"].split(b"&") if b"%00" in part)
        where = unquote(next(found).partition(b"=")[0]).replace("\x00", "") or "query"
    elif scope["query_string"].count(b"&") >= errors.FIELDS_MAX:
        return errors.TooManyFields()
    else:
        for name, value in scope["headers"]:
            if b"\x00" in value:
                where = name.decode("latin-1")
            elif name == b"content-type" and b"*" in value.partition(b";")[2]:
                return errors.BadRequest(OF_A_TYPE)
    if not where:
        return None
    return errors.ValidationFailed(errors=[{"field": where, "message": NOT_IN_AN_ADDRESS}])


class RequestMiddleware:
    """Wraps the whole application; see the module's paragraph."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_hops: int = 0,
        gzip_bytes_min: int = 1000,
        is_leaving: Callable[[], bool] = lambda: False,
        hsts_seconds: int = 0,
        slow_seconds: float = math.inf,
    ) -> None:
        self.app = app
        self.trusted_hops = trusted_hops
        self.gzip_bytes_min = gzip_bytes_min
        self.is_leaving = is_leaving
        self.slow_seconds = slow_seconds
        self._has_warned = False
        self.page_headers, self.api_headers = PAGE_HEADERS, API_HEADERS
        if hsts_seconds:
            # Browsers heed it over TLS only, so it may be said in plain behind a proxy as well.
            hsts = f"max-age={hsts_seconds}; includeSubDomains".encode()
            self.page_headers = [*PAGE_HEADERS, (b"strict-transport-security", hsts)]
            self.api_headers = [*API_HEADERS, (b"strict-transport-security", hsts)]

    def _context(self, scope: Scope) -> tuple[RequestContext, bool]:
        correlation = traceparent = None
        forwarded = host = ""
        is_gzip_accepted = is_watched = False
        for name, value in scope["headers"]:
            if name == b"host":
                host = value.decode("latin-1")
            elif name == b"x-request-id":
                correlation = value.decode("latin-1")
            elif name == b"accept-encoding":
                is_gzip_accepted = bool(GZIP_ACCEPTED.search(value))
            elif name == b"x-forwarded-for":
                forwarded = f"{forwarded},{value.decode('latin-1')}"
            elif name == b"traceparent":
                traceparent = value.decode("latin-1")
            elif name == b"x-debug-timing":
                is_watched = True
        if correlation is not None and not CORRELATION_ID.match(correlation):
            correlation = None
        if traceparent is not None and not TRACEPARENT.match(traceparent):
            traceparent = None
        if forwarded and not self.trusted_hops and not self._has_warned:
            self._has_warned = True  # once: anybody can send one
            log.warning("forwarded_for_ignored", do=BELIEVE)
        peer = scope.get("client")
        address = client_address(peer[0] if peer else "", forwarded, self.trusted_hops)
        context = RequestContext(address, correlation, traceparent)
        context.host = host
        if is_watched or self.slow_seconds < math.inf:
            context.trace = slow.Trace(
                queued_seconds=context.started - scope.get(CAME, context.started),
                unread_seconds=scope[LAST_BYTE]() if LAST_BYTE in scope else 0.0,
                slow_seconds=0.0 if is_watched else self.slow_seconds,
            )
        return context, is_gzip_accepted

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        context, is_gzip_accepted = self._context(scope)
        scope["gateway"] = context
        current.set(context)
        if scope["type"] == "websocket":
            await self.app(scope, receive, send)
            return
        span = None
        if tracing.tracer is not None:
            span = tracing.begin(scope["method"], context.traceparent, "server")
            context.traceparent = tracing.traceparent_of(span)
        # What the server has found wrong by HTTP's own rules comes first (`server/heads.py`).
        unfit = scope.get("refusal") or _unfit(scope)
        status = 0
        held: Message | None = None
        gzip: zlib._Compress | None = None

        async def send_finished(message: Message) -> None:
            # The start is held until the first piece of body is here: only then is it known how
            # large the answer is, and so whether it pays to compress it.
            nonlocal status, held, gzip
            if message["type"] == "http.response.start":
                status = message["status"]
                held = message
                return
            if held is not None:
                start, held = held, None
                headers = list(start["headers"])
                if self._pays(message, headers):
                    headers = _varying(headers)  # both variants say so, for caches
                    if is_gzip_accepted:
                        gzip = zlib.compressobj(4, zlib.DEFLATED, GZIP_WINDOW)
                        headers = [h for h in headers if h[0].lower() != b"content-length"]
                        headers.append((b"content-encoding", b"gzip"))
                        message = _compressed(message, gzip)
                        if not message.get("more_body", False):
                            headers.append((b"content-length", b"%d" % len(message["body"])))
                if status == 204:  # RFC 9110 §8.6
                    headers = [h for h in headers if h[0].lower() != b"content-length"]
                whole = None if message.get("more_body", False) else len(message.get("body", b""))
                await send({**start, "headers": self._headers(context, headers, whole)})
            elif gzip is not None:
                message = _compressed(message, gzip)
            await send(message)

        try:
            if unfit is None:
                await self.app(scope, receive, send_finished)
            else:
                await send_problem(send_finished, unfit, scope)
        except Exception as exc:  # noqa: BLE001 - the last line: whatever failed, the client gets a problem
            log.error(
                "unhandled_exception",
                request_id=context.request_id,
                correlation_id=context.correlation_id,
                error=type(exc).__name__,
                stack="".join(traceback.format_exception(exc)),
            )
            if status == 0 or held is not None:
                held = None
                await send_problem(send_finished, errors.InternalError(), scope)
        finally:
            # Else only the collector would end the connection and what it holds.
            scope.pop(WHOLE_BODY, None)
            scope.pop(LAST_BYTE, None)
            seconds = perf_counter() - context.started
            # 499: the client was gone before there was an answer (nginx's convention).
            status = status or 499
            if context.usage is not None:
                context.usage.finished(context, status, seconds)
            observe(context, method=scope["method"], status=status, seconds=seconds)
            if context.trace is not None:
                context.trace.end(context, status, seconds)
            if span is not None:
                tracing.end(
                    span,
                    error=status >= 500,
                    name=f"{scope['method']} {context.route}",
                    **{
                        "http.request.method": scope["method"],
                        "http.route": context.route,
                        "http.response.status_code": status,
                        "gateway.request_id": context.request_id,
                    },
                )

    def _pays(self, first: Message, headers: list[tuple[bytes, bytes]]) -> bool:
        return len(first.get("body", b"")) >= self.gzip_bytes_min and _may_compress(headers)

    def _headers(
        self, context: RequestContext, headers: list[tuple[bytes, bytes]], whole: int | None
    ) -> list[tuple[bytes, bytes]]:
        """`whole`: the length of a body that is there already, and none to be left out."""
        is_page = False
        names = set()
        for name, value in headers:
            lower = name.lower()
            names.add(lower)
            if lower == b"content-type" and not value.startswith(b"application/"):
                is_page = True
        own = self.page_headers if is_page else self.api_headers
        headers += own if names.isdisjoint(OWN) else [h for h in own if h[0] not in names]
        if whole and b"content-length" not in names:
            headers.append((b"content-length", b"%d" % whole))
        # Of two limits the one that refused speaks: its headers are on the answer already.
        headers += [header for header in context.headers if header[0] not in names]
        total = (perf_counter() - context.started) * 1000
        upstream = context.upstream_seconds * 1000
        limiter = context.limiter_seconds * 1000
        timing = (
            f"gateway;dur={total - upstream - limiter:.2f}, "
            f"limiter;dur={limiter:.2f}, upstream;dur={upstream:.2f}"
        )
        headers.append((b"server-timing", timing.encode()))
        if self.is_leaving() and b"connection" not in names:
            # Proxies and clients give this connection up before the process closes it.
            headers.append((b"connection", b"close"))
        request_id = context.correlation_id or context.request_id
        headers.append((b"x-request-id", request_id.encode()))
        return headers


def _compressed(message: Message, gzip: zlib._Compress) -> Message:
    body = gzip.compress(message.get("body", b""))
    if not message.get("more_body", False):
        body += gzip.flush()
    return {**message, "body": body}


def _varying(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """With `Accept-Encoding` in the one `Vary`."""
    before = [value for name, value in headers if name.lower() == b"vary"]
    rest = [header for header in headers if header[0].lower() != b"vary"]
    return [*rest, (b"vary", b", ".join([*before, b"Accept-Encoding"]))]


def _may_compress(headers: list[tuple[bytes, bytes]]) -> bool:
    compressible = False
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-encoding" or (lower == b"cache-control" and NO_TRANSFORM in value):
            return False
        if lower == b"content-type":
            compressible = value.startswith(COMPRESSIBLE)
    return compressible


async def send_problem(send: Send, error: errors.GatewayError, scope: Scope) -> None:
    """Answer with `error` straight from the ASGI layer; a WebSocket's handshake as well."""
    context: RequestContext = scope["gateway"]
    context.error_code = error.code
    kind, more = "http", []
    if scope["type"] == "websocket":
        kind, more = (
            "websocket.http",
            [*API_HEADERS, (b"x-request-id", context.request_id.encode())],
        )
        if "websocket.http.response" not in scope.get("extensions", {}):
            await send({"type": "websocket.close"})  # not accepted yet: a 403 without words
            return
    body = errors.problem(error, instance=scope["path"], request_id=context.request_id)
    headers = [
        (b"content-type", errors.CONTENT_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        *((k.lower().encode(), v.encode()) for k, v in error.headers.items()),
        *more,
    ]
    body = b"" if scope.get("method") == "HEAD" else body
    await send({"type": f"{kind}.response.start", "status": error.status_code, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body})
