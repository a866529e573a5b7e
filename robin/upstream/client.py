"""Robin's two HTTP servers, asked safely: a breaker and a bulkhead for each, short deadlines.

Both answer 200 with a page of HTML to nearly everything they do not know, and each works on one
request at a time. So what came is checked by its media type, never by its status alone, and a page
that was not asked for counts as a failure, as a timeout does. Robin's own words are never passed
on: they may hold its settings.

Reads may be sent again when a kept connection was dropped; what changes something is sent once, and
so is a search of the log, over which Robin may have run out of memory.

Each kind of work has a breaker of its own, so that a list of the queue that takes too long says
nothing of the mail store. One that is open closes as soon as Robin answers a cheap look.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from contextvars import Context
from time import monotonic
from typing import Any, Final, Literal, TypeVar

import orjson
from cachetools import TTLCache
from django.conf import settings
from django.utils.translation import gettext_noop

from gateway_project.core import errors
from gateway_project.core.context import current
from gateway_project.core.sentences import Sentence
from gateway_project.core.stores import database
from gateway_project.core.telemetry.logging import get_logger
from gateway_project.core.upstream import client
from gateway_project.core.upstream.breaker import STATES, Breaker, BreakerOpen, Permit
from robin.upstream.http import Answer, NotSent, RobinHTTP, Stream

JSON: Final = "application/json"
HTML: Final = "text/html"
TEXT: Final = "text/plain"
FAULT_SECONDS_MIN = 0.5
"""A call that had less than this did not show that Robin is slow."""
T = TypeVar("T")
PEEK_SECONDS = 0.8
LOOK_SECONDS = 1.0
"""So often an open breaker makes somebody look whether Robin is back."""
CLIENT, SERVICE = "robin_client", "robin_service"
BREAKERS = {
    CLIENT: {"": CLIENT, "/client/queue": "robin_queue", "/logs": "robin_logs"},
    SERVICE: {"": SERVICE, "/config": "robin_settings"},
}
"""Of each server: the beginning of an address → whose breaker it is."""
PROBE_SECONDS = 3600.0
Kind = Literal["application/json", "text/html", "text/plain"]
Reason = Literal["", "busy", "away", "refused"]
log = get_logger("gateway.robin")


class RobinAPI:
    """One of the two servers. All calls raise `errors.Upstream…` or `errors.NotFound`."""

    def __init__(self, name: str, url: str, token: str = "") -> None:
        self.name = name
        self.http = RobinHTTP(name, url, {"Authorization": f"Bearer {token}"} if token else {})
        self.breakers = {
            prefix: Breaker(
                breaker,
                failures_max=settings.CIRCUIT_BREAKER_FAILURE_THRESHOLD,
                open_seconds=settings.CIRCUIT_BREAKER_TIMEOUT_SECONDS,
            )
            for prefix, breaker in BREAKERS[name].items()
        }
        self.seconds_until_free: Callable[[], Awaitable[float | None]] = _is_free
        """How long a reading of the queue will still keep this server; None while there is none."""
        # Paths that are not asked for again for a while. They are ours, so there are few.
        self._unknown: TTLCache[str, bool] = TTLCache(16, ttl=PROBE_SECONDS)
        self._next_look = 0.0

    @property
    def breaker(self) -> Breaker:
        """Of all that has none of its own."""
        return self.breakers[""]

    @property
    def state(self) -> str:
        """The worst of its breakers: `closed`, `half-open` or `open`."""
        return max((one.state for one in self.breakers.values()), key=lambda name: STATES[name])

    def breaker_of(self, path: str) -> Breaker:
        return self.breakers[max((p for p in self.breakers if path.startswith(p)), key=len)]

    async def close(self) -> None:
        await self.http.close()

    async def get(
        self,
        path: str,
        kind: Kind,
        parse: Callable[[bytes], T],
        *,
        timeout_seconds: float | None = None,
    ) -> T:
        """What `parse` makes of a 200 of that media type; its `ValueError` is Robin's failure."""
        return await self._ask("GET", path, kind, timeout_seconds, parse=parse)

    async def get_json(self, path: str, *, timeout_seconds: float | None = None) -> Any:
        return await self.get(path, JSON, orjson.loads, timeout_seconds=timeout_seconds)

    async def get_json_if_known(
        self, path: str, query: str, parse: Callable[[bytes], T]
    ) -> T | None:
        """From an address that only some Robins have; None where this one does not.

        Stock Robin answers such with a page or 405: that is no failure, and is asked again after
        `PROBE_SECONDS`. What `parse` refuses is not the address that we know. Other errors are
        those of any address.
        """
        if path in self._unknown:
            return None
        try:
            return await self._ask("GET", f"{path}?{query}", JSON, None, parse=parse, probe=True)
        except _Unknown:
            self._unknown[path] = True
            return None

    async def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that Robin answers. `body` is always made by us, never a client's."""
        content = b"" if body is None else orjson.dumps(body)
        return await self._ask("POST", path, JSON, None, body=content, parse=orjson.loads)

    @asynccontextmanager
    async def stream(
        self,
        path: str,
        kind: Kind,
        *others: Kind,
        timeout_seconds: float | None = None,
    ) -> AsyncIterator[Stream]:
        """A 200 of that media type, or of `others`, to be read in parts. Never sent again."""
        with await self._permit(path) as permit:
            async with self._reported(permit, path, timeout_seconds) as seconds:
                headers = {"Accept": kind}
                async with self.http.stream(
                    path, headers=headers, timeout_seconds=seconds
                ) as answer:
                    came = next((one for one in others if one == answer.content_type), kind)
                    self._check(answer.status, answer.content_type, came, answer.length != 0)
                    yield answer

    async def peek(self) -> Any:
        """Its `/health`, or None. Beside the breaker: a look neither opens it nor is refused."""
        try:
            answer = await self.http.request("GET", "/health", timeout_seconds=PEEK_SECONDS)
            return self._read(answer, JSON, orjson.loads)
        except (client.UpstreamError, errors.UpstreamUnexpected, Refused, _Failed):
            return None

    async def look(self) -> tuple[Any, Reason]:
        """Its `/health`, or None and why not. Robin shows a part of it to anybody.

        `busy` is no trouble: we ourselves keep it from answering, by reading out its queue.
        """
        if await self.seconds_until_free() is not None:
            return None, "busy"
        found = await self.peek()
        if not isinstance(found, dict) or found.get("status") != "UP":
            return None, "away"
        is_refused = "queue" not in found if self.name == SERVICE else await self.refuses_us()
        return (None, "refused") if is_refused else (found, "")

    async def is_free(self) -> bool:
        """False while its one thread works on something else; away is free, too."""
        try:
            await self.http.request("GET", "/health", timeout_seconds=PEEK_SECONDS)
        except client.UpstreamTimeout:
            return False
        except client.UpstreamError:
            return True
        return True

    async def refuses_us(self) -> bool:
        """Whether it is there, and does not take our credentials: `/health` it shows to anybody."""
        try:
            # Nothing is there; but before Robin says so, it asks who wants to know.
            answer = await self.http.request("GET", "/users/-", timeout_seconds=PEEK_SECONDS)
        except client.UpstreamError:
            return False
        return answer.status in (401, 403)

    async def _permit(self, path: str) -> _Held:
        breaker = self.breaker_of(path)
        try:
            return _Held(breaker.acquire())
        except BreakerOpen as exc:
            if breaker.forced is None and await self._is_back():
                for one in self.breakers.values():
                    one.close()
                return _Held(breaker.acquire())
            raise errors.UpstreamUnavailable(
                gettext_noop(
                    "The mail server failed several times and is left alone for a while. "
                    "Try again after Retry-After seconds."
                ),
                retry_after_seconds=max(1, math.ceil(exc.retry_after_seconds)),
            ) from exc

    async def _is_back(self) -> bool:
        if monotonic() < self._next_look:
            return False  # somebody looks, or has just done so
        self._next_look = monotonic() + PEEK_SECONDS + LOOK_SECONDS
        return await self.peek() is not None

    async def _ask(
        self,
        method: str,
        path: str,
        kind: Kind,
        timeout_seconds: float | None,
        *,
        parse: Callable[[bytes], T],
        body: bytes | None = None,
        probe: bool = False,
    ) -> T:
        with await self._permit(path) as permit:
            headers = {"Accept": kind}
            if body is not None:
                headers["Content-Type"] = JSON
            async with self._reported(permit, path, timeout_seconds) as seconds:
                answer = await self.http.request(
                    method, path, body=body, headers=headers, timeout_seconds=seconds
                )
                return (self._probe if probe else self._read)(answer, kind, parse)

    @asynccontextmanager
    async def _reported(
        self, permit: Permit, path: str, timeout_seconds: float | None
    ) -> AsyncIterator[float]:
        """What happens inside, told to the breaker, and raised as an error of the gateway's.

        What came is for the log, not for callers.
        """
        seconds = timeout_seconds or settings.ROBIN_TIMEOUT_SECONDS
        try:
            yield seconds
        except _Unknown:
            permit.succeeded()
            raise
        except client.UpstreamTimeout as exc:
            left = await self.seconds_until_free()
            if left is not None or exc.had_seconds < min(FAULT_SECONDS_MIN, seconds):
                permit.release()  # it waited for others; says nothing about Robin
                raise errors.UpstreamUnavailable(
                    gettext_noop("The mail server is busy with other requests. Try again shortly."),
                    retry_after_seconds=max(1, math.ceil(left or 0)),
                ) from exc
            permit.failed()
            self._log(path, "timeout")
            raise errors.UpstreamTimedOut from exc
        except client.AnswerTooLarge as exc:
            permit.release()  # it works, and has much to say
            self._log(path, str(exc))
            raise errors.UpstreamUnexpected(
                gettext_noop("Robin's answer is too large to be shown. Ask for less.")
            ) from exc
        except client.ConnectFailed as exc:
            permit.failed()
            self._log(path, exc.reason)
            raise errors.UpstreamUnavailable from exc
        except _Failed as exc:
            permit.failed()
            self._log(path, f"status {exc.status}")
            raise errors.UpstreamUnexpected(
                Sentence(
                    gettext_noop(
                        "Robin failed: it answered with the status %(status)s. See its log, and "
                        "try again."
                    ),
                    status=str(exc.status),
                )
            ) from exc
        except (client.UpstreamError, errors.UpstreamUnexpected) as exc:
            permit.failed()
            self._log(path, str(exc))
            raise errors.UpstreamUnexpected from exc
        except Refused as exc:
            raise exc.error from exc
        else:
            permit.succeeded()

    def _read(self, answer: Answer, kind: Kind, parse: Callable[[bytes], T]) -> T:
        self._check(answer.status, answer.content_type, kind, bool(answer.content))
        try:
            return parse(answer.content)
        except ValueError as exc:
            raise errors.UpstreamUnexpected("unreadable") from exc

    def _check(self, status: int, content_type: str, kind: Kind, has_content: bool) -> None:
        if 400 <= status < 500:
            raise Refused(self.name, status)
        if status >= 500:
            raise _Failed(status)
        if status not in (200, 202):
            raise errors.UpstreamUnexpected(f"status {status}")
        # An empty body has no type that could be wrong: a log search that found nothing.
        if content_type != kind and (has_content or kind != TEXT):
            raise errors.UpstreamUnexpected("another media type")

    def _probe(self, answer: Answer, kind: Kind, parse: Callable[[bytes], T]) -> T:
        """As `_read`, where the address may not be known: then `_Unknown`, which is no news."""
        is_refused = 400 <= answer.status < 500 and answer.status not in (401, 403)
        if is_refused or (answer.status == 200 and answer.content_type != kind):
            raise _Unknown
        if answer.status != 200:
            return self._read(answer, kind, parse)
        try:
            return parse(answer.content)
        except ValueError:
            raise _Unknown from None

    def _log(self, path: str, reason: str) -> None:
        where = path.partition("?")[0].split("/")[1:2]  # no names of mails, no searches
        log.warning("robin_failed", port=self.name, path="/".join(["", *where]), reason=reason)


