"""One of Robin's two HTTP servers: a single thread behind the JDK's way of matching paths.

A request goes to the longest registered prefix, so that every unknown address is the landing page.
A handler is a plain function from `Call` to `Reply`; what it raises closes the connection without
an answer, as the JDK does. `Faults` makes it fail in the ways that servers fail.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import socket
from base64 import b64encode
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, unquote_plus

from aiohttp import web

JSON, HTML, TEXT = (f"{t}; charset=utf-8" for t in ("application/json", "text/html", "text/plain"))
ILLEGAL = re.compile(r'[{}|"\[\]^`\\<> ]')
KEEP_ALIVE_SECONDS = 30.0
BODY_BYTES_MAX = 32 << 20
ACCEPT_STEPS = 8
"""In so many steps asyncio's loop makes a connection of what it accepted."""


class Refused(Exception):
    """An answer that ends the handler early."""

    def __init__(self, status: int, text: str, *, is_json: bool = False) -> None:
        super().__init__(text)
        self.reply = Reply(text, status, JSON if is_json else TEXT)


@dataclass(frozen=True)
class Call:
    """`path` was decoded once, as `URI.getPath()` does."""

    method: str
    path: str
    query: dict[str, str]
    accept: str
    content_type: str
    body: bytes
    is_authorised: bool

    def segments(self, prefix: str) -> list[str]:
        """What follows `prefix`, decoded a second time: Robin's own `URLDecoder`."""
        return [unquote_plus(part) for part in self.path[len(prefix) :].split("/") if part]

    @property
    def wants_json(self) -> bool:
        return "application/json" in self.accept


@dataclass(frozen=True)
class Reply:
    content: str | bytes = b""
    status: int = 200
    content_type: str = TEXT
    headers: dict[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200) -> Reply:
    return Reply(json.dumps(content, separators=(",", ":")), status, JSON)


Handler = Callable[[Call], Reply]
Work = Callable[[Call], Awaitable[None]]
"""What it costs, before it is answered."""


@dataclass(frozen=True)
class Context:
    """What is registered at a prefix. `methods` are checked before the credentials."""

    handle: Handler
    methods: frozenset[str] = frozenset()
    needs_auth: bool = True
    work: Work | None = None


@dataclass
class Auth:
    kind: Literal["none", "basic", "bearer"] = "none"
    value: str = ""
    """`user:password`, or the token; empty: no check, whatever the kind."""
    allow: tuple[str, ...] = ()

    def admits(self, header: str, peer: str) -> bool:
        if self.kind == "none" or not self.value:
            return True
        if any(ipaddress.ip_address(peer) in ipaddress.ip_network(net) for net in self.allow):
            return True
        if self.kind == "basic":
            return header == f"Basic {b64encode(self.value.encode()).decode()}"
        return header == f"Bearer {self.value}"


@dataclass
class Faults:
    """How to fail. `prefix` narrows it to some paths, `times` to so many requests (0: always)."""

    answer: Literal["", "500", "401", "hang", "reset", "half", "html", "empty", "flap"] = ""
    latency_seconds: float = 0.0
    prefix: str = ""
    times: int = 0
    met: int = 0

    def next(self, path: str) -> str:
        if not self.answer or not path.startswith(self.prefix):
            return ""
        self.met += 1
        if self.times and self.met > self.times:
            return ""
        if self.answer == "flap":
            return "500" if self.met % 2 else ""
        return self.answer


