"""The server's protocols, bounded: a head that is endless or never ends is turned away.

uvicorn limits neither the size of a request's head nor the time it may take, so a thousand
connections that send one byte a minute would stay for ever. Bodies have limits of their own
(`core/api/bodies.py`). Whoever reads next to nothing of an answer is hung up on. What is not HTTP
at all is refused in the format of every other error. A WebSocket that is closed from here ends
within seconds, whether or not its client still reads.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Any

from django.conf import settings
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from gateway_project.core import errors
from gateway_project.core.clock import new_id

HEAD_BYTES_MAX = 32 * 1024
CLOSE_SECONDS_MAX = 5.0
READ_BYTES_MIN = 16 * 1024
"""What a client that is behind has to read of an answer in `ANSWER_STALL_SECONDS_MAX`."""


class _HeadTooLarge(Exception):
    pass


class BoundedHTTPProtocol(HttpToolsProtocol):
    """See the module's paragraph."""

    _is_in_head = True
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        self._stop_watching_reader()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching_reader()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # a close waits until it is read
            self._reset()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # A head that came whole, as nearly all do, has started no timer.
        if not self._is_in_head:
            self._stop_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_timer()

    def on_message_begin(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _HeadTooLarge  # the parser passes it on as its own error

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not a request, and close."""
        detail = None
        if self._head_bytes > HEAD_BYTES_MAX:
            detail = f"Address and headers are larger than {HEAD_BYTES_MAX // 1024} KiB together."
        request_id = str(new_id())
        body = errors.problem(errors.BadRequest(detail), instance="", request_id=request_id)
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            f"content-type: {errors.CONTENT_TYPE}\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

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
        self._head_timer = self.loop.call_later(settings.HEAD_SECONDS_MAX, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class BoundedWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn waits until the client has read everything, also before it says goodbye."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CLOSE_SECONDS_MAX, self.transport.abort)
        await super().send(message)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.transport.abort()  # who answers no ping reads no goodbye
