"""Places of the control plane, which callers share: the database has so many connections for it."""

from __future__ import annotations

import asyncio
import re
from hashlib import blake2b

from cachetools import LRUCache
from django.conf import settings

from gateway_project.core import errors
from gateway_project.core.api.middleware import send_problem
from gateway_project.core.context import ASGIApp, Message, Receive, RequestContext, Scope, Send
from gateway_project.core.ratelimit import network_of
from gateway_project.core.sharing import Semaphores
from gateway_project.core.telemetry.metrics import bound_reached

WAIT_SECONDS_MAX = 10.0
SHOWN_MAX = 10_000
SESSION = re.compile(rb"(?:^|;\s*)%s=([^;]+)" % re.escape(settings.SESSION_COOKIE_NAME.encode()))


class SharedSlots:
    """Wraps an application: callers of one network, and those of one workspace, are in it `slots`
    at a time; others go on.

    Who it is nobody knows before the database is asked, so the key or session that a request shows
    stands for the workspace that it was of the last time. A place is free again when the answer
    begins or the request waits for somebody outside (`RequestContext.let_go`): connections go back
    then.
    """

    def __init__(self, app: ASGIApp, *, slots: int, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.app = app
        self._slots = Semaphores(slots)
        self._workspaces: LRUCache[str, str] = LRUCache(SHOWN_MAX)
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["gateway"]
        held = _Held()
        shown = _shown(scope)
        try:
            try:
                async with asyncio.timeout(self._seconds_max):
                    if shown:  # first: who waits for it holds no place of the network
                        await held.take(self._slots.of(self._workspaces.get(shown, shown)))
                    await held.take(self._slots.of(network_of(context.client_ip)))
            except TimeoutError:
                bound_reached.labels("places").inc()
                await send_problem(send, _too_many(), scope)
                return
            context.let_go = held.give_back_from_thread

            async def send_after_giving_back(message: Message) -> None:
                held.give_back()
                await send(message)

            await self.app(scope, receive, send_after_giving_back)
        finally:
            held.give_back()
            if shown and context.workspace:
                self._workspaces[shown] = context.workspace


def _shown(scope: Scope) -> str:
    """A digest of the key or session that the request shows; empty: it shows none."""
    for name, value in scope["headers"]:
        if name == b"cookie":
            found = SESSION.search(value)
            value = found[1] if found else b""
        elif name not in (b"x-api-key", b"authorization"):
            continue
        if value:
            return blake2b(value, digest_size=16).hexdigest()
    return ""


class _Held:
    """Places that a request has, until they are given back for the first time."""

    def __init__(self) -> None:
        self._slots: list[asyncio.Semaphore] = []
        self._loop = asyncio.get_running_loop()

    async def take(self, slot: asyncio.Semaphore) -> None:
        await slot.acquire()
        self._slots.append(slot)

    def give_back(self) -> None:
        while self._slots:
            self._slots.pop().release()

    def give_back_from_thread(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_back)


def _too_many() -> errors.StoreUnavailable:
    return errors.StoreUnavailable(
        "Too many requests from your network, or of your workspace, are being served, and slow "
        "ones among them. Ask for less at a time, and send this one again in a moment.",
        retry_after_seconds=1,
    )
