"""The one door to our upstreams: a pooled client, a total deadline, a bulkhead, plain errors.

asyncio connects and does TLS, httptools parses, and nothing stands between them: a client library
costs as much as the rest of a request (docs/decisions/0003). One client per upstream and process,
opened in the lifespan. It knows no redirects, proxies, cookies or compression, and takes no more
than `answer_bytes_max` of an answer.
"""

from __future__ import annotations

import asyncio
import ssl
from base64 import b64encode
from collections import deque
from collections.abc import Hashable, Mapping
from time import monotonic, perf_counter
from types import TracebackType
from typing import NamedTuple, cast
from urllib.parse import unquote, urlsplit

from httptools import HttpParserError, HttpResponseParser

from gateway_project.core.sharing import FairSemaphore
from gateway_project.core.telemetry.metrics import upstream_duration

KEEP_SECONDS = 30.0  # a connection that rested longer is not trusted to be alive
HEAD_BYTES_MAX = 64 << 10


class UpstreamError(Exception):
    """An upstream did not give an answer. `reason` is a stable word for logs and replies."""

    reason = "engine_error"


class ConnectFailed(UpstreamError):
    """Refused, reset, unresolvable, or a TLS failure."""

    reason = "connect_error"


class UpstreamTimeout(UpstreamError):
    """No whole answer within the deadline, the wait for a free slot included.

    `had_seconds` is how long the upstream had the request: 0 when it never got a slot.
    """

    reason = "timeout"

    def __init__(self, message: str, had_seconds: float) -> None:
        super().__init__(message)
        self.had_seconds = had_seconds


class BadAnswer(UpstreamError):
    """An answer came, but half of it, too much of it, or not in HTTP."""


class AnswerTooLarge(BadAnswer):
    """More than `answer_bytes_max`."""


class Answer(NamedTuple):
    """`queued_seconds`: how long the request waited for a free slot before it left."""

    status: int
    content: bytes
    queued_seconds: float


class _Connection(asyncio.Protocol):
    """One HTTP/1.1 connection with one exchange at a time. RFC 9112."""

    _transport: asyncio.Transport
    _parser: HttpResponseParser

    def __init__(self, bytes_max: int) -> None:
        self.is_open = False
        self.idle_since = 0.0
        self._bytes_max = bytes_max
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._parts: list[bytes] = []
        self._received = 0
        self._has_head = False
        self._ends_by_closing = True

    def close(self) -> None:
        self.is_open = False
        self._transport.abort()

    async def exchange(self, message: bytes, deadline: float) -> tuple[int, bytes]:
        """Status and body; `deadline` is of the loop's clock.

        Raises `ConnectFailed` if nothing came, `BadAnswer` if half did, `TimeoutError`.
        """
        loop = asyncio.get_running_loop()
        self._answer = loop.create_future()
        self._parser = HttpResponseParser(self)
        self._received = 0
        self._has_head, self._ends_by_closing = False, True
        # A timer of our own: `asyncio.timeout` costs four times as much for each request.
        timer = loop.call_at(deadline, self._fail, TimeoutError())
        try:
            self._transport.write(message)
            return await self._answer
        except RuntimeError as exc:  # uvloop's word for a transport that is closed already
            raise ConnectFailed(str(exc)) from exc
        except BaseException:
            self.close()  # a late answer would be taken for that to another request
            raise
        finally:
            timer.cancel()
            self._parts = []

    # -- asyncio's side ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        if self._answer is None or self._answer.done():
            self.close()  # nobody asked
            return
        self._received += len(data)
        if self._received > self._bytes_max:
            self._fail(AnswerTooLarge("answer too large"))
            return
        try:
            self._parser.feed_data(data)
        except (HttpParserError, ValueError) as exc:
            self._fail(BadAnswer(type(exc).__name__))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if not self._received:
            self._fail(ConnectFailed("closed without an answer"))
        elif exc is None and self._has_head and self._ends_by_closing:
            self.on_message_complete()
        else:
            self._fail(BadAnswer("cut off"))

    def _fail(self, exc: Exception) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc)

    # -- httptools' side --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            self.is_open = False  # a second answer to one request: what would come next?

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._ends_by_closing = False
        elif name == b"content-encoding" and value.lower() != b"identity":
            self._fail(BadAnswer("compressed, though it was not asked to"))

    def on_headers_complete(self) -> None:
        self._has_head = self._parser.get_status_code() >= 200

    def on_body(self, body: bytes) -> None:
        self._parts.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return  # RFC 9110 §15.2: the real one follows
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, b"".join(self._parts)))


