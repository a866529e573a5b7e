"""httpx, held to what Robin's servers need: the one file of Robin's that knows the library.

One `httpx.AsyncClient` per server and process. What httpx raises leaves here as the errors of
`core/upstream/client.py`, so that whoever calls an upstream handles one family of them. Redirects,
proxies, cookies and compression are refused, and an answer is read to `answer_bytes_max` at most.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from time import perf_counter
from typing import NamedTuple

import httpx

from gateway_project.core.context import current
from gateway_project.core.sharing import FairSemaphore
from gateway_project.core.telemetry.metrics import upstream_duration
from gateway_project.core.upstream.client import (
    AnswerTooLarge,
    BadAnswer,
    ConnectFailed,
    UpstreamTimeout,
)

IN_FLIGHT_MAX = 2  # of a process: a server with a single thread gains nothing from more
KEEP_SECONDS = 20.0  # Robin closes what rested for 30
ANSWER_BYTES_MAX = 32 << 20
HEADERS = {"User-Agent": "gateway", "Accept-Encoding": "identity"}


class Answer(NamedTuple):
    """`content_type` is the media type in small letters, without parameters; empty when none."""

    status: int
    content: bytes
    content_type: str


class Stream(NamedTuple):
    """An answer whose body is still to come. `length` is what its head promised, None: nothing."""

    status: int
    content_type: str
    length: int | None
    parts: AsyncIterator[bytes]


class NotSent(ConnectFailed):
    """There was no connection, so that nothing can have come of it."""


class RobinHTTP:
    """Requests to one of the two servers; raises only `UpstreamError`s."""

    def __init__(self, name: str, base_url: str, headers: Mapping[str, str]) -> None:
        self.answer_bytes_max = ANSWER_BYTES_MAX
        self._slots = FairSemaphore(IN_FLIGHT_MAX)
        self._duration = upstream_duration.labels(name)
        self._client = httpx.AsyncClient(
            base_url=base_url,
            headers={**HEADERS, **headers},
            transport=_ByMethod(_tls(base_url)),
            timeout=None,  # noqa: S113 - `request` has one deadline for all of it
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            trust_env=False,
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float,
    ) -> Answer:
        """The status and whole body of the answer, whatever the status.

        A GET is sent again, once, when its connection ended without an answer. The deadline
        includes the wait for a slot, which callers get by turns, by their address: who reads the
        log again and again keeps neither others nor the live queue from Robin. Raises
        `UpstreamTimeout`, `ConnectFailed` or `BadAnswer`.
        """
        request, holder = self._request(method, path, body, headers)
        began: float | None = None
        try:
            async with asyncio.timeout(timeout_seconds), self._slots.place(holder):
                began = perf_counter()
                response = await self._send(request)
                try:
                    content = await self._read(response)
                finally:
                    await response.aclose()
        except TimeoutError as exc:
            had_seconds = 0.0 if began is None else perf_counter() - began
            raise UpstreamTimeout(f"no answer in {timeout_seconds:g} s", had_seconds) from exc
        finally:
            if began is not None:
                self._duration.observe(perf_counter() - began)
        return Answer(response.status_code, content, _media_type(response))

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        timeout_seconds: float,
    ) -> AsyncIterator[Stream]:
        """A GET that is sent once, whatever becomes of it, and read in parts, as they come.

        The deadline is for the head, the wait for a slot included, and for each part anew. Raises
        as `request`, while it is read as well.
        """
        request, holder = self._request("GET", path, None, headers)
        request.extensions["once"] = True
        began: float | None = None
        try:
            async with AsyncExitStack() as held:
                try:
                    async with asyncio.timeout(timeout_seconds):
                        await held.enter_async_context(self._slots.place(holder))
                        began = perf_counter()
                        response = await self._send(request)
                except TimeoutError as exc:
                    had_seconds = 0.0 if began is None else perf_counter() - began
                    text = f"no answer in {timeout_seconds:g} s"
                    raise UpstreamTimeout(text, had_seconds) from exc
                held.push_async_callback(response.aclose)
                length = response.headers.get("content-length", "")
                yield Stream(
                    response.status_code,
                    _media_type(response),
                    int(length) if length.isascii() and length.isdecimal() else None,
                    self._parts(response, timeout_seconds),
                )
        finally:
            if began is not None:
                self._duration.observe(perf_counter() - began)

    async def _parts(
        self, response: httpx.Response, timeout_seconds: float
    ) -> AsyncIterator[bytes]:
        _refuse_compressed(response)
        parts = response.aiter_raw()
        while True:
            try:
                async with asyncio.timeout(timeout_seconds):
                    part = await anext(parts, None)
            except TimeoutError as exc:
                raise UpstreamTimeout("it fell silent", timeout_seconds) from exc
            except httpx.TransportError as exc:
                raise BadAnswer("cut off") from exc
            if part is None:
                return
            yield part

    def _request(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[httpx.Request, str]:
        """The request, and whose it is."""
        request = self._client.build_request(method, path, content=body, headers=headers)
        context = current.get()
        if context is None:
            return request, ""  # we ourselves
        request.headers["X-Request-ID"] = context.correlation_id or context.request_id
        return request, context.client_ip

    async def _send(self, request: httpx.Request) -> httpx.Response:
        """The answer as far as its head."""
        try:
            return await self._client.send(request, stream=True)
        except (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError) as exc:
            if request.method != "GET" or "once" in request.extensions:
                raise _translated(exc) from exc
        except httpx.TransportError as exc:
            raise NotSent(type(exc).__name__) from exc
        try:  # likely a kept connection that Robin closed while we reached for it
            request.extensions["once"] = True
            return await self._client.send(request, stream=True)
        except httpx.TransportError as exc:
            raise _translated(exc) from exc

    async def _read(self, response: httpx.Response) -> bytes:
        _refuse_compressed(response)
        parts, received = [], 0
        try:
            async for part in response.aiter_raw():
                received += len(part)
                if received > self.answer_bytes_max:
                    raise AnswerTooLarge("answer too large")
                parts.append(part)
        except httpx.TransportError as exc:
            raise BadAnswer("cut off") from exc
        return b"".join(parts)


class _ByMethod(httpx.AsyncBaseTransport):
    """GETs over kept connections; what must not happen twice over one of its own.

    Of a kept connection that ends nobody can tell whether the request had arrived.
    """

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._kept = _transport(tls, kept_max=IN_FLIGHT_MAX)
        self._once = _transport(tls, kept_max=0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        is_kept = request.method == "GET" and "once" not in request.extensions
        return await (self._kept if is_kept else self._once).handle_async_request(request)

    async def aclose(self) -> None:
        await self._kept.aclose()
        await self._once.aclose()


def _transport(tls: ssl.SSLContext, *, kept_max: int) -> httpx.AsyncHTTPTransport:
    # No bound here on connections: the slots are one, and a pool that counts a cancelled call's
    # connection as used could lock us out.
    limits = httpx.Limits(max_keepalive_connections=kept_max, keepalive_expiry=KEEP_SECONDS)
    return httpx.AsyncHTTPTransport(verify=tls, limits=limits, trust_env=False)


def _tls(base_url: str) -> ssl.SSLContext:
    """The system's authorities. Reading them takes a moment, so not for plain HTTP: it has none."""
    if base_url.startswith("https:"):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _refuse_compressed(response: httpx.Response) -> None:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadAnswer("compressed, though it was not asked to")


def _translated(exc: httpx.TransportError) -> ConnectFailed | BadAnswer:
    # httpx has one class for "not HTTP" and for "hung up before a word": its text tells them apart.
    if isinstance(exc, httpx.RemoteProtocolError) and "disconnected" not in str(exc):
        return BadAnswer(type(exc).__name__)
    return ConnectFailed(type(exc).__name__)


def _media_type(response: httpx.Response) -> str:
    return response.headers.get("content-type", "").partition(";")[0].strip().lower()  # type: ignore[no-any-return]