async def _is_free() -> float | None:
    return None


class _Held:
    """A permit that is given back at the end, unless it was told how the call ended."""

    def __init__(self, permit: Permit) -> None:
        self._permit = permit

    def __enter__(self) -> Permit:
        return self._permit

    def __exit__(self, *_: object) -> None:
        self._permit.release()


class _Failed(Exception):
    """Robin answered that it failed."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


class _Unknown(Exception):
    """Robin works, and has no such address."""


class Refused(Exception):
    """A 4xx: Robin works, but not for this request, so its breaker must not open. It looks at who
    asks, and for what, before it does anything."""

    def __init__(self, port: str, status: int) -> None:
        super().__init__(f"status {status}")
        self.error = _refusal(port, status)


def _refusal(port: str, status: int) -> errors.GatewayError:
    if status == 404:
        return errors.NotFound(gettext_noop("Robin has no such thing. Look for it in its list."))
    if status in (401, 403):
        log.error("robin_refuses_us", port=port, status=status, alert=True)
        return errors.UpstreamUnexpected(
            gettext_noop(
                "Robin refuses the gateway's credentials. Who runs the gateway must correct those "
                "of its settings (ROBIN_…)."
            )
        )
    log.error("robin_rejected_request", port=port, status=status)
    return errors.UpstreamUnexpected(
        gettext_noop(
            "Robin does not know this request. Check that its version is one that the gateway was "
            "made for."
        )
    )


def is_undone(error: errors.GatewayError) -> bool:
    """Whether Robin certainly did nothing: it was not reached, or refused. Of all else that went
    wrong nobody knows."""
    if isinstance(error.__cause__, client.UpstreamTimeout):
        return not may_go_on(error)
    return isinstance(error.__cause__, NotSent | BreakerOpen | Refused)


def may_go_on(error: errors.GatewayError) -> bool:
    """Whether Robin may still be at it: it had the request, and nobody waits any more."""
    cause = error.__cause__
    return isinstance(cause, client.UpstreamTimeout) and cause.had_seconds > 0


class Robin:
    """Both ports; one per process."""

    loop: asyncio.AbstractEventLoop | None = None
    """In which both live."""

    def __init__(self, client_url: str, service_url: str) -> None:
        self.client = RobinAPI(CLIENT, client_url, settings.ROBIN_CLIENT_API_TOKEN)
        self.service = RobinAPI(SERVICE, service_url, settings.ROBIN_SERVICE_API_TOKEN)

    async def close(self) -> None:
        await self.client.close()
        await self.service.close()


_robin: Robin | None = None


def open_robin() -> Robin:
    """Make this process' client; called once, in the lifespan, inside the event loop."""
    global _robin
    _robin = Robin(settings.ROBIN_CLIENT_API_URL, settings.ROBIN_SERVICE_API_URL)
    _robin.loop = asyncio.get_running_loop()
    return _robin


