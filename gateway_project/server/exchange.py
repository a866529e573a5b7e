"""A request and its answer on a connection: uvicorn's, and quicker where an answer is whole.

uvicorn writes the head and then the body, and looks at each header for what must not be in one.
Nearly all answers of ours are there as a whole when they begin, with their length: those leave in
one piece, whose head is looked at once. All others are left to uvicorn.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from gateway_project.core.context import Message

LINE_END = b"\r\n"
CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""In no header (RFC 9110 §5.5). Ends of lines are counted instead."""
WITHOUT_BODY = (204, 304)


class Exchange(RequestResponseCycle):
    """See the module's paragraph."""

    on_response: Callable[[], None]
    _start: Any = None  # the message, held till the body's first piece is here

    def whole_body(self) -> bytes | None:
        """The request's body, if all of it came with the head; nobody is given it again.

        `core/api/bodies.py` asks, which else would have to watch the time while it waits.
        """
        if self.more_body or self.disconnected or self.waiting_for_100_continue:
            return None
        body, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        return body

    async def send(self, message: Any) -> None:
        if not self.response_started and message["type"] == "http.response.start":
            self.response_started = True
            self._start = message
            return
        start, self._start = self._start, None
        if start is None:
            await super().send(message)
            return
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        head = self._head_of_whole(start, message)
        if head is None:
            self.response_started = False
            await super().send(start)
            await super().send(message)
            return
        if self.disconnected:
            return
        self.transport.write(head + message["body"])
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    def _head_of_whole(self, start: Message, message: Message) -> bytes | None:
        """None: the answer is not whole, or says something of its connection."""
        status, body = start["status"], message.get("body", b"")
        if (
            message.get("more_body", False)
            or status in WITHOUT_BODY
            or self.chunked_encoding is not None
            or self.scope["method"] == "HEAD"
        ):
            return None
        lines = [STATUS_LINE[status]]
        headers = (*self.default_headers, *start["headers"])
        ends, length = len(headers) + 2, -1
        for name, value in headers:
            name = name.lower()
            if name == b"content-length":
                length = int(value)
            elif name in (b"connection", b"transfer-encoding"):
                return None
            lines += (name, b": ", value, LINE_END)
        if length != len(body):
            return None
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
            ends += 1
        lines.append(LINE_END)
        head = b"".join(lines)
        if CONTROL.search(head) or head.count(b"\r") != ends or head.count(b"\n") != ends:
            return None  # uvicorn refuses it
        return head
