"""Where the scan of the queue gets its lists from: Robin, asked by a web process or by a worker."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import urlencode

import httpx
from django.conf import settings
from django.utils.translation import gettext_noop

from gateway_project.core import errors
from gateway_project.core.sentences import Sentence
from gateway_project.core.telemetry.metrics import live_polls
from gateway_project.core.upstream.client import AnswerTooLarge, UpstreamTimeout
from robin.config import settings_page
from robin.queue import translate
from robin.queue.translate import QueuePage
from robin.upstream.client import CLIENT, HTML, SERVICE, Refused, robin
from robin.upstream.http import NotSent

PART_ITEMS = 1000
"""As many as Robin gives at once."""
LISTS = {"ALL": "READY,CLAIMED,DEAD", "CLAIMED": "CLAIMED", "DEAD": "DEAD"}
LIST_BYTES_MAX = 32 << 20
QUICK_SECONDS = 2.0


class Source(Protocol):
    """Robin, as far as its queue goes. What it raises are `errors.Upstream…`."""

    async def read_list(self, kind: str, number: int) -> QueuePage: ...

    async def health(self) -> Any: ...

    async def is_free(self) -> bool:
        """Whether Robin is done with what somebody gave up: it has one thread for all of this."""
        ...


class RobinSource:
    """By way of the client that this process' lifespan opened."""

    async def read_list(self, kind: str, number: int) -> QueuePage:
        live_polls.inc()
        with suppress(errors.GatewayError):  # it says how often an item is tried, no more
            await settings_page.read()
        port = robin().client
        query = list_query(kind, number)
        listing = await port.get_json_if_known("/client/queue/json", query, translate.queue_json)
        if listing is not None:
            return listing
        parts, size = [], 0
        asked = port.stream(
            f"/client/queue/list?{query}",
            HTML,
            timeout_seconds=settings.ROBIN_LIST_TIMEOUT_SECONDS,
        )
        async with asked as answer:
            async for part in answer.parts:
                size += len(part)
                if size > LIST_BYTES_MAX:
                    raise AnswerTooLarge("a list")
                parts.append(part)
            parse = partial(translate.queue_page, retries_max=settings_page.known_retries_max())
            try:
                return await asyncio.to_thread(parse, b"".join(parts))
            except ValueError as exc:
                raise errors.UpstreamUnexpected("unreadable") from exc

    async def health(self) -> Any:
        return await robin().service.get_json("/health", timeout_seconds=2.0)

    async def is_free(self) -> bool:
        return await robin().client.is_free()


def list_query(kind: str, number: int) -> str:
    return urlencode({"page": number + 1, "limit": PART_ITEMS, "state": LISTS[kind]})


class PlainSource:
    """By way of a client of its own, for a worker: it keeps none between two tasks, and asks one
    thing after the other."""

    def __init__(self, tls: Any) -> None:
        self._client = partial(
            httpx.AsyncClient, timeout=QUICK_SECONDS, trust_env=False, verify=tls
        )

    async def __aenter__(self) -> PlainSource:
        self.client = self._client(
            base_url=settings.ROBIN_CLIENT_API_URL,
            headers=_bearer(settings.ROBIN_CLIENT_API_TOKEN),
        )
        self.service = self._client(
            base_url=settings.ROBIN_SERVICE_API_URL,
            headers=_bearer(settings.ROBIN_SERVICE_API_TOKEN),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.client.aclose()
        await self.service.aclose()

    async def read_list(self, kind: str, number: int) -> QueuePage:
        with suppress(errors.GatewayError, ValueError):  # as above
            await settings_page.read_by(self._settings)
        path = f"/client/queue/list?{list_query(kind, number)}"
        timeout = _timeout(settings.ROBIN_LIST_TIMEOUT_SECONDS)
        listed = self.client.get(path, headers={"Accept": HTML}, timeout=timeout)
        answer = await _asked(CLIENT, listed)
        try:
            return translate.queue_page(answer.content, settings_page.known_retries_max())
        except ValueError as exc:
            raise errors.UpstreamUnexpected from exc

    async def _settings(self) -> bytes:
        answer = await _asked(SERVICE, self.service.get("/config", headers={"Accept": HTML}))
        return answer.content

    async def health(self) -> Any:
        answer = await _asked(SERVICE, self.service.get("/health"))
        try:
            return answer.json()
        except ValueError as exc:
            raise errors.UpstreamUnexpected from exc

    async def act(self, action: str, uids: list[str], *, timeout_seconds: float) -> Any:
        """What Robin answers to an action. It is sent once."""
        timeout = _timeout(timeout_seconds)
        sent = self.client.post(f"/client/queue/{action}", json={"uids": uids}, timeout=timeout)
        try:
            return (await _asked(CLIENT, sent)).json()
        except ValueError as exc:
            raise errors.UpstreamUnexpected from exc

    async def is_free(self) -> bool:
        try:
            await self.client.get("/health")
        except httpx.TimeoutException:
            return False
        except httpx.TransportError:
            return True
        return True


def _bearer(token: str) -> Mapping[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _timeout(seconds: float) -> httpx.Timeout:
    """For what takes Robin long; to reach it does not."""
    return httpx.Timeout(seconds, connect=QUICK_SECONDS)


async def _asked(port: str, call: Any) -> httpx.Response:
    """A 200, or what `RobinAPI` raises, of the same cause (`is_undone`)."""
    began = monotonic()
    try:
        answer: httpx.Response = await call
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as exc:
        raise errors.UpstreamUnavailable from NotSent(type(exc).__name__)
    except httpx.TimeoutException as exc:
        raise errors.UpstreamTimedOut from UpstreamTimeout(str(exc), monotonic() - began)
    except httpx.TransportError as exc:
        raise errors.UpstreamUnexpected from exc
    if answer.status_code >= 500:
        raise errors.UpstreamUnexpected(
            Sentence(
                gettext_noop(
                    "Robin failed: it answered with the status %(status_code)s. Look at its log."
                ),
                status_code=str(answer.status_code),
            )
        )
    if answer.status_code >= 400:
        refused = Refused(port, answer.status_code)
        raise refused.error from refused
    if answer.status_code != 200:
        raise errors.UpstreamUnexpected
    return answer