class UpstreamClient:
    """Calls one upstream. `in_flight_max` bounds how many calls may wait on it at once."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        in_flight_max: int = 100,
        answer_bytes_max: int = 1 << 20,
    ) -> None:
        self.name = name
        self.answer_bytes_max = answer_bytes_max
        self._slots = FairSemaphore(in_flight_max)
        self._duration = upstream_duration.labels(name)
        self._idle: deque[_Connection] = deque()  # the one used last on the right
        self._generation = 0
        self.base_url = base_url

    @property
    def base_url(self) -> str:
        """`http[s]://[user:password@]host[:port][/path]`; a new one begins with new connections."""
        return self._base_url

    @base_url.setter
    def base_url(self, base_url: str) -> None:
        url = urlsplit(base_url)
        is_tls = url.scheme == "https"
        self._base_url = base_url.rstrip("/")
        self._address = (url.hostname or "", url.port or (443 if is_tls else 80))
        self._tls = ssl.create_default_context() if is_tls else None
        self._path = url.path.rstrip("/")
        self._head = f"Host: {url.netloc.rpartition('@')[2]}\r\n"
        if url.username is not None:
            pair = f"{unquote(url.username)}:{unquote(url.password or '')}"
            self._head += f"Authorization: Basic {b64encode(pair.encode()).decode()}\r\n"
        self._drop_all()

    @property
    def is_full(self) -> bool:
        """Whether the next request would wait for a slot."""
        return self._slots.locked()

    async def close(self) -> None:
        self._drop_all()

    def _drop_all(self) -> None:
        """Close what rests, now, and what is in use, after its answer."""
        self._generation += 1
        self._drop_idle()

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def __aenter__(self) -> UpstreamClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float,
        holder: Hashable = None,
    ) -> Answer:
        """The status and whole body of the answer, whatever the status.

        While all slots are taken, holders are let in by turns. Sent again when a kept connection
        ends without an answer, so not for what must not happen twice. Raises `UpstreamTimeout`,
        `ConnectFailed` or `BadAnswer`.
        """
        message = self._message(method, path, body, headers or {})
        came = perf_counter()
        deadline = asyncio.get_running_loop().time() + timeout_seconds
        began: float | None = None
        try:
            if self._slots.locked():
                async with asyncio.timeout_at(deadline):
                    await self._slots.acquire(holder)
            else:
                await self._slots.acquire(holder)  # at once
            began = perf_counter()
            status, content = await self._exchange(message, deadline)
        except TimeoutError as exc:
            had_seconds = 0.0 if began is None else perf_counter() - began
            raise UpstreamTimeout(f"no answer in {timeout_seconds:g} s", had_seconds) from exc
        except OSError as exc:
            raise ConnectFailed(type(exc).__name__) from exc
        finally:
            if began is not None:
                self._slots.release()
                self._duration.observe(perf_counter() - began)
        return Answer(status, content, began - came)

    def _message(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        lines = [f"{method} {self._path}{path} HTTP/1.1\r\n", self._head]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if any(line.count("\n") > 1 for line in lines[2:]) or " " in path or "\n" in path:
            raise ValueError("a path or header would end its line")
        if body is not None:
            lines.append(f"Content-Length: {len(body)}\r\n")
        lines.append("\r\n")
        return "".join(lines).encode("latin-1") + (body or b"")

    async def _exchange(self, message: bytes, deadline: float) -> tuple[int, bytes]:
        try:
            return await self._exchange_over(self._take_idle(), message, deadline)
        except ConnectFailed:
            # A kept connection that the upstream closed while we reached for it; the others are
            # no younger.
            self._drop_idle()
            return await self._exchange_over(None, message, deadline)

    async def _exchange_over(
        self, connection: _Connection | None, message: bytes, deadline: float
    ) -> tuple[int, bytes]:
        """Over that connection, or over a new one."""
        generation = self._generation
        if connection is None:
            host, port = self._address
            async with asyncio.timeout_at(deadline):
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(self.answer_bytes_max + HEAD_BYTES_MAX),
                    host,
                    port,
                    ssl=self._tls,
                )
        found = await connection.exchange(message, deadline)
        if connection.is_open and generation == self._generation:
            connection.idle_since = monotonic()
            self._idle.append(connection)
            if connection.idle_since - self._idle[0].idle_since > KEEP_SECONDS:
                self._idle.popleft().close()
        else:
            connection.close()
        return found

    def _take_idle(self) -> _Connection | None:
        """The connection that was used last, so that those of a busy hour can age and go."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and monotonic() - connection.idle_since < KEEP_SECONDS:
                return connection
            connection.close()
        return None