@dataclass
class RobinAPI:
    """A listener. `asked` holds (method, raw target) of every request, oldest first."""

    name: str
    realm: str
    landing: str
    contexts: dict[str, Context]
    auth: Auth = field(default_factory=Auth)
    faults: Faults = field(default_factory=Faults)
    one_at_a_time: bool = True
    asked: list[tuple[str, str]] = field(default_factory=list)
    headers_seen: list[dict[str, str]] = field(default_factory=list)
    port: int = 0
    _runner: web.AppRunner | None = None
    _listening: socket.socket | None = None
    _thread: asyncio.Lock = field(default_factory=asyncio.Lock)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def start(self, host: str = "127.0.0.1", port: int | None = None) -> None:
        """Listen; again at the same port after `stop` (then it was "down")."""
        server = web.Server(
            self._serve,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            access_log=None,
            handler_cancellation=True,
        )
        self._thread, self._stopping = asyncio.Lock(), asyncio.Event()
        self._runner = web.ServerRunner(server, shutdown_timeout=0)  # type: ignore[assignment]
        assert self._runner is not None  # noqa: S101
        await self._runner.setup()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        where = (host, self.port if port is None else port)
        self._listening = socket.create_server(where, family=family)
        self.port = self._listening.getsockname()[1]
        await web.SockSite(self._runner, self._listening).start()

    async def stop(self) -> None:
        self._stopping.set()  # what hangs lets go
        if self._runner is not None and self._listening is not None:
            # Nobody more is accepted, and who was gets his connection: asyncio makes none once its
            # server is closed, and leaves the socket open.
            asyncio.get_running_loop().remove_reader(self._listening.fileno())
            for _ in range(ACCEPT_STEPS):
                await asyncio.sleep(0)
            await self._runner.cleanup()
            self._runner = self._listening = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        target = request.raw_path
        self.asked.append((request.method, target))
        self.headers_seen.append(dict(request.headers))
        path, _, query = target.partition("?")
        if self.faults.latency_seconds and path.startswith(self.faults.prefix):
            await asyncio.sleep(self.faults.latency_seconds)
        fault = self.faults.next(path)
        if not self.one_at_a_time:
            return await self._answer(request, path, query, fault)
        async with self._thread:
            return await self._answer(request, path, query, fault)

    async def _answer(
        self, request: web.BaseRequest, path: str, query: str, fault: str
    ) -> web.StreamResponse:
        if fault:
            return await self._fail(request, fault)
        if ILLEGAL.search(path + query):
            text = "<h1>400 Bad Request</h1>URISyntaxException thrown"
            return _close(_sent(Reply(text, 400, "text/html")))
        body = await request.read()
        try:
            decoded = unquote(path, errors="replace")
            await self._work(request, decoded, query, body)
            return _sent(self.handle(request, decoded, query, body))
        except Exception:  # noqa: BLE001 - whatever a handler throws, the JDK hangs up
            return _hang_up(request)

    def _context(self, path: str) -> Context:
        return self.contexts[max((p for p in self.contexts if path.startswith(p)), key=len)]

    async def _work(self, request: web.BaseRequest, path: str, query: str, body: bytes) -> None:
        context = self._context(path)
        if context.work is not None:
            await context.work(self._call(request, path, query, body, is_authorised=True))

    def handle(self, request: web.BaseRequest, path: str, query: str, body: bytes) -> Reply:
        context = self._context(path)
        peer = request.remote or "127.0.0.1"
        is_authorised = self.auth.admits(request.headers.get("Authorization", ""), peer)
        if context.methods and request.method not in context.methods:
            return Reply("Method Not Allowed", 405)
        if context.needs_auth and not is_authorised:
            return self.unauthorised()
        call = self._call(request, path, query, body, is_authorised=is_authorised)
        try:
            return context.handle(call)
        except Refused as refused:
            return refused.reply

    def _call(
        self,
        request: web.BaseRequest,
        path: str,
        query: str,
        body: bytes,
        *,
        is_authorised: bool,
    ) -> Call:
        values = parse_qs(query, keep_blank_values=True)
        return Call(
            method=request.method,
            path=path,
            query={name: found[0] for name, found in values.items()},
            accept=request.headers.get("Accept", ""),
            content_type=request.headers.get("Content-Type", ""),
            body=body,
            is_authorised=is_authorised,
        )

    def unauthorised(self) -> Reply:
        scheme = "Bearer" if self.auth.kind == "bearer" else "Basic"
        challenge = {"WWW-Authenticate": f'{scheme} realm="{self.realm}"'}
        return Reply("Unauthorized", 401, headers=challenge)

    async def _fail(self, request: web.BaseRequest, how: str) -> web.StreamResponse:
        match how:
            case "hang":
                await self._stopping.wait()
                return _hang_up(request)
            case "reset":
                return _hang_up(request)
            case "half":
                response = web.StreamResponse(
                    headers={"Content-Length": "5000", "Content-Type": JSON}
                )
                await response.prepare(request)
                await response.write(b'{"status":"OK","deletedCount":')
                if request.transport is not None:
                    request.transport.close()
                return response
            case "html":
                return _sent(Reply(self.landing, content_type=HTML))
            case "401":
                return _sent(self.unauthorised())
            case "empty":
                return _sent(Reply())
        return _sent(Reply("Internal Server Error: switched to fail", 500))


def _sent(reply: Reply) -> web.Response:
    content = reply.content.encode() if isinstance(reply.content, str) else reply.content
    headers = {"Content-Type": reply.content_type, **reply.headers}
    response = web.Response(body=content or None, status=reply.status, headers=headers)
    if not content:
        response.enable_chunked_encoding()  # the JDK's way of sending nothing
    return response


def _close(response: web.Response) -> web.Response:
    response.force_close()
    return response


def _hang_up(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
