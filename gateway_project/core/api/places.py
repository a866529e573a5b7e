"""Places of the control plane, which callers share: the database has so many connections for it."""

from __future__ import annotations

import asyncio

from gateway_project.core import errors
from gateway_project.core.api.middleware import send_problem
from gateway_project.core.context import ASGIApp, Message, Receive, RequestContext, Scope, Send
from gateway_project.core.ratelimit import network_of
from gateway_project.core.sharing import Semaphores
from gateway_project.core.telemetry.metrics import bound_reached

WAIT_SECONDS_MAX = 10.0


class SharedPlaces:
    """Wraps an application: callers of one network are in it `places` at a time, others go on.

    By network, because nobody knows yet who it is. A place is free again when the answer begins or
    the request waits for somebody outside (`RequestContext.let_go`): connections go back then.
    """

    def __init__(self, app: ASGIApp, *, places: int, seconds_max: float = WAIT_SECONDS_MAX) -> None:
        self.app = app
        self._networks = Semaphores(places)
        self._seconds_max = seconds_max

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context: RequestContext = scope["gateway"]
        places = self._networks.of(network_of(context.client_ip))
        try:
            async with asyncio.timeout(self._seconds_max):
                await places.acquire()
        except TimeoutError:
            bound_reached.labels("places").inc()
            await send_problem(send, _too_many(), scope)
            return
        place = _Place(places)
        context.let_go = place.give_back_from_thread

        async def send_after_giving_back(message: Message) -> None:
            place.give_back()
            await send(message)

        try:
            await self.app(scope, receive, send_after_giving_back)
        finally:
            place.give_back()


class _Place:
    """One that is held, until it is given back for the first time."""

    def __init__(self, places: asyncio.Semaphore) -> None:
        self._places: asyncio.Semaphore | None = places
        self._loop = asyncio.get_running_loop()

    def give_back(self) -> None:
        if self._places is not None:
            self._places.release()
            self._places = None

    def give_back_from_thread(self) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_back)


def _too_many() -> errors.StoreUnavailable:
    return errors.StoreUnavailable(
        "Too many requests from your network are being served, and slow ones among them. Ask for "
        "less at a time, and send this one again in a moment.",
        retry_after_seconds=1,
    )