async def close_robin() -> None:
    global _robin
    if _robin is not None:
        await _robin.close()
        _robin = None


def is_open() -> bool:
    return _robin is not None


def robin() -> Robin:
    """The client that the lifespan opened; 503 where no Robin is configured."""
    if _robin is None:
        raise errors.UpstreamUnavailable(
            gettext_noop("No mail server is configured here. See ROBIN_CLIENT_API_URL."),
            retry_after_seconds=3600,
        )
    return _robin


def from_thread(work: Coroutine[Any, Any, T], *, seconds: float = 60.0) -> T:
    """What comes of `work`, for a page: it runs in the loop of this process' client.

    Not for that loop's own thread, nor inside a transaction. Raises what `work` raises, and
    `UpstreamTimedOut` when it takes longer than that.
    """
    try:
        loop = robin().loop
        assert loop is not None  # noqa: S101 - `open_robin` set it
    except BaseException:
        work.close()
        raise
    database.let_go()
    # Of this request's context it gets no more: what is bound to its thread would wait for it.
    own = Context()
    own.run(current.set, current.get())
    running = own.run(asyncio.run_coroutine_threadsafe, work, loop)
    try:
        return running.result(seconds)
    except TimeoutError as exc:
        running.cancel()
        raise errors.UpstreamTimedOut from exc
