"""The server's protocols: what is HTTP is served within bounds, and what is not is told so.

uvicorn limits neither the size of a request's head nor the time it may take, so a thousand
connections that send one byte a minute would stay for ever. Bodies have limits of their own
(`core/api/bodies.py`). Whoever reads next to nothing of an answer is hung up on. What must not be
served (`heads.py`) goes to the application with its refusal, so that it leaves in the format of
every other error; what cannot even be split into a request is refused here. A WebSocket that is
closed from here ends within seconds, whether or not its client still reads.

Connections that come in one burst, as those of a proxy's pool do, are mostly accepted by the one of
several processes that is awake. So each ends after about a hundred requests, and is told so with
its last answer: the next is accepted by who has the least to do.
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
import sys
from collections.abc import Callable
from http import HTTPStatus
from random import randint
from time import perf_counter
from typing import Any

import httptools
from django.conf import settings
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway_project.core import errors
from gateway_project.core.api.middleware import CAME, LAST_BYTE, WHOLE_BODY
from gateway_project.core.context import ASGIApp, Message, Receive, RequestContext, Scope, Send
from gateway_project.core.telemetry.access_log import observe
from gateway_project.core.telemetry.slow import seconds_since_last_byte
from gateway_project.server import heads
from gateway_project.server.exchange import Exchange

httptools_impl.RequestResponseCycle = Exchange  # type: ignore[misc]  # the name that it calls
HEAD_BYTES_MAX = 32 * 1024
LINE_BYTES_MAX = 8_000
"""Of an address, which RFC 9110 §4.1 wants to be possible, and of one header."""
HEADERS_MAX = 100
BLANKS = b" \t"  # around a header's value they mean nothing (RFC 9110 §5.5)
LIST_BLANKS = BLANKS + b","  # and around one that is a list (RFC 9110 §5.6.1)
METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ ")
WRONG_VERSION = (
    *("Invalid HTTP version", "Invalid major version", "Invalid minor version", "Expected dot"),
)
OF_ANOTHER_PROTOCOL = "Invalid method for HTTP/x.x request"  # DESCRIBE of RTSP
PREFACE = b"PRI * HTTP/2.0"  # RFC 9113 §3.4
OLDEST = re.compile(rb"(?:\r\n)*[A-Z]+ [^ \r\n]+\r?\n")
"""A whole request of HTTP/0.9."""
ABSOLUTE = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
CLOSE_SECONDS_MAX = 5.0
LINGER_SECONDS_MAX, LINGER_BYTES_MAX = 5.0, 20 << 20
REQUESTS_OF_A_CONNECTION = 50, 150  # by chance, so that those of a burst do not come again in one
READ_BYTES_MIN = 16 * 1024
"""What a client that is behind has to read of an answer in `ANSWER_STALL_SECONDS_MAX`."""


class _Refused(Exception):
    """The parser passes it on as an error of its own."""


class _Lingering:
    """A transport that is not closed on somebody who is still sending.

    The kernel answers what comes then with a reset, which takes an answer that was not read yet
    away from its client (RFC 9112 §9.6). So ours is the first half to be closed, and what comes is
    thrown away for a while.
    """

    def __init__(self, transport: Any, has_read_all: Callable[[], bool]) -> None:
        self.real = transport
        self._has_read_all = has_read_all
        self.write = transport.write
        self.lingers: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def is_closing(self) -> bool:
        return self.lingers is not None or self.real.is_closing()

    def close(self) -> None:
        if self.lingers is not None:
            return
        if self.real.is_closing() or self._has_read_all():
            self.real.close()
            return
        loop = asyncio.get_running_loop()
        self.lingers = loop.call_later(LINGER_SECONDS_MAX, self.real.abort)
        self.real.resume_reading()
        if self.real.can_write_eof():
            self.real.write_eof()


class BoundedHTTPProtocol(HttpToolsProtocol):
    """See the module's paragraph."""

    transport: Any  # what it is while an exchange goes on: `_Lingering`
    _is_in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None
    _wrong: errors.GatewayError | None = None
    _is_handshake = _is_unread = False
    _thrown_away = 0
    _idle_since: float | None = None
    _requests_left = sys.maxsize

    def connection_made(self, transport: Any) -> None:
        if self.config.workers > 1:
            self._requests_left = randint(*REQUESTS_OF_A_CONNECTION)
        super().connection_made(_Lingering(transport, self._has_read_all))  # type: ignore[arg-type]
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching_reader()
        if self.transport.lingers is not None:
            self.transport.lingers.cancel()
        self._stop_watching_idleness()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_reader()

    def _unset_keepalive_if_required(self) -> None:
        self._idle_since = None

    def _look_whether_idle(self) -> None:
        # One timer for a connection, not one for each pause of it.
        wait = float(self.timeout_keep_alive)
        if self._idle_since is not None:
            wait -= self.loop.time() - self._idle_since
        if wait <= 0:
            self.timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(wait, self._look_whether_idle)

    def _stop_watching_idleness(self) -> None:
        if self.timeout_keep_alive_task is not None:
            self.timeout_keep_alive_task.cancel()
            self.timeout_keep_alive_task = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # a close waits until it is read
            self._reset()

    def data_received(self, data: bytes) -> None:
        if self._wrong is not None or self.transport.lingers is not None:
            self._thrown_away += len(data)
            if self._thrown_away > LINGER_BYTES_MAX:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._feed(data)
        # A head that came whole, as nearly all do, has started no timer.
        if not self._is_in_head:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_timer()

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                if self._is_handshake:
                    self.handle_websocket_upgrade()
                    return
                if refused := self.scope.get("refusal"):
                    self._wrong = refused  # type: ignore[assignment]  # what follows is no request
                    return
                data = data[upgrade.args[0] :]
                if self._is_unread:
                    data = self._head_without_upgrade() + data
            except httptools.HttpParserError as error:
                self._refuse(self._wrong or _not_http(error, data))
                return
            else:
                break
        if self._is_in_head and OLDEST.match(data):
            self._refuse(errors.VersionNotSupported())  # it has no headers that could end

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._head_bytes += len(url)
        if self._head_bytes > LINE_BYTES_MAX:
            self._stop(errors.AddressTooLong())

    def on_header(self, name: bytes, value: bytes) -> None:
        size = len(name) + len(value) + 4
        self._head_bytes += size
        if size > LINE_BYTES_MAX or self._head_bytes > HEAD_BYTES_MAX:
            self._stop(errors.HeadersTooLarge())
        if not self._is_in_head:  # behind the body, and nobody is told (RFC 9110 §6.5.1)
            return
        name, value = name.lower(), value.strip(BLANKS)
        if name == b"host":
            value = value.removesuffix(b":")  # a port may be empty (RFC 3986 §3.2.3)
        elif name == b"expect":
            value = value.strip(LIST_BLANKS)
            if value.lower() == b"100-continue":
                self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self._is_in_head = self._is_handshake = self._is_unread = False
        if len(self.headers) > HEADERS_MAX:
            self._stop(errors.HeadersTooLarge())
        method, version = self.parser.get_method(), self.parser.get_http_version()
        if b"#" in self.url:  # it is never sent (RFC 9112 §3.2.1): others take it for the path
            self._stop(errors.BadRequest("The target has a '#'. Send it without, or as %23."))
        if not self.url.startswith(b"/"):
            self._set_target(method, version)
        refused = heads.refusal(method, version, self.headers)
        if refused is not None:
            self.scope["refusal"] = refused  # type: ignore[typeddict-unknown-key]
        elif self.parser.should_upgrade():
            self._is_handshake = heads.wants_websocket(method, version, self.headers)
            if self._is_handshake and self._is_answering():
                # Its 101 would come before what was asked first.
                self._stop(errors.BadRequest("A handshake behind a request. Wait for its answer."))
            # The parser takes what follows for another protocol, but where the upgrade is passed
            # over it is the body: Java's own client asks for h2c with each request.
            self._is_unread = not self._is_handshake and heads.has_body(self.headers)
            if self._is_unread:
                return
        if version == "1.0":  # it knows no answer between two (RFC 9110 §10.1.1)
            self.expect_100_continue = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_unread:
            super().on_message_complete()

    def _head_without_upgrade(self) -> bytes:
        method = self.parser.get_method()
        lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _set_target(self, method: bytes, version: str) -> None:
        """The forms of a target that are no path (RFC 9112 §3.2)."""
        if method == b"CONNECT":
            self.url = b"/"
            return
        if self.url == b"*" and method == b"OPTIONS":
            self.url = heads.ASTERISK.encode()
            return
        found = ABSOLUTE.match(self.url)
        if found is None:
            self._stop(
                errors.BadRequest("The target is neither a path nor a http(s) address. Send one.")
            )
            return
        # Whatever 'Host' says, this is the host.
        hosts = [i for i, (name, _) in enumerate(self.headers) if name == b"host"]
        if len(hosts) == 1:
            self.headers[hosts[0]] = (b"host", found[1])
        elif not hosts and version == "1.0":
            self.headers.append((b"host", found[1]))
        self.url = b"/" + self.url[found.end() :].removeprefix(b"/")

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _should_upgrade(self) -> bool:
        return self._is_handshake

    def handle_websocket_upgrade(self) -> None:
        self._stop_timer()
        self._stop_watching_idleness()
        others = [header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        # In one word, which is all that the WebSocket library reads.
        self.headers[:] = [*others, (b"upgrade", b"websocket"), (b"connection", b"upgrade")]
        wire, self.transport = self.transport, self.transport.real
        super().handle_websocket_upgrade()
        if not wire.get_protocol().handshake_initiated:
            self._refuse(errors.BadRequest())  # it would say nothing, and wait

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        scope: Scope = cycle.scope  # type: ignore[assignment]  # uvicorn knows none of ours
        scope[WHOLE_BODY], scope[CAME] = cycle.whole_body, perf_counter()  # type: ignore[attr-defined]
        scope[LAST_BYTE] = self._seconds_since_last_byte
        self._requests_left -= 1
        if self._requests_left <= 0 and not self.pipeline:
            cycle.keep_alive = False
        if cycle.scope["http_version"] == "1.0":
            app = _until_closed(app, cycle)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        if self.cycle.more_body and not self.pipeline:  # answered before it was read
            self.transport.close()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._idle_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_whether_idle()

    def _has_read_all(self) -> bool:
        """Of what the client is sending, as far as one knows."""
        return self._wrong is None and (self.cycle is None or not self.cycle.more_body)

    def shutdown(self) -> None:
        if self.transport.lingers is not None:
            self.transport.abort()
        super().shutdown()

    def _stop(self, error: errors.GatewayError) -> None:
        self._wrong = error
        raise _Refused

    def _refuse(self, error: errors.GatewayError) -> None:
        """Answer what is no request that the application could be given, and close.

        Requests before it are answered first, and then nothing is said to what followed.
        """
        self._wrong = error
        self._stop_timer()
        if self._is_answering():
            self.cycle.keep_alive = False
            if not self.cycle.more_body or self.cycle.response_started or self.pipeline:
                return
            self.cycle.disconnected = True  # its body will never be whole
            self.cycle.message_event.set()
        context = RequestContext(self.client[0] if self.client else "", None, None)
        context.error_code = error.code
        body = errors.problem(error, instance="", request_id=context.request_id)
        phrase = HTTPStatus(error.status_code).phrase
        head = (
            f"HTTP/1.1 {error.status_code} {phrase}\r\n"
            f"content-type: {errors.CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {context.request_id}\r\ncache-control: no-store\r\n"
            "connection: close\r\n"
        ).encode()
        for name, value in self.server_state.default_headers:  # the date (RFC 9110 §6.6.1)
            head += name + b": " + value + b"\r\n"
        self.transport.write(head + b"\r\n" + (b"" if self._is_of_head() else body))
        self.transport.close()
        seconds = perf_counter() - context.started
        observe(context, method="", status=error.status_code, seconds=seconds)

    def _seconds_since_last_byte(self) -> float:
        """As the kernel knows it, to some milliseconds; 0 where it does not."""
        return seconds_since_last_byte(self.transport.get_extra_info("socket"))

    def _is_of_head(self) -> bool:
        """Whether what is refused asks for no body, as far as one knows."""
        return bool(self.url) and self.parser.get_method() == b"HEAD"

    def _watch_reader(self) -> None:
        unread = self.transport.get_write_buffer_size()
        self._reader_timer = self.loop.call_later(
            settings.ANSWER_STALL_SECONDS_MAX, self._abort_unless_read, unread
        )

    def _abort_unless_read(self, unread: int) -> None:
        if self.transport.get_write_buffer_size() > unread - READ_BYTES_MIN:
            self._reset()
        else:
            self._watch_reader()

    def _reset(self) -> None:
        # Otherwise the kernel would keep what it has not sent, and try for minutes.
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def _stop_watching_reader(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def _start_timer(self) -> None:
        close = self.transport.real.close
        self._head_timer = self.loop.call_later(settings.HEAD_SECONDS_MAX, close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _not_http(error: httptools.HttpParserError, data: bytes) -> errors.GatewayError:
    """What is wrong with bytes that the parser gave up on."""
    is_method = isinstance(error, httptools.HttpParserInvalidMethodError) or (
        str(error) == OF_ANOTHER_PROTOCOL
    )
    if is_method and METHOD.match(data):
        return errors.NotImplementedHere()
    if str(error) in WRONG_VERSION or data.startswith(PREFACE):
        return errors.VersionNotSupported()
    return errors.BadRequest(f"This is not HTTP/1.1: {error}. Send a request of HTTP/1.1.")


def _until_closed(app: ASGIApp, cycle: RequestResponseCycle) -> ASGIApp:
    """HTTP/1.0 knows no chunks: an answer without a length ends with its connection."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_plainly(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                cycle.expected_content_length = len(message.get("body", b""))
            await send(message)

        await app(scope, receive, send_plainly)

    cycle.chunked_encoding, cycle.expected_content_length = False, sys.maxsize
    return wrapped


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn waits until the client has read everything, also before it says goodbye."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CLOSE_SECONDS_MAX, self.transport.abort)
        await super().send(message)
        if message["type"] == "websocket.http.response.body":
            self.handshake_complete = True  # it was refused; uvicorn would log an error for it

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # who answers no ping reads no goodbye
