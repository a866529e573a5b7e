"""The one door to our upstreams: a pooled client, a total deadline, a bulkhead, plain errors.

It wraps aiohttp, which takes a third of httpx's time per call at our concurrency (docs/decisions/
0003). One client per upstream and process, opened in the lifespan. It refuses to follow redirects,
to read proxies from the environment and to take more than `answer_bytes_max` of an answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from types import TracebackType
from typing import NamedTuple

import aiohttp

from gateway_project.core.observability import upstream_duration


class UpstreamError(Exception):
    """An upstream did not give an answer. `reason` is a stable word for logs and replies."""

    reason = "engine_error"


class ConnectFailed(UpstreamError):
    """Refused, reset, unresolvable, or a TLS failure."""

    reason = "connect_error"


class UpstreamTimeout(UpstreamError):
    """No whole answer within the deadline, the wait for a free place included.

    `had_seconds` is how long the upstream had the request: 0 when it never got a place.
    """

    reason = "timeout"

    def __init__(self, message: str, had_seconds: float) -> None:
        super().__init__(message)
        self.had_seconds = had_seconds


class BadAnswer(UpstreamError):
    """An answer came, but half of it, too much of it, or not in HTTP."""


class Answer(NamedTuple):
    """`queued_seconds`: how long the request waited for a free place before it left."""

    status: int
    content: bytes
    queued_seconds: float


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
        self.base_url = base_url.rstrip("/")
        self.answer_bytes_max = answer_bytes_max
        self._places = asyncio.Semaphore(in_flight_max)
        self._duration = upstream_duration.labels(name)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=in_flight_max, keepalive_timeout=30),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=True,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=("User-Agent",),
        )

    async def close(self) -> None:
        await self._session.close()

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
    ) -> Answer:
        """The status and whole body of the answer, whatever the status.

        Raises `UpstreamTimeout`, `ConnectFailed` or `BadAnswer`.
        """
        came = perf_counter()
        began: float | None = None
        try:
            async with asyncio.timeout(timeout_seconds), self._places:
                began = perf_counter()
                try:
                    status, content = await self._exchange(method, path, body, headers)
                except aiohttp.ServerDisconnectedError:
                    # A kept connection that the upstream closed while we reached for it. Our
                    # calls are safe to repeat, and a second one gets a fresh connection.
                    status, content = await self._exchange(method, path, body, headers)
        except TimeoutError as exc:
            had_seconds = 0.0 if began is None else perf_counter() - began
            raise UpstreamTimeout(f"no answer in {timeout_seconds:g} s", had_seconds) from exc
        except (aiohttp.ClientPayloadError, aiohttp.ClientResponseError) as exc:
            raise BadAnswer(type(exc).__name__) from exc
        except (aiohttp.ClientError, OSError, RuntimeError) as exc:
            # RuntimeError: uvloop's word for a transport that is closed already.
            raise ConnectFailed(type(exc).__name__) from exc
        finally:
            if began is not None:
                self._duration.observe(perf_counter() - began)
        return Answer(status, content, began - came)

    async def _exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str] | None
    ) -> tuple[int, bytes]:
        async with self._session.request(
            method, f"{self.base_url}{path}", data=body, headers=headers, allow_redirects=False
        ) as response:
            content = b""
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > self.answer_bytes_max:
                    raise BadAnswer("answer too large")
            return response.status, content
